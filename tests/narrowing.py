"""
What makes RLHF narrow? One thing at a time is changed: how much annotators err, how far they prefer
what is likely anyway, and the KL penalty.

    python -m tests.narrowing --seeds 3

Takes finished runs of `python rlhf.py --seeds 3` on summaries, whose truth is known, and trains the
betas of PPO that are missing. Each annotator labels once more the very comparisons that the run's
reward model has learned from:

    P(a is preferred to b) = sigmoid((gold(a) - gold(b) + bias * (log p(a) - log p(b))) / noise)

where p is the base model, so that a bias is a taste for the typical (Zhang et al. 2025,
arXiv:2510.01171). With these labels a reward model is trained, and with it policies of three betas
(RLOO, 20 iterations: as good as PPO here, in a quarter of the time). What a policy loses against
SFT is split into kinds of answers of which none was good and kinds of good ones (metrics.
split_loss). Betas differ in how far they go from SFT, and so do annotators: compared is at equal KL
and at equal win rate, each seed on its line from SFT over the largest beta to the smallest.

Writes narrowing.json and narrowing.png into the run folder of seed 0. Runs that are there and what
was sampled of them are used again.
"""

import contextlib
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

import data
import rlhf
from data import checkpoint, claims, figures, files, lineage, pools, world
from data.flags import Finished, parser_of

NOISE = world.ANNOTATOR
ANNOTATORS = {  # name: (noise in gold points, bias in gold points a nat)
    "as it is": (NOISE, 0.0), "noise-half": (NOISE / 2, 0.0), "noise-2": (NOISE * 2, 0.0),
    "noise-4": (NOISE * 4, 0.0), "typical-.03": (NOISE, 0.03), "typical-.1": (NOISE, 0.1),
    "typical-.3": (NOISE, 0.3)}
BETAS = (0.6, 0.25, 0.1)  # from the one that stays nearest to SFT on
RLOO = dict(baseline="rloo", steps=20)
PENALTIES = {"k1": ("k1-1", "rlhf", "k1-0.1", "k1-0.03"), "k2": ("k2-1", "k2-0.1", "k2-0.03")}
MEASURES = ("win_rate", "kl", "quality", "narrowing", "per_input_ead", "length")


# ---- training ------------------------------------------------------------------------------------


def margins(run, rows):
    "What the chosen of comparisons is above the rejected: gold points and nats of the base, (N,)."
    prompts = [row["prompt"] for row in rows for _ in range(2)]
    texts = [text for row in rows for text in (row["chosen"], row["rejected"])]
    gold = np.array([world.gold(*pair) for pair in zip(prompts, texts)])
    nats = pools.loglikelihood(
        run.networks["base"], [run.tokenizer.prompt(p) for p in prompts],
        [run.tokenizer.response(t) for t in texts], 1.0, run.tokenizer.pad)
    return gold[::2] - gold[1::2], nats[::2] - nats[1::2]


def labelled(seed, rows, gold, nats, noise, bias):
    "Comparisons as an annotator decides them, and where that is otherwise than before, (N,) bool."
    sure = torch.sigmoid(torch.tensor((gold + bias * nats) / noise)).numpy()
    swap = np.random.default_rng([seed, 26]).random(len(rows)) > sure
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if other else row
            for row, other in zip(rows, swap)], swap


def train(stage, config):
    "A run, unless it has finished."
    with contextlib.suppress(Finished):
        lineage.STAGES[stage].train(replace(config, resume=True))


def comparisons(config, run):
    "Those of the main run, by split: (rows, their margins)."
    rows = files.read_log(lineage.home(config, run.seed) / "comparisons.jsonl")
    rows = {split: [r for r in rows if r["split"] == split] for split in ("validation", "train")}
    return {split: (found, *margins(run, found)) for split, found in rows.items()}


def train_policies(config, run, name, given):
    """An annotator's reward model and its policies -> {beta: checkpoint}, and of its labels, those
    to train on, the share that is as the gold score and the share for the likelier text."""
    folder, flags = lineage.home(config, run.seed), {}
    _, gold, nats = given["train"]
    swap = np.zeros(len(gold), dtype=bool)
    if name != "as it is":  # else the main run's reward model
        for split, (rows, *of) in given.items():
            new, swap = labelled(run.seed, rows, *of, *ANNOTATORS[name])
            files.write_rows(folder / name / f"comparisons.{split}.jsonl", new)
        flags = dict(comparisons=str(folder / name), annotator="world", variant=name)
        train(*lineage.run_of(config, run.seed, "reward",
                              lineage.main_flags(config, "reward") | flags))
        flags = dict(reward=str(folder / name / "reward.pt"))
    paths = {}
    for beta in BETAS:
        flags |= RLOO | dict(beta=beta, variant=f"narrowing/{name}-{beta:g}".replace(" ", "-"))
        train(*lineage.run_of(config, run.seed, "ppo", lineage.main_flags(config, "ppo") | flags))
        paths[beta] = folder / flags["variant"] / "ppo.pt"
    return paths, [float(((x > 0) != swap)[x != 0].mean()) for x in (gold, nats)]


# ---- measuring -----------------------------------------------------------------------------------


def at(values, line, by, target):
    """What runs have where `by`, "kl" or "win_rate", first is `target` on a line from one policy to
    the next, in parts of the two around it -> {measure: (seeds, inputs)}, None if a seed never gets
    there. (A line may turn: with too small a beta wins are lost again.)"""
    found = []
    for seed in range(len(values[line[0]][by])):
        where = [values[name][by][seed].mean() for name in line]
        step = next((k for k, (x, y) in enumerate(pairwise(where)) if x <= target < y), None)
        if step is None:
            return None
        part = (target - where[step]) / (where[step + 1] - where[step])
        before, after = (values[name] for name in line[step:step + 2])
        found.append({k: (1 - part) * before[k][seed] + part * after[k][seed] for k in MEASURES})
    return {k: np.stack([row[k] for row in found]) for k in MEASURES}


