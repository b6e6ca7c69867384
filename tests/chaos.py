"""
Bad luck on purpose: kill every stage at random moments, go on with --resume, and find the same.

    python -m tests.chaos --kills 25 --seed 3     # of each stage: about a second a kill
    python -m tests.chaos --long 2000             # PPO iterations with flat memory and handles

A process is killed (SIGKILL: nothing of its own runs any more) at a random moment, every other time
as soon as a file is being written, and started again until it has finished. Everything in its run
folder must then be what an undisturbed run leaves there, bit for bit, but for seconds, flags, and
digests of what has flags in it.
"""

import argparse
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

import bon
import ppo
import reward
import rlhf
import sft
from data import checkpoint, files
from data.run import cli, flag

STAGES = {  # module and flags, in the order in which one needs the other
    "sft": (sft, dict(steps=8, batch=5, every=2, eval_size=8)),
    "reward": (reward, dict(steps=8, batch=5, every=2, eval_size=8)),
    "ppo": (ppo, dict(steps=6, batch=8, every=2, minibatches=2)),
    "bon": (bon, dict(n=4, pool=6, prompts=8)),
    "rlhf": (rlhf, dict(inputs=4, samples=2))}
FREE = {"seconds", "tokens_per_second", "peak_share", "machine", "config", "settings", "parents",
        "of"}  # may differ


def examples(folder, **splits):
    "Writes short examples and comparisons: 40 to train, 8 to validate, and those of more `splits`."
    pairs = [(c, t) for c in "red green blue black white brown".split()
             for t in "hat boat door lamp shoe cake fish book".split()]
    for split, where in {"train": slice(40), "validation": slice(40, None), **splits}.items():
        files.write_rows(folder / f"{split}.jsonl", [
            {"prompt": f"Name the {c} {t}.\nAnswer:",
             "response": f"The {c} {t}" + " it is" * (i % 3)}
            for i, (c, t) in enumerate(pairs[where])])
        files.write_rows(folder / f"comparisons.{split}.jsonl", [
            {"prompt": f"Name the {c} {t}.\nAnswer:", "chosen": f"The {c} {t}",
             "rejected": f"No {t}" + " no" * (i % 4)} for i, (c, t) in enumerate(pairs[where])])


def pretrain(folder, **changes):
    "A small base of the toy set in `folder` -> its path."
    return sft.train(sft.Config(**{**dict(
        stage="base", data=str(folder / "data"), out=str(folder / "base"), steps=4, batch=5,
        every=99, eval_size=8, layers=2, heads=2, channels=32, context=40, prompt_tokens=24,
        response_tokens=8, device="cpu"), **changes}))


def toy(folder):
    "A small set of examples and comparisons, `folder`/data, and a base that reads it."
    (folder / "data").mkdir(parents=True)
    examples(folder / "data", test=slice(40, 44), far=slice(44, None))
    return pretrain(folder)


def argv_of(stage, folder, out, /, *more, own=False, **changes):
    """The command line of a stage on the toy set, with `changes` of its flags, and `more` words.
    What it stands on is in `folder`/whole, or, if `own`, in its own run folder."""
    flags = {**STAGES[stage][1], "data": folder / "data", "out": out, "device": "cpu"}
    if stage in ("sft", "rlhf"):
        flags["init"] = folder / "base/data/base.pt"
    elif not own:
        flags["init"] = folder / "whole/sft/data/sft.pt"
        if stage in ("ppo", "bon"):
            flags["reward"] = folder / "whole/reward/data/reward.pt"
    words = [word for name, value in (flags | changes).items()
             for word in ([flag(name)] if value is True else [flag(name), value])]
    return [str(word) for word in (*words, *more)]


def go(stage, /, *args, **options):
    "Run a stage by such a command line; the study's own stages are as small."
    module = STAGES[stage][0]
    with contextlib.ExitStack() as patches:
        for other in (sft, reward, ppo) if stage == "rlhf" else ():
            patches.enter_context(mock.patch.object(other, "Config", functools.partial(
                other.Config, **STAGES[other.__name__][1])))
        return cli(module.Config, module.train, argv_of(stage, *args, **options))


def begin(stage, folder, out, *more, before=lambda: None):
    "The same in a process of its own, which does something else `before`."
    return apart(lambda: go(stage, folder, out, *more), folder, before)


def apart(work, folder, before=lambda: None):
    "Do something in a copy of this process, which says what it has to say in `folder`/last.txt."
    def run():
        before()
        sys.stdout = sys.stderr = open(folder / "last.txt", "w", buffering=1)
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # its own is shared: who is killed would hold it for ever
        work()

    # a copy of this process, which has imported everything already
    process = multiprocessing.get_context("fork").Process(target=run)
    sys.stdout.flush()
    process.start()
    return process


