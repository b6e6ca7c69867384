"""
Where the numbers on the results page come from: one kept file, data/results.json.

    python rlhf.py --full --final --arms rloo,grpo
    python -m tests.results out    # keeps what the pages need of its reports, then does as below
    python -m tests.results        # writes the tables and draws the figures from what is kept

A table stands on a page below a line `<!-- table NAME -->`, up to the next blank line. It is what
TABLES has of that name; or one that no study makes, by hand under "tables" of the kept file, a list
of rows. A summary is kept as a text, "mean [low, high] (each seed)", of four digits a number.
test_results.py holds the pages to the kept file, the numbers in their sentences too.
"""

import json
import re
from pathlib import Path

import numpy as np

from data import figures, files, world
from data.claims import BEST, FRONTIER, POLICIES
from data.flags import one_sentence, parser_of

KEPT, PAGES = Path("data/results.json"), (Path("README.md"), Path("data/RESULTS.md"))
TASKS = {"summarise": "summaries", "instruct": "instructions"}
LEARNED = ("rlhf", "rloo", "grpo", "dpo")
NAMES = {"base": "base", "sft": "SFT", "rlhf": "RLHF", "rloo": "RLOO", "grpo": "GRPO", "dpo": "DPO",
         BEST: f"best of {BEST[3:]}", "gold": "PPO on gold", "reference": "people"}
TEMPERATURES = {p: t for p, (_, t) in {**POLICIES, **FRONTIER}.items()} | dict.fromkeys(LEARNED, 1)
CLAIMS = {"C1a": "RLHF beats SFT, shifted or not", "C1b": "so does best of 16",
          "C2": "the larger the shift, the more RLHF gains", "C3a": "RLHF lowers EAD per input",
          "C3b": "and embedding diversity",
          "C4": "across inputs it falls less; of best of n by under .02",
          "C5a": "no beta gives EAD back, by k1", "C5b": "nor by k2",
          "C6": "diversity of facts hardly sees the loss",
          "C7": "the reward model stays accurate under shift",
          "C8": "of different good answers RLHF gives more"}
HOW = [(p, name) for family, name in NAMES.items()  # every policy; of a family the hot ones first
       for p in sorted(TEMPERATURES, key=TEMPERATURES.get, reverse=True)
       if p.partition("-")[0] == family]

# ---- what is kept --------------------------------------------------------------------------------

WHOLE = ("beta", "lr", "estimator", "kinds", "score", "claims", "controls", "gains", "slopes",
         "matched_kl", "same_kl", "temperatures", "frontier", "bon", "reward_model",
         "implicit", "panels", "sizes")
EVERYWHERE = ("win_rate", "kl", "gold", "proxy", "length", "ended", "gain_at_length",
              "per_input_ead", "per_input_embedding", "per_input_facts", "across_input_ead",
              "across_input_embedding", "distinct_kinds", "effective_kinds", "lost", "quality",
              "narrowing")
NEAR = ("distinct_texts", "effective_texts", "per_input_vendi", "utility",  # of the first split
        *(f"pass@{k}" for k in (1, 2, 4, 8, 16)))
PARTS = {"facts": "content", "constraints": "content", "wrong": "slips", "language": "slips",
         "hedging": "habits", "asides": "habits"}
STAGES = ("reward", "dpo", "ppo", "rloo/ppo", "grpo/ppo")


def of_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def of_parts(folder, splits, prefix):
    """Points of the gold score by what they are for, means of four answers to a prompt: what is
    said of what was asked, slips (false, or no sentence), habits -> {policy: {split: {part}}}."""
    def of(policy, split):
        points = {}
        for path in folder.glob(f"**/samples/{prefix}{split}.{policy}.jsonl"):
            for row in files.read_log(path):
                for text in row["outputs"][:4]:
                    for part, x in world.parts(row["prompt"], text).items():
                        points.setdefault(PARTS.get(part), []).append(x)
        answers = len(points.get("content", ()))  # of some other parts there are two to each
        return {part: sum(points[part]) / answers for part in ("content", "slips", "habits")
                if answers}
    return {p: {s: of(p, s) for s in splits} for p in ("sft", "rlhf", "sft-t0.7", "rlhf-t0.7")}


