"""
The leaderboard: who wins most against people's references without running away from SFT?

    python -m tests.evaluate --seeds 0 1 2 --out mine        # measures three finished runs
    python -m tests.leaderboard mine/summarise other/summarise

Ranks run folders by RLHF's gold win rate on the test prompts in distribution, at temperature 1,
mean of seeds 0, 1 and 2, and says which limits a folder breaks. SFT and the reward model are what
their stages make without flags; what an entry changes is ppo.py, and the flags it is given.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

import metrics
import reward
import sft
from data import files
from data.run import fail
from tests.evaluate import measured

PROMPTS = 500  # as tests.evaluate has them without a flag
KL = 2.0  # nats from SFT per response, at most
DIVERSITY = 0.5  # of SFT's per-input EAD, at least
SECONDS = 300  # of ppo.py, by its own log, on one core (OMP_NUM_THREADS=1), at most
SEEDS = (0, 1, 2)


def read(path):
    if not path.exists():
        raise ValueError(f"{path} does not exist: an entry is three finished runs (--seed 0, 1 and "
                         f"2), measured by python -m tests.evaluate --seeds 0 1 2")
    return json.loads(path.read_text(encoding="utf-8"))


def entry(folder):
    """One row of the board -> {"folder", "broken": [sentence, ...], "sft_win_rate", and over the
    seeds "win_rate", "kl", "ead" as a share of SFT's, "seconds"}. ValueError if it is incomplete.
    """
    rows, broken = {name: [] for name in ("win_rate", "sft_win_rate", "kl", "ead", "seconds")}, []
    for seed in SEEDS:
        run = Path(folder) / f"seed-{seed}" if seed else Path(folder)
        found = read(run / "evaluate.json")
        kept = {stage: read(run / f"{stage}.json") for stage in ("sft", "reward", "ppo")}
        if found["of"] != measured(run, PROMPTS):
            raise ValueError(f"{run / 'evaluate.json'} is of other checkpoints or other than "
                             f"{PROMPTS} prompts: python -m tests.evaluate --seeds 0 1 2")
        for stage, module in (("sft", sft), ("reward", reward)):
            usual = asdict(module.Config(seed=seed))
            other = [k for k in usual if k not in ("out", "device", "resume", "micro")
                     and kept[stage]["config"].get(k, usual[k]) != usual[k]]
            broken += [f"seed {seed}: {stage}.py had its own --{k}" for k in other]
        if kept["ppo"]["config"]["reward"] or kept["ppo"]["config"]["init"]:
            broken.append(f"seed {seed}: ppo.py had its own --reward or --init")
        if kept["ppo"]["parents"]["init"] != kept["reward"]["parents"]["init"]:
            broken.append(f"seed {seed}: policy and reward model come from different SFT policies")
        before, after = (found["id"]["policies"][f"{p} T=1"] for p in ("sft", "rlhf"))
        rows["win_rate"].append(after["win_rate"])
        rows["sft_win_rate"].append(before["win_rate"])
        rows["kl"].append(after["kl"])
        rows["ead"].append(after["per_input_ead"] / before["per_input_ead"])
        rows["seconds"].append(files.read_log(run / "ppo.jsonl")[-1]["seconds"])
    for holds, said in ((np.mean(rows["kl"]) <= KL, f"more than {KL:g} nats from SFT"),
                        (np.mean(rows["ead"]) >= DIVERSITY, "less than half of SFT's diversity"),
                        (max(rows["seconds"]) <= SECONDS, f"more than {SECONDS} seconds")):
        broken += [said] * (not holds)
    return {"folder": str(folder), "broken": broken, **rows}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.leaderboard", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="RUN_FOLDER", help="such as out/summarise")
    try:
        entries = [entry(folder) for folder in parser.parse_args(argv).folders]
    except (ValueError, OSError) as error:
        fail(error)
    entries.sort(key=lambda e: (bool(e["broken"]), -np.mean(e["win_rate"])))
    print("rank  win rate (95 %, each seed)           KL  EAD/SFT  seconds  run folder")
    for rank, e in enumerate(entries, 1):
        mean, _, high, _ = metrics.t_interval(e["win_rate"])
        each = f"{mean:.3f} +- {high - mean:.3f} ({' '.join(f'{x:.2f}' for x in e['win_rate'])})"
        print(f"{'-' if e['broken'] else rank:>4}  {each:34}{np.mean(e['kl']):5.2f}"
              f"{np.mean(e['ead']):9.2f}{max(e['seconds']):9.0f}  {e['folder']}")
        for said in e["broken"]:
            print(f"      {said}")
        if rank == 1:
            seeds = " ".join(f"{x:.2f}" for x in e["sft_win_rate"])
            note = f"{np.mean(e['sft_win_rate']):.3f} ({seeds})"
    print(f" sft  {note:34}{0:5.2f}{1:9.2f}")
    sys.exit(1 if any(e["broken"] for e in entries) else 0)


if __name__ == "__main__":
    main()
