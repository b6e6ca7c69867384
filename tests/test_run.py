"""
What every run needs: flags, a folder and its lock, a log, curves, samples. And for every stage:
what a run stands on is asked about before it goes on, the command that it prints goes on from what
it made, data of your own has a folder of its own, a poor console ends nothing, and a tokeniser is
where the checkpoint is. After a test's name stands the bug that turns it red.
"""

import contextlib
import errno
import importlib
import io
import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

import data
from data import __main__ as commands
from data import bpe, checkpoint, files, run
from data.run import Log, cli, curve, lock, side_by_side, stop_signal, within
from tests import chaos
from tests.conftest import without_figures

# ---- flags ---------------------------------------------------------------------------------------


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct or a path
    batch_size: int = 8  # rows per step; 100% of them are used
    lr: float = 1e-3  # step size # of Adam
    resume: bool = False  # go on from the checkpoint
    kl: Literal["k1", "k2"] = "k1"  # which estimator

    steps: int = 4  # stop early
    init: str = ""  # where from (default: anew)
    level: Literal[1, 2] = 1

    def __post_init__(self):
        within(self, 1, math.inf, "batch_size", "steps")
        within(self, 0, 1, "lr")


def test_flags_become_a_config():
    got = lambda argv: cli(Config, lambda config: config, argv.split())
    assert got("") == Config() and got("--no-resume").resume is False
    assert got("--data x.jsonl --batch-size 2 --lr 1e-2 --resume --kl k2 --steps 9 --init i --level"
               " 2") == Config("x.jsonl", 2, 0.01, True, "k2", 9, "i", 2)


