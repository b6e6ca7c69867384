"""
Bad days: killed, two at once, no room, files that lie, numbers that are none. Nothing that was
computed is lost, and nobody is let in. After each test's name stands the bug that turns it red.
"""

import gzip
import json
import math
import multiprocessing
import os
import shutil
import signal
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import metrics
import model as m
import ppo
import sft
from data import checkpoint, files, weights
from data.run import Log, Run, lock
from tests import chaos, fuzz

pytestmark = pytest.mark.usefixtures("quick")
FORKS = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(),
                           reason="copies of this process take the place of commands")
STAGES = [stage for stage in chaos.STAGES if stage != "rlhf"]


def attempt(stage, toy, out, *more, **options):
    "Start a stage and wait for its end -> (exit code, what it said)."
    process = chaos.begin(stage, toy, out, *more, **options)
    process.join()
    return process.exitcode, (toy / "last.txt").read_text()


def refusal(stage, toy, out, *more, **options):
    "The one sentence with which a stage must refuse."
    code, said = attempt(stage, toy, out, *more, **options)
    found = [line[line.index("error: "):] for line in said.splitlines() if "error: " in line]
    assert code == 2 and len(found) == 1 and "Traceback" not in said, said
    return found[0]


# ---- killed --------------------------------------------------------------------------------------


@FORKS
@pytest.mark.slow
def test_killed_three_times_and_none_the_worse(tmp_path):  # a log row doubled, a curve never drawn,
    # half a file, one that nobody removes, a state that is not restored
    chaos.toy(tmp_path)
    for stage in STAGES:
        chaos.endured(stage, tmp_path, kills=3, seed=0)


@FORKS
@pytest.mark.slow
def test_a_study_killed_twice(tmp_path):  # a stage taken for finished by the facts beside it
    chaos.toy(tmp_path)
    chaos.endured("rlhf", tmp_path, kills=2, seed=0)


@FORKS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(toy, tmp_path, number):  # no save, a traceback, a run that goes on
    process = chaos.begin("ppo", toy, tmp_path, "--every", 99, "--steps", 9999)
    log = tmp_path / "data/ppo.jsonl"
    while process.is_alive() and not (log.exists() and log.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    said = (toy / "last.txt").read_text()
    assert process.exitcode == 130 and "--resume" in said and "Traceback" not in said
    meta = checkpoint.load(log.with_suffix(".pt"), "policy", unfinished=True)[1]["meta"]
    assert meta["step"] == len(files.read_log(log)) > 1 and not meta["finished"]


# ---- two at once ---------------------------------------------------------------------------------


@FORKS
def test_a_run_folder_is_one_process_own(tmp_path):  # two that overwrite each other, a dead one
    # that locks everybody out, a process that locks itself out
    def ask(pipe, stay):
        try:
            _held = lock(tmp_path / "run")
            pipe.send("mine")
        except ValueError as error:
            pipe.send(str(error))
        while stay:
            pipe.recv()

    context = multiprocessing.get_context("fork")
    (first, end), (second, other) = context.Pipe(), context.Pipe()
    one = context.Process(target=ask, args=(end, True))
    one.start()
    assert first.recv() == "mine"
    two = context.Process(target=ask, args=(other, False))
    two.start(), two.join()
    assert "another process is at work in" in second.recv()
    with pytest.raises(ValueError, match="another process"):
        lock(tmp_path / "run")
    one.kill(), one.join()
    again = [lock(tmp_path / "run"), lock(tmp_path / "other"),
             lock(tmp_path / "run")]
    assert again[0] is again[2] is not again[1]
    two = context.Process(target=ask, args=(other, False))
    del again
    two.start(), two.join()
    assert second.recv() == "mine"
    assert os.listdir(tmp_path / "run") == [".lock"]


@FORKS
@pytest.mark.parametrize("stage", chaos.STAGES)
def test_stages_ask_for_their_folder(stage, toy, tmp_path):  # a stage that writes unasked
    for parent in ("sft", "reward", "ppo") if stage == "rlhf" else ():  # it trains nothing, then
        shutil.copytree(toy / "whole" / parent, tmp_path, dirs_exist_ok=True)
    held, there = lock(tmp_path / "data"), sorted(tmp_path.rglob("*"))
    assert "another process is at work" in refusal(stage, toy, tmp_path)
    assert sorted(tmp_path.rglob("*")) == there and held


@FORKS
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_the_same_command_again(stage, toy, tmp_path):
    # a finished run that is trained anew, or waited for; an error where nothing is wrong
    code, said = attempt(stage, toy, tmp_path, "--resume")
    assert code == 0 and f"{stage}.pt is not there yet: this run begins" in said
    plain = chaos.found(toy / "whole" / stage)  # which has a curve, too
    assert chaos.found(tmp_path) == {name: x for name, x in plain.items() if ".png" not in name}
    there, held = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}, lock(tmp_path / "data")
    code, said = attempt(stage, toy, tmp_path, "--resume")
    assert code == 0 and "finished at" in said and held
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == there
    assert "of the run in" in refusal(stage, toy, tmp_path, "--resume", "--steps", 9)


