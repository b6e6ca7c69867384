"""
sft.py - supervised fine-tuning: imitate what people wrote.

    loss = -sum_t log pi(y_t | x, y_<t) / #tokens     over the response y only, not the prompt x
                                                      Sec. 3.4, Stiennon et al. 2020,
                                                      arXiv:2009.01325

    python sft.py                        # about a minute on two CPU cores; the last lines show
                                         # four prompts with the base model's and the SFT answer

Not here: flags, log, saving and resuming (data/run.py), how text becomes ids (data/tokenizer.py)
and ids rows (data.join), and what pretraining a base has besides (data/base.py: `--stage base` runs
it from random weights, `--init scratch` runs it first and fine-tunes the result).
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import data
import model as m
from data import networks, optim
from data.run import Run, cli, progress, within


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = "base"  # base (shipped), scratch (pretrain first), a checkpoint, a pretrained model
    steps: int = 200  # optimiser steps
    batch: int = 32  # rows per step
    lr: float = 3e-4  # peak learning rate: 3 % warm-up, then a cosine to a tenth
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the weights, the order of the data and the samples
    resume: bool = False  # go on from what is there of this run: nothing, a part, or all of it
    micro: int = 0  # rows per forward pass, for memory (0: the whole batch)
    eval_size: int = 256  # validation examples for the loss
    every: int = 50  # steps between evaluations, saves and logged lines
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu, cuda or mps

    stage: Literal["sft", "base"] = "sft"  # base: pretrain on raw text instead of fine-tuning
    prompt_tokens: int = 0  # longer prompts are cut (0: as --init; of a new base: 224)
    response_tokens: int = 0  # longer responses are cut, then ended (0: as --init; a new base: 48)
    base_steps: int = 3000  # steps of the pretraining that --init scratch does first
    tokenizer: str = "world"  # of a new base: world, gpt2, or a file made by python -m data.bpe
    layers: int = 4  # of a new base, as are the next three
    channels: int = 128  # width of a new base
    heads: int = 4  # attention heads of a new base
    context: int = 320  # longest row a new base can read

    def __post_init__(self):
        within(self, 1, float("inf"), "steps", "batch", "eval_size", "every", "base_steps",
               "layers", "channels", "heads", "context")
        within(self, 0, float("inf"), "lr", "micro", "seed", "prompt_tokens", "response_tokens")
        within(self, 0, 1, "freeze")


BASE = Path(__file__).parent / "data" / "base.pt"  # the shipped base model of the embedded world


def loss(logp, is_response, tokens=None):
    """Mean negative log-likelihood per response token: (B, R), (B, R) -> scalar, info.
    `tokens` is the count in the whole batch when these rows are only a part of it: losses of the
    parts then add up to the loss of the whole, however the rows were split."""
    total = -torch.where(is_response, logp, 0.0).sum()
    count = is_response.sum() if tokens is None else tokens
    mean = total / max(int(count), 1)
    return mean, {"loss": mean.item()}


def encode(tokenizer, examples):
    "Examples -> rows, (prompt ids, response ids)."
    prompts = tokenizer.prompts([e.prompt for e in examples])
    return list(zip(prompts, tokenizer.responses([e.response for e in examples])))


def stream(config, rows_of):
    """Yields each step's rows. `rows_of(epoch)` gives all of them, for fine-tuning always the same.

    Their order is a function of the seed and nothing else, so that a resumed run, which skips what
    it has seen, goes on exactly where it stopped.
    """
    for epoch in itertools.count():
        rows, shuffle = rows_of(epoch), torch.Generator().manual_seed(config.seed * 100_003 + epoch)
        for index in data.batches([len(p) + len(r) for p, r in rows], config.batch, shuffle):
            yield [rows[i] for i in index]


@torch.no_grad()
def evaluate(policy, rows, pad, device, batch=64, kept=None):
    "Mean loss per response token over all rows, in nats. For `kept` see networks.kept_output."
    total, tokens = 0.0, 0
    for index in progress(data.batches([len(p) + len(r) for p, r in rows], batch), "validation"):
        prompts, responses = zip(*(rows[i] for i in index))
        ids, positions, is_response = data.join(prompts, responses, pad, device)
        count = int(is_response.sum())
        bottom = networks.kept_output(policy, ids, kept=kept)
        logp = m.logprobs(policy, ids, positions, bottom=bottom)
        total += loss(logp, is_response)[0].item() * count
        tokens += count
    return total / tokens


def start_from(config, run):
    """The network to train, frozen as told and on its device, its optimiser, and a function that
    gives the rows of an epoch."""
    if config.stage == "base":
        from data import base

        policy, run.tokenizer = base.new(config)
        rows_of, optimizer = base.rows_of(config, run.tokenizer), base.optimizer
    else:
        policy = run.load("init", BASE if config.init == "base" else config.init)
        run.tokenizer.prompt_tokens = config.prompt_tokens or run.tokenizer.prompt_tokens
        run.tokenizer.response_tokens = config.response_tokens or run.tokenizer.response_tokens
        rows = encode(run.tokenizer, data.load(config.data, "train"))
        rows_of, optimizer = lambda epoch: rows, optim.adamw
    run.check_lengths(policy)
    run.reads("data", rows_of(0))
    networks.freeze(policy, config.freeze)
    networks.to_device(policy, run.device)
    policy.recompute = config.micro > 0
    return policy, optimizer(policy, config.lr), rows_of


def train(config):
    "Train, and return the path of the checkpoint."
    if config.stage == "sft" and config.init == "scratch":
        from data import base

        config = base.pretrained(config, train)
    with Run(config.stage, config) as run:
        policy, optimizer, rows_of = start_from(config, run)
        before, pad = networks.frozen_copy(policy), run.tokenizer.pad
        shown = run.validation(config.eval_size)
        validation, kept = encode(run.tokenizer, shown), {}
        first_loss = evaluate(before, validation, pad, run.device, kept=kept)

        for step, batch in run.steps(stream(config, rows_of), policy, optimizer=optimizer):
            lr = optim.set_lr(optimizer, optim.schedule(config.lr, step, config.steps))
            tokens = sum(len(response) for _, response in batch)
            for rows in run.micro(batch):
                ids, positions, is_response = data.join(*zip(*rows), pad, run.device)
                part, info = loss(m.logprobs(policy, ids, positions), is_response, tokens)
                part.backward()
                run.add(**info)
            optim.step(optimizer, policy.named_parameters())
            run.tokens += tokens
            if run.due:
                run.log(validation_loss=evaluate(policy, validation, pad, run.device, kept=kept),
                        lr=lr)

        return run.finish(
            f"validation loss {first_loss:.3f} -> {run.metrics['validation_loss']:.3f} nats per "
            f"response token", [("Loss", ["loss", "validation_loss"], "nats per token")],
            *run.answers({"before": before, "after": policy}))


if __name__ == "__main__":
    cli(Config, train)