@pytest.mark.parametrize("argv, words", [
    ("--batch-sizes 3", "there is no --batch-sizes: try --batch-size"),
    ("--batch 3", "there is no --batch: try --batch-size"),  # no abbreviations
    ("--batch_size=3", "there is no --batch_size=3: try --batch-size"),
    ("--zzz", "there is no --zzz: --help lists all"),
    ("extra", "there is no extra: "),
    ("--batch-size 0", "--batch-size 0 is impossible: give a value of at least 1"),
    ("--lr nan", "--lr nan is impossible: give a value between 0 and 1"),
    ("--lr 2", "--lr 2.0 is impossible: give a value between 0 and 1"),
    ("--batch-size x", "--batch-size: invalid int value: 'x'"),
    ("--steps", "--steps: expected one argument"),
    ("--kl k3", "--kl: invalid choice: 'k3'"),
])
def test_impossible_flags_are_one_sentence(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli(Config, lambda config: pytest.fail("trained"), argv.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: " + words) and captured.err.count("\n") == 1


def test_help_is_the_comments_and_the_module(capsys):
    with pytest.raises(SystemExit) as stop:
        cli(Config, print, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and " ".join(__doc__.split()) in shown
    assert "--batch-size N rows per step; 100% of them are used (default 8)" in shown
    assert "--lr X step size # of Adam (default 0.001)" in shown
    assert "--kl k1|k2 which estimator (default k1)" in shown
    assert "--resume, --no-resume go on from the checkpoint (default False) --kl" in shown
    assert "--steps N stop early (default 4) --init TEXT where from (default: anew)" in shown


@pytest.mark.parametrize("name", [
    "sft", "reward", "ppo", "bon", "rlhf", "data.__main__", "data.measured", "data.judge",
    *(f"tests.{name}" for name in ("bench", "chaos", "fuzz", "gpu", "handout", "leaderboard",
                                   "memory", "mutants", "smollm2", "__main__"))])
def test_no_help_ends_in_an_empty_default(name, capsys):
    module = importlib.import_module(name)
    main = getattr(module, "main", None)
    with pytest.raises(SystemExit) as stop:
        main(["--help"]) if main else cli(module.Config, module.train, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "-h, --help" in shown
    assert not re.search(r"\(default:?( None)?\s*\)", shown)


def test_mistakes_in_training_are_one_sentence(capsys, monkeypatch):
    def train(config):
        raise {"v": ValueError, "o": OSError, "k": KeyboardInterrupt, "r": RuntimeError}[
            config.data
        ]("row 3\nis bad")

    monkeypatch.delenv("TRACEBACK", raising=False)
    for kind, code, err in (("v", 2, "error: row 3 is bad\n"), ("o", 2, "error: row 3 is bad\n"),
                            ("k", 130, "")):
        with pytest.raises(SystemExit) as stop:
            cli(Config, train, ["--data", kind])
        assert stop.value.code == code and capsys.readouterr().err == err
    with pytest.raises(RuntimeError):  # a bug of ours keeps its traceback
        cli(Config, train, ["--data", "r"])
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError):
        cli(Config, train, ["--data", "v"])


def test_within_knows_open_bounds():
    config = Config()
    within(config, -math.inf, math.inf, "lr", "batch_size", "steps")
    with pytest.raises(ValueError, match="between -inf and 3$"):
        within(config, -math.inf, 3, "lr", "batch_size")
    for value in (math.nan, math.inf, 10**30):  # which no bound of infinity lets in
        config.lr = value
        with pytest.raises(ValueError, match="give a value between -inf and 10"):
            within(config, -math.inf, math.inf, "lr")


# ---- the run folder and its log ------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_drive_without_locks(number, tmp_path, monkeypatch):  # a drive that nothing can run on
    fcntl = pytest.importorskip("fcntl")

    def flock(*args):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, "flock", flock)
    held = lock(tmp_path / "run")
    assert held is not None and (tmp_path / "run").is_dir()


def test_log_rows_come_back_as_they_went_in(tmp_path):
    log = Log(tmp_path / "new", "sft")
    log.log(0, loss=0.1 + 0.2, note="warm", shares=[0.5, 0.25])
    log.log(1, loss=np.float32(0.5), tokens=np.int64(3))
    rows = files.read_log(tmp_path / "new" / "sft.jsonl")  # not closed: each row is flushed
    assert rows == [{"step": 0, "loss": 0.1 + 0.2, "note": "warm", "shares": [0.5, 0.25]},
                    {"step": 1, "loss": 0.5, "tokens": 3}]
    log.close()
    Log(tmp_path / "new", "sft").close()
    assert files.read_log(tmp_path / "new" / "sft.jsonl") == []  # a new run, a new log


def test_resumed_log_neither_loses_nor_doubles_a_step(tmp_path):
    path, log = tmp_path / "ppo.jsonl", Log(tmp_path, "ppo")
    for step in range(6):
        log.log(step, loss=float(step))
    log.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')  # killed while writing
    assert len(files.read_log(path)) == 6
    log = Log(tmp_path, "ppo", resume_step=3)
    for step in range(4, 7):
        log.log(step, loss=-1.0)
    log.close()
    assert [(row["step"], row["loss"]) for row in files.read_log(path)] == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, -1), (5, -1), (6, -1)]
    assert list(tmp_path.iterdir()) == [path]
    Log(tmp_path, "reward", resume_step=3).close()  # nothing logged yet: starts empty


def test_altered_logs_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        files.read_log(tmp_path / "x.jsonl")


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), [1.0, math.nan]])
def test_log_refuses_nan(tmp_path, value):
    log = Log(tmp_path, "sft")
    with pytest.raises(ValueError, match="loss is .* at step 7"):
        log.log(7, kl=1.0, loss=value)
    log.close()
    assert (tmp_path / "sft.jsonl").read_text() == ""


def test_console_repeats_its_header(tmp_path, capsys):
    log = Log(tmp_path, "sft")
    for step in range(41):
        log.log(step, loss=1 / 3)
    log.log(41, accuracy_on_validation=0.5)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    headers = [i for i, line in enumerate(lines) if "step" in line]
    assert headers == [0, 21, 42, 44]
    assert lines[1].split() == ["0", "0.3333"]
    assert len(set(map(len, lines[:44]))) == 1  # aligned


def test_console_shows_the_chosen_fields(tmp_path, capsys):
    log = Log(tmp_path, "ppo", show=("kl",))
    log.log(3, kl=0.5, detail=1.0)
    log.close()
    assert capsys.readouterr().out.split() == ["step", "kl", "3", "0.5"]
    assert files.read_log(tmp_path / "ppo.jsonl") == [{"step": 3, "kl": 0.5, "detail": 1.0}]


