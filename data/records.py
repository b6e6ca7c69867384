"""
Records: of the embedded world, of files, and of public datasets by name, the paper's and any other
on the Hugging Face hub.

    python -m data tldr --split cnn -n 5         # fetched once; the hub is asked for changes
    python -m data tldr=copies --split cnn -n 5  # from copies/cnn_dailymail/3.0.0/test-*.parquet

    name                what it is trained on                        test splits, ID first
    tldr                Reddit posts with their authors' TL;DRs      test, cnn (CNN/DailyMail)
    tldr-SUBREDDIT      posts of relationships, AskReddit, ...       test, cnn, ood_test: all others
    tldr-length         posts of at most 245 words                   test, cnn, ood_test: the longer
    tldr-sentiment      the gloomier half of the posts               test, cnn, ood_test: the rest
    tldr-10, tldr-50    10 % or 50 % of the posts                    test, cnn
    alpaca, alpaca-sim  AlpacaFarm; people's or simulated choices    test, alpaca_eval, sequential
    hh                  Anthropic's helpful and harmless dialogues   test
    owner/name[:config] any set of the hub with one of the shapes    test, and others it may have

Any name may be followed by `=FOLDER`, which holds the hub's own files, each set in a folder of its
name, as `hf download UCL-DARK/openai-tldr-filtered --repo-type dataset --local-dir
FOLDER/openai-tldr-filtered` makes it (FILES, below, says which files, and which `--revision`). Rows
of any source are known by their columns (EXAMPLES and COMPARISONS). Where a set, or a file alone,
has no validation or test split, one training prompt in twenty is.

The sets, columns, templates and splits are those of Kirk et al. 2024 (arXiv:2310.06452) and of
their code (facebookresearch/rlfh-gen-div, dataset/summarisation_formatting.py), with these
differences: 10 % is a part of 50 %, and no post is in it twice (they draw with replacement); their
sentiment classifier is not published, so without its index files a word list takes its place.
"""

import functools
import hashlib
import pickletools
import random
import re
import statistics
import struct
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from . import files
from .files import string

__all__ = ("WORLD Example Comparison comparison load comparisons part gold tables test_splits "
           "prompts texts run_folder").split()
WORLD = ("summarise", "instruct")
SUBREDDITS = ("relationships", "AskReddit", "relationship_advice", "tifu", "dating_advice")
STRUCTURED = ("length", "sentiment", *SUBREDDITS)
PERCENT = {"10": 10, "50": 50}
NAMES = ("tldr", *(f"tldr-{x}" for x in (*PERCENT, *STRUCTURED)), "alpaca", "alpaca-sim", "hh")
LENGTH = 245  # words of a post, the longest in distribution
CUT = ("validation", "test")  # made from the training rows where a set has none

POSTS, PAIRS = "UCL-DARK/openai-tldr-filtered", "UCL-DARK/openai-tldr-summarisation-preferences"
FARM = "tatsu-lab/alpaca_farm"
CONVERTED = "@refs%2Fconvert%2Fparquet"  # the branch where the hub keeps its own conversion
ALPACA = {**{split: f"{FARM}{CONVERTED}/alpaca_instructions/{folder}/*.parquet" for split, folder in
             (("train", "sft"), ("validation", "val"), ("unlabeled", "unlabeled"))},
          "test": "UCL-DARK/alpaca-farm-id-test/data/*.parquet",
          "alpaca_eval": "tatsu-lab/alpaca_eval/alpaca_eval.json",
          "sequential": "UCL-DARK/sequential-instructions/data/*.parquet"}
HH = {split: f"Anthropic/hh-rlhf/h*/{split}.jsonl.gz" for split in ("train", "test")}
FILES = {  # of examples; of comparisons
    False: {"tldr": {"train": f"{POSTS}/train.jsonl", "validation": f"{POSTS}/valid.jsonl",
                     "test": f"{POSTS}/test.jsonl",
                     "cnn": "abisee/cnn_dailymail/3.0.0/test-*.parquet"},
            "alpaca": ALPACA, "alpaca-sim": ALPACA, "hh": HH},
    True: {"tldr": {**{split: f"{PAIRS}/data/{split}-*.json" for split in ("train", *CUT)}, "cnn":
                    f"openai/summarize_from_feedback{CONVERTED}/comparisons/validation/*.parquet"},
           "alpaca": {"train": f"{FARM}/alpaca_human_preference.json"},
           "alpaca-sim": {"train": f"{FARM}/alpaca_noisy_multi_preference.json"}, "hh": HH}}

