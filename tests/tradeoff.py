"""
Quality on shifted prompts against diversity: which method is beyond the frontier that there is?

    python -m tests.tradeoff --data summarise --seeds 3

Takes finished runs of `python rlhf.py --seeds 3` and trains the betas of PPO that are missing. The
frontier to beat is drawn by what needs no new idea: SFT and RLHF at every temperature and with
min-p, RLHF at other betas, the best of n at temperature 1, at .7 and with min-p, and sets of which
some answers are of one of these and some of another. Its upper hull counts: a coin for each prompt
reaches every point of the line between two of them.

A method's knob is chosen on the validation split of seed 0 alone, by its gain on the hull there;
what counts is the gain of that one setting on the test splits, where win rate and diversity are
means over the shifts. Intervals are for all methods together: 95 % of the time none of them is
beyond by chance. Likeness in a diverse choice is shared word pairs, near to what EAD counts, so
that embedding diversity is the more honest axis. Kinds among the answers that beat the reference
are quality and diversity at once: of them counts what a method has more than the frontier at equal
win rate, the second of the two gains. What is measured is kept in tradeoff/ beside the
checkpoints, with a mark of these and of all settings, so that an interrupted run goes on and none
reads what is another's.
"""

import copy
import itertools
import json
import zlib

import numpy as np
import torch

import bon
import data
import metrics
import model as m
import rlhf
from data import figures, lineage, pools, world
from data.flags import parser_of

SAMPLES = 8  # outputs of each prompt, as every measure sees them
DIVERSITIES = ("ead", "embedding", "kinds")  # the last among good answers alone
TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)
MIN_P = ((1.0, 0.03), (1.0, 0.07), (1.0, 0.15), (1.5, 0.07), (1.5, 0.15), (1.5, 0.3), (2.0, 0.15),
         (2.0, 0.3))

# ---- what is drawn: {family: {label: how}}; how is ("sample", policy, temperature, min_p), or
# ("pool", pool, "best", n) or ("pool", pool, "diverse", size, weight): SAMPLES chosen of a pool

BETAS = {"summarise": ("k1-0.03", "k1-0.1", "k1-1"), "instruct": ("k1-0.1",)}  # and the main run's
ALL = BETAS["summarise"]
BASELINE = {
    "SFT, temperature": {f"T {t:g}": ("sample", "sft", t, 0) for t in TEMPERATURES},
    "RLHF, temperature": {f"T {t:g}": ("sample", "ppo", t, 0) for t in TEMPERATURES},
    **{f"RLHF, beta {name[3:]}": {f"T {t:g}": ("sample", name, t, 0) for t in (1.0, 0.7)}
       for name in ALL},
    "SFT, min-p": {f"T {t:g}, p {p:g}": ("sample", "sft", t, p) for t, p in MIN_P},
    "RLHF, min-p": {f"T {t:g}, p {p:g}": ("sample", "ppo", t, p) for t, p in MIN_P},
    "best of n": {f"n {n}": ("pool", "sft", "best", n) for n in (2, 4, 8, 16)},
    "best of n at T 0.7": {f"n {n}": ("pool", "sft-t0.7", "best", n) for n in (2, 4, 8, 16)},
    "best of n, min-p": {f"T 1, p 0.03, n {n}": ("pool", "sft-min-p", "best", n)
                         for n in (2, 4, 8)}}
MIXED = "a set of two"  # some answers of one point of the baseline, the others of another
METHODS = {
    "mean of the seeds' RLHF weights": {f"T {t:g}": ("sample", "seeds", t, 0)
                                        for t in (1.0, 0.7, 0.5)},
    "diverse best of 64": {f"weight {w:g}": ("pool", "sft", "diverse", 64, w)
                           for w in (0.5, 1.0, 2.0, 4.0)},
    "diverse best of 64 at T 0.7": {f"weight {w:g}": ("pool", "sft-t0.7", "diverse", 64, w)
                                    for w in (0.5, 1.0, 2.0)},
    "diverse best of 64, min-p": {
        f"T 1, p 0.03, weight {w:g}": ("pool", "sft-min-p", "diverse", 64, w)
        for w in (0.5, 1.0, 2.0)},
    "diverse best of 32 of RLHF, min-p": {
        f"T 1.5, p 0.07, weight {w:g}": ("pool", "rlhf-min-p", "diverse", 32, w)
        for w in (0.5, 1.0, 2.0)}}
POOLS = {  # name: (policy, size, temperature, min_p)
    "sft": ("sft", 16 * SAMPLES, 1.0, 0.0), "sft-t0.7": ("sft", 16 * SAMPLES, 0.7, 0.0),
    "sft-min-p": ("sft", 8 * SAMPLES, 1.0, 0.03),
    "rlhf-min-p": ("ppo", 4 * SAMPLES, 1.5, 0.07)}


