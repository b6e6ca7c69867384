"""
reward.py - learn one number per response that ranks responses the way people do.

    loss = -E log sigmoid(r(x, y_chosen) - r(x, y_rejected))       Sec. 3.4, Stiennon et al. 2020,
                                                                   arXiv:2009.01325
    python reward.py                     # about two minutes on two CPU cores; the last lines have
                                         # the share of held-out pairs it orders as their quality
    python reward.py --implicit 1        # DPO: the same loss, and a policy that is its own reward
                                         # model, r = beta (log pi(y | x) - log pi_SFT(y | x))
                                         # Eq. 7, Rafailov et al. 2023, arXiv:2305.18290

The comparisons are read from `--comparisons FILE` or from data that brings its own, or collected by
data/collect.py: by default the embedded world's annotator labels edits of references and answers of
the SFT policy; with `--annotator NAME`, on any data, a language model does. With `--annotator
reference`, a reference is better than a sample, and than another prompt's.
All comparisons of a prompt share a step, so that each response is scored once, however many it
stands in (Sec. 3.5, Ouyang et al. 2022, arXiv:2203.02155). Beside the loss above stands the
language-modelling loss of chosen responses, `--lm 0` for none (see `lm_loss`).

Not here: how several responses share a row with their prompt (data.join_groups), in which order
comparisons are learned from (data/collect.py), flags, log and resuming (data/run.py).
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import data
import model as m
from data import checkpoint, collect, networks, optim, pools, rewards
from data.run import Run, cli, pick_device, within


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = ""  # a checkpoint or pretrained model (default: sft.pt of the run folder)
    steps: int = 400  # optimiser steps
    batch: int = 20  # prompts per step, each with all comparisons of up to 16 answers
    lr: float = 0.0  # peak, after 3 % warm-up; a cosine to a tenth (0: 2e-3, of a policy 2e-4)
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the head, the comparisons and their order
    resume: bool = False  # go on from what is there of this run: nothing, a part, or all of it
    comparisons: str = ""  # a JSON lines file of comparisons, instead of collecting them
    sampled: float = 0.25  # share of prompts with samples to compare; the rest: edits of references
    temperature: float = 1.0  # of those samples
    implicit: float = 0.0  # DPO with this beta: a policy (dpo.pt) that is its own reward model
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu, cuda or mps

    lm: float = -1.0  # weight of the LM loss on chosen responses (paper: 0; -1: 1, of a policy 0)
    micro: int = 0  # prompts per forward pass, for memory (0: the whole batch)
    eval_size: int = 500  # held-out comparisons for the accuracy
    every: int = 50  # steps between evaluations, saves and logged lines
    variant: str = ""  # a folder below the run's, for a run that differs from the main one
    annotator: str = "world"  # who labels: world; reference, which beats a sample; or an LLM

    def __post_init__(self):
        within(self, 1, float("inf"), "steps", "batch", "eval_size", "every")
        self.lr = self.lr or (2e-4 if self.implicit else 2e-3)
        self.lm = (0.0 if self.implicit else 1.0) if self.lm == -1 else self.lm
        within(self, 0, float("inf"), "lr", "micro", "seed", "temperature", "lm", "implicit")
        within(self, 0, 1, "freeze", "sampled")
        if self.comparisons and self.annotator != "world":
            raise ValueError("--comparisons are labelled already: leave out --annotator, or them")


def loss(chosen, rejected):
    """Bradley-Terry negative log-likelihood: (B,), (B,) -> scalar, info. Only differences matter,
    so the scores' zero and scale are free; `normalise` fixes them later."""
    margin = chosen - rejected  # (B,)
    nll = -F.logsigmoid(margin).mean()  # log 2 = 0.693 before any training
    return nll, {"loss": nll.item(), "accuracy": (margin > 0).float().mean().item(),
                 "margin": margin.mean().item()}


def lm_loss(policy, ids, segment, hidden):
    """Language-modelling loss of each row's first response, a chosen one, by the policy's own
    output matrix: (B, T), (B, T), (B, T, C) -> (B,), nats per token.

    It keeps the hidden states able to predict the text. What a network copies from the prompt in
    order to write is what it needs in order to check, and noisy comparisons would wear it away:
    without this loss .71 of pairs that differ in one fact are ordered rightly, with it .77.
    Sec. 3.2, Yang et al. 2024, arXiv:2406.10216
    """
    start, length = ((segment == k).sum(1, keepdim=True) for k in (0, 1))  # (B, 1)
    step = torch.arange(int(length.max()), device=ids.device)  # (R,)
    positions = torch.minimum(start + step, start + length - 1)  # (B, R)
    logp = m.logprobs(policy, ids, positions, hidden=m.take(hidden, positions - 1))  # (B, R)
    return -torch.where(step < length, logp, 0.0).sum(1) / length.squeeze(1)


