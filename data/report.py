"""
The study's report, made from one dict of numbers (`result` of rlhf.study).

`write` puts report.json, the figures (data/figures.py), and what is said of them into a run folder
twice: as report.md, and as report.html, one file with all it needs. Beside this file lie the page's
template, report.html, and the paragraphs and captions, report.txt: a name, and a text whose braces
name numbers of `result` and of `numbers`.
"""

import base64
import json
import re
from collections import namedtuple
from html import escape
from pathlib import Path

import numpy as np

from data import figures
from data.claims import BEST, FRONTIER, POLICIES, in_words
from data.files import read_log, write_file

TEMPERATURES = {p: f"{temperature:g}" for p, (_, temperature) in POLICIES.items()}
Figure = namedtuple("Figure", "file what caption")
Table = namedtuple("Table", "header rows")
Strip = namedtuple("Strip", "stage prompt answers")  # {step: text}


def numbers(result):
    "What the paragraphs of report.txt name beside what is in `result` -> {name: value}."
    policies, splits = result["policies"], list(result["policies"]["sft"])

    def means(measure, where):  # of each policy that somebody might use, and of the best of them
        mean = {p: float(np.mean([policies[p][s][measure]["mean"] for s in where]))
                for p in POLICIES if p != "base" and measure in policies[p][splits[0]]}
        return mean | {"top": max(mean, key=mean.get), "best": max(mean.values())}

    ead = {kind: means(f"{kind}_input_ead", splits[:1]) for kind in ("per", "across")}
    ids = {verdict: ", ".join(c["id"] for c in result["claims"] if c["verdict"] == verdict)
           for verdict in ("supported", "not supported", "inconclusive")}
    gains = [row["gain"]["mean"] for row in result["matched_kl"] if row["gain"]]
    quality = next(iter(result["reward_model"].values()), {"pairs": [0]})
    return {"near": means("win_rate", splits[:1]), "far": means("win_rate", splits[1:]),
            "ead": means("per_input_ead", splits),
            "lost": {kind: 1 - mean["rlhf"] / mean["sft"] for kind, mean in ead.items()},
            "verdicts": "; ".join(f"{verdict}: {x}" for verdict, x in ids.items() if x),
            "kl": policies["rlhf"][splits[0]]["kl"]["mean"], "first": splits[0],
            "better": sum(gain > 0 for gain in gains), "reached": len(gains),
            "shifts": len(splits) - 1, "number": len(splits),
            "n": policies["sft"][splits[0]]["win_rate"]["n"],
            "what": result["kinds"].removeprefix("effective_"),
            "bar": "better than the reference" if (bar := result["over_bars"]["bar"]) is None else
                   f"a gold score of {bar:g} or more",
            "pool": 8 * result["settings"]["samples"],
            "pairs": quality["pairs"][0]}


def paragraphs(result):
    "The texts of report.txt with their numbers -> {name: text}."
    text = (Path(__file__).parent / "report.txt").read_text(encoding="utf-8")
    known = result | numbers(result)
    return {name: " ".join(lines).format(**known)
            for name, *lines in map(str.splitlines, text.split("\n\n"))}


