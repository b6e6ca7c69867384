"""
A command line from a dataclass: one flag for each field of a stage's Config, checked and explained.

Whatever goes wrong after that is one sentence too, and where memory runs out, a smaller try.
"""

import argparse
import contextlib
import dataclasses
import difflib
import gc
import inspect
import math
import os
import re
import sys
import typing


class CannotResume(ValueError):
    "There is a checkpoint, but not of a part of this run."


class Finished(CannotResume):
    "There is a checkpoint of all of this run: nothing is left to do."


def flag(name):
    return "--" + name.replace("_", "-")


def within(config, low, high, *names):
    "ValueError unless each named field is in [low, high]; NaN never is, nor what no seed can hold."
    for name in names:
        value, most = getattr(config, name), min(high, 2**40 - 1)
        if not low <= value <= most:
            bounds = f"of at least {low}" if value < low and high == math.inf else (
                f"between {low} and {most}")
            raise ValueError(f"{flag(name)} {value} is impossible: give a value {bounds}")


def comments(Config):
    "The comment after each field of a dataclass -> dict; it is the field's help text."
    return dict(re.findall(r"^ +(\w+): .*?  # (.*)$", inspect.getsource(Config), re.M))


def options(kind):
    "What argparse needs to know about a field of this type -> dict."
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        shown = "|".join(str(choice) for choice in choices if choice != "")
        bare = {"nargs": "?", "const": choices[1]} if choices[0] == "" else {}  # the flag alone
        return {"type": type(choices[0]), "choices": choices, "metavar": shown, **bare}
    if kind is bool:  # type=bool would turn "--resume False" into True
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "TEXT")}


def halved(config):
    """A stage's config with half as many rows per forward pass: as many in a step, for half the
    memory. ValueError where there is no half."""
    if not hasattr(config, "micro"):
        raise ValueError("out of memory: run the stage that ran out by itself, with --auto-batch, "
                         "and this goes on from there")
    whole = -(-config.batch // getattr(config, "minibatches", 1))
    rows, least = min(config.micro or whole, whole), getattr(config, "samples", 1)
    if rows <= least:  # a prompt's responses stand in one row
        raise ValueError(f"out of memory, even with --micro {least}: try a smaller --batch"
                         f"{', fewer --samples' * (least > 1)}, or --freeze")
    return dataclasses.replace(config, micro=max(rows // 2, least))


def fitted(config, train, auto_batch):
    """Train; with `auto_batch`, where memory runs out, once more with half as many rows per forward
    pass, from what the attempt before has saved, if it came to that. ValueError without."""
    going_on = False  # from a checkpoint, without having been told to
    while True:
        try:
            return train(config)
        except CannotResume as error:
            if going_on:  # what is there is an earlier run's
                following, going_on = dataclasses.replace(config, resume=False), False
            elif isinstance(error, Finished):  # nothing is left to do, and nothing is wrong
                return print(error)
            else:
                raise
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError" and not re.search(
                    "can't allocate memory|MPS backend out of memory", str(error)):
                raise
            following = halved(config)
            if not auto_batch:
                raise ValueError(f"out of memory: try --micro {following.micro} (--auto-batch "
                                 f"tries by itself), and --resume if it had saved") from error
            following, going_on = (dataclasses.replace(following, resume=True),
                                   going_on or not config.resume)
            print(f"out of memory: once more, with --micro {following.micro}")
        config = following
        gc.collect()  # what the attempt held


def cli(Config, train, argv=None):
    """Run `train(Config(...))` with one flag per field; batch_size becomes --batch-size.

    A mistake, in the flags or in the data, is one sentence. Ctrl-C, which a stage passes on once it
    has saved, exits 130. Help is the docstring of Config's module and the comments of its fields.
    """
    parser = parser_of(sys.modules[Config.__module__].__doc__)
    hints, notes = typing.get_type_hints(Config), comments(Config)
    for f in dataclasses.fields(Config):
        note = notes.get(f.name, "").replace("%", "%%")  # argparse formats help texts
        note += f" (default {f.default})" if f.default != "" else ""
        given = parser.add_argument(flag(f.name), default=f.default, **options(hints[f.name]))
        given.help = note.strip()  # only now: of a bool, Python 3.10 would add the default again
    if hasattr(Config, "micro"):
        parser.add_argument("--auto-batch", action="store_true",
                            help="where memory runs out, halve --micro and go on")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag(f.name) for f in dataclasses.fields(Config)]
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        fail(f"there is no {unknown[0]}: " + (f"try {close[0]}" if close else "--help lists all"))
    auto_batch = vars(args).pop("auto_batch", False)
    try:
        with one_sentence():
            return fitted(Config(**vars(args)), train, auto_batch)
    except KeyboardInterrupt:
        sys.exit(130)


def parser_of(doc, prog=None):
    "A parser of a command line whose help begins with `doc` and whose mistakes are one sentence."
    any_console()
    parser = argparse.ArgumentParser(
        prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)  # --b would be --beta today and --batch tomorrow
    parser.error = lambda message: fail(message.removeprefix("argument ") + " (try --help)")
    return parser


@contextlib.contextmanager
def one_sentence():
    """What goes wrong inside, in the data or on the way, is one sentence on stderr and exit code 2
    (set the variable TRACEBACK to see where it was raised)."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        fail(error)


def fail(problem):
    print("error: " + " ".join(str(problem).split()), file=sys.stderr)
    sys.exit(2)


def any_console():
    """Let a console that lacks a letter print a question mark for it, or read one where bytes are
    no letter, instead of ending the run."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
