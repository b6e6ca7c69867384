"""
The study's figures and its report, made from one dict of numbers.

Every figure keeps one colour for one policy, shows 95 % intervals, and says in its caption what to
look for. `write` puts report.json, the figures, and what is said of them into a run folder twice:
as report.md, and as report.html, one file with all it needs (its template lies beside this file).
"""

import base64
import json
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Okabe and Ito's colours, which differ for every kind of colour vision.
COLOURS = {"base": "#999999", "sft": "#0072B2", "sft-t0.7": "#56B4E9", "sft-greedy": "#004466",
           "bon16": "#009E73", "bon": "#009E73", "rlhf": "#D55E00", "reference": "#000000"}


def figure(panels, width=3.4, height=2.9):
    from matplotlib.figure import Figure  # not pyplot: no window, no global state, just a file

    made = Figure(figsize=(width * panels, height))
    axes = [made.add_subplot(1, panels, k + 1) for k in range(panels)]
    for axis in axes:
        axis.grid(axis="y", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made, path, top=1.0):
    made.tight_layout(rect=(0, 0, 1, top))
    made.savefig(path, format="png", dpi=150)


def bars(axis, result, policies, splits, measure):
    "Grouped bars with intervals: a group for each split, a bar for each policy."
    width = 0.8 / len(policies)
    for k, policy in enumerate(policies):
        rows = [result["policies"][policy][split][measure] for split in splits]
        means = np.array([row["mean"] for row in rows])
        errors = [[m - row["low"] for m, row in zip(means, rows)],
                  [row["high"] - m for m, row in zip(means, rows)]]
        place = np.arange(len(splits)) + (k - (len(policies) - 1) / 2) * width
        axis.bar(place, means, width * 0.92, yerr=errors, color=COLOURS[policy], label=policy,
                 error_kw={"lw": 0.9, "ecolor": "#444444"})
    axis.set_xticks(range(len(splits)), splits, fontsize=9)


def overview(path, result, splits):
    "The study in one picture: what RLHF brings, what it costs, at what distance from SFT."
    made, axes = figure(3, 4.0, 3.3)
    disjoint = result["settings"]["full"]  # else bon16's answers repeat each other: see `contents`
    for axis, measure, label, policies in (
            (axes[0], "win_rate", "win rate against people", ["sft", "bon16", "rlhf"]),
            (axes[1], "per_input_ead", "EAD, answers to a prompt",
             ["sft", *["bon16"] * disjoint, "rlhf"])):
        bars(axis, result, policies, splits, measure)
        axis.tick_params(axis="x", rotation=20)
        axis.set_ylabel(label)
    axes[0].axhline(0.5, color="#444444", lw=0.8, ls=":")
    for family, points in result["frontier"].items():
        line(axes[2], [p["shifted_kl"] for p in points], [p["shifted_win_rate"] for p in points],
             fmt="o-", color=COLOURS[family])
    axes[2].set_xlabel("KL to sft, nats per response")
    axes[2].set_ylabel("win rate, mean of the shifts")
    for axis, title in zip(axes, ("quality", "diversity", "the bargain")):
        axis.set_title(title, fontsize=11)
    made.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3,
                loc="upper center")
    save(made, path, top=0.93)


def win_rates(path, result, splits, policies, measure, rival):
    made, (axis,) = figure(1, 1.7 * len(splits) + 1, 3.2)
    bars(axis, result, policies, splits, measure)
    axis.axhline(0.5, color="#444444", lw=0.8, ls=":")
    axis.set_ylabel(f"win rate against {rival}")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=8, ncols=6, loc="upper center", bbox_to_anchor=(0.5, 1.17))
    save(made, path)


def diversities(path, result, splits):
    policies = ["base", "sft", "sft-t0.7", "bon16", "rlhf"]
    made, axes = figure(2, 0.9 * len(splits) + 1, 3.2)
    for axis, where in zip(axes, ("per_input", "across_input")):
        bars(axis, result, policies, splits, f"{where}_ead")
        axis.set_title(where.replace("_", " "), fontsize=11)
        axis.set_ylabel("EAD")
    made.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=5,
                loc="upper center")
    save(made, path, top=0.93)