def mean_weights(networks):
    "A policy with the mean of policies' weights."
    states = [network.state_dict() for network in networks]
    made = copy.deepcopy(networks[0])
    made.load_state_dict({key: sum(state[key] for state in states) / len(states)
                          for key in states[0]})
    return made


def kept(run, config, name, policy, settings, make):
    "What `make` returns, from disk if it is of the same checkpoints and settings."
    of = [*(run.digests[network] for network in (policy, "reward", "base")), config.data,
          config.inputs, SAMPLES, run.seed, *settings]
    name = name.replace(" ", "_").replace(",", "")
    return lineage.kept(run.folder / "tradeoff" / f"{name}.jsonl", of, lambda: [make()])[0]


def pool_of(run, config, split, name):
    "Samples of a policy with their reward-model scores."
    policy, size, temperature, min_p = POOLS[name]

    def make():
        examples = data.load(config.data, split, config.inputs)
        prompts = [run.tokenizer.prompt(e.prompt) for e in examples]
        pool = pools.sample_pool(run.networks[policy], prompts, size,
                                 run.tokenizer.response_tokens, temperature, run.seed, min_p)
        ids = [response for samples in pool for response in samples]
        scores = run.judges["proxy"]([p for p in prompts for _ in range(size)], ids)
        texts = [run.tokenizer.decode(r).strip() for r in ids]
        return {"texts": [texts[i:i + size] for i in range(0, len(texts), size)],
                "scores": scores.view(-1, size).tolist()}
    return kept(run, config, f"{split}.pool-{name}", policy, POOLS[name], make)


def places(scores, texts, seed, choice, *options):
    "Which SAMPLES of one prompt's pool are chosen."
    if choice == "best":
        return bon.disjoint_bests(scores, *options, SAMPLES, seed)
    size, weight = options
    return bon.diverse_bests(scores[:size], bon.overlaps(texts[:size]), SAMPLES, weight)


def measures(texts, wins, said, embed):
    """Of sets of answers, whether each wins and a number for what it says: what counts, a number a
    prompt; and the sets."""
    return {"win_rate": [float(np.mean(row)) for row in wins],
            "ead": metrics.per_input(texts, metrics.ead).tolist(),
            "embedding": metrics.per_input(
                texts, lambda row: metrics.embedding_diversity(row, embed)).tolist(),
            "kinds": [metrics.effective(row, [win == 1 for win in beat])
                      for row, beat in zip(said, wins)],
            "outputs": texts, "wins": wins, "said": said}


def measured(run, config, split, family, label, how):
    "The `measures` of one point on one split."
    kind, source, *options = how

    def make():
        examples = data.load(config.data, split, config.inputs)
        if kind == "pool":
            pool = pool_of(run, config, split, source)
            texts = [[row[k] for k in places(np.array(scores), row, run.seed, *options)]
                     for row, scores in zip(pool["texts"], pool["scores"])]
        else:
            temperature, min_p = options
            prompts = [run.tokenizer.prompt(e.prompt) for e in examples]
            ids = m.generate(run.networks[source], prompts, run.tokenizer.response_tokens,
                             temperature, SAMPLES, run.seed, min_p=min_p)
            texts = [run.tokenizer.decode(r).strip() for r in ids]
            texts = [texts[i:i + SAMPLES] for i in range(0, len(texts), SAMPLES)]
        gold = data.gold(config.data)
        wins = [metrics.win_rate([gold(e.prompt, t) for t in row],
                                 [gold(e.prompt, e.response)] * len(row)).tolist()
                for e, row in zip(examples, texts)]
        said = [[zlib.crc32(repr(sorted(world.kind(e.prompt, t), key=repr)).encode()) for t in row]
                for e, row in zip(examples, texts)]
        return measures(texts, wins, said, run.embed[split])
    policy, settings = (POOLS[source][0], [*how, *POOLS[source]]) if kind == "pool" else (
        source, how)
    return kept(run, config, f"{split}.{family}.{label}", policy, settings, make)


def mixtures(points, embeds):
    """Sets of which the first k answers are one corner's of the frontier and the others another's,
    for every k: {key: [row of each split]} -> the same. Their win rate lies on the line between the
    two, and their diversity above it: answers of two policies differ."""
    corners, found = set(), {}
    for measure in ("ead", "embedding"):
        x, y = ([np.mean([np.mean(row[name]) for row in rows]) for rows in points.values()]
                for name in (measure, "win_rate"))
        corners |= {[*points][k] for k in hull(x, y)}
    for (one, other), k in itertools.product(
            itertools.combinations(sorted(corners), 2), range(1, SAMPLES)):
        cut = lambda a, b: [[*p[:k], *q[k:]] for p, q in zip(a, b)]
        found[MIXED, f"{k} of {', '.join(one)}, and {', '.join(other)}"] = [
            measures(*(cut(a[key], b[key]) for key in ("outputs", "wins", "said")), embed)
            for a, b, embed in zip(points[one], points[other], embeds)]
    return found