def cell(row):
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def good_tables(result, splits):
    "What of a prompt's answers is different and good: by policy, by temperature, by split."
    policies, what = result["policies"], result["kinds"].removeprefix("effective_")
    near, how = policies["rlhf"][splits[0]], {**POLICIES, **FRONTIER}
    shown = {"distinct_texts": "texts", "effective_texts": "good texts", "distinct_kinds": "kinds",
             "effective_kinds": "good kinds", "per_input_vendi": "Vendi", "utility": "utility"}
    shown |= {name: name for name in near if name.startswith("pass@")}
    shown = {measure: name for measure, name in shown.items() if measure in near}
    yield Table([f"answers to a prompt of {splits[0]}", "T", *shown.values()], [
        [p, f"{how[p][1]:g}", *(f"{policies[p][splits[0]][m]['mean']:.2f}" for m in shown)]
        for p in how if p in policies and "utility" in policies[p][splits[0]]])
    yield Table([f"good {what} at T", "SFT", "RLHF", "RLHF less SFT"], [
        [f"{row['temperature']:g}", f"{row['sft']:.2f}", f"{row['rlhf']:.2f}",
         cell(row["difference"])] for row in result["temperatures"]])
    yield Table(["RLHF less SFT, at T 1", *splits], [
        [name, *(cell({k: -policies["rlhf"][s][part][other] for k, other in (
            ("mean", "mean"), ("low", "high"), ("high", "low"))}) for s in splits)]
        for part, name in (("lost", what), ("quality", "of bad answers"),
                           ("narrowing", "of good answers"))])
    yield matched_table(result["matched_wins"], "most of", "win_rate", f"gain in good {what}")


def matched_table(found, best, limit, gain):
    "Rows of claims.matched."
    name = {"kl": "KL", "win_rate": "wins"}[limit]
    return Table(["split", f"SFT's {best}", name, "RLHF", name, gain, "each seed"], [
        [row["split"], row["sft"], f"{row[f'sft_{limit}']:.2f}", *(
            [row["rlhf"], f"{row[f'rlhf_{limit}']:.2f}", cell(row["gain"]),
             " ".join(f"{x:+.2f}" for x in row["gain"]["seeds"])] if row["rlhf"] else
            ["none", "", "", ""])] for row in found])


def strips(folder, prompts=2, most=8):
    """What SFT's and PPO's policy answered to the first prompts while they were trained, at up to
    `most` steps, the first and the last among them; nothing of a run that has not kept it."""
    for stage in ("sft", "ppo"):
        path = folder / f"{stage}.samples.jsonl"
        by_prompt = {}
        for row in read_log(path) if path.exists() else []:
            rated = f"  [gold {row['gold']:.2f}]" if "gold" in row else ""
            by_prompt.setdefault(row["prompt"], {})[row["step"]] = row["answer"] + rated
        for prompt, answers in [*by_prompt.items()][:prompts]:
            steps, last = [*answers], len(answers) - 1
            kept = dict.fromkeys(steps[round(k * last / (most - 1))] for k in range(most))
            yield Strip(stage, prompt, {step: answers[step] for step in kept})


