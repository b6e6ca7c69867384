"""
Many samples of many prompts: drawn, how likely each of them is, a set of them that are good and
unlike each other, and what bon.py writes of them.
"""

import numpy as np
import torch
from tqdm import tqdm

import data
import metrics
import model as m
from data import files, networks
from data.run import curve, say, side_by_side


def sample_pool(policy, prompts, size, max_new_tokens, temperature, seed, min_p=0.0, block=32):
    "`size` samples for each prompt, as ids: a list over prompts of lists."
    pool = []
    for i in tqdm(range(0, len(prompts), block), "sample", unit="block"):
        part = prompts[i:i + block]
        ids = m.generate(policy, part, max_new_tokens, temperature, size, seed * 1_000_003 + i,
                         min_p=min_p)
        pool += [ids[k * size:(k + 1) * size] for k in range(len(part))]
    return pool


def row_loglikelihoods(policy, ids, segment, ends, temperature=1.0, hidden=None, bottom=None):
    """log pi(response | prompt) of the responses of rows made by data.join_groups -> (N,); of a
    tuple of temperatures (K, N). `hidden` (B, T, C) are these rows' states, from a caller who had
    another use for them, and `bottom` what the frozen layers make of them."""
    begin = int((segment == 0).sum(1).min())  # the first column of a response in any row
    column = torch.arange(begin, ids.shape[1], device=ids.device).expand(len(ids), -1)  # (B, R)
    before = data.predicted_at(segment)[:, begin:]  # (B, R)
    hidden = (policy(ids, bottom=bottom, segment=segment, columns=before) if hidden is None else
              m.take(hidden, before))  # (B, R, C)
    if isinstance(temperature, tuple):
        logp = torch.stack([m.logprobs(policy, ids, column, t, hidden=hidden) for t in temperature])
    else:
        logp = m.logprobs(policy, ids, column, temperature, hidden=hidden)  # (..., B, R)
    number = segment[:, begin:].clamp(min=0)  # (B, R), k in a row's k-th response, else 0
    sums = logp.new_zeros(*logp.shape[:-1], 1 + int(number.max()))  # (..., B, 1 + responses)
    sums, (row, end) = sums.scatter_add(-1, number.expand_as(logp), logp), ends
    return sums[..., row, segment[row, end]]  # by where each one ends


@torch.no_grad()
def loglikelihood(policy, prompts, responses, temperature, pad, batch=128, kept=None):
    """log pi(response | prompt) of whole responses, lists of ids each -> (N,); greedy ones have 0.
    Of a tuple of temperatures above 0 (K, N), by one pass. For `kept` see networks.kept_output."""
    if temperature == 0:
        return np.zeros(len(prompts))
    prompts, responses, back = data.distinct(prompts, responses)
    out = np.zeros((*np.shape(temperature), len(prompts)))
    device, size = policy.embed.weight.device, networks.rows_at_once(policy, batch)
    for places, ids, segment, ends in data.shared_rows(prompts, responses, pad, size):
        ids, segment = ids.to(device), segment.to(device)
        bottom = networks.kept_output(policy, ids, segment, kept)
        found = row_loglikelihoods(policy, ids, segment, ends, temperature, bottom=bottom)
        out[..., places] = found.cpu()
    return out[..., back]


def log_ratio(policy, ref_policy, prompts, responses, temperature, pad, kept=None):
    """log pi(y | x), of a policy that samples at this temperature, less log pi_ref(y | x) at 1 ->
    (N,). If both are the same network one pass is enough, and at temperature 1 none is needed. For
    `kept` see networks.kept_output."""
    if policy is ref_policy and temperature == 1:
        return np.zeros(len(prompts))
    if policy is ref_policy and temperature:
        own, by_ref = loglikelihood(policy, prompts, responses, (temperature, 1.0), pad, kept=kept)
    else:
        own, by_ref = (loglikelihood(network, prompts, responses, t, pad, kept=kept)
                       for network, t in ((policy, temperature), (ref_policy, 1.0)))
    return own - by_ref


WEIGHT = 1.0  # of likeness in a diverse choice; on validation summarise asks for 1, instruct for 2


