"""
rlhf.py - the study on one page: what does each stage do to generalisation and to diversity?

    generalisation   win rate against people's references, in distribution and under each shift
    diversity        per input: D(16 samples of one prompt); across inputs: D(one sample of each)
                                                        Eq. 2-3, Kirk et al. 2024, arXiv:2310.06452
    python rlhf.py                       # about eleven minutes on two CPU cores: trains what
                                         # is missing, samples every policy on every split, writes
                                         # report.md and report.html with figures; the last lines
                                         # are the claims
    python rlhf.py --full                # both tasks, 500 inputs x 16 outputs as in the paper, 3
                                         # seeds, all sweeps: a long night
    python rlhf.py --data tldr --init gpt2 --judge gpt-4.1            # the same on other data

Every policy is sampled, scored and measured by the same code. Outputs are kept as JSON lines and
used again, so an interrupted study goes on where it stopped, and a new measure costs no sampling.
"""

import contextlib
import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch

import bon
import data
import metrics
import model as m
import ppo
import reward
import sft
from data import collect, report


@dataclass
class Config:
    data: str = "summarise"  # as for the stages (the full study does both summarise and instruct)
    quick: bool = False  # one seed, 100 prompts a split, no sweeps: what is done without any flag
    full: bool = False  # the paper's size, 3 seeds and the sweeps, instead of the quick study
    sweeps: bool = False  # other betas, learning rates, sizes and the controls (always, if full)
    seeds: int = 0  # how many seeds, each a run of all stages (0: 1, in the full study 3)
    inputs: int = 0  # prompts of each split (0: 100, in the full study 500)
    samples: int = 0  # outputs of each prompt, where diversity is measured (0: 8, or 16)
    init: str = "base"  # the base that SFT starts from, as for sft.py
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu or cuda
    judge: str = ""  # a language model that judges too, one output a prompt (see data/judge.py)
    encoder: str = ""  # of embedding diversity: a sentence-transformers model (default: the base)
    nli: str = ""  # of NLI diversity: a transformers classifier (default: the world's own facts)
    recipe: Literal["", "diverse"] = ""  # beside the rest: sets of good answers that differ

    def __post_init__(self):
        if self.quick and (self.full or self.sweeps):
            raise ValueError("--quick is the study without --full and --sweeps: choose one of them")
        self.seeds = self.seeds or (3 if self.full else 1)
        self.inputs = self.inputs or (500 if self.full else 100)
        self.samples = self.samples or (16 if self.full else 8)
        self.sweeps = self.sweeps or self.full
        metrics.within(self, 1, float("inf"), "seeds")
        metrics.within(self, 4, float("inf"), "inputs")
        metrics.within(self, 2, float("inf"), "samples")
        if self.full and self.data not in data.WORLD:
            raise ValueError(f"--full is the study of {' and '.join(data.WORLD)}; for --data "
                             f"{self.data} give --seeds, --inputs, --samples and --sweeps")


N = 16  # of best of n
SHOWN = 36  # prompts of each split whose answers stand in report.html
POLICIES = {  # name: (checkpoint, temperature); those of every table
    "base": ("base", 1.0), "sft": ("sft", 1.0), "sft-t0.7": ("sft", 0.7), "sft-greedy": ("sft", 0),
    f"bon{N}": ("sft", 0.7), "rlhf": ("ppo", 1.0)}
FRONTIER = {  # one output per prompt: where a lower temperature takes SFT, and RLHF
    "sft-t0.8": ("sft", 0.8), "sft-t0.5": ("sft", 0.5), "sft-t0.3": ("sft", 0.3),
    "rlhf-t0.8": ("ppo", 0.8), "rlhf-t0.7": ("ppo", 0.7), "rlhf-t0.5": ("ppo", 0.5),
    "rlhf-t0.3": ("ppo", 0.3), "rlhf-greedy": ("ppo", 0)}
DIVERSE, MIN_P = 8, 0.03  # of --recipe diverse: samples for each answer chosen, and their cut

# The penalty of each task, chosen on its validation split: a nat buys less on instructions, where
# cooling SFT mends much for little, so that a long leash is a bad bargain.
BETA = {"summarise": 0.2, "instruct": 0.5}

SWEEP = {  # name: what is different from the main run of ppo.py
    **{f"{kl}-{beta:g}": dict(kl=kl, beta=beta) for kl in ("k1", "k2")
       for beta in (0.03, 0.1, 1.0)},
    "lr-1e-4": dict(lr=1e-4), "lr-4e-4": dict(lr=4e-4),
    "gold": dict(reward="gold", value="shared"), "beta-10": dict(beta=10.0), "shuffled": {}}
SIZES = {"64": dict(channels=64, heads=2), "192": dict(channels=192, heads=6)}  # beside 128


# ---- training ------------------------------------------------------------------------------------


