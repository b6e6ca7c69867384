"""
Inputs that nobody would type: any text, bytes or flags, each taken or refused in a sentence.

    python -m tests.fuzz --cases 10000     # of each property; about half a millisecond a case

The fast suite runs a few hundred of each (tests/test_chaos.py).
"""

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import re
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bon
import data
import ppo
import reward
import rlhf
import sft
from data import files, measured
from data.run import cli, flag, side_by_side

SPECIAL = ["<|endoftext|>", "TL;DR:", "\n", " ", "\x00", "\x1b[31m", "\u2028", "\ud800", 
           "\udfff", "\ufeff", "### Response:", "\r", "é", "👩‍🚀"]
TEXT = st.lists(st.sampled_from(SPECIAL) | st.text(st.characters(exclude_categories=()),
                                                   max_size=9), max_size=8).map("".join)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXT, lambda inside:
                    st.lists(inside, max_size=3) | st.dictionaries(TEXT, inside, max_size=3),
                    max_leaves=6)
KEYS = st.sampled_from(["prompt", "response", "reference", "chosen", "rejected", "outputs", "text"])
ROW = st.dictionaries(KEYS, TEXT | JSON | st.lists(TEXT, min_size=1, max_size=2), max_size=4)
LINE = ROW.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20) | st.integers(
    1, 5).map(lambda n: b"[" * 10**n)
LINES = st.tuples(st.lists(LINE, max_size=5).map(b"\n".join), st.booleans(), st.integers(0, 60))
VALUE = st.sampled_from(["", "nan", "inf", "-inf", "1e999", "-1", "0", "1", "0.5", "1" * 5000,
                         "0x1", "1_0", "k1", "gold", "None", "9" * 30]) | TEXT
FLAGS = st.tuples(st.sampled_from([sft, reward, ppo, bon, rlhf]), st.lists(
    st.tuples(st.integers(0, 99), VALUE), max_size=3))
TOKENIZER = data.Tokenizer("world", 20, 6)


def refusal(call):
    "What a call says as it refuses, None if it does not; nothing else may come out of it."
    try:
        call()
    except (ValueError, OSError, ImportError) as error:
        assert str(error).strip()
        return str(error)


def command(main, *argv):
    "A command line: done, or one line on stderr and exit code 2."
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            return main(*argv)
        except SystemExit as stop:
            lines = said.getvalue().splitlines()
            assert stop.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines


def written(folder, name, given):
    "Lines in a file, plain, packed, or packed and cut short -> its path."
    content, packed, lost = given
    path = Path(folder, name + ".gz" * packed)
    content = gzip.compress(content) if packed else content
    path.write_bytes(content[:len(content) - lost] if packed and lost < 20 else content)
    return path


def paired(text, errors="surrogatepass"):
    "Two halves of a character that stand next to each other are one."
    return text.encode("utf-16", "surrogatepass").decode("utf-16", errors)


def tokens(text):  # a character lost, EOS or PAD out of a text, a cut that loses the cue or EOS
    plain = paired(text, "replace")
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == plain and all(0 <= i < TOKENIZER.eos for i in ids)
    response = TOKENIZER.response(text)
    assert response[-1] == TOKENIZER.eos and TOKENIZER.eos not in response[:-1]
    assert 1 <= len(response) <= 6
    if not refusal(lambda: TOKENIZER.prompt(text)):
        prompt = TOKENIZER.prompt(text)
        assert 1 <= len(prompt) <= 20 and TOKENIZER.eos not in prompt
    else:
        assert not text.strip()


def records(lines):  # a traceback, or a row that is skipped
    with tempfile.TemporaryDirectory() as folder:
        for name, load in (("train.jsonl", data.load), ("comparisons.train.jsonl",
                                                        data.comparisons)):
            path, found = written(folder, name, lines), []
            said = refusal(lambda: found.extend(load(folder, "train")))
            assert said is None or re.search(r", (after )?line \d+: |: add some$", said), said
            for row in found:  # what is let in can be learned from
                TOKENIZER.prompt(row.prompt)
                assert all(isinstance(x, str) for x in dataclasses.astuple(row)[:-1])
            path.unlink()


def outputs(lines):  # a traceback, figures of half a file
    with tempfile.TemporaryDirectory() as folder:
        path = written(folder, "outputs.jsonl", lines)
        command(measured.main, [str(path)])
        for left in Path(folder).iterdir():
            assert left.name in (path.name, path.name + ".metrics.json")


def shown(texts):  # a console or a file that cannot hold half a character, after a whole training
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        side_by_side(Path(folder, "a.txt"), texts, {"sft": texts})
        files.write_rows(Path(folder, "a.jsonl"), [{"prompt": text} for text in texts])
        kept = [row["prompt"] for row in files.read_log(Path(folder, "a.jsonl"))]
        assert kept == [paired(text) for text in texts]


def flags(stage_and_values):  # a traceback, a value that only breaks hours later
    stage, values = stage_and_values
    fields = dataclasses.fields(stage.Config)
    config = command(cli, stage.Config, lambda config: config, [
        f"{flag(fields[k % len(fields)].name)}={value}" for k, value in values])
    for value in dataclasses.astuple(config) if config else ():
        assert not isinstance(value, float) or abs(value) < float("inf"), config


PROPERTIES = {tokens: TEXT, records: LINES, outputs: LINES, flags: FLAGS,
              shown: st.lists(TEXT, max_size=3)}


def check(holds, cases, **more):
    "Try a property on so many cases; the smallest that breaks it comes with its traceback."
    given(PROPERTIES[holds])(settings(
        max_examples=cases, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), **more)(lambda case: holds(case)))()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each property")
    args = parser.parse_args(argv)
    for holds in PROPERTIES:
        check(holds, args.cases)
        print(f"{holds.__name__:>8}: {args.cases} cases")


if __name__ == "__main__":
    main()
