"""
bon.py - the best of n: sample n answers, keep the one that the reward model likes best.

    y = argmax_{y_1 .. y_n ~ pi_SFT} r(x, y_i)            Sec. 3, Kirk et al. 2024, arXiv:2310.06452
    KL(best of n || pi_SFT) <= log n - (n - 1) / n        App. A, Beirami et al. 2024,
                                                          arXiv:2401.01879
    python bon.py                        # about two minutes on two CPU cores; a table of what the
                                         # best of 1, 2, 4, ... is worth, from one pool of samples

Nothing is trained. It is the yardstick for PPO: the same reward model, all the work at test time.
The table needs one pool of S samples a prompt for every n <= S: each sample's chance to be the best
of n is known from its rank (`rank_weights`), so every n uses all samples and none is sampled anew.
In shapes, P is the number of prompts, S that of samples in a pool, and k that of outputs chosen.
"""

import math
from dataclasses import dataclass

import numpy as np

import data
import metrics
import reward
from data.checkpoint import load_frozen
from data.pools import diverse_bests, keep_bests, log_ratio, overlaps, sample_pool
from data.run import cli, lock, pick_device, within


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
    device: str = "auto"  # auto, cpu, cuda or mps

    def __post_init__(self):
        within(self, 1, float("inf"), "n", "prompts")
        within(self, 0, float("inf"), "pool", "seed", "temperature", "diverse")
        within(self, 0, 1, "min_p")
        self.pool = self.pool or max(self.n, 8 * self.diverse)
        within(self, max(self.n, self.diverse), float("inf"), "pool")  # or there is no choice


def kl_bound(n):
    """KL of the best of n from its policy, in nats: exact if no two samples score alike and each
    answer is rare, else an upper bound. n = 16 gives 1.84."""
    return math.log(n) - (n - 1) / n


def best_of_n(scores, n=None):
    """Where the best of the first n samples of each prompt stands: (P, S) -> (P,); ties: the first.
    ValueError if there are fewer than n, or a score is not a number."""
    scores = np.asarray(scores, dtype=np.float64)  # (P, S)
    n = scores.shape[1] if n is None else n
    if not 1 <= n <= scores.shape[1] or np.isnan(scores).any():
        raise ValueError(f"the best of {n} needs as many samples a prompt, not {scores.shape[1]}, "
                         f"and scores that are numbers")
    return scores[:, :n].argmax(1)


def rank_weights(size, n):
    """Chance of each rank, lowest first, to be the best of n out of `size`, without replacement:

        w_i = C(i, n - 1) / C(size, n),  i = 0 .. size - 1
    """
    if not 1 <= n <= size:
        raise ValueError(f"a pool of {size} has no best of {n}")
    return np.array([math.comb(i, n - 1) / math.comb(size, n) for i in range(size)])


def expected_best(scores, values, n):
    """Unbiased estimate of E[value of the best of n by score] from a pool, for every n <= S:
    (S,), (S,) -> float, or (P, S), (P, S) -> (P,). Samples of equal score share their weight, as if
    ties were broken by a coin."""
    scores, values = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if scores.shape != values.shape:
        raise ValueError(f"{scores.shape} scores cannot rank {values.shape} values")
    if scores.ndim == 2:
        return np.array([expected_best(s, v, n) for s, v in zip(scores, values)])
    order = np.argsort(scores)
    distinct, tie = np.unique(scores[order], return_inverse=True)
    in_tie = np.eye(len(distinct))[tie]  # (S, G): 1 where a sample has the g-th distinct score
    weights = rank_weights(len(scores), n) @ in_tie / in_tie.sum(0)  # (G,), of each sample in it
    return float(weights @ in_tie.T @ values[order])


def disjoint_bests(scores, n, k, seed=0):
    """k independent bests of n of one prompt: (S,) with S >= k n -> (k,) places in the pool. The
    groups of n are disjoint, at random, so that a set diversity of the k outputs is unbiased."""
    if len(scores) < k * n:
        raise ValueError(f"{k} disjoint best of {n} need a pool of {k * n}, not {len(scores)}")
    groups = np.random.default_rng(seed).permutation(len(scores))[:k * n].reshape(k, n)
    return groups[np.arange(k), best_of_n(np.asarray(scores)[groups])]


def train(config):
    "Sample, choose, and return the path of the chosen outputs (nothing is trained)."
    device = pick_device(config.device)
    folder = data.run_folder(config.data, config.seed, config.out)
    policy, record = load_frozen(config.init or folder / "sft.pt", "policy", device)
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    reward_model, _ = load_frozen(config.reward or folder / "reward.pt", "reward", device,
                                  tokenizer.fingerprint)
    reward_fn, gold = reward.scorer(reward_model, tokenizer.pad), data.gold(config.data)
    examples = data.load(config.data, config.split, config.prompts)
    prompts = tokenizer.prompts([e.prompt for e in examples])
    _held = lock(folder)  # until this function ends

    # the pool, its scores, and whatever else is known of each sample
    pool = sample_pool(policy, prompts, config.pool, tokenizer.response_tokens, config.temperature,
                       config.seed, config.min_p)
    texts = [[tokenizer.decode(r).strip() for r in samples] for samples in pool]
    owners = [p for p in prompts for _ in range(config.pool)]
    ids = [r for samples in pool for r in samples]
    by_prompt = lambda numbers: np.asarray(numbers).reshape(len(pool), config.pool)  # (P, S)
    scores, measures = by_prompt(reward_fn(owners, ids)), {}
    if not config.min_p:  # of what that cuts the KL is not known
        cost = log_ratio(policy, policy, owners, ids, config.temperature, tokenizer.pad)
        measures["kl"] = by_prompt(cost)  # of the temperature
    measures["proxy"] = scores
    if gold:
        measures["gold"] = np.array([[gold(e.prompt, text) for text in samples]
                                     for e, samples in zip(examples, texts)])  # (P, S)
        references = np.array([[gold(e.prompt, e.response)] for e in examples])  # (P, 1)
        measures["win_rate"] = metrics.win_rate(measures["gold"], references)

    # what the best of every n is worth, from this one pool
    rows = [{"n": n, **{name: float(expected_best(scores, x, n).mean())
                        for name, x in measures.items()}} for n in range(1, config.pool + 1)]
    for row in rows:
        if "kl" in row:
            row["kl"] += kl_bound(row["n"])

    # the outputs chosen: one of each prompt's pool, or a set
    places = best_of_n(scores, config.n)[:, None]  # (P, 1)
    if config.diverse:
        places = np.array([diverse_bests(row, overlaps(samples), config.diverse)
                           for row, samples in zip(scores, texts)])  # (P, k)
    return keep_bests(config, folder, rows, measures, examples, texts, places)


if __name__ == "__main__":
    cli(Config, train)