def frontiers(path, result):
    made, axes = figure(2, 4.2, 3.2)
    titles = ("in distribution", "mean of the shifts")
    places = {"sft": (4, -9), "rlhf": (-4, 5), "bon": (-5, 2)}  # of labels, clear of each other
    for axis, prefix, title in zip(axes, ("", "shifted_"), titles):
        for family, points in result["frontier"].items():
            x, rows = ([p[prefix + k] for p in points] for k in ("kl", "win_rate"))
            line(axis, x, rows, fmt="o-", color=COLOURS[family], label=family)
            right, up = places[family]
            for p, a, row in zip(points, x, rows):
                if p["label"] in ("T 0.8", "n 1"):  # too near to another
                    continue
                axis.annotate(p["label"], (a, row["mean"]), fontsize=7, xytext=(right, up),
                              ha="left" if right > 0 else "right", textcoords="offset points",
                              color=COLOURS[family])
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("KL to sft, nats per response")
        axis.set_ylabel("win rate")
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


def overoptimisation(path, result):
    scores = [score for score in ("proxy", "gold") if score in result["bon"][0]]
    made, axes = figure(len(scores), 4.2, 3.2)
    for axis, score in zip(axes, scores):
        for seed, rows in enumerate(result["ppo"]):
            x = np.sqrt(np.maximum([row["kl"] for row in rows], 0))
            axis.plot(x, [row[score] for row in rows], ".", ms=4, color=COLOURS["rlhf"],
                      alpha=0.6, label="ppo, one dot an iteration" if seed == 0 else None)
        axis.plot(np.sqrt([p["kl"] for p in result["bon"]]), [p[score] for p in result["bon"]],
                  "s-", ms=4, lw=1.4, color=COLOURS["bon"],
                  label=f"best of n, n = 1 to {result['bon'][-1]['n']}")
        axis.set_xlabel("square root of KL to sft, nats$^{1/2}$")
        axis.set_ylabel(f"{score} score of the samples")
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


def reward_accuracy(path, result, splits):
    made, (axis,) = figure(1, 1.3 * len(splits) + 1)
    known = {key for split in splits for key in result["reward_model"][split]}
    shown = {"gold": ("two samples, by gold score" if "wrong_fact" in known else
                      "stored comparisons, as people chose", "#0072B2"),
             "length": ("longer wins", "#999999"),
             "wrong_fact": ("one fact wrong", "#D55E00"),
             "wrong_fact_permuted": ("the same, another prompt", "#E69F00")}
    shown = {key: style for key, style in shown.items() if key in known}
    for k, (key, (label, colour)) in enumerate(shown.items()):
        means = [np.mean(result["reward_model"][s][key]) for s in splits]
        place = np.arange(len(splits)) + (k - 1.5) * 0.2
        axis.bar(place, means, 0.18, color=colour, label=label)
        for x, split in zip(place, splits):  # a dot for each seed
            seeds = result["reward_model"][split][key]
            axis.plot([x] * len(seeds), seeds, ".", ms=4, color="#222222")
    axis.axhline(0.5, color="#444444", lw=0.8, ls=":")
    axis.set_xticks(range(len(splits)), splits, fontsize=9)
    axis.set_ylabel("share of pairs ordered rightly")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.27))
    save(made, path)


def line(axis, x, rows, **style):
    "A curve of summaries with their intervals."
    mean, low, high = (np.array([row[k] for row in rows]) for k in ("mean", "low", "high"))
    axis.errorbar(x, mean, [mean - low, high - mean], ms=4, lw=1.4, elinewidth=0.9, **style)


def betas(path, result, split):
    "KL, win rate and diversity against beta, for both estimators in the reward."
    main = result["policies"]
    made, axes = figure(3, 3.4, 3.2)
    measures = {"kl": "KL to sft, nats per response", "win_rate": "win rate against references",
                "per_input_ead": "per-input EAD"}
    for axis, (measure, label) in zip(axes, measures.items()):
        for kl, style in (("k1", "o-"), ("k2", "s--")):
            at = {float(name[3:]): by_split for name, by_split in result["sweep"].items()
                  if name.startswith(f"{kl}-")}
            if kl == "k1":
                at[result["beta"]] = main["rlhf"]
            line(axis, sorted(at), [at[beta][split][measure] for beta in sorted(at)], fmt=style,
                 color=COLOURS["rlhf"] if kl == "k1" else "#CC79A7", label=f"rlhf, {kl}")
        if measure != "kl":
            row = main["sft"][split][measure]
            axis.axhline(row["mean"], color=COLOURS["sft"], lw=1.4, label="sft")
            axis.axhspan(row["low"], row["high"], color=COLOURS["sft"], alpha=0.15, lw=0)
        axis.set_xscale("log")
        axis.set_xlabel("beta")
        axis.set_ylabel(label)
    made.legend(*axes[1].get_legend_handles_labels(), frameon=False, fontsize=9, ncols=3,
                loc="upper center")
    save(made, path, top=0.93)