def of_report(folder):
    "What the pages need of a task's report; and of its logs, the minutes of each stage and seed."
    report = of_json(folder / "report.json")
    policies = {p: x["splits"] for p, x in report["policies"].items()}

    def trimmed(policies, everywhere, near):
        first = (next(iter(report["policies"]["sft"]["splits"])), "validation")
        return {p: {s: {k: x for k, x in by.items() if k in everywhere or k in near and s in first}
                    for s, by in by_split.items()} for p, by_split in policies.items()}

    settings = {k: report["settings"][k] for k in ("seeds", "inputs", "samples", "arms", "final")}
    logs = {name.partition("/")[0]: [path for part in ("", "seed-1", "seed-2") if (
        path := folder / part / f"{name}.jsonl").exists()] for name in STAGES}
    for c in report["claims"]:
        if c["id"] == "C2":  # with more digits
            c["evidence"] = packed(report["slopes"]["rlhf"])
    return {k: report[k] for k in WHOLE} | {
        "settings": settings, "parts": of_parts(
            folder, list(policies["sft"]), "final-" * settings["final"]),
        "policies": trimmed(policies, EVERYWHERE, NEAR),
        "sweep": trimmed(report["sweep"], ("win_rate", "kl"), ("per_input_ead", "gold", "proxy")),
        "ppo": [[{k: row[k] for k in ("step", "kl", "validation_proxy", "validation_gold")
                  if k in row} for row in rows] for rows in report["ppo"]],
        "minutes": {name: [files.read_log(path)[-1]["seconds"] / 60 for path in paths]
                    for name, paths in logs.items()}}


def of_tradeoff(path):
    "tradeoff.json with one drawing, the mean of all seeds, and an empty one for each seed more."
    found, points = of_json(path), {}
    for family, label, means in sum(found["drawn"], []):
        points.setdefault((family, label), []).append(means)
    mean = [[family, label if len(label) < 30 else str(k), {
        name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "kinds"}]
        for k, ((family, label), rows) in enumerate(points.items())]
    return found | {"drawn": [mean, *([] for _ in found["drawn"][1:])]}


BESIDE = {"tradeoff": of_tradeoff, "narrowing": of_json}  # of tests/tradeoff.py and narrowing.py
SUMMARY = re.compile(r"([-+\d.e]+) \[([-+\d.e]+), ([-+\d.e]+)\] \(([-+\d.e, ]+)\)")


def packed(x):
    "Numbers of four digits, summaries as texts."
    if isinstance(x, list):
        return [*map(packed, x)]
    if isinstance(x, dict) and "mean" in x:
        mean, low, high, *each = (f"{y:.4g}" for y in (x["mean"], x["low"], x["high"], *x["seeds"]))
        return f"{mean} [{low}, {high}] ({', '.join(each)})"
    if isinstance(x, dict):
        return {key: packed(value) for key, value in x.items()}
    return float(f"{x:.4g}") if isinstance(x, float) else x


def summary_of(match):
    "A match of SUMMARY -> a summary as data/claims.py has them, less its n."
    return {**dict(zip(("mean", "low", "high"), map(float, match.groups()))),
            "seeds": [*map(float, match[4].split(", "))]}