def run_stage(config, seed, module, variant="", **more):
    "Trains a stage of this seed unless it is there -> seconds, 0 if it was."
    path, began = data.run_folder(config.data, seed, config.out) / variant, time.time()
    path, kind = path / f"{module.__name__}.pt", "reward" if module is reward else "policy"
    unfinished = path.exists() and not m.load(
        path, kind, unfinished=True)[1]["meta"].get("finished", True)
    if path.exists() and not unfinished:
        return 0
    if variant:
        more["variant"] = variant
    module.train(module.Config(data=config.data, seed=seed, out=config.out, device=config.device,
                               resume=unfinished, **more))
    return time.time() - began


def run_stages(config, seed, **size):
    "The three stages of one seed -> seconds by stage."
    return {"sft": run_stage(config, seed, sft, init=config.init, **size),
            "reward": run_stage(config, seed, reward),
            "ppo": run_stage(config, seed, ppo, **main_run(config, seed))}


def main_run(config, seed):
    """What the main run of ppo.py has that its defaults have not; its variants have it too. It may
    have been trained by hand, with other flags."""
    path = data.run_folder(config.data, seed, config.out) / "ppo.json"
    if not path.exists():
        return {"beta": BETA[config.data]} if config.data in BETA else {}
    kept = json.loads(path.read_text(encoding="utf-8"))["config"]
    for name in ("data", "seed", "out", "device", "resume", "variant"):
        kept.pop(name)
    return kept


def shuffled_labels(name, folder, seed):
    "A folder of the run's comparisons, each of which prefers the other text half of the time."
    rng, target = np.random.default_rng(seed), folder / "shuffled"
    target.mkdir(exist_ok=True)
    collected = folder / "comparisons.jsonl"
    for split in ("train", "validation"):
        if collected.exists():
            rows = [row for row in metrics.read(collected) if row["split"] == split]
        else:
            rows = [asdict(pair) for pair in data.comparisons(name, split)]
        for row in rows:
            if rng.random() < 0.5:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        metrics.write(target / f"comparisons.{split}.jsonl", rows)
    return target


def variants(config):
    "The variants that there are for a dataset: a gold score only the world has."
    return [name for name in SWEEP if name != "gold" or config.data in data.WORLD]


def run_variant(config, seed, name):
    "PPO once more with one thing changed; for the `shuffled` control, the reward model too."
    changes = main_run(config, seed) | SWEEP[name]
    if name == "shuffled":
        folder = data.run_folder(config.data, seed, config.out)
        if not (folder / name / "reward.pt").exists():
            shuffled_labels(config.data, folder, seed)
        run_stage(config, seed, reward, name, comparisons=str(folder / name))
        changes["reward"] = str(folder / name / "reward.pt")
    return run_stage(config, seed, ppo, name, **changes)


# ---- sampling ------------------------------------------------------------------------------------


def load_run(config, seed):
    """The checkpoints of one seed, loaded once, with their digests. ValueError if they do not go
    together: another tokeniser, or trained from another sft.pt."""
    folder, device = data.run_folder(config.data, seed, config.out), m.device(config.device)
    start, record = m.settled(folder / "sft.pt", "policy", device)
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    networks, digests = {"sft": start}, {"sft": record["digest"]}
    init = record["meta"]["config"]["init"]
    base = {"base": sft.BASE, "scratch": folder / "base.pt"}.get(init, init)
    paths = {"base": base, "ppo": folder / "ppo.pt", "reward": folder / "reward.pt"}
    if config.sweeps:
        paths |= {name: path for name in SWEEP if (path := folder / name / "ppo.pt").exists()}
    for name, path in paths.items():
        kind = "reward" if name == "reward" else "policy"
        networks[name], found = m.settled(path, kind, device, tokenizer.fingerprint)
        if name != "base" and found["meta"]["parent"] != record["digest"]:
            raise ValueError(f"{path} was not trained from {folder / 'sft.pt'}, but from another "
                             f"policy: move it away, and it is trained again")
        digests[name] = found["digest"]
    return SimpleNamespace(
        folder=folder, seed=seed, device=device, tokenizer=tokenizer, networks=networks,
        digests=digests, judges={"proxy": reward.reward_fn(networks["reward"], tokenizer.pad)})


def load_runs(config):
    """The runs of all seeds. With several, each has a second judge of its answers: the reward model
    of the next seed, which its policy was not trained against (the paper's proxy check). One run
    alone has it too, where `reward.py --seed 1 --init` that run's sft.pt has made one."""
    runs = [load_run(config, seed) for seed in range(config.seeds)]
    if len(runs) > 1:
        for run, other in zip(runs, runs[1:] + runs[:1]):
            run.judges["other"] = other.judges["proxy"]
            run.digests["other"] = other.digests["reward"]
    elif (path := data.run_folder(config.data, 1, config.out) / "reward.pt").exists():
        [run] = runs
        judge, record = m.settled(path, "reward", run.device, run.tokenizer.fingerprint)
        if record["meta"]["parent"] == run.digests["sft"]:
            run.judges["other"] = reward.reward_fn(judge, run.tokenizer.pad)
            run.digests["other"] = record["digest"]
    return runs