# ---- the frontier and what is beyond it ----------------------------------------------------------


def hull(x, y):
    "Upper concave hull of points, left to right -> their places; the first has the highest y."
    order = sorted(range(len(x)), key=lambda k: (x[k], y[k]))
    highest = max(order, key=lambda j: y[j])
    order = [k for k in order if x[k] >= x[highest]]
    corners = []
    for k in order:
        while len(corners) > 1 and ((y[corners[-1]] - y[corners[-2]]) * (x[k] - x[corners[-2]])
                                 <= (y[k] - y[corners[-2]]) * (x[corners[-1]] - x[corners[-2]])):
            corners.pop()
        if corners and x[k] == x[corners[-1]]:
            corners.pop()
        corners.append(k)
    return corners


def gains(x, y, points):
    """How far points (x, y) are above the hull of `points`, (xs, ys), at equal x, and right of it
    at equal y. Left of the hull its highest y counts; past its right end nothing is known: nan."""
    places = hull(*points)
    xs, ys = (np.array(p)[places] for p in points)
    above = y - np.interp(x, xs, ys, right=np.nan)
    right = x - np.interp(-y, -ys, xs, left=np.nan) if len(xs) > 1 else np.nan
    return above, right


def bootstrap(baseline, point, measure, among=1, draws=2000, seed=0):
    """Gain of a point in win rate at equal `measure`, and in the measure at equal win rate, with
    intervals over prompts drawn with replacement within each split, all points alike. They are
    95 % intervals for `among` methods together, each at a level of 1 - .05 / among.

    baseline: list of [row of each split], point: [row of each split].
    """
    tail = 2.5 / among
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
    return [(float(found[0, k]), *np.nanpercentile(found[1:, k], [tail, 100 - tail]).tolist())
            for k in (0, 1)]


# ---- the comparison ------------------------------------------------------------------------------


def having(config, families):
    "Of {family: points} those whose policies are trained for this dataset."
    there = {family: {label: how for label, how in points.items()
                      if how[1] not in ALL or how[1] in BETAS[config.data]}
             for family, points in families.items()}
    return {family: points for family, points in there.items() if points}


def points_of(config, run, families, splits):
    "{(family, label): [row of each split]}"
    return {(family, label): [measured(run, config, split, family, label, how) for split in splits]
            for family, points in families.items() for label, how in points.items()}


def frontier_of(config, run, splits, more=()):
    "The points of the baseline, with `more`, and sets mixed of its corners."
    points = points_of(config, run, having(config, BASELINE), splits) | dict(more)
    return points | mixtures(points, [run.embed[split] for split in splits])


def drawing(points):
    "Means over prompts and splits of each point -> [[family, label, {measure: mean}]]."
    return [[*key, {k: float(np.mean([np.mean(split[k]) for split in point]))
                    for k in ("win_rate", *DIVERSITIES)}] for key, point in points.items()]


