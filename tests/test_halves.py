"""
Comparisons cut in two by their prompts. After each test's name stands the bug that turns it red.
"""

import runpy
import sys

import pytest

import data
from data import files
from tests import halves
from tests.handout import ROOT

PAIRS = [{"prompt": f"Name hat {i}.", "chosen": "A red one.", "rejected": f"No {k}."}
         for i in range(40) for k in range(2)]


def comparisons(folder):
    "Pairs of people's choices, and others that name their split; some prompts are in both."
    files.write_rows(folder / "comparisons.train.jsonl", PAIRS[:60])
    files.write_rows(folder / "comparisons.validation.jsonl", PAIRS[60:])
    files.write_rows(folder / "more.jsonl", [row | {"split": split, "of": "samples"} for split, rows
                                             in (("train", PAIRS[20:30]), ("validation", PAIRS[70:])
                                                 ) for row in rows])
    return sorted(folder.glob("*.jsonl"))


def test_no_prompt_is_in_both(tmp_path, monkeypatch, capsys):
    # halves of rows, another cut in each file, a split that is lost, a row left out
    paths = comparisons(tmp_path)
    monkeypatch.setattr(sys, "argv", ["halves", *map(str, paths), "--to", str(tmp_path / "to")])
    runpy.run_path(str(ROOT / "tests" / "halves.py"), run_name="__main__")
    assert capsys.readouterr().out.count("wrote ") == 4
    found = {(name, split): data.comparisons(str(tmp_path / "to" / name), split)
             for name in "ab" for split in halves.SPLITS}
    prompts = {key: {row.prompt for row in rows} for key, rows in found.items()}
    for split in halves.SPLITS:
        a, b = prompts["a", split], prompts["b", split]
        assert not a & b and 3 <= len(a) and 3 <= len(b)
    count = lambda split: sum(len(found[name, split]) for name in "ab")
    assert (count("train"), count("validation")) == (70, 30)
    assert all(row.meta == {} and row.chosen == "A red one." for row in found["a", "train"])


def test_balanced():  # one side alone, rows in another order, ties lost
    pair = lambda k, chosen, rejected: {"prompt": f"{k}", "chosen": "a " * chosen,
                                        "rejected": "b " * rejected}
    rows = [pair(k, *of) for k, of in enumerate(((3, 1), (1, 2), (4, 1), (2, 2), (9, 1), (1, 4)))]
    kept = [int(row["prompt"]) for row in halves.balance(rows)]
    assert kept == sorted(kept) and len(kept) == 5 and {1, 3, 5} <= {*kept}
    assert [int(row["prompt"]) for row in halves.balance(rows[:2] + rows[3:4])] == [0, 1, 3]


def test_balanced_by_file(tmp_path):  # over files together, halves together
    of = lambda name, *texts: [{"prompt": f"{name} {i}", "chosen": texts[0], "rejected": texts[1]}
                               for i in range(40)]
    long, short = of("Name hat", "A red one.", "No."), of("Hat", "No.", "A red one.")
    for name, rows in (("a.train", long[:30]), ("a.validation", long[30:]), ("b.train", short[:30]),
                       ("b.validation", short[30:])):
        files.write_rows(tmp_path / f"{name}.jsonl", rows)
    paths = sorted(tmp_path.glob("*.jsonl"))
    assert sum(map(len, halves.halves(paths).values())) == 80
    with pytest.raises(ValueError, match="no comparisons for train"):
        halves.halves(paths, balanced=True)


@pytest.mark.parametrize("rows, said", [
    ([{"prompt": "a", "response": "b"}], 'my.jsonl, line 1: no "chosen"'),
    (PAIRS, "half a has no comparisons for validation: give more files")])
def test_what_is_no_comparison(rows, said, tmp_path):  # a traceback, an empty file
    files.write_rows(tmp_path / "my.jsonl", rows)
    with pytest.raises(ValueError, match=said):
        halves.halves([tmp_path / "my.jsonl"])
