"""The benchmark measures what it says. After each test's name stands the bug that turns it red."""

import time

import pytest
import torch

import model as m
from tests import bench


@pytest.fixture
def tiny(monkeypatch):
    for name, value in dict(ROWS=4, PROMPT=8, NEW=4).items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setitem(bench.SIZES, "world", dict(vocab_size=32, layers=4, heads=2, kv_heads=2,
                                                   channels=16, hidden=64))
    return bench.shape("world", context=12)


def test_operations_are_those_of_the_network(tiny):  # a part not counted, or counted twice
    network = m.Transformer(tiny)
    ids, positions = torch.zeros(4, 12, dtype=torch.long), torch.arange(8, 12).expand(4, -1)
    with torch.no_grad():
        found = bench.operations(lambda: m.logprobs(network, ids, positions))
    C, hidden, T, tokens = 16, 64, 12, 48
    mlps = 3 * tokens + 16  # of four layers, the last one at 16 response tokens only
    products = 2 * tokens * 4 * 4 * C * C + 2 * mlps * 2 * C * hidden
    attention = 4 * 4 * (2 * 2 * T * T * C)  # four rows, four layers: scores and their use
    heads = 2 * 16 * C * 32
    assert found in (products + attention + heads, products + heads)  # some counters omit attention


@pytest.mark.parametrize("slow", [[0.2, 0], [0, 0, 0.2, 0]])  # the first is not measured
def test_seconds_are_medians_in_turn(slow):  # one rival warm, the other cold; a mean
    order, naps = [], iter(slow)

    def call(name):
        order.append(name)
        time.sleep(next(naps) if name == "a" else 0)
    found = bench.seconds({"a": lambda: call("a"), "b": lambda: call("b")}, "cpu", len(slow) - 1)
    assert order == ["a", "b"] * len(slow) and set(found) == {"a", "b"}
    assert found["a"] < 0.05


@pytest.mark.parametrize("part", bench.PARTS)
def test_every_part_runs(tiny, part):  # a part that an API left behind
    rows = bench.measured(part, tiny, "cpu", torch.float32, False, repeats=1)
    assert rows[0]["who"] == "plain" and rows[0]["ratio"] == 1
    assert all(row["rate"] * row["seconds"] == pytest.approx(rows[0]["rate"] * rows[0]["seconds"])
               for row in rows)
    if part == "PPO iteration":  # less is done where more is shared
        counted = [row["operations"] for row in rows]
        assert counted[0] > 1.3 * counted[1] > 1.3 * 1.2 * counted[2]


def test_the_command(tiny, capsys, tmp_path, monkeypatch):  # a column without its numbers
    monkeypatch.setattr(bench, "limits", lambda *_: (1e9, 1e9))
    bench.main(["sampling", "scoring", "--device", "cpu", "--repeats", "1"])
    out = capsys.readouterr().out.splitlines()
    assert "1 GFLOP/s" in out[0] and "bytes" in out[2] and out[3].startswith("scoring")
    with pytest.raises(SystemExit):
        bench.main(["sleeping"])
    assert "choose from sampling" in capsys.readouterr().err