def sizes(path, result, splits):
    "Win rate in and out of distribution, and diversity, against the width of the model."
    made, axes = figure(3, 3.4, 3.2)
    widths = sorted(map(int, result["sizes"]))
    where = {"in distribution": splits[:1], "mean of the shifts": splits[1:]}
    panels = [(f"win rate, {name}", "win_rate", s) for name, s in where.items()] + [
        ("per-input EAD, in distribution", "per_input_ead", splits[:1])]
    for axis, (label, measure, of) in zip(axes, panels):
        for policy in ("sft", "rlhf"):
            rows = [[result["sizes"][str(w)][policy][s][measure] for s in of] for w in widths]
            line(axis, widths, [{k: np.mean([row[k] for row in each])
                                 for k in ("mean", "low", "high")} for each in rows],
                 fmt="o-", color=COLOURS[policy], label=policy)
        axis.set_xticks(widths)
        axis.set_xlabel("channels")
        axis.set_ylabel(label)
    axes[0].legend(frameon=False, fontsize=8)
    save(made, path)


class Figure(NamedTuple):
    file: str
    what: str
    caption: str


class Table(NamedTuple):
    header: list
    rows: list


def cell(row):
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def mean_over(result, policy, measure, splits):
    return float(np.mean([result["policies"][policy][s][measure]["mean"] for s in splits]))


def abstract(result, splits):
    "What was found, in a paragraph, from the numbers alone."
    at = lambda policy, measure, where: mean_over(result, policy, measure, where)
    near, far = splits[:1], splits[1:]
    lost = {k: 1 - at("rlhf", f"{k}_input_ead", near) / at("sft", f"{k}_input_ead", near)
            for k in ("per", "across")}
    by_verdict = {verdict: [c["id"] for c in result["claims"] if c["verdict"] == verdict]
                  for verdict in ("supported", "not supported", "inconclusive")}
    verdicts = "; ".join(f"{verdict}: {', '.join(ids)}" for verdict, ids in by_verdict.items()
                         if ids)
    better = sum(b["gain"] is not None and b["gain"]["mean"] > 0 for b in result["bargain"])
    return (f"Against people's references RLHF wins {at('rlhf', 'win_rate', near):.2f} in "
            f"distribution and {at('rlhf', 'win_rate', far):.2f} under the shifts (mean of "
            f"{len(far)}), SFT {at('sft', 'win_rate', near):.2f} and "
            f"{at('sft', 'win_rate', far):.2f}, best of 16 {at('bon16', 'win_rate', near):.2f} and "
            f"{at('bon16', 'win_rate', far):.2f}. RLHF stays {at('rlhf', 'kl', near):.1f} nats "
            f"from SFT; no further from it than SFT at the best of its own temperatures, it wins "
            f"more on {better} of {len(splits)} splits. Of SFT's diversity (EAD) it loses "
            f"{lost['per']:.0%} per input and {lost['across']:.0%} across inputs. Of the paper's "
            f"claims, {verdicts}.")


def advice(result, splits):
    "Which method for which use, from the measured numbers alone."
    mean = lambda policy, measure, where: mean_over(result, policy, measure, where)
    names = ["sft", "sft-t0.7", "sft-greedy", "bon16", "rlhf"]
    wins = {p: mean(p, "win_rate", splits[:1]) for p in names}
    far = {p: mean(p, "win_rate", splits[1:]) for p in names}
    wide = {p: mean(p, "per_input_ead", splits) for p in names
            if "per_input_ead" in result["policies"][p][splits[0]]}
    top, top_far, varied = (max(d, key=d.get) for d in (wins, far, wide))
    return (f"For one good answer to prompts like those trained on, {top} (win rate "
            f"{wins[top]:.2f}, sft {wins['sft']:.2f}); for prompts from elsewhere, {top_far} "
            f"({far[top_far]:.2f}, sft {far['sft']:.2f}); for many different answers to one "
            f"prompt, {varied} (per-input EAD {wide[varied]:.2f}, rlhf {wide['rlhf']:.2f}). Best "
            f"of 16 pays with sixteen times the sampling; rlhf pays once, in training.")