OFFLINE = (". Without a network, write NAME=FOLDER, where FOLDER holds the hub's own files, each "
           "set in a folder of its name; or give a folder of train.jsonl and the like")


# ---- one row: its prompt in the paper's template, and the answers --------------------------------


@dataclass(frozen=True)
class Example:
    "A prompt and the reference response to it; `meta` is whatever else the source knew."
    prompt: str
    response: str
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    "Two responses to one prompt, of which somebody preferred `chosen`."
    prompt: str
    chosen: str
    rejected: str
    meta: dict = field(default_factory=dict)


PLAIN = "{prompt}"
REDDIT = "SUBREDDIT: r/{subreddit}\nTITLE: {title}\nPOST: {post}\nTL;DR:"
NEWS = "ARTICLE: {article}\nTL;DR:"
TASK = ("Below is an instruction that describes a task. Write a response that appropriately "
          "completes the request.\n\n### Instruction:\n{instruction}\n\n### Response:")
TASK_INPUT = TASK.replace(
    "a task.", "a task, paired with an input that provides further context.").replace(
    "### Response:", "### Input:\n{input}\n\n### Response:")


def filled(row, place, template, columns=()):
    "The prompt and the answers of a row; a missing or empty input leaves its part out."
    answers = [c for c in columns if f"{{{c}}}" not in template]
    if template == TASK and row.get("input") not in (None, ""):
        template = TASK_INPUT
    prompt = re.sub(r"{(\w+)}", lambda name: string(row, place, name[1]), template)
    return prompt, *(string(row, place, key) for key in answers)


def last_turn(row, place, key):
    "A dialogue -> everything up to its last answer, and that answer."
    before, cue, answer = string(row, place, key).rpartition("\n\nAssistant:")
    if not cue:
        raise ValueError(f'{place}: "{key}" has no turn of the Assistant')
    return before + cue, answer


def dialogues(row, place):
    (prompt, chosen), (other, rejected) = (last_turn(row, place, k) for k in ("chosen", "rejected"))
    return (prompt, chosen, rejected) if prompt == other else None


def summaries(row, place):
    "A row of OpenAI's comparisons: of Reddit posts, or of articles, which have no post."
    info, shown = row["info"] or {}, row["summaries"] or ()
    if len(shown) != 2 or row["choice"] not in (0, 1):
        raise ValueError(f"{place}: {len(shown)} summaries and choice {row['choice']!r}, not two "
                         f"and 0 or 1")
    a, b = (string(summary, place, "text") for summary in shown)
    prompt, = filled(info, place, NEWS if info.get("post") is None else REDDIT)
    return (prompt, b, a) if row["choice"] else (prompt, a, b)


def outputs(row, place):
    "A row of AlpacaFarm's comparisons; any preference but 1 and 2 is a tie."
    prompt, a, b = filled(row, place, TASK, ("output_1", "output_2"))
    return {1: (prompt, a, b), 2: (prompt, b, a)}.get(row["preference"])


# columns: a template, whose own are the prompt and the others the answers; or a reader of the row
EXAMPLES = {
    **{("prompt", answer): PLAIN for answer in ("response", "reference", "completion", "chosen")},
    ("subreddit", "title", "post", "summary"): REDDIT,
    ("article", "highlights"): NEWS,
    ("instruction", "output"): TASK,
    ("chosen", "rejected"): functools.partial(last_turn, key="chosen")}
COMPARISONS = {
    ("prompt", "chosen", "rejected"): PLAIN,
    ("chosen", "rejected"): dialogues,
    ("info", "summaries", "choice"): summaries,
    ("instruction", "output_1", "output_2", "preference"): outputs}