@pytest.mark.parametrize("pause, shown", [(0, ""), (0.3, "slow:   0%|")])
def test_what_takes_long_is_seen(pause, shown, capsys, monkeypatch):
    # a bar of what is done in a moment, none before the first of few is done, one that stays
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    for _ in files.progress(range(2), "slow"):
        time.sleep(pause)
        said = capsys.readouterr().err
        assert said.startswith("\r" + shown) if shown else said == ""
        break  # or an error
    time.sleep(0.15)
    said = capsys.readouterr().err
    assert re.fullmatch(r"\r +\r" if shown else "", said)
    assert [*files.progress("abc", "slow")] == [*"abc"]


def test_long_phases_have_bars_and_large_files_are_named(toy, tmp_path, capsys, monkeypatch, quick):
    # a minute without a word; a word of what is small
    chaos.go("sft", toy, tmp_path / "usual")
    said = capsys.readouterr().err
    assert "ing " not in said and "validation" not in said
    monkeypatch.setattr(files, "PATIENCE", 0), monkeypatch.setattr(files, "HEAVY", 0)
    chaos.go("sft", toy, tmp_path)
    said = capsys.readouterr().err
    base, path = toy / "base/data/base.pt", tmp_path / "data/sft.pt"
    assert f"reading {base}, " in said and f"saving {path}, 1 MB\n" in said
    assert all(f"\r{what}: " in said for what in ("prompts", "responses", "validation", "sample"))
    chaos.go("reward", toy, tmp_path, own=True)
    assert re.search("[1-9]/[1-9]", capsys.readouterr().err.partition("responses: ")[2])


def test_a_pretrained_model_is_named(toy, tmp_path, capsys, monkeypatch):  # not a word of 13 GB
    pytest.importorskip("safetensors")
    checkpoint.export(toy / "base/data/base.pt", tmp_path / "hub")
    monkeypatch.setattr(files, "HEAVY", 0), capsys.readouterr()
    checkpoint.load(tmp_path / "hub", "policy")
    assert f"reading {tmp_path / 'hub'}, 0 MB" in capsys.readouterr().err


def test_stop_signal_waits_once():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        asked = stop_signal()
        assert not asked
        signal.raise_signal(signal.SIGTERM)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        asked = stop_signal()
        del asked  # the stage is over, and nobody would ever look
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_policies_side_by_side(tmp_path, capsys):
    answers = {"sft": [" one", " two"], "rlhf": [" three", " four"]}
    gold = lambda prompt, text: float(len(prompt + text))
    side_by_side(tmp_path / "samples.txt", ["p1", "p2"], answers, gold)
    kept = (tmp_path / "samples.txt").read_text()
    assert kept.strip() in capsys.readouterr().out
    lines = [line.split() for line in kept.splitlines()]
    assert ["sft", "[", "5.00]", "one"] in lines and ["rlhf", "[", "6.00]", "four"] in lines


def test_curve_draws_what_there_is(tmp_path):
    path = tmp_path / "ppo.png"
    rng = random.Random(0)
    rows = [{"step": s, "reward": rng.random(), "kl": 0.1 * s} for s in range(9)]
    rows.append({"step": 9, "gold": 1.0})
    panels = [("Reward", ["reward", "gold"], "score (std)"), ("KL", ["kl"], "nats"),
              ("Never logged", ["nothing"], "share")]
    curve(path, rows, panels)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 10_000
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert width > 2 * height > 600  # two beside each other, and none for what nobody logged
    assert [p.name for p in tmp_path.iterdir()] == ["ppo.png"]
    curve(path, rows[:1], panels)
    assert path.read_bytes() != content
    assert json.loads(json.dumps(rows)) == rows  # drawing changes nothing


# ---- whole runs: what a run stands on ------------------------------------------------------------


@pytest.fixture
def copy(toy, tmp_path, quick):
    "The toy set and its runs, to be changed."
    return shutil.copytree(toy, tmp_path / "copy")


def stopped(stage, *args, **options):
    "A stage, with Ctrl-C after a few of its steps."
    looks = itertools.count()
    asked = type("Asked", (), {"__bool__": lambda self: next(looks) > 3})()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(run, "stop_signal", lambda: asked)
        chaos.go(stage, *args, **options)
    assert stop.value.code == 130