def score(model, ids, positions, is_response, segment=None, bottom=None):
    "Scores read at the last token of each response: (G, T), (B, R), (B, R) -> (B,)."
    last = positions.gather(1, is_response.sum(1, keepdim=True) - 1).view(len(ids), -1)  # (G, N)
    return model(ids, bottom=bottom, segment=segment, columns=last).flatten()  # (B,)


def scorer(model, pad, batch=128):
    """A reward model as a reward function, as PPO and best of n take any: lists of prompt and of
    response ids -> (B,); for `kept` see networks.kept_output. `score_rows`, which PPO uses where it
    is there, is the same of the rows that it has, (G, T), (B, R), (B, R), their segments, and what
    the frozen layers have made of them, if there are some -> (B,); `model` is the network."""
    device, size = next(model.parameters()).device, networks.rows_at_once(model, batch)

    @torch.no_grad()
    def reward_fn(prompt_ids, response_ids, kept=None):
        prompts, responses, back = data.distinct(prompt_ids, response_ids)
        scores = torch.empty(len(prompts))
        for places, ids, segment, ends in data.shared_rows(prompts, responses, pad, size):
            ids, several = ids.to(device), segment.to(device) if (segment > 1).any() else None
            bottom = networks.kept_output(model, ids, several, kept)
            if several is not None:
                found = model(ids, bottom=bottom, segment=several)[ends]
            else:  # one response a row: the plain causal case, without a mask, read at one column
                last = ends[1].to(device)[:, None]  # (B, 1)
                found = score(model, ids, last, last > 0, bottom=bottom)
            scores[places] = found.float().cpu()
        return scores[back]
    reward_fn.model = model
    reward_fn.score_rows = functools.partial(score, model)
    return reward_fn


def keys_of(rows):
    "Comparisons' texts with their prompts, each once, in the order of `data.join_comparisons`."
    return list(dict.fromkeys((r.prompt, text) for r in rows for text in (r.chosen, r.rejected)))


def log_likelihoods(policy, tokenizer, rows):
    "Of all texts of comparisons under the policy that DPO starts from -> {(prompt, text): nats}."
    keys = keys_of(rows)
    ids = [tokenizer.prompt(x) for x, _ in keys], [tokenizer.response(y) for _, y in keys]
    return dict(zip(keys, pools.loglikelihood(policy, *ids, 1.0, tokenizer.pad).tolist()))


def log_ratio(policy, ids, segment, ends, hidden, groups, logp_ref):
    "log pi(y | x) - log pi_ref(y | x) of the texts of rows made by `data.join_comparisons`: (N,)."
    logp = pools.row_loglikelihoods(policy, ids, segment, ends, hidden=hidden)
    keys = [key for group in groups for key in keys_of(group)]
    return logp - logp.new_tensor([logp_ref[key] for key in keys])


def implicit_scorer(policy, ref_policy, beta, pad):
    "The score that `--implicit` trains as a reward function, as `scorer` gives one."
    def reward_fn(prompt_ids, response_ids, kept=None):
        logp, logp_ref = (pools.loglikelihood(p, prompt_ids, response_ids, 1.0, pad, kept=kept)
                          for p in (policy, ref_policy))
        return torch.tensor(beta * (logp - logp_ref), dtype=torch.float32)
    return reward_fn


def load_text_scorer(path):
    "A reward checkpoint as a function of texts: prompts, responses -> (N,)."
    model, record = checkpoint.load_frozen(path, "reward", pick_device("auto"))
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    return rewards.text_scorer(scorer(model, tokenizer.pad), tokenizer)


def evaluate(score_texts, rows):
    "Share of comparisons that are ordered as they were labelled."
    return collect.accuracy(score_texts, [(r.prompt, r.chosen, r.rejected) for r in rows])


