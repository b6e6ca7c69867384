"""
ppo.py - raise the reward model's score on a KL leash to the SFT policy.

    max_pi  E_{x, y ~ pi}[ r(x, y) ] - beta * KL(pi || pi_SFT)        Eq. 1, Kirk et al. 2024,
                                                                      arXiv:2310.06452
    python ppo.py                        # about two and a half minutes on two CPU cores; the last
                                         # lines show four prompts with both answers

One iteration: sample a response to each of `batch` prompts; score it; hand out the score and the
KL penalty token by token; estimate advantages; take `epochs` passes of clipped policy-gradient
steps. Temperature is part of the policy: what was sampled at T is scored at T everywhere.
"""

import importlib.util
import itertools
import math
import time
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn
from tqdm import tqdm

import data
import metrics
import model as m
import reward


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = ""  # a checkpoint or pretrained model (default: sft.pt of the run folder)
    reward: str = ""  # reward checkpoint (default: reward.pt), gold, or FILE.py with a reward_fn
    steps: int = 60  # iterations
    batch: int = 64  # prompts per iteration, one response each
    epochs: int = 2  # passes over an iteration's responses
    lr: float = 2e-4  # peak learning rate, falling linearly to zero
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
    every: int = 10  # iterations between saves
    variant: str = ""  # a folder below the run's, for a run that differs from the main one

    def __post_init__(self):
        metrics.within(self, 1, float("inf"), "steps", "batch", "epochs", "minibatches", "every")
        metrics.within(self, 0, float("inf"), "lr", "beta", "target_kl", "micro", "length_penalty",
                       "max_kl", "seed")
        metrics.within(self, 1e-3, float("inf"), "temperature")
        metrics.within(self, 0, 1, "freeze", "lam")
        if self.minibatches > self.batch:
            raise ValueError(f"--minibatches {self.minibatches} is more than --batch {self.batch}: "
                             f"give at most one minibatch per response")


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


def masked_mean(x, is_response, tokens=None):
    count = is_response.sum() if tokens is None else tokens
    return torch.where(is_response, x, 0.0).sum() / max(int(count), 1)


def whiten(advantages, is_response):
    "Mean 0 and variance 1 over response tokens; padding stays 0."
    mean = masked_mean(advantages, is_response)
    variance = masked_mean((advantages - mean) ** 2, is_response)
    return torch.where(is_response, (advantages - mean) * torch.rsqrt(variance + 1e-8), 0.0)


def policy_loss(logp, logp_old, advantages, is_response, clip, tokens=None):
    """Clipped surrogate: (B, R) each -> scalar, info.

    Eq. 7, Schulman et al. 2017, arXiv:1707.06347.

    `tokens` is the minibatch's count when these rows are one of its micro-batches.
    """
    log_ratio = torch.where(is_response, logp - logp_old, 0.0)
    ratio = log_ratio.exp()  # (B, R)
    worse = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    value = masked_mean(worse, is_response, tokens)
    with torch.no_grad():
        info = {"ratio_gap": (ratio - 1).abs().max().item(),
                "clip_fraction": masked_mean(((ratio - 1).abs() > clip).to(ratio.dtype),
                                             is_response, tokens).item(),
                "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, is_response,
                                         tokens).item()}  # k3 of old against new
    return value, info