REWARD_FN = "def reward_fn(p, r):\n    return [float(len(x)) for x in r]\n"
CHANGED = [  # the stage that was stopped, what is made anew, what is said of it
    ("sft", "base", "the policy that it starts from"), ("sft", "train.jsonl", "its data"),
    ("reward", "sft", "the policy that it starts from"),
    ("reward", "comparisons.train.jsonl", "its data"),
    ("ppo", "sft", "the policy that it starts from"), ("ppo", "reward", "its reward"),
    ("ppo", "mine.py", "its reward"), ("ppo", "train.jsonl", "its data")]


@pytest.mark.parametrize("stage, what, words", CHANGED, ids=lambda x: str(x))
def test_a_run_goes_on_from_what_it_stood_on(stage, what, words, copy, tmp_path, mistake):
    # --resume of a policy with another one's optimiser, or on other rows, without a word
    path, kept = copy / "out/data" / f"{stage}.pt", tmp_path / "kept"
    more, mine = [], copy / "mine.py"
    if what == "mine.py":
        mine.write_text(REWARD_FN)
        more = ["--reward", mine, "--value", "shared"]
    stopped(stage, copy, copy / "out", *more)
    shutil.copytree(copy, kept)
    if what == "base":
        chaos.pretrain(copy, steps=2)
    elif what in ("sft", "reward"):
        chaos.go(what, copy, copy / "whole" / what, "--lr", 1e-3)
        if what == "sft" and stage == "ppo":
            chaos.go("reward", copy, copy / "whole/reward")
    elif what == "mine.py":
        mine.write_text(REWARD_FN.replace("float(", "-float("))
    else:
        rows = copy / "data" / what
        rows.write_text(rows.read_text().replace("red", "pink"))
    before = path.read_bytes()
    said = mistake(chaos.go, stage, copy, copy / "out", *more, "--resume")
    assert f"--resume: {words} has changed since" in said, said
    assert path.read_bytes() == before
    shutil.copytree(kept, copy, dirs_exist_ok=True)  # as it was, it goes on
    assert chaos.go(stage, copy, copy / "out", *more, "--resume") == path


def test_a_study_does_not_go_on_from_another_policy(copy, mistake):  # the same, by rlhf.py
    out = copy / "out"
    for stage in ("sft", "reward"):
        shutil.copytree(copy / "whole" / stage, out, dirs_exist_ok=True)
    stopped("ppo", copy, out, own=True)
    chaos.go("sft", copy, out, "--lr", 1e-3)
    chaos.go("reward", copy, out, own=True)
    assert "the policy that it starts from has changed" in mistake(chaos.go, "rlhf", copy, out)


# ---- for TensorBoard -----------------------------------------------------------------------------


@pytest.fixture
def logged(tmp_path):
    "A run folder with logs, samples, and rows that are no log."
    rows = [{"step": 2, "loss": 0.5, "note": "a *b*", "shares": [1.0]}, {"step": 4, "loss": 0.25}]
    files.write_rows(tmp_path / "sft.jsonl", rows)
    files.write_rows(tmp_path / "sft.samples.jsonl", [
        {"step": step, "prompt": p, "answer": f"{p}\n{step}", "gold": step}
        for step in (0, 2) for p in "pq"])
    files.write_rows(tmp_path / "bon.jsonl", [{"n": 1, "gold": 1.0}])
    return tmp_path


@pytest.mark.parametrize("to", [[], ["--to", "elsewhere"]])
def test_logs_for_tensorboard(logged, monkeypatch, capsys, to):
    # a sample that hides another, a step lost, each curve drawn twice after the second time
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(logged)
    for _ in range(2):
        commands.main(["log", ".", *to])
    folder = to[-1] if to else "tensorboard"
    assert f"--logdir {folder} " in capsys.readouterr().out
    found = EventAccumulator(folder).Reload()
    scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)]
               for tag in found.Tags()["scalars"]}
    assert scalars == {"sft/loss": [(2, 0.5), (4, 0.25)],
                       **{f"sft.samples {k}/gold": [(0, 0), (2, 2)] for k in (1, 2)}}
    texts = {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in found.Tensors(tag)]
             for tag in found.Tags()["tensors"]}
    assert texts.pop("sft/note/text_summary") == [(2, "    a *b*")]
    for k, p in ((1, "p"), (2, "q")):
        for name, more in (("prompt", ["", ""]), ("answer", ["\n    0", "\n    2"])):
            assert texts.pop(f"sft.samples {k}/{name}/text_summary") == [
                (step, f"    {p}{end}") for step, end in zip((0, 2), more)]
    assert texts == {}