def keep(out, path=KEPT):
    "Puts what there is in OUT into the kept file. ValueError if there is nothing."
    kept = of_json(path) if path.exists() else {}
    folders = [Path(out) / task for task in TASKS if (Path(out) / task / "report.json").exists()]
    if not folders:
        raise ValueError(f"{out} has no summarise/report.json and no instruct/report.json: give "
                         f"the --out of python rlhf.py --full --final --arms rloo,grpo")
    for folder in folders:
        before = {k: x for k, x in kept.get(folder.name, {}).items() if k in BESIDE}
        kept[folder.name] = packed(of_report(folder) | before)
        kept[folder.name] |= {name: packed(of(folder / f"{name}.json"))
                              for name, of in BESIDE.items() if (folder / f"{name}.json").exists()}
    text = json.dumps(kept, indent=1, ensure_ascii=False)  # a line for each summary, row or list
    text = re.sub(r'\[(?:[^][{}"]|"[^"]*")*\]|\{[^][{}]*\}',
                  lambda match: re.sub(r"\n *", " ", match[0]), text)
    files.write_file(path, text + "\n")


def read(path=KEPT):
    """The kept file -> {task: its report, with its "name" and its "splits", and these as code},
    and "tables". ValueError if there is none."""
    if not path.exists():
        raise ValueError(f"{path} does not exist: python -m tests.results OUT makes it of the "
                         f"reports in OUT")
    summaries = lambda found: {key: summary_of(match) if (
        key != "evidence" and isinstance(x, str) and (match := SUMMARY.fullmatch(x))) else x
        for key, x in found.items()}
    kept = json.loads(path.read_text(encoding="utf-8"), object_hook=summaries)
    for task in TASKS.keys() & kept.keys():
        splits = list(kept[task]["policies"]["sft"])
        kept[task] |= {"name": TASKS[task], "splits": splits, "code": [f"`{s}`" for s in splits]}
    return kept


# ---- numbers as the pages write them -------------------------------------------------------------


def at(x, *keys):
    "What there is under keys within each other; None if nothing."
    for key in keys:
        x = x.get(key) if x else None
    return x


def shown(x, digits=2, sign=""):
    "A number, or the mean of a summary: .76, -.05; nothing of None or NaN."
    x = x["mean"] if isinstance(x, dict) else x
    if x is None or x != x:
        return ""
    x = abs(x) if not sign and not round(x, digits) else x  # no -.00
    return re.sub(r"^([-+]?)0\.", r"\1.", f"{x:{sign}.{digits}f}")


def interval(x, digits=2, sign=""):
    "A summary as .76 [.74, .78]; the mean alone where no interval is known."
    limits = [shown(at(x, key), digits, "-") for key in ("low", "high")]
    return shown(x, digits, sign) + f" [{', '.join(limits)}]" * all(limits)


def seeds(x, digits=2, sign=""):
    return " ".join(shown(seed, digits, sign) for seed in at(x, "seeds") or [])


def with_seeds(name, differences):
    "Two rows: summaries with their intervals, and what they are for each seed."
    return [[name, *(interval(x, 2, "+") for x in differences)],
            ["each seed", *(seeds(x, 2, "+") for x in differences)]]


def in_words(text, digits=2, number=interval):
    "A text of data/claims.py with the names and numbers of the pages."
    text = SUMMARY.sub(lambda match: number(summary_of(match), digits, "+"), text)
    text = re.sub(r"\b(sft|rlhf|bon16)(?:-t0(\.\d))?\b", lambda match: NAMES[match[1]] + (
        f" at T {match[2]}" if match[2] else ""), text)
    text = re.sub(r"\b(k[12])-([\d.]+):", r"\1, beta \2:", text)
    text = re.sub(r"(?<![\w.])([-+]?)0(\.\d)", r"\1\2", text)
    return text.replace(" + .02 ", " plus .02: ").replace(" ead", " EAD").replace("%", " %")


def temperature(policy):
    return (f"{TEMPERATURES[policy]:g}".lstrip("0") or "0") if policy else "none"


def of(r, policy, measure, digits=2):
    "A measure of a policy on each split."
    return [shown(at(r, "policies", policy, s, measure), digits) for s in r["splits"]]


def said(r, id):
    "The summaries in the evidence of a claim -> {what it is of: summary}."
    evidence = "".join(c["evidence"] for c in r["claims"] if c["id"] == id)
    return {part[:match.start()].strip(): summary_of(match)
            for part in evidence.split("; ") for match in SUMMARY.finditer(part)}


