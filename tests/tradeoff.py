"""
Quality on shifted prompts against diversity: which method is beyond the frontier that there is?

    python -m tests.tradeoff --data summarise --seeds 3

Reads finished runs (sft.pt, reward.pt and ppo.pt of every seed) and trains what the methods need
beside them. The frontier to beat is drawn by SFT and RLHF at every temperature, RLHF at other
betas, and the best of n. Its upper hull counts: a coin between two policies reaches every point of
the line between them. A method's knob is chosen on the validation split of seed 0 alone, by its
gain on the hull there; what counts is the gain of that one setting on the test splits, where win
rate and diversity are means over the shifts. Outputs are kept beside the checkpoints in
tradeoff/, so an interrupted run goes on.
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
import ppo
import rlhf
import sft

SAMPLES = 8  # outputs of each prompt, as every measure sees them
TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
MIN_P = ((1.0, 0.03), (1.0, 0.07), (1.0, 0.15), (1.5, 0.07), (1.5, 0.15), (1.5, 0.3), (2.0, 0.15),
         (2.0, 0.3))

# ---- what is drawn: {family: {label: how}}; how is ("sample", policy, temperature, min_p), or
# ("pool", policy, choose), where choose picks SAMPLES of a pool by scores and texts


def best(n, tau=0.0):
    def choose(scores, texts, seed):
        return bon.disjoint_bests(bon.softened(scores, tau, seed), n, SAMPLES, seed)
    return choose


def diverse(size, weight):
    def choose(scores, texts, seed):
        return bon.diverse_bests(scores[:size], bon.overlaps(texts[:size]), SAMPLES, weight)
    return choose


BETAS = {"summarise": ("k1-0.03", "k1-0.1", "k1-1"), "instruct": ("k1-0.1",)}  # beside the main run
ALL = BETAS["summarise"]


BASELINE = {
    "SFT, temperature": {f"T {t:g}": ("sample", "sft", t, 0) for t in TEMPERATURES},
    "RLHF, temperature": {f"T {t:g}": ("sample", "rlhf", t, 0) for t in TEMPERATURES},
    **{f"RLHF, beta {name[3:]}": {f"T {t:g}": ("sample", name, t, 0) for t in (1.0, 0.7)}
       for name in ALL},
    "best of n": {f"n {n}": ("pool", "sft", best(n)) for n in (2, 4, 8, 16)}}
METHODS = {
    "SFT, min-p": {f"T {t:g}, p {p:g}": ("sample", "sft", t, p) for t, p in MIN_P},
    "RLHF, min-p": {f"T {t:g}, p {p:g}": ("sample", "rlhf", t, p) for t, p in MIN_P},
    "RLHF at a lower beta, min-p": {
        f"{name[3:]}, T {t:g}, p {p:g}": ("sample", name, t, p) for name in ALL[:2]
        for t, p in ((1.0, 0.07), (1.5, 0.07), (1.5, 0.15), (2.0, 0.15))},
    "weights between SFT and RLHF": {f"{w:g}, T {t:g}": ("sample", f"between-{w:g}", t, 0)
                                     for w in (0.25, 0.5, 0.75) for t in (1.0, 0.7)},
    "mean of the seeds' RLHF weights": {f"T {t:g}": ("sample", "seeds", t, 0)
                                        for t in (1.0, 0.7, 0.5)},
    "soft best of 16": {f"tau {t:g}": ("pool", "sft", best(16, t)) for t in (0.2, 0.5, 1.0)},
    "best of n of RLHF": {f"n {n}": ("pool", "rlhf", best(n)) for n in (2, 4)},
    "diverse best of 64": {f"weight {w:g}": ("pool", "sft", diverse(64, w))
                           for w in (0.5, 1.0, 2.0, 4.0)},
    "diverse best of 32 of RLHF": {f"weight {w:g}": ("pool", "rlhf", diverse(32, w))
                                   for w in (0.5, 1.0, 2.0, 4.0)},
    "diverse best of 32 of RLHF with min-p": {
        f"T 1.5, p 0.07, weight {w:g}": ("pool", "rlhf-min-p", diverse(32, w))
        for w in (0.5, 1.0, 2.0)},
    "best of n with min-p": {f"T 1, p 0.03, n {n}": ("pool", "sft-min-p", best(n))
                             for n in (2, 4, 8)},
    "diverse best of 64 with min-p": {
        f"T 1, p 0.03, weight {w:g}": ("pool", "sft-min-p", diverse(64, w))
        for w in (0.5, 1.0, 2.0)}}
POOLS = {  # name: (policy, size, temperature, min_p)
    "sft": ("sft", 16 * SAMPLES, 1.0, 0.0), "rlhf": ("rlhf", 4 * SAMPLES, 1.0, 0.0),
    "sft-min-p": ("sft", 8 * SAMPLES, 1.0, 0.03), "rlhf-min-p": ("rlhf", 4 * SAMPLES, 1.5, 0.07)}

# ---- methods that train: {family: {variant: what is set in ppo, and of its configuration}}
TRAINED = {
    "Soft Preference Learning": {f"spl-{a:g}": dict(ENTROPY=a) for a in (0.3, 0.4)},
    "SFT loss in PPO": {f"ptx-{c:g}": dict(PTX=c) for c in (0.5,)},
    "novelty in the reward": {f"novelty-{w:g}": dict(NOVELTY=w, GROUP=4) for w in (1.5,)},
    "soft best of 16, distilled": {f"distil-{t:g}": dict(tau=t) for t in (0.2, 0.5)},
    "diverse best of 64 with min-p, distilled": {"distil-diverse": dict(weight=1.0)}}
DISTIL = dict(prompts=500, kept=4, steps=100)  # 32,000 samples scored


def distil(config, seed, name, tau=0.0, weight=None):
    "SFT, from the SFT policy, on the best of its own samples, drawn softly or diverse."
    run = rlhf.load_run(config, seed)
    out, target = run.folder / "distil", run.folder / "distil" / name
    if (target / "sft.pt").exists():
        return
    source = out / f"{name}-data"
    source.mkdir(parents=True, exist_ok=True)
    examples = data.load(config.data, "train", DISTIL["prompts"], seed)
    prompts = [run.tokenizer.prompt(e.prompt) for e in examples]
    pool = []
    for i in range(0, len(prompts), 32):
        ids = m.generate(run.networks["sft"], prompts[i:i + 32], run.tokenizer.response_tokens, 1.0,
                         64, (seed + 77) * 1_000_003 + i, min_p=0.03 if weight else 0.0)
        pool += [ids[k:k + 64] for k in range(0, len(ids), 64)]
    owners = [p for p, row in zip(prompts, pool) for _ in row]
    scores = run.judges["proxy"](owners, [r for row in pool for r in row]).view(len(pool), -1)
    texts = [[run.tokenizer.decode(r).strip() for r in row] for row in pool]
    rows = [{"prompt": e.prompt, "response": row[k]}
            for e, row, s in zip(examples, texts, scores.numpy())
            for k in (bon.disjoint_bests(bon.softened(s, tau, seed), 16, DISTIL["kept"], seed)
                      if weight is None else
                      bon.diverse_bests(s, bon.overlaps(row), 2 * DISTIL["kept"], weight))]
    metrics.write(source / "train.jsonl", [r for r in rows if r["response"]])
    metrics.write(source / "validation.jsonl", [
        {"prompt": e.prompt, "response": e.response}
        for e in data.load(config.data, "validation", 64)])
    path = sft.train(sft.Config(data=str(source), init=str(run.folder / "sft.pt"), seed=0,
                                steps=DISTIL["steps"], out=str(out)))
    path.parent.rename(target)


def train_variant(config, seed, name, settings):
    "PPO as in the main run, but for module constants; or distillation."
    if name.startswith("distil"):
        return distil(config, seed, name, **settings)
    kept = {key: getattr(ppo, key) for key in settings}
    factor = rlhf.main_run(config, seed)["beta"] / 0.2 if "ENTROPY" in settings else 1
    try:
        for key, value in settings.items():
            setattr(ppo, key, value * factor if key == "ENTROPY" else value)
        rlhf.run_stage(config, seed, ppo, name, **rlhf.main_run(config, seed))
    finally:
        for key, value in kept.items():
            setattr(ppo, key, value)


def mixed(networks, weights):
    "A policy with the weighted mean of policies' weights."
    states = [network.state_dict() for network in networks]
    made = copy.deepcopy(networks[0])
    made.load_state_dict({key: sum(w * state[key] for w, state in zip(weights, states))
                          for key in states[0]})
    return made


def network_of(runs, run, name):
    "A policy by its name in the tables above, loaded or mixed once."
    if name not in run.networks:
        if name.startswith("between-"):
            w = float(name.removeprefix("between-"))
            pair = [run.networks["sft"], network_of(runs, run, "rlhf")]
            run.networks[name] = mixed(pair, [1 - w, w])
        elif name == "seeds":
            each = [network_of(runs, r, "rlhf") for r in runs]
            run.networks[name] = mixed(each, [1 / len(each)] * len(each))
        else:
            path = (run.folder / "distil" / name / "sft.pt" if name.startswith("distil") else
                    run.folder / ("" if name == "rlhf" else name) / "ppo.pt")
            run.networks[name], _ = m.load(path, "policy", run.device)
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


def compare(config, seeds=(0, 1, 2)):
    "Everything -> the table's rows. Finalists, which gain on validation, are run with every seed."
    for seed in seeds:
        for name in BETAS[config.data]:
            rlhf.run_variant(config, seed, name)
    for variants in TRAINED.values():
        for name, settings in variants.items():
            train_variant(config, 0, name, settings)
    runs, splits = load(config), data.test_splits(config.data)[1:]
    trained = {family: {f"{name.split('-')[1]}, T {t:g}{f', p {p:g}' if p else ''}":
                        ("sample", name, t, p) for name in variants
                        for t, p in ((1.0, 0), (0.7, 0), (1.0, 0.03), (1.0, 0.07), (1.0, 0.15))}
               for family, variants in TRAINED.items()}
    methods, baseline = having(config, METHODS | trained), having(config, BASELINE)
    chosen = choose(config, runs, methods)
    print(json.dumps(chosen), flush=True)
    finalists = {family for family, (_, gain) in chosen.items() if gain > 0}
    for family in finalists & set(TRAINED):
        name = methods[family][chosen[family][0]][1]
        for seed in seeds[1:]:
            train_variant(config, seed, name, TRAINED[family][name])
    settings = {family: {label: methods[family][label]} for family, (label, _) in chosen.items()}
    rows, drawn = [], []
    for run in runs:
        base = points_of(config, runs, run, baseline, splits)
        mine = points_of(config, runs, run, {
            f: x for f, x in settings.items() if run.seed == 0 or f in finalists}, splits)
        drawn.append(drawing(base | mine))
        for (family, label), point in mine.items():
            row = {"seed": run.seed, "family": family, "label": label,
                   "validation": chosen[family][1]}
            for measure in ("ead", "embedding"):
                row[measure] = bootstrap(list(base.values()), point, measure)
            rows.append(row)
            print(json.dumps(row), flush=True)
    validation = drawing(points_of(config, runs, runs[0], baseline | methods, ["validation"]))
    path = runs[0].folder / "tradeoff.json"
    path.write_text(json.dumps({"rows": rows, "drawn": drawn, "validation": validation}, indent=1),
                    encoding="utf-8")
    print(f"wrote {path}")
    return rows


def figure(path, found):
    """What was tried beside the frontier. found: {task: what tradeoff.json holds}. Left:
    validation, seed 0, every method over its own knob, and the hull. Right: the shifts, and the
    setting that validation chose; the band is between the lowest and the highest seed's hull,
    a cross is the mean and range over the seeds."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(found), 2, figsize=(12, 4.8 * len(found)), squeeze=False)
    for (task, kept), (left, right) in zip(found.items(), axes):
        chosen = {row["family"]: row["label"] for row in kept["rows"]}
        xy = lambda points: np.array([(p["ead"], p["win_rate"]) for _, _, p in points]).T
        edge = lambda points: xy([points[k] for k in hull(*xy(points))])
        base = lambda points: [p for p in points if p[0] in BASELINE]
        left.plot(*edge(base(kept["validation"])), "-", color="black", lw=1)
        left.plot(*xy(base(kept["validation"])), ".", color="black", ms=4,
                  label="SFT, RLHF, betas, best of n")
        hulls = [edge(base(drawn)) for drawn in kept["drawn"]]
        grid = np.linspace(min(h[0][0] for h in hulls), max(h[0][-1] for h in hulls), 200)
        lines = np.array([np.interp(grid, *h, right=np.nan) for h in hulls])
        right.fill_between(grid, np.nanmin(lines, 0), np.nanmax(lines, 0), color="black",
                           alpha=0.15, label="their frontier")
        for n, (family, label) in enumerate(chosen.items()):
            colour = plt.get_cmap("tab20")(n)
            left.plot(*xy([p for p in kept["validation"] if p[0] == family]), ".-", lw=0.6,
                      color=colour, ms=5)
            x, y = xy([p for drawn in kept["drawn"] for p in drawn if p[:2] == [family, label]])
            right.errorbar(x.mean(), y.mean(), [[y.mean() - y.min()], [y.max() - y.mean()]],
                           [[x.mean() - x.min()], [x.max() - x.mean()]], fmt="o", ms=4,
                           color=colour, label=f"{family} ({label}), {len(x)} seeds")
        left.set_title(f"{task}: validation, seed 0, each over its knob")
        right.set_title(f"{task}: mean of the shifts")
        for axis in (left, right):
            axis.set_xlabel("diversity per input (EAD)")
            axis.set_ylabel("win rate by gold score")
            axis.legend(fontsize=6, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="summarise", choices=data.WORLD)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs there are")
    parser.add_argument("--inputs", type=int, default=100, help="prompts a split")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()
    torch.manual_seed(0)
    compare(rlhf.Config(data=args.data, seeds=args.seeds, inputs=args.inputs, out=args.out),
            range(args.seeds))
