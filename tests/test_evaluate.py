"""What `python -m tests.evaluate` says of figures that were measured before."""

import json
import runpy
import sys

import pytest

from data import world
from tests import evaluate
from tests.evaluate import POLICIES, measured


def test_the_summary_of_kept_figures(tmp_path, capsys, monkeypatch):
    # nothing loaded, a best temperature by KL
    win = {("sft", 1.0): 0.4, ("sft", 0.7): 0.5, ("rlhf", 1.0): 0.6, ("rlhf", 0.7): 0.9}
    kl = {("sft", 0.7): 1.0, ("rlhf", 1.0): 0.9, ("rlhf", 0.7): 1.1}
    rows = {f"{p} T={t:g}": {"win_rate": win.get((p, t), 0.3), "kl": kl.get((p, t), 2.0),
                             "per_input_ead": 0.5} for p, t in POLICIES}
    for (p, t), row in zip(POLICIES, rows.values()):  # one half alone likes SFT at T .3
        lucky = (p, t) == ("sft", 0.3)
        row["halves"] = {"win_rate": [0.8 if lucky else row["win_rate"], 0.2 if lucky else
                                      row["win_rate"]], "kl": [row["kl"]] * 2}
    found = {s: {"policies": rows, "reward": {"gold": 0.7}} for s in world.SPLITS["instruct"]}
    for folder in (tmp_path / "instruct", tmp_path / "instruct" / "seed-1"):
        folder.mkdir(parents=True)
        for stage in ("sft", "reward", "ppo"):
            (folder / f"{stage}.json").write_text(json.dumps({"stage": stage}))
        (folder / "evaluate.json").write_text(json.dumps(found | {"of": measured(folder, 50)}))
    monkeypatch.setattr(sys, "argv", ["", "--data", "instruct", "--seeds", "0", "1", "-n", "50",
                                      "--out", str(tmp_path)])
    runpy.run_path(evaluate.__file__, run_name="__main__")
    said = capsys.readouterr().out
    assert said.count("instruct, ") == len(found)
    assert "SFT's best: T=0.7, win rate 0.500 +- 0.000 (0.50 0.50), KL 1.00" in said
    # the first half: .6 - .5; the other, at the temperatures that the first likes: .9 - .2
    assert "at no higher KL: T=1, win rate 0.600" in said and "gain 0.400" in said
    assert len({measured(folder, 50), measured(folder, 60), measured(folder, 50, "a-judge")}) == 3
    (folder / "ppo.json").write_text(json.dumps({"stage": "ppo", "step": 2}))  # trained again
    with pytest.raises(SystemExit):
        runpy.run_path(evaluate.__file__, run_name="__main__")
    assert "sft.pt does not exist" in capsys.readouterr().err