def gain(r, policy, measure="win_rate", than="sft"):
    """A policy less another on each split -> [summary]: paired by prompt, or, of what is measured
    across them, and of others than SFT, without an interval."""
    def less(s):
        a, b = (at(r, "policies", p, s, measure) for p in (policy, than))
        return {"mean": a["mean"] - b["mean"],
                "seeds": [x - y for x, y in zip(a["seeds"], b["seeds"])]} if a and b else None
    return [than == "sft" and at(r, "gains", policy, s, measure) or less(s) for s in r["splits"]]


# ---- tables: of what is kept of a task, rows of texts; the header is first, less its first cell --


def digits_of(claim):
    return 3 if claim["id"][:2] in ("C3", "C4", "C5") else 2


def evidence(claim, number):
    return in_words(claim["evidence"], digits_of(claim), number)


def policies(r):
    def both(p, measure, digits=2):  # in distribution / mean of the shifts
        first, *far = (at(r, "policies", p, s, measure) for s in r["splits"])
        mean = float(np.mean([x["mean"] for x in far])) if all(far) else None
        return " / ".join(filter(None, (shown(first, digits), shown(mean, digits))))
    return [["T", "win rate", "KL", "EAD", "embeddings", "tokens"], *(
        [name, temperature(p), both(p, "win_rate"), both(p, "kl"), both(p, "per_input_ead", 3),
         both(p, "per_input_embedding", 3), both(p, "length", 1)]
        for p, name in HOW if p in r["policies"])]


def parts(r):
    rows = [["T", *r["code"]]]
    for t in ("", "-t0.7"):
        sft, rlhf = ([at(r, "parts", p + t, s) for s in r["splits"]] for p in ("sft", "rlhf"))
        for part, what in (("content", "what was asked"), ("slips", "slips"), ("habits", "habits")):
            rows += [[f"{what}: SFT", temperature(f"sft{t}"), *(shown(at(x, part)) for x in sft)],
                     ["RLHF less SFT", temperature(f"rlhf{t}"), *(
                         shown(b[part] - a[part], 2, "+") for a, b in zip(sft, rlhf) if a and b)]]
    return rows


def diversity(r):
    measures = {"per_input_ead": "EAD", "per_input_embedding": "embeddings",
                "per_input_facts": "facts", "across_input_ead": "EAD across",
                "across_input_embedding": "embeddings across"}
    return [r["code"], *(row for k, name in measures.items() for row in (
        [f"{name}: SFT", *of(r, "sft", k, 3)], [f"{name}: RLHF", *of(r, "rlhf", k, 3)],
        ["less SFT", *(interval(x, 3, "+") for x in gain(r, "rlhf", k))]))]


def kinds(r):
    def more(part):
        each = [r["policies"]["rlhf"][s][part] for s in r["splits"]]
        return [{"mean": -x["mean"], "low": -x["high"], "high": -x["low"],
                 "seeds": [-seed for seed in x["seeds"]]} for x in each]
    return [r["code"], ["SFT has", *of(r, "sft", "distinct_kinds")],
            *with_seeds("RLHF less SFT", more("lost")),
            *with_seeds("of bad answers", more("quality")),
            *with_seeds("of good answers", more("narrowing"))]


def good(r):
    columns = {"win_rate": "wins", "distinct_texts": "texts", "effective_texts": "good texts",
               "distinct_kinds": "kinds", "effective_kinds": "good kinds",
               "per_input_vendi": "Vendi", "utility": "utility", **{k: k for k in NEAR if "@" in k}}
    found = [(name, p, at(r, "policies", p, r["splits"][0])) for p, name in HOW]
    return [["T", *columns.values()], *([name, temperature(p), *(shown(x.get(k)) for k in columns)]
                                        for name, p, x in found if at(x, "utility"))]


