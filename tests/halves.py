"""
Two halves of comparisons that have no prompt in common: a reward model of the one is for PPO, one
of the other judges what PPO has made of it.

    python -m tests.halves my/comparisons.train.jsonl out/my/pairs/comparisons.jsonl --to my/halves

Files are read together; a row is of the split that it names ("split"), or that its file's name
does, else of train. With --balanced pairs of a file are left out, at random, until the longer text
is preferred as often as the shorter one, so that length alone orders half of them. Writes --to/a
and --to/b, each with comparisons.train.jsonl and comparisons.validation.jsonl, for
`python reward.py --comparisons my/halves/a`.
"""

import random
import zlib
from pathlib import Path

import data
import metrics
from data import files
from data.flags import one_sentence, parser_of

SPLITS = ("train", "validation")


def half(prompt):
    "a or b, by nothing but the prompt: the same one in every file, today and tomorrow."
    return "ab"[zlib.crc32(prompt.encode()) % 2]


def balance(rows):
    "As many comparisons that the longer text has won as that the shorter one has, in words."
    longer = [len(metrics.words(r["chosen"])) - len(metrics.words(r["rejected"])) for r in rows]
    kept = {k for k, x in enumerate(longer) if not x}
    sides = [[k for k, x in enumerate(longer) if x > 0], [k for k, x in enumerate(longer) if x < 0]]
    for side in sides:
        kept.update(random.Random(0).sample(side, min(map(len, sides))))
    return [rows[k] for k in sorted(kept)]


def halves(paths, balanced=False):
    "Files of comparisons -> {(half, split): rows}. ValueError if one of the four is empty."
    found = {(name, split): [] for name in "ab" for split in SPLITS}
    for path in map(Path, paths):
        named, read = next((s for s in SPLITS if f".{s}." in path.name), "train"), {}
        for row, place in files.read_rows(path):
            c, split = data.comparison(row, place), row.get("split", named)
            if split in SPLITS:
                read.setdefault((half(c.prompt), split), []).append(
                    {"prompt": c.prompt, "chosen": c.chosen, "rejected": c.rejected})
        for key, rows in read.items():
            found[key] += balance(rows) if balanced else rows
    for (name, split), rows in found.items():
        if not rows:
            raise ValueError(f"half {name} has no comparisons for {split}: give more files")
    return found


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--to", required=True)
    parser.add_argument("--balanced", action="store_true")
    args = parser.parse_args()
    with one_sentence():
        for (name, split), rows in halves(args.files, args.balanced).items():
            path = Path(args.to) / name / f"comparisons.{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_rows(path, rows)
            print(f"wrote {path}: {len(rows)} comparisons of "
                  f"{len({row['prompt'] for row in rows})} prompts")