@FORKS
def test_nobody_goes_on_with_it_meanwhile(toy, tmp_path):
    # a checkpoint that is read, then finished by another process, and then gone on from
    def ask():
        try:
            Run("sft", sft.Config(data=str(toy / "data"), out=str(tmp_path), resume=True))
        except ValueError as error:
            return str(error)

    held = lock(tmp_path / "data")
    assert "another process is at work" in apart(ask) and held


# ---- no room, no right ---------------------------------------------------------------------------


def room_for(size):
    "From here on, no file of this process can grow larger (a disk is not easily filled)."
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@FORKS
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_full_disk_costs_nobody_an_earlier_run(stage, toy, tmp_path):  # half a checkpoint, or
    # the facts of another, and a temporary file on a disk that is full
    shutil.copytree(toy / "whole" / stage, tmp_path, dirs_exist_ok=True)
    kept = {p: p.read_bytes() for p in (tmp_path / "data").glob(f"{stage}.[jp]*")
            if p.suffix in (".pt", ".json")}
    said = refusal(stage, toy, tmp_path, before=lambda: room_for(100_000))
    assert f"{stage}.pt could not be written" in said and "still whole" in said
    assert len(kept) == 2 and {p: p.read_bytes() for p in kept} == kept
    assert not list(tmp_path.rglob("*.tmp"))


def apart(call):
    "The result of a call in a copy of this process, which has limits and rights of its own."
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=lambda: there.send(call()))
    process.start(), process.join()
    assert here.poll()
    return here.recv()


@FORKS
def test_a_log_without_room(tmp_path):  # half a row that is read as one, a file that is lost
    def fill():
        log, said = Log(tmp_path, "sft", show=("none",)), []
        room_for(100)
        for write in (lambda: [log.log(k, loss=k / 7) for k in range(1, 99)],
                      lambda: files.write_rows(log.path, [{"step": k} for k in range(99)])):
            try:
                write()
            except OSError as error:
                said.append(str(error))
        return said

    first, second = apart(fill)
    assert "could not be written at step 3" in first and "older file" in second
    assert [row["step"] for row in files.read_log(tmp_path / "sft.jsonl")] == [1, 2]
    Log(tmp_path, "sft", 2, show=("none",)).log(3, loss=0.5)
    assert [row["step"] for row in files.read_log(tmp_path / "sft.jsonl")] == [1, 2, 3]
    assert os.listdir(tmp_path) == ["sft.jsonl"]


@FORKS
@pytest.mark.skipif(os.name == "nt", reason="rights as on Unix")
def test_a_folder_that_is_read_only(tmp_path):  # a training whose result has no place
    def ask():
        if os.geteuid() == 0:  # whom nothing is forbidden
            os.seteuid(65534)
        try:
            lock(tmp_path / "out" / "data")
        except OSError as error:
            return str(error)

    (tmp_path / "out").mkdir(mode=0o555)
    assert "is no place to write into (Permission denied): give another --out" in apart(ask)
    assert not os.listdir(tmp_path / "out")


# ---- files that lie ------------------------------------------------------------------------------


class Gadget:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):  # what unpickling it would call
        return os.mkdir, (self.path,)