def compared(r):
    def row(p):
        spent = at(r, "minutes", {"rlhf": "ppo"}.get(p, p))
        return [NAMES[p], *(" ".join(of(r, p, k)) for k in ("win_rate", "kl")),
                of(r, p, "per_input_ead", 3)[0],
                *(of(r, p, k)[0] for k in ("effective_kinds", "gold", "proxy")),
                shown(float(np.mean(spent)), 1) if spent else ""]
    return [["win rate, every split", "KL, every split", "EAD", "good kinds", "gold", "proxy",
             "minutes"], *(row(p) for p in ("sft", *LEARNED) if p in r["policies"])]


def betas(r):
    runs = [(p[:2], float(p[3:]), p) for p in r["sweep"] if p[:3] in ("k1-", "k2-")]
    runs = sorted([*runs, (r["estimator"], r["beta"], "rlhf")], key=lambda x: (x[0], -x[1]))

    def row(name, p):
        x = at(r, "sweep", p, r["splits"][0])
        return [name, *(shown(at(x, k), 2 + (k == "per_input_ead")) for k in (
            "kl", "win_rate", "per_input_ead", "gold", "proxy"))]
    return [["KL", "win rate", "EAD", "gold", "proxy"], row("SFT", "sft"),
            *(row(f"{kl}, beta {f'{beta:g}'.lstrip('0')}{', the main run' * (p == 'rlhf')}", p)
              for kl, beta, p in runs)]


def lrs(r):
    runs = {"the main run": "rlhf", "lr 1e-4": "lr-1e-4", "lr 4e-4": "lr-4e-4"}
    return [["win rate on validation", "KL"], *(
        [name, interval(at(r, "sweep", p, "validation", "win_rate")),
         shown(at(r, "sweep", p, "validation", "kl"))]
        for name, p in runs.items())]


def controls(r):
    return [["expected", "found", "holds"], *(
        [name, in_words(x["expected"]), in_words(x["found"]), "yes" if x["holds"] else "no"]
        for name, x in zip(("shuffled labels", "gold as reward", "beta 10"), r["controls"]))]


def overoptimisation(r):
    "What proxy and gold score have risen above SFT's: by best of n, and as PPO trains."
    first, runs = r["bon"][0], r["ppo"]
    mean = lambda each, sign="": shown(float(np.mean([*each])), 2, sign)
    return [["KL", "proxy", "gold"], *(
        [f"best of {x['n']}", shown(x["kl"]), shown(x["proxy"] - first["proxy"], 2, "+"),
         shown(x["gold"] - first["gold"], 2, "+")] for x in r["bon"][1:]), *(
        [f"PPO, iteration {row['step']}",
         mean(x["kl"] for rows in runs for x in rows[max(k - 4, 0):k + 1]),
         *(mean((rows[k][score] - rows[0][score] for rows in runs), "+")
           for score in ("validation_proxy", "validation_gold"))]
        for k, row in enumerate(runs[0]) if k and "validation_proxy" in row)]


def accuracy(r):
    names = {"gold": "two samples", "length": "the longer one", "permuted": "another prompt's",
             "wrong_fact": "one fact wrong", "wrong_fact_permuted": "the same, another prompt's"}
    text = lambda each: f"{shown(float(np.mean(each)))} ({seeds({'seeds': each})})" if each else ""
    return [r["code"], *([whose + name, *(text(at(r, part, s, k)) for s in r["splits"])]
                         for part, whose in (("reward_model", ""), ("implicit", "DPO: "))
                         for k, name in names.items() if not whose or k in ("gold", "wrong_fact"))]


def sizes(r):
    columns = [(name, k, s) for name, k in (("wins", "win_rate"), ("EAD", "per_input_ead"))
               for s in (r["splits"][0], "shifts")]
    return [[f"{name}, {s}" for name, _, s in columns], *(
        [f"{width} channels, {NAMES[p]}", *(interval(by[p][s][k], 2 + (name == "EAD"))
                                            for name, k, s in columns)]
        for width, by in sorted(r["sizes"].items(), key=lambda x: int(x[0]))
        for p in ("sft", "rlhf"))]


