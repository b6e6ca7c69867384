"""
ppo.py - raise the reward model's score on a KL leash to the SFT policy.

    max_pi  E_{x, y ~ pi}[ r(x, y) ] - beta * KL(pi || pi_SFT)        Eq. 1, Kirk et al. 2024,
                                                                      arXiv:2310.06452
    python ppo.py                        # about a minute and a half on two CPU cores; the last
                                         # lines show four prompts with both answers

One iteration: sample `samples` responses to each of `batch` / `samples` prompts; score them; give
the score and the KL penalty to their tokens; estimate advantages; take `epochs` passes of clipped
policy-gradient steps.
Temperature is part of the policy: what was sampled at T is scored at T everywhere.

Not here: sampling and log-probabilities (model.py), scores (reward.py, data/rewards.py), sharing of
weights (data/networks.py), what is watched (data/watch.py), flags, log, resuming (data/run.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import data
import model as m
import reward
from data import networks, optim, watch
from data.run import Run, check_finite, cli, within


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = ""  # a checkpoint or pretrained model (default: sft.pt of the run folder)
    reward: str = ""  # reward checkpoint (default: reward.pt), gold, or FILE.py with a reward_fn
    steps: int = 60  # iterations
    batch: int = 64  # responses per iteration
    samples: int = 4  # of them to each prompt, read with it in one row
    epochs: int = 2  # passes over an iteration's responses
    lr: float = 2e-4  # peak learning rate, falling linearly, to zero behind the last iteration
    beta: float = 0.25  # weight of the KL penalty, in reward standard deviations per nat
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the prompts' order and the samples
    resume: bool = False  # go on from what is there of this run: nothing, a part, or all of it
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu, cuda or mps

    kl: Literal["k1", "k2", "k3", "abs"] = "k1"  # estimator in the reward; the paper's code has k2
    target_kl: float = 0.0  # nats per response: adapt beta to stay near it (0: beta is fixed)
    baseline: Literal["value", "rloo", "grpo"] = "value"  # a value network, or the other samples
    value: Literal["reward", "shared"] = "reward"  # a copy of the reward model, or a head (paper)
    temperature: float = 1.0  # of the policy, in sampling and in every log-probability
    lam: float = 1.0  # lambda of GAE: below 1 the values are believed, and long responses run away
    minibatches: int = 4  # optimiser steps per pass
    micro: int = 0  # responses per forward pass, all of a prompt, for memory (0: the minibatch)
    length_penalty: float = 0.0  # taken off the score of a response of full length, in proportion
    max_kl: float = 0.0  # nats per response beyond which training stops (0: none)
    every: int = 10  # iterations between saves, and between scores on validation prompts
    variant: str = ""  # a folder below the run's, for a run that differs from the main one

    def __post_init__(self):
        within(self, 1, float("inf"), "steps", "batch", "samples", "epochs", "minibatches",
               "every")
        within(self, 0, float("inf"), "lr", "beta", "target_kl", "micro", "length_penalty",
               "max_kl", "seed")
        within(self, 1e-3, float("inf"), "temperature")
        within(self, 0, 1, "freeze", "lam")
        if self.batch % self.samples or self.minibatches > self.batch // self.samples:
            raise ValueError(f"--batch {self.batch} must be a multiple of --samples "
                             f"{self.samples}, of at least as many prompts as --minibatches "
                             f"{self.minibatches}")
        if self.baseline != "value" and self.samples == 1:
            raise ValueError(f"--baseline {self.baseline} compares the responses to a prompt with "
                             f"each other: give --samples 2 or more")


MISSING_EOS = -3.0  # the score of a response that does not end, however well it reads (std is 1)
CLIP = 0.2  # of the probability ratio, and of a value's change
VALUE_COEFFICIENT = 0.5  # of the value loss beside the policy loss
GAMMA = 1.0  # responses are short: a reward at the end counts in full at the start
HORIZON = 1_000  # responses in which the adaptive controller moves beta by at most 20 %


def token_rewards(score, logp_old, logp_ref, is_response, beta, kl="k1"):
    """Per-token reward: (B,), (B, R), (B, R), (B, R) -> (B, R); zero on padding.

        r_t = -beta * k(log pi_old(y_t) - log pi_ref(y_t)) + [t is the last response token] * score

    k1, the plain log-ratio, summed over a response is an unbiased estimate of its KL, and its
    gradient is that of the KL. It may be negative, and must not be clamped. k2 (in the code of
    Kirk et al.), k3 and abs are there to see what goes wrong: near the reference they hardly pull.
    """
    log_ratio = torch.where(is_response, logp_old - logp_ref, 0.0)  # (B, R)
    penalty = {"k1": lambda x: x, "k2": lambda x: x**2 / 2, "k3": lambda x: torch.expm1(-x) + x,
               "abs": torch.abs}[kl](log_ratio)  # Schulman 2020, joschu.net/blog/kl-approx.html
    rewards = -beta * penalty
    last = is_response.sum(1, keepdim=True) - 1  # (B, 1) EOS, or where the response was cut
    return rewards.scatter_add(1, last, score[:, None].to(rewards.dtype))


def gae(rewards, values, is_response, gamma, lam):
    """Generalised advantage estimation: (B, R) each -> advantages, returns, both (B, R).

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1}
                                            Eq. 16, Schulman et al. 2016, arXiv:1506.02438; the
                                            recursion: Eq. 11-12, arXiv:1707.06347
    Nothing comes after the last response token: V and A are zero there, and on all padding.
    """
    rewards = torch.where(is_response, rewards, 0.0)
    values = torch.where(is_response, values, 0.0)  # so V_{t+1} = 0 after the last token
    advantages = torch.zeros_like(rewards)
    ahead = next_value = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = delta + gamma * lam * ahead  # still 0 on padding, where delta is
        advantages[:, t] = ahead
        next_value = values[:, t]
    return advantages, advantages + values


def against_group(rewards, is_response, n, baseline):
    """Advantages without a value function: a response's whole reward less what the other responses
    to its prompt have: (B, R), (B, R) -> (B, R), the same for all tokens of a response.

        rloo   R_i - mean of R_j, j != i         Sec. 3.3, Ahmadian et al. 2024, arXiv:2402.14740
        grpo   (R_i - mean) / std of the group   Sec. 4.1.2, Shao et al. 2024, arXiv:2402.03300

    As in RLOO, R is the score less beta times the log-ratio; GRPO has a KL in its loss instead, and
    weighs responses alike, where here all tokens are. A group of equal rewards teaches nothing.
    """
    total = torch.where(is_response, rewards, 0.0).sum(1).view(-1, n)  # (G, N)
    above = total - total.mean(1, keepdim=True)
    scale = n / (n - 1) if baseline == "rloo" else 1 / (total.std(1, keepdim=True) + 1e-4)
    return torch.where(is_response, (above * scale).view(-1, 1), 0.0)


def masked_mean(x, is_response, tokens=None):
    count = is_response.sum() if tokens is None else tokens
    return torch.where(is_response, x, 0.0).sum() / max(int(count), 1)


def whiten(advantages, is_response):
    "Mean 0 and variance 1 over response tokens; padding stays 0."
    mean = masked_mean(advantages, is_response)
    variance = masked_mean((advantages - mean) ** 2, is_response)
    return torch.where(is_response, (advantages - mean) * torch.rsqrt(variance + 1e-8), 0.0)


# One response of five tokens by hand: score 1, beta .1, gamma 1, lambda .95. The reward model's
# point arrives at the last token; the advantages tell every token what it made better or worse than
# the value function thought. Returns, what the value function learns, are A + V before whitening.
#
#   t                     0       1       2       3       4   (EOS)
#   log pi_old        -0.50   -1.20   -0.10   -2.00   -0.30
#   log pi_ref        -0.70   -1.00   -0.10   -2.60   -0.40
#   reward r          -0.02    0.02    0.00   -0.06    0.99   = 1 - .1 * .1
#   value V            0.30    0.40    0.50    0.20    0.80   of the state before the token
#   delta              0.08    0.12   -0.30    0.54    0.19   r_t + V_t+1 - V_t
#   advantage A        0.54    0.49    0.38    0.72    0.19   delta_t + .95 A_t+1
#   return             0.84    0.89    0.88    0.92    0.99   A + V
#   whitened A         0.44    0.12   -0.46    1.46   -1.56   the worst token is now the last


def policy_loss(logp, logp_old, advantages, is_response, clip, tokens=None):
    """Clipped surrogate, Eq. 7, Schulman et al. 2017, arXiv:1707.06347: (B, R) each -> scalar,
    info. `tokens` is the minibatch's count when these rows are one of its micro-batches."""
    log_ratio = torch.where(is_response, logp - logp_old, 0.0)
    ratio = log_ratio.exp()  # (B, R)
    worse = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    loss = masked_mean(worse, is_response, tokens)
    with torch.no_grad():
        info = {"ratio_gap": (ratio - 1).abs().max().item(),
                "clip_fraction": masked_mean(((ratio - 1).abs() > clip).to(ratio.dtype),
                                             is_response, tokens).item(),
                "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, is_response,
                                         tokens).item()}  # k3 of old against new
    return loss, info


