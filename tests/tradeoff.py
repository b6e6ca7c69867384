"""
Quality on shifted prompts against diversity: which method is beyond the frontier that there is?

    python -m tests.tradeoff --data summarise --seeds 3

Takes finished runs of `python rlhf.py --seeds 3` and trains the betas of PPO that are missing. The
frontier to beat is drawn by SFT and RLHF at every temperature, RLHF at other betas, and the best of
n. Its upper hull counts: a coin between two policies reaches every point of the line between them.
A method's knob is chosen on the validation split of seed 0 alone, by its gain on the hull there;
what counts is the gain of that one setting on the test splits, where win rate and diversity are
means over the shifts. Outputs are kept in tradeoff/ beside the checkpoints, so an interrupted run
goes on. The README's table has more methods than this file: those that lost are in the commit that
it names.
"""

import argparse
import copy
import json

import numpy as np
import torch

import bon
import data
import metrics
import model as m
import rlhf
from data import report

SAMPLES = 8  # outputs of each prompt, as every measure sees them
TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
MIN_P = ((1.0, 0.03), (1.0, 0.07), (1.0, 0.15), (1.5, 0.07), (1.5, 0.15), (1.5, 0.3), (2.0, 0.15),
         (2.0, 0.3))

# ---- what is drawn: {family: {label: how}}; how is ("sample", policy, temperature, min_p), or
# ("pool", pool, choose), where choose picks SAMPLES of a pool by scores and texts


def best(n):
    return lambda scores, texts, seed: bon.disjoint_bests(scores, n, SAMPLES, seed)


def diverse(size, weight):
    return lambda scores, texts, seed: bon.diverse_bests(
        scores[:size], bon.overlaps(texts[:size]), SAMPLES, weight)


BETAS = {"summarise": ("k1-0.03", "k1-0.1", "k1-1"), "instruct": ("k1-0.1",)}  # and the main run's
ALL = BETAS["summarise"]
BASELINE = {
    "SFT, temperature": {f"T {t:g}": ("sample", "sft", t, 0) for t in TEMPERATURES},
    "RLHF, temperature": {f"T {t:g}": ("sample", "rlhf", t, 0) for t in TEMPERATURES},
    **{f"RLHF, beta {name[3:]}": {f"T {t:g}": ("sample", name, t, 0) for t in (1.0, 0.7)}
       for name in ALL},
    "best of n": {f"n {n}": ("pool", "sft", best(n)) for n in (2, 4, 8, 16)}}
METHODS = {
    "RLHF, min-p": {f"T {t:g}, p {p:g}": ("sample", "rlhf", t, p) for t, p in MIN_P},
    "mean of the seeds' RLHF weights": {f"T {t:g}": ("sample", "seeds", t, 0)
                                        for t in (1.0, 0.7, 0.5)},
    "best of n, min-p": {f"T 1, p 0.03, n {n}": ("pool", "sft-min-p", best(n)) for n in (2, 4, 8)},
    "diverse best of 64": {f"weight {w:g}": ("pool", "sft", diverse(64, w))
                           for w in (0.5, 1.0, 2.0, 4.0)},
    "diverse best of 64, min-p": {
        f"T 1, p 0.03, weight {w:g}": ("pool", "sft-min-p", diverse(64, w))
        for w in (0.5, 1.0, 2.0)},
    "diverse best of 32 of RLHF, min-p": {
        f"T 1.5, p 0.07, weight {w:g}": ("pool", "rlhf-min-p", diverse(32, w))
        for w in (0.5, 1.0, 2.0)}}
POOLS = {  # name: (policy, size, temperature, min_p)
    "sft": ("sft", 16 * SAMPLES, 1.0, 0.0), "sft-min-p": ("sft", 8 * SAMPLES, 1.0, 0.03),
    "rlhf-min-p": ("rlhf", 4 * SAMPLES, 1.5, 0.07)}


def mean_weights(networks):
    "A policy with the mean of policies' weights."
    states = [network.state_dict() for network in networks]
    made = copy.deepcopy(networks[0])
    made.load_state_dict({key: sum(state[key] for state in states) / len(states)
                          for key in states[0]})
    return made