def contents(folder, result, texts):
    """What the report says, its figures drawn into the folder -> [(title, parts)], where a part is
    a paragraph of `texts`, a Figure, a Table or a Strip."""
    policies, splits = list(POLICIES), list(result["policies"]["sft"])
    measured, sweep = result["policies"]["rlhf"][splits[0]], result["sweep"]
    arms = result["settings"]["arms"].replace(",", " ").split()
    by_step = [*strips(folder)]
    kinds, compared = result["kinds"].removeprefix("effective_"), ["sft", "rlhf", *arms, "dpo"]

    def drawn(draw, name, what, *more):
        draw(folder / f"{name}.png", result, *more)
        return Figure(f"{name}.png", what, texts[name])

    def tables(names, **measures):  # {measure: label}
        return [Table([label, "T", *splits], [
                    [p, TEMPERATURES.get(p, "1"), *(cell(by_split[s][measure]) for s in splits)]
                    for p in names
                    if measure in (by_split := result["policies"][p])[splits[0]]])
                for measure, label in measures.items() if measure in measured]

    if result["settings"]["final"]:
        texts["about"] += " " + texts["final"]
    if any(result["cut"].values()):
        texts["about"] += " " + texts["cut"]
    if "gold" not in result["bon"][0]:
        texts["overoptimisation"] = texts["path"]
    texts["judges"] = ", ".join([texts["judges"], *(
        texts[name] for name in ("other", "judge") if f"win_rate_{name}" in measured)]) + "."
    diversity = dict(per_input_ead="per-input EAD", per_input_embedding="per-input embedding")
    chosen = {f"lr {result['lr']:g}, beta {result['beta']:g} (the main run)": "rlhf",
              "lr 1e-4": "lr-1e-4", "lr 4e-4": "lr-4e-4"} | {
        f"beta {name[3:]}": name for name in sweep if name.startswith(f"{result['estimator']}-")}
    sections = [
        ("In short", [texts["abstract"], drawn(figures.overview, "overview", "overview")]),
        ("The claims", [Table(["claim", "verdict", "what it says", "evidence"], [
            [c["id"], c["verdict"], c["claim"], c["evidence"]] for c in result["claims"]])]),
        ("Does it generalise?", [
            drawn(figures.win_rates, "win_rate", "win rates", policies, "win_rate", "references"),
            *tables(policies, win_rate="win rate"),
            drawn(figures.win_rates, "head_to_head", "head to head", [BEST, "rlhf"], "vs_sft",
                  "sft, all at T 1"), texts["at_length"], *tables(
                [BEST, *compared[1:]], gain_at_length="win rate less sft's, at equal length",
                length="tokens", ended="ended"),
            texts["slopes"],
            Table(["gain on SFT, per unit that SFT falls", "slope"], [
                [p, in_words(row)] for p, row in result["slopes"].items()])]),
        ("What does it cost in diversity?", [
            drawn(figures.diversities, "diversity", "diversity"),
            *tables(POLICIES, **diversity, per_input_nli="per-input NLI",
                    per_input_facts="per-input facts", across_input_ead="across-input EAD")]),
        ("Mistakes, or good answers?", [
            drawn(figures.good, "good", "what is good"), *good_tables(result, splits),
            drawn(figures.over_bars, "over_bars", "other bars")]),
        ("What win rate at what KL?", [
            drawn(figures.frontiers, "frontier", "frontier"), texts["matched_kl"],
            matched_table(result["matched_kl"], "best", "kl", "gain in win rate"),
            drawn(figures.overoptimisation, "overoptimisation", "over-optimisation")]),
        ("Does the reward model know what it judges?", [
            *([drawn(figures.reward_accuracy, "reward_model", "reward model"), texts["implicit"],
               Table(["pairs ordered rightly", *splits], [
                   [name, *(" ".join(f"{x:.2f}" for x in by_split[s][measure])
                            if s in by_split and measure in by_split[s] else "" for s in splits)]
                   for measure, name in (("gold", "samples"), ("wrong_fact", "one wrong fact"))
                   for by_split in [result["implicit"]]])] if result["reward_model"] else []),
            texts["panel"], Table(["answer", "reward model", "DPO's own"], [
                [what, *(f"{mean:.2f}, {share:.2f}" for mean, share in (
                    panel[what] for panel in result["panels"].values()))]
                for what in result["panels"]["reward"]])]),
        ("PPO, groups or DPO?", [
            texts["arms"], *tables(compared, win_rate="win rate", kl="KL", proxy="proxy",
                                   gold="gold", **diversity, **{result["kinds"]: "good " + kinds}),
            *([drawn(figures.arms, "compared", "PPO, groups, DPO", compared), texts["same_kl"],
               Table(["win rate less PPO's as far from SFT", *splits], [
                   [p, *(cell(row) if row else "" for row in by_split.values())]
                   for p, by_split in result["same_kl"].items()])] if sweep else [])]
         if arms or sweep else []),
        ("A recipe that keeps diversity", [texts["diverse"], *tables(
            [*list(POLICIES)[1:], "diverse"], win_rate="win rate", **diversity)]
         if "diverse" in result["policies"] else []),
        ("Do other judges agree?", [texts["judges"], *tables(
            policies, win_rate_proxy="proxy", win_rate_other="other", win_rate_judge="judge")]),
        ("What does the KL penalty do?",
         [drawn(figures.betas, "betas", "beta", splits[0])] if sweep else []),
        ("How were the learning rate and beta of PPO chosen?", [
            Table(["PPO with", "win rate on validation", "KL"], [
                [name, *(cell(sweep[run]["validation"][k]) for k in ("win_rate", "kl"))]
                for name, run in chosen.items() if run in sweep])] if sweep else []),
        ("Controls", [Table(["control", "expected", "found", "holds"], [
            [c["control"], c["expected"], c["found"], "yes" if c["holds"] else "NO"]
            for c in result["controls"]])] if sweep else []),
        ("How much is the size of the model?",
         [drawn(figures.sizes, "sizes", "sizes")] if result["sizes"] else []),
        ("Which method for which use", [texts["advice"]]),
        ("Time", [Table(["what", "minutes"], [
            [name, f"{spent / 60:.1f}"] for name, spent in result["seconds"].items()])]),
        ("From first to last", [texts["steps"], *by_step] if by_step else [])]
    return [(title, parts) for title, parts in sections if parts]


