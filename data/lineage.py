"""
The runs that a study stands on: trained where they are missing, here or by a plan's commands on any
machines; loaded, and refused where they do not go together. What is made of them is kept beside
them, with a mark of what it was made of.

The main run is that of the first seed, perhaps made by hand. Every other run has its flags, and
differs in one thing: the seed, what SWEEP names, the labels of the reward model, or the width.
"""

import contextlib
import hashlib
import json
import re
import time
from dataclasses import asdict, astuple, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import data
import metrics
import ppo
import reward
import sft
from data import checkpoint, collect, encoders, files, networks, rewards
from data.run import FREE, command_of, flag, lock, pick_device, quoted

STAGES = {"sft": sft, "reward": reward, "dpo": reward, "ppo": ppo}  # by the file that they write
IMPLICIT = 1.0  # beta of DPO: with .1 and .3 it goes 14 and 3 nats away for no more (validation)
# Weight of the KL penalty. That of instructions is chosen on validation prompts, by what RLHF gains
# no further from SFT than SFT's best temperature is, .8 nats: beta 1, .5 and .3 gain .06, .10 and
# .02, and with .2 and .1 RLHF is nowhere so near.
BETA = {"summarise": 0.25, "instruct": 0.5}
SWEEP = {  # name: what is different from the main run of ppo.py
    **{f"{kl}-{beta:g}": dict(kl=kl, beta=beta) for kl in ("k1", "k2")
       for beta in (0.03, 0.1, 1.0)},
    "lr-1e-4": dict(lr=1e-4), "lr-4e-4": dict(lr=4e-4),
    "gold": dict(reward="gold"), "beta-10": dict(beta=10.0), "shuffled": {}}
ARMS = {name: dict(baseline=name) for name in ("rloo", "grpo")}  # instead of a value network
SIZES = {"64": dict(channels=64, heads=2),  # a base of its own each, of as many steps
         "192": dict(channels=192, heads=6)}
PLACE = ("data", "seed", "out", "device", "resume", "variant")  # flags that say which run it is


def home(config, seed):
    return data.run_folder(config.data, seed, config.out)


def prompts_of(config, split):
    "The split that the study's prompts of a test split are from."
    return f"final-{split}" if config.final and split != "validation" else split


# ---- training ------------------------------------------------------------------------------------


def made_with(folder, name):
    """The flags, less PLACE, that <name>.pt in a seed's folder was trained with; {} if it is not
    there. A parent in that folder goes by what names it for every seed."""
    read = lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["config"]
    if not (folder / f"{name}.pt").exists():
        return {}
    flags = {key: value for key, value in read(name).items() if key not in PLACE}
    for key, own in (("init", "sft.pt"), ("reward", "reward.pt")):
        if flags.get(key) and Path(flags[key]).resolve() == (folder / own).resolve():
            flags[key] = ""
    if Path(flags["init"]).name == "base.pt" and (folder / "base.json").exists():
        if read("base")["init"] == "scratch":  # and not made by hand, as one for all seeds
            flags["init"] = "scratch"
    return flags


def main_flags(config, stage):
    "The flags of the main run of a stage: of the first seed that has it, or what it will have."
    given = {"init": config.init} if stage == "sft" and config.init != "base" else {}
    for seed in range(config.seeds):
        if flags := made_with(home(config, seed), stage):
            return flags | given
    if stage == "ppo" and config.data in BETA:
        given["beta"] = BETA[config.data]
    if stage == "dpo":  # the same comparisons
        given["implicit"] = IMPLICIT
        given |= {k: x for k, x in main_flags(config, "reward").items() if k in collect.SAME}
    if stage != "sft":  # as the stage before it, so that the frozen layers are the same
        before = main_flags(config, "reward" if stage == "ppo" else "sft")
        given["freeze"] = before.get("freeze", 0.0)
    return given


def sweep(config):
    "{name: flags of ppo.py} of the runs in SWEEP, less those that are the main run once more."
    main = asdict(ppo.Config(**main_flags(config, "ppo")))
    return {name: changes for name, changes in SWEEP.items()
            if config.sweeps and (main != main | changes or name == "shuffled")
            and (name != "gold" or config.data in data.WORLD)}  # nothing else has a gold score


