"""
The runs that a study stands on: trained where they are missing, loaded, and refused where they do
not go together. What is made of them is kept beside them, with a mark of what it was made of.
"""

import contextlib
import hashlib
import json
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import torch

import data
import metrics
import ppo
import reward
import sft
from data import checkpoint, collect, encoders, files, rewards
from data.run import pick_device

# Weight of the KL penalty, chosen on each task's validation split. On instructions a lower
# temperature alone brings SFT far at little KL, so that a policy further away gains nothing on it.
BETA = {"summarise": 0.2, "instruct": 0.5}
SWEEP = {  # name: what is different from the main run of ppo.py
    **{f"{kl}-{beta:g}": dict(kl=kl, beta=beta) for kl in ("k1", "k2")
       for beta in (0.03, 0.1, 1.0)},
    "lr-1e-4": dict(lr=1e-4), "lr-4e-4": dict(lr=4e-4),
    "gold": dict(reward="gold", value="shared"), "beta-10": dict(beta=10.0), "shuffled": {}}
SIZES = {"64": dict(channels=64, heads=2), "192": dict(channels=192, heads=6)}  # beside 128


@contextlib.contextmanager
def timed(seconds, what):
    began = time.time()
    yield
    seconds[what] = time.time() - began


# ---- training ------------------------------------------------------------------------------------


def train_stage(config, seed, module, variant="", **flags):
    "Train a stage of this seed, or what is left of it, unless it is there -> {name: seconds}."
    stage, began = module.__name__, time.time()
    path = data.run_folder(config.data, seed, config.out) / variant / f"{stage}.pt"
    if path.exists():
        kind = "reward" if module is reward else "policy"
        _, record = checkpoint.load(path, kind, unfinished=True)
        if record["meta"].get("finished", True):
            return {}
        flags["resume"] = True
    if variant:
        flags["variant"] = variant
    module.train(module.Config(data=config.data, seed=seed, out=config.out, device=config.device,
                               **flags))
    return {f"{variant or stage}, seed {seed}": time.time() - began}


def main_flags(config, seed):
    """The flags of the main run of ppo.py, which its variants have too: those that it was trained
    with, perhaps by hand, or will be."""
    path = data.run_folder(config.data, seed, config.out) / "ppo.json"
    if not path.exists():
        return {"beta": BETA[config.data]} if config.data in BETA else {}
    flags = json.loads(path.read_text(encoding="utf-8"))["config"]
    own = ("data", "seed", "out", "device", "resume", "variant")
    return {name: value for name, value in flags.items() if name not in own}


def shuffled_labels(name, folder, seed):
    "A folder of the run's comparisons, each of which prefers the other text half of the time."
    rng, collected = np.random.default_rng(seed), folder / "comparisons.jsonl"
    for split in ("train", "validation"):
        if collected.exists():
            rows = [row for row in files.read_log(collected) if row["split"] == split]
        else:
            rows = [asdict(pair) for pair in data.comparisons(name, split)]
        for row in rows:
            if rng.random() < 0.5:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        files.write_rows(folder / "shuffled" / f"comparisons.{split}.jsonl", rows)
    return folder / "shuffled"


def train_variant(config, seed, name):
    """PPO once more with one thing changed; for the `shuffled` control, the reward model too ->
    {name: seconds}."""
    flags = main_flags(config, seed) | SWEEP[name]
    if name == "shuffled":
        folder = data.run_folder(config.data, seed, config.out)
        if not (folder / name / "reward.pt").exists():
            shuffled_labels(config.data, folder, seed)
        train_stage(config, seed, reward, name, comparisons=str(folder / name))
        flags["reward"] = str(folder / name / "reward.pt")
    return train_stage(config, seed, ppo, name, **flags)


def train_all(config, **size):
    """Every stage of every seed, and the sweep, unless they are there -> {name: seconds}. `size`:
    the flags of a base that is pretrained first."""
    seconds = {}
    for seed in range(config.seeds):
        seconds |= train_stage(config, seed, sft, init=config.init, **size)
        seconds |= train_stage(config, seed, reward)
        seconds |= train_stage(config, seed, ppo, **main_flags(config, seed))
        for name in SWEEP if config.sweeps else ():
            if name != "gold" or config.data in data.WORLD:  # only the world has a gold score
                seconds |= train_variant(config, seed, name)
    return seconds


def sweep_splits(runs, splits):
    "{policy: splits} of the sweep; on validation, too, is what a choice is made among."
    where = {name: splits for name in SWEEP if name in runs[0].networks}
    where |= {name: ("validation", *splits) for name in where if name.startswith("lr-")}
    return where | {"rlhf": ["validation"], "sft": ["validation"]}


# ---- loading -------------------------------------------------------------------------------------


