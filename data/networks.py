"""
A network's weights: which of them train, who shares them, on which device and in which precision.

SFT policy, reference, reward model and value network come from one another, and what is frozen in
all of them is held in memory once. Six functions, and what a model is after them:

                     trains            weights it shares with the model     device and precision
    freeze           the top only      (the model itself)                   as it was
    to_device        as it did         (the model itself)                   the device's
    frozen_copy      nothing           the frozen ones                      each as it is used
    trainable_copy   what trained      the frozen ones                      as it was
    scalar_copy      what trained      the frozen ones; a head of its own   as it was
    share_frozen     as it did         makes the frozen ones of two models one, if they are equal

`start_ppo` puts them together for the stage that needs them all, and `kept_output` is for whoever
reads the same rows again and again.
"""

import contextlib
import copy
import ctypes
import sys

import torch
from torch import nn

import model as m
from data import rewards

LARGE = 10**8  # parameters of a model that is not held twice, not even for a moment
AT_ONCE = 16  # rows of a large model that are read at a time
KEPT = 2**30  # bytes of what frozen layers make of the texts that a run is evaluated on


def rows_at_once(model, most):
    """How many rows a model reads at a time where nothing is learned, of up to `most`: a large one
    is as fast with few, and few of like length need less padding and memory."""
    return min(most, AT_ONCE) if sum(p.numel() for p in model.parameters()) > LARGE else most


