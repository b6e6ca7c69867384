"""The list of classic bugs: each can be planted, and (slow) each is seen by the test it names."""

import re

import pytest

from tests import mutants
from tests.bughunt.__main__ import PANELS, draw
from tests.handout import ROOT


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_mutants_fit_the_code(mutant, tmp_path):  # code that has changed since, a renamed test
    target = tmp_path / mutant.file
    target.parent.mkdir(exist_ok=True)
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    target.write_text(source, encoding="utf-8")
    assert mutants.plant(mutant, tmp_path) == source
    compile(target.read_text(encoding="utf-8"), mutant.file, "exec")
    file, test = mutant.test.split()
    assert re.search(rf"^def test_{test}\(", (ROOT / f"tests/test_{file}.py").read_text(), re.M)
    with pytest.raises(ValueError, match="has 0 places"):
        mutants.plant(mutant, tmp_path)


def test_there_are_enough():  # a list that shrank, two of one name
    assert len({mutant.name for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS) >= 40


def test_a_picture_for_the_bug_hunt(tmp_path):  # one log for both, a picture of half a megabyte
    rows = [{"step": k, **{name: k / 7 for _, names in PANELS for name in names}}
            for k in range(1, 31)]
    draw(tmp_path / "same.png", rows, rows)
    draw(tmp_path / "other.png", rows, [row | {"kl": 300.0} for row in rows[:20]])
    same, other = ((tmp_path / name).read_bytes() for name in ("same.png", "other.png"))
    assert same != other and same[:4] == other[:4] == b"\x89PNG" and len(other) < 80_000


@pytest.mark.slow
def test_every_mutant_is_caught():  # a test that no longer sees its bug
    assert mutants.survivors(mutants.MUTANTS) == []