def load_run(config, seed):
    """The checkpoints of one seed, loaded once, with their digests. ValueError if they do not go
    together: another tokeniser, or trained from another sft.pt or reward.pt."""
    folder, device = data.run_folder(config.data, seed, config.out), pick_device(config.device)
    policy, record = checkpoint.load_frozen(folder / "sft.pt", "policy", device)
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    networks, digests = {"sft": policy}, {"sft": record["digest"]}
    init = record["meta"]["config"]["init"]
    paths = {"base": {"base": sft.BASE, "scratch": folder / "base.pt"}.get(init, init),
             "reward": folder / "reward.pt", "ppo": folder / "ppo.pt"}
    if config.sweeps:
        paths |= {name: path for name in SWEEP if (path := folder / name / "ppo.pt").exists()}
    for name, path in paths.items():
        kind = "reward" if name == "reward" else "policy"
        networks[name], record = checkpoint.load_frozen(path, kind, device, tokenizer.fingerprint)
        digests[name] = record["digest"]
        parents = {} if name == "base" else {"init": "sft"}
        if name == "ppo" and not record["meta"]["config"]["reward"]:
            parents["reward"] = "reward"
        for parent, stage in parents.items():
            if record["meta"]["parents"].get(parent) != digests[stage]:
                raise ValueError(f"{path} was not trained from {folder / stage}.pt, but from "
                                 f"another: move it away, and it is trained again")
    return SimpleNamespace(
        folder=folder, seed=seed, device=device, tokenizer=tokenizer, networks=networks,
        digests=digests, judges={"proxy": reward.scorer(networks["reward"], tokenizer.pad)})


def load_runs(config):
    """The runs of all seeds. With several, each has a second judge of its answers: the reward model
    of the next seed, which its policy was not trained against (the paper's proxy check). One run
    alone has it too, where `reward.py --seed 1 --init` that run's sft.pt has made one."""
    runs = [load_run(config, seed) for seed in range(config.seeds)]
    if len(runs) > 1:
        for run, following in zip(runs, runs[1:] + runs[:1]):
            run.judges["other"] = following.judges["proxy"]
            run.digests["other"] = following.digests["reward"]
    elif (path := data.run_folder(config.data, 1, config.out) / "reward.pt").exists():
        [run] = runs
        model, record = checkpoint.load_frozen(path, "reward", run.device,
                                               run.tokenizer.fingerprint)
        if record["meta"]["parents"]["init"] == run.digests["sft"]:
            run.judges["other"] = reward.scorer(model, run.tokenizer.pad)
            run.digests["other"] = record["digest"]
    return runs


# ---- what is made of them ------------------------------------------------------------------------


def kept(path, of, make):
    "The rows of a file that was made `of` the same things; else they are made anew, and kept."
    mark = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
    rows = files.read_log(path) if path.exists() else []
    if not rows or any(row.get("of") != mark for row in rows):
        rows = [row | {"of": mark} for row in make()]
        files.write_rows(path, rows)
    return rows


def reward_quality(config, runs, split):
    """What the reward model of each run knows of the truth -> {measure: [number of each seed]}, see
    collect.quality."""
    def of_run(run):
        found = collect.quality(rewards.text_scorer(run.judges["proxy"], run.tokenizer),
                                rewards.text_sampler(run.networks["sft"], run.tokenizer),
                                config.data, split, max(config.inputs * 5 // 2, 60), run.seed)
        return [found]

    each = [kept(run.folder / "samples" / f"{split}.quality.json",
                 [run.digests["sft"], run.digests["reward"], config.inputs], lambda: of_run(run))[0]
            for run in runs]
    return {name: [row[name] for row in each] for name in each[0] if name != "of"}


def encoder(run, texts):
    """`embed` for embedding diversity: mean hidden state of the base model over a text's tokens,
    less the mean over `texts` (uncentred, all states point the same way). Cached by text."""
    network, tokenizer, cache = run.networks["base"], run.tokenizer, {}

    @torch.no_grad()
    def states(new):
        ids = [tokenizer.response(text) for text in new]
        out = np.zeros((len(new), network.config.channels))
        for index in data.batches([len(r) for r in ids], 256):
            rows = data.pad_right([ids[i] for i in index], tokenizer.pad).to(run.device)  # (B, T)
            is_real = (rows < tokenizer.pad)[..., None]  # (B, T, 1)
            hidden = torch.where(is_real, network(rows), 0.0)  # (B, T, C)
            out[index] = (hidden.sum(1) / is_real.sum(1)).float().cpu().numpy()
        return out

    centre = states(texts).mean(0)

    def embed(wanted):
        new = list(dict.fromkeys(text for text in wanted if text not in cache))
        if new:
            cache.update(zip(new, states(new) - centre))
        return [cache[text] for text in wanted]
    return embed


def diversities_of(config, run, rows):
    """Those of a list of texts that need a model -> {"embedding": texts -> number}, and "nli" where
    a relation is known."""
    embed = (encoders.sentences(config.encoder) if config.encoder
             else encoder(run, [row["reference"] for row in rows]))
    found = {"embedding": lambda texts: metrics.embedding_diversity(texts, embed)}
    relation = config.nli and encoders.nli(config.nli)
    if config.data in data.WORLD and not relation:
        from data import world

        relation = world.of(rows[0]["prompt"]).relation
    if relation:
        found["nli"] = lambda texts: metrics.nli_diversity(texts, relation)
    return found
