"""
The checks of the fourteen problems, one function each: numbers found beside numbers expected.

Expected is a closed form or a slow and obvious way to the same thing, in float64. Sizes are
unequal primes, so that no two axes can be exchanged, padding is NaN where nothing may read it, and
every check fails an answer of zeros. No check calls the function of another problem.
"""

import itertools
import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

import bon
import data
import metrics
import model as m
import ppo
import reward
import sft

B, R, T, V = 3, 5, 11, 13
IS_RESPONSE = torch.arange(R) < torch.tensor([[5], [3], [1]])  # (B, R)


class Row(NamedTuple):
    what: str
    found: object  # a number, or a tensor of them
    expected: object
    within: float = 1e-9

    def worst(self):
        "(found, expected) where they differ most; NaN differs from everything."
        found, expected = (torch.as_tensor(x, dtype=torch.float64).flatten()
                           for x in (self.found, self.expected))
        if found.shape != expected.shape:
            return math.nan, math.nan
        apart = (found - expected).abs().nan_to_num(math.inf, posinf=math.inf)
        place = apart.argmax()
        return found[place].item(), expected[place].item()

    def holds(self):
        found, expected = self.worst()
        return abs(found - expected) <= self.within * max(1, abs(expected))


def normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def padded(x):
    "NaN on padding: what reads it is found out."
    return torch.where(IS_RESPONSE, x, math.nan)


def tiny(cls=m.Transformer, **more):
    torch.manual_seed(7)
    made = cls(m.ModelConfig(vocab_size=V, context=32, layers=2, heads=2, kv_heads=2, channels=8,
                             hidden=12, tied=False, eos=(V - 1,), **more))
    with torch.no_grad():  # far from uniform
        for parameter in made.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return made.double().eval()


def logprobs():
    model = tiny()
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([[2, 3, 4, 5, 6], [5, 6, 7, 8, 9], [4, 6, 7, 9, 10]])
    with torch.no_grad():
        logits = model.logits(model(ids)) / 0.7  # (B, T, V)
        slow = torch.tensor([[(logits[b, t - 1, ids[b, t]] - logits[b, t - 1].exp().sum().log())
                              for t in positions[b]] for b in range(B)])
        found = m.logprobs(model, ids, positions, 0.7)
        yield Row("log pi of each token", found, slow)
        yield Row("the same in chunks of 4", m.logprobs(model, ids, positions, 0.7, chunk=4), slow)
        total = torch.zeros(B, dtype=torch.float64)
        for token in range(V):  # in the last place of each row, where no later one sees it
            other = ids.clone()
            other[:, 10] = token
            total += m.logprobs(model, other, torch.full((B, 1), 10))[:, 0].exp()
        yield Row("probabilities of all tokens in one place, summed", total, torch.ones(B))
        _, entropy = m.logprobs(model, ids, positions, 0.7, entropy=True)
        logp = torch.log_softmax(logits, -1)
        spread = -(logp.exp() * logp).sum(-1).gather(1, positions - 1)
        yield Row("entropy, nats", entropy, spread)
    m.logprobs(model, ids, positions, chunk=4).sum().backward()
    yield Row("gradients that are finite and not zero", float(all(
        p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())), 1.0)


def sft_loss():
    logp = padded(normal(2, B, R))
    found, _ = sft.loss(logp, IS_RESPONSE)
    yield Row("nats per response token", found, -logp[IS_RESPONSE].sum() / 9)
    parts = sum(sft.loss(logp[b:b + 1], IS_RESPONSE[b:b + 1], tokens=9)[0] for b in range(B))
    yield Row("row by row, summed", parts, -logp[IS_RESPONSE].sum() / 9)


def reward_loss():
    chosen, rejected = normal(3, B), normal(4, B)
    found, info = reward.loss(chosen, rejected)
    yield Row("nats", found, (1 + (rejected - chosen).exp()).log().mean())
    yield Row("of equal scores: log 2", reward.loss(chosen, chosen)[0], math.log(2))
    wrong = reward.loss(torch.tensor([-1000.0]), torch.tensor([0.0]))[0]
    yield Row("of a margin of -1000", wrong, 1000.0)
    yield Row("accuracy", info["accuracy"], (chosen > rejected).double().mean(), 1e-6)
    yield Row("margin", info["margin"], (chosen - rejected).mean(), 1e-6)