def forged(path, out, **changes):
    "A checkpoint with other contents, and a digest that agrees with them."
    record = torch.load(path, weights_only=True) | changes
    record["digest"] = checkpoint.digest(record)
    torch.save(record, out)


def repacked(path, out):
    "A checkpoint with forty megabytes of zeros more, which take almost no room."
    forged(path, out, state={"zeros": torch.zeros(10**7)})
    with zipfile.ZipFile(out) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name, part in parts.items():
            new.writestr(name, part)


def test_checkpoints_that_lie(toy, tmp_path):  # code that runs, a memory that is filled, a
    # traceback hours later
    good, bad = toy / "whole/sft/data/sft.pt", tmp_path / "bad.pt"
    record = torch.load(good, weights_only=True)
    held, shape = record["weights"], record["model"]
    gadget = {**record, "meta": Gadget(str(tmp_path / "obeyed"))}
    wide = {**record, "weights": {**held, "embed.weight": torch.zeros(1).expand(10**8)}}
    other = lambda **changes: lambda: forged(good, bad, model={**shape, **changes})
    damaged, network = "is damaged", "holds weights of another network"
    for make, words in (
            (lambda: torch.save(gadget, bad), damaged), (lambda: repacked(good, bad), damaged),
            (lambda: torch.save(wide, bad), damaged), (lambda: torch.save([1], bad), damaged),
            (lambda: torch.save({k: v for k, v in record.items() if k != "model"}, bad),
             "is not a checkpoint"),
            (lambda: forged(good, bad, weights={}), network),
            (lambda: forged(good, bad, weights={**held, "more": torch.zeros(3)}), network),
            (other(gadgets=3), network), (other(layers="many"), network),
            (other(layers=10**9), network), (other(context=10**12), network),
            (other(channels=2**20, context=2**24), network)):
        make()
        with pytest.raises(ValueError, match=f"bad.pt {words}.*python sft.py") as error:
            checkpoint.load(bad, "policy")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "obeyed").exists()
    assert checkpoint.load(good, "policy")


