"""
The runs of a study as commands: that they are the study's own, in an order that works, and that to
give one twice, at once, or after a kill does no harm. After each test's name stands the mistake
that turns it red.
"""

import dataclasses
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import ppo
import reward
import rlhf
import sft
from data import __main__ as data_main
from data import checkpoint, files, lineage, optim, watch, world
from data.run import cli, lock
from tests import chaos
from tests.conftest import without_figures
from tests.test_chaos import FORKS
from tests.test_rlhf import by_hand, main_run

pytestmark = pytest.mark.usefixtures("quick")
ROOT = Path(__file__).parent.parent
MODULES = {"sft.py": sft, "reward.py": reward, "ppo.py": ppo, "rlhf.py": rlhf}
MAKE = pytest.mark.skipif(not shutil.which("make"), reason="runs make")


def do(line, train=None):
    "Give a command of a plan, in this process; or only have its flags read."
    words = shlex.split(line)
    assert words[0] == "python"
    if words[1] == "-m":
        return data_main.main(words[3:]) if train is None else None
    module = MODULES[words[1]]
    return cli(module.Config, train or module.train, words[2:])


def commands(text):
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def rules(text):
    "A makefile -> {target: (prerequisites, command)}, in its order."
    found = re.findall(r"^([^\s:.]\S*): ?(.*)\n\t\$\(RUN\) (.*)$", text, re.M)
    files = re.search(r"^FILES = (.*?)(?<!\\)\n", text, re.M | re.S)[1].replace("\\\n", " ").split()
    return {name: (needs.replace("$(FILES)", " ".join(files)).split(), command)
            for name, needs, command in found}


@pytest.fixture
def planned(toy, tmp_path, capsys, monkeypatch):
    "planned(out, *flags): what a study of the toy set, with some sweeps, prints as its plan."
    monkeypatch.setattr(lineage, "SWEEP", {
        name: lineage.SWEEP[name] for name in ("k2-1", "shuffled")})
    monkeypatch.chdir(tmp_path)  # paths are as they are typed

    def plan(out, *flags, **more):
        capsys.readouterr()
        chaos.go("rlhf", toy, out, *flags, **{"plan": "sh", **more})
        return capsys.readouterr().out
    return plan


ALL = dict(sweeps=True, arms="rloo")


def test_the_commands_leave_what_the_study_leaves(toy, tmp_path, planned, monkeypatch):
    # a run without the main run's flags, a control on the labels as they were, a blank in a path,
    # a run that the study trains once more
    monkeypatch.setitem(chaos.STAGES, "ppo", (ppo, chaos.STAGES["ppo"][1] | dict(steps=2)))
    chaos.go("rlhf", toy, tmp_path / "whole", sweeps=True)
    text = planned("its parts", sweeps=True)
    assert sorted(os.listdir()) == ["whole"]  # a plan writes nothing
    *lines, last = commands(text)
    for line in lines:
        do(line)
    for module in (sft, reward, ppo):
        monkeypatch.setattr(module, "train", lambda config: pytest.fail(f"trained {config}"))
    do(last)
    whole, parts = chaos.found(tmp_path / "whole"), chaos.found(tmp_path / "its parts")
    assert len([name for name in whole if name.endswith(".pt")]) == 7
    assert parts == whole


@pytest.mark.parametrize("hand", [True, False])
@pytest.mark.parametrize("make", [True, False])
def test_the_flags_are_those_of_the_study(tmp_path, capsys, monkeypatch, hand, make):
    # a seed, an arm, a control or a width forgotten, a default for a flag of the main run, an order
    # in which one finds nothing of another or its lock
    config = rlhf.Config(data="instruct", seeds=2, sweeps=True, arms="rloo,grpo",
                         out=str(tmp_path), device="cpu")
    if hand:
        by_hand(tmp_path / "instruct", **main_run())
    network = SimpleNamespace(config=SimpleNamespace(channels=64))
    monkeypatch.setattr(checkpoint, "load", lambda *args, **more: (network, {"meta": {}}))
    rlhf.train(dataclasses.replace(config, plan="make" if make else "sh"))
    text = capsys.readouterr().out
    lines = [command for _, command in rules(text).values()] if make else commands(text)
    got = [do(line, lambda config: config) for line in lines]
    assert got.count(None) == 2  # of which labels are shuffled
    begun = lambda c: dataclasses.replace(c, resume=False) if hasattr(c, "resume") else c
    got = [begun(c) for c in got if c]
    got.remove(config)  # the study, which is to come last
    assert lines[0 if make else -1].startswith("python rlhf.py")

    trained = []
    for module in (sft, reward, ppo):
        monkeypatch.setattr(module, "train", trained.append)
    monkeypatch.setattr(lineage, "shuffled_labels", lambda *args: None)
    lineage.train(lineage.all_runs(config))
    for _, _, runs in lineage.sizes(config):
        lineage.train(runs)
    assert {c.out for c in trained} == {
        str(tmp_path), *(f"{tmp_path}/size-{width}" for width in (64, 192))}
    implicit = [c for c in trained if getattr(c, "implicit", 0)]
    assert implicit and all(c.out == str(tmp_path) for c in implicit)  # a width needs no DPO
    key = lambda c: str(sorted(map(str, dataclasses.asdict(c).items()))) + type(c).__module__
    assert sorted(map(key, got)) == sorted(map(key, map(begun, trained)))