def run_of(config, seed, stage, flags):
    return stage, STAGES[stage].Config(data=config.data, seed=seed, out=config.out,
                                       device=config.device, **flags)


def arms(config):
    """{name: flags of ppo.py} of the runs of `--arms`. ValueError of one that is none, or if the
    main run draws one response to a prompt, so that there is no group."""
    names = config.arms.split(",") if config.arms else []
    if unknown := [name for name in names if name not in ARMS]:
        raise ValueError(f"--arms {','.join(unknown)}: there are {' and '.join(ARMS)}")
    if names and ppo.Config(**main_flags(config, "ppo")).samples == 1:
        raise ValueError("--arms compares the responses to a prompt with each other, and the main "
                         "run draws one: train it with --samples 4")
    return {name: ARMS[name] for name in names}


def variant(config, seed, name):
    """Yields (stage, its Config): PPO once more with one thing changed, for the `shuffled` control
    after a reward model of shuffled labels."""
    flags = main_flags(config, "ppo") | (SWEEP | ARMS)[name] | {"variant": name}
    if name == "shuffled":
        folder = home(config, seed) / name
        labels = {"comparisons": str(folder), "annotator": "world", "variant": name}
        yield run_of(config, seed, "reward", main_flags(config, "reward") | labels)
        flags["reward"] = str(folder / "reward.pt")
    yield run_of(config, seed, "ppo", flags)


def all_runs(config, like=None, **size):
    """Yields (stage, its Config), of every stage of every seed, and of the sweep. `size`: flags of
    a base that is pretrained first, all others being those of the study `like`."""
    flags = {stage: main_flags(like or config, stage) for stage in STAGES}
    flags["sft"] |= size
    for seed in range(config.seeds):
        yield from (run_of(config, seed, *stage) for stage in flags.items())
        for name in [*arms(config), *sweep(config)]:
            yield from variant(config, seed, name)


def sizes(config):
    """Yields (width, the study of it, its runs) for each of SIZES: of the first seed alone, from a
    base that is pretrained first, and without DPO."""
    for name, size in SIZES.items() if config.sweeps and config.data in data.WORLD else ():
        small = replace(config, out=f"{config.out}/size-{name}", seeds=1, full=False, sweeps=False,
                        arms="")
        runs = all_runs(small, config, init="scratch", **size)
        yield name, small, (run for run in runs if run[0] != "dpo")


def missing(runs):
    """Yields (stage, Config, folder of its seed, its checkpoint, what to call it) of those of
    `runs`, (stage, its Config) each, that are not there, and, to be resumed, of those that have not
    finished. ValueError, before that, if one that is there was trained with other flags."""
    wanted = []
    for stage, config in runs:
        folder, name = home(config, config.seed), getattr(config, "variant", "") or stage
        file = name if name == stage else f"{name}/{stage}"
        wanted.append((stage, config, folder, folder / f"{file}.pt", f"{name}, seed {config.seed}"))
        for key, had in made_with(folder, file).items():
            needed = getattr(config, key)
            # Of paths, the last part counts: a folder may have been moved.
            if key not in FREE and had != needed and Path(str(had)).name != Path(str(needed)).name:
                raise ValueError(
                    f"{folder / file}.pt was trained with {flag(key)} {had}, and this study needs "
                    f"{needed}: a run has the flags of seed 0 but for what it is to show; move it "
                    f"away, and it is trained again")
    for stage, config, folder, path, name in wanted:
        if path.exists():
            _, record = checkpoint.load(path, "reward" if stage == "reward" else "policy",
                                        unfinished=True)
            if record["meta"].get("finished", True):
                continue
        if path.exists() or config.init == "scratch":  # whose base may be there, or a part of it
            config = replace(config, resume=True)
        yield stage, config, folder, path, name


def train(runs):
    "Train what is `missing` of runs -> {name: seconds}."
    seconds = {}
    for stage, config, folder, _, name in missing(runs):
        began = time.time()
        if stage == "reward" and config.variant and not config.resume:
            shuffled_labels(config.data, folder, config.seed)
        STAGES[stage].train(config)
        seconds[name] = seconds.get(name, 0) + time.time() - began
    return seconds


