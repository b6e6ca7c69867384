"""
The frontier and what is beyond it. After each test's name stands the bug that turns it red.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
import model as m
import rlhf
from tests import tradeoff

X, Y = [0.2, 0.3, 0.4, 0.5, 0.1, 0.4], [0.8, 0.75, 0.6, 0.2, 0.7, 0.3]


def test_hull_and_gains():  # a lower hull, a point left of the best, a gain where nothing is known
    assert tradeoff.hull(X, Y) == [0, 1, 2, 3]
    assert tradeoff.hull([0.2, 0.3, 0.4], [0.8, 0.5, 0.6]) == [0, 2]  # the line is above
    assert tradeoff.hull([0.4, 0.4, 0.2], [0.6, 0.5, 0.8]) == [2, 0]  # one above the other
    above, right = tradeoff.gains(0.35, 0.75, (X, Y))
    assert above == pytest.approx(0.75 - 0.675) and right == pytest.approx(0.35 - 0.3)
    above, right = tradeoff.gains(0.05, 0.9, (X, Y))
    assert above == pytest.approx(0.1) and np.isnan(right)  # nobody is so good: at no diversity
    above, right = tradeoff.gains(0.6, 0.5, (X, Y))
    assert np.isnan(above) and right == pytest.approx(0.6 - 0.425)


def test_gains_over_prompts():  # splits weighed by their prompts, points drawn apart, a lost split
    rng = np.random.default_rng(0)
    rows = [[{"win_rate": rng.random(n), "ead": rng.random(n)} for n in (30, 50)] for _ in range(3)]
    for k, row in enumerate(rows):
        for split in row:
            split["win_rate"] = split["win_rate"] / 9 + (0.8, 0.7, 0.2)[k]
            split["ead"] = split["ead"] / 9 + 0.2 * (k + 1)
    better = [{k: v + 0.1 * (k == "win_rate") for k, v in split.items()} for split in rows[1]]
    (gain, low, high), (right, _, _) = tradeoff.bootstrap(rows, better, "ead", draws=200)
    assert gain == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    means = [np.mean([split["win_rate"].mean() for split in row]) for row in rows]
    sides = [np.mean([split["ead"].mean() for split in row]) for row in rows]
    assert right == pytest.approx(sides[1] - np.interp(-means[1] - 0.1, np.negative(means), sides))
    (gain, low, high), _ = tradeoff.bootstrap(rows, rows[1], "ead", draws=200)
    assert (gain, low, high) == pytest.approx((0, 0, 0), abs=1e-12)


def sets(rng, win, words, n=40):
    "A point on one split: sets of eight answers of few or many words."
    texts = [[f"{i} " + " ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz")[:words], 6))
              for _ in range(8)] for i in range(n)]
    wins, said = (rng.random((n, 8)) < win).astype(float), rng.integers(4, size=(n, 8))
    return tradeoff.measures(texts, wins.tolist(), said.tolist(), embed)


def embed(texts):
    return [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]


def test_a_mixture_of_the_frontier_is_not_beyond_it(monkeypatch):
    # the line between two alone, a mixture at other places
    rng = np.random.default_rng(0)
    points = {("a", f"{words}"): [sets(rng, win, words), sets(rng, win, words)]
              for win, words in ((0.9, 2), (0.6, 6), (0.3, 26), (0.2, 4))}
    monkeypatch.setattr(tradeoff, "points_of", lambda *_: points)
    whole = tradeoff.frontier_of(rlhf.Config(), SimpleNamespace(embed={0: embed, 1: embed}), (0, 1))
    mixed = {key: rows for key, rows in whole.items() if key not in points}
    assert len(mixed) == 3 * 7 and {family for family, _ in mixed} == {tradeoff.MIXED}
    gains = {name: [tradeoff.bootstrap(list(base.values()), rows, "ead", draws=100)[0]
                    for rows in mixed.values()]
             for name, base in (("line", points), ("sets", whole))}
    assert max(low for _, low, _ in gains["line"]) > 0.02  # a set of two is above the line
    assert max(gain for gain, _, _ in gains["sets"]) <= 1e-12
    one, other = (points["a", words] for words in ("2", "6"))
    [rows] = [rows for (_, label), rows in mixed.items() if label == "3 of a, 2, and a, 6"]
    for a, b, row in zip(one, other, rows):
        for split, (x, y) in enumerate(zip(a["outputs"], b["outputs"])):
            assert row["outputs"][split] == x[:3] + y[3:]
        wins = [x[:3] + y[3:] for x, y in zip(a["wins"], b["wins"])]
        assert row["win_rate"] == pytest.approx(np.mean(wins, axis=1))
        said = [x[:3] + y[3:] for x, y in zip(a["said"], b["said"])]
        assert row["kinds"] == [len({k for k, win in zip(*pair) if win})
                                for pair in zip(said, wins)]


def test_intervals_hold_for_all_methods_together():  # the best of twenty, taken for one
    rng = np.random.default_rng(3)
    base, point = ([{"win_rate": rng.random(60), "ead": 0.2 + x + rng.random(60) / 99}]
                   for x in (0.1, 0.0))
    width = {}
    for among in (1, 20):
        (_, low, high), _ = tradeoff.bootstrap([base], point, "ead", among, draws=3000)
        width[among] = high - low
    # the normal quantiles of .975 and .99875
    assert width[20] / width[1] == pytest.approx(3.023 / 1.96, abs=0.12)


def test_mean_weights():  # a sum, the first one changed, one of them alone
    shape = dict(vocab_size=8, context=8, layers=1, heads=1, kv_heads=1, channels=8, hidden=8)
    nets = [m.Transformer(m.ModelConfig(eos=(7,), **shape)) for _ in range(2)]
    first = nets[0].embed.weight.clone()
    for a, b in zip(tradeoff.mean_weights(nets[:1]).parameters(), nets[0].parameters()):
        assert a.equal(b)
    mean = tradeoff.mean_weights(nets).embed.weight
    assert mean.allclose((first + nets[1].embed.weight) / 2) and nets[0].embed.weight.equal(first)


def test_the_figure(tmp_path):  # a series of no family or without a point, a gain of nan
    assert set(tradeoff.SHOWN) <= set(tradeoff.BASELINE | tradeoff.METHODS)
    points = [[f, label, {"win_rate": y, "ead": x, "embedding": x}]
              for f, (label, *_), x, y in zip(tradeoff.BASELINE, tradeoff.BASELINE.values(), X, Y)]
    for family in ("RLHF, min-p", list(tradeoff.SHOWN)[-1]):
        mine = [[family, "a", {"win_rate": 0.7, "ead": 0.3, "embedding": 0.3}]]
        row = {"family": family, "ead": [[np.nan] * 3, [0.1, 0, 0.2]], "embedding": [[0, 0, 0]] * 2}
        found = {"rows": [row, row], "drawn": [points + mine, points + mine]}
        tradeoff.figure(tmp_path / family, "summarise", json.loads(json.dumps(found)))
        assert (tmp_path / family).stat().st_size > 5000


def test_what_is_kept_is_of_its_run(tmp_path, monkeypatch):  # a key without one of what it is of
    drawn = []

    def generate(policy, prompts, new, temperature, n, seed, min_p=0.0):
        drawn.append((policy, temperature, n))
        return [[1 + k % 9] for k in range(len(prompts) * n)]

    monkeypatch.setattr(m, "generate", generate)
    names, config = ("sft", "ppo", "reward", "base"), rlhf.Config(inputs=5)
    run = SimpleNamespace(
        folder=tmp_path, seed=0, tokenizer=data.Tokenizer("world"),
        embed={"id": lambda t: np.eye(len(t))},
        networks=dict(zip(names, names)), digests=dict(zip(names, "abcd")),
        judges={"proxy": lambda prompts, ids: torch.arange(len(ids)).float()})
    measured = lambda how: tradeoff.measured(run, config, "id", "a family", how[0], how)
    new = lambda how: (drawn.clear(), measured(how), len(drawn))[2]  # how often samples are drawn
    sample, best = ("sample", "sft", 1.0, 0), ("pool", "sft", "best", 2)
    other = ("pool", "sft", "diverse", 16, 1.0)
    assert [new(how) for how in (sample, sample, best, best, other, best)] == [1, 0, 1, 0, 0, 0]
    assert len(measured(best)["win_rate"]) == 5
    for how in [("sample", *x) for x in (("sft", 0.9, 0), ("sft", 0.9, 0.1), ("ppo", 0.9, 0.1))]:
        assert new(how) == 1 and drawn == [(how[1], how[2], 8)] and new(how) == 0
    for where, name, value in (
            (config, "inputs", 6), (config, "data", "instruct"), (run, "seed", 1),
            (tradeoff, "SAMPLES", 4), *((run, "digests", dict(zip(names, now)))
                                        for now in ("ebcd", "ebed", "ebee"))):
        measured(sample), measured(best)
        monkeypatch.setattr(where, name, value)
        assert [new(how) for how in (sample, best, sample, best)] == [1, 1, 0, 0], (name, value)
    monkeypatch.setitem(tradeoff.POOLS, "sft", ("sft", 8, 1.0, 0.5))
    assert [new(how) for how in (sample, best, best)] == [0, 1, 0]


def test_every_point_has_its_own_file():  # one method's outputs read as another's
    names = [f"{family}.{label}".replace(" ", "_").replace(",", "")
             for family, points in (tradeoff.BASELINE | tradeoff.METHODS).items()
             for label in points]
    assert len(set(names)) == len(names)


def test_what_is_chosen(monkeypatch):  # by one measure alone, a point past the frontier's end
    point = lambda *values: [{k: [x] for k, x in zip(("win_rate", "ead", "embedding"), values)}]
    base = {("base", "1"): point(0.8, 0.2, 0.2), ("base", "2"): point(0.4, 0.6, 0.6)}
    tried = {("a", "by EAD"): point(0.8, 0.5, 0.2), ("a", "by both"): point(0.7, 0.4, 0.4),
             ("a", "too far"): point(0.9, 0.4, 0.7), ("b", "below"): point(0.1, 0.4, 0.4)}
    chosen = tradeoff.choose(tried, base)
    assert chosen == {"a": ("by both", pytest.approx(0.1)), "b": ("below", pytest.approx(-0.5))}
    monkeypatch.setattr(tradeoff, "DIVERSITIES", ("ead",))
    run, shown = SimpleNamespace(seed=3), {key: tried[key] for key in [("a", "by both")]}
    [row] = tradeoff.beyond(run, chosen, shown, base, 2)
    assert (row["seed"], row["family"], row["label"]) == (3, "a", "by both")
    assert row["ead"][0] == pytest.approx((0.1, 0.1, 0.1))


def test_min_p_against_temperature_alone(monkeypatch):
    # a setting for each seed, chosen on what is shown, the other policy's temperatures
    def points_of(config, run, families, splits):
        [family] = families
        up = (("min-p" in family) * (0.2 if "RLHF" in family else 0.1) + ("RLHF" in family) * 0.5)
        good = {"validation": "T 1, p 0.03", "far": "T 1, p 0.07"}[splits[0]]  # the highest there
        return {(family, label): [{"win_rate": [y + up + (label == good)], "ead": [x],
                                   "embedding": [x]} for _ in splits]
                for label, x, y in zip(families[family], np.linspace(0.2, 0.3, 8),
                                       np.linspace(0.3, 0.1, 8))}
    monkeypatch.setattr(tradeoff, "points_of", points_of)
    monkeypatch.setattr(tradeoff, "DIVERSITIES", ("ead", "embedding"))
    rows = tradeoff.min_p(None, [SimpleNamespace(seed=seed) for seed in (0, 1)], ["far", "far"])
    assert [(row["seed"], row["family"], row["label"]) for row in rows] == [
        (seed, f"{policy}, min-p", "T 1, p 0.03") for policy in ("SFT", "RLHF") for seed in (0, 1)]
    assert [row["ead"][0][0] for row in rows] == pytest.approx([0.1, 0.1, 0.2, 0.2], abs=0.01)