@contextlib.contextmanager
def hollow():
    """Networks that are made inside have shapes without memory. Nothing is computed, either: for
    that on its meta device torch imports half of itself, in seconds and 70 MB."""
    normal, table = nn.init.normal_, m.rope_table
    nn.init.normal_ = lambda tensor, *_, **__: tensor
    m.rope_table = lambda c: torch.empty(2, c.context, c.channels // c.heads)
    try:
        with torch.device("meta"):
            yield
    finally:
        nn.init.normal_, m.rope_table = normal, table


def trim(parameters):
    """If a model is large, give back to the system what was freed. glibc keeps tensors of up to 32
    MB, and what comes next seldom fits into the gaps: the memory grows from step to step."""
    if sys.platform == "linux" and sum(p.numel() for p in parameters) > LARGE:
        with contextlib.suppress(AttributeError):  # another libc, which has no such function
            ctypes.CDLL(None).malloc_trim(0)


def transformer(model):
    return model.trunk if isinstance(model, m.ScalarModel) else model


def frozen_parts(model):
    "What `freeze` holds fixed, by name; the output matrix too, or a tied one would move them."
    parts = {name: getattr(model, name) for name in (
        "embed", "position", "project_in", "project_out", "lm_head")}
    parts |= {f"blocks.{i}": block for i, block in enumerate(model.blocks[:model.frozen])}
    return {name: part for name, part in parts.items() if part is not None}


def freeze(model, fraction):
    "Hold the first int(fraction * layers) blocks and all embeddings fixed; 0 freezes nothing."
    if not 0 <= fraction <= 1:
        raise ValueError(f"the frozen fraction must be between 0 and 1, not {fraction}.")
    model.requires_grad_(True)
    model = transformer(model)
    model.frozen = int(fraction * model.config.layers + 1e-9)  # .58 * 50 is 28.999999999999996
    if fraction > 0:
        for part in frozen_parts(model).values():
            part.requires_grad_(False)


def trainable_copy(model):
    "A copy to be trained apart: the layers that `freeze` holds are shared, the rest is copied."
    net = transformer(model)
    held = frozen_parts(net).values() if net.frozen else ()
    return copy.deepcopy(model, {id(p): p for part in held for p in part.parameters()})


def scalar_copy(policy):
    "A scalar model that starts as a copy of `policy` (frozen layers are shared), with a new head."
    trunk, like = trainable_copy(policy), m.at_least_fp32(policy.embed.weight[:1])
    trunk.lm_head = trunk.project_out = None
    large = sum(p.numel() for p in policy.parameters()) > LARGE  # as in `load`
    model = m.ScalarModel(policy.config, trunk if large else None)
    model.trunk = trunk
    model.head.to(like)
    model.shift, model.scale = model.shift.to(like), model.scale.to(like)
    return model


def share_frozen(model, other):
    """Make `other` use `model`'s frozen layers, so that policy, reference, reward model and value
    network hold them in memory once. Only allowed where they are the same numbers already, in the
    precision that `model` holds them in. `other` may still be on the CPU, and be moved afterwards.
    """
    model, other = transformer(model), transformer(other)
    if model.embed.weight.requires_grad:
        raise ValueError("nothing is frozen in the first model, so there is nothing to share.")
    before, other.frozen = other.frozen, model.frozen
    mine, its = frozen_parts(model), frozen_parts(other)
    shared = mine.keys() & its.keys()  # a scalar model has no output matrix of its own
    same = mine.keys() - {"project_out", "lm_head"} <= shared and all(
        torch.equal(value, other_value.to(value)) for name in shared for value, other_value
        in zip(mine[name].parameters(), its[name].parameters(), strict=True))
    if not same:
        other.frozen = before
        raise ValueError("the frozen layers differ: train both from the same base with the same "
                         "--freeze.")
    for name in shared:
        parent, _, last = name.rpartition(".")
        setattr(other.get_submodule(parent), last, mine[name])


def kept_output(model, ids, segment=None, kept=None):
    """What a model's frozen layers make of these rows, to be passed as `bottom`, (B, T, C):
    computed once and held in `kept`, a dict, for it and all that share these layers. That takes
    T * C numbers a row of the CPU's memory, and what would be more than KEPT bytes in all is
    computed anew. None without a dict, or where no layer is frozen."""
    net = transformer(model)
    if kept is None or not net.frozen:
        return None
    key = tuple(None if x is None else (x.shape, x.cpu().numpy().tobytes()) for x in (ids, segment))
    if key not in kept:
        found = net.frozen_output(ids, segment=segment)
        if found.nbytes + sum(x.nbytes for x in kept.values()) > KEPT:
            return found
        kept[key] = found.cpu()
    return kept[key].to(ids.device)


def precision(device):
    "What networks on a device compute in: bf16 on a GPU that has it; None: as their weights are."
    has_it = (torch.device(device).type == "cuda"
              and torch.cuda.get_device_capability(device) >= (8, 0))  # since Ampere
    return torch.bfloat16 if has_it else None


def to_device(model, device, dtype=None):
    """
    Move a model to `device`, to compute in `dtype` (default: that of the device) from now on. What
    is frozen is rounded to it for good. What trains stays in fp32, as a master that is rounded
    where it is used: steps smaller than bf16 resolves (2^-9 of a weight) add up. The head and the
    two numbers of a scalar model stay in fp32. Sec. 3.1, Micikevicius et al. 2018, arXiv:1710.03740
    """
    net, dtype = transformer(model), dtype or precision(device)
    if dtype is not None:
        net.precision = dtype
        for p in net.parameters():
            if not p.requires_grad:
                p.data = p.data.to(device, dtype)  # rounded first: no fp32 copy on the GPU
        if net.position is None:
            net.table = net.table.to(dtype)
    return model.to(device)


def frozen_copy(model, copied=True):
    """The same network as it is now, with nothing to train, each weight in the precision it is used
    in. Frozen weights are shared with `model`; if not `copied`, so are all that need no rounding.
    """
    dtype, held = transformer(model).precision, {}
    for p in transformer(model).parameters():
        value = p.detach().to(dtype or p.dtype, copy=copied and p.requires_grad)
        held[id(p)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, held).requires_grad_(False)


def start_ppo(config, run, reward_fn=None):
    """What PPO starts from: policy, reward model or None, and what scores if that is no model, or
    None. What is frozen is held once: rounded, moved and shared before anything is copied."""
    policy, reward_model = run.load("init", config.init or run.home / "sft.pt"), None
    freeze(policy, config.freeze)
    to_device(policy, run.device)
    reward_fn = reward_fn or rewards.named_reward(config, run)
    gold = config.reward == "gold"  # PPO on it differs in this alone: its values start the same
    if reward_fn is None or gold and config.value == "reward":
        path = run.home / "reward.pt" if gold or not config.reward else config.reward
        reward_model = run.load("reward", path, "reward")
        freeze(reward_model, config.freeze)
        if config.freeze:  # it then has the policy's bottom: that is checked
            share_frozen(policy, reward_model)
        to_device(reward_model, run.device)
        reward_model.trunk.recompute = config.micro > 0
    policy.recompute = config.micro > 0
    return policy, reward_model, reward_fn
