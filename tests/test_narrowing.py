"""
What makes RLHF narrow. After each test's name stands the bug that turns it red.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import data
import ppo
import reward
import rlhf
import sft
from data import lineage, world
from tests import narrowing
from tests.test_rlhf import small  # noqa: F401 (a fixture)


def test_between_two_runs(monkeypatch):
    # the wrong neighbour, or share; seeds taken together; where it comes back, not where it goes
    monkeypatch.setattr(narrowing, "MEASURES", ("kl", "lost"))
    values = {"sft": (0, 0), "near": (1, 3), "far": (4, 1), "back": (1.2, 9)}  # KL and what is lost
    line = [*values]
    values = {name: {"kl": np.array([[kl] * 2, [kl / 2] * 2]), "lost": np.array([[x, x + 2]] * 2)}
              for name, (kl, x) in values.items()}
    found = narrowing.at(values, line, "kl", 1.5)  # seed 1: KL 0, .5, 2 and .6
    assert found["kl"] == pytest.approx(1.5)
    assert found["lost"] == pytest.approx(np.array([[5 / 6 * 3 + 1 / 6, 5 / 6 * 5 + 3 / 6],
                                                    [1 / 3 * 3 + 2 / 3, 1 / 3 * 5 + 2 / 3 * 3]]))
    assert narrowing.at(values, line, "kl", 0)["lost"] == pytest.approx(np.array([[0, 2]] * 2))
    assert narrowing.at(values, line, "kl", 2.5) is None  # seed 1 never gets there


def test_lines_where_they_match(monkeypatch):  # less than itself, a sign, one that is out of reach
    monkeypatch.setattr(narrowing, "MEASURES", ("kl", "lost"))
    values = {"sft": (0, 0), "a": (2, 4), "b": (2, 6), "c": (1, 9)}
    values = {name: {"kl": np.full((2, 3), kl), "lost": np.full((2, 3), lost)}
              for name, (kl, lost) in values.items()}
    found = narrowing.matched(values, {p: ["sft", p] for p in "abc"}, {"kl": 1.5})
    value = lambda name, k: found[name]["kl"]["lost"][k]["seeds"]
    assert [value("a", "value"), value("a", "less")] == [[3, 3], [0, 0]]
    assert value("b", "less") == [1.5, 1.5]
    assert found["c"] == {"kl": None}


def test_annotators(monkeypatch):  # the wrong side, a bias without effect, labels that stay
    examples = data.load("summarise", "train", 60)
    rows = [{"prompt": e.prompt, "chosen": e.response, "rejected": other.response, "split": "train"}
            for e, other in zip(examples, examples[1:])]
    likely = {text: len(text) % 7 for row in rows for text in (row["chosen"], row["rejected"])}
    tokenizer = data.Tokenizer("world")
    of_ids = {tuple(tokenizer.response(text)): x for text, x in likely.items()}
    monkeypatch.setattr(narrowing.pools, "loglikelihood", lambda network, prompts, ids, *_: (
        np.array([of_ids[tuple(r)] for r in ids], dtype=np.float64)))
    margins = narrowing.margins(
        SimpleNamespace(tokenizer=tokenizer, networks={"base": None}), rows)
    gold = lambda row, key: world.gold(row["prompt"], row[key])
    of = lambda *annotator: narrowing.labelled(0, rows, *margins, *annotator)
    sure, swap = of(1e-9, 0.0)
    assert all(gold(row, "chosen") >= gold(row, "rejected") for row in sure) and swap.mean() < 0.2
    noisy, _ = of(1e9, 0.0)
    assert 15 < sum(a == b for a, b in zip(noisy, rows)) < 45
    typical, swap = of(1e-9, 1e6)
    assert all(likely[row["chosen"]] >= likely[row["rejected"]] for row in typical)
    assert swap.tolist() == [a != b for a, b in zip(typical, rows)]
    assert all({*map(row.get, ("chosen", "rejected"))} == {*map(was.get, ("chosen", "rejected"))}
               for row, was in zip(typical, rows))


@pytest.mark.slow
def test_a_small_one(small, tmp_path, monkeypatch):  # noqa: F811
    # labels that nothing is trained with, a run that is trained again, a figure without numbers
    monkeypatch.setattr(narrowing, "ANNOTATORS", {
        name: narrowing.ANNOTATORS[name] for name in ("as it is", "typical-.3")})
    monkeypatch.setattr(narrowing, "BETAS", (0.6, 0.1))
    monkeypatch.setitem(world.SPLITS, "summarise", ("id", "long"))
    monkeypatch.setattr(narrowing, "PENALTIES", {"k1": ("k1-1", "rlhf"), "k2": ("k2-1",)})
    config = rlhf.Config(seeds=1, inputs=4, samples=3, sweeps=True, device="cpu", out=str(tmp_path))
    for stage in (sft, reward, ppo):
        stage.train(stage.Config(data=config.data, out=config.out, device="cpu"))
    found = narrowing.compare(config)
    folder = lineage.home(config, 0)
    runs = {path.parent.name for path in (folder / "narrowing").glob("*/ppo.pt")}
    assert runs == {"as-it-is-0.1", "as-it-is-0.6", "typical-.3-0.1", "typical-.3-0.6"}
    assert found["policies"].keys() == runs | {"sft", "rlhf", "k1-1", "k2-1"}
    assert found["labels"]["as it is"][1] < found["labels"]["typical-.3"][1] < 1
    made = {path: path.stat().st_mtime_ns for path in folder.glob("**/*.pt")}
    assert json.dumps(narrowing.compare(config)) == json.dumps(found)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("**/*.pt")} == made
    narrowing.figure(tmp_path / "narrowing.png", found)
    assert (tmp_path / "narrowing.png").stat().st_size > 5000