def reward_score():
    model = tiny(m.ScalarModel)
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(5))
    start, length = torch.tensor([[6], [4], [2]]), torch.tensor([[5], [3], [1]])
    positions = torch.minimum(start + torch.arange(R), start + length - 1)
    with torch.no_grad():
        every = model(ids)  # (B, T)
        found = reward.score(model, ids, positions, IS_RESPONSE)
        yield Row("the score of each row", found, torch.stack([every[0, 10], every[1, 6],
                                                               every[2, 2]]))


def token_rewards():
    score, old, ref = normal(6, B), normal(7, B, R), normal(8, B, R)
    for kl, formula in {"k1": lambda d: d, "k2": lambda d: d**2 / 2, "abs": abs,
                        "k3": lambda d: math.exp(-d) - 1 + d}.items():
        found = ppo.token_rewards(score, padded(old), padded(ref), IS_RESPONSE, 0.3, kl)
        slow = torch.zeros(B, R, dtype=torch.float64)
        for b, length in enumerate((5, 3, 1)):
            for t in range(length):
                slow[b, t] = -0.3 * formula((old - ref)[b, t].item())
            slow[b, length - 1] += score[b]
        yield Row(f"every token's reward, {kl}", found, slow)
        yield Row("sums over a row", found.sum(1), slow.sum(1))


def gae():
    rewards, values = normal(9, B, R), normal(10, B, R)
    for gamma, lam in ((0.9, 0.8), (1.0, 0.95), (1.0, 1.0), (1.0, 0.0)):
        slow = torch.zeros(B, R, dtype=torch.float64)
        for b, length in enumerate((5, 3, 1)):
            ahead = [*values[b, 1:length], 0.0]
            delta = [rewards[b, t] + gamma * ahead[t] - values[b, t] for t in range(length)]
            for t in range(length):
                slow[b, t] = sum((gamma * lam)**k * delta[t + k] for k in range(length - t))
        advantages, returns = ppo.gae(padded(rewards), padded(values), IS_RESPONSE, gamma, lam)
        yield Row(f"advantages, gamma {gamma}, lambda {lam}", advantages, slow)
        yield Row("returns", returns, slow + torch.where(IS_RESPONSE, values, 0.0))


def policy_loss():
    logp, old, advantages = normal(11, B, R) * 0.2, normal(12, B, R) * 0.2, normal(13, B, R)
    logp.requires_grad_(True)
    found, info = ppo.policy_loss(logp, padded(old), torch.where(IS_RESPONSE, advantages, 0.0),
                                  IS_RESPONSE, 0.2)
    (gradient,) = torch.autograd.grad(found, logp)
    total, slope, clipped, k3, gap = 0.0, torch.zeros(B, R, dtype=torch.float64), 0, 0.0, 0.0
    for b, t in zip(*map(torch.Tensor.tolist, IS_RESPONSE.nonzero(as_tuple=True))):
        a, ratio = advantages[b, t].item(), math.exp((logp[b, t] - old[b, t]).item())
        bounded = min(max(ratio, 0.8), 1.2)
        total -= min(a * ratio, a * bounded) / 9
        slope[b, t] = -a * ratio / 9 if a * ratio <= a * bounded else 0.0
        clipped, gap = clipped + (ratio != bounded), max(gap, abs(ratio - 1))
        k3 += (ratio - 1 - math.log(ratio)) / 9
    yield Row("the loss", found, total)
    yield Row("its gradient: zero exactly where clipped", gradient, slope)
    parts = sum(ppo.policy_loss(logp[b:b + 1], old[b:b + 1], advantages[b:b + 1],
                                IS_RESPONSE[b:b + 1], 0.2, tokens=9)[0] for b in range(B))
    yield Row("row by row, summed", parts, total)
    yield Row("clip_fraction", info["clip_fraction"], clipped / 9)
    yield Row("ratio_gap", info["ratio_gap"], gap)
    yield Row("approx_kl", info["approx_kl"], k3)