def record(row, place, pairs, strict=False):
    """A row as an Example or a Comparison, by the first columns of the above that it has; None, or
    if `strict` a ValueError, of one that prefers nothing: a tie, equal answers, dialogues whose
    earlier turns differ. ValueError: where and what is wrong with it."""
    shapes = COMPARISONS if pairs else EXAMPLES
    columns = min(shapes, key=lambda columns: len(set(columns) - row.keys()))
    if lacking := [f'"{c}"' for c in columns if c not in row]:
        raise ValueError(f"{place}: no {', '.join(lacking)}: found {', '.join(row)}")
    read = shapes[columns]
    found = read(row, place) if callable(read) else filled(row, place, read, columns)
    meta = {k: v for k, v in row.items() if k not in columns}
    if not pairs:
        return Example(*found, meta)
    if found and found[1].strip() != found[2].strip():  # in what a model would see
        return Comparison(*found, meta)
    if strict:
        raise ValueError(f"{place}: chosen and rejected are equal, so nothing was preferred")


comparison = functools.partial(record, pairs=True, strict=True)


# ---- which rows belong to a split ----------------------------------------------------------------

GLOOMY = set("""afraid alone angry anxious argument awful bad blame bored broke broken cheated crazy
    cried cry dead death depressed died divorce fight hate horrible hurt ignored jealous lie lied
    lonely lost mad mean miserable miss nervous pain panic poor problem problems sad scared sick
    sorry stupid suck sucks terrible tired ugly upset worried worse worst wrong""".split())
HAPPY = set("""amazing awesome beautiful best better calm care cool cute enjoy enjoyed excited fine
    free friend friends fun funny glad good great happy healthy help hope interesting kind laugh
    laughed like love loved lucky nice perfect pleased proud relaxed safe smart smile success sweet
    thank thanks trust well win wonderful""".split())


def mood(post):
    "Share of happy words less share of gloomy ones, from -1 to 1; 0 for a post without words."
    words = re.findall(r"[a-z]+", post.lower())
    return sum((w in HAPPY) - (w in GLOOMY) for w in words) / max(len(words), 1)


@functools.cache
def median_mood(folder):
    "Of the posts to train on, for examples and comparisons alike: a post is always on one side."
    posts = rows(FILES[False]["tldr"]["train"], "tldr", folder)
    return statistics.median(mood(string(row, place, "post")) for row, place in posts)


def published(path):
    """The authors' sentiment index file -> {split: set of row numbers in distribution}. It is a
    dict of lists or int64 arrays as numpy pickles it. To unpickle a file may run any code, so its
    opcodes are only read here, and none is executed. ValueError for another kind of file."""
    content, rows = Path(path).read_bytes(), {}
    try:
        start = 10 + struct.unpack("<H", content[8:10])[0]  # Format version 1.0, numpy.lib.format
        for opcode, value, _ in pickletools.genops(content[start:]):
            if "UNICODE" in opcode.name and value in ("train", "validation", "test"):
                array, listed = rows[value] = [], []
            elif rows and "BYTES" in opcode.name and len(value) % 8 == 0:
                array += struct.unpack(f"<{len(value) // 8}q", value)
            elif rows and opcode.name in ("BININT", "BININT1", "BININT2"):
                listed.append(value)  # all of a list; of an array only its shape and such
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} is not one of the authors' index files: {error}") from None
    return {split: set(array or listed) for split, (array, listed) in rows.items()}


