"""The leaderboard, on kept figures of made-up entries. Behind a name: the bug that turns it red."""

import dataclasses
import json

import pytest

import reward
import sft
from data import files
from tests import leaderboard
from tests.evaluate import measured


def enter(folder, win=0.7, kl=1.0, ead=0.4, seconds=200.0, prompts=500, ppo=None, **scorer):
    "Three finished and measured runs, seed k of them with .01 k more wins."
    for seed in (0, 1, 2):
        run = folder / f"seed-{seed}" if seed else folder
        run.mkdir(parents=True)
        of = {"sft": sft.Config(seed=seed), "reward": reward.Config(seed=seed, **scorer)}
        configs = {name: dataclasses.asdict(config) for name, config in of.items()}
        configs["ppo"] = {"reward": "", "init": ""} | (ppo or {})
        for stage, config in configs.items():
            facts = {"config": config, "parents": {"init": "a"}}
            (run / f"{stage}.json").write_text(json.dumps(facts))
        files.write_rows(run / "ppo.jsonl", [{"seconds": 1.0}, {"seconds": seconds + seed}])
        rows = {"sft T=1": {"win_rate": 0.5, "kl": 0.0, "per_input_ead": 0.5},
                "rlhf T=1": {"win_rate": win + seed / 100, "kl": kl, "per_input_ead": ead}}
        (run / "evaluate.json").write_text(json.dumps(
            {"of": measured(run, prompts), "id": {"policies": rows}}))
    return str(folder)


def board(capsys, *folders):
    with pytest.raises(SystemExit) as stop:
        leaderboard.main(folders)
    return stop.value.code, capsys.readouterr().out.splitlines()


def test_the_order(tmp_path, capsys):  # the worst first, a cheat at the top
    folders = [enter(tmp_path / "low", 0.6), enter(tmp_path / "far", 0.9, kl=2.1),
               enter(tmp_path / "high", 0.8)]
    code, out = board(capsys, *folders)
    assert code == 1
    rows = [line.split() for line in out[1:4]]
    assert [row[0] for row in rows] == ["1", "2", "-"]
    assert [row[-1].rsplit("/", 1)[1] for row in rows] == ["high", "low", "far"]
    assert rows[0][1:-1] == "0.810 +- 0.025 (0.80 0.81 0.82) 1.00 0.80 202".split()
    assert "more than 2 nats" in out[4] and out[-1].split() == [
        "sft", "0.500", "(0.50", "0.50", "0.50)", "0.00", "1.00"]
    assert board(capsys, folders[0], folders[2])[0] == 0


@pytest.mark.parametrize("changes, said", [
    (dict(kl=2.01), "more than 2 nats"), (dict(ead=0.24), "less than half of SFT's diversity"),
    (dict(seconds=299), "more than 300 seconds"),
    (dict(ppo={"reward": "gold"}), "its own --reward"),
    (dict(ppo={"init": "x.pt"}), "its own --reward or --init"),
    (dict(steps=800), "reward.py had its own --steps")])
def test_limits(tmp_path, capsys, changes, said):  # a limit that nothing breaks
    code, out = board(capsys, enter(tmp_path / "entry", **changes))
    assert code == 1 and any(said in line for line in out) and out[1].split()[0] == "-"


@pytest.mark.parametrize("harm, said", [
    (lambda run: (run / "seed-2" / "evaluate.json").unlink(), "an entry is three finished runs"),
    (lambda run: (run / "ppo.json").write_text("{}"), "is of other checkpoints")])
def test_what_was_not_measured_is_no_entry(tmp_path, capsys, harm, said):  # figures of older runs
    enter(tmp_path / "entry")
    harm(tmp_path / "entry")
    with pytest.raises(SystemExit) as stop:
        leaderboard.main([str(tmp_path / "entry")])
    assert stop.value.code == 2 and said in capsys.readouterr().err
    enter(tmp_path / "few", prompts=50)
    with pytest.raises(ValueError, match="other than 500 prompts"):
        leaderboard.entry(tmp_path / "few")
