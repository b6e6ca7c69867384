"""
The optimiser's side of a step: a learning rate, AdamW, and a step that refuses what is not finite.
"""

import math

import torch
from torch import nn

from data import networks


def schedule(peak, step, steps, warmup=0.03):
    "Learning rate of steps 1 .. steps: up in a straight line, then down on a cosine to a tenth."
    rise = max(round(warmup * steps), 1)
    if step <= rise:
        return peak * step / rise
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1))))


def adamw(model, lr, betas=(0.9, 0.95), eps=1e-8):
    "AdamW on what is not frozen, without weight decay: that is Adam."
    params = [p for p in model.parameters() if p.requires_grad]
    how = dict(lr=lr, betas=betas, eps=eps, weight_decay=0.0)
    try:  # one kernel for all parameters
        return torch.optim.AdamW(params, fused=True, **how)
    except RuntimeError:  # no such kernel for this device in this version
        return torch.optim.AdamW(params, foreach=True, **how)


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def step(optimizer, named, limit=1.0):
    """One step, with gradients scaled to a common norm of at most `limit` -> the norm they had.
    `named` is pairs of name and parameter, all of a model's. ValueError if a gradient is not
    finite: which tensor it is, before anything was changed by it."""
    named = dict(named)
    held = [(name, p) for name, p in named.items() if p.grad is not None]
    try:
        norm = nn.utils.clip_grad_norm_([p for _, p in held], limit, error_if_nonfinite=True)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        name = next((name for name, p in held if not p.grad.isfinite().all()), "all, together,")
        raise ValueError(f"the gradient of {name} is not finite") from None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    networks.trim(named.values())  # now least is held
    return norm.item()