def value_loss(values, values_old, returns, is_response, clip, tokens=None):
    """Half the squared error, the worse of clipped and unclipped: (B, R) each -> scalar, info.

    Clipping is in units of reward, so it means something only because rewards have std 1.
    """
    values = torch.where(is_response, values, 0.0)
    clipped = values_old + (values - values_old).clamp(-clip, clip)  # (B, R)
    worse = torch.max((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * masked_mean(worse, is_response, tokens), {}


def adapted(beta, kl, target, responses):
    "The adaptive controller, once per rollout (Sec. 2.2, Ziegler et al. 2019, arXiv:1909.08593)."
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * responses / HORIZON)


def shaped(scores, response_ids, eos, max_tokens, config):
    "The scores PPO sees, (B,): less the length penalty, and fixed where EOS is missing."
    lengths = torch.tensor([float(len(r)) for r in response_ids])
    scores = scores - config.length_penalty * lengths / max_tokens
    ended = torch.tensor([r[-1] in eos for r in response_ids])
    return torch.where(ended, scores, MISSING_EOS)


def gold_reward(gold, tokenizer):
    "The world's true score as a reward function: PPO's ceiling, which no other policy may see."
    if gold is None:
        raise ValueError("--reward gold: only the embedded world knows the truth; give a reward "
                         "checkpoint or a .py file")
    return lambda prompt_ids, response_ids: torch.tensor([
        gold(tokenizer.decode(p), tokenizer.decode(r).strip())
        for p, r in zip(prompt_ids, response_ids)])


def custom_reward(path):
    "`reward_fn` of a student's own file, which may clip: lists of prompt and response ids -> (B,)."
    spec = importlib.util.spec_from_file_location("custom_reward", path)
    if spec is None:
        raise ValueError(f"--reward {path}: give a reward checkpoint, gold, or a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path} is not Python: {error}") from error
    except Exception as error:  # whatever it does while it is read
        raise ValueError(f"{path} raised {type(error).__name__}: {error}") from error
    if not hasattr(module, "reward_fn"):
        raise ValueError(f"{path} defines no reward_fn(prompt_ids, response_ids) -> (B,) tensor")

    def reward_fn(prompt_ids, response_ids):
        try:
            return torch.as_tensor(module.reward_fn(prompt_ids, response_ids), dtype=torch.float32)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # or what it does for one batch in a hundred
            raise ValueError(f"{path} raised {type(error).__name__}: {error}") from error
    return reward_fn


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
    return m.branch(reward_model)


def act(policy, value, ids, positions, temperature, bottom=None, entropy=False):
    """Log-probabilities of the response tokens and the values before each, (B, R) both; and, if
    asked for, the entropies.

    The value of the state that token t is sampled in is read where token t - 1 stands; reading it
    at t would show the baseline the action it should not depend on.
    """
    before = positions - 1
    hidden = policy(ids, bottom=bottom, at=before)  # (B, R, C)
    logp = m.logprobs(policy, ids, positions, temperature, hidden=hidden, entropy=entropy)
    if isinstance(value, m.ScalarModel):
        values = value(ids, bottom=bottom, at=before)  # (B, R)
    else:
        values = value(m.at_least_fp32(hidden)).squeeze(-1)
    return (logp[0], values, logp[1]) if entropy else (logp, values)


@torch.no_grad()
def experience(config, policy, value, reference, reward_fn, prompts, responses, beta, tokenizer):
    """Everything that is fixed while an iteration's responses are learned from, and its statistics.

    Old log-probabilities are computed by the forward pass that the update repeats, not taken from
    sampling, whose cache rounds otherwise: before the first step the ratio is then exactly 1.
    """
    device = next(policy.parameters()).device
    ids, positions, is_response = (
        t.to(device) for t in data.join(prompts, responses, tokenizer.pad))
    parts = []
    for rows in torch.arange(len(ids)).split(config.micro or len(ids)):
        part = ids[rows], positions[rows]
        bottom = policy.frozen_output(part[0]) if config.freeze else None  # once per rollout
        logp_old, values, entropy = act(policy, value, *part, config.temperature, bottom,
                                        entropy=True)
        logp_ref = m.logprobs(reference, *part, config.temperature, bottom=bottom)
        scores = (reward.score(reward_fn, *part, is_response[rows], bottom)
                  if isinstance(reward_fn, m.ScalarModel) else None)
        parts.append((logp_old, values, entropy, logp_ref, scores, bottom))
    logp_old, values, entropy, logp_ref, scores, bottom = (  # (B, R) four times, (B,), (B, T, C)
        None if column[0] is None else torch.cat(column) for column in zip(*parts))
    if scores is None:
        scores = torch.as_tensor(reward_fn(prompts, responses), dtype=torch.float32)
    scores = scores.cpu()
    if scores.shape != (len(prompts),) or not torch.isfinite(scores).all():
        raise ValueError(f"the reward must be {len(prompts)} finite numbers, one per response, and "
                         f"is {scores}")
    score = shaped(scores, responses, policy.config.eos, tokenizer.response_tokens, config)
    score = score.to(device)
    rewards = token_rewards(score, logp_old, logp_ref, is_response, beta, config.kl)
    advantages, returns = gae(rewards, values, is_response, GAMMA, config.lam)
    k1, k3 = metrics.kl_estimates(*(t.double().cpu().numpy() for t in (logp_old, logp_ref)),
                                  is_response.cpu().numpy())
    fixed = {"ids": ids, "positions": positions, "is_response": is_response, "logp_old": logp_old,
             "values_old": torch.where(is_response, values, 0.0), "returns": returns,
             "advantages": whiten(advantages, is_response), "bottom": bottom}
    row = {"score": score.mean().item(), "proxy": scores.mean().item(),
           "kl": float(k1.mean()), "kl_k3": float(k3.mean()),
           "entropy": masked_mean(entropy, is_response).item(),
           "length": sum(map(len, responses)) / len(responses),
           "ended": sum(r[-1] in policy.config.eos for r in responses) / len(responses)}
    for name, number in row.items():
        if not math.isfinite(number):
            raise ValueError(f"the {name} is {number}")
    if config.max_kl and row["kl"] > config.max_kl:
        raise ValueError(f"the KL to the SFT policy is {row['kl']:.2f} nats, beyond --max-kl "
                         f"{config.max_kl:g}, which a higher --beta would keep")
    return fixed, row


def update(config, policy, value, optimizer, fixed, generator):
    "`epochs` passes of clipped steps over one rollout -> mean statistics of the steps."
    infos = []
    for _ in range(config.epochs):
        order = torch.randperm(len(fixed["ids"]), generator=generator)
        for minibatch in order.tensor_split(config.minibatches):
            tokens = int(fixed["is_response"][minibatch].sum())
            step = {}
            for rows in minibatch.split(config.micro or len(minibatch)):
                part = {k: v if v is None else v[rows] for k, v in fixed.items()}
                logp, values = act(policy, value, part["ids"], part["positions"],
                                   config.temperature, part["bottom"])
                pg, info = policy_loss(logp, part["logp_old"], part["advantages"],
                                       part["is_response"], CLIP, tokens)
                vf, _ = value_loss(values, part["values_old"], part["returns"],
                                   part["is_response"], CLIP, tokens)
                (pg + VALUE_COEFFICIENT * vf).backward()
                info |= {"policy_loss": pg.item(), "value_loss": vf.item()}
                for name, x in info.items():  # parts of a minibatch add up, but for the largest gap
                    step[name] = max(step.get(name, 0), x) if name == "ratio_gap" else (
                        step.get(name, 0.0) + x)
            if not infos:  # nothing was learned yet, so nothing may have changed
                same = step["ratio_gap"] < 1e-4 and step["clip_fraction"] == 0
                if policy.precision is not None:  # eight bits, rounded otherwise in another batch
                    same = step["approx_kl"] < 0.01
                assert same, f"before its first step the policy differs from itself: {step}"
            names = {p: name for name, p in nn.ModuleDict(
                {"policy": policy, "value": value}).named_parameters()}
            step["gradient"] = m.clip_gradients(
                [(names[p], p) for group in optimizer.param_groups for p in group["params"]],
                {name: step[name] for name in ("policy_loss", "value_loss")})
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            infos.append(step)
    return {name: sum(info[name] for info in infos) / len(infos) for name in infos[0]}


def networks(config, folder, reward_fn, device):
    """Policy, reference, value network, what scores, and the record of the SFT policy that all come
    from. What is frozen is held once: rounded, moved and shared before the rest is copied."""
    policy, parent = m.load(config.init or folder / "sft.pt", "policy")
    m.freeze(policy, config.freeze)
    m.settle(policy, device)
    tokenizer, reward_model = data.Tokenizer.of(parent["tokenizer"]), None
    if reward_fn is None and config.reward == "gold":
        reward_fn = gold_reward(data.gold(config.data), tokenizer)
    elif reward_fn is None and config.reward.endswith(".py"):
        reward_fn = custom_reward(config.reward)
    elif reward_fn is None:
        reward_model, _ = m.load(config.reward or folder / "reward.pt", "reward",
                                 tokenizer=tokenizer.fingerprint)
        m.freeze(reward_model, config.freeze)
        if config.freeze:  # it then has the policy's bottom: that is checked
            m.share_trunk(policy, reward_model)
        m.settle(reward_model, device)
    value = value_network(config, policy, reward_model).to(device)
    if reward_model is not None:
        reward_fn = m.fixed(reward_model)  # as a network, it can start from the frozen trunk
    for network in (policy, getattr(value, "trunk", policy)):
        network.recompute = config.micro > 0
    return policy, m.fixed(policy), value, reward_fn, parent


def report(config, folder, tokenizer, policies, gold):
    "Curves, and four prompts with the answers of each of `policies` -> the last line."
    rows = metrics.read(folder / "ppo.jsonl")
    metrics.curve(folder / "ppo.png", rows, [
        ("Reward", ["proxy", "gold"] if gold else ["proxy"], "score of the samples"),
        ("KL to SFT", ["kl", "kl_k3"], "nats per response"),
        ("Length", ["length"], "tokens"), ("Entropy", ["entropy"], "nats per token"),
        ("Value loss", ["value_loss"], "squared score"),
        ("Clip fraction", ["clip_fraction"], "share of tokens")])
    shown, answers = data.load(config.data, "validation")[:4], {}
    prompts = [tokenizer.prompt(e.prompt) for e in shown]
    for name, policy in policies.items():
        ids = m.generate(policy, prompts, tokenizer.response_tokens, config.temperature,
                         seed=config.seed)
        answers[name] = [tokenizer.decode(r) for r in ids]
    answers["reference"] = [e.response for e in shown]
    metrics.side_by_side(folder / "samples.txt", [e.prompt for e in shown], answers, gold)
    first, last = ({k: sum(r[k] for r in part) / len(part) for k in ("proxy", "gold", "kl")
                    if k in rows[0]} for part in (rows[:5], rows[-5:]))
    return ("ppo: " + ", ".join(f"{k} {first[k]:.2f} -> {last[k]:.2f}" for k in first)
            + " (means of 5 iterations; KL in nats per response)")


def train(config, reward_fn=None):
    """Train a policy and return the path of its checkpoint.

    `reward_fn(prompt_ids, response_ids) -> (B,)`, if given, takes the place of `--reward`.
    """
    torch.manual_seed(config.seed)
    device = m.device(config.device)
    parents = data.run_folder(config.data, config.seed, config.out)
    folder = parents / config.variant
    path = folder / "ppo.pt"
    gold = data.gold(config.data)

    policy, reference, value, reward_fn, parent = networks(config, parents, reward_fn, device)
    tokenizer = data.Tokenizer.of(parent["tokenizer"])

    start, state = 0, None
    if config.resume:
        trained, record = m.load(path, "policy", tokenizer=tokenizer.fingerprint, unfinished=True)
        start, state = metrics.resumed(config, record), record["state"]
        policy.load_state_dict(trained.state_dict())
    optimizer = m.adamw(nn.ModuleList([policy, value]), config.lr, betas=(0.9, 0.999), eps=1e-5)
    sampler, shuffler = (torch.Generator().manual_seed(1009 * config.seed + k) for k in (1, 2))
    if state:
        optimizer.load_state_dict(state["optimizer"])
        value.load_state_dict(state["value"])
        sampler.set_state(state["sampler"])
        shuffler.set_state(state["shuffler"])

    texts = data.prompts(config.data)
    prompts = [tokenizer.prompt(text) for text in texts]
    _held = metrics.lock(folder)  # until this function ends
    log = metrics.Log(folder, "ppo", start if config.resume else None,
                      show=("proxy", "gold", "kl", "length", "entropy", "value_loss",
                            "clip_fraction"))
    stop = metrics.stop_signal()
    # prompts of like length share an iteration, in an order that depends on the seed alone
    order = data.epochs([len(p) for p in prompts], config.batch, config.seed)
    batches = itertools.islice(order, start, config.steps)
    beta, row = (state["beta"], record["meta"]["metrics"]) if state else (config.beta, None)
    began = time.time()

    def save(step, finished):  # finished: whatever the run writes is there
        m.save(path, "policy", policy, tokenizer.record,
               {"stage": "ppo", "step": step, "finished": finished,
                "config": asdict(config), "parent": parent["digest"], "seed": config.seed,
                "metrics": row},
               {"optimizer": optimizer.state_dict(), "value": value.state_dict(), "beta": beta,
                "sampler": sampler.get_state(), "shuffler": shuffler.get_state()})

    for step, index in enumerate(tqdm(batches, "ppo", config.steps - start, unit="iteration"),
                                 start + 1):
        # ---- one iteration: sample, score, learn
        for group in optimizer.param_groups:
            group["lr"] = config.lr * (1 - (step - 1) / config.steps)
        chosen = [prompts[i] for i in index]
        responses = m.generate(policy, chosen, tokenizer.response_tokens, config.temperature,
                               generator=sampler)
        with metrics.at(f"ppo, iteration {step}"):
            fixed, row = experience(config, policy, value, reference, reward_fn, chosen, responses,
                                    beta, tokenizer)
        row["beta"] = beta
        if gold:  # seen by the reader only
            row["gold"] = sum(gold(texts[i], tokenizer.decode(r).strip())
                              for i, r in zip(index, responses)) / len(index)
        with metrics.at(f"ppo, iteration {step}"):
            row |= update(config, policy, value, optimizer, fixed, shuffler)
        del fixed  # the trunk's output is large, and the next rollout needs the room
        if config.target_kl:
            beta = adapted(beta, row["kl"], config.target_kl, len(index))

        # ---- log, and save once in a while
        log.log(step, **row, seconds=time.time() - began)
        last = step == config.steps
        if step % config.every == 0 or last or stop:
            save(step, finished=False)
        if stop and not last:
            print(f"stopped after iteration {step} and saved: the same with --resume goes on")
            raise KeyboardInterrupt

    said = report(config, folder, tokenizer, {"sft": reference, "rlhf": policy}, gold)
    save(config.steps, finished=True)
    print(said)
    print(f"wrote {path}, {log.path} and {path.with_suffix('.png')}; next: python "
          f"{'rlhf.py' if gold else '-m tests.evaluate'} --data {config.data}")
    return path


if __name__ == "__main__":
    metrics.cli(Config, train)