def test_lines_without_an_end(tmp_path):  # ten gigabytes in memory for one sentence
    long, deep, packed, blank = (tmp_path / name for name in (
        "a.jsonl", "deep.jsonl", "b.jsonl.gz", "c.jsonl.gz"))
    with open(long, "wb") as file:
        file.write(b'{"prompt": "a", "response": "b", "outputs": ["c"]}\n{"prompt": "')
        file.truncate(10**10)  # a hole, which takes no room
    deep.write_text('{"prompt": ' + "[" * 10**6)
    packed.write_bytes(gzip.compress(b'{"prompt": "' + bytes(2 * files.LONGEST), 1))
    blank.write_bytes(gzip.compress((b" " * 4095 + b"\n") * (files.LONGEST // 2048), 1))
    tracemalloc.start()
    for path, words in ((long, "line 2: more text"), (deep, "line 1: not JSON"),
                        (packed, "line 1: more text"), (blank, "a 200th")):
        with pytest.raises(ValueError, match=words):
            list(files.read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * files.LONGEST
    text = [{"prompt": f"{k} " * 30, "outputs": ["x"]} for k in range(999)]  # what people pack
    blank.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in text).encode()))
    assert [row for row, _ in files.read_rows(blank)] == text


@pytest.mark.parametrize("header", [
    b"{}", b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}',
    b'{"a": {"dtype": "F32", "shape": [1099511627776, 1099511627776], "data_offsets": [0, 4]}}',
    b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', b"[" * 10**5])
def test_tensors_beyond_their_file(tmp_path, header):  # memory for what a header claims
    pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    for size in (len(header), 2**40, 2**63 + 5):
        path.write_bytes(struct.pack("<Q", size) + header + bytes(4 if header != b"{}" else 0))
        if header == b"{}" and size == 2:
            assert list(weights.tensors(path)) == []
        else:
            with pytest.raises(ValueError, match="model.safetensors is damaged"):
                list(weights.tensors(path))


# ---- numbers that are none -----------------------------------------------------------------------


def broken_at(patch, owner, name, call, break_it):
    "From its `call`-th call on, a function's result goes through `break_it`."
    original, count = getattr(owner, name), []

    def broken(*args, **options):
        count.append(1)
        found = original(*args, **options)
        return break_it(found) if len(count) >= call else found
    patch.setattr(owner, name, broken)


@pytest.mark.parametrize("stage, where, value", [
    ("sft", "sft, step 5", math.nan), ("reward", "reward, step 5", math.inf),
    ("ppo", "ppo, iteration 5", math.nan), ("ppo", "ppo, iteration 5", -math.inf)])
def test_a_gradient_that_is_none(stage, where, value, toy, tmp_path, monkeypatch, mistake):
    # NaN weights over good ones: a step taken, a checkpoint replaced, no word on where it was
    original, count = nn.utils.clip_grad_norm_, []

    def plant(parameters, *args, **options):
        parameters = list(parameters)
        count.append(1)
        if len(count) == (17 if stage == "ppo" else 5):  # two epochs of two minibatches
            parameters[2].grad.view(-1)[0] = value
        return original(parameters, *args, **options)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", plant)
    said = mistake(chaos.go, stage, toy, tmp_path)
    assert where in said and "the gradient of " in said and "--resume" in said, said
    path = tmp_path / f"data/{stage}.pt"
    kind = "reward" if stage == "reward" else "policy"
    model, record = checkpoint.load(path, kind, unfinished=True)
    assert record["meta"]["step"] == 4 and all(p.isfinite().all() for p in model.parameters())
    monkeypatch.undo()
    chaos.go(stage, toy, tmp_path, "--resume")


def test_a_loss_that_is_none(toy, tmp_path, monkeypatch, mistake):  # the wrong tensor blamed
    broken_at(monkeypatch, sft, "loss", 8, lambda found: (found[0], {"loss": math.nan}))
    assert "sft, step 5: the loss is nan" in mistake(chaos.go, "sft", toy, tmp_path)
    monkeypatch.undo()
    broken_at(monkeypatch, ppo, "token_rewards", 3, lambda found: found * math.inf)
    said = mistake(chaos.go, "ppo", toy, tmp_path)
    assert "ppo, iteration 3: the policy_loss is nan" in said
    monkeypatch.undo()
    nan = lambda found: [x * math.nan for x in found]
    broken_at(monkeypatch, metrics, "kl_estimates", 3, nan)
    assert "ppo, iteration 3: the kl is nan" in mistake(chaos.go, "ppo", toy, tmp_path)


@pytest.mark.parametrize("body, words", [
    ("return [1.0] * (len(p) - 1)", "4 finite numbers, one per response"),
    ("return torch.zeros(len(p), 1)", "4 finite numbers"), ("return 1 / 0", "ZeroDivisionError"),
    ("return None", "raised"), ("return ['a'] * 8", "raised"), ("raise SystemError", "SystemError"),
    ("return torch.zeros(len(p)) / 0", "4 finite numbers"),
    ("return torch.zeros(len(p)) / (len(p) - 8)", "ppo, iteration 1: the reward must be 8 finite")])
def test_a_reward_function_of_ones_own(body, words, toy, tmp_path, mistake):  # a traceback for a
    # student, or a step on what it returned
    file = tmp_path / "mine.py"
    file.write_text(f"import torch\ndef reward_fn(p, r):\n    {body}\n")
    said = mistake(chaos.go, "ppo", toy, tmp_path, "--reward", file, "--value", "shared")
    assert words in said
    file.write_text("import torch\nnonsense\n")
    said = mistake(chaos.go, "ppo", toy, tmp_path, "--reward", file, "--value", "shared")
    assert "mine.py raised NameError" in said and not list(tmp_path.rglob("*.pt"))


def test_a_limit_of_the_kl(toy, tmp_path, mistake):  # a limit that saves what went beyond it,
    # that a resumed run forgets, or that changes a run which stays below
    flags = ["--lr", 3e-2, "--every", 1]
    rows = files.read_log(chaos.go("ppo", toy, tmp_path / "free", *flags).with_suffix(".jsonl"))
    limit = sum(sorted(row["kl"] for row in rows)[-2:]) / 2  # one iteration goes beyond
    beyond = next(row["step"] for row in rows if row["kl"] > limit)
    for more in ([], ["--resume"]):
        said = mistake(chaos.go, "ppo", toy, tmp_path, *flags, "--max-kl", limit, *more)
        assert f"ppo, iteration {beyond}: the KL to the SFT policy is" in said
        meta = checkpoint.load(tmp_path / "data/ppo.pt", "policy", unfinished=True)[1]["meta"]
        assert meta["step"] == beyond - 1 and not meta["finished"]
    chaos.go("ppo", toy, tmp_path, *flags, "--max-kl", 99, "--resume")
    same = chaos.found(tmp_path / "data"), chaos.found(tmp_path / "free/data")
    assert same[0] == same[1]


# ---- memory --------------------------------------------------------------------------------------


def small_memory(patch, rows, after=0):
    "Passes that are learned from fit `rows` rows, once there were `after` of them."
    original, count = m.Transformer.forward, []

    def forward(self, ids, *args, **options):
        learning = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        count.append(learning)
        if learning and sum(count) > after and len(ids) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return original(self, ids, *args, **options)
    patch.setattr(m.Transformer, "forward", forward)


@pytest.mark.parametrize("stage, half, least, flags", [
    ("sft", 2, 1, {}), ("reward", 2, 1, {}), ("ppo", 2, 1, {"samples": 1}),
    ("ppo", 3, 3, {"samples": 3, "batch": 12})])
def test_out_of_memory_names_the_flag(stage, half, least, flags, toy, tmp_path, monkeypatch,
                                      mistake):
    # a traceback, a flag that the stage has not, half a prompt's responses, which change nothing
    small_memory(monkeypatch, 1)
    said = mistake(chaos.go, stage, toy, tmp_path, **flags)
    assert f"out of memory: try --micro {half}" in said and "--auto-batch" in said
    small_memory(monkeypatch, 0)
    said = mistake(chaos.go, stage, toy, tmp_path, "--auto-batch", **flags)
    assert f"even with --micro {least}:" in said and ("--samples" in said) == (least > 1)


def test_auto_batch_goes_on(toy, tmp_path, monkeypatch, capsys):  # what was done is done again, a
    # log with two ends, an older run of the folder taken for this one
    chaos.go("ppo", toy, tmp_path)  # and another, finished run stands where this one will
    plain = chaos.go("sft", toy, tmp_path, "--micro", 2)
    expected = torch.load(plain, weights_only=True)["weights"]
    shutil.copytree(tmp_path, tmp_path / "b")
    small_memory(monkeypatch, 2)
    path = chaos.go("sft", toy, tmp_path / "b", "--auto-batch")
    assert "once more, with --micro 2" in capsys.readouterr().out
    now = torch.load(path, weights_only=True)
    assert now["meta"]["finished"] and now["meta"]["config"]["micro"] == 2
    assert all(torch.equal(now["weights"][name], x) for name, x in expected.items())
    monkeypatch.undo()
    small_memory(monkeypatch, 1, after=2 * 2 * 4 * 2 + 1)  # in the fifth iteration
    path = chaos.go("ppo", toy, tmp_path / "b", "--auto-batch", samples=2)
    now = torch.load(path, weights_only=True)["meta"]
    assert now["finished"] and now["config"]["micro"] == 2 and now["config"]["resume"]
    rows = files.read_log(path.with_suffix(".jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_other_errors_are_not_taken_for_memory(toy, tmp_path, monkeypatch):  # a bug tried again
    monkeypatch.setattr(sft, "loss", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        chaos.go("sft", toy, tmp_path, "--auto-batch")


# ---- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("holds", fuzz.PROPERTIES, ids=lambda holds: holds.__name__)
def test_whatever_is_put_in(holds):  # a traceback; for each see tests/fuzz.py
    fuzz.check(holds, 100, derandomize=True)


# ---- for a long time -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts what Linux shows")
def test_sixty_iterations_hold_no_more_than_ten():  # a row's graph kept, a file opened each time
    rows = chaos.long(60)
    assert len(rows) == 60
    tensors, files, *_ = zip(*rows[10:])
    assert len(set(tensors)) == 1 and len(set(files)) == 1, (set(tensors), set(files))