ANNOTATORS = {"as it is": "as they are", "noise-half": "noise .25", "noise-2": "noise 1",
              "noise-4": "noise 2", **{f"typical-{x}": f"taste {x}" for x in (".03", ".1", ".3")}}


def narrowing(r):
    """Of annotators, and of k2 beside k1: what the first of them loses at some KL and at some win
    rate, and how much more the others do."""
    columns = {"quality": ("bad kinds lost", 2), "narrowing": ("good kinds lost", 2),
               "per_input_ead": ("EAD", 3)}
    rows = [["at equal", "KL", "wins", "tokens", *(name for name, _ in columns.values())]]
    for by, what in (("kl", "KL"), ("win_rate", "wins")):
        for lines in (at(r, "narrowing", group) or {} for group in ("annotators", "penalties")):
            there = {name: x[by] for name, x in lines.items() if x[by]}
            for k, (name, x) in enumerate(there.items()):
                rows.append([ANNOTATORS.get(name, name), what, *(
                    shown(x[m]["value"], digits) for m, digits in (
                        ("kl", 2), ("win_rate", 2), ("length", 1))), *(
                    f"{interval(x[m]['less'], digits, '+')} ({seeds(x[m]['less'], digits, '+')})"
                    if k else shown(x[m]["value"], digits) for m, (_, digits) in columns.items())])
    return rows


def annotators(r):
    found = at(r, "narrowing") or {}
    return [["labels as the gold score", "for the likelier text"], *(
        [ANNOTATORS[name], *map(shown, shares)]
        for name, shares in found.get("labels", {}).items())]


def on_frontier(rows, measures):
    """Rows of tests/tradeoff.py: who, and of each measure (name, 0) the gain in wins where there is
    as much of it, (name, 1) in it at as many wins. Bold: clear of zero."""
    def text(gain, place):
        mean, low, high = gain[place]
        if mean != mean:
            return ("none so diverse", "none wins so much")[place]
        bold = "**" * (low > 0 or high < 0)
        return bold + interval({"mean": mean, "low": low, "high": high}, 2, "+").replace(
            " [", bold + " [")
    return [[in_words(f"{x['family']}, {x['label']}"), str(x["seed"]),
             *(text(x[name], place) for name, place in measures)]
            for x in sorted(rows or [], key=lambda x: x["family"])]


BOTH = {("ead", 0): "wins at equal EAD", ("embedding", 0): "at equal embeddings"}
ALL = BOTH | {("ead", 1): "EAD at equal wins", ("embedding", 1): "embeddings at equal wins"}
WITH_KINDS = BOTH | {("kinds", 1): "good kinds at equal wins"}


def verdicts(results):
    "For the README: the claims of both tasks, and the least and the most that is found on one."
    tasks = [results[task] for task in TASKS if task in results]

    def found(c):
        means = [x["mean"] for x in said(tasks[0], c["id"]).values()]
        if len(means) < 2 or c["id"] == "C4":
            return evidence(c, interval).partition("; ")[0]
        return " to ".join(shown(edge(means), digits_of(c), "+") for edge in (min, max))
    verdict = [{c["id"]: c["verdict"] for c in r["claims"]} for r in tasks]
    return [["", "claim", *(r["name"] for r in tasks), f"found on {tasks[0]['name']}"],
            *([c["id"], CLAIMS[c["id"]], *(by_id.get(c["id"], "") for by_id in verdict), found(c)]
              for c in tasks[0]["claims"])]