def chosen(run, policy, answers, scores, samples):
    "Where a prompt's outputs stand in its pool of answers, ids each, by their scores."
    if policy == "diverse":  # in the order of sampling: the first is no better than the last
        texts = [run.tokenizer.decode(r) for r in answers]
        return sorted(bon.diverse_bests(scores, bon.overlaps(texts), samples))
    # from disjoint hands if there are enough, else from hands that overlap
    deal = bon.disjoint_bests if len(scores) >= N * samples else bon.simulated_bests
    return deal(scores, N, samples, run.seed)


def outputs_of(run, config, policy, split):
    """Rows of a policy's outputs on a split, from disk if they are of the same checkpoints:

    {"prompt", "reference", "outputs", and for each output its "length" in tokens, "kl", the
    log-ratio to SFT at temperature 1 (None of a set), and the scores "gold" (in the world), "proxy"
    and, with several seeds, "other"; "reference_gold", "reference_length" and so on of the
    reference}.
    """
    checkpoint, temperature = {**POLICIES, **FRONTIER}.get(policy, (policy, 1.0))
    samples = 1 if policy in FRONTIER or temperature == 0 else config.samples
    best, diverse = policy.startswith("bon"), policy == "diverse"
    pool = samples  # of each prompt
    if best:
        pool = N * samples if config.full else 4 * N
    if diverse:
        checkpoint, pool = "sft", DIVERSE * samples
    of = hashlib.sha256(json.dumps([
        run.digests[checkpoint], run.digests["sft"], run.digests["reward"],
        run.digests.get("other"), temperature, samples, pool, config.inputs, policy
    ]).encode()).hexdigest()[:16]
    path = run.folder / "samples" / f"{split}.{policy}.jsonl"
    if path.exists():
        rows = metrics.read(path)
        if rows and all(row["of"] == of for row in rows):
            return rows
    tokenizer, network, gold = run.tokenizer, run.networks[checkpoint], data.gold(config.data)
    examples = data.load(config.data, split, config.inputs)
    prompts = [tokenizer.prompt(e.prompt) for e in examples]
    answers = bon.sample_pool(network, prompts, pool, tokenizer.response_tokens, temperature,
                              run.seed, MIN_P if diverse else 0.0)
    if pool > samples:
        proxy = run.judges["proxy"]([p for p in prompts for _ in range(pool)],
                                    [r for row in answers for r in row]).view(-1, pool).numpy()
        answers = [[row[k] for k in chosen(run, policy, row, scores, samples)]
                   for row, scores in zip(answers, proxy)]
    owners, ids = [p for p in prompts for _ in range(samples)], [r for row in answers for r in row]
    kl = (bon.loglikelihood(network, owners, ids, temperature, tokenizer.pad)
          - bon.loglikelihood(run.networks["sft"], owners, ids, 1.0, tokenizer.pad))
    kl = kl.reshape(len(prompts), -1) + (bon.kl_bound(N) if best else 0)
    rows = []
    for e, mine, ratios in zip(examples, answers, kl):
        texts = [tokenizer.decode(r).strip() for r in mine]
        rows.append({"prompt": e.prompt, "reference": e.response, "outputs": texts,
                     "kl": None if diverse else [float(k) for k in ratios],
                     "length": [len(r) for r in mine],
                     "reference_length": len(tokenizer.response(e.response)), "of": of})
        if gold:
            rows[-1] |= {"reference_gold": gold(e.prompt, e.response),
                         "gold": [gold(e.prompt, t) for t in texts]}
    for name, judge in run.judges.items():
        scores = judge(owners, ids).view(len(prompts), -1).tolist()
        references = judge(prompts, [tokenizer.response(e.response) for e in examples]).tolist()
        for row, each, one in zip(rows, scores, references):
            row[name], row[f"reference_{name}"] = each, one
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics.write(path, rows)
    return rows


def reference_rows(rows):
    "People's references as if they were a policy's outputs, one per prompt."
    known = [name for name in ("gold", "proxy", "other", "length") if name in rows[0]]
    return [{**row, **{name: [row[f"reference_{name}"]] for name in known}, "kl": None,
             "outputs": [row["reference"]]} for row in rows]


# ---- measuring -----------------------------------------------------------------------------------


def encoder(run, texts):
    """`embed` for embedding diversity: mean hidden state of the base model over a text's tokens,
    less the mean over `texts` (uncentred, all states point the same way). Cached by text."""
    network, tokenizer, cache = run.networks["base"], run.tokenizer, {}

    @torch.no_grad()
    def states(new):
        ids = [tokenizer.response(t) for t in new]
        out = np.zeros((len(new), network.config.channels))
        for index in data.batches([len(r) for r in ids], 256):
            rows = data.pad_right([ids[i] for i in index], tokenizer.pad).to(run.device)  # (B, T)
            is_real = (rows < tokenizer.pad)[..., None]
            hidden = torch.where(is_real, network(rows), 0.0)  # (B, T, C)
            out[index] = (hidden.sum(1) / is_real.sum(1)).float().cpu().numpy()
        return out

    centre = states(texts).mean(0)

    def embed(wanted):
        new = list(dict.fromkeys(t for t in wanted if t not in cache))
        if new:
            cache.update(zip(new, states(new) - centre))
        return [cache[t] for t in wanted]
    return embed