def test_no_logs_or_no_tensorboard(logged, tmp_path, monkeypatch, mistake):  # a traceback; a folder
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "python -m data log needs `pip install tensorboard`" in mistake(
        commands.main, ["log", str(logged)])
    assert "no log, such as sft.jsonl" in mistake(commands.main, ["log", str(tmp_path / "none")])
    assert not (tmp_path / "tensorboard").exists()


# ---- the command that goes on --------------------------------------------------------------------


def next_of(said):
    "The words of the command that a stage has printed, less `python`."
    return shlex.split(re.search(r"next: python (.*)", said)[1])


def digest_of(path):
    return torch.load(path, weights_only=True)["digest"]


@pytest.mark.parametrize("seed, variant", [(0, None), (3, "other run")])
def test_the_next_command_goes_on_from_what_was_made(seed, variant, toy, tmp_path, capsys,
                                                     monkeypatch, quick):
    # a seed, folder or variant dropped, a path with blanks cut in two, the shipped base instead
    monkeypatch.chdir(tmp_path)
    shutil.copytree(toy / "data", tmp_path / "my data")
    chaos.pretrain(tmp_path, data="my data", out="my out", seed=seed)
    digests = {"base": digest_of(next((tmp_path / "my out").rglob("base.pt")))}
    for stage in ("sft", "reward", "ppo"):
        name, *argv = next_of(capsys.readouterr().out)
        assert name == f"{stage}.py" and argv.count("--seed") == (seed > 0)
        module, flags = chaos.STAGES[stage]
        flags = {**flags, "steps": 2, "device": "cpu"}
        if variant and stage == "reward":
            flags["variant"] = variant
        path = run.cli(module.Config, module.train, [*argv, *(
            str(word) for name, value in flags.items() for word in (run.flag(name), value))])
        made, digests[stage] = torch.load(path, weights_only=True)["meta"], digest_of(path)
        assert made["parents"]["init"] == digests["base" if stage == "sft" else "sft"]
        assert made["parents"].get("reward") == digests.get("reward" if stage == "ppo" else None)
        assert made["seed"] == seed and path.is_relative_to("my out/my data")
    name, *argv = next_of(capsys.readouterr().out)
    if variant:  # which the study knows nothing of
        assert path.parent.name == variant and [name, *argv] == [
            "-m", "data", "say", "my out/my data/seed-3/sft.pt", str(path), "--data", "my data"]
        commands.main(argv[1:])
        assert capsys.readouterr().out.count("Answer:") == 4
    else:
        assert [name, *argv] == ["-m", "tests.evaluate", "--data", "my data", "--out", "my out"]


@pytest.mark.parametrize("stage, changes, words", [
    ("ppo", {}, "rlhf.py --data summarise"), ("ppo", {"seed": 2}, "rlhf.py --data summarise "
     "--seeds 3"), ("ppo", {"out": "a b"}, "rlhf.py --data summarise --out 'a b'"),
    ("ppo", {"reward": "gold"}, "-m data say out/summarise/sft.pt "
     "out/summarise/ppo.pt --data summarise"),
    ("ppo", {"init": "x y.pt"}, "-m data say 'x y.pt' out/summarise/ppo.pt --data summarise"),
    ("reward", {"init": "x y.pt"}, "ppo.py --data summarise --init 'x y.pt'"),
    ("sft", {"freeze": 0.8}, "reward.py --data summarise --freeze 0.8"),
    ("base", {"data": "it's"}, "sft.py --data 'it'\"'\"'s' --init 'out/it'\"'\"'s/base.pt'")])
def test_what_the_next_command_is(stage, changes, words):  # see above, where a run would take long
    config = chaos.STAGES["sft" if stage == "base" else stage][0].Config(**changes)
    assert run.Run(stage, config).following() == f"python {words}"