def shuffled_labels(name, folder, seed):
    """Writes the comparisons that the reward model in this folder learned from, each of which now
    prefers the other text half of the time."""
    rng, main = np.random.default_rng(seed), made_with(folder, "reward")
    if not main:
        raise FileNotFoundError(f"{folder / 'reward.pt'} does not exist, and these would be its "
                                f"labels; make a reward with `python reward.py`.")
    _held = lock(folder / "shuffled")  # until this function ends
    source = main["comparisons"] or name
    collected = source in data.WORLD or main["annotator"] != "world"
    for split in ("train", "validation"):
        rows = (files.read_log(folder / "comparisons.jsonl") if collected else
                [asdict(c) | c.meta | {"split": split} for c in data.comparisons(source, split)])
        rows = [row for row in rows if row["split"] == split]
        for row in rows:
            if rng.random() < 0.5:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        files.write_rows(folder / "shuffled" / f"comparisons.{split}.jsonl", rows)


def sweep_splits(config, splits):
    "{policy: splits} of the sweep; on validation, too, is what a choice is made among."
    where = {name: ("validation", *splits) if name.startswith(("lr-", "k")) else splits
             for name in sweep(config)}
    return where | {"rlhf": ["validation"], "sft": ["validation"]} if where else {}


# ---- the same by other processes, on any machines that share a folder ----------------------------


def plan(config):
    """Yields (command, files of earlier ones that must be there first, the file that it makes) of
    each run that a study would train. To give a command twice, or on two machines at once, does no
    harm: the second finds its run finished, or its folder locked."""
    made = []
    for stage, run, folder, path, _ in missing([
            *all_runs(config), *(run for *_, runs in sizes(config) for run in runs)]):
        steps = [(command_of(f"{STAGES[stage].__name__}.py", replace(run, resume=True)), path)]
        if stage == "reward" and run.variant and not run.resume:
            labels = ("-m", "data", "shuffle", run.data, "--seed", run.seed, "--out", run.out)
            steps.insert(0, (quoted("python", *labels), path.with_name("comparisons.train.jsonl")))
        for command, makes in steps:  # in a folder one after the other: it has one lock
            yield command, [p for p in made if p.parent == makes.parent or p in (
                folder / "sft.pt", folder / "reward.pt")], makes
            made.append(makes)


def blocks(rows):
    "Rows of plans -> lists of them, each of which needs only what is made by those before."
    place = {}  # of the list that makes a file
    for _, needs, makes in rows:
        place[makes] = 1 + max((place[path] for path in needs), default=-1)
    return [[row for row in rows if place[row[2]] == k] for k in sorted({*place.values()})]


def as_lines(rows, last):
    "Rows of plans, and the command of the study, as lines of a shell."
    lines = ["# Lines of a block may run side by side, when the blocks before it are done. A line "
             "whose run", "# has finished says so; one that was killed goes on.", ""]
    for k, block in enumerate(blocks(rows), 1):
        lines += [f"# block {k}", *(command for command, _, _ in block), ""]
    return "\n".join([*lines, "# the study, which finds all of them", last])


def as_makefile(rows, last):
    """The same for GNU make, what others wait for first. No target is a file to make, as that is
    there before its run has finished: the command knows. ValueError for what make cannot name."""
    rows = [(command, [path.as_posix() for path in needs], makes.as_posix())
            for block in blocks(rows) for command, needs, makes in block]
    for _, _, makes in rows:
        if not re.fullmatch(r"[\w./+@,-]+", makes):
            raise ValueError(f"make cannot name {makes}: give names of letters, digits and "
                             f"-_./ alone to --out and --data, or --plan sh")
    lines = ["# make -k -j2 -f THIS_FILE. A line whose run has finished says so; one that was "
             "killed goes on.", "# RUN='srun -n1' gives each line to a queue, and waits for its "
             "end.", "RUN =",
             "FILES = " + " \\\n  ".join(makes for _, _, makes in rows), ".PHONY: all $(FILES)"]
    for command, needs, makes in [(last, ["$(FILES)"], "all"), *rows]:
        lines += ["", " ".join([f"{makes}:", *needs]), "\t$(RUN) " + command.replace("$", "$$")]
    return "\n".join(lines)


# ---- loading -------------------------------------------------------------------------------------


def share(first, network):
    "Makes a network hold, and compute (networks.kept_output), what it has frozen with the first."
    if first.frozen:
        with contextlib.suppress(ValueError):  # trained from another base: then nothing
            networks.share_frozen(first, network)