SCORES = {"gold": "the gold score", "other": "the reward model of another seed",
          "proxy": "the reward model that RLHF optimises"}


def decisive(rows):
    "By which score of an output a win is decided: the fairest that there is."
    return next(name for name in SCORES if name in rows[0])


def measure(rows, sft_rows, embed=None, relation=None):
    """Values of every measure, one per prompt, and the texts -> {measure: (inputs,)}, outputs.

    `vs_sft` compares the k-th output with SFT's k-th; both are independent samples. Without `embed`
    and `relation` the diversities that need them are left out.
    """
    score = decisive(rows)
    mine = np.array([row[score] for row in rows])  # (inputs, samples)
    beats = lambda a, b: ((a > b) + 0.5 * (a == b)).mean(1)
    values = {"vs_sft": beats(mine, np.array([row[score] for row in sft_rows])[:, :mine.shape[1]]),
              "words": np.array([np.mean([len(text.split()) for text in row["outputs"]])
                                 for row in rows])}
    for name in SCORES:
        if name in rows[0]:
            scores = np.array([row[name] for row in rows])  # (inputs, samples)
            reference = np.array([[row[f"reference_{name}"]] for row in rows])
            values[name], values[f"win_rate_{name}"] = scores.mean(1), beats(scores, reference)
    values["win_rate"] = values[f"win_rate_{score}"]
    for name in ("kl", "length"):
        if rows[0][name] is not None:
            values[name] = np.array([np.mean(row[name]) for row in rows])
    outputs = [row["outputs"] for row in rows]
    if mine.shape[1] > 1:
        diversities = {"ead": metrics.ead, "distinct": metrics.distinct}
        if embed:
            diversities["embedding"] = lambda t: metrics.embedding_diversity(t, embed)
        if relation:
            diversities["nli"] = lambda t: metrics.nli_diversity(t, relation)
        values |= {f"per_input_{name}": metrics.per_input(outputs, diversity)
                   for name, diversity in diversities.items()}
    return values, outputs


def judged_by(judge, rows):
    "Win rate of each row's first output against the reference, by a judge of texts -> (inputs,)."
    from data.judge import compare

    prompts, texts = [row["prompt"] for row in rows], [row["outputs"][0] for row in rows]
    references = [row["reference"] for row in rows]
    return metrics.win_rate(texts, references, compare(judge, prompts, texts, references))


def summarised(runs):
    """Values of several seeds on the same prompts -> {"mean", "low", "high", "n", "seeds"}: the
    interval is over prompts, of their means over seeds."""
    mean, low, high, n = metrics.interval(np.mean(runs, axis=0))
    return {"mean": mean, "low": low, "high": high, "n": n,
            "seeds": [float(np.mean(run)) for run in runs]}


def across(runs, embed):
    "Across-input diversity of several seeds' outputs -> {measure: summary}."
    found = {}
    for name, diversity in {"ead": metrics.ead, "distinct": metrics.distinct,
                            "embedding": lambda t: metrics.embedding_diversity(t, embed)}.items():
        each = [metrics.across_interval(outputs, diversity) for outputs in runs]
        mean, low, high = (float(np.mean([x[k] for x in each])) for k in range(3))
        found[f"across_input_{name}"] = {"mean": mean, "low": low, "high": high, "n": each[0][3],
                                         "seeds": [x[0] for x in each]}
    return found


# ---- the claims, each with its statistic fixed beforehand ----------------------------------------


def verdict(summary, sign=1):
    """supported: the interval is clear of zero on the claim's side and so is every seed; not
    supported: the same on the other side; else inconclusive."""
    side = lambda s: s * summary["low" if s > 0 else "high"] > 0 and all(
        s * x > 0 for x in summary["seeds"])
    return "supported" if side(sign) else "not supported" if side(-sign) else "inconclusive"


def overall(verdicts):
    "One verdict for several: the one they share; a mixture is inconclusive."
    return verdicts[0] if len(set(verdicts)) == 1 else "inconclusive"


def claim(id, text, statistic, verdict, evidence):
    return {"id": id, "claim": text, "statistic": statistic, "verdict": verdict,
            "evidence": evidence}


def differences(values, a, b, measure, splits):
    "Policy a less policy b, paired by prompt -> {split: summary}."
    return {s: summarised(values[a][s][measure] - values[b][s][measure]) for s in splits}


def said(summary):
    seeds = ", ".join(f"{x:+.3f}" for x in summary["seeds"])
    return f"{summary['mean']:+.3f} [{summary['low']:+.3f}, {summary['high']:+.3f}] ({seeds})"


def said_by_split(each):
    return "; ".join(f"{split} {said(summary)}" for split, summary in each.items())