def in_markdown(part):
    if isinstance(part, Figure):
        return f"![{part.what}]({part.file})\n\n*{part.caption}*"
    if isinstance(part, Table):
        lines = [part.header, ["---"] + ["--:"] * (len(part.header) - 1), *part.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    if isinstance(part, Strip):
        answers = "\n".join(f"{step:>7}  {text}" for step, text in part.answers.items())
        return f"```text\n({part.stage}) {part.prompt}\n{answers}\n```"
    return part


def in_html(part, folder):
    "A part as HTML; a figure holds its picture. All texts are escaped: some are a user's."
    def box(kind, what, inside):  # what is too wide scrolls in its own
        return (f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(what)}">'
                f"{inside}</div>")

    def data_cell(text):  # an interval stands back; of a list, each has its line
        inside = re.sub(r"(\[[^\]]*\])", r"<small>\1</small>", escape(text)).replace("; ", "<br>")
        kind = {"supported": "short good", "not supported": "short bad", "NO": "short bad"}.get(
            text, "short" if len(text) < 24 else "long")
        return f'<td class="{kind}">{inside}</td>'

    if isinstance(part, Figure):
        png = (folder / part.file).read_bytes()
        width, height = (int.from_bytes(png[k:k + 4], "big") for k in (16, 20))
        picture = (f'<img alt="{escape(part.what)}" width="{width}" height="{height}" '
                   f'src="data:image/png;base64,{base64.b64encode(png).decode()}">')
        return (f"<figure>{box('picture scroll', f'Figure: {part.what}', picture)}"
                f"<figcaption>{escape(part.caption)}</figcaption></figure>")
    if isinstance(part, Table):
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in part.header)
        rows = "".join(f'<tr><th scope="row">{escape(first)}</th>'
                       f'{"".join(map(data_cell, others))}</tr>' for first, *others in part.rows)
        return box("scroll", f"Table: {part.header[0]}", f"<table><thead><tr>{head}</tr></thead>"
                                                         f"<tbody>{rows}</tbody></table>")
    if isinstance(part, Strip):
        text = lambda words: f'<div class="text" dir="auto">{escape(words)}</div>'
        cards = "".join(f"<li><small>step {step}</small>{text(words)}</li>"
                        for step, words in part.answers.items())
        return f"<h3>{part.stage}.py</h3>{text(part.prompt)}" + box(
            "scroll", f"Answers of {part.stage}.py by step", f'<ol class="strip">{cards}</ol>')
    return f"<p>{escape(part)}</p>"


def samples(rows, values, splits, prompts=36):
    """The first prompts of every split, with the first answer of every policy of seed 0 ->
    [{"split", "prompt", "answers": {policy: {"text", and its score by each judge there is}}}]."""
    def answer(policy, split, i):
        row, judged = rows[policy][split][0][i], values[policy][split].get("win_rate_judge")
        scores = {name: row[name][0] for name in ("gold", "other", "proxy") if name in row}
        if judged is not None:
            scores["judge"] = float(judged[0, i])
        return {"text": row["outputs"][0], **scores}

    return [{"split": split, "prompt": row["prompt"], "answers": {
                policy: answer(policy, split, i) for policy in [*POLICIES, "reference"]}}
            for split in splits for i, row in enumerate(rows["sft"][split][0][:prompts])]


