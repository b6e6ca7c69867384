"""
bon.py - the best of n: sample n answers, keep the one that the reward model likes best.

    y = argmax_{y_1 .. y_n ~ pi_SFT} r(x, y_i)            Sec. 3, Kirk et al. 2024, arXiv:2310.06452
    KL(best of n || pi_SFT) <= log n - (n - 1) / n        App. A, Beirami et al. 2024,
                                                          arXiv:2401.01879
    python bon.py                        # about two minutes on two CPU cores; a table of what the
                                         # best of 1, 2, 4, ... is worth, from one pool of samples

Nothing is trained. It is the yardstick for PPO: the same reward model, all the work at test time.
The table needs one pool of m samples a prompt for every n <= m: each sample's chance to be the best
of n is known from its rank (`rank_weights`), so every n uses all samples and none is sampled anew.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import data
import metrics
import model as m
import reward


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = ""  # a checkpoint or pretrained model (default: sft.pt of the run folder)
    reward: str = ""  # the reward checkpoint that chooses (default: reward.pt of the run folder)
    split: str = "validation"  # which prompts
    n: int = 16  # the chosen output is the best of n
    pool: int = 0  # samples per prompt, for the table of every n up to this (0: n)
    temperature: float = 0.7  # of the samples (the paper's; 1 is what the bound on KL is about)
    min_p: float = 0.0  # no token less than so many times as likely as the likeliest is sampled
    diverse: int = 0  # choose so many of the pool, good and unlike each other, instead of one
    prompts: int = 200  # how many prompts
    seed: int = 0  # of the samples
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu or cuda

    def __post_init__(self):
        metrics.within(self, 1, float("inf"), "n", "prompts")
        metrics.within(self, 0, float("inf"), "pool", "seed", "temperature", "diverse")
        metrics.within(self, 0, 1, "min_p")
        self.pool = self.pool or max(self.n, 8 * self.diverse)
        if self.pool < self.n:
            raise ValueError(f"--pool {self.pool} samples have no best of --n {self.n}: give at "
                             f"least as many")
        if self.pool < self.diverse:
            raise ValueError(f"--pool {self.pool} samples have no --diverse {self.diverse}: give "
                             f"at least as many")


WEIGHT = 1.0  # of likeness in a diverse choice; on validation summarise asks for 1, instruct for 2


def kl_bound(n):
    """KL of the best of n from its policy, in nats: exact if no two samples score alike and each
    answer is rare, else an upper bound. n = 16 gives 1.84."""
    return math.log(n) - (n - 1) / n


def best_of_n(scores, n=None):
    """Where the best of the first n samples of each prompt stands: (P, m) -> (P,); ties: the first.

    ValueError if there are fewer than n, or a score is not a number.
    """
    scores = np.asarray(scores, dtype=np.float64)  # (P, m)
    n = scores.shape[1] if n is None else n
    if not 1 <= n <= scores.shape[1] or np.isnan(scores).any():
        raise ValueError(f"the best of {n} needs as many samples a prompt, not {scores.shape[1]}, "
                         f"and scores that are numbers")
    return scores[:, :n].argmax(1)


def rank_weights(m, n):
    """Chance of each rank, lowest first, to be the best of n out of m without replacement: (m,).

        w_i = C(i, n - 1) / C(m, n),  i = 0 .. m - 1
    """
    if not 1 <= n <= m:
        raise ValueError(f"a pool of {m} has no best of {n}")
    return np.array([math.comb(i, n - 1) / math.comb(m, n) for i in range(m)])


def pair_weights(m, n):
    """Chance of ranks i < j to be the bests of two disjoint n out of m: (m, m), upper triangle.

        w_ij = 2 C(i, n - 1) C(j - n, n - 1) / [C(m, n) C(m - n, n)]

    For measures of two outputs, such as the distance between their embeddings.
    """
    if not 1 <= 2 * n <= m:
        raise ValueError(f"two disjoint best of {n} need a pool of at least {2 * n}, not {m}")
    ways = math.comb(m, n) * math.comb(m - n, n)
    weights = np.zeros((m, m))
    for i in range(n - 1, m):
        for j in range(max(i + 1, 2 * n - 1), m):
            weights[i, j] = 2 * math.comb(i, n - 1) * math.comb(j - n, n - 1) / ways
    return weights


def groups(scores):
    "Which samples score alike: (m,) -> (m, G), one column for each distinct score."
    distinct, group = np.unique(scores, return_inverse=True)
    return np.eye(len(distinct))[group]


def expected_best(scores, values, n):
    """Unbiased estimate of E[value of the best of n by score], from pools of m >= n.

    (m,), (m,) -> float, or (P, m), (P, m) -> (P,). Samples of equal score share their weight, as if
    ties were broken by a coin.
    """
    scores, values = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if scores.shape != values.shape:
        raise ValueError(f"{scores.shape} scores cannot rank {values.shape} values")
    if scores.ndim == 2:
        return np.array([expected_best(s, v, n) for s, v in zip(scores, values)])
    order = np.argsort(scores)
    alike = groups(scores[order])  # (m, G)
    return float(rank_weights(len(scores), n) @ alike / alike.sum(0) @ alike.T @ values[order])


def expected_pair(scores, pairwise, n):
    """Unbiased estimate of E[pairwise(a, b)], a and b the bests of two disjoint n of one prompt.

    (m,), symmetric (m, m) -> float, m >= 2n. Averaged over prompts: the per-input diversity of the
    best of n. What is not a mean over pairs, such as EAD, needs `disjoint_bests`.
    """
    scores, m = np.asarray(scores, dtype=np.float64), len(scores)
    order = np.argsort(scores)
    alike, others = groups(scores[order]), 1 - np.eye(m)  # (m, G), (m, m)
    weights = pair_weights(m, n)
    # pairs of like scores share their weight, but no sample is ever paired with itself
    shared = alike.T @ (weights + weights.T) / 2 @ alike  # (G, G)
    shared /= np.maximum(alike.T @ others @ alike, 1)
    weights = alike @ shared @ alike.T * others
    return float((weights * np.asarray(pairwise, dtype=np.float64)[order][:, order]).sum())


def disjoint_bests(scores, n, k, seed=0):
    """k independent bests of n of one prompt: (m,) with m >= k n -> (k,) places in the pool.

    The pool is dealt at random into k hands of n. For set diversities of k outputs, unbiased.
    """
    if len(scores) < k * n:
        raise ValueError(f"{k} disjoint best of {n} need a pool of {k * n}, not {len(scores)}")
    hands = np.random.default_rng(seed).permutation(len(scores))[:k * n].reshape(k, n)
    return hands[np.arange(k), best_of_n(np.asarray(scores)[hands])]


def simulated_bests(scores, n, k, seed=0):
    """k bests of n of one prompt from hands that overlap: (m,) with m >= n -> (k,) places.

    Each is a fair best of n, but together they are too alike: a set diversity of them is too low,
    the more so the nearer m is to n.
    """
    random = np.random.default_rng(seed)
    hands = np.stack([random.permutation(len(scores))[:n] for _ in range(k)])
    return hands[np.arange(k), best_of_n(np.asarray(scores)[hands], n)]


def overlaps(responses):
    """How much two responses share: of the word pairs of the one with fewer, the share that the
    other has too. List of m texts -> symmetric (m, m) in [0, 1], ones on the diagonal."""
    pairs = [set(zip(["", *words], [*words, ""])) for words in map(str.split, responses)]
    return np.array([[len(a & b) / min(len(a), len(b)) for b in pairs] for a in pairs])


def diverse_bests(scores, overlap, k, weight=WEIGHT):
    """Places of k outputs of one prompt that are good and unlike each other: (m,), (m, m) -> (k,).

    Greedily the one of the highest score - weight * (largest overlap with those chosen), so weight
    is what a double would cost, in standard deviations of references' scores; 0 gives the k best.
    Maximal marginal relevance, Sec. 2, Carbonell and Goldstein 1998, doi:10.1145/290941.291025.
    What is chosen is a set: its members are not independent samples of any policy.
    """
    value, chosen = np.array(scores, dtype=np.float64), []
    if not 1 <= k <= len(value):
        raise ValueError(f"a pool of {len(value)} samples has no {k} to choose")
    nearest = np.zeros(len(value))
    for _ in range(k):
        chosen.append(int((value - weight * nearest).argmax()))
        value[chosen[-1]] = -np.inf
        nearest = np.maximum(nearest, overlap[chosen[-1]])
    return np.array(chosen)


def sample_pool(policy, prompts, size, max_new_tokens, temperature, seed, min_p=0.0, block=32):
    "`size` samples for each prompt, as ids: a list over prompts of lists."
    pool = []
    for i in tqdm(range(0, len(prompts), block), "sample", unit="block"):
        part = prompts[i:i + block]
        ids = m.generate(policy, part, max_new_tokens, temperature, size, seed * 1_000_003 + i,
                         min_p=min_p)
        pool += [ids[k * size:(k + 1) * size] for k in range(len(part))]
    return pool


@torch.no_grad()
def loglikelihood(policy, prompts, responses, temperature, pad, batch=128):
    "log pi(response | prompt) of whole responses, lists of ids each -> (N,); greedy ones have 0."
    out = np.zeros(len(prompts))
    if temperature == 0:
        return out
    device = policy.embed.weight.device
    for places, ids, segment, (row, end) in data.shared_rows(prompts, responses, pad, batch):
        ids, segment = ids.to(device), segment.to(device)  # (B, T)
        begin = int((segment == 0).sum(1).min())  # the first column of a response in any row
        column = torch.arange(begin, ids.shape[1], device=device).expand(len(ids), -1)  # (B, R)
        before = data.predicted_at(segment)[:, begin:]  # (B, R)
        hidden = policy(ids, segment=segment, at=before)  # (B, R, C)
        logp = m.logprobs(policy, ids, column, temperature, hidden=hidden)  # (B, R)
        number = segment[:, begin:].clamp(min=0)  # (B, R), k in a row's k-th response, else 0
        sums = logp.new_zeros(len(ids), 1 + int(number.max()))  # (B, 1 + K)
        sums.scatter_add_(1, number, logp)
        out[places] = sums[row, segment[row, end]].cpu()  # (N,), by where each one ends
    return out


def train(config):
    "Sample, choose, and return the path of the chosen outputs (nothing is trained)."
    device = m.device(config.device)
    folder = data.run_folder(config.data, config.seed, config.out)
    policy, record = m.settled(config.init or folder / "sft.pt", "policy", device)
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    reward_model, _ = m.settled(config.reward or folder / "reward.pt", "reward", device,
                                tokenizer.fingerprint)
    fn, gold = reward.reward_fn(reward_model, tokenizer.pad), data.gold(config.data)
    examples = data.load(config.data, config.split, config.prompts)
    prompts = [tokenizer.prompt(e.prompt) for e in examples]

    _held = metrics.lock(folder)  # until this function ends

    # ---- the pool: m samples for each of P prompts, their scores, and the cost of the temperature
    pool = sample_pool(policy, prompts, config.pool, tokenizer.response_tokens, config.temperature,
                       config.seed, config.min_p)
    owners = [p for p in prompts for _ in range(config.pool)]
    ids = [r for samples in pool for r in samples]
    scores = fn(owners, ids).numpy().reshape(len(pool), -1)  # (P, m)
    cooled = (loglikelihood(policy, owners, ids, config.temperature, tokenizer.pad)
              - loglikelihood(policy, owners, ids, 1.0, tokenizer.pad)).reshape(len(pool), -1)
    texts = [[tokenizer.decode(r).strip() for r in samples] for samples in pool]
    values = {"proxy": scores}
    if gold:
        values["gold"] = np.array([[gold(e.prompt, text) for text in samples]
                                   for e, samples in zip(examples, texts)])  # (P, m)
        references = np.array([[gold(e.prompt, e.response)] for e in examples])  # (P, 1)
        values["win_rate"] = (values["gold"] > references) + (values["gold"] == references) / 2

    # ---- what the best of every n is worth
    rows = []
    for n in range(1, config.pool + 1):
        kl = {} if config.min_p else {
            "kl": float(kl_bound(n) + expected_best(scores, cooled, n).mean())}
        rows.append({"n": n, **kl, **{name: float(expected_best(scores, value, n).mean())
                                      for name, value in values.items()}})
    print("".join(name.rjust(10) for name in rows[0]))
    for row in rows:
        if row["n"] & (row["n"] - 1) == 0 or row["n"] == config.n:
            print(f"{row['n']:10}" + "".join(f"{row[k]:10.3f}" for k in row if k != "n"))
    picture, curve = folder / "bon.png", folder / "bon.jsonl"
    metrics.write(curve, rows)
    panels = [("Best of n", [k for k in values if k != "win_rate"], "mean score")]
    if "kl" in rows[0]:
        panels.append(("KL to SFT, at most", ["kl"], "nats per response"))
    if gold:
        panels.append(("Against references", ["win_rate"], "win rate by gold score"))
    metrics.curve(picture, rows, panels, x="n")

    # ---- the outputs chosen: one, for one n, or a set
    chosen, path = best_of_n(scores, config.n)[:, None], folder / f"bon{config.n}.jsonl"  # (P, 1)
    if config.diverse:
        path = folder / f"diverse{config.diverse}.jsonl"
        chosen = np.array([diverse_bests(row, overlaps(samples), config.diverse)
                           for row, samples in zip(scores, texts)])  # (P, k)
    metrics.write(path, [
        {"prompt": e.prompt, "outputs": [samples[k] for k in places], "reference": e.response,
         "scores": [float(row[k]) for k in places]}
        for e, samples, row, places in zip(examples, texts, scores, chosen)])
    metrics.side_by_side(folder / "bon.txt", [e.prompt for e in examples[:4]],
                         {"first": [samples[0] for samples in texts[:4]],
                          **{"best" if k == 0 else f"{k + 1}": [s[places[k]] for s, places in
                                                                zip(texts[:4], chosen)]
                             for k in range(chosen.shape[1])},
                          "reference": [e.response for e in examples[:4]]}, gold)
    first, last, what = rows[0], rows[config.n - 1], f"n 1 -> {config.n}"
    if config.diverse:
        k, what = config.diverse, f"any {config.diverse} -> chosen of {config.pool}"
        for row, places in ((first, [range(k)] * len(pool)), (last, chosen)):
            row |= {name: float(np.mean([v[list(p)].mean() for v, p in zip(value, places)]))
                    for name, value in values.items()}
            row["ead"] = float(metrics.per_input(
                [[samples[k] for k in p] for samples, p in zip(texts, places)], metrics.ead).mean())
    print(f"bon: {what}, " + ", ".join(
        f"{k} {first[k]:.2f} -> {last[k]:.2f}" for k in first if k != "n")
        + f" (temperature {config.temperature:g})\nwrote {path}, {curve} and {picture}")
    return path


if __name__ == "__main__":
    metrics.cli(Config, train)