def value_loss():
    values, old, returns = normal(14, B, R), normal(15, B, R), normal(16, B, R)
    slow = sum(0.5 * max((values[b, t] - returns[b, t])**2,
                         (old[b, t] + (values[b, t] - old[b, t]).clamp(-0.2, 0.2)
                          - returns[b, t])**2) / 9
               for b, t in IS_RESPONSE.nonzero().tolist())
    keep = lambda x: torch.where(IS_RESPONSE, x, 0.0)
    yield Row("the loss", ppo.value_loss(padded(values), keep(old), keep(returns), IS_RESPONSE,
                                         0.2)[0], slow)
    parts = sum(ppo.value_loss(values[b:b + 1], old[b:b + 1], returns[b:b + 1],
                               IS_RESPONSE[b:b + 1], 0.2, tokens=9)[0] for b in range(B))
    yield Row("row by row, summed", parts, slow)


def against_group():
    rewards, mask = normal(21, 2 * B, R), torch.cat([IS_RESPONSE, IS_RESPONSE.flip(0)])
    totals = [sum(rewards[b, t].item() for t in range(R) if mask[b, t]) for b in range(2 * B)]
    for baseline, within in (("rloo", 1e-9), ("grpo", 1e-3)):
        slow = torch.zeros(2 * B, R, dtype=torch.float64)
        for b in range(2 * B):
            group = range(b - b % 3, b - b % 3 + 3)
            if baseline == "rloo":
                own = totals[b] - np.mean([totals[i] for i in group if i != b])
            else:
                of = [totals[i] for i in group]
                own = (totals[b] - np.mean(of)) / np.std(of, ddof=1)
            slow[b, mask[b]] = own
        found = ppo.against_group(torch.where(mask, rewards, math.nan), mask, 3, baseline)
        yield Row(f"every token's advantage, {baseline}", found, slow, within)
        same = ppo.against_group(torch.ones(3, R), torch.ones(3, R).bool(), 3, baseline)
        yield Row(f"of equal rewards, {baseline}", same, torch.zeros(3, R))
    two = ppo.against_group(torch.tensor([[1.0, 1.0], [5.0, 0.0]]), torch.ones(2, 2).bool(), 2,
                            "rloo")  # each is the other's baseline
    yield Row("of two responses, rloo", two, torch.tensor([[-3.0, -3.0], [3.0, 3.0]]))


def log_ratio():
    model, answers = tiny(), [[[6, 7], [8]], [[9, 10, 11], [1], [2, 3]]]
    prompts = [[1, 2, 3], [4, 5]]
    pair = lambda *texts: SimpleNamespace(**dict(zip(("prompt", "chosen", "rejected"), texts)))
    groups = [[pair("x", "a", "b")], [pair("y", "c", "d"), pair("y", "c", "e")]]
    keys = [("x", "a"), ("x", "b"), ("y", "c"), ("y", "d"), ("y", "e")]
    logp_ref = dict(zip(keys, (-1.0, -2.0, -4.0, -8.0, -16.0)))
    ids, segment, ends = data.join_groups(prompts, answers, 0)
    found = reward.log_ratio(model, ids, segment, ends, model(ids, segment=segment), groups,
                             logp_ref)
    slow = []
    with torch.no_grad():
        for prompt, texts in zip(prompts, answers):
            for answer in texts:  # alone behind its prompt
                logp = torch.log_softmax(model.logits(model(torch.tensor([prompt + answer]))), -1)
                slow.append(sum(logp[0, len(prompt) - 1 + t, token].item()
                                for t, token in enumerate(answer)))
    yield Row("nats of each answer", found, [x - logp_ref[key] for x, key in zip(slow, keys)])
    found.sum().backward()
    yield Row("gradients that are finite and not zero", float(all(
        p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())), 1.0)