def contents(folder, result):
    """What the report says, its figures drawn into the folder -> [(title, parts)], where a part is
    a paragraph, a Figure or a Table. `result` is the study's dict (see rlhf.py)."""
    splits, settings = list(result["policies"]["sft"]), result["settings"]
    policies = ["base", "sft", "sft-t0.7", "sft-greedy", "bon16", "rlhf"]
    overview(folder / "overview.png", result, splits)
    win_rates(folder / "win_rate.png", result, splits, policies, "win_rate", "references")
    win_rates(folder / "head_to_head.png", result, splits, policies[2:], "vs_sft", "sft at T 1")
    diversities(folder / "diversity.png", result, splits)
    frontiers(folder / "frontier.png", result)
    overoptimisation(folder / "overoptimisation.png", result)
    n, k = result["policies"]["sft"][splits[0]]["win_rate"]["n"], settings["samples"]
    widely = ["base", "sft", "sft-t0.7", "bon16", "rlhf"]

    def by_policy(label, measure, names):  # empty, if that was not measured
        rows = [[p, *(cell(result["policies"][p][s][measure]) for s in splits)] for p in names
                if measure in result["policies"][p][splits[0]]]
        return [Table([label, *splits], rows)] * bool(rows)

    sections = [
        ("In short", [
            abstract(result, splits),
            Figure("overview.png", "overview",
                   "Left: win rate against people's references by split, bon16 at temperature 0.7. "
                   "Middle: diversity of the answers to one prompt, SFT and RLHF at temperature 1. "
                   "Right: what each nat from SFT buys under the shifts, for SFT and RLHF at every "
                   "temperature and best of n for every n. Look for orange above blue on the "
                   "left, how little below it in the middle, and for the higher curve on the "
                   "right.")]),
        ("The claims", [Table(["claim", "verdict", "what it says", "evidence"], [
            [c["id"], c["verdict"], c["claim"], c["evidence"]] for c in result["claims"]])]),
        ("Does it generalise?", [
            Figure("win_rate.png", "win rates",
                   f"Win rate by {result['judge']} against people's references on {n} prompts a "
                   "split, ties half. Look for the order of the colours within a group, and for "
                   "how far each falls from the first group."),
            *by_policy("policy", "win_rate", policies),
            Figure("head_to_head.png", "head to head",
                   "The same prompts, each policy against SFT at temperature 1, by "
                   f"{result['score']}. Look for bars above the dotted line in every group.")]),
        ("What does it cost in diversity?", [
            Figure("diversity.png", "diversity",
                   f"EAD of {k} outputs to one prompt (left) and of one output to each of {n} "
                   "prompts (right). Look for the drop from blue to orange on the left, and how "
                   "little of it is on the right."
                   + ("" if settings["full"] else " Best of 16 is drawn from overlapping hands of "
                      "a pool of 64, of which the best come up again and again: on the left its "
                      "bars are too low.")),
            *by_policy("per-input EAD", "per_input_ead", widely),
            *by_policy("per-input embedding", "per_input_embedding", widely),
            *by_policy("per-input NLI", "per_input_nli", widely),
            *by_policy("across-input EAD", "across_input_ead", widely)]),
        ("What does a nat of KL buy?", [
            Figure("frontier.png", "frontier",
                   "Win rate against KL to SFT, for SFT and RLHF at every temperature and best of "
                   f"n at temperature 1, {n} prompts a split. A curve further up and to the left "
                   "is the better bargain."),
            "SFT at the best of its temperatures, against RLHF at the best of those where it is no "
            "further from SFT:",
            Table(["split", "SFT's best", "KL", "RLHF", "KL", "gain in win rate", "each seed"],
                  [[b["split"], b["sft"], f"{b['sft_kl']:.2f}", *(
                      [b["rlhf"], f"{b['rlhf_kl']:.2f}", cell(b["gain"]),
                       " ".join(f"{x:+.2f}" for x in b["gain"]["seeds"])] if b["rlhf"]
                      else ["none so near", "", "", ""])] for b in result["bargain"]]),
            Figure("overoptimisation.png", "over-optimisation",
                   "The score that PPO optimises (left) and the one nobody does (right) along "
                   "PPO's path. If the right one turns down while the left one climbs, the reward "
                   "model is being exploited." if "gold" in result["bon"][0] else
                   "The score that PPO optimises, along its path.")])]
    if judged := list(result["reward_model"]):
        reward_accuracy(folder / "reward_model.png", result, judged)
        sections.append(("Does the reward model know what it judges?", [Figure(
            "reward_model.png", "reward model",
            "Share of pairs it orders rightly, a dot for each seed, on about "
            f"{result['reward_model'][judged[0]]['pairs'][0]:.0f} pairs. With another prompt, only "
            "what can be known without the prompt is left.")]))
    if "diverse" in result["policies"]:
        names = ["sft", "sft-t0.7", "bon16", "rlhf", "diverse"]
        sections.append(("A recipe that keeps diversity", [
            f"Of {8 * k} samples of SFT to a prompt, without unlikely tokens (min-p), the {k} that "
            "the reward model likes and that are unlike each other, chosen one after the other. "
            "That is 8 samples an answer, where best of 16 takes 16. What it gives is a set of "
            "answers, not independent samples of a policy, so it has no KL.",
            *by_policy("win rate", "win_rate", names),
            *by_policy("per-input EAD", "per_input_ead", names),
            *by_policy("per-input embedding", "per_input_embedding", names)]))
    judges = [name for name in ("win_rate_proxy", "win_rate_other", "win_rate_judge")
              if name in result["policies"]["rlhf"][splits[0]]]
    sections.append(("Do other judges agree?", [
        "Win rate against the same references by the reward model that rlhf and bon16 optimised "
        "(proxy)" + (", and by the reward model of another seed, which they did not (other)"
                     if "win_rate_other" in judges else "")
        + (f", and of one output a prompt by {settings['judge']} (judge)."
           if "win_rate_judge" in judges else "."),
        *(part for name in judges
          for part in by_policy(name.removeprefix("win_rate_"), name, policies))]))
    if result["sweep"]:
        betas(folder / "betas.png", result, splits[0])
        rates = {"1e-4": "lr-1e-4", f"{result['lr']:g} (the main run)": "rlhf", "4e-4": "lr-4e-4"}
        sections += [
            ("What does the KL penalty do?", [Figure(
                "betas.png", "beta",
                f"Runs of PPO with other betas, on {splits[0]}; k1 and k2 are the estimators of "
                "the KL in the reward (the paper's code has k2). Look for a beta at which the "
                "orange curve is back at the blue band on the right and still above it in the "
                "middle.")]),
            ("How was the learning rate of PPO chosen?", [Table(
                ["learning rate", "win rate on validation", "KL"],
                [[name, *(cell(result["sweep"][run]["validation"][k]) for k in ("win_rate", "kl"))]
                 for name, run in rates.items()])]),
            ("Controls", [Table(["control", "expected", "found", "holds"], [
                [c["control"], c["expected"], c["found"], "yes" if c["holds"] else "NO"]
                for c in result["controls"]])])]
    if result["sizes"]:
        sizes(folder / "sizes.png", result, splits)
        sections.append(("How much is the size of the model?", [Figure(
            "sizes.png", "sizes",
            f"Base, SFT, reward model and PPO at other widths, seed 0, the same steps, {n} "
            "prompts a split. Look for whether orange stays above blue (left, middle) and below it "
            "(right) at every width.")]))
    return [*sections,
            ("Which method for which use", [advice(result, splits)]),
            ("Time", [Table(["what", "minutes"], [
                [name, f"{spent / 60:.1f}"] for name, spent in result["seconds"].items()])])]


