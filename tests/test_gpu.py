"""The command for a GPU, on a CPU. After each test's name stands the bug that turns it red."""

import json
import sys
import time

import pytest
import torch

import model as m
from data import gpu as graphs
from data import networks
from tests import bench, gpu

TELL = """
import pathlib, subprocess, sys, time
rows = open("{0}/one.jsonl", "a")
rows.write('{{"what": "a", "seconds": 1.5}}\\n{{"what": "b", "sec')
rows.flush()
print("said", flush=True)
"""


def run(folder, code, limit=20):
    return gpu.part("one", [sys.executable, "-c", TELL.format(folder) + code], folder, limit)


@pytest.mark.parametrize("code, end", [
    ("", "done"), ("raise ValueError('broken')", "failed with exit code 1: see one.log")])
def test_what_a_part_found_is_kept(tmp_path, code, end):  # rows lost with the process
    found = run(tmp_path, code)
    assert found["rows"] == [{"what": "a", "seconds": 1.5}] and found["end"] == end
    log = (tmp_path / "one.log").read_text()
    assert "said" in log and ("broken" in log) == bool(code)


def test_a_part_that_hangs_is_stopped(tmp_path):  # it waits for ever; what it started goes on
    mark = tmp_path / "mark"
    later = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    began = time.time()
    found = run(tmp_path, f"subprocess.Popen([sys.executable, '-c', {later!r}]); time.sleep(60)", 1)
    assert found["end"] == "stopped after 1 seconds" and found["rows"][0]["what"] == "a"
    assert time.time() - began < 10
    time.sleep(2)
    assert not mark.exists()


def test_every_part_is_reported_as_it_ends(tmp_path, monkeypatch, capsys):
    # one report at the end, which an interrupt loses; a part that failed hidden by the next
    seen = []

    def part(name, command, folder, limit):
        seen.append((name, limit, sorted(path.name for path in tmp_path.iterdir())))
        if name == "sft":
            raise KeyboardInterrupt
        return {"rows": [{"what": "x|y", "speed": 12345.6}], "seconds": 3.0, "end": "failed"}
    monkeypatch.setattr(gpu, "part", part)
    command = ["device", "decoding", "--device", "cpu", "--minutes", "1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        gpu.main(command)
    assert stop.value.code == 1 and [s[0] for s in seen] == ["device", "decoding"]
    assert seen[1][2] == ["gpu.json", "gpu.md"] and 50 < seen[1][1] <= 60
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["decoding"]["rows"][0]["speed"] == 12345.6
    assert "| x/y | 12,346 |" in (tmp_path / "gpu.md").read_text()
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["device", "sft", *command[2:]])
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == {"device"}
    seen.clear()
    with pytest.raises(SystemExit):
        gpu.main(["device", *command[2:4], "--minutes", "0.05", "--out", str(tmp_path)])
    assert not seen and "no time was left" in (tmp_path / "gpu.md").read_text()


def test_decoding_compares_tokens(monkeypatch):  # "equal" whatever was sampled
    def decoding():
        rows = []
        gpu.decoding("cpu", True, lambda **row: rows.append(row))
        return rows[0]
    monkeypatch.setattr(gpu, "limits", lambda *_: {"TFLOP/s": 1.0, "GB/s": 1.0})
    monkeypatch.setattr(gpu, "timed", lambda call, name: (call(), 1.0)[1])
    monkeypatch.setattr(m, "RECORDED", ("cpu",))
    monkeypatch.setattr(graphs, "recorded", lambda step: (step(), step)[1])
    assert decoding()["equal_tokens"] is True and decoding()["plain_tokens_per_s"] == 60
    monkeypatch.setattr(graphs, "decode_recorded", lambda *args: m.decode_rows(*args).flip(0))
    assert decoding()["equal_tokens"] is False


@pytest.mark.parametrize("freeze", [0.0, 0.5])
def test_operations_are_counted(freeze):  # frozen layers that learn, a bottom read twice, a third
    config = m.ModelConfig(vocab_size=11, context=24, layers=4, channels=32, hidden=88)
    policy, done = m.Transformer(config), [0]
    networks.freeze(policy, freeze)
    model = networks.scalar_copy(policy)
    ids = torch.randint(11, (3, 20))
    bottom = policy.frozen_output(ids) if freeze else None
    graphs.count(model, done)
    for given in (None, bottom):
        for learns in (True, False):
            done[0] = 0
            with torch.set_grad_enabled(learns):
                found = bench.operations(lambda: (lambda x: x.sum().backward() if learns else x)(
                    model(ids, bottom=given)))
            assert done[0] == pytest.approx(found, rel=0.05)  # the head; an input without gradient
    graphs.count(torch.nn.Linear(2, 1), done)  # a value head: no error
    assert 1e7 < graphs.peak("cpu", 256, 2) < 1e14


@pytest.mark.slow
def test_all_of_it_with_small_shapes(tmp_path):  # a part that an API left behind
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--device", "cpu", "--minutes", "8", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert not stop.value.code, (tmp_path / "gpu.md").read_text()
    assert list(found) == list(gpu.PARTS) and all(one["rows"] for one in found.values())
    assert [row["exit"] for row in found["world"]["rows"]] == [0, 0, 0]
    assert found["tests"]["rows"][0]["said"].startswith("1 passed")
    for row in found["ppo"]["rows"]:  # as tests/test_memory.py has it
        assert 0.98 < row["planned_GB"] / row["peak_GB"] < 1.16