def expected_best():
    values = normal(18, 6).numpy()
    pools = {"distinct scores": normal(17, 6).numpy(), "ties": np.array([1.0, 1, 0, 2, 2, 2]),
             "all tied": np.zeros(6), "ties at both ends": np.array([2.0, 0, 0, 1, 0, 2])}
    for what, scores in pools.items():
        slow = []
        for n in range(1, 7):
            groups = [np.array(group) for group in itertools.combinations(range(6), n)]
            slow.append(np.mean([values[group[scores[group] == scores[group].max()]].mean()
                                 for group in groups]))
        found = [bon.expected_best(scores, values, n) for n in range(1, 7)]
        yield Row(f"over all groups of 1 to 6, {what}", found, slow)
    many = bon.expected_best(np.stack(list(pools.values())), np.stack([values] * 4), 2)
    yield Row("several prompts", many, [bon.expected_best(x, values, 2) for x in pools.values()])


def ead():
    # "the cat sat" twice and "a dog": 8 words, 5 of them distinct; 5 pairs, 3; 2 triples, 1
    texts, expected = ["the cat sat.", "the cat sat", "a dog"], 0.0
    for distinct, count in ((5, 8), (3, 5), (1, 2)):
        expected += distinct / (50257 * (1 - (50256 / 50257)**count)) / 5
    yield Row("of three texts", metrics.ead(texts), expected)
    yield Row("of a vocabulary of 10", metrics.ead(["x y"] * 16, 10),
              (2 / (10 * (1 - 0.9**32)) + 1 / (10 * (1 - 0.9**16))) / 5)
    yield Row("of nothing", metrics.ead([""]), 0.0)


def embedding_diversity():
    vectors = normal(19, R, 3).numpy()
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b)
               for a, b in itertools.combinations(vectors, 2)]
    found = metrics.embedding_diversity(list("abcde"), lambda texts: vectors)
    yield Row("of five vectors", found, 1 - np.mean(cosines))
    opposite = metrics.embedding_diversity(["a", "b"], lambda texts: [[1, 2], [-2, -4]])
    yield Row("of two opposite ones", opposite, 2.0)
    same = metrics.embedding_diversity(["a", "b"], lambda texts: [[1, 2], [2, 4]])
    yield Row("of two parallel ones", same, 0.0)


def decode_rows():
    for positions in ("rotary", "learned"):
        model = tiny(positions=positions)
        prompts, which, new = [[1, 2, 3, 4, 5], [6, 7], [8]], [0, 0, 1, 2, 2, 2, 1], 6
        uniform = torch.rand(7, new, dtype=torch.float64,
                             generator=torch.Generator().manual_seed(20))
        for temperature in (0, 0.9):
            with torch.no_grad():
                found = m.decode_rows(model, prompts, which, temperature, uniform).tolist()
            slow, got = [], []
            for row, place in enumerate(which):  # one whole forward pass for every token
                ids, answer = list(prompts[place]), []
                while len(answer) < new and V - 1 not in answer:
                    with torch.no_grad():
                        logits = model.logits(model(torch.tensor([ids]))[:, -1])
                    answer.append(m.choose(logits, temperature,
                                           uniform[row:row + 1, len(answer)]).item())
                    ids.append(answer[-1])
                slow += answer
                got += found[row][:len(answer)]
            yield Row(f"ids at temperature {temperature}, {positions} positions", got, slow)


CHECKS = {
    "model.logprobs": logprobs, "sft.loss": sft_loss, "reward.loss": reward_loss,
    "reward.score": reward_score, "reward.log_ratio": log_ratio,
    "ppo.token_rewards": token_rewards, "ppo.gae": gae, "ppo.policy_loss": policy_loss,
    "ppo.value_loss": value_loss, "ppo.against_group": against_group,
    "bon.expected_best": expected_best, "metrics.ead": ead,
    "metrics.embedding_diversity": embedding_diversity, "model.decode_rows": decode_rows}
