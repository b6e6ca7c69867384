"""
Look at any dataset before training on it, and at what policies say; write policies and logs for
others.

    python -m data summarise --split long -n 5
    python -m data say out/summarise/ppo.pt                # type a prompt: see data/say.py
    python -m data say out/summarise/ppo.pt --prompt "..." -n 8
    python -m data say out/summarise/sft.pt out/summarise/ppo.pt --data summarise --split long
    python -m data export out/summarise/ppo.pt my-folder   # which `transformers` loads alone
    python -m data log out/summarise       # curves and samples, for TensorBoard
    python -m data shuffle summarise       # comparisons without a lesson, for a control: those of
                                           # its run's reward model, each labelled by a coin

In the embedded world each text also shows its gold score; a dataset's, the parts it is made of.
"""

import collections
import sys
import textwrap
from pathlib import Path

from . import WORLD, load
from .flags import one_sentence, parser_of

RULE = "-" * 80


def look(args):
    "Print n examples of a split."
    examples = load(args.data, args.split or "train", args.n, args.seed)
    for i, example in enumerate(examples, 1):
        print(f"{RULE}\n{i} of {len(examples)}\n{RULE}")
        print(example.prompt, example.response.strip())
        if args.data in WORLD:
            from . import world

            print(f"\ngold {world.gold(example.prompt, example.response):.2f}", end="")
            for name, value in world.parts(example.prompt, example.response).items():
                print(f"  {name} {round(value, 2) + 0:.2f}", end="")  # + 0: no "-0.00"
            print()
    print(RULE)


def say(args):
    "Print what policies answer to prompts, typed or given."
    from .say import say

    say(args)


def export(args):
    "Write a checkpoint's policy to a new folder, in the hub's format."
    from . import checkpoint

    checkpoint.export(args.checkpoint, args.folder)
    print(f"wrote {args.folder}: AutoModelForCausalLM.from_pretrained({args.folder!r}) loads it")


def log(args):
    "Write what a run folder's logs have by step as TensorBoard's events, instead of earlier ones."
    from . import files
    from .weights import package

    folder, to = Path(args.run), Path(args.to or Path(args.run, "tensorboard"))
    logs = {path.stem: files.read_log(path) for path in sorted(folder.glob("*.jsonl"))}
    logs = {stem: rows for stem, rows in logs.items() if rows and "step" in rows[0]}
    if not logs:
        raise ValueError(f"{folder} has no log, such as sft.jsonl: give the folder of a run")
    package("tensorboard", "python -m data log")
    from torch.utils.tensorboard import SummaryWriter

    for earlier in to.glob("events.*.plain"):  # two of a curve would be drawn over each other
        earlier.unlink()
    with SummaryWriter(to, filename_suffix=".plain") as writer:
        for stem, rows in logs.items():
            seen = collections.Counter()  # of samples there are several to a step
            for row in rows:
                step = row.pop("step")
                seen[step] += 1
                place = f"{stem} {seen[step]}" if stem.endswith(".samples") else stem
                for name, value in row.items():
                    if isinstance(value, str):  # indented: as it stands, no Markdown
                        writer.add_text(f"{place}/{name}", textwrap.indent(value, "    "), step)
                    elif isinstance(value, (int, float)):
                        writer.add_scalar(f"{place}/{name}", value, step)
    print(f"wrote {to}: tensorboard --logdir {to} shows it")


def shuffle(args):
    "Write the comparisons of a reward model with labels at random, for one to be trained on them."
    from . import lineage, run_folder

    folder = run_folder(args.data, args.seed, args.out)
    lineage.shuffled_labels(args.data, folder, args.seed)
    print(f"wrote {folder / 'shuffled'}: python reward.py --comparisons learns from it")


ARGUMENTS = {
    "command": dict(choices=["say", "export", "log", "shuffle"]),
    "checkpoint": dict(help="a policy: sft.pt or ppo.pt of a run folder"),
    "checkpoints": dict(metavar="checkpoint", nargs="+",
                        help="policies: sft.pt, ppo.pt, a pretrained folder or name"),
    "folder": dict(help="a new one, for config.json, model.safetensors, ..."),
    "run": dict(help="a run folder, such as out/summarise"),
    "data": dict(help=f"{', '.join(WORLD)}, a public set (tldr, alpaca, hh, OWNER/NAME: see "
                 "data/records.py), a folder or a file"),
    "--prompt": dict(metavar="TEXT", help="what to answer, n times (default: what is typed)"),
    "--data": dict(help="answer the first n prompts of this data instead"),
    "--split": dict(help="which split (default train, of `say` validation)"),
    "--reward": dict(metavar="REWARD.PT", help="score the answers by this reward model"),
    "--temperature": dict(type=float, default=1.0, help="of the samples (default 1)"),
    "-n": dict(type=int, default=4, help="examples, or answers to --prompt (default 4)"),
    "--seed": dict(type=int, default=0, help="which ones (default 0)"),
    "--to": dict(metavar="FOLDER", help="for the events (default: tensorboard in the run folder)"),
    "--out": dict(default="out", help="the folder of run folders (default out)")}
COMMANDS = {"say": (say, "command checkpoints --prompt --data --split --reward --temperature -n "
                         "--seed"),
            "export": (export, "command checkpoint folder"),
            "log": (log, "command run --to"),
            "shuffle": (shuffle, "command data --seed --out")}


def main(argv=None):
    "A command of the above; whatever goes wrong is one sentence and exit code 2."
    argv = sys.argv[1:] if argv is None else argv
    run, names = COMMANDS.get(argv[0] if argv else "", (look, "data --split -n --seed"))
    parser = parser_of(__doc__.strip(), "python -m data")
    for name in names.split():
        parser.add_argument(name, **ARGUMENTS[name])
    args = parser.parse_args(argv)
    try:
        with one_sentence():
            if getattr(args, "n", 1) < 1:
                raise ValueError(f"-n {args.n} is impossible: give a value of at least 1")
            run(args)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