def better_everywhere(id, policy, values, splits):  # C1
    each = differences(values, policy, "sft", "win_rate", splits)
    return claim(id, f"{policy} beats sft in win rate, in distribution and under every shift",
                 "win rate less that of sft, both at the table's temperature",
                 overall([verdict(d) for d in each.values()]), said_by_split(each))


def gains_more_further_out(values, splits):  # C2
    rate = {p: np.array([values[p][s]["win_rate"].mean(1) for s in splits])
            for p in ("sft", "rlhf")}  # (splits, seeds)
    drop, gain = rate["sft"][0] - rate["sft"], rate["rlhf"] - rate["sft"]
    centred = drop - drop.mean(0)  # least squares: a straight line through the splits
    slopes = (centred * gain).sum(0) / np.maximum((centred**2).sum(0), 1e-12)  # (seeds,)
    slopes = [float(slope) for slope in slopes]
    mean, low, high, n = metrics.t_interval(slopes)
    found = {"mean": mean, "low": low, "high": high, "n": n, "seeds": slopes}
    return claim("C2", "the larger the shift, the more rlhf gains over sft",
                 "slope of (rlhf - sft) on sft's own drop from in distribution, over the splits; "
                 "t interval over seeds", verdict(found),
                 said(found) if n > 1 else f"{mean:+.3f}, one seed")


def costs_diversity(id, measure, values, splits):  # C3
    each = differences(values, "rlhf", "sft", measure, splits)
    return claim(id, f"rlhf lowers {measure.replace('_', ' ')}", f"{measure}, rlhf less sft",
                 overall([verdict(d, -1) for d in each.values()]), said_by_split(each))


def seeds_of(reports, policy, measure, split):
    return np.array(reports[policy][split][measure]["seeds"])


def lost(reports, measure, split):
    "The share of sft's diversity that rlhf loses, in each seed."
    return 1 - seeds_of(reports, "rlhf", measure, split) / seeds_of(reports, "sft", measure, split)


def less_across_inputs(reports, split):  # C4
    best, per, across = f"bon{N}", *(lost(reports, f"{k}_input_ead", split)
                                     for k in ("per", "across"))
    its, sft = (seeds_of(reports, p, "across_input_ead", split) for p in (best, "sft"))
    smaller, kept = bool((across < per).all()), bool((its > sft - 0.02).all())
    return claim("C4", "across inputs diversity falls less than per input, and best of n loses "
                 "none", "relative drop of EAD from sft, in distribution; best of n no lower than "
                 "sft - .02",
                 "supported" if smaller and kept else "inconclusive" if smaller or kept
                 else "not supported",
                 f"rlhf loses {per.mean():.1%} per input and {across.mean():.1%} across; {best} "
                 f"has {its.mean():.3f} across, sft {sft.mean():.3f}")


def no_beta_gives_it_back(id, kl, values, splits):  # C5
    betas = [p for p in values if p.startswith(f"{kl}-")] + ["rlhf"] * (kl == "k1")
    top = max(betas, key=lambda p: np.mean([values[p][s]["per_input_ead"].mean() for s in splits]))
    each = differences(values, top, "sft", "per_input_ead", splits)
    return claim(id, f"no beta gives the diversity back ({kl} in the reward)",
                 f"per-input EAD of the beta with most of it, of {len(betas)}, less sft",
                 overall([verdict(d, -1) for d in each.values()]), f"{top}: {said_by_split(each)}")


def nli_hardly_sees_it(reports, split):  # C6
    share = {p: (seeds_of(reports, p, "per_input_nli", split) + 2) / 4 for p in ("sft", "rlhf")}
    nli, ead = 1 - share["rlhf"] / share["sft"], lost(reports, "per_input_ead", split)
    return claim("C6", "NLI diversity hardly sees the loss",
                 "its relative drop under half of EAD's",
                 "supported" if (nli < ead / 2).all() else
                 "not supported" if (nli >= ead / 2).all() else "inconclusive",
                 f"NLI loses {nli.mean():.1%} of its range's share, EAD {ead.mean():.1%}")


def reward_model_generalises(rewards, near, far):  # C7
    lost = np.array([np.array(rewards[near]["gold"]) - np.array(rewards[s]["gold"])
                     for s in far])  # (splits, seeds)
    return claim("C7", "the reward model's accuracy falls little out of distribution",
                 "accuracy in distribution less that under each shift, at most .05",
                 "supported" if (lost <= 0.05).all() else
                 "not supported" if (lost.mean(1) > 0.05).all() else "inconclusive",
                 "; ".join(f"{s} {x.mean():+.3f}" for s, x in zip(far, lost)))