def writes(folder):
    return folder.exists() and any(name.endswith(".tmp") for name in os.listdir(folder))


def kill(process, folder, rng, span):
    "Kill it within `span` seconds, every other time at the next write -> whether it came to that."
    end, at_a_write = time.monotonic() + rng.uniform(0, span), rng.random() < 0.5
    while process.is_alive() and time.monotonic() < end:
        time.sleep(0.001)
    while at_a_write and process.is_alive() and not writes(folder):
        pass
    if at_a_write:
        time.sleep(rng.choice([0, 0, 0.001, 0.003]))
    process.kill()
    process.join()
    return process.exitcode != 0


def found(folder):
    "What a run left -> {name: content}, without what may differ."
    def bare(row):
        return {name: value for name, value in row.items() if name not in FREE}

    content = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            record = torch.load(path, weights_only=True)
            content[name] = checkpoint.digest({**record, "meta": bare(record["meta"])})
        elif path.suffix == ".json":
            content[name] = bare(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            content[name] = [bare(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.stem == "report":  # report.json for readers, with minutes
            content[name] = None
        elif path.is_file() and path.name != ".lock":
            content[name] = path.read_bytes()
    return content


def undisturbed(stage, folder):
    "A whole run of a stage in `folder`/whole -> what it left, and the seconds that it took."
    began = time.monotonic()
    process = begin(stage, folder, folder / "whole" / stage)
    process.join()
    assert process.exitcode == 0, (folder / "last.txt").read_text()
    return found(folder / "whole" / stage), time.monotonic() - began


def endured(stage, folder, kills, seed):
    """
    Kill a stage `kills` times on its way to the end, as often as it gets there -> (runs, kills
    while a file was written). `folder` holds the toy set and whole runs of the earlier stages, to
    which this adds one of its own. AssertionError for the first file that differs.
    """
    rng, (expected, span) = random.Random(f"{stage} {seed}"), undisturbed(stage, folder)
    out, path = folder / "parts", folder / "parts" / "data" / f"{stage}.pt"
    runs, done, halves = 0, 0, 0
    while True:
        process = begin(stage, folder, out, *["--resume"] * (path.exists() and stage != "rlhf"))
        if done == kills:
            process.join()
        elif kill(process, path.parent, rng, span):
            done, halves = done + 1, halves + writes(path.parent)
            for saved in path.parent.glob("*.pt"):  # whole at any moment
                kind = "reward" if saved.stem == "reward" else "policy"
                checkpoint.load(saved, kind, unfinished=True)
            continue
        runs += 1
        assert process.exitcode == 0, (folder / "last.txt").read_text()
        now = found(out)
        assert now.keys() == expected.keys(), (stage, now.keys() ^ expected.keys())
        for name in now:
            assert now[name] == expected[name], f"{stage}, seed {seed}: {name} differs"
        shutil.rmtree(out)
        if done == kills:
            return runs, halves


def long(iterations):
    """
    PPO for this many iterations at toy size -> (iterations, 4): live tensors, open files and
    megabytes of memory at each, read while it scores, and the second that it began to.
    """
    rows = []

    def reward_fn(prompt_ids, response_ids):
        if len(prompt_ids) == 6:  # an iteration's, not those of validation
            tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows.append((tensors, len(os.listdir("/proc/self/fd")), pages * 4096 / 2**20,
                         time.monotonic()))
        return torch.tensor([float(len(r)) for r in response_ids])

    with tempfile.TemporaryDirectory() as name:
        base = toy(Path(name))
        ppo.train(ppo.Config(data=f"{name}/data", init=str(base), out=name, steps=iterations,
                             batch=6, samples=2, minibatches=2, value="shared", device="cpu"),
                  reward_fn)
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--long", type=int, default=0, help="PPO iterations, instead of kills")
    args = parser.parse_args(argv)
    if args.long:
        rows = long(args.long)
        size = max(len(rows) // 20, 1)
        for i in range(size, len(rows), size):
            spent = (rows[i][3] - rows[i - size][3]) / size
            print("iteration {:6}  {} tensors  {} files  {:.1f} MB".format(i + 1, *rows[i][:3])
                  + f"  {1000 * spent:.0f} ms an iteration")
        return
    with tempfile.TemporaryDirectory() as name:
        toy(Path(name))
        for stage in STAGES:
            began = time.monotonic()
            runs, halves = endured(stage, Path(name), args.kills, args.seed)
            print(f"{stage:>6}: {args.kills} kills, {halves} in a write, on the way through {runs} "
                  f"runs, each as if undisturbed ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