@pytest.mark.parametrize("out", ["out", "some where/out"])
def test_blocks_and_rules(planned, out, mistake, toy):
    # two of a block in one folder, which one locks; a file that nothing makes, or too late
    text = planned(out, **ALL)
    paragraphs = text.strip().split("\n\n")[1:]
    assert [p.split("\n")[0] for p in paragraphs] == [
        *(f"# block {k}" for k in range(1, 6)), "# the study, which finds all of them"]
    if " " in out:  # which a shell can quote, and make cannot
        assert "make cannot name some where/out/data/sft.pt: give" in mistake(
            chaos.go, "rlhf", toy, out, plan="make", **ALL)
        return
    rows = rules(planned(out, plan="make", **ALL))
    needs, last = rows.pop("all")
    assert needs == [*rows] and last == commands(text)[-1]
    assert [command for _, command in rows.values()] == commands(text)[:-1]
    assert {Path(name) for name in needs} == {
        Path(out, "data", name) for name in (
            "sft.pt", "reward.pt", "dpo.pt", "ppo.pt", "rloo/ppo.pt", "k2-1/ppo.pt",
            "shuffled/comparisons.train.jsonl", "shuffled/reward.pt", "shuffled/ppo.pt")}
    block_of = {line: k for k, p in enumerate(paragraphs) for line in commands(p)}
    for name, (needs, command) in rows.items():
        for other in needs:
            assert block_of[rows[other][1]] < block_of[command], (name, other)
        for other, (_, theirs) in rows.items():  # a folder has one lock
            assert (Path(other).parent != Path(name).parent or other == name
                    or block_of[theirs] != block_of[command]), (name, other)


@MAKE
def test_make_understands_it(planned, tmp_path):  # a `$` that make eats, a file taken for finished
    (tmp_path / "plan.mk").write_text(planned("out", plan="make", judge="a $model", **ALL))
    lines = commands(planned("out", judge="a $model", **ALL))
    for name in ("sft.pt", "ppo.pt"):  # there, and nobody knows that they have finished
        (tmp_path / "out/data").mkdir(exist_ok=True, parents=True)
        (tmp_path / "out/data" / name).touch()
    said = subprocess.run(["make", "-n", "-f", "plan.mk", "RUN=srun"], capture_output=True,
                          text=True, check=True).stdout.splitlines()
    assert sorted(said) == sorted(f"srun {line}" for line in lines)
    assert said[-1] == f"srun {lines[-1]}" and "'a $model'" in lines[-1]


def test_a_study_that_will_be_refused(toy, planned, tmp_path, mistake):  # after a night of training
    chaos.go("sft", toy, "out")
    said = mistake(chaos.go, "rlhf", toy, "out", plan="make", init="elsewhere/other.pt")
    assert "sft.pt was trained with --init" in said
    shutil.copytree(toy / "data", tmp_path / "alone")
    for path in (tmp_path / "alone").glob("*far*"):
        path.unlink()
    assert "has only 'test' to test on" in mistake(
        chaos.go, "rlhf", toy, "out", plan="make", data="alone")


def test_labels_of_nothing(mistake, tmp_path):  # a KeyError
    said = mistake(data_main.main, ["shuffle", "summarise", "--out", str(tmp_path)])
    assert "summarise/reward.pt does not exist" in said and not os.listdir(tmp_path)


@pytest.mark.parametrize("argv, plan", [("", ""), ("--plan", "sh"), ("--plan make", "make")])
def test_how_a_plan_is_asked_for(argv, plan):  # a word that is wanted after a flag
    config = cli(rlhf.Config, lambda config: config, [*argv.split(), "--seeds", "2"])
    assert (config.plan, config.seeds) == (plan, 2)


# ---- twice, at once, killed ----------------------------------------------------------------------


def dies_in_step(number, step=optim.step):
    "From here on, this process is killed where its optimiser takes a step of this number."
    left = [None] * number

    def dying(*args, **more):
        left.pop()
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **more)
    optim.step = dying