def value_loss(values, values_old, returns, is_response, clip, tokens=None):
    """Half the squared error, the worse of clipped and unclipped: (B, R) each -> scalar, info.
    Clipping is in units of reward, so it means something only because rewards have std 1."""
    values = torch.where(is_response, values, 0.0)
    clipped = values_old + (values - values_old).clamp(-clip, clip)  # (B, R)
    worse = torch.max((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * masked_mean(worse, is_response, tokens), {}


def adapted(beta, kl, target, responses):
    "The adaptive controller, once per rollout (Sec. 2.2, Ziegler et al. 2019, arXiv:1909.08593)."
    error = min(max(kl / target - 1, -0.2), 0.2) if target else 0
    return beta * (1 + error * min(responses / HORIZON, 1))


def shaped(proxy, response_ids, eos, max_tokens, config):
    """What PPO is given, (B,): the reward less the length penalty; where a response was cut,
    MISSING_EOS instead. (For `gae` it ends there all the same: no value comes behind it.)"""
    lengths = torch.tensor([float(len(r)) for r in response_ids])
    score = proxy - config.length_penalty * lengths / max_tokens
    ended = torch.tensor([r[-1] in eos for r in response_ids])
    return torch.where(ended, score, MISSING_EOS)


def value_network(config, policy, reward_model):
    """V(x, y_<t): a copy of the reward model, or a fresh linear head on the policy's own states;
    none with a group for a baseline."""
    if config.baseline != "value":
        return None
    if config.value == "shared":
        head = nn.Linear(policy.config.channels, 1, device=next(policy.parameters()).device)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head
    if reward_model is None:
        raise ValueError("--value reward copies a reward checkpoint, and --reward names none: add "
                         "--value shared")
    return networks.trainable_copy(reward_model)


def states(network, ids, positions, segment=None, bottom=None):
    """What a network makes of the state that each response token is sampled in: (G, T), (G, N * R)
    -> (G, N * R, C), or of a scalar model its values, (G, N * R). A token is predicted one column
    before it, where other responses stand between at its prompt's end. At its own column a value
    would show the baseline the action that it should not depend on."""
    before = positions - 1 if segment is None else data.predicted_at(segment).gather(1, positions)
    return network(ids, bottom=bottom, segment=segment, columns=before)


def act(policy, value, ids, positions, temperature, bottom=None, segment=None, entropy=False):
    """Log-probabilities of the response tokens, (G, N * R), and the values before them, or None
    without a value network; and, if asked for, the entropies."""
    hidden, values = states(policy, ids, positions, segment, bottom), None  # (G, N * R, C)
    logp = m.logprobs(policy, ids, positions, temperature, hidden=hidden, entropy=entropy)
    if isinstance(value, m.ScalarModel):
        values = states(value, ids, positions, segment, bottom)
    elif value is not None:
        values = value(m.at_least_fp32(hidden)).squeeze(-1)
    return (logp[0], values, logp[1]) if entropy else (logp, values)


@torch.no_grad()
def experience(config, policy, value, ref_policy, reward_fn, prompts, responses, beta, tokenizer):
    """The rollout, all that stays as it is while an iteration's responses are learned from, and
    its statistics. Old log-probabilities are computed by the forward pass that the update repeats,
    not taken from sampling, whose cache rounds otherwise: so the ratio is 1 before the first step.
    """
    device, n = next(policy.parameters()).device, config.samples
    owners = [p for p in prompts for _ in range(n)]
    ids, positions, is_response, segment = data.join_samples(
        prompts, [responses[i:i + n] for i in range(0, len(responses), n)], tokenizer.pad, device)
    score_rows = getattr(reward_fn, "score_rows", None)  # a network's, which reads the same rows
    parts = []
    for rows in torch.arange(len(ids)).split(prompts_at_once(config, len(ids))):
        part, group = (ids[rows], positions[rows]), None if segment is None else segment[rows]
        bottom = policy.frozen_output(ids[rows], segment=group) if config.freeze else None  # once
        logp_old, values, entropy = act(policy, value, *part, config.temperature, bottom, group,
                                        entropy=True)
        hidden = states(ref_policy, *part, group, bottom)
        logp_ref = m.logprobs(ref_policy, *part, config.temperature, hidden=hidden)
        each = (x[rows].view(len(rows) * n, -1) for x in (positions, is_response))  # (B, R)
        proxy = score_rows(ids[rows], *each, group, bottom) if score_rows else None
        parts.append((logp_old, values, entropy, logp_ref, proxy, bottom))
    logp_old, values, entropy, logp_ref, proxy, bottom = (
        None if column[0] is None else torch.cat(column) for column in zip(*parts))
    if proxy is None:
        proxy = torch.as_tensor(reward_fn(owners, responses), dtype=torch.float32)
    proxy = watch.check_reward(proxy.cpu(), len(responses))
    of_each = lambda x: x.view(len(responses), -1)  # (B, R), of (G, N * R)
    mask = of_each(is_response)
    score = shaped(proxy, responses, policy.config.eos, tokenizer.response_tokens, config)
    rewards = token_rewards(score.to(device), of_each(logp_old), of_each(logp_ref), mask, beta,
                            config.kl)
    if value is None:
        advantages = returns = against_group(rewards, mask, n, config.baseline)
    else:
        advantages, returns = gae(rewards, of_each(values), mask, GAMMA, config.lam)
        values = torch.where(is_response, values, 0.0)
    rollout = {"ids": ids, "positions": positions, "segment": segment, "is_response": is_response,
               "logp_old": logp_old, "values_old": values, "returns": returns.view(len(ids), -1),
               "advantages": whiten(advantages, mask).view(len(ids), -1), "bottom": bottom}
    row = watch.statistics(score, proxy, of_each(logp_old), of_each(logp_ref), mask, responses,
                           policy.config.eos)
    row["entropy"] = masked_mean(entropy, is_response).item()
    watch.check(row, config.max_kl)
    return rollout, row


def prompts_at_once(config, most):
    "How many prompts, with all their responses, go through a network at a time."
    return max(config.micro // config.samples, 1) if config.micro else most


def update(config, policy, value, optimizer, rollout, generator):
    "`epochs` passes of clipped steps over one rollout -> mean statistics of the steps."
    networks = nn.ModuleDict({"policy": policy} | ({} if value is None else {"value": value}))
    steps = []
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout["ids"]), generator=generator)
        for minibatch in order.tensor_split(min(config.minibatches, len(order))):
            tokens, stats = int(rollout["is_response"][minibatch].sum()), {}
            for rows in minibatch.split(prompts_at_once(config, len(minibatch))):
                part = {k: v if v is None else v[rows] for k, v in rollout.items()}
                logp, values = act(policy, value, part["ids"], part["positions"],
                                   config.temperature, part["bottom"], part["segment"])
                loss, info = policy_loss(logp, part["logp_old"], part["advantages"],
                                         part["is_response"], CLIP, tokens)
                info["policy_loss"] = loss.item()
                if value is not None:
                    vf_loss, _ = value_loss(values, part["values_old"], part["returns"],
                                            part["is_response"], CLIP, tokens)
                    loss = loss + VALUE_COEFFICIENT * vf_loss
                    info["value_loss"] = vf_loss.item()
                loss.backward()
                for name, x in info.items():  # parts of a minibatch add up, but for the largest gap
                    stats[name] = max(stats.get(name, 0), x) if name == "ratio_gap" else (
                        stats.get(name, 0.0) + x)
            if not steps:
                watch.check_same(stats, policy.precision)
            check_finite({name: x for name, x in stats.items() if name.endswith("_loss")})
            stats["gradient"] = optim.step(optimizer, networks.named_parameters())
            steps.append(stats)
    return {name: sum(stats[name] for stats in steps) / len(steps) for name in steps[0]}


def train(config, reward_fn=None):
    "Train a policy, by a `reward_fn` if one is given instead of --reward -> its checkpoint's path."
    with Run("ppo", config, unit="iteration", show=watch.SHOWN) as run:
        policy, reward_model, reward_fn = networks.start_ppo(config, run, reward_fn)
        tokenizer, gold = run.tokenizer, data.gold(config.data)
        value = value_network(config, policy, reward_model)
        ref_policy = networks.frozen_copy(policy)
        reward_fn = reward_fn or reward.scorer(networks.to_device(reward_model.requires_grad_(
            False), run.device), tokenizer.pad, config.micro or 128)
        kept = {} if value is None else {"value": value}
        optimizer = optim.adamw(nn.ModuleList([policy, *kept.values()]), config.lr,
                                betas=(0.9, 0.999), eps=1e-5)
        sampler, shuffler = (torch.Generator().manual_seed(1009 * config.seed + k) for k in (1, 2))
        prompts = tokenizer.prompts(texts := data.prompts(config.data))
        run.reads("data", prompts)
        # prompts of like length share an iteration, in an order that depends on the seed alone
        batches = data.epochs([*map(len, prompts)], config.batch // config.samples, config.seed)
        run.state["beta"] = config.beta
        follow = watch.follower(config, run, reward_fn, shaped, gold)

        for step, index in run.steps(batches, policy, **kept, optimizer=optimizer,
                                     sampler=sampler, shuffler=shuffler):
            optim.set_lr(optimizer, config.lr * (1 - (step - 1) / config.steps))
            chosen, beta = [prompts[i] for i in index], run.state["beta"]
            responses = m.generate(policy, chosen, tokenizer.response_tokens, config.temperature,
                                   config.samples, generator=sampler)
            rollout, row = experience(config, policy, value, ref_policy, reward_fn, chosen,
                                      responses, beta, tokenizer)
            if gold:
                row["gold"] = watch.mean_gold(gold, [texts[i] for i in index], tokenizer, responses)
            if step == 1:
                row |= run.state.setdefault("before", follow(policy))
            row |= update(config, policy, value, optimizer, rollout, shuffler)
            del rollout  # the bottom's output is large, and the next rollout needs the room
            run.state["beta"] = adapted(beta, row["kl"], config.target_kl, config.batch)
            if run.due:
                row |= follow(policy)
            watch.warn(run, row)
            run.tokens += sum(map(len, responses))
            run.log(**row, beta=beta)

        return run.finish(
            lambda: watch.last_line(run), watch.PANELS,
            *run.answers({"sft": ref_policy, "rlhf": policy}), samples="samples.txt")


if __name__ == "__main__":
    cli(Config, train)
