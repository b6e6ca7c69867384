"""
The study's figures, each from its dict of numbers (`result` of rlhf.study) into a PNG.

Every figure keeps one colour for one policy and shows 95 % intervals; its caption, in report.txt,
says what to look for. No window is opened, and a file is written whole or not at all.
"""

import math

import numpy as np

from data.claims import BEST, POLICIES
from data.files import write_file

# Okabe and Ito's colours, which differ for every kind of colour vision.
COLOURS = {"base": "#999999", "sft": "#0072B2", "sft-t0.7": "#56B4E9", "sft-greedy": "#004466",
           BEST: "#009E73", "bon": "#009E73", f"{BEST}-t0.7": "#7FD6BC", "rlhf": "#D55E00",
           "rlhf-t0.7": "#F2A56B", "dpo": "#CC79A7", "rloo": "#E69F00", "grpo": "#8C6D00",
           "reference": "#000000"}  # a lighter one at temperature .7
ABOVE = dict(frameon=False, loc="upper center")  # a legend above its panels
DOTTED = dict(color="#444444", lw=0.8, ls=":")
KL = "KL to sft, nats per response"


def figure(panels, width=3.4, height=2.9, titles=(), rows=1):
    "Panels in rows, of a width and a height each -> the figure, its axes one row after the other."
    from matplotlib.figure import Figure  # not pyplot: no window, no global state, just a file

    made = Figure(figsize=(width * panels / rows, height * rows))
    axes = [made.add_subplot(rows, panels // rows, k + 1) for k in range(panels)]
    for axis in axes:
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=11)
    return made, axes


def save(made, path, top=1.0):
    made.tight_layout(rect=(0, 0, 1, top))
    write_file(path, lambda file: made.savefig(file, format="png", dpi=150))


def arrays(rows):
    "Summaries -> their means and the lengths of the intervals below and above."
    mean, low, high = (np.array([row[k] for row in rows]) for k in ("mean", "low", "high"))
    return mean, [mean - low, high - mean]


def line(axis, x, rows, **style):
    "A curve of summaries with their intervals."
    axis.errorbar(x, *arrays(rows), ms=4, lw=1.4, elinewidth=0.9, **style)


def bars(axis, result, policies, measure, label):
    "Grouped bars with intervals: a group for each split, a bar for each policy."
    splits = list(result["policies"]["sft"])
    policies = [p for p in policies if measure in result["policies"][p][splits[0]]]
    width = 0.8 / len(policies)
    for k, policy in enumerate(policies):
        mean, errors = arrays([result["policies"][policy][split][measure] for split in splits])
        place = np.arange(len(splits)) + (k - (len(policies) - 1) / 2) * width
        axis.bar(place, mean, width * 0.92, yerr=errors, color=COLOURS[policy], label=policy,
                 error_kw={"lw": 0.9, "ecolor": "#444444"})
    axis.set_xticks(range(len(splits)), splits, fontsize=9)
    axis.set_ylabel(label)
    if measure.startswith(("win_rate", "vs_")):  # one half
        axis.axhline(0.5, **DOTTED)


def against_kl(axis, result, prefix, label):
    "Win rate against KL, a curve for each family of policies."
    for family, points in result["frontier"].items():
        line(axis, [p[f"{prefix}kl"] for p in points], [p[f"{prefix}win_rate"] for p in points],
             fmt="o-", color=COLOURS[family], label=family)
    axis.set(xlabel=KL, ylabel=label)


def overview(path, result):
    made, axes = figure(3, 4.0, 3.3, ("quality", "diversity", "quality against KL"))
    bars(axes[0], result, ["sft", BEST, "rlhf"], "win_rate", "win rate against people")
    bars(axes[1], result, ["sft", BEST, "rlhf"], "per_input_ead", "EAD, answers to a prompt")
    for axis in axes[:2]:
        axis.tick_params(axis="x", rotation=20)
    against_kl(axes[2], result, "shifted_", "win rate, mean of the shifts")
    made.legend(*axes[0].get_legend_handles_labels(), **ABOVE, fontsize=9, ncols=3)
    save(made, path, top=0.93)


def win_rates(path, result, policies, measure, rival):
    made, (axis,) = figure(1, 1.7 * len(result["policies"]["sft"]) + 1, 3.2)
    bars(axis, result, policies, measure, f"win rate against {rival}")
    axis.set_ylim(0, 1)
    lines = math.ceil(len(policies) / 4)
    axis.legend(**ABOVE, fontsize=8, ncols=4, bbox_to_anchor=(0.5, 1.07 + 0.08 * lines))
    save(made, path)


def diversities(path, result):
    made, axes = figure(3, 0.7 * len(result["policies"]["sft"]) + 1, 3.2,
                        (f"{result['settings']['samples']} answers to a prompt",
                         "two answers to a prompt", "an answer to each prompt"))
    policies = [p for p in POLICIES if p != "sft-greedy"]
    for axis, measure in zip(axes, ("per_input_ead", "per_input_ead_of_2", "across_input_ead")):
        bars(axis, result, policies, measure, "EAD")
    made.legend(*axes[2].get_legend_handles_labels(), **ABOVE, fontsize=8, ncols=8)
    save(made, path, top=0.89)


def good(path, result):
    "What is different and what of it is good, by split; the kinds lost, in parts; and pass@k."
    splits, policies = list(result["policies"]["sft"]), result["policies"]
    near, what = policies["rlhf"][splits[0]], result["kinds"].removeprefix("effective_")
    made, axes = figure(4, 3.5, 3.3, ("distinct words", f"{what} of good answers",
                                      f"{what} that RLHF has lost", f"pass@k, {splits[0]}"))
    bars(axes[0], result, ["sft", "rlhf", "dpo"], "per_input_ead", "EAD, answers to a prompt")
    bars(axes[1], result, ["sft", "rlhf", "dpo"], result["kinds"],
         f"{what} that beat the reference")
    quality, narrowing = (np.array([policies["rlhf"][s][part]["mean"] for s in splits])
                          for part in ("quality", "narrowing"))
    places, on = np.arange(len(splits)), np.where(quality * narrowing > 0, quality, 0)
    axes[2].bar(places, quality, 0.6, color=COLOURS["base"], label="of bad answers")
    axes[2].bar(places, narrowing, 0.6, bottom=on, color=COLOURS["rlhf"], label="of good answers")
    line(axes[2], places, [policies["rlhf"][s]["lost"] for s in splits], fmt="kD", label="all")
    axes[2].axhline(0, color="#444444", lw=0.8)
    axes[2].set_xticks(places, splits, fontsize=9)
    axes[2].set_ylabel(f"{what} fewer than SFT's")
    sizes = [int(name[5:]) for name in near if name.startswith("pass@")]
    for policy in POLICIES:
        if "pass@1" in policies[policy][splits[0]]:
            line(axes[3], sizes, [policies[policy][splits[0]][f"pass@{k}"] for k in sizes],
                 fmt="o-", color=COLOURS[policy], label=policy)
    axes[3].set(xscale="log", xlabel="k", ylabel="one of k is very good", ylim=(0, 1))
    axes[3].set_xticks(sizes, sizes)
    axes[3].minorticks_off()
    axes[3].legend(frameon=False, fontsize=7)
    for axis in axes[:3]:
        axis.tick_params(axis="x", rotation=20)
        axis.margins(y=0.25)
        axis.legend(**ABOVE, fontsize=7, ncols=3, columnspacing=0.8, handlelength=1)
    save(made, path)


def over_bars(path, result):
    "Kinds among the answers that have a score, against that score."
    found, near = result["over_bars"], next(iter(result["policies"]["sft"]))
    what = result["kinds"].removeprefix("effective_")
    made, axes = figure(2, 4.2, 3.2, (near, "all shifts"))
    for axis, part in zip(axes, (near, "shifts")):
        for policy in ("sft", "rlhf", "dpo"):
            line(axis, found["bars"], found[policy][part], fmt="o-", color=COLOURS[policy],
                 label=policy)
        if found["bar"] is not None:
            axis.axvline(found["bar"], **DOTTED)
        axis.set(xlabel=f"bar: {result['score']}", ylabel=f"{what} above the bar")
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


def frontiers(path, result):
    made, axes = figure(2, 4.2, 3.2, ("in distribution", "mean of the shifts"))
    offsets = {"sft": (4, -9), "rlhf": (-4, 5), "bon": (-5, 2)}  # of labels, clear of each other
    for axis, prefix in zip(axes, ("", "shifted_")):
        against_kl(axis, result, prefix, "win rate")
        for family, points in result["frontier"].items():
            right, up = offsets[family]
            for p in points:
                if p["label"] not in ("T 0.8", "n 1"):  # too near to another
                    axis.annotate(p["label"], (p[f"{prefix}kl"], p[f"{prefix}win_rate"]["mean"]),
                                  (right, up), textcoords="offset points", fontsize=7,
                                  ha="left" if right > 0 else "right", color=COLOURS[family])
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


def overoptimisation(path, result):
    """What PPO, on validation prompts, and best of n, on test prompts, rise above SFT on their own:
    between prompts a reward model's scores differ by as much. PPO's KL: of five iterations."""
    best = result["bon"]
    scores = [score for score in ("proxy", "gold") if score in best[0]]
    made, axes = figure(len(scores), 4.2, 3.2)
    for axis, score in zip(axes, scores):
        for seed, rows in enumerate(result["ppo"]):
            points = [(math.sqrt(max(np.mean([r["kl"] for r in rows[max(k - 4, 0):k + 1]]), 0)),
                       row[f"validation_{score}"] - rows[0][f"validation_{score}"])
                      for k, row in enumerate(rows) if f"validation_{score}" in row]
            axis.plot(*zip(*points), ".-", ms=5, lw=0.8, color=COLOURS["rlhf"], alpha=0.7,
                      label="ppo, as it trains" if seed == 0 else None)
        axis.plot(np.sqrt([p["kl"] for p in best]), [p[score] - best[0][score] for p in best],
                  "s-", ms=4, lw=1.4, color=COLOURS["bon"],
                  label=f"best of n, n = 1 to {best[-1]['n']}")
        axis.set(xlabel="square root of KL to sft, nats$^{1/2}$", ylabel=f"rise of {score} score")
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


def ordered_rightly(axis, rewards):
    "Share of pairs that reward models order rightly, by split and kind of pair."
    splits, known = list(rewards), {key for row in rewards.values() for key in row}
    styles = [("gold", "two samples, by gold score" if "wrong_fact" in known else
               "stored comparisons, as people chose", COLOURS["sft"]),
              ("length", "longer wins", COLOURS["base"]),
              ("wrong_fact", "one fact wrong", COLOURS["rlhf"]),
              ("wrong_fact_permuted", "the same, another prompt", "#E69F00")]
    for k, (key, label, colour) in enumerate(style for style in styles if style[0] in known):
        seeds = [rewards[split][key] for split in splits]
        place = np.arange(len(splits)) + (k - 1.5) * 0.2
        axis.bar(place, [np.mean(row) for row in seeds], 0.18, color=colour, label=label)
        for x, row in zip(place, seeds):  # a dot for each
            axis.plot([x] * len(row), row, ".", ms=4, color="#222222")
    axis.axhline(0.5, **DOTTED)
    axis.set_xticks(range(len(splits)), splits, fontsize=9)
    axis.set(ylabel="share of pairs ordered rightly", ylim=(0, 1))


def reward_accuracy(path, result):
    made, (axis,) = figure(1, 1.3 * len(result["reward_model"]) + 1)
    ordered_rightly(axis, result["reward_model"])
    axis.legend(**ABOVE, fontsize=8, ncols=2, bbox_to_anchor=(0.5, 1.27))
    save(made, path)


def betas(path, result, split):
    "KL, win rate and diversity against beta, for both estimators in the reward."
    made, axes = figure(3, 3.4, 3.2)
    measures = {"kl": KL, "win_rate": "win rate against references",
                "per_input_ead": "per-input EAD"}
    for axis, (measure, label) in zip(axes, measures.items()):
        for kl, style, colour in (("k1", "o-", COLOURS["rlhf"]), ("k2", "s--", "#CC79A7")):
            runs = {float(name[3:]): by_split for name, by_split in result["sweep"].items()
                    if name.startswith(f"{kl}-")}
            if kl == result["estimator"]:
                runs[result["beta"]] = result["sweep"]["rlhf"]
            line(axis, sorted(runs), [runs[beta][split][measure] for beta in sorted(runs)],
                 fmt=style, color=colour, label=f"rlhf, {kl}")
        if measure != "kl":
            row = result["sweep"]["sft"][split][measure]
            axis.axhline(row["mean"], color=COLOURS["sft"], lw=1.4, label="sft")
            axis.axhspan(row["low"], row["high"], color=COLOURS["sft"], alpha=0.15, lw=0)
        axis.set(xscale="log", xlabel="beta", ylabel=label)
    made.legend(*axes[1].get_legend_handles_labels(), **ABOVE, fontsize=9, ncols=3)
    save(made, path, top=0.93)


def beside_betas(axis, result, part, others):
    "Win rate against KL, a mean of some splits: PPO's betas as a curve, others as points."
    of = lambda p, measure: np.mean([result["sweep"][p][s][measure]["mean"] for s in part])
    betas = ["sft", "rlhf", *(p for p in result["sweep"]
                              if p.startswith(f"{result['estimator']}-"))]
    curve = sorted((of(p, "kl"), of(p, "win_rate")) for p in betas)
    axis.plot(*zip(*curve), "o-", ms=4, lw=1.4, color=COLOURS["rlhf"], label="rlhf, betas")
    for policy in others:
        axis.plot(of(policy, "kl"), of(policy, "win_rate"), "D", color=COLOURS[policy],
                  label=policy)
    axis.set(xlabel=KL, ylabel="win rate")


def arms(path, result, compared):
    "Win rate against KL, beside PPO's betas; and what of the answers is different and good."
    splits, what = list(result["policies"]["sft"]), result["kinds"].removeprefix("effective_")
    made, axes = figure(3, 3.6, 3.2, (splits[0], "mean of the shifts", f"{what} of good answers"))
    for axis, part in zip(axes, (splits[:1], splits[1:])):
        beside_betas(axis, result, part, compared[2:])
    axes[0].legend(frameon=False, fontsize=8)
    bars(axes[2], result, compared, result["kinds"], "of the answers to a prompt")
    axes[2].tick_params(axis="x", rotation=20)
    made.legend(*axes[2].get_legend_handles_labels(), **ABOVE, fontsize=8, ncols=5)
    save(made, path, top=0.93)


def sizes(path, result):
    "Win rate in and out of distribution, and diversity, against the width of the model."
    made, axes = figure(3, 3.4, 3.2)
    widths, near = sorted(map(int, result["sizes"])), next(iter(result["policies"]["sft"]))
    panels = [("win rate, in distribution", "win_rate", near),
              ("win rate, mean of the shifts", "win_rate", "shifts"),
              ("per-input EAD, in distribution", "per_input_ead", near)]
    for axis, (label, measure, part) in zip(axes, panels):
        for policy in ("sft", "rlhf"):
            rows = [result["sizes"][str(w)][policy][part][measure] for w in widths]
            line(axis, widths, rows, fmt="o-", color=COLOURS[policy], label=policy)
        axis.set(xticks=widths, xlabel="channels", ylabel=label)
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


# ---- of several tasks, each with its "name" in its dict ------------------------------------------


def panels(path, tasks, parts, width=3.4):
    """A panel for each part of each task, {title: (axis, result) -> drawn}, and one legend above;
    of several parts, a task's stand in a row."""
    rows = len(tasks) if len(parts) > 1 else 1
    made, axes = figure(len(tasks) * len(parts), width, 3.2, [
        result["name"] + f": {title}" * bool(title) for result in tasks for title in parts], rows)
    for k, axis in enumerate(axes):
        [*parts.values()][k % len(parts)](axis, tasks[k // len(parts)])
    labels = {label: handle for axis in axes
              for handle, label in zip(*axis.get_legend_handles_labels())}
    lines = math.ceil(sum(len(label) + 7 for label in labels) / 14 / made.get_figwidth())
    made.legend(labels.values(), labels, **ABOVE, fontsize=9, ncols=math.ceil(len(labels) / lines))
    save(made, path, top=1 - 0.07 * lines / rows)


def slanted(policies, measure, label):
    "`bars` of those policies that there are, as a part of `panels`."
    def drawn(axis, result):
        bars(axis, result, [p for p in policies if p in result["policies"]], measure, label)
        axis.tick_params(axis="x", rotation=20)
    return drawn


def differences(policies, measure, label):
    "What those policies that there are have more than SFT, by split, as a part of `panels`."
    def drawn(axis, result):
        there = [p for p in policies if p in result["gains"]]
        for k, policy in enumerate(there):
            rows = [by[measure] for by in result["gains"][policy].values()]
            place = np.arange(len(rows)) + (k - (len(there) - 1) / 2) * 0.15
            line(axis, place, rows, fmt="o", color=COLOURS[policy], label=policy)
        axis.axhline(0, **DOTTED)
        axis.set_xticks(range(len(result["gains"][there[0]])), [*result["gains"][there[0]]],
                        rotation=20, fontsize=9)
        axis.set_ylabel(label)
    return drawn


def everybody(others, prefix=""):
    "Families of policies by temperature and n, less greedy ones, and others as points."
    def drawn(axis, result):
        warm = {family: [p for p in points if p["label"] != "T 0"]
                for family, points in result["frontier"].items()}
        against_kl(axis, {"frontier": warm}, prefix, "win rate")
        for policy in (p for p in others if p in result["policies"]):
            near, *far = result["policies"][policy].values()
            means = (np.mean([row[measure]["mean"] for row in (far if prefix else [near])])
                     for measure in ("kl", "win_rate"))
            axis.plot(*means, "D", color=COLOURS[policy], label=policy)
    return drawn


def drops(gain):
    """What policies gain on SFT, gain(result, policy) -> [summary of each split], against how far
    SFT has fallen there; lines have the slope of the study."""
    def drawn(axis, result):
        rates = {s: by["win_rate"]["mean"] for s, by in result["policies"]["sft"].items()}
        fallen = next(iter(rates.values())) - np.array([*rates.values()])
        for policy in ("rlhf", BEST, "dpo"):
            rows = [{"low": row["mean"], "high": row["mean"]} | row for row in gain(result, policy)]
            line(axis, fallen, rows, fmt="o", color=COLOURS[policy], label=policy)
            middle, slope = arrays(rows)[0].mean(), result["slopes"][policy]["mean"]
            axis.axline((fallen.mean(), middle), slope=slope, lw=1, color=COLOURS[policy])
        for split, x in zip(rates, fallen):
            axis.text(x, 0.03, split, rotation=90, ha="center", fontsize=8, color="#666666",
                      transform=axis.get_xaxis_transform())
        axis.locator_params(axis="x", nbins=5)
        axis.set(xlabel="fall of SFT's win rate from in distribution", ylabel="win rate less SFT's",
                 ylim=(min(0, axis.get_ylim()[0]), None))
    return drawn