@FORKS
def test_twice_at_once_and_after_a_kill(toy, planned, tmp_path):
    # two that train the same, a finished run that is trained again, a killed one that begins anew
    lines = commands(planned("here"))[:4]
    for line in lines[:2]:
        do(line)
    shutil.copytree("here", "whole")
    for name, line in zip(("dpo", "ppo"), lines[2:]):
        do(line.replace("--out here", "--out whole"))

        begin = functools.partial(chaos.apart, functools.partial(do, line), tmp_path)
        killed = begin(functools.partial(dies_in_step, 13 if name == "ppo" else 4))
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        meta = checkpoint.load(f"here/data/{name}.pt", "policy", unfinished=True)[1]["meta"]
        assert meta["step"] == 2 and not meta["finished"]
        logged = lambda: [row for row in files.read_log(f"here/data/{name}.jsonl")
                          if row["step"] <= 2]
        rows = logged()

        held = lock("here/data")
        refused = begin()
        refused.join()
        assert refused.exitcode == 2 and "another process is at work" in (
            tmp_path / "last.txt").read_text()
        del held

        both = [begin(), begin()]
        for process in both:
            process.join()
        assert sorted(process.exitcode for process in both) in ([0, 2], [0, 0])
        again = begin()
        again.join()
        assert again.exitcode == 0 and "finished at" in (tmp_path / "last.txt").read_text()
        assert rows and logged() == rows  # with their seconds: nobody trained that part again
    assert chaos.found(tmp_path / "here") == chaos.found(tmp_path / "whole")


# ---- all of it -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_of_the_world_with_sweeps(tmp_path, capsys, monkeypatch):
    # a width that is the study's own to train, a ceiling without its reward model
    monkeypatch.setitem(world.SIZES, "train", 300)
    monkeypatch.setitem(world.SIZES, "validation", 60)
    monkeypatch.setattr(watch, "FOLLOWED", 8)
    monkeypatch.setattr(lineage, "SIZES", {"64": lineage.SIZES["64"]})
    for name in [name for name in lineage.SWEEP if name not in ("k2-1", "gold", "shuffled")]:
        monkeypatch.delitem(lineage.SWEEP, name)
    without_figures(monkeypatch)
    studies = [rlhf.Config(data="instruct", inputs=4, samples=2, sweeps=True, arms="grpo",
                           device="cpu", out=str(tmp_path / name)) for name in ("whole", "parts")]
    for config in studies:
        few = dict(data="instruct", device="cpu", out=config.out, steps=2, batch=8, every=2)
        sft.train(sft.Config(**few, eval_size=8, base_steps=2))
        reward.train(reward.Config(**few, eval_size=20, lm=0.5))
        ppo.train(ppo.Config(**few, samples=2, kl="k2", beta=1.0))
    capsys.readouterr()
    rlhf.train(dataclasses.replace(studies[1], plan="sh"))
    *lines, last = commands(capsys.readouterr().out)
    rlhf.train(studies[0])
    for line in lines:
        do(line)
    for module in (sft, reward, ppo):
        monkeypatch.setattr(module, "train", lambda config: pytest.fail(f"trained {config}"))
    do(last)
    whole, parts = chaos.found(tmp_path / "whole"), chaos.found(tmp_path / "parts")
    # the main run's, DPO, GRPO, gold, of shuffled labels two; of the width, the base and three
    assert len([name for name in whole if name.endswith(".pt")]) == 3 + 1 + 1 + 1 + 2 + 4
    assert len(lines) == 1 + 1 + 1 + 3 + 3 and parts == whole


@MAKE
@pytest.mark.slow
def test_make_with_two_at_once(toy, tmp_path):  # one that waits for none, or runs again
    def go(*words):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={
            **os.environ, "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    folder, plan = tmp_path / "parts", tmp_path / "plan.mk"
    for stage in ("sft", "reward", "ppo"):
        chaos.go(stage, toy, folder, own=True)
    shutil.copytree(folder, tmp_path / "whole")
    study = ["python", "rlhf.py", *chaos.argv_of("rlhf", toy, folder, seeds=2)]
    plan.write_text(go(*study, "--plan", "make"))
    said = go("make", "-j2", "-f", str(plan))
    assert said.count("begins") == 2 * 4 - 3 and "finished at" not in said
    there = {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")}
    said = go("make", "-j2", "-f", str(plan))
    assert said.count("finished at") == 2 * 4 - 3
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.pt")} == there
    go(*study, "--out", str(tmp_path / "whole"))
    assert chaos.found(folder) == chaos.found(tmp_path / "whole")
