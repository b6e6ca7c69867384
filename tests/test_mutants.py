"""The list of classic bugs: each can be planted, and (slow) each is seen by the test it names."""

import re

import pytest

from tests import mutants
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


@pytest.mark.slow
def test_every_mutant_is_caught():  # a test that no longer sees its bug
    assert mutants.survivors(mutants.MUTANTS) == []