def in_markdown(part):
    if isinstance(part, Figure):
        return f"![{part.what}]({part.file})\n\n*{part.caption}*"
    if isinstance(part, Table):
        lines = [part.header, ["---"] + ["--:"] * (len(part.header) - 1), *part.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return part


def in_html(part, folder):
    "A part as HTML; a figure holds its picture. All texts are escaped: some are a user's."
    if isinstance(part, Figure):
        png = (folder / part.file).read_bytes()
        width, height = (int.from_bytes(png[k:k + 4], "big") for k in (16, 20))
        return (f'<figure><div class="picture scroll" tabindex="0" role="region" aria-label="'
                f'Figure: {escape(part.what)}"><img alt="{escape(part.what)}" width="{width}" '
                f'height="{height}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
                f"</div><figcaption>{escape(part.caption)}</figcaption></figure>")
    if not isinstance(part, Table):
        return f"<p>{escape(part)}</p>"

    def data_cell(text):  # an interval stands back; of a list, each has its line
        shown = re.sub(r"(\[[^\]]*\])", r"<small>\1</small>", escape(text)).replace("; ", "<br>")
        kind = {"supported": "short good", "not supported": "short bad", "NO": "short bad"}.get(
            text, "short" if len(text) < 24 else "long")
        return f'<td class="{kind}">{shown}</td>'

    rows = "".join(f'<tr><th scope="row">{escape(first)}</th>{"".join(map(data_cell, others))}</tr>'
                   for first, *others in part.rows)
    return (f'<div class="scroll" tabindex="0" role="region" aria-label="Table: '
            f'{escape(part.header[0])}"><table><thead><tr>'
            + "".join(f'<th scope="col">{escape(name)}</th>' for name in part.header)
            + f"</tr></thead><tbody>{rows}</tbody></table></div>")


def disagreements(shown, by):
    """Adds to every answer "apart", how much better it is by the proxy than by the score `by`, each
    in standard deviations from its mean over all answers shown: above 0 the proxy overrates it."""
    answers = [answer for item in shown for answer in item["answers"].values()]
    scores = np.array([[answer["proxy"], answer[by]] for answer in answers])
    scores = (scores - scores.mean(0)) / np.maximum(scores.std(0), 1e-12)
    for answer, (proxy, other) in zip(answers, scores):
        answer["apart"] = float(proxy - other)


def page(folder, title, about, sections, shown, scores):
    """The report as one HTML file: no script, style or picture of it lies anywhere else. `scores`
    {name: what it is} are those of the answers; the first decides."""
    by = next(iter(scores))
    name = lambda title: re.sub(r"\W+", "-", title.lower()).strip("-")
    if by != "proxy":
        disagreements(shown, by)
    parts = {
        "title": escape(title), "about": escape(about),
        "links": "".join(f'<li><a href="#{name(title)}">{escape(title)}</a></li>'
                         for title, _ in sections),
        "sections": "\n".join(
            f'<section id="{name(title)}"><h2>{escape(title)}</h2>\n'
            + "\n".join(in_html(part, folder) for part in parts) + "</section>"
            for title, parts in sections),
        "scores": escape("; ".join(f"{name}: {what}" for name, what in scores.items())),
        # As JSON without a "<", no text can end the script element that it stands in.
        "samples": json.dumps({"by": by, "samples": shown}).replace("<", "\\u003c")}
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<!--(\w+)-->", lambda place: parts[place[1]], template)


def write(folder, result, shown):
    """report.json, report.md, report.html and figures -> path of report.md.

    `result` is the study's dict (see rlhf.py); `shown` a list of {"split", "prompt", "answers":
    {policy: {"text", and its score by each judge there is}}}: the page shows them all, report.md
    the first two of each split.
    """
    folder, settings = Path(folder), result["settings"]
    kept = result | {"policies": {p: {"splits": x} for p, x in result["policies"].items()}}
    (folder / "report.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
    sections = contents(folder, result)
    title = f"What each stage does to generalisation and diversity: {settings['data']}"
    n = next(iter(result["policies"]["sft"].values()))["win_rate"]["n"]
    about = (f"{settings['seeds']} seed(s), {n} prompts a split, {settings['samples']} outputs a "
             f"prompt; brackets are 95 % intervals over prompts. bon16 and sft-t0.7 sample at "
             f"temperature 0.7 (the paper's), the others at 1.")
    text = [f"# {title}", about]
    for heading, parts in sections:
        text += [f"## {heading}", *map(in_markdown, parts)]
    text.append("## Samples")
    by = next(iter(result["scores"]))
    for split in result["policies"]["sft"]:
        for item in [item for item in shown if item["split"] == split][:2]:
            answers = "\n".join(f"{p:>10} [{answer[by]:5.2f}]  {answer['text']}"
                                for p, answer in item["answers"].items())
            text.append(f"```text\n({split}) {item['prompt']}\n{answers}\n```")
    path = folder / "report.md"
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    path.with_suffix(".html").write_text(
        page(folder, title, about, sections, shown, result["scores"]), encoding="utf-8")
    return path
