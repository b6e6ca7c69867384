"""
Look at any dataset before training on it, and at what a policy says; write a policy for others.

    python -m data summarise --split long -n 5
    python -m data say out/summarise/ppo.pt                # its answers to prompts of its own data
    python -m data say out/summarise/ppo.pt "a prompt"
    python -m data export out/summarise/ppo.pt my-folder   # which `transformers` loads alone

In the embedded world each text also shows its gold score; a dataset's, the parts it is made of.
"""

import argparse
import sys

from . import WORLD, gold, load, split_names
from .flags import any_console, fail
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
    import model as m

    from . import Tokenizer, checkpoint

    policy, record = checkpoint.load_frozen(args.checkpoint, "policy", pick_device("auto"))
    tokenizer, prompts = Tokenizer.of(record["tokenizer"]), [args.prompt]
    name = record["meta"].get("config", {}).get("data")
    if args.prompt is None:
        if name is None:
            raise ValueError(f"{args.checkpoint} is of no dataset: give a prompt")
        split = "validation" if "validation" in split_names(name) else "train"
        prompts = [e.prompt for e in load(name, split, args.n, args.seed)]
    ids = m.generate(policy, tokenizer.prompts(prompts), tokenizer.response_tokens,
                     args.temperature, seed=args.seed)
    score = gold(name)
    for prompt, response in zip(prompts, ids):
        text = tokenizer.decode(response).strip()
        print(f"{RULE}\n{prompt}\n{text}" + (f"  [{score(prompt, text):.2f}]" if score else ""))
    print(RULE)


def export(args):
    "Write a checkpoint's policy to a new folder, in the hub's format."
    from . import checkpoint

    checkpoint.export(args.checkpoint, args.folder)
    print(f"wrote {args.folder}: AutoModelForCausalLM.from_pretrained({args.folder!r}) loads it")


def main(argv=None):
    """A command of the above; whatever goes wrong is one sentence and exit code 2."""
    any_console()
    argv = sys.argv[1:] if argv is None else argv
    command = {"say": say, "export": export}.get(argv[0] if argv else "", look)
    parser = argparse.ArgumentParser(
        prog="python -m data", description=__doc__.strip(), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = fail  # one sentence, like every other mistake
    if command is not look:
        parser.add_argument("command", choices=["say", "export"])
        parser.add_argument("checkpoint", help="a policy: sft.pt or ppo.pt of a run folder")
    if command is export:
        parser.add_argument("folder", help="a new one, for config.json, model.safetensors, ...")
    if command is look:
        parser.add_argument("data", help=f"{', '.join(WORLD)}, a public set (tldr, alpaca, hh, "
                            "OWNER/NAME: see data/hub.py), a folder or a file")
        parser.add_argument("--split", default="train", help="which split (default train)")
    if command is say:
        parser.add_argument("prompt", nargs="?", help="what to answer (default: its own data's)")
        parser.add_argument("--temperature", type=float, default=1.0, help="of the samples (1)")
    if command is not export:
        parser.add_argument("-n", type=int, default=3, help="how many (default 3)")
        parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    args = parser.parse_args(argv)
    try:
        if command is not export and args.n < 1:
            raise ValueError(f"-n {args.n} is impossible: give a value of at least 1")
        command(args)
    except (ValueError, OSError, ImportError) as error:
        fail(error)


if __name__ == "__main__":
    main()