def disagreements(shown, by):
    """Adds to every answer "apart", how much better it is by the proxy than by the score `by`, each
    in standard deviations from its mean over all answers shown: above 0 the proxy overrates it."""
    answers = [answer for item in shown for answer in item["answers"].values()]
    scores = np.array([[answer["proxy"], answer[by]] for answer in answers])
    scores = (scores - scores.mean(0)) / np.maximum(scores.std(0), 1e-12)
    for answer, (proxy, other) in zip(answers, scores):
        answer["apart"] = float(proxy - other)


def page(folder, result, title, about, sections, shown):
    "The report as one HTML file: no script, style or picture of it lies anywhere else."
    by, scores = next(iter(result["scores"])), result["scores"]
    if by != "proxy":
        disagreements(shown, by)
    links, bodies = "", []
    for heading, parts in sections:
        name = re.sub(r"\W+", "-", heading.lower()).strip("-")
        links += f'<li><a href="#{name}">{escape(heading)}</a></li>'
        inside = "\n".join(in_html(part, folder) for part in parts)
        bodies.append(f'<section id="{name}"><h2>{escape(heading)}</h2>\n{inside}</section>')
    filled = {
        "title": escape(title), "about": escape(about), "links": links,
        "sections": "\n".join(bodies),
        "scores": escape("; ".join(f"{name}: {what}" for name, what in scores.items())),
        # As JSON without a "<", no text can end the script element that it stands in.
        "samples": json.dumps({"by": by, "samples": shown}).replace("<", "\\u003c")}
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<!--(\w+)-->", lambda match: filled[match[1]], template)


def write(folder, result, shown):
    """report.json, report.md, report.html and figures -> path of report.md. `shown` is a list as
    `samples` gives it: the page shows them all, report.md the first two of each split."""
    folder, path = Path(folder), Path(folder) / "report.md"
    kept = result | {"policies": {p: {"splits": x} for p, x in result["policies"].items()}}
    write_file(folder / "report.json", json.dumps(kept, indent=1))
    title = f"What each stage does to generalisation and diversity: {result['settings']['data']}"
    texts = paragraphs(result)
    sections = contents(folder, result, texts)
    by = next(iter(result["scores"]))  # the score that decides
    lines = [f"# {title}", texts["about"]]
    for heading, parts in sections:
        lines += [f"## {heading}", *map(in_markdown, parts)]
    lines.append("## Samples")
    for split in result["policies"]["sft"]:
        for item in [item for item in shown if item["split"] == split][:2]:
            answers = "\n".join(f"{policy:>10} [{answer[by]:5.2f}]  {answer['text']}"
                                for policy, answer in item["answers"].items())
            lines.append(f"```text\n({split}) {item['prompt']}\n{answers}\n```")
    write_file(path, "\n\n".join(lines) + "\n")
    html = page(folder, result, title, texts["about"], sections, shown)
    write_file(path.with_suffix(".html"), html)
    return path


def last_lines(result, path):
    "What the screen shows at the end."
    rows = [(c["id"], c["verdict"], c["claim"], c["evidence"]) for c in result["claims"]]
    rows += [("", "holds" if c["holds"] else "FAILS", f"{c['control']}: {c['expected']}",
              c["found"]) for c in result["controls"]]
    lines = [f"{id:>4} {verdict:>14}  {what}\n{'':21}{evidence}"
             for id, verdict, what, evidence in rows]
    seeds, inputs, outputs = (result["settings"][key] for key in ("seeds", "inputs", "samples"))
    return "\n".join([*lines, f"rlhf: {seeds} seeds, {inputs} prompts a split, {outputs} outputs "
                      f"each, {result['seconds']['all'] / 60:.1f} minutes\nwrote {path} and its "
                      f"figures\nfor a browser, with samples: {path.with_suffix('.html')}"])
