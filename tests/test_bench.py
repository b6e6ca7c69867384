"""The benchmark measures what it says. After each test's name stands the bug that turns it red."""

import shutil
import time

import pytest
import torch

import model as m
from data import checkpoint, gpu
from tests import bench


@pytest.fixture
def tiny(monkeypatch):
    for name, value in dict(ROWS=8, PROMPT=8, NEW=4).items():
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


def test_peak_is_what_is_held_at_once():  # the sum of all that was made; what was there before
    there = torch.zeros(1000)

    def call():
        for _ in range(3):
            a = torch.zeros(500)  # the one before is let go once this one is made
        return a + there[:500]
    assert bench.peak(call, "cpu") == 4 * 1000


def test_products_alone_are_all_products(tiny):  # a product left out, or counted once for its shape
    network = m.Transformer(tiny)
    ids, positions = torch.zeros(4, 12, dtype=torch.long), torch.arange(8, 12).expand(4, -1)

    def call():
        m.logprobs(network, ids, positions).sum().backward()
    assert bench.operations(bench.Products(call).run) == bench.operations(call) > 0


def test_recorded_steps_are_counted(tiny, monkeypatch):  # a graph, which no counter sees into
    def count():
        rows = bench.measured("sampling", tiny, "cpu", torch.float32, False, repeats=1)
        return rows[0]["operations"]
    plain = count()
    monkeypatch.setattr(m, "RECORDED", ("cpu",))
    monkeypatch.setattr(gpu, "recorded", lambda step: (step(), lambda: None)[1])
    assert count() >= plain > 0


def test_a_profile_counts_every_second_once(monkeypatch):  # twice, in the caller and in the called
    now = [0.0]

    def takes(seconds, *calls):
        def run():
            now[0] += seconds
            for owner, call in calls:
                getattr(owner, call)()
        return run
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    save = checkpoint, "save"
    monkeypatch.setattr(*save, takes(3))
    monkeypatch.setattr(m, "generate", takes(5, save, save))
    monkeypatch.setattr(m, "logprobs", takes(7, (m, "generate")))
    before = checkpoint.save, m.generate
    spent = bench.profile(takes(11, (m, "logprobs"), save), "cpu")
    assert {phase: s for phase, s in spent.items() if s} == {
        "the rest": 11, "forward": 7, "sampling": 5, "checkpoints": 9}
    assert (checkpoint.save, m.generate) == before


@pytest.mark.slow
def test_profiles_of_the_three_commands(capsys):  # a phase that is never entered
    found = bench.profiles("cpu", data="instruct", steps=2, batch=16)
    assert list(found) == ["sft", "reward", "ppo"]
    for spent in found.values():
        assert all(spent[phase] > 0 for phase in (*bench.PHASES, "the rest"))
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[2:] == ["sft.py", "reward.py", "ppo.py"] and len(out) == 10


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
        assert counted[3] > 1.2 * counted[2]  # the trunk anew in every epoch


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler")
def test_compiled_is_compiled(tiny):  # the plain one under another name
    torch._dynamo.utils.counters.clear()
    plain = m.Transformer.forward
    rows = bench.measured("SFT", tiny, "cpu", torch.float32, False, repeats=1, compile=True)
    assert [row["who"] for row in rows] == ["plain", "its products alone", "compiled"]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0 and m.Transformer.forward is plain


def test_the_command(tiny, capsys, tmp_path, monkeypatch):  # a column without its numbers
    monkeypatch.setattr(bench, "limits", lambda *_: (1e9, 1e9))
    bench.main(["sampling", "scoring", "--device", "cpu", "--repeats", "1"])
    out = capsys.readouterr().out.splitlines()
    assert "1 GFLOP/s" in out[0] and "bytes" in out[2] and "products alone" in out[3]
    assert out[4].startswith("scoring")
    with pytest.raises(SystemExit):
        bench.main(["sleeping"])
    assert "choose from sampling" in capsys.readouterr().err
