"""
ppo.py - raise the reward model's score on a KL leash to the SFT policy.

    max_pi  E_{x, y ~ pi}[ r(x, y) ] - beta * KL(pi || pi_SFT)        Eq. 1, Kirk et al. 2024,
                                                                      arXiv:2310.06452
    python ppo.py                        # about two and a half minutes on two CPU cores; the last
                                         # lines show four prompts with both answers

One iteration: sample a response to each of `batch` prompts; score it; give the score and the KL
penalty to its tokens; estimate advantages; take `epochs` passes of clipped policy-gradient steps.
Temperature is part of the policy: what was sampled at T is scored at T everywhere.

Not here: sampling and log-probabilities (model.py), scores (reward.py, data/rewards.py), who shares
frozen weights (data/networks.py), flags, log and resuming (data/run.py).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import data
import metrics
import model as m
import reward
from data import files, networks, optim
from data.rewards import named_reward
from data.run import Run, check_finite, cli, within


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = ""  # a checkpoint or pretrained model (default: sft.pt of the run folder)
    reward: str = ""  # reward checkpoint (default: reward.pt), gold, or FILE.py with a reward_fn
    steps: int = 60  # iterations
    batch: int = 64  # prompts per iteration, one response each
    epochs: int = 2  # passes over an iteration's responses
    lr: float = 2e-4  # peak learning rate, falling linearly, to zero behind the last iteration
    beta: float = 0.2  # weight of the KL penalty, in reward standard deviations per nat
    temperature: float = 1.0  # of the policy, in sampling and in every log-probability
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the prompts' order and the samples
    resume: bool = False  # go on from where an interrupted run was saved
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu or cuda

    kl: Literal["k1", "k2", "k3", "abs"] = "k1"  # estimator in the reward; the paper's code has k2
    target_kl: float = 0.0  # nats per response: adapt beta to stay near it (0: beta is fixed)
    value: Literal["reward", "shared"] = "reward"  # a copy of the reward model, or a head (paper)
    lam: float = 0.95  # lambda of GAE; gamma is 1
    minibatches: int = 4  # optimiser steps per pass
    micro: int = 0  # responses per forward pass, for memory (0: the whole minibatch)
    length_penalty: float = 0.0  # taken off the score of a response of full length, in proportion
    max_kl: float = 0.0  # nats per response beyond which training stops (0: none)
    every: int = 10  # iterations between saves, and between scores on validation prompts
    variant: str = ""  # a folder below the run's, for a run that differs from the main one

    def __post_init__(self):
        within(self, 1, float("inf"), "steps", "batch", "epochs", "minibatches", "every")
        within(self, 0, float("inf"), "lr", "beta", "target_kl", "micro", "length_penalty",
               "max_kl", "seed")
        within(self, 1e-3, float("inf"), "temperature")
        within(self, 0, 1, "freeze", "lam")
        if self.minibatches > self.batch:
            raise ValueError(f"--minibatches {self.minibatches} is more than --batch {self.batch}: "
                             f"give at most one minibatch per response")


MISSING_EOS = -3.0  # the score of a response that does not end, however well it reads (std is 1)
CLIP = 0.2  # of the probability ratio, and of a value's change
VALUE_COEFFICIENT = 0.5  # of the value loss beside the policy loss
GAMMA = 1.0  # responses are short: a reward at the end counts in full at the start
HORIZON = 1_000  # responses in which the adaptive controller moves beta by at most 20 %
FOLLOWED = 128  # validation prompts that curves and the last line are of


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
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * min(responses / HORIZON, 1))


def shaped(proxy, response_ids, eos, max_tokens, config):
    """What PPO is given, (B,): the reward less the length penalty; where a response was cut,
    MISSING_EOS instead. (For `gae` it ends there all the same: no value comes behind it.)"""
    lengths = torch.tensor([float(len(r)) for r in response_ids])
    score = proxy - config.length_penalty * lengths / max_tokens
    ended = torch.tensor([r[-1] in eos for r in response_ids])
    return torch.where(ended, score, MISSING_EOS)


def value_network(config, policy, reward_model):
    "V(x, y_<t): a copy of the reward model, or a fresh linear head on the policy's own states."
    if config.value == "shared":
        head = nn.Linear(policy.config.channels, 1)
        nn.init.normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head
    if reward_model is None:
        raise ValueError("--value reward copies a reward checkpoint, and --reward names none: add "
                         "--value shared")
    return networks.trainable_copy(reward_model)


def act(policy, value, ids, positions, temperature, bottom=None, entropy=False):
    """Log-probabilities of the response tokens and the values before each, (B, R) both; and, if
    asked for, the entropies. The value of the state that token t is sampled in is read where token
    t - 1 stands: at t it would show the baseline the action that it should not depend on."""
    before = positions - 1
    hidden = policy(ids, bottom=bottom, columns=before)  # (B, R, C)
    logp = m.logprobs(policy, ids, positions, temperature, hidden=hidden, entropy=entropy)
    if isinstance(value, m.ScalarModel):
        values = value(ids, bottom=bottom, columns=before)  # (B, R)
    else:
        values = value(m.at_least_fp32(hidden)).squeeze(-1)
    return (logp[0], values, logp[1]) if entropy else (logp, values)


@torch.no_grad()
def experience(config, policy, value, ref_policy, reward_fn, prompts, responses, beta, tokenizer):
    """The rollout, all that stays as it is while an iteration's responses are learned from, and
    its statistics. Old log-probabilities are computed by the forward pass that the update repeats,
    not taken from sampling, whose cache rounds otherwise: so the ratio is 1 before the first step.
    """
    device = next(policy.parameters()).device
    ids, positions, is_response = data.join(prompts, responses, tokenizer.pad, device)
    from_bottom = config.freeze and getattr(reward_fn, "from_bottom", None)
    parts = []
    for rows in torch.arange(len(ids)).split(config.micro or len(ids)):
        part = ids[rows], positions[rows]
        bottom = policy.frozen_output(part[0]) if config.freeze else None  # once per rollout
        logp_old, values, entropy = act(policy, value, *part, config.temperature, bottom,
                                        entropy=True)
        logp_ref = m.logprobs(ref_policy, *part, config.temperature, bottom=bottom)
        proxy = from_bottom(bottom, *part, is_response[rows]) if from_bottom else None
        parts.append((logp_old, values, entropy, logp_ref, proxy, bottom))
    logp_old, values, entropy, logp_ref, proxy, bottom = (  # (B, R) four times, (B,), (B, T, C)
        None if column[0] is None else torch.cat(column) for column in zip(*parts))
    if proxy is None:
        proxy = torch.as_tensor(reward_fn(prompts, responses), dtype=torch.float32)
    proxy = proxy.cpu()
    if proxy.shape != (len(prompts),) or not torch.isfinite(proxy).all():
        raise ValueError(f"the reward must be {len(prompts)} finite numbers, one per response, and "
                         f"is {proxy}")
    score = shaped(proxy, responses, policy.config.eos, tokenizer.response_tokens, config)
    rewards = token_rewards(score.to(device), logp_old, logp_ref, is_response, beta, config.kl)
    advantages, returns = gae(rewards, values, is_response, GAMMA, config.lam)
    rollout = {"ids": ids, "positions": positions, "is_response": is_response,
               "logp_old": logp_old, "values_old": torch.where(is_response, values, 0.0),
               "returns": returns, "advantages": whiten(advantages, is_response), "bottom": bottom}
    k1, k3 = metrics.kl_estimates(*(t.double().cpu().numpy() for t in (logp_old, logp_ref)),
                                  is_response.cpu().numpy())
    row = {"score": score.mean().item(), "proxy": proxy.mean().item(),
           "kl": float(k1.mean()), "kl_k3": float(k3.mean()),
           "entropy": masked_mean(entropy, is_response).item(),
           "length": sum(map(len, responses)) / len(responses),
           "ended": sum(r[-1] in policy.config.eos for r in responses) / len(responses)}
    check_finite(row)
    if config.max_kl and row["kl"] > config.max_kl:
        raise ValueError(f"the KL to the SFT policy is {row['kl']:.2f} nats, beyond --max-kl "
                         f"{config.max_kl:g}, which a higher --beta would keep")
    return rollout, row


def update(config, policy, value, optimizer, rollout, generator):
    "`epochs` passes of clipped steps over one rollout -> mean statistics of the steps."
    names = {p: name for name, p in nn.ModuleDict(
        {"policy": policy, "value": value}).named_parameters()}
    trained = [(names[p], p) for group in optimizer.param_groups for p in group["params"]]
    steps = []
    for _ in range(config.epochs):
        order = torch.randperm(len(rollout["ids"]), generator=generator)
        for minibatch in order.tensor_split(min(config.minibatches, len(order))):
            tokens, stats = int(rollout["is_response"][minibatch].sum()), {}
            for rows in minibatch.split(config.micro or len(minibatch)):
                part = {k: v if v is None else v[rows] for k, v in rollout.items()}
                logp, values = act(policy, value, part["ids"], part["positions"],
                                   config.temperature, part["bottom"])
                pg_loss, info = policy_loss(logp, part["logp_old"], part["advantages"],
                                            part["is_response"], CLIP, tokens)
                vf_loss, _ = value_loss(values, part["values_old"], part["returns"],
                                        part["is_response"], CLIP, tokens)
                (pg_loss + VALUE_COEFFICIENT * vf_loss).backward()
                info |= {"policy_loss": pg_loss.item(), "value_loss": vf_loss.item()}
                for name, x in info.items():  # parts of a minibatch add up, but for the largest gap
                    stats[name] = max(stats.get(name, 0), x) if name == "ratio_gap" else (
                        stats.get(name, 0.0) + x)
            if not steps:
                check_same(stats, policy.precision)
            check_finite({name: stats[name] for name in ("policy_loss", "value_loss")})
            stats["gradient"] = optim.step(optimizer, trained)
            steps.append(stats)
    return {name: sum(stats[name] for stats in steps) / len(steps) for name in steps[0]}


def check_same(stats, precision):
    "Before the first step nothing was learned, so nothing may have changed."
    same = stats["ratio_gap"] < 1e-4 and stats["clip_fraction"] == 0
    if precision is not None:  # eight bits, rounded otherwise in another batch
        same = stats["approx_kl"] < 0.01
    assert same, f"before its first step the policy differs from itself: {stats}"


def start_from(config, run, reward_fn):
    """Policy, ref_policy, value network and what scores. What is frozen is held once: rounded,
    moved and shared before the rest is copied."""
    policy = run.load("init", config.init or run.home / "sft.pt")
    networks.freeze(policy, config.freeze)
    networks.to_device(policy, run.device)
    reward_fn, reward_model = reward_fn or named_reward(config, run), None
    gold = config.reward == "gold"  # PPO on it differs in this alone: its values start the same
    if reward_fn is None or gold and config.value == "reward":
        path = run.home / "reward.pt" if gold or not config.reward else config.reward
        reward_model = run.load("reward", path, "reward")
        networks.freeze(reward_model, config.freeze)
        if config.freeze:  # it then has the policy's bottom: that is checked
            networks.share_frozen(policy, reward_model)
        networks.to_device(reward_model, run.device)
    value = value_network(config, policy, reward_model).to(run.device)
    if reward_fn is None:
        reward_fn = reward.scorer(networks.frozen_copy(reward_model), run.tokenizer.pad,
                                  config.micro or 128)
    for network in (policy, getattr(value, "trunk", policy)):
        network.recompute = config.micro > 0
    return policy, networks.frozen_copy(policy), value, reward_fn


SHOWN = ("score", "proxy", "gold", "kl", "length", "entropy", "value_loss", "clip_fraction")
PANELS = [("Reward, the same prompts", ["validation_proxy", "validation_gold"], "mean score"),
          ("KL to SFT", ["kl", "kl_k3"], "nats per response"),
          ("Length", ["length"], "tokens"), ("Entropy", ["entropy"], "nats per token"),
          ("Value loss", ["value_loss"], "squared score"),
          ("Clip fraction", ["clip_fraction"], "share of tokens")]


def follower(config, run, reward_fn, gold):
    """policy -> its mean scores on the same prompts with the same random numbers, at any time. (An
    iteration's prompts are of like length, on which scores depend: iterations do not compare.)"""
    texts = [e.prompt for e in run.validation(FOLLOWED)]
    prompts = [run.tokenizer.prompt(text) for text in texts]

    def scores(policy):
        responses = m.generate(policy, prompts, run.tokenizer.response_tokens, config.temperature,
                               seed=config.seed)
        row = {"validation_proxy": float(torch.as_tensor(reward_fn(prompts, responses)).mean())}
        if gold:
            row["validation_gold"] = mean_gold(gold, texts, run.tokenizer, responses)
        return row
    return scores


def mean_gold(gold, texts, tokenizer, responses):
    "The true quality, which only the reader sees."
    return sum(gold(text, tokenizer.decode(r).strip())
               for text, r in zip(texts, responses)) / len(texts)


def last_line(before, rows):
    "What changed on the same prompts, and how far the last five iterations were."
    kl = sum(row["kl"] for row in rows[-5:]) / len(rows[-5:])
    moved = ", ".join(f"{name.removeprefix('validation_')} {x:.2f} -> {rows[-1][name]:.2f}"
                      for name, x in before.items())
    return f"{moved} on the same validation prompts, {kl:.2f} nats per response from SFT"


def train(config, reward_fn=None):
    "Train a policy, by a `reward_fn` if one is given instead of --reward -> its checkpoint's path."
    with Run("ppo", config, unit="iteration", show=SHOWN) as run:
        policy, ref_policy, value, reward_fn = start_from(config, run, reward_fn)
        tokenizer, gold = run.tokenizer, data.gold(config.data)
        both = nn.ModuleList([policy, value])
        optimizer = optim.adamw(both, config.lr, betas=(0.9, 0.999), eps=1e-5)
        sampler, shuffler = (torch.Generator().manual_seed(1009 * config.seed + k) for k in (1, 2))
        texts = data.prompts(config.data)
        prompts = tokenizer.prompts(texts)
        run.reads("data", prompts)
        # prompts of like length share an iteration, in an order that depends on the seed alone
        batches = data.epochs([len(p) for p in prompts], config.batch, config.seed)
        run.state["beta"] = config.beta
        follow = follower(config, run, reward_fn, gold)

        for step, index in run.steps(batches, policy, value=value, optimizer=optimizer,
                                     sampler=sampler, shuffler=shuffler):
            optim.set_lr(optimizer, config.lr * (1 - (step - 1) / config.steps))
            chosen, beta = [prompts[i] for i in index], run.state["beta"]
            responses = m.generate(policy, chosen, tokenizer.response_tokens, config.temperature,
                                   generator=sampler)
            rollout, row = experience(config, policy, value, ref_policy, reward_fn, chosen,
                                      responses, beta, tokenizer)
            row["beta"] = beta
            if gold:
                row["gold"] = mean_gold(gold, [texts[i] for i in index], tokenizer, responses)
            if step == 1:
                run.state["before"] = follow(policy)
                row |= run.state["before"]
            row |= update(config, policy, value, optimizer, rollout, shuffler)
            del rollout  # the bottom's output is large, and the next rollout needs the room
            if config.target_kl:
                run.state["beta"] = adapted(beta, row["kl"], config.target_kl, len(index))
            if run.due:
                row |= follow(policy)
            run.log(**row, seconds=run.seconds())

        shown = run.validation(4)
        return run.finish(
            lambda: last_line(run.state["before"], files.read_log(run.journal.path)), PANELS, shown,
            run.answers({"sft": ref_policy, "rlhf": policy}, shown, config.temperature),
            samples="samples.txt")


if __name__ == "__main__":
    cli(Config, train)
