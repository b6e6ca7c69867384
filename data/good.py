"""
What of a set of outputs is different, and good: the kinds among them, and among those that are
good. For the study, which takes rows of rlhf.outputs_of, and for `python metrics.py`.

A policy that stops making mistakes loses diversity, and that is no loss. So beside the diversity of
all outputs stands that of the good ones (Shypula et al. 2025, arXiv:2504.12522).
"""

import numpy as np

import metrics
from data import claims


def of_good(kinds, scores=None, good=None, passes=None):
    """What of each input's K outputs is different, and good -> {measure: (inputs,)}: of every way
    to say which are of one kind, {"texts", ...: (inputs, K)}, how many kinds there are; with
    scores, (inputs, K), the utility by the last of these; with flags `good`, how many kinds among
    them, and the chance that one of k is good, or, with flags `passes`, such."""
    found = {}
    for name, each in kinds.items():
        found[f"distinct_{name}"] = [len(set(row)) for row in each]
        if good is not None:
            found[f"effective_{name}"] = [*map(metrics.effective, each, good)]
        if scores is not None:
            found["utility"] = [*map(metrics.utility, each, scores)]
    passes = good if passes is None else passes
    if passes is not None:
        sizes = [2 ** i for i in range(len(passes[0]).bit_length())]
        found |= {f"pass@{k}": metrics.pass_at_k(passes, k) for k in sizes}
    return {name: np.asarray(values, dtype=np.float64) for name, values in found.items()}


def kinds_by_cosine(outputs, vectors_of, same_above):
    "The kinds of outputs by an encoder's cosines: above this they are of one -> (inputs, K)."
    def of(texts):
        cosines = metrics.cosines(vectors_of(texts))
        return metrics.kinds(range(len(texts)), lambda i, j: cosines[i, j] > same_above)
    return [of(texts) for texts in outputs]


def sort(rows, vectors_of, same_above):
    "Adds to rows the kinds of their outputs by cosine."
    outputs = [row["outputs"] for row in rows]
    for row, kinds in zip(rows, kinds_by_cosine(outputs, vectors_of, same_above)):
        row["kinds"] = kinds


# ---- of the study's rows -------------------------------------------------------------------------


def kinds_of(rows):
    """Which outputs are of one kind -> {"texts": (inputs, K), equal texts; also "kinds", in the
    world what they say, elsewhere if they were sorted by cosine}."""
    found = {"texts": [row["outputs"] for row in rows]}
    if world := world_of(rows):
        found["kinds"] = [[world.kind(row["prompt"], text) for text in row["outputs"]]
                          for row in rows]
    elif "kinds" in rows[0]:
        found["kinds"] = [row["kinds"] for row in rows]
    return found


def world_of(rows):
    "The embedded world, if these rows are of it."
    if "gold" in rows[0]:
        from data import world

        return world


def bar_of(rows):
    "The gold score of a very good answer; None outside the world."
    return (world := world_of(rows)) and world.bar(rows[0]["prompt"])


def of_rows(rows, sft_rows, score):
    """`of_good` of a policy's rows, by this score: good is what beats the reference; what passes is
    very good in the world, good elsewhere. And the parts of metrics.split_loss, against SFT's."""
    bar, kinds, before = bar_of(rows), kinds_of(rows), kinds_of(sft_rows)
    beats = lambda rows: [np.array(row[score]) > row[f"reference_{score}"] for row in rows]
    scores, good = np.array([row[score] for row in rows]), beats(rows)
    name = [*kinds][-1]
    lost = [metrics.split_loss(*sets) for sets in zip(zip(before[name], beats(sft_rows)),
                                                      zip(kinds[name], good))]
    return of_good(kinds, scores, good, None if bar is None else scores >= bar) | {
        part: np.array([row[part] for row in lost], dtype=np.float64) for part in lost[0]}


def over_bars(rows, score, splits, steps=13):
    """Kinds among the outputs with a score of at least a bar, for bars from SFT's low scores to
    RLHF's high ones -> {"bars": [...], "bar": the world's own, or None, policy: {the first split,
    and "shifts": [summary of each]}}. `rows`: {policy: {split: rows of each seed}}."""
    near = {p: np.concatenate([[row[score] for row in own] for own in rows[p][splits[0]]])
            for p in ("sft", "rlhf")}
    bars = np.linspace(np.quantile(near["sft"], 0.1), np.quantile(near["rlhf"], 0.99), steps)
    found = {"bars": bars.tolist(), "bar": bar_of(rows["sft"][splits[0]][0])}

    def above(own):
        "Rows of a seed -> (bars, inputs)."
        each = [*zip([*kinds_of(own).values()][-1], [np.array(row[score]) for row in own])]
        return [[metrics.effective(kinds, scores >= bar) for kinds, scores in each] for bar in bars]

    for policy in ("sft", "rlhf", "dpo"):
        each = [np.stack([above(own) for own in rows[policy][s]], axis=1) for s in splits]
        parts = {splits[0]: each[0], "shifts": np.concatenate(each[1:], axis=-1)}
        found[policy] = {part: [claims.summarised(x) for x in table]  # of (bars, seeds, inputs)
                         for part, table in parts.items()}
    return found


def found(values, rows, score, splits):
    """What the report says of good answers beside the measures of each policy -> {"kinds": the
    measure of effective diversity, "matched_wins", "temperatures", "over_bars"}."""
    kinds = claims.kinds_in(values, splits[0])
    return {"kinds": kinds, "over_bars": over_bars(rows, score, splits),
            "temperatures": claims.at_equal_temperature(values, splits[0], kinds),
            "matched_wins": [claims.matched(values, s, kinds, "win_rate", 1) for s in splits]}