TABLES = {
    "claims": lambda r: [["claim", "verdict", "mean [95 %] (each seed)"], *(
        [c["id"], CLAIMS[c["id"]], c["verdict"],
         evidence(c, lambda *x: f"{interval(*x)} ({seeds(*x)})")] for c in r["claims"])],
    "policies": policies,
    "wins": lambda r: [r["code"], *([NAMES[p], *(
        interval(at(r, "policies", p, s, "win_rate")) for s in r["splits"])]
        for p in ("sft", *LEARNED, BEST))],
    "gains": lambda r: [r["code"], *(row for p in ("rlhf", "dpo", BEST)
                                     for row in with_seeds(NAMES[p], gain(r, p))),
                        *with_seeds("RLHF, both at T .7", gain(r, "rlhf-t0.7", than="sft-t0.7"))],
    "parts": parts,
    "slopes": lambda r: [["slope", "each seed"], *(
        [NAMES[p], interval(x, 2, "+"), seeds(x, 2, "+")] for p, x in r["slopes"].items())],
    "diversity": diversity, "kinds": kinds, "good": good,
    "temperatures": lambda r: [["RLHF less SFT", "each seed"], *(
        [f"T {shown(x['temperature'], 1)}".removesuffix(".0"),
         interval(x["difference"], 2, "+"), seeds(x["difference"], 2, "+")]
        for x in r["temperatures"])],
    "matched_kl": lambda r: [
        ["SFT's T", "KL", "RLHF's T", "KL", "RLHF wins more", "each seed"], *(
            [f"`{x['split']}`", temperature(x["sft"]), shown(x["sft_kl"]), temperature(x["rlhf"]),
             shown(x["rlhf_kl"]), interval(x["gain"], 2, "+"), seeds(x["gain"], 2, "+")]
            for x in r["matched_kl"])],
    "same_kl": lambda r: [r["code"], *(row for p in LEARNED[1:] for row in with_seeds(
        NAMES[p], [at(r, "same_kl", p, s) for s in r["splits"]]))],
    "compared": compared, "betas": betas, "lrs": lrs, "controls": controls,
    "overoptimisation": overoptimisation, "accuracy": accuracy,
    "panel": lambda r: [["score", "rated above", "DPO's score", "rated above"], *(
        [what, *map(shown, (*x, *r["panels"]["dpo"][what]))]
        for what, x in r["panels"]["reward"].items())],
    "sizes": sizes,
    "lengths": lambda r: [
        r["code"], *with_seeds("RLHF, wins at equal length", [
            at(r, "policies", "rlhf", s, "gain_at_length") for s in r["splits"]]),
        *([f"{NAMES[p]}, tokens", *of(r, p, "length", 1)]
          for p in ("reference", "sft", "rlhf", "dpo", BEST))],
    "tradeoff": lambda r: [["seed", *ALL.values()], *on_frontier(at(r, "tradeoff", "rows"), ALL)],
    "min_p": lambda r: [["seed", *WITH_KINDS.values()],
                        *on_frontier(at(r, "tradeoff", "min_p"), WITH_KINDS)],
    "narrowing": narrowing, "annotators": annotators}


def table(name, results):
    """The rows of a table, one task's below the other's, less the rows and columns without a text.
    ValueError if there is none of that name."""
    if name in results.get("tables", {}):
        return results["tables"][name]
    if name == "verdicts":
        return verdicts(results)
    if name not in TABLES:
        raise ValueError(f"there is no table {name}: try verdicts, {', '.join(TABLES)}")
    rows = []
    for r in (results[task] for task in TASKS if task in results):
        header, *more = TABLES[name](r)
        if more := [row for row in more if any(row[1:])]:
            bold = "**" * bool(rows)  # the first is the table's own header
            header = [f"{bold}{text}{bold}" if text else "" for text in (r["name"], *header)]
            rows += [header, *more]
    width = max(map(len, rows), default=0)
    rows = [row + [""] * (width - len(row)) for row in rows]
    used = [k for k in range(width) if any(row[k] for row in rows[1:] if row[0][:2] != "**")]
    return [[row[k] for k in used] for row in rows]


# ---- pages and figures ---------------------------------------------------------------------------

MARK = re.compile(r"^<!-- table (\S+) -->\n((?:(?!<!--).*\S.*\n)*)", re.M)