def measured(config, runs, names, splits):
    "Values of policies, of all splits' prompts together -> {policy: {measure: (seeds, inputs)}}."
    rows = rlhf.sampled(config, runs, dict.fromkeys(["sft", *names], splits))
    values, _ = rlhf.measure_all(rows, rows["sft"])
    return {p: {k: np.concatenate([by_split[s][k] for s in splits], axis=1) for k in MEASURES}
            for p, by_split in values.items()}


def matched(values, lines, where):
    """Lines of policies, {name: [policy]}, where KL and win rate are so much: {by: so much} ->
    {name: {by: None or {measure: {"value", "less": than on the first line, summaries}}}}."""
    found = {name: {} for name in lines}
    for by, target in where.items():
        there = {name: at(values, line, by, target) for name, line in lines.items()}
        usual = next(iter(there.values()))
        for name, own in there.items():
            found[name][by] = own and usual and {
                k: {"value": claims.summarised(own[k]),
                    "less": claims.summarised(own[k] - usual[k])} for k in MEASURES}
    return found


def compare(config):
    """Everything -> what narrowing.json holds: {"policies": {policy: {measure: summary}}; matched()
    of the "annotators", at a nat and at the wins of "as it is" with the largest beta, which all of
    them reach; of the "penalties", where k2 with a beta of 1 is; "labels": {annotator: shares as
    the gold score and for the likelier text, means of the seeds}}."""
    for seed in range(config.seeds):
        for name in set(sum(PENALTIES.values(), ())) & lineage.SWEEP.keys():
            lineage.train(lineage.variant(config, seed, name))
    runs, shares = lineage.load_runs(config), {name: [] for name in ANNOTATORS}
    names = {name: [f"{name}-{beta:g}".replace(" ", "-") for beta in BETAS] for name in ANNOTATORS}
    for run in runs:
        given = comparisons(config, run)
        for name in ANNOTATORS:
            paths, share = train_policies(config, run, name, given)
            shares[name].append(share)
            for policy, path in zip(names[name], paths.values()):
                network, record = checkpoint.load_frozen(path, "policy", run.device)
                run.networks[policy], run.digests[policy] = network, record["digest"]
    policies = {p: None for group in (*names.values(), *PENALTIES.values()) for p in group}
    values = measured(config, runs, policies, data.test_splits(config.data))
    near = {"kl": 1.0, "win_rate": values[names["as it is"][0]]["win_rate"].mean()}
    far = {by: values["k2-1"][by].mean() for by in ("kl", "win_rate")}
    lines = lambda of: {name: ["sft", *line] for name, line in of.items()}
    return {"policies": {p: claims.summaries(x) for p, x in values.items()},
            "annotators": matched(values, lines(names), near),
            "penalties": matched(values, lines(PENALTIES), far),
            "labels": {name: np.mean(each, axis=0).tolist() for name, each in shares.items()}}


# ---- showing -------------------------------------------------------------------------------------

SHOWN = {"quality": ("#999999", "of bad answers"), "narrowing": (figures.COLOURS["rlhf"],
                                                                "of good answers")}


def figure(path, found):
    """Kinds of answers lost against SFT, the good and the others: against what the annotators are
    like, at equal KL (full) and at equal win rate (dashed), and against KL for both estimators."""
    made, axes = figures.figure(3, 3.6, 3.4, (
        "annotators' noise", "their taste for the likely", "the penalty, k1 (full) and k2"))
    for axis, factor in zip(axes, (0, 1)):  # noise, bias: of those that have the other as it is
        names = [name for name, x in ANNOTATORS.items()
                 if x[1 - factor] == ANNOTATORS["as it is"][1 - factor]]
        names.sort(key=lambda name: ANNOTATORS[name][factor])
        for by, style in (("kl", "o-"), ("win_rate", "s--")):
            there = [k for k, name in enumerate(names) if found["annotators"][name][by]]
            for part, (colour, label) in SHOWN.items():
                figures.line(axis, there, [found["annotators"][names[k]][by][part]["value"]
                                           for k in there], fmt=style, color=colour,
                             label=label if by == "kl" else None)
        axis.set_xticks(range(len(names)), [f"{ANNOTATORS[name][factor]:g}" for name in names])
    axes[0].set(xlabel="gold points", ylabel="kinds of 8 answers fewer than SFT's")
    axes[1].set_xlabel("gold points a nat")
    for names, style in zip(PENALTIES.values(), ("o-", "s--")):
        by_kl = sorted((found["policies"][name] for name in names), key=lambda x: x["kl"]["mean"])
        for part, (colour, _) in SHOWN.items():
            figures.line(axes[2], [x["kl"]["mean"] for x in by_kl], [x[part] for x in by_kl],
                         fmt=style, color=colour)
    axes[2].set_xlabel(figures.KL)
    low, high = (edge(axis.get_ylim()[k] for axis in axes) for k, edge in ((0, min), (1, max)))
    for axis in axes:
        axis.axhline(0, color="#444444", lw=0.8)
        axis.set_ylim(low, high)
    axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figures.save(made, path)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs there are")
    parser.add_argument("--inputs", type=int, default=100, help="prompts a split")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()
    found = compare(rlhf.Config(seeds=args.seeds, inputs=args.inputs, out=args.out, sweeps=True))
    folder = data.run_folder("summarise", 0, args.out)
    (folder / "narrowing.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    figure(folder / "narrowing.png", found)
    print(f"wrote {folder / 'narrowing.json'} and narrowing.png")