def within(name, split, pairs, table):
    "Those of a table's rows that a split keeps."
    first, part, folder = parse(name)
    if pairs and (first, split) == ("tldr", "cnn"):
        return [pair for pair in table if "cnndm" in string(*pair, "batch")]
    if part in PERCENT and split in ("train", "validation"):
        order = random.Random(0).sample(range(len(table)), len(table))
        return [table[i] for i in sorted(order[:len(table) * PERCENT[part] // 100])]
    if part not in STRUCTURED or split == "cnn" or split.startswith("full_"):
        return table
    key, belongs = {"length": ("post", lambda post: len(post.split(" ")) <= LENGTH),
                    "sentiment": ("post", lambda post: mood(post) <= median_mood(folder)),
                    }.get(part, ("subreddit", lambda name: name == part))
    index = Path(folder, f"{'rm_' if pairs else ''}sentiment_indices.npy")
    if part == "sentiment" and folder and index.exists():
        listed = published(index).get(split.removeprefix("ood_"), set())
        if not listed or min(listed) < 0 or max(listed) >= len(table):
            raise ValueError(f"{index} has {len(listed)} row numbers for {split}, which do not fit "
                             f"its {len(table)} rows: it belongs to another version of the set")
        inside = [i in listed for i in range(len(table))]
    else:
        inside = [belongs(string((row.get("info") or {}) if pairs else row, place, key))
                  for row, place in table]
    return [pair for pair, x in zip(table, inside) if x != split.startswith("ood_")]


# ---- a dataset by its name -----------------------------------------------------------------------


def parse(name):
    'The set, the part of it and the folder of a name: "tldr-10=copies" is tldr, 10, copies.'
    name, _, folder = str(name).partition("=")
    first, _, part = name.partition("-")
    return (first, part, folder) if name in NAMES and first == "tldr" else (name, "", folder)


def knows(name):
    "Whether a name is one of the above; a file or folder of one's own comes before the hub."
    first, on_hub = str(name).partition("=")[0], r"[\w.-]+/[\w.-]+(:[\w.-]+)?"
    return first in NAMES or not (first.endswith(files.FORMATS) or Path(name).exists()
                                  or not re.fullmatch(on_hub, first))


def load_dataset(*args, **options):
    import datasets  # whatever goes wrong in it, files.foreign makes a sentence of

    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # before 4.0 a set could bring a script
    return datasets.load_dataset(*args, **options)


def rows(table, source, folder=""):
    """Pairs (row, where it stands) of a table: a file, a location in FILES, below a folder or on
    the hub, or what `datasets` has opened."""
    if isinstance(table, Path):
        return files.read_rows(table)
    if isinstance(table, str) and folder:
        _, name, path = table.split("/", 2)
        name = f"{name.partition('@')[0]}/{path}"
        found = sorted(p for p in Path(folder).glob(name) if not p.name.startswith("."))
        if not found:
            raise FileNotFoundError(f"there is no {Path(folder, name)}{OFFLINE}")
        return [row for path in found for row in files.read_rows(path)]
    kind = "parquet" if str(table).endswith(".parquet") else "json"
    found = files.foreign(source, lambda: [*(table if not isinstance(table, str) else load_dataset(
        kind, data_files=f"hf://datasets/{table}", split="train"))], OFFLINE)
    return [(row, f"{source}, row {number}") for number, row in enumerate(found, 1)]


def tables(name, pairs=False):
    "The splits of a dataset's examples, or comparisons: {name: table, as for `rows`}; some share."
    own, (first, part, folder) = Path(name), parse(name)
    if world := world_of(name):
        tests = world.SPLITS[name]
        return {} if pairs else dict.fromkeys(
            ("train", "validation", *tests, *(f"final-{split}" for split in tests)))
    if knows(name) and first in FILES[pairs]:
        found = dict(FILES[pairs][first])
    elif knows(name):
        path, _, config = first.partition(":")
        if folder and not (path := Path(folder, path.split("/")[1])).is_dir():
            raise FileNotFoundError(f"there is no folder {path}{OFFLINE}")
        found = dict(files.foreign(first, lambda: load_dataset(  # what is streamed is not cached
            str(path), config or None, streaming=bool(folder)), OFFLINE))
    elif own.is_dir():  # of which nothing is cut
        found = files.splits(own, "comparisons." if pairs else "")
        return {split: path for split, path in found.items() if split != "text"}
    elif own.name.endswith(files.FORMATS):
        found = {"train": own}
    else:
        raise ValueError(f"there is no dataset {name}: give {', '.join((*WORLD, *NAMES))}, OWNER/"
                         f"NAME of the hub, a folder, or a file ({', '.join(files.FORMATS)})")
    if "train" in found:
        found |= {s: found["train"] for s in CUT if s not in found}
    if part in STRUCTURED:
        found |= {f"{side}_{s}": found[s] for side in ("ood", "full") for s in CUT}
    return found


def load(name, split, n=None, seed=0, pairs=False):
    """The examples of a split -> list of Example: all of them, or `n` chosen by `seed`. ValueError
    names an unknown split, one without rows, or a bad row.

    `name` is "summarise" or "instruct", a public set, a folder of files named `<split>.jsonl` (or
    .jsonl.gz, .csv, .parquet), or one such file, cut into train, validation and test by a hash of
    the prompt (so that a prompt with several responses falls on one side)."""
    found, kind, world = tables(name, pairs), "comparisons" if pairs else "examples", world_of(name)
    if not found:
        raise ValueError(f"{name} has no stored comparisons: reward.py collects them from the SFT "
                         f"policy and an annotator" if world else
                         f"{name} holds no {'comparisons.' * pairs}<split>.jsonl (or "
                         f"{', '.join(files.FORMATS[1:])})")
    if split not in found:
        raise ValueError(f"{name} has no split {split!r}: choose from {', '.join(found)}")
    if world:
        return [Example(*row) for row in world.examples(name, split, n, seed)]
    table, kept, empty = rows(found[split], f"{name} {split}", parse(name)[2]), [], []
    cut = [s for s in CUT if found.get(s) is found.get("train")]  # from the training rows
    for row, place in within(name, split, pairs, table):
        if (new := record(row, place, pairs)) is None:
            empty.append(place)
        elif split not in ("train", *cut) or part(new.prompt, cut) == split:
            kept.append(new)
    if empty:
        print(f"{name} {split}: {len(empty)} of {len(empty) + len(kept)} comparisons prefer "
              f"nothing and are left out (the first: {empty[0]})", file=sys.stderr)
    if not kept:
        source = found[split] if isinstance(found[split], Path) else name
        raise ValueError(f"{source} has no {kind} for the split {split!r}: add some")
    order = random.Random(seed).sample(range(len(kept)), len(kept))  # n of them are among n + 1
    return [kept[i] for i in sorted(order[:n])]


comparisons = functools.partial(load, pairs=True)  # those of a split -> list of Comparison


def part(prompt, of=CUT):
    "The split that a prompt belongs to: 1 in 20 each for those in `of`, whatever the order."
    bucket = {0: "validation", 1: "test"}.get(zlib.crc32(prompt.encode("utf-8", "replace")) % 20)
    return bucket if bucket in of else "train"


def world_of(name):
    "The embedded world, if a dataset is one of its two; it is made when first asked for."
    if name in WORLD:
        from . import world

        return world


def gold(name):
    "The world's gold score, a function of (prompt, response) texts; None for real data."
    return world_of(name) and world_of(name).gold


def test_splits(name, pairs=False):
    """The splits to test on -> tuple; the first is in distribution ("id" or "test"), the others are
    shifted. With `pairs`, those that have stored comparisons. ValueError without a first. Not those
    whose names begin with "final-": their prompts are for one last measurement."""
    others = "train|validation|unlabeled|ood_validation|full_.*|final-.*"
    found = [s for s in tables(name) if not re.fullmatch(others, s)]
    first = next((s for s in ("id", "test") if s in found), None)
    if not first:
        raise ValueError(f"{name} has no split 'test', in distribution, to test on")
    stored = tables(name, True) if pairs else found
    return tuple(s for s in sorted(found, key=lambda s: s != first) if s in stored)


def prompts(name):
    "What a policy practises on -> texts: the prompts of `unlabeled` where there are, else `train`."
    return [e.prompt for e in load(name, "unlabeled" if "unlabeled" in tables(name) else "train")]


def texts(name, n=None, seed=0):
    """Raw text to pretrain on -> list of threads, each a tuple of messages; an EOS ends each. For
    files: train examples, and the rows of text.jsonl[.gz], as threads of one message."""
    if world := world_of(name):
        return list(world.pretraining(n, seed))
    raw = Path(name).is_dir() and files.splits(Path(name), "").get("text")
    found = [(string(*pair, "text"),) for pair in files.read_rows(raw)] if raw else []
    if not found or "train" in tables(name):
        found = [(f"{e.prompt} {e.response}",) for e in load(name, "train")] + found
    random.Random(seed).shuffle(found)
    return found[:n]


def run_folder(data, seed=0, out="out"):
    """Where the runs on a dataset go -> Path: out/<data>, and below it seed-S for S != 0. That of
    owner/name:config is owner--name--config, whatever copies it is read from; data of your own that
    is called as a set that has a name gets a number behind it, from its path."""
    name = str(data).partition("=")[0].replace("/", "--").replace(":", "--")
    if data not in WORLD and not knows(data):
        path = Path(data).resolve()
        name = files.stem(path)
        if name in (*WORLD, *NAMES):
            name += "-" + hashlib.sha256(str(path).encode("utf-8", "replace")).hexdigest()[:8]
    return Path(out) / name / f"seed-{seed}" if seed else Path(out) / name
