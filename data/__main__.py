"""
Look at any dataset before training on it: `python -m data summarise --split long -n 5`.

In the embedded world each example also shows the gold score of its reference and the parts that
score is made of.
"""

import argparse
import sys

from . import WORLD, load

RULE = "-" * 80


def main(argv=None):
    """Print n examples of a split; a wrong name or a bad row is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m data", description=__doc__.strip(), allow_abbrev=False
    )
    parser.error = stop  # one sentence, like every other mistake
    parser.add_argument("data", help=f"{', '.join(WORLD)}, a public set (tldr, alpaca, hh, "
                        "OWNER/NAME: see data/hub.py), a folder or a file")
    parser.add_argument("--split", default="train", help="which split (default train)")
    parser.add_argument("-n", type=int, default=3, help="how many examples (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default 0)")
    args = parser.parse_args(argv)
    if args.n < 1:
        stop(f"-n {args.n} is impossible: give a value of at least 1")
    try:
        examples = load(args.data, args.split, args.n, args.seed)
    except (ValueError, OSError, ImportError) as error:
        stop(error)
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


def stop(problem):
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a console may know fewer letters than a post
    main()