def references(config, rows, split="train"):
    """Up to 500 responses that give the score its zero and unit, with their prompts: texts, texts.
    People's where there are some: to the chosen ones the model has been fitted."""
    if split in data.tables(config.data):
        return zip(*[(e.prompt, e.response) for e in data.load(config.data, split, 500)])
    return zip(*[(row.prompt, row.chosen) for row in rows[:500]])


@torch.no_grad()
def normalise(model, score_texts, prompts, responses):
    "Shift and scale the scores so that these responses (references) have mean 0 and std 1."
    scores = torch.tensor(score_texts(prompts, responses))
    if len(scores) < 2 or not scores.std() > 0:
        raise ValueError(f"{len(scores)} reference responses with equal scores give no unit of "
                         f"reward: give more comparisons")
    model.shift += model.scale * scores.mean()
    model.scale *= scores.std()


PANELS = [("Loss", ["loss"], "nats per comparison"),
          ("LM loss", ["lm_loss"], "nats per token"),
          ("Accuracy", ["accuracy", "validation_accuracy"], "share ordered as labelled"),
          ("Margin", ["margin"], "score, chosen - rejected")]


def start_from(config, run):
    """The network to train; the policy that it starts from, frozen, for samples, the LM loss and
    as DPO's reference; and the reward function of the first."""
    policy = run.load("init", config.init or run.home / "sft.pt")
    run.check_lengths(policy)  # which is asked for samples at the end
    networks.freeze(policy, config.freeze)
    before = networks.frozen_copy(networks.to_device(policy, run.device))
    model = policy if config.implicit else networks.scalar_copy(policy)
    networks.transformer(model).recompute = config.micro > 0
    pad = run.tokenizer.pad
    return model, before, (implicit_scorer(model, before, config.implicit, pad)
                           if config.implicit else scorer(model, pad))


def train(config):
    "Train, and return the path of the checkpoint: reward.pt, or with --implicit dpo.pt, a policy."
    name, kind = ("dpo", "policy") if config.implicit else ("reward", "reward")
    with Run(name, config, kind) as run:
        model, policy, reward_fn = start_from(config, run)
        optimizer, tokenizer = optim.adamw(model, config.lr), run.tokenizer
        sample = rewards.text_sampler(policy, tokenizer)
        score_texts = rewards.text_scorer(reward_fn, tokenizer)
        score_again = rewards.text_scorer(functools.partial(reward_fn, kept={}), tokenizer)
        rows, validation = collect.comparisons(config, run, sample)
        logp_ref = log_likelihoods(policy, tokenizer, rows) if config.implicit else None

        for step, batch in run.steps(collect.stream(config, rows), model, optimizer=optimizer):
            lr = optim.set_lr(optimizer, optim.schedule(config.lr, step, config.steps))
            for part in run.micro(batch):
                ids, segment, ends, pairs = data.join_comparisons(tokenizer, part, run.device)
                hidden = networks.transformer(model)(ids, segment=segment)  # (B, T, C)
                scores = (model.read(hidden)[ends] if logp_ref is None else config.implicit * (
                    log_ratio(model, ids, segment, ends, hidden, part, logp_ref)))  # (N,)
                ranking, info = loss(*scores[pairs].unbind(1))
                # this part's share of the step's comparisons, and of its prompts
                share, of_prompts = len(pairs) / sum(map(len, batch)), len(part) / len(batch)
                total = ranking * share
                if config.lm:
                    writer = model if config.implicit else policy
                    written = lm_loss(writer, ids, segment, hidden).mean()
                    total = total + config.lm * written * of_prompts
                    run.add(lm_loss=written.item() * of_prompts)
                total.backward()
                run.tokens += int((segment > 0).sum())
                run.add(**{name: x * share for name, x in info.items()})
            optim.step(optimizer, model.named_parameters())
            if run.due:
                run.log(validation_accuracy=evaluate(score_again, validation[:config.eval_size]),
                        lr=lr)
            if step == config.steps and not config.implicit:  # saved with its zero and its unit
                normalise(model, score_texts, *references(config, rows))

        shown = collect.of_each_prompt(validation)[:4]
        return run.finish(
            lambda: collect.findings(config, run.metrics["validation_accuracy"], len(validation),
                                     score_texts, sample,
                                     references(config, validation, "validation")), PANELS, shown,
            {"chosen": [r.chosen for r in shown], "rejected": [r.rejected for r in shown]},
            score=lambda prompt, text: score_texts([prompt], [text])[0])


if __name__ == "__main__":
    cli(Config, train)