def network_of(runs, run, name):
    "A policy by its name in the tables above, loaded or made once."
    if name not in run.networks:
        if name == "seeds":
            run.networks[name] = mean_weights([r.networks["rlhf"] for r in runs])
        else:
            run.networks[name], _ = m.load(run.folder / name / "ppo.pt", "policy", run.device)
    return run.networks[name]


def kept(path, make):
    "What `make` returns, from disk if it is there."
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        found = make()
        metrics.write(path, [found])
    return metrics.read(path)[0]


def pool_of(runs, run, config, split, name):
    "Samples of a policy with their reward-model scores."
    policy, size, temperature, min_p = POOLS[name]

    def make():
        examples = data.load(config.data, split, config.inputs)
        prompts = [run.tokenizer.prompt(e.prompt) for e in examples]
        ids = []
        for i in range(0, len(prompts), 32):
            ids += m.generate(network_of(runs, run, policy), prompts[i:i + 32],
                              run.tokenizer.response_tokens, temperature, size,
                              run.seed * 1_000_003 + i, min_p=min_p)
        scores = run.judges["proxy"]([p for p in prompts for _ in range(size)], ids)
        texts = [run.tokenizer.decode(r).strip() for r in ids]
        return {"texts": [texts[i:i + size] for i in range(0, len(texts), size)],
                "scores": scores.view(-1, size).tolist()}
    return kept(run.folder / "tradeoff" / f"{split}.pool-{name}.jsonl", make)


def measured(runs, run, config, split, family, label, how):
    "Win rate, EAD and embedding diversity of one point on one split, each one number a prompt."
    def make():
        examples = data.load(config.data, split, config.inputs)
        if how[0] == "pool":
            pool = pool_of(runs, run, config, split, how[1])
            texts = [[row[k] for k in how[2](np.array(scores), row, run.seed)]
                     for row, scores in zip(pool["texts"], pool["scores"])]
        else:
            _, name, temperature, min_p = how
            prompts = [run.tokenizer.prompt(e.prompt) for e in examples]
            ids = m.generate(network_of(runs, run, name), prompts, run.tokenizer.response_tokens,
                             temperature, SAMPLES, run.seed, min_p=min_p)
            texts = [run.tokenizer.decode(r).strip() for r in ids]
            texts = [texts[i:i + SAMPLES] for i in range(0, len(texts), SAMPLES)]
        gold = data.gold(config.data)
        wins = [metrics.win_rate([gold(e.prompt, t) for t in row],
                                 [gold(e.prompt, e.response)] * len(row)).mean()
                for e, row in zip(examples, texts)]
        return {"win_rate": [float(w) for w in wins],
                "ead": metrics.per_input(texts, metrics.ead).tolist(),
                "embedding": metrics.per_input(texts, lambda t: metrics.embedding_diversity(
                    t, run.embed)).tolist(), "outputs": texts[0]}
    name = f"{split}.{family}.{label}".replace(" ", "_").replace(",", "")
    return kept(run.folder / "tradeoff" / f"{name}.jsonl", make)


# ---- the frontier and what is beyond it ----------------------------------------------------------


def hull(x, y):
    "Upper concave hull of points, left to right -> their places; the first has the highest y."
    order = sorted(range(len(x)), key=lambda k: (x[k], y[k]))
    order = [k for k in order if x[k] >= x[max(order, key=lambda j: y[j])]]
    kept = []
    for k in order:
        while len(kept) > 1 and ((y[kept[-1]] - y[kept[-2]]) * (x[k] - x[kept[-2]])
                                 <= (y[k] - y[kept[-2]]) * (x[kept[-1]] - x[kept[-2]])):
            kept.pop()
        if kept and x[k] == x[kept[-1]]:
            kept.pop()
        kept.append(k)
    return kept


def gains(x, y, points):
    """How far points (x, y) are above the hull of `points`, (xs, ys), at equal x, and right of it
    at equal y. Left of the hull its highest y counts; past its right end nothing is known: nan."""
    places = hull(*points)
    xs, ys = (np.array(p)[places] for p in points)
    above = y - np.interp(x, xs, ys, right=np.nan)
    right = x - np.interp(-y, -ys, xs, left=np.nan) if len(xs) > 1 else np.nan
    return above, right