def load_run(config, seed, first=None):
    """The checkpoints of one seed, loaded once, with their digests; DPO's and those of the sweep if
    they are there. What their training has frozen is shared with `first`, a policy (else this
    run's SFT). ValueError if they do not go together: another tokeniser, or trained from another
    sft.pt or reward.pt."""
    folder, device = home(config, seed), pick_device(config.device)
    policy, record = checkpoint.load_frozen(folder / "sft.pt", "policy", device)
    if first is None:
        networks.freeze(first := policy, record["meta"]["config"]["freeze"])
        policy.requires_grad_(False)
    share(first, policy)
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    loaded, digests, implicit = {"sft": policy}, {"sft": record["digest"]}, None
    init = made_with(folder, "sft")["init"]
    paths = {"base": {"base": sft.BASE, "scratch": folder / "base.pt"}.get(init, init),
             "reward": folder / "reward.pt", "ppo": folder / "ppo.pt"}
    if (path := folder / "dpo.pt").exists():
        paths["dpo"] = path
    others = [*arms(config), *(SWEEP if config.sweeps else [])]
    paths |= {name: path for name in others if (path := folder / name / "ppo.pt").exists()}
    for name, path in paths.items():
        kind = "reward" if name == "reward" else "policy"
        loaded[name], record = checkpoint.load_frozen(path, kind, device, tokenizer.fingerprint)
        digests[name], made = record["digest"], record["meta"]
        share(first, loaded[name])
        if name == "ppo":
            digests["optimised"] = made["parents"].get("reward")  # with --reward not reward.pt
        if name == "dpo":
            implicit = reward.implicit_scorer(loaded[name], policy, made["config"]["implicit"],
                                              tokenizer.pad)
        stands_on = {} if name == "base" else {"init": "sft"}
        if name != "base" and made["config"].get("reward") == "":
            stands_on["reward"] = "reward"
        for parent, stage in stands_on.items():
            if made["parents"].get(parent) != digests[stage]:
                raise ValueError(f"{path} was not trained from {folder / stage}.pt, but from "
                                 f"another: move it away, and it is trained again")
    return SimpleNamespace(
        folder=folder, seed=seed, device=device, tokenizer=tokenizer, networks=loaded,
        digests=digests, judges={"proxy": reward.scorer(loaded["reward"], tokenizer.pad)},
        implicit=implicit, references={})


def load_runs(config):
    """The runs of all seeds. Each has a second judge of its answers, which its policy was not
    trained against (the paper's proxy check): the reward model that `--judge` names, or else that
    of the next seed. One run alone has it too, where `reward.py --seed 1 --init` that run's sft.pt
    has made one. A copy of what RLHF optimised is none; ValueError if `--judge` names that."""
    runs, others = [load_run(config, 0)], []
    optimised = lambda run: (run.digests["reward"], run.digests["optimised"])
    first = runs[0].networks["sft"]
    runs += [load_run(config, seed, first) for seed in range(1, config.seeds)]
    path, named = home(config, 1) / "reward.pt", config.judge.endswith(".pt")
    if len(runs) > 1 and not named:
        others = [(run.judges["proxy"], run.digests["reward"]) for run in runs[1:] + runs[:1]]
    elif named or path.exists():
        path = Path(config.judge) if named else path
        model, record = checkpoint.load_frozen(path, "reward", runs[0].device,
                                               runs[0].tokenizer.fingerprint)
        share(first, model)
        if named and any(record["digest"] in optimised(run) for run in runs):
            raise ValueError(f"--judge {path} is what RLHF optimised: name another reward model")
        if named or record["meta"]["parents"]["init"] == runs[0].digests["sft"]:
            others = [(reward.scorer(model, runs[0].tokenizer.pad), record["digest"])] * len(runs)
    if any(digest in optimised(run) for run, (_, digest) in zip(runs, others)):
        others = []  # copies of what RLHF optimised judge nobody
    for run, (judge, digest) in zip(runs, others):
        run.judges["other"], run.digests["other"] = judge, digest
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


