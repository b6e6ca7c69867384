"""
Look at any dataset before training on it, and at what a policy says; write a policy for others.

    python -m data summarise --split long -n 5
    python -m data say out/summarise/ppo.pt                # its answers to prompts of its own data
    python -m data say out/summarise/ppo.pt "a prompt"
    python -m data export out/summarise/ppo.pt my-folder   # which `transformers` loads alone

In the embedded world each text also shows its gold score; a dataset's, the parts it is made of.
"""

import sys

from . import WORLD, gold, load, tables
from .flags import one_sentence, parser_of
from .run import pick_device

RULE = "-" * 80


def look(args):
    "Print n examples of a split."
    examples = load(args.data, args.split, args.n, args.seed)
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
    "Print what a policy answers to a prompt, or to n validation prompts of the data it is of."
    from . import Tokenizer, checkpoint, rewards

    policy, record = checkpoint.load_frozen(args.checkpoint, "policy", pick_device("auto"))
    tokenizer, prompts = Tokenizer.of(record["tokenizer"]), [args.prompt]
    name = record["meta"].get("config", {}).get("data")
    if args.prompt is None:
        if name is None:
            raise ValueError(f"{args.checkpoint} is of no dataset: give a prompt")
        split = "validation" if "validation" in tables(name) else "train"
        prompts = [e.prompt for e in load(name, split, args.n, args.seed)]
    sample, score = rewards.text_sampler(policy, tokenizer), gold(name)
    for prompt, (text,) in zip(prompts, sample(prompts, args.temperature, 1, args.seed)):
        print(f"{RULE}\n{prompt}\n{text}" + (f"  [{score(prompt, text):.2f}]" if score else ""))
    print(RULE)


def export(args):
    "Write a checkpoint's policy to a new folder, in the hub's format."
    from . import checkpoint

    checkpoint.export(args.checkpoint, args.folder)
    print(f"wrote {args.folder}: AutoModelForCausalLM.from_pretrained({args.folder!r}) loads it")


ARGUMENTS = {
    "command": dict(choices=["say", "export"]),
    "checkpoint": dict(help="a policy: sft.pt or ppo.pt of a run folder"),
    "folder": dict(help="a new one, for config.json, model.safetensors, ..."),
    "data": dict(help=f"{', '.join(WORLD)}, a public set (tldr, alpaca, hh, OWNER/NAME: see "
                 "data/records.py), a folder or a file"),
    "--split": dict(default="train", help="which split (default train)"),
    "prompt": dict(nargs="?", help="what to answer (default: its own data's)"),
    "--temperature": dict(type=float, default=1.0, help="of the samples (default 1)"),
    "-n": dict(type=int, default=3, help="how many (default 3)"),
    "--seed": dict(type=int, default=0, help="which ones (default 0)")}
COMMANDS = {"say": (say, "command checkpoint prompt --temperature -n --seed"),
            "export": (export, "command checkpoint folder")}


def main(argv=None):
    "A command of the above; whatever goes wrong is one sentence and exit code 2."
    argv = sys.argv[1:] if argv is None else argv
    run, names = COMMANDS.get(argv[0] if argv else "", (look, "data --split -n --seed"))
    parser = parser_of(__doc__.strip(), "python -m data")
    for name in names.split():
        parser.add_argument(name, **ARGUMENTS[name])
    args = parser.parse_args(argv)
    with one_sentence():
        if getattr(args, "n", 1) < 1:
            raise ValueError(f"-n {args.n} is impossible: give a value of at least 1")
        run(args)


if __name__ == "__main__":
    main()
