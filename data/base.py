"""
Pretraining a base, `python sft.py --stage base`: the loss of sft.py with every token counted as
response, rows of raw text that are whole threads, and Muon, which is faster from nothing.
"""

import contextlib
import functools
from dataclasses import replace

import torch

import data
import model as m
from data import optim
from data.flags import Finished

LR = 3e-3  # of the pretraining that --init scratch does


def new(config):
    "A network with random weights, of the shape that sft.py's flags give it, and its tokeniser."
    tokenizer = data.Tokenizer(config.tokenizer, config.prompt_tokens or 224,
                               config.response_tokens or 48)
    shape = m.ModelConfig(
        vocab_size=tokenizer.vocab_size, context=config.context, layers=config.layers,
        heads=config.heads, kv_heads=config.heads, channels=config.channels,
        hidden=config.channels * 11 // 4, eos=(tokenizer.eos,))
    return m.Transformer(shape), tokenizer


def rows_of(config, tokenizer):
    "A function of the epoch -> its rows, whole threads: the first token is the prompt of the rest."
    longest = tokenizer.prompt_tokens + tokenizer.response_tokens

    @functools.lru_cache(1)
    def rows(epoch):  # the world writes fresh text: no base reads the same one twice
        threads = data.texts(config.data, 200 * config.batch, config.seed * 100_003 + epoch)
        ids = [[i for text in thread for i in tokenizer.encode(text) + [tokenizer.eos]]
               for thread in threads]
        return [(row[:1], row[1:longest]) for row in ids]
    return rows


class Together(torch.optim.Optimizer):
    "Several optimisers as one."

    def __init__(self, *optimizers):
        self.optimizers = optimizers
        super().__init__([group for o in optimizers for group in o.param_groups], {})

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state):
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]


def optimizer(model, lr):
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for all else, and for everything in
    versions of torch before 2.9. Reaches AdamW's loss in about 0.7 times the steps."""
    if not hasattr(torch.optim, "Muon"):
        return optim.adamw(model, lr)
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return Together(
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0))


def pretrained(config, train):
    "`sft.py --init scratch`: trains the base, or finishes it -> the config that starts from it."
    with contextlib.suppress(Finished):
        train(replace(config, stage="base", steps=config.base_steps, lr=LR, freeze=0.0))
    return replace(config, init=str(data.run_folder(config.data, config.seed, config.out)
                                    / "base.pt"))