def reward_quality(config, runs, split, of="reward"):
    """What the reward model of each run, or the implicit one `of` "dpo", knows of the truth ->
    {measure: [number of each seed]}, see collect.quality."""
    n, each, stored = max(config.inputs * 5 // 2, 60), [], []
    split = prompts_of(config, split)
    if config.data not in data.WORLD:
        stored = [astuple(c)[:3] for c in data.comparisons(config.data, split, n)]
    for run in runs:
        name = "quality" if of == "reward" else f"quality-{of}"
        [row] = kept(run.folder / "samples" / f"{split}.{name}.json",
                     [run.digests["sft"], run.digests[of], n, stored], lambda: [
                         collect.quality(*as_texts(run, of), config.data, split, n, run.seed)])
        each.append(row)
    return {name: [row[name] for row in each] for name in each[0] if name != "of"}


def as_texts(run, of):
    "A run's reward model, or DPO's, and its SFT policy as functions of texts."
    score = run.judges["proxy"] if of == "reward" else run.implicit
    return (rewards.text_scorer(score, run.tokenizer),
            rewards.text_sampler(run.networks["sft"], run.tokenizer))


def panel(config, run, of):
    "The panel of collect.py on validation prompts."
    examples = data.load(config.data, "validation", config.inputs)
    asked = [e.prompt for e in examples], [e.response for e in examples]
    [row] = kept(run.folder / "samples" / f"validation.panel-{of}.json",
                 [run.digests["sft"], run.digests[of], *asked],
                 lambda: [collect.panel(*as_texts(run, of), *asked)])
    return {what: x for what, x in row.items() if what != "of"}


def reward_models(config, runs, splits):
    "What the report says of the reward models, and of DPO's, on splits that have comparisons."
    quality = {of: {split: reward_quality(config, runs, split, of) for split in splits}
               for of in ("reward", "dpo")}
    return {"reward_model": quality["reward"], "implicit": quality["dpo"],
            "panels": {of: panel(config, runs[0], of) for of in quality}}


def encoder(run):
    "Texts -> vectors: the mean hidden state of the base model over a text's tokens."
    network, tokenizer = run.networks["base"], run.tokenizer

    @torch.no_grad()
    def states(new):
        ids = [tokenizer.response(text) for text in new]
        out = np.zeros((len(new), network.config.channels), np.float32)
        for index in files.progress(data.batches([len(r) for r in ids], 256), "states"):
            rows = data.pad_right([ids[i] for i in index], tokenizer.pad).to(run.device)  # (B, T)
            is_real = (rows < tokenizer.pad)[..., None]  # (B, T, 1)
            hidden = torch.where(is_real, network(rows), 0.0)  # (B, T, C)
            out[index] = (hidden.sum(1) / is_real.sum(1)).float().cpu().numpy()
        return out

    return encoders.cached(states)


def centred(vectors_of, texts):
    """`embed` for embedding diversity: less the mean over `texts`, a split's references. All hidden
    states point the same way, and those of a shift another: of news, uncentred, .26 where it is
    .81."""
    centre = np.mean(vectors_of(texts), axis=0)
    return lambda new: np.asarray(vectors_of(new)) - centre


def vectors_of(config, run, rows):
    "Texts -> vectors, by --encoder or the base, which are known of these rows' outputs already."
    found = encoders.sentences(config.encoder) if config.encoder else encoder(run)
    found([text for row in rows for text in row["outputs"]])  # in batches: a third of the time
    return found


def diversities_of(config, vectors_of, rows):
    """Those that need a model, for {policy: {split: rows of each seed}} -> {split: {"embedding":
    texts -> number}}, with --encoder also "vendi", with --nli "nli", else in the world "facts", its
    exact relation in place of it."""
    relations = {"nli": encoders.nli(config.nli)} if config.nli else {}
    if config.data in data.WORLD and not config.nli:
        from data import world

        relations["facts"] = world.TASKS[config.data].relation

    def of(texts):
        embed = vectors_of if config.encoder else centred(vectors_of, texts)
        found = {"embedding": lambda new: metrics.embedding_diversity(new, embed)}
        if config.encoder:  # what is centred has opposites, which Vendi counts as one
            found["vendi"] = lambda new: metrics.vendi(metrics.cosines(embed(new)))
        return found | {
            name: lambda new, relation=relation: metrics.nli_diversity(new, relation)
            for name, relation in relations.items()}
    return {split: of([row["reference"] for row in seeds[0]])
            for split, seeds in rows["sft"].items()}