def claims(values, reports, rewards, splits):
    """The paper's claims C1 to C7 -> list of dicts.

    values: {policy: {split: {measure: (seeds, inputs)}}}; reports: {policy: {split: summaries}};
    rewards: {split: {"gold": the reward model's accuracy with each seed}}. What was not measured is
    left out: C5 without a sweep, C6 without NLI, C7 without comparisons under a shift.
    """
    near, far = splits[0], [s for s in splits[1:] if s in rewards and splits[0] in rewards]
    found = [better_everywhere("C1a", "rlhf", values, splits),
             better_everywhere("C1b", f"bon{N}", values, splits),
             gains_more_further_out(values, splits),
             costs_diversity("C3a", "per_input_ead", values, splits),
             costs_diversity("C3b", "per_input_embedding", values, splits),
             less_across_inputs(reports, near)]
    for id, kl in (("C5a", "k1"), ("C5b", "k2")):
        if any(policy.startswith(f"{kl}-") for policy in values):
            found.append(no_beta_gives_it_back(id, kl, values, splits))
    if "per_input_nli" in reports["sft"][near]:
        found.append(nli_hardly_sees_it(reports, near))
    if far:
        found.append(reward_model_generalises(rewards, near, far))
    return found


def controls(values, split):
    """What must be so if the study measures what it says, in distribution ->
    [{"control", "expected", "found", "holds"}]."""
    at = lambda policy, measure: values[policy][split][measure]
    apart = {p: summarised(at(p, "win_rate") - at(q, "win_rate"))
             for p, q in (("shuffled", "sft"), ("gold", "rlhf")) if p in values}
    kl = at("beta-10", "kl").mean(1)
    found = [
        {"control": "PPO on a reward model of shuffled labels", "expected": "does not beat sft",
         "found": f"win rate less sft's {said(apart['shuffled'])}, "
                  f"KL {at('shuffled', 'kl').mean():.2f}",
         "holds": verdict(apart["shuffled"]) != "supported"},
        {"control": "PPO with beta 10", "expected": "stays at sft: KL under .05",
         "found": "KL " + ", ".join(f"{x:.3f}" for x in kl), "holds": bool((abs(kl) < 0.05).all())}]
    if "gold" in values:  # in the world only
        found.insert(1, {
            "control": "PPO on the gold score", "expected": "the ceiling: no lower than rlhf",
            "found": f"win rate {at('gold', 'win_rate').mean():.3f}, less rlhf's "
                     f"{said(apart['gold'])}, KL {at('gold', 'kl').mean():.2f}",
            "holds": verdict(apart["gold"], -1) != "supported"})
    return found


# ---- the frontier, and the study -----------------------------------------------------------------


def frontier(values, rows, splits):
    """Win rate against KL to SFT, in distribution and over the prompts of all shifts ->
    {family: [{"label", "kl", "win_rate": summary, "shifted_kl", "shifted_win_rate": summary}]}.

    SFT and RLHF at every temperature, and best of n at temperature 1, from SFT's own samples
    (`rows`; None where a win is not decided by a score of each of them).
    """
    def point(label, kl, wins):  # {split: nats}, {split: (seeds, inputs)}
        shifted = np.concatenate([wins[s] for s in splits[1:]], axis=1)
        return {"label": label, "kl": float(kl[splits[0]]), "win_rate": summarised(wins[splits[0]]),
                "shifted_kl": float(np.mean([kl[s] for s in splits[1:]])),
                "shifted_win_rate": summarised(shifted)}

    found = {"sft": [], "rlhf": []}
    for policy, (_, temperature) in sorted({**POLICIES, **FRONTIER}.items(),
                                           key=lambda item: -item[1][1]):
        family, at = policy.partition("-")[0], values[policy]
        if family in found:
            found[family].append(point(f"T {temperature:g}",
                                       {s: at[s]["kl"].mean() for s in splits},
                                       {s: at[s]["win_rate"] for s in splits}))
    if rows:
        found["bon"] = [point(f"n {n}", dict.fromkeys(splits, bon.kl_bound(n)),
                              {s: best(rows[s], n)["win"] for s in splits})
                        for n in sizes_of(rows[splits[0]])]
    return found


def bargain(values, split):
    """What counts: SFT at its best temperature against RLHF at the best of those that are, by mean
    KL, no further from SFT -> {"split", "sft", "sft_kl", "rlhf", "rlhf_kl", "gain": summary}. The
    last three are None where RLHF is further away at every temperature."""
    every = [p for p in {**POLICIES, **FRONTIER} if p.startswith(("sft", "rlhf"))]
    win, kl = ({p: values[p][split][k].mean() for p in every} for k in ("win_rate", "kl"))
    mine = max([p for p in every if p.startswith("sft")], key=win.get)
    near = [p for p in every if p.startswith("rlhf") and kl[p] <= kl[mine]]
    its, gain = max(near, key=win.get, default=None), None
    if near:
        gain = summarised(values[its][split]["win_rate"] - values[mine][split]["win_rate"])
    return {"split": split, "sft": mine, "sft_kl": float(kl[mine]), "rlhf": its,
            "rlhf_kl": float(kl[its]) if near else None, "gain": gain}


def sizes_of(seeds):
    return [n for n in (1, 2, 4, 8, 16) if n <= len(seeds[0][0]["outputs"])]