def overlaps(responses):
    """How much two responses share: of the word pairs of the one with fewer, the share that the
    other has too. List of S texts -> symmetric (S, S) in [0, 1], ones on the diagonal."""
    pairs = [set(zip(["", *words], [*words, ""])) for words in map(metrics.words, responses)]
    return np.array([[len(a & b) / min(len(a), len(b)) for b in pairs] for a in pairs])


def diverse_bests(scores, overlap, k, weight=WEIGHT):
    """Places of k outputs of one prompt that are good and unlike each other: (S,), (S, S) -> (k,).

    Greedily the one of the highest score - weight * (largest overlap with those chosen), so weight
    is what a double would cost, in standard deviations of references' scores; 0 gives the k best.
    Maximal marginal relevance, Sec. 2, Carbonell and Goldstein 1998, doi:10.1145/290941.291025.
    What is chosen is a set: its members are not independent samples of any policy.
    """
    left, chosen = np.array(scores, dtype=np.float64), []  # scores of those not chosen, else -inf
    if not 1 <= k <= len(left):
        raise ValueError(f"a pool of {len(left)} samples has no {k} to choose")
    likeness = np.zeros(len(left))
    for _ in range(k):
        chosen.append(int((left - weight * likeness).argmax()))
        left[chosen[-1]] = -np.inf
        likeness = np.maximum(likeness, overlap[chosen[-1]])
    return np.array(chosen)


def picked(texts, places):
    "The texts at (P, k) places of the pools: a list over prompts of lists."
    return [[samples[i] for i in row] for samples, row in zip(texts, places)]


def set_means(measures, texts, places):
    "Means over the outputs at (P, k) places of the pools, and the diversity of a prompt's k."
    means = {name: np.take_along_axis(x, places, 1).mean(1).mean()
             for name, x in measures.items() if name != "kl"}  # that of a set is not known
    return means | {"ead": metrics.per_input(picked(texts, places), metrics.ead).mean()}


def keep_bests(config, folder, rows, measures, examples, texts, places):
    "Keep, draw and print what every n is worth and the outputs at `places` -> the outputs' path."
    path = folder / (f"diverse{config.diverse}.jsonl" if config.diverse else f"bon{config.n}.jsonl")
    log, picture = folder / "bon.jsonl", folder / "bon.png"
    outputs = picked(texts, places)
    scores = np.take_along_axis(measures["proxy"], places, 1).tolist()
    files.write_rows(log, rows)
    files.write_rows(path, [
        {"prompt": e.prompt, "outputs": best, "reference": e.response, "scores": numbers}
        for e, best, numbers in zip(examples, outputs, scores)])
    panels = [("Best of n", ["proxy", "gold"], "mean score"),
              ("KL to SFT, at most", ["kl"], "nats per response"),
              ("Against references", ["win_rate"], "win rate by gold score")]
    curve(picture, rows, [panel for panel in panels if panel[1][0] in rows[0]], x="n")

    print("".join(name.rjust(10) for name in rows[0]))
    for row in rows:
        if row["n"] & (row["n"] - 1) == 0 or row["n"] == config.n:  # a power of 2
            print(f"{row['n']:10}" + "".join(f"{row[k]:10.3f}" for k in row if k != "n"))
    names = ["best", *map(str, range(2, places.shape[1] + 1))]
    side_by_side(folder / "bon.txt", [e.prompt for e in examples[:4]],
                 {"first": [samples[0] for samples in texts], **dict(zip(names, zip(*outputs))),
                  "reference": [e.response for e in examples]}, data.gold(config.data))
    first, last, what = rows[0], rows[config.n - 1], f"n 1 -> {config.n}"
    if config.diverse:
        what = f"any {config.diverse} -> chosen of {config.pool}"
        any_k = np.broadcast_to(np.arange(config.diverse), places.shape)  # the first k samples
        first, last = set_means(measures, texts, any_k), set_means(measures, texts, places)
    changes = ", ".join(f"{k} {first[k]:.2f} -> {last[k]:.2f}" for k in first if k != "n")
    say(f"bon: {what}, {changes} (temperature {config.temperature:g})\n"
        f"wrote {path}, {log} and {picture}")
    return path