def in_markdown(rows):
    "A column of numbers stands at the right."
    if not rows:
        return ""
    number = re.compile(r"(\*\*)?[-+]?\.?\d[^a-z]*|")
    line = ["--:" if all(number.fullmatch(row[k]) for row in rows[1:] if row[0][:2] != "**")
            else "---" for k in range(len(rows[0]))]
    lines = ["| " + " | ".join(row) + " |\n" for row in rows]
    return "".join([lines[0], f"|{'|'.join(line)}|\n", *lines[1:]])


def filled(text, results):
    "A page with its tables as they are now. ValueError for a mark that is none."
    if len(re.findall("<!-- *table", text)) != len(MARK.findall(text)):
        raise ValueError("a mark is a line by itself, <!-- table NAME -->: mend that on the page")
    return MARK.sub(lambda match: f"<!-- table {match[1]} -->\n" + in_markdown(
        table(match[1], results)), text)


def good_beside_betas(path, tasks):
    near = lambda axis, r: figures.beside_betas(axis, r, r["splits"][:1], [
        p for p in LEARNED[1:] if p in r["sweep"]])
    figures.panels(path, tasks, {"beside betas": near, "good kinds": figures.slanted(
        ("sft", *LEARNED), tasks[0]["kinds"], "that beat the reference")}, 4.2)


def tradeoff_figure(path, tasks):
    from tests import tradeoff  # with all of the study

    tradeoff.figure(path, tasks[0]["name"], tasks[0]["tradeoff"])


def narrowing_figure(path, tasks):
    from tests import narrowing  # as above

    narrowing.figure(path, tasks[0]["narrowing"])


FIGURES = {  # what a task must have for it, and how it is drawn: of the first, or of all
    "study": ("policies", lambda path, tasks: figures.overview(path, tasks[0])),
    "drop": ("slopes", lambda path, tasks: figures.panels(
        path, tasks[:1], {"": figures.drops(gain)}, 4.6)),
    "diversity": ("gains", lambda path, tasks: figures.panels(path, tasks, {
        name: figures.differences(LEARNED, k, "of a prompt's answers, less SFT's")
        for name, k in (("EAD", "per_input_ead"), ("embeddings", "per_input_embedding"))}, 4.2)),
    "good": ("policies", lambda path, tasks: figures.good(path, tasks[0])),
    "kl": ("frontier", lambda path, tasks: figures.panels(path, tasks, {
        "in distribution": figures.everybody(LEARNED[1:]),
        "the shifts": figures.everybody(LEARNED[1:], "shifted_")}, 4.2)),
    "compared": ("sweep", good_beside_betas),
    "betas": ("sweep", lambda path, tasks: figures.betas(path, tasks[0], tasks[0]["splits"][0])),
    "overoptimisation": ("bon", lambda path, tasks: figures.overoptimisation(path, tasks[0])),
    "accuracy": ("reward_model", lambda path, tasks: figures.panels(path, tasks, {
        "": lambda axis, r: figures.ordered_rightly(axis, r["reward_model"])}, 5.6)),
    "sizes": ("sizes", lambda path, tasks: figures.sizes(path, tasks[0])),
    "tradeoff": ("tradeoff", tradeoff_figure), "narrowing": ("narrowing", narrowing_figure)}


def draw(results, folder):
    "The figures, into a folder -> the names of those for which there is nothing in the results."
    tasks, left_out = [results[task] for task in TASKS if task in results], []
    for name, (part, figure) in FIGURES.items():
        if tasks[0].get(part):
            figure(folder / f"{name}.png", [r for r in tasks if r.get(part)])
        else:
            left_out.append(name)
    return left_out


def main(out):
    if out:
        keep(out)
    results = read()
    pages = {path: filled(path.read_text(encoding="utf-8"), results) for path in PAGES}
    for path, text in pages.items():
        files.write_file(path, text)
    if left_out := draw(results, KEPT.parent):
        print(f"not drawn, for lack of numbers: {', '.join(left_out)}")


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("out", nargs="?", metavar="OUT", help="folder of run folders")
    with one_sentence():
        main(parser.parse_args().out)