def bootstrap(baseline, point, measure, draws=1000, seed=0):
    """Gain of a point in win rate at equal `measure`, and in the measure at equal win rate, with
    95 % intervals over prompts drawn with replacement within each split, all points alike.

    baseline: list of [row of each split], point: [row of each split].
    """
    rng = np.random.default_rng(seed)
    table = {key: [np.array([p[s][key] for p in (*baseline, point)]) for s in range(len(point))]
             for key in ("win_rate", measure)}  # of each split (points, prompts)
    found = []
    for draw in range(draws + 1):
        means = {}
        index = [rng.integers(t.shape[1], size=t.shape[1]) if draw else np.arange(t.shape[1])
                 for t in table["win_rate"]]
        for key, tables in table.items():
            means[key] = np.mean([t[:, i].mean(1) for t, i in zip(tables, index)], axis=0)
        x, y = means[measure], means["win_rate"]
        found.append(gains(x[-1], y[-1], (x[:-1], y[:-1])))
    found = np.array(found, dtype=float)
    return [(float(found[0, k]), *np.nanpercentile(found[1:, k], [2.5, 97.5]).tolist())
            for k in (0, 1)]


# ---- the comparison ------------------------------------------------------------------------------


def having(config, families):
    "Of {family: points} those whose policies are trained for this dataset."
    there = {family: {label: how for label, how in points.items()
                      if how[1] not in ALL or how[1] in BETAS[config.data]}
             for family, points in families.items()}
    return {family: points for family, points in there.items() if points}


def points_of(config, runs, run, families, splits):
    "{(family, label): [row of each split]}"
    return {(family, label): [measured(runs, run, config, split, family, label, how)
                              for split in splits]
            for family, points in families.items() for label, how in points.items()}


def drawing(points):
    "Means over prompts and splits of each point -> [[family, label, {measure: mean}]]."
    return [[*key, {k: float(np.mean([np.mean(split[k]) for split in point]))
                    for k in ("win_rate", "ead", "embedding")}] for key, point in points.items()]


def choose(config, runs, methods):
    """{family: (label, gain)} by the smaller of the gains at equal EAD and at equal embedding
    diversity, on the validation split of seed 0."""
    base = list(points_of(config, runs, runs[0], having(config, BASELINE),
                          ["validation"]).values())
    chosen = {}
    for (family, label), point in points_of(config, runs, runs[0], methods,
                                            ["validation"]).items():
        means = {key: np.array([np.mean(p[0][key]) for p in (*base, point)])
                 for key in ("win_rate", "ead", "embedding")}
        gain = min(np.nan_to_num(gains(means[k][-1], means["win_rate"][-1],
                                       (means[k][:-1], means["win_rate"][:-1]))[0], nan=-1)
                   for k in ("ead", "embedding"))
        print(f"  {family:28} {label:22} win {means['win_rate'][-1]:.3f} "
              f"EAD {means['ead'][-1]:.3f} embedding {means['embedding'][-1]:.3f} "
              f"gain {gain:+.3f}", flush=True)
        if gain > chosen.get(family, ("", -2))[1]:
            chosen[family] = label, float(gain)
    return chosen


def load(config):
    "The runs of every seed, with an encoder."
    runs = rlhf.load_runs(config)
    for run in runs:
        run.networks["rlhf"] = run.networks["ppo"]
        run.embed = rlhf.encoder(run, [e.response for e in data.load(config.data, "validation",
                                                                     200)])
    return runs