# ---- all stages, on data, with a tokeniser and before a console that are not the usual ones ------


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """
    All five stages on data of one's own in a folder called instruct, with letters that few consoles
    have, printed to one that is strict, as Windows' pipes are; with a tokeniser of one's own that
    lay in another folder and is gone -> the folder, {stage: what was said}, the tokeniser, a text.
    """
    folder, said = tmp_path_factory.mktemp("odd"), {}
    chaos.examples(folder / "data", test=slice(40, 44), far=slice(44, None))
    for path in (folder / "data").iterdir():
        text = path.read_text(encoding="utf-8").replace("Name the", "Name \\ud83d\\ude00 ж")
        path.write_text(text.replace("The", "Ω"), encoding="utf-8")
    texts = [f"{e.prompt} {e.response}" for e in data.load(folder / "data", "train")]
    (folder / "data").rename(folder / "instruct"), (folder / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        patch.chdir(folder)
        bpe.save("my.bpe", bpe.train(texts, 300))
        tokenizer = data.Tokenizer("my.bpe", 60, 24)
        base = chaos.pretrain(folder, data="instruct", context=90, prompt_tokens=60,
                              response_tokens=24, tokenizer="my.bpe")
        (folder / "my.bpe").unlink()
        patch.chdir(folder / "elsewhere")
        for stage in chaos.STAGES:
            console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
            more = ["--init", base] if stage in ("sft", "rlhf") else []
            with contextlib.redirect_stdout(console), contextlib.redirect_stderr(io.StringIO()):
                chaos.go(stage, folder, folder / "out", "--data", folder / "instruct", *more,
                         own=True)
                print("the end", flush=True)
            said[stage] = console.buffer.getvalue().decode("ascii")
    return folder, said, tokenizer, texts[0]


def test_data_called_as_a_known_set(odd):  # runs of the embedded task overwritten
    (folder,) = (odd[0] / "out").iterdir()
    assert re.fullmatch(r"instruct-[0-9a-f]{8}", folder.name)
    assert {"sft.pt", "reward.pt", "ppo.pt", "bon.jsonl", "report.md"} <= {
        path.name for path in folder.iterdir()}
    for name in ("instruct", "tldr"):
        assert re.fullmatch(rf"{name}-[0-9a-f]{{8}}", data.run_folder(odd[0] / name).name)
        assert data.run_folder(odd[0] / name) == data.run_folder(odd[0] / "." / name)
        assert data.run_folder(name).name == name


def test_a_console_that_lacks_a_letter(odd):
    # a run that ends after its training, before it is finished, and does so for ever
    (folder,) = (odd[0] / "out").iterdir()
    for stage, said in odd[1].items():
        assert said.endswith("the end\n") and (stage == "rlhf" or "Name ? ?" in said), stage
        if stage in ("sft", "reward", "ppo"):
            assert json.loads((folder / f"{stage}.json").read_text())["finished"]
        if stage != "rlhf":
            shown = folder / ("samples.txt" if stage == "ppo" else f"{stage}.txt")
            assert "Name 😀 ж" in shown.read_text(encoding="utf-8")
    for encoding in ("cp1252", "ascii"):
        console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        with contextlib.redirect_stdout(console):
            commands.main([str(odd[0] / "instruct"), "-n", "1"])
            commands.main(["say", str(folder / "ppo.pt"), "--data", str(odd[0] / "instruct"),
                           "-n", "3"])
        console.flush()
        assert console.buffer.getvalue().decode(encoding).count("Name ? ?") == 4


def test_a_tokeniser_goes_where_its_checkpoint_goes(odd):
    # from another folder the next stage wants a tokeniser made that there is
    (path,), before, known = (odd[0] / "out").rglob("ppo.pt"), *odd[2:]
    after = data.Tokenizer.of(checkpoint.load(path, "policy")[1]["tokenizer"])
    assert after.fingerprint == before.fingerprint and after.name == "my.bpe"
    for text in (known, "é 😀 <|endoftext|>"):
        assert after.prompt(text) == before.prompt(text)
        assert after.decode(after.encode(text)) == text
    assert (after.eos, after.pad, after.vocab_size) == (299, 300, 300)


def test_files_are_written_before_anything_is_printed(tmp_path, monkeypatch):  # a lost samples.txt
    def broken(*args, **more):
        raise OSError("the pipe is closed")
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="ascii")):
        run.side_by_side(tmp_path / "a.txt", ["Ω"], {"sft": ["😀"]})  # of who has no command line
    assert "sft  😀" in (tmp_path / "a.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(run.tqdm, "write", broken)
    with pytest.raises(OSError, match="the pipe is closed"):
        run.side_by_side(tmp_path / "a.txt", ["p"], {"sft": ["r"]})
    assert "sft  r" in (tmp_path / "a.txt").read_text()