def best(seeds, n):
    """What is expected of the best of n of these outputs, by the proxy: "win" and each score there
    is -> {name: (seeds, inputs)}."""
    found = []
    for rows in seeds:
        scores = {k: np.array([row[k] for row in rows]) for k in SCORES if k in rows[0]}
        mine = scores[decisive(rows)]
        reference = np.array([[row[f"reference_{decisive(rows)}"]] for row in rows])
        scores["win"] = (mine > reference) + (mine == reference) / 2
        found.append({k: bon.expected_best(scores["proxy"], v, n) for k, v in scores.items()})
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def quality_of(run, config, split):
    "How well the reward model of a run knows the truth, from disk if it is known."
    path = run.folder / "samples" / f"{split}.quality.json"
    of = [run.digests["sft"], run.digests["reward"], config.inputs]
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("of") == of:
            return found
    found = collect.quality(reward.text_scorer(run.judges["proxy"], run.tokenizer),
                            reward.text_sampler(run.networks["sft"], run.tokenizer), config.data,
                            split, max(config.inputs * 5 // 2, 60), run.seed)
    path.write_text(json.dumps(found | {"of": of}), encoding="utf-8")
    return found


def sweep_rows(config, runs, splits):
    "Outputs of every run of the sweep, as in `train`; on validation too, where choices are made."
    names = {name: ["validation"] * name.startswith("lr") + list(splits)
             for name in variants(config)}
    names |= {"rlhf": ["validation"], "sft": ["validation"]}
    return {name: {split: [outputs_of(run, config, name, split) for run in runs]
                   for split in where} for name, where in names.items()}


def of_size(config, name, splits):
    """SFT and RLHF of another width with the first seed, their base included, which is trained here
    -> {policy: {split: {measure: (inputs,) values}}}."""
    config = replace(config, out=f"{config.out}/size-{name}", init="scratch", sweeps=False)
    run_stages(config, 0, **SIZES[name])
    run = load_run(config, 0)
    return {policy: {split: measure(*[outputs_of(run, config, policy, split)] * 2)[0]
                     for split in splits} for policy in ("sft", "rlhf")}


def shown(rows, values, splits):
    """The first prompts of every split, with the first answer of every policy of seed 0 ->
    [{"split", "prompt", "answers": {policy: {"text", and its score by each judge there is}}}]."""
    def answer(policy, split, i):
        row, judged = rows[policy][split][0][i], values[policy][split].get("win_rate_judge")
        return {"text": row["outputs"][0], **{k: row[k][0] for k in SCORES if k in row},
                **({} if judged is None else {"judge": float(judged[0, i])})}

    return [{"split": split, "prompt": row["prompt"], "answers": {
                policy: answer(policy, split, i) for policy in [*POLICIES, "reference"]}}
            for split in splits for i, row in enumerate(rows["sft"][split][0][:SHOWN])]


@contextlib.contextmanager
def timed(seconds, what):
    began = time.time()
    yield
    seconds[what] = time.time() - began


def train_all(config, seconds):
    "Every stage of every seed, and the sweep, unless they are there."
    for seed in range(config.seeds):
        for stage, spent in run_stages(config, seed).items():
            seconds[f"{stage}, seed {seed}"] = spent
        for name in variants(config) if config.sweeps else ():
            seconds[f"{name}, seed {seed}"] = run_variant(config, seed, name)


def measure_all(config, runs, rows, judge):
    """Values {policy: {split: {measure: (seeds, inputs)}}} and their summaries, with diversity
    across inputs, of {policy: {split: rows of each seed}}."""
    gold, first = data.gold(config.data), next(iter(rows["sft"].values()))[0]
    relation = config.nli and metrics.nli_relation(config.nli)
    if gold and not relation:
        from data import world

        relation = world.relation(first[0]["prompt"])
    embed = (metrics.sentence_encoder(config.encoder) if config.encoder
             else encoder(runs[0], [row["reference"] for row in first]))
    values, reports = {}, {}
    for policy, by_split in rows.items():
        values[policy], reports[policy] = {}, {}
        for split, seeds in by_split.items():
            found = [measure(r, s, embed, relation) for r, s in zip(seeds, rows["sft"][split])]
            if judge and (policy in POLICIES or not gold):
                for (v, _), r in zip(found, seeds):
                    v["win_rate_judge"] = judged_by(judge, r)
                    if not gold:
                        v["win_rate"] = v["win_rate_judge"]
            values[policy][split] = {k: np.stack([v[k] for v, _ in found]) for k in found[0][0]}
            reports[policy][split] = {k: summarised(v) for k, v in values[policy][split].items()}
            if policy not in FRONTIER:
                reports[policy][split] |= across([outputs for _, outputs in found], embed)
    return values, reports


def measure_sweep(swept, values):
    "The same of the sweep, without what needs an encoder; its values are added to `values`."
    sweep = {name: {} for name in swept}
    for name, by_split in swept.items():
        for split, seeds in by_split.items():
            found = [measure(r, r)[0] for r in seeds]
            stacked = {k: np.stack([v[k] for v in found]) for k in found[0]}
            values.setdefault(name, {})[split] = stacked
            sweep[name][split] = {k: summarised(v) for k, v in stacked.items()}
    return sweep


def judge_reward_models(config, runs, splits):
    "{split: {measure: a number of each seed}}, see collect.quality."
    judged = {}
    for split in splits:
        each = [quality_of(run, config, split) for run in runs]
        judged[split] = {key: [found[key] for found in each] for key in each[0]}
    return judged


def resize(config, runs, values, splits, seconds):
    "SFT and RLHF of every width, the first seed's -> {width: {policy: {split: summaries}}}."
    widths = {}
    for name in SIZES:
        with timed(seconds, f"width {name}"):
            widths[name] = of_size(config, name, splits)
    widths[str(runs[0].networks["sft"].config.channels)] = {
        p: {s: {k: v[0] for k, v in values[p][s].items()} for s in splits}
        for p in ("sft", "rlhf")}
    return {name: {p: {s: {k: summarised([found[p][s][k]]) for k in ("win_rate", "per_input_ead")}
                       for s in splits} for p in found} for name, found in widths.items()}


def study(config):
    """Run the study of one dataset, and return the path of its report.

    A win is decided by the gold score; outside the world by `--judge` if it is given, else by a
    reward model. ValueError if no split is shifted: there is nothing to generalise to.
    """
    gold, splits = data.gold(config.data), data.test_splits(config.data)
    if len(splits) < 2:
        raise ValueError(f"{config.data} has only {splits[0]!r} to test on, and this study is of "
                         f"shifts: name another dataset, or add a file such as other.jsonl to its "
                         f"folder (python -m tests.evaluate measures runs without shifts)")
    seconds, began, judge = {}, time.time(), None
    if config.judge:
        from data.judge import llm

        judge = llm(config.judge, Path(config.out) / "judge.jsonl")
    folder = data.run_folder(config.data, 0, config.out)
    _held = metrics.lock(folder)  # until this function ends
    train_all(config, seconds)
    runs = load_runs(config)
    with timed(seconds, "sampling and scoring"):
        policies = [*POLICIES, *FRONTIER, *[config.recipe] * (config.recipe != "")]
        rows = {policy: {split: [outputs_of(run, config, policy, split) for run in runs]
                         for split in splits} for policy in policies}
        rows["reference"] = {s: [reference_rows(r) for r in rows["sft"][s]] for s in splits}
        swept = sweep_rows(config, runs, splits) if config.sweeps else {}
    with timed(seconds, "measuring"):
        values, reports = measure_all(config, runs, rows, judge)
        sweep = measure_sweep(swept, values)
    with timed(seconds, "judging the reward model"):
        judged = judge_reward_models(
            config, runs, splits if gold else data.test_splits(config.data, pairs=True))
    sizes = resize(config, runs, values, splits, seconds) if config.sweeps and gold else {}
    own = rows["sft"][splits[0]]  # SFT's in distribution, of each seed
    score, by_judge = decisive(own[0]), judge and not gold
    result = {
        "settings": asdict(config), "policies": reports,
        **{name: main_run(config, 0)[name] for name in ("beta", "lr")},
        "judge": config.judge if by_judge else SCORES[score], "score": SCORES[score],
        "scores": {name: SCORES[name] for name in SCORES if name in own[0][0]}
        | ({"judge": f"{config.judge}, 1 if better than the reference"} if judge else {}),
        "reward_model": judged,
        "claims": claims(values, reports, judged, splits),
        "controls": controls(values, splits[0]) if config.sweeps else [],
        "frontier": frontier(values, None if by_judge else rows["sft"], splits),
        "bargain": [bargain(values, split) for split in splits], "sweep": sweep, "sizes": sizes,
        "bon": [{"n": n, "kl": bon.kl_bound(n),
                 **{k: float(v.mean()) for k, v in best(own, n).items()}} for n in sizes_of(own)],
        "ppo": [[{k: row[k] for k in ("step", "kl", "proxy", "gold") if k in row}
                 for row in metrics.read(run.folder / "ppo.jsonl")] for run in runs],
        "seconds": {k: v for k, v in seconds.items() if v} | {"all": time.time() - began}}
    path = report.write(folder, result, shown(rows, values, splits))
    for found in result["claims"]:
        print(f"{found['id']:>4} {found['verdict']:>14}  {found['claim']}\n{'':21}"
              f"{found['evidence']}")
    for found in result["controls"]:
        print(f"{'holds' if found['holds'] else 'FAILS':>19}  {found['control']}: "
              f"{found['expected']}\n{'':21}{found['found']}")
    print(f"rlhf: {config.seeds} seeds, {config.inputs} prompts a split, {config.samples} outputs "
          f"each, {(time.time() - began) / 60:.1f} minutes\nwrote {path} and its "
          f"figures\nfor a browser, with samples: {path.with_suffix('.html')}")
    return path


def train(config):
    "Run the study, of both tasks if it is the full one, and return the path of its last report."
    for task in data.WORLD if config.full else (config.data,):
        path = study(replace(config, data=task))
    return path


if __name__ == "__main__":
    metrics.cli(Config, train)