def compare(config):
    "Everything -> what tradeoff.json holds. With every seed: what gains on validation."
    for seed in range(config.seeds):
        for name in BETAS[config.data]:
            rlhf.run_variant(config, seed, name)
    runs, splits = load(config), data.test_splits(config.data)[1:]
    methods, baseline = having(config, METHODS), having(config, BASELINE)
    chosen = choose(config, runs, methods)
    rows, drawn = [], []
    for run in runs:
        base = points_of(config, runs, run, baseline, splits)
        mine = points_of(config, runs, run, {
            family: {label: methods[family][label]} for family, (label, gain) in chosen.items()
            if run.seed == 0 or gain > 0}, splits)
        drawn.append(drawing(base | mine))
        for (family, label), point in mine.items():
            row = {"seed": run.seed, "family": family, "label": label,
                   "validation": chosen[family][1]}
            for measure in ("ead", "embedding"):
                row[measure] = bootstrap(list(base.values()), point, measure)
            rows.append(row)
            print(json.dumps(row), flush=True)
    validation = drawing(points_of(config, runs, runs[0], baseline | methods, ["validation"]))
    return {"rows": rows, "drawn": drawn, "validation": validation}


def figure(path, found):
    """What was tried beside the frontier. found: {task: what tradeoff.json holds}. Left:
    validation, seed 0, every method over its own knob, and the hull. Right: the shifts, and the
    setting that validation chose; the band is between the lowest and the highest seed's hull, a
    cross is the mean and range over the seeds."""
    from matplotlib import colormaps

    made, axes = report.figure(2 * len(found), 4.6, 4.4)
    families = dict.fromkeys(row["family"] for kept in found.values() for row in kept["rows"])
    colours = {family: colormaps["tab20"](n) for n, family in enumerate(families)}
    for task, kept in found.items():
        left, right, *axes = axes
        chosen = {row["family"]: row["label"] for row in kept["rows"]}
        xy = lambda points: np.array([(p["ead"], p["win_rate"]) for _, _, p in points]).T
        edge = lambda points: xy([points[k] for k in hull(*xy(points))])
        base = lambda points: [p for p in points if p[0] in BASELINE]
        left.plot(*edge(base(kept["validation"])), "-", color="black", lw=1)
        left.plot(*xy(base(kept["validation"])), ".", color="black", ms=4,
                  label="SFT, RLHF, best of n")
        hulls = [edge(base(drawn)) for drawn in kept["drawn"]]
        grid = np.linspace(min(h[0][0] for h in hulls), min(h[0][-1] for h in hulls), 200)
        lines = np.array([np.interp(grid, *h) for h in hulls])
        right.fill_between(grid, lines.min(0), lines.max(0), color="black", alpha=0.2, lw=0,
                           label="their frontier, by seed")
        for family, label in chosen.items():
            left.plot(*xy([p for p in kept["validation"] if p[0] == family]), ".-", lw=0.7, ms=5,
                      color=colours[family])
            x, y = xy([p for drawn in kept["drawn"] for p in drawn if p[:2] == [family, label]])
            right.errorbar(x.mean(), y.mean(), [[y.mean() - y.min()], [y.max() - y.mean()]],
                           [[x.mean() - x.min()], [x.max() - x.mean()]], fmt="o", ms=4,
                           color=colours[family])
        left.set_ylim(bottom=min(p["win_rate"] for _, _, p in base(kept["validation"])) - 0.1)
        left.set_title(f"{task}: validation, one seed", fontsize=11)
        right.set_title(f"{task}: mean of the shifts", fontsize=11)
        for axis in (left, right):
            axis.set_xlabel("EAD of the answers to a prompt")
            axis.set_ylabel("win rate by gold score")
            axis.legend(frameon=False, fontsize=8, loc="lower left")
    for family, colour in colours.items():
        right.plot([], [], "o", ms=4, color=colour, label=family)
    made.legend(*[x[1:] for x in right.get_legend_handles_labels()], frameon=False, fontsize=8,
                ncols=5, loc="upper center")
    report.save(made, path, top=0.84)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="summarise", choices=data.WORLD)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs there are")
    parser.add_argument("--inputs", type=int, default=60, help="prompts a split")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = compare(rlhf.Config(data=args.data, seeds=args.seeds, inputs=args.inputs, out=args.out))
    folder = data.run_folder(args.data, 0, args.out)
    (folder / "tradeoff.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    figure(folder / "tradeoff.png", {args.data: found})
    print(f"wrote {folder / 'tradeoff.json'} and tradeoff.png")