def choose(tried, base):
    """{family: (label, gain)} by the smaller of the gains at equal EAD and at equal embedding
    diversity, of points on one split, {(family, label): [row]} each."""
    chosen = {}
    for (family, label), point in tried.items():
        means = {key: np.array([np.mean(p[0][key]) for p in (*base.values(), point)])
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
    "The runs of every seed, with the mean of their policies and an encoder for each split."
    runs = lineage.load_runs(config)
    mean = mean_weights([run.networks["ppo"] for run in runs])
    for run in runs:
        run.networks["seeds"], run.digests["seeds"] = mean, [r.digests["ppo"] for r in runs]
        vectors_of = lineage.encoder(run)
        run.embed = {split: lineage.centred(vectors_of, [
            e.response for e in data.load(config.data, split, 200)])
            for split in ("validation", *data.test_splits(config.data))}
    return runs


def beyond(run, chosen, points, base, among):
    "A seed's rows of the points that are chosen: their gains on the frontier of `base`."
    return [{"seed": run.seed, "family": family, "label": label, "validation": gain} | {
        measure: bootstrap([*base.values()], points[family, label], measure, among)
        for measure in DIVERSITIES} for family, (label, gain) in chosen.items()
        if (family, label) in points]


def min_p(config, runs, splits):
    """What min-p adds to a policy's temperatures, each at the setting that gains most on the
    validation split of the first seed: the rows of every seed."""
    rows = []
    for policy in ("SFT", "RLHF"):
        cool, tried = ({name: BASELINE[name]} for name in (f"{policy}, temperature",
                                                           f"{policy}, min-p"))
        chosen = choose(*(points_of(config, runs[0], x, ["validation"]) for x in (tried, cool)))
        for run in runs:
            points, base = (points_of(config, run, x, splits) for x in (tried, cool))
            rows += beyond(run, chosen, points, base, 4)
    return rows


def compare(config):
    "Everything -> what tradeoff.json holds. With every seed: what gains on validation."
    for seed in range(config.seeds):
        for name in BETAS[config.data]:
            lineage.train(lineage.variant(config, seed, name))
    runs, splits = load(config), data.test_splits(config.data)[1:]
    methods = having(config, METHODS)
    chosen = choose(points_of(config, runs[0], methods, ["validation"]),
                    frontier_of(config, runs[0], ["validation"]))
    rows, drawn = [], []
    for run in runs:
        base = frontier_of(config, run, splits)
        mine = points_of(config, run, {
            family: {label: methods[family][label]} for family, (label, gain) in chosen.items()
            if run.seed == 0 or gain > 0}, splits)
        drawn.append(drawing(base | mine))
        rows += beyond(run, chosen, mine, base, 2 * len(chosen))
        for row in rows[-len(mine):]:
            print(json.dumps(row), flush=True)
    return {"rows": rows, "drawn": drawn, "min_p": min_p(config, runs, splits)}


SHOWN = {  # family: its colour, and the labels of its first and last point: what, right, up
    "SFT, temperature": (figures.COLOURS["sft"], ("SFT, T 1", -60, -5), ("SFT, T 0.3", -8, 10)),
    "RLHF, temperature": (figures.COLOURS["rlhf"], ("RLHF, T 1", 16, -4), ("RLHF, T 0.3", -9, -19)),
    "best of n": (figures.COLOURS["bon"], ("best of 2", 13, -7), ("best of 16", 26, 3)),
    "diverse best of 64, min-p": ("#CC79A7", ("diverse best of 64", 12, 4)),
    "diverse best of 32 of RLHF, min-p": ("#882255", ("diverse best of 32\nof RLHF", 14, 7))}


def figure(path, task, found):
    """What tradeoff.json holds, as means over the shifts and the seeds. Grey: the frontier, and a
    dot for all that draws it. A method's bars are the intervals of its gains on the frontier."""
    made, axes = figures.figure(2, 4.1, 4.3)
    points = {}
    for family, label, means in sum(found["drawn"], []):
        points.setdefault((family, label), []).append(means)
    for axis, measure, name in zip(axes, ("ead", "embedding"), ("EAD", "embedding diversity")):
        xy = {key: [np.mean([row[k] for row in rows]) for k in (measure, "win_rate")]
              for key, rows in points.items()}
        base = np.array([place for (family, _), place in xy.items()
                         if family in (*BASELINE, MIXED)])
        frontier = base[hull(*base.T)]
        axis.plot(*frontier.T, lw=9, color="#DDDDDD")
        axis.plot(*base.T, "o", color="#BBBBBB")
        texts = [("#777777", frontier[:2][-1], ("frontier", 8, 6))]  # by its second corner
        for family, (colour, *labels) in SHOWN.items():
            line = [place for (other, _), place in xy.items() if other == family]
            axis.plot(*np.reshape(line, (-1, 2)).T, "o-", lw=2, color=colour)
            texts += [(colour, *pair) for pair in zip(line[:1] + line[-1:], labels)]
            if won := [row[measure] for row in found["rows"] if row["family"] == family]:
                mean, low, high = np.mean(won, axis=0).T  # at equal diversity, at equal win rate
                axis.errorbar(*line[0], *np.stack([mean - low, high - mean], 1)[..., None],
                              color=colour)
        for colour, place, (text, *off) in texts:
            axis.annotate(text, place, off, textcoords="offset points", fontsize=12, color=colour)
        axis.margins(x=0.15)
        axis.set_xlabel(f"per-input {name}", fontsize=13)
        axis.tick_params(labelsize=12)
    axes[0].set_ylabel("win rate under the shifts", fontsize=13)
    seeds = len(found["drawn"])
    made.suptitle(f"{task}, {seeds} seed" + "s" * (seeds > 1), fontsize=13)
    figures.save(made, path)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--data", default="summarise", choices=data.WORLD)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs there are")
    parser.add_argument("--inputs", type=int, default=60, help="prompts a split")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()
    torch.manual_seed(0)
    found = compare(rlhf.Config(data=args.data, seeds=args.seeds, inputs=args.inputs, out=args.out,
                                sweeps=True))  # so that the other betas are loaded
    folder = data.run_folder(args.data, 0, args.out)
    (folder / "tradeoff.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    figure(folder / "tradeoff.png", args.data, found)
    print(f"wrote {folder / 'tradeoff.json'} and tradeoff.png")
