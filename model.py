"""
model.py - tensors: one transformer, what is sampled from it, and the file it is kept in.

A language model is a function from token ids to a distribution over the next id. Everything in
this project is one network used in four ways: as a policy (`generate`), as a measure of how likely
a given response is (`logprobs`), as a judge or a value function (`ScalarModel`, the same layers
with one number per position instead of V logits), and as a frozen bottom that all of them share
(`freeze`, `share_trunk`). GPT-2, OPT and LLaMA are the same forty lines with other settings, and
`load_pretrained` reads their weights.

    python model.py export out/summarise/ppo.pt my-folder      # for everybody else's programs

Axes: B rows, T positions, R response positions, C channels, H heads, D head width (C / H),
V vocabulary, S cache columns. Nothing here knows about text, rewards or PPO.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import struct
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


@dataclass
class ModelConfig:
    vocab_size: int = 2048  # ids 0 .. vocab_size - 1; the id vocab_size itself is PAD
    context: int = 320  # longest row, prompt and response together
    layers: int = 4
    heads: int = 4  # query heads
    kv_heads: int = 4  # key and value heads; fewer than `heads` is grouped-query attention
    channels: int = 128
    hidden: int = 352  # width inside the MLP; SwiGLU has three matrices, so about 8/3 of channels
    norm: str = "rms"  # "rms" (LLaMA) or "layer" (GPT-2, OPT)
    norm_eps: float = 1e-5
    norm_first: bool = True  # False: normalise after the residual sum, as only OPT-350m does
    activation: str = "swiglu"  # "swiglu" (LLaMA), "gelu" (GPT-2's tanh form) or "relu" (OPT)
    positions: str = "rotary"  # "rotary" (LLaMA) or "learned" (GPT-2, OPT)
    rope_theta: float = 10000.0  # rotary only: wavelengths run from 2 pi to 2 pi theta tokens
    rope_scaling: tuple = ()  # LLaMA 3.1's: factor, low, high, context before it (see rope_table)
    bias: bool = False  # on linear layers (GPT-2 and OPT have it, LLaMA does not)
    qkv_bias: bool = False  # on queries, keys and values only (Qwen2)
    embed_width: int = 0  # of an embedding that is projected to `channels` (0: none; OPT-350m: 512)
    tied: bool = True  # the output matrix is the embedding
    eos: tuple = (0,)  # sampling stops at any of these ids

    def __post_init__(self):
        self.eos, self.rope_scaling = tuple(self.eos), tuple(self.rope_scaling)  # JSON has none
        known = {"norm": ("rms", "layer"), "activation": ("swiglu", "gelu", "relu"),
                 "positions": ("rotary", "learned")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {choices}.")
        for name in ("vocab_size", "context", "layers", "heads", "kv_heads", "channels", "hidden"):
            largest = 1000 if name == "layers" else 2**24  # of any model; more is a damaged file
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name}={getattr(self, name)} must be in 1 to {largest}.")
        if self.channels % self.heads:
            raise ValueError(f"channels={self.channels} must be a multiple of heads={self.heads}.")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}.")
        if self.positions == "rotary" and self.channels // self.heads % 2:
            raise ValueError(f"rotary positions turn pairs of channels, so the head width "
                             f"{self.channels // self.heads} must be even.")


# ---- the network ---------------------------------------------------------------------------------


def at_least_fp32(x):
    "Probabilities and scores are never computed in half precision; float64 stays float64."
    return x if x.dtype == torch.float64 else x.float()


def take(x, at):
    "What x (B, T, C) holds at these positions, (B, R) -> (B, R, C)."
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


def make_norm(config):
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.channels, eps=config.norm_eps)


def rope_table(config):
    """
    Cosines and sines of every position's angles (2, context, D), the first half of the sines
    negated. LLaMA 3.1 was trained on a short context and stretched: waves that turn fewer than
    `low` times in that context are slowed by `factor`, those that turn more than `high` times are
    left alone, and in between it blends: the rule of the code released with arXiv:2407.21783
    """
    half = config.channels // config.heads // 2
    speed = config.rope_theta ** -(torch.arange(half).double() / half)  # radians per token: (D/2,)
    if config.rope_scaling:
        factor, low, high, before = config.rope_scaling
        kept = ((before * speed / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        speed = speed * (kept + (1 - kept) / factor)
    angle = torch.arange(config.context)[:, None] * speed  # (context, D/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)]).float()


def rotate(x, rotation):
    """
    Turn channel pair (i, i + D/2) by angle position * theta^(-2i/D), so that a query-key product
    depends only on the distance between them. Eq. 34, Su et al. 2021, arXiv:2104.09864, but for the
    order of channels: the paper pairs neighbours, LLaMA's weights as the hub has them the halves.
    """
    cos, sin = rotation  # (..., T, 1, D), the first half of sin negated
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.width = config.channels // config.heads
        # queries, keys and values in one product: as fast as three, and one line to read
        rows = (config.heads + 2 * config.kv_heads) * self.width
        self.qkv = nn.Linear(config.channels, rows, bias=config.bias or config.qkv_bias)
        self.out = nn.Linear(config.channels, config.channels, bias=config.bias)

    def forward(self, x, rotation, is_visible, cache=None, column=0):
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.width)  # (B, T, H + 2 Hkv, D)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or Hkv, T, D)
        if torch.is_tensor(column):  # (1,): all of the cache, of which `is_visible` hides the rest
            k, v = (held.index_copy_(2, column, ours) for held, ours in zip(cache, (k, v)))
        elif cache is not None:  # (2, B, Hkv, S, D): append ours, attend to everything so far
            cache[0, :, :, column:column + T] = k
            cache[1, :, :, column:column + T] = v
            k, v = cache[:, :, :, :column + T]
        if self.kv_heads < self.heads:  # every key head serves heads / kv_heads query heads
            k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
            v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        # no mask on right-padded rows, so that the fused causal kernels stay eligible
        is_causal = is_visible is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible, is_causal=is_causal)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.activation = config.activation
        gated = config.activation == "swiglu"  # gate and value in one product, as in Attention
        self.up = nn.Linear(config.channels, config.hidden * (1 + gated), bias=config.bias)
        self.down = nn.Linear(config.hidden, config.channels, bias=config.bias)

    def forward(self, x):
        x = self.up(x)
        if self.activation == "swiglu":
            gate, x = x.chunk(2, dim=-1)
            return self.down(F.silu(gate) * x)
        x = F.relu(x) if self.activation == "relu" else F.gelu(x, approximate="tanh")
        return self.down(x)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_first = config.norm_first
        self.norm1, self.attention = make_norm(config), Attention(config)
        self.norm2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x, rotation, is_visible, at=None, *cache):
        "(B, T, C) -> (B, T, C), or of the positions `at` (B, R) only, (B, R, C)."
        where = (rotation, is_visible, *cache)
        if self.norm_first:
            x = x + self.attention(self.norm1(x), *where)
            x = x if at is None else take(x, at)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, *where))
        x = x if at is None else take(x, at)
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    def __init__(self, config, lm_head=True):
        super().__init__()
        self.config = config
        self.frozen = 0  # how many blocks `freeze` has frozen
        self.precision = None  # what it computes in, if not in that of its weights: see `settle`
        self.recompute = False  # keep only each block's input, and compute the rest in backward
        width = config.embed_width or config.channels
        self.embed = nn.Embedding(config.vocab_size, width)
        narrow = config.embed_width > 0
        self.project_in = nn.Linear(width, config.channels, False) if narrow else None
        self.project_out = nn.Linear(config.channels, width, False) if narrow and lm_head else None
        learned = config.positions == "learned"
        self.position = nn.Embedding(config.context, config.channels) if learned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config) if config.norm_first else nn.Identity()
        untied = lm_head and not config.tied
        self.lm_head = nn.Linear(width, config.vocab_size, False) if untied else None
        if not learned:
            self.register_buffer("table", rope_table(config), persistent=False)  # (2, context, D)
        self.apply(self._init)
        for block in self.blocks:  # 2L branches add up in the residual stream: keep its size at 1
            for layer in (block.attention.out, block.mlp.down):
                nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * config.layers))

    def _init(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def layout(self, ids, is_real, segment=None):
        """
        Where every token stands (T,) or (B, T), and which keys it may see (None: all before it).
        A token counts its position, and sees what is before it, in its own segment and in segment
        0, the prompt, which the others all follow. Segment -1 is padding: left-padded rows count
        from their first real token. A padding token sees itself, because a softmax over no keys at
        all is NaN, and NaN * 0 is NaN further down.
        """
        T, context = ids.shape[1], self.config.context
        if is_real is None and segment is None:
            longest, positions, is_visible = T, torch.arange(T, device=ids.device), None
        else:
            if segment is None:
                segment = is_real.long() - 1  # (B, T)
            causal = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
            own = causal & (segment[:, :, None] == segment[:, None, :])  # (B, T, T)
            is_visible = (own | causal & (segment == 0)[:, None])[:, None]  # (B, 1, T, T)
            prompt = (segment == 0).sum(1, keepdim=True)  # (B, 1)
            positions = (own.sum(-1) - 1 + prompt * (segment > 0)) * (segment >= 0)  # (B, T)
            longest = int(positions.max()) + 1
        if longest > context:
            raise ValueError(f"a row of {longest} ids does not fit the model's context of "
                             f"{context}; cut the prompt or take a model with a longer context.")
        return positions, is_visible

    def embeddings(self, ids, positions):
        x = self.embed(ids.where(ids < self.config.vocab_size, 0))  # PAD is fed as 0: (B, T, C)
        x = x.to(self.precision or x.dtype)
        x = x if self.project_in is None else self.run(self.project_in, x)
        return x if self.position is None else x + self.position(positions).to(x.dtype)

    def rotation(self, positions):
        return None if self.position is not None else self.table[:, positions].unsqueeze(-2)

    def run(self, module, x, *where):
        "module(x, *where), its fp32 weights rounded here, where they are used, to x's precision."
        if self.precision is None:
            return module(x, *where)
        rounded = {name: p.to(x.dtype) for name, p in module.named_parameters()}
        return functional_call(module, rounded, (x, *where))

    def forward(self, ids, is_real=None, bottom=None, segment=None, at=None):
        """
        Final hidden states (B, T, C), or with `at` (B, R) those of these positions only, (B, R, C):
        the last MLP is then computed nowhere else. `is_real` None: rows are right-padded, and
        causal attention keeps real tokens from ever seeing the padding. `is_real` (B, T): rows are
        left-padded. `segment` (B, T): each row is a prompt and several responses to it, as by
        data.join_groups.
        `bottom`: what `frozen_output` gave for these rows, so that only the top layers run.
        """
        positions, is_visible = self.layout(ids, is_real, segment)
        x = self.embeddings(ids, positions) if bottom is None else bottom
        rotation = self.rotation(positions)
        blocks = self.blocks[0 if bottom is None else self.frozen:]
        for block in blocks:
            where = (rotation, is_visible, at if block is blocks[-1] else None)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(self.run, block, x, *where, use_reentrant=False,
                               preserve_rng_state=False)
            else:
                x = self.run(block, x, *where)
        if at is not None and not blocks:  # all frozen
            x = take(x, at)
        return self.run(self.norm, x)

    def matrix(self):
        "The output matrix (V, width), rounded as all weights are, but for a product in fp32."
        weight = self.embed.weight if self.lm_head is None else self.lm_head.weight
        return weight if self.precision is None else weight.to(self.precision).float()

    def logits(self, hidden, matrix=None):
        hidden = hidden if self.project_out is None else self.run(self.project_out, hidden)
        if self.precision is not None:  # a logit near 20 in bf16 would be off by up to .06 nats
            hidden = hidden.float()
        return F.linear(hidden, self.matrix() if matrix is None else matrix)

    @torch.no_grad()
    def frozen_output(self, ids, is_real=None):
        "What the frozen layers make of `ids`: compute it once, pass it as `bottom` many times."
        if self.embed.weight.requires_grad:
            raise ValueError("nothing is frozen, so there is no fixed trunk to compute once.")
        positions, is_visible = self.layout(ids, is_real)
        x, rotation = self.embeddings(ids, positions), self.rotation(positions)
        for block in self.blocks[:self.frozen]:
            x = self.run(block, x, rotation, is_visible)
        return x

    def new_cache(self, rows, columns):
        config = self.config
        shape = (config.layers, 2, rows, config.kv_heads, columns, config.channels // config.heads)
        return self.embed.weight.new_empty(shape)

    def decode(self, ids, positions, is_visible, cache, column):
        """
        Append `ids` (B, T) to the cache at `column`; the last one's final hidden state (B, C).
        `column` may be a tensor (1,), for work that is the same at every step: see `recorded`.
        """
        x, rotation = self.embeddings(ids, positions), self.rotation(positions)
        B, T = ids.shape
        last = None if T == 1 else ids.new_full((B, 1), T - 1)
        for block, part in zip(self.blocks, cache):
            at = last if block is self.blocks[-1] else None
            x = block(x, rotation, is_visible, at, part, column)
        return self.norm(x[:, -1])


class ScalarModel(nn.Module):
    """
    One number per position: the reward model, read at the last response token, and the value
    network, read everywhere. Output = (head(hidden) - shift) / scale; reward.py sets the two
    numbers so that human-written responses have mean 0 and standard deviation 1.
    """

    def __init__(self, config, trunk=None):
        super().__init__()
        self.config = config
        self.trunk = Transformer(config, lm_head=False) if trunk is None else trunk
        self.head = nn.Linear(config.channels, 1)
        # hidden states have size about 1 per channel, so the first outputs are about N(0, 1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(config.channels + 1))
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, ids, is_real=None, bottom=None, segment=None, at=None):
        return self.read(self.trunk(ids, is_real, bottom, segment, at))

    def read(self, hidden):
        hidden = at_least_fp32(hidden)  # (B, T, C)
        with torch.autocast(hidden.device.type, enabled=False):  # eight bits are not a score
            weight, bias = self.head.weight.to(hidden.dtype), self.head.bias.to(hidden.dtype)
            return (F.linear(hidden, weight, bias).squeeze(-1) - self.shift) / self.scale  # (B, T)


def scalar_from(policy):
    "A scalar model that starts as a copy of `policy` (frozen layers are shared), with a new head."
    trunk, like = branch(policy), at_least_fp32(policy.embed.weight[:1])
    trunk.lm_head = trunk.project_out = None
    large = sum(p.numel() for p in policy.parameters()) > LARGE  # as in `load`
    model = ScalarModel(policy.config, trunk if large else None)
    model.trunk = trunk
    model.head.to(like)
    model.shift, model.scale = model.shift.to(like), model.scale.to(like)
    return model


# ---- how likely a response is --------------------------------------------------------------------


def logprobs(model, ids, positions, temperature=1.0, bottom=None, hidden=None, entropy=False,
             chunk=4096):
    """
    log pi(token at each of `positions` | all before it), (B, T), (B, R) -> (B, R); rows of `ids`
    are right-padded, and positions that fall in the padding give numbers that the caller masks.
    With `entropy` also the exact entropy, in nats, of each of those distributions. `hidden`
    (B, R, C) are the states that predict these tokens, from a caller who had another use for them.

    Logits are the memory: 64 rows x 600 x 50,257 in fp32 are 7.7 GB. So only the R positions reach
    the output matrix, `chunk` rows at a time, and backward computes each chunk's logits again.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probabilities need one above 0.")
    positions = positions.clamp(1, ids.shape[1] - 1)
    if hidden is None:  # the state that predicts the token at t is the one at t - 1
        hidden = model(ids, bottom=bottom, at=positions - 1)  # (B, R, C)
    tokens = ids.gather(1, positions)  # (B, R)
    tokens = tokens.where(tokens < model.config.vocab_size, 0)

    def score(hidden, tokens):  # (rows, C), (rows,) -> (rows,), (rows,)
        logits = at_least_fp32(model.logits(hidden))
        logp = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
        spread = -(logp.exp() * logp).sum(-1) if entropy else None
        return logp.gather(1, tokens[:, None]).squeeze(1), spread

    parts = list(zip(hidden.flatten(0, 1).split(chunk), tokens.flatten().split(chunk)))
    if len(parts) > 1 and torch.is_grad_enabled():
        scores = [checkpoint(score, *part, use_reentrant=False, preserve_rng_state=False)
                  for part in parts]
    else:
        scores = [score(*part) for part in parts]
    logp, spread = zip(*scores)
    logp = torch.cat(logp).view(positions.shape)  # (B, R)
    return (logp, torch.cat(spread).view(positions.shape)) if entropy else logp


# ---- the frozen trunk ----------------------------------------------------------------------------


def transformer(model):
    return model.trunk if isinstance(model, ScalarModel) else model


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


def branch(model):
    "A copy to be trained apart: the layers that `freeze` holds are shared, the rest is copied."
    net = transformer(model)
    held = frozen_parts(net).values() if net.frozen else ()
    return copy.deepcopy(model, {id(p): p for part in held for p in part.parameters()})


def share_trunk(model, other):
    """
    Make `other` use `model`'s frozen layers, so that policy, reference, reward model and value
    network hold them in memory once. Only allowed where they are the same numbers already, in the
    precision that `model` holds them in. `other` may still be on the CPU, and `settle`d afterwards.
    """
    model, other = transformer(model), transformer(other)
    if model.embed.weight.requires_grad:
        raise ValueError("nothing is frozen in the first model, so there is nothing to share.")
    other.frozen = model.frozen
    mine, its = frozen_parts(model), frozen_parts(other)
    shared = mine.keys() & its.keys()  # a scalar model has no output matrix of its own
    same = mine.keys() - {"project_out", "lm_head"} <= shared and all(
        torch.equal(value, other_value.to(value)) for name in shared for value, other_value
        in zip(mine[name].parameters(), its[name].parameters(), strict=True))
    if not same:
        raise ValueError("the frozen layers differ: train both from the same base with the same "
                         "--freeze.")
    for name in shared:
        parent, _, last = name.rpartition(".")
        setattr(other.get_submodule(parent), last, mine[name])


# ---- precision -----------------------------------------------------------------------------------


def precision(device):
    "What networks on a device compute in: bf16 on a GPU that has it; None: as their weights are."
    has_it = (torch.device(device).type == "cuda"
              and torch.cuda.get_device_capability(device) >= (8, 0))  # since Ampere
    return torch.bfloat16 if has_it else None


def settle(model, device, dtype=None):
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


def settled(path, kind, device, tokenizer=None):
    "`load` for what is only used, not trained: all of it in the device's precision."
    model, record = load(path, kind, tokenizer=tokenizer)
    return settle(model.requires_grad_(False), device), record


def fixed(model, copied=True):
    """
    The same network as it is now, with nothing to train, each weight in the precision it is used
    in. Frozen weights are shared with `model`; if not `copied`, so are all that need no rounding.
    """
    dtype, held = transformer(model).precision, {}
    for p in transformer(model).parameters():
        value = p.detach().to(dtype or p.dtype, copy=copied and p.requires_grad)
        held[id(p)] = nn.Parameter(value, requires_grad=False)
    return copy.deepcopy(model, held).requires_grad_(False)


# ---- sampling ------------------------------------------------------------------------------------


CACHE = 2**33  # bytes of keys and values that are decoded at once: 15 rows of 1,072 tokens at 7B


def cache_bytes(model, columns):
    "Size of one row's keys and values."
    width = model.config.channels // model.config.heads * model.config.kv_heads
    return 2 * model.config.layers * width * columns * model.embed.weight.element_size()


def choose(logits, temperature, uniform, min_p=0.0):
    """
    The next token of every row, (rows, V), (rows,) -> (rows,): the first one at which the summed
    probability passes the row's uniform number. One random number per token instead of the V that
    the Gumbel trick needs, and, unlike torch.multinomial, no wait for the GPU.

    A token less than `min_p` times as likely as the likeliest is never chosen, as the model has it
    before the temperature (Nguyen et al. 2025, arXiv:2407.01082): slips go, real choices stay.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = at_least_fp32(logits)
    if min_p:
        likeliest = logits.amax(-1, keepdim=True)
        logits = logits.masked_fill(logits < likeliest + math.log(min_p), -math.inf)
    probs = F.softmax(logits / temperature, dim=-1)
    cdf = probs.cumsum(-1, dtype=torch.float64)  # in fp32 a rare token would be rounded away
    token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(1)
    return token.clamp(max=logits.shape[-1] - 1)


RECORDED = ("cuda",)  # devices on which Python takes longer to start a kernel than it runs


def recorded(step):
    """
    Run `step` once -> a function that runs it again, all its kernels at one launch: a CUDA graph.
    It does the same to the same memory every time, so `step` may neither look at a number nor make
    a tensor for the next step to use, and what it changes, it changes in place.
    """
    stream = torch.cuda.Stream()  # the first time sets up what cannot be recorded
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # nothing is run in here
        step()
    return graph.replay


def decode_rows(model, prompts, which, temperature, uniform, min_p=0.0):
    """
    Responses to prompts[which[row]], as (rows, max_new_tokens) ids; what follows a row's first EOS
    is arbitrary. `uniform` holds every row's random numbers, so no row depends on its neighbours.
    """
    device, pad = model.embed.weight.device, model.config.vocab_size
    max_new, width = uniform.shape[1], max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)  # (B, P)
    several = which != list(range(len(prompts)))
    which = torch.tensor(which, device=device)  # (rows,)
    eos = torch.tensor(model.config.eos, dtype=torch.long, device=device)
    matrix = model.matrix()  # once, not once per token
    records = device.type in RECORDED
    check_every = 16 if records else 1  # looking makes the CPU wait for the GPU

    # every prompt is read once, and its cache copied to each of its samples
    positions, is_visible = model.layout(ids, ids < pad)
    cache = model.new_cache(len(prompts), width + max_new)  # (L, 2, B, Hkv, S, D)
    if records:
        cache.zero_()  # attention multiplies what is still to come by 0: it must be a number
    hidden = model.decode(ids, positions, is_visible, cache, 0)  # (B, C)
    hidden, position = hidden[which], positions[which, -1:]
    cache = cache[:, :, which] if several else cache  # large: not twice without need
    is_key = F.pad(ids < pad, (0, max_new), value=True)[which, None, None]  # (rows, 1, 1, S)
    padded = not is_key.all()  # without padding attention needs no mask

    rows = torch.arange(len(which), device=device)  # the rows still decoded
    token = torch.zeros_like(rows)
    done = torch.zeros_like(rows, dtype=torch.bool)
    columns = torch.arange(width + max_new, device=device)  # (S,)
    n = torch.zeros(1, dtype=torch.long, device=device)  # tokens so far
    is_finite = torch.ones(max_new, dtype=torch.bool, device=device)
    out = torch.zeros(len(which), max_new, dtype=torch.long, device=device)

    def pick(hidden):  # the next token of every row, (rows, C)
        logits = model.logits(hidden, matrix)  # (rows, V)
        token.copy_(choose(logits, temperature, uniform[rows, n], min_p))
        out[rows, n] = token
        done.logical_or_((token[:, None] == eos).any(1))
        is_finite[n] = logits.sum().isfinite()
        n.add_(1)

    def step(column=None, is_visible=None):  # without a column: for `recorded`
        if column is None:
            column = width - 1 + n
            is_visible = is_key & (columns <= column)
        position.add_(1)
        pick(model.decode(token[:, None], position, is_visible, cache, column))

    pick(hidden)
    again = None
    for count in range(1, max_new + 1):
        if count == max_new or count % check_every == 0:
            if not is_finite.all():
                raise ValueError(f"the logits of sampled token {is_finite.int().argmin() + 1} are "
                                 f"not finite, so the weights are broken: lower the learning rate.")
            if count == max_new or done.all():
                break
            if 2 * done.sum() >= len(done):  # at least half are done: go on with the others only
                keep, again = ~done, None
                rows, token, position, done = rows[keep], token[keep], position[keep], done[keep]
                cache, is_key = cache[:, :, keep], is_key[keep]
        if not records:
            column = width - 1 + count
            step(column, is_key[..., :column + 1] if padded else None)
        elif again is None:
            again = recorded(step)
        else:
            again()
    return out


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, num_samples=1, seed=0,
             generator=None, batch=256, min_p=0.0):
    """
    Sample `num_samples` responses to each prompt: lists of ids in, len(prompts) * num_samples
    lists out, prompt by prompt, each with its EOS if it came to one. Temperature 0 is greedy; for
    `min_p` see `choose`.
    At most `batch` rows are decoded at a time, and fewer where their keys and values would take
    more than CACHE bytes; that changes the memory, not the random numbers.
    """
    if model.precision is not None:
        model = fixed(model, copied=False)  # round masters once, not once per token
    room = model.config.context - max_new_tokens
    if temperature < 0 or max_new_tokens < 1 or num_samples < 1 or batch < 1:
        raise ValueError(f"temperature={temperature} must not be negative, and max_new_tokens="
                         f"{max_new_tokens}, num_samples={num_samples} and batch={batch} must be "
                         f"at least 1.")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p} must be a share of the likeliest token's probability, 0 "
                         f"to 1.")
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= room:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; it must have 1 to {room}, to "
                             f"leave room for {max_new_tokens} new ones in a context of "
                             f"{model.config.context}.")
    if generator is None:
        generator = torch.Generator().manual_seed(seed)
    # all random numbers come first, one per token: row r gets the same ones in whatever company
    uniform = torch.rand(len(prompts) * num_samples, max_new_tokens, dtype=torch.float64,
                         generator=generator, device=generator.device).to(model.embed.weight.device)
    eos, out = set(model.config.eos), [None] * len(uniform)
    # rows of like length go together; the longest first, so that memory runs out now or never
    order = sorted(range(len(out)), key=lambda row: -len(prompts[row // num_samples]))
    longest = max(map(len, prompts), default=0) + max_new_tokens
    batch = min(batch, max(CACHE // cache_bytes(model, longest), 1))
    for i in range(0, len(order), batch):
        rows = order[i:i + batch]
        owners = {row // num_samples: None for row in rows}  # prompts in this batch, in order
        place = {owner: n for n, owner in enumerate(owners)}
        tokens = decode_rows(model, [list(prompts[owner]) for owner in owners],
                             [place[row // num_samples] for row in rows], temperature,
                             uniform[rows], min_p)
        for row, response in zip(rows, tokens.tolist()):
            end = next((n for n, token in enumerate(response) if token in eos), len(response))
            out[row] = response[:end + 1]
    return out


# ---- the optimiser -------------------------------------------------------------------------------


def device(name):
    "auto, cpu or cuda -> the name torch wants."
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not name.startswith("cuda"):
        raise ValueError(f"--device {name} is none that this runs on: give auto, cpu or cuda.")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; leave the flag out.")
    if name != "cpu":  # the output matrix's product in fp32: what was rounded to bf16 is exact in
        torch.set_float32_matmul_precision("high")  # TF32, too, and that is several times faster
    return name


def schedule(peak, step, steps, warmup=0.03):
    "Learning rate of steps 1 .. steps: up in a straight line, then down on a cosine to a tenth."
    rise = max(round(warmup * steps), 1)
    if step <= rise:
        return peak * step / rise
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1))))


def adamw(model, lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0):
    "AdamW on what is not frozen; only matrices decay, as norms and biases have no reason to be 0."
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
              {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0}]
    try:  # one kernel for all parameters
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    except RuntimeError:  # no such kernel for this device in this version
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, foreach=True)


def clip_gradients(named, losses, limit=1.0):
    """
    Scale gradients to a common norm of at most `limit` -> that norm. `named` is pairs of name and
    parameter. ValueError if one of `losses`, {name: number}, or a gradient is not finite: which
    tensor it is, before anything was changed by it.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise ValueError(f"the {name} is {value}")
    held = [(name, p) for name, p in named if p.grad is not None]
    try:
        return nn.utils.clip_grad_norm_([p for _, p in held], limit, error_if_nonfinite=True).item()
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        name = next((name for name, p in held if not p.grad.isfinite().all()), "all, together,")
        raise ValueError(f"the gradient of {name} is not finite") from None


def pretrainers(model, lr):
    """
    Optimisers of a network that starts from nothing: Muon (Jordan et al. 2024) for the blocks'
    matrices, AdamW for all else. Reaches AdamW's loss in about 0.7 times the steps. Versions of
    torch without Muon (before 2.9) use AdamW for everything.
    """
    if not hasattr(torch.optim, "Muon"):
        return [adamw(model, lr)]
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


# ---- the checkpoint ------------------------------------------------------------------------------

FORMAT = 1
MADE_BY = {"policy": "python sft.py", "reward": "python reward.py"}
LARGE = 10**8  # parameters of a model that `load` does not hold twice, not even for a moment


def digest(record):
    "SHA-256 over everything in `record` but its digest: same numbers, same text, whatever the zip."
    sha = hashlib.sha256()

    def walk(value):
        kind = type(value)
        if issubclass(kind, dict):
            sha.update(b"dict %d\n" % len(value))
            for key in sorted(value, key=lambda key: (type(key).__name__, key)):
                walk(key), walk(value[key])
        elif kind in (list, tuple):
            sha.update(b"%s %d\n" % (kind.__name__.encode(), len(value)))
            for item in value:
                walk(item)
        elif issubclass(kind, torch.Tensor):
            if value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {value.nbytes} bytes is larger than its storage.")
            sha.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
            value = value.detach().cpu().contiguous().reshape(-1)
            sha.update(value.view(torch.uint8).numpy())
        elif kind in (str, int, float, bool, type(None)):
            text = struct.pack("<d", value) if kind is float else str(value).encode()
            sha.update(b"%s %d\n" % (kind.__name__.encode(), len(text)) + text)
        else:
            raise ValueError(f"a checkpoint holds primitives and tensors only, not {kind}.")

    walk({key: value for key, value in record.items() if key != "digest"})
    return sha.hexdigest()


def replace_file(path, write):
    "Write beside `path`, then rename: a kill at any moment leaves the old file or the new, whole."
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # always that: the next run's, after a kill
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]}); an older file "
                      f"of that name is still whole.") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(path, kind, model, tokenizer, meta, state=None, dtype=None):
    """
    Write `model` ("policy" or "reward"), and `meta` as readable JSON beside it. `tokenizer` is
    {"name", "fingerprint"}; `state` is what resuming needs; `dtype` stores the weights smaller.
    """
    if kind not in MADE_BY:
        raise ValueError(f"kind={kind!r} is not one of {tuple(MADE_BY)}.")
    path, model = Path(path), getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    # single numbers (shift, scale) keep their precision
    weights = {name: value.detach().to("cpu", dtype if dtype and value.dim() else value.dtype)
               for name, value in model.state_dict().items()}
    record = {"format": FORMAT, "kind": kind, "model": asdict(model.config), "weights": weights,
              "tokenizer": tokenizer, "meta": meta}
    if state is not None:
        record["state"] = state
    record["digest"] = digest(record)
    readable = json.dumps(meta, indent=2, default=str).encode()

    def write(file):
        torch.save(record, file)
        file.flush()
        # There was room for the weights; they get their name last. After a kill between the two,
        # what goes on from the old ones writes both again.
        replace_file(path.with_suffix(".json"), lambda facts: facts.write(readable))

    replace_file(path, write)


def load(path, kind, device="cpu", tokenizer=None, unfinished=False):
    """
    (module, record) from a checkpoint; weights come back as fp32 parameters. Whatever is wrong
    with the file, and `tokenizer`, a fingerprint, that is not its own, is said in one sentence.
    What an interrupted run saved is refused, unless `unfinished`: it is no model to build on.
    A policy may also be a pretrained model, by the hub's name or a folder: see load_pretrained.
    """
    from data import weights

    if kind == "policy" and weights.is_pretrained(path):
        model, its = load_pretrained(path, device)
        if tokenizer not in (None, its.fingerprint):
            raise ValueError(f"{path} has another tokenizer than the model it is to go with.")
        return model, {"tokenizer": its.record, "meta": {"stage": "pretrained", "finished": True},
                       "digest": digest({"weights": model.state_dict()})}
    path, remedy = Path(path), f"make a {kind} with `{MADE_BY[kind]}`."
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {remedy}")
    try:
        with zipfile.ZipFile(path) as parts:  # torch packs nothing: what would grow is not its own
            if sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
                raise ValueError("more inside than outside")
        # weights_only: nothing in a file can run code
        record = torch.load(path, map_location="cpu", weights_only=True)
        actual = digest(record)
    except Exception as error:  # truncated, altered or foreign: torch has a dozen ways to say so
        raise ValueError(f"{path} is damaged or not a checkpoint; {remedy}") from error
    if not {"format", "kind", "model", "weights", "tokenizer", "meta", "digest"} <= record.keys():
        raise ValueError(f"{path} is not a checkpoint of this project; {remedy}")
    if record["format"] != FORMAT:
        raise ValueError(f"{path} has format {record['format']}, and this version reads format "
                         f"{FORMAT}; {remedy}")
    if record["digest"] != actual:
        raise ValueError(f"{path} was altered after it was written; {remedy}")
    if record["kind"] != kind:
        raise ValueError(f"{path} is a {record['kind']}, not a {kind}; {remedy}")
    if tokenizer is not None and record["tokenizer"]["fingerprint"] != tokenizer:
        raise ValueError(f"{path} was made with another tokenizer ({record['tokenizer']['name']}); "
                         f"{remedy}")
    if not unfinished and not record["meta"].get("finished", True):
        raise ValueError(f"{path} was saved at step {record['meta']['step']} of a run that was "
                         f"interrupted: finish it with the same command and --resume.")
    weights = record.pop("weights")
    make = Transformer if kind == "policy" else ScalarModel
    try:
        config = ModelConfig(**record["model"])
        with torch.device("meta"):  # shapes without memory
            model = make(config)
        if ({name: value.shape for name, value in model.state_dict().items()}
                != {name: value.shape for name, value in weights.items()}):
            raise ValueError("other shapes")
    except Exception as error:
        raise ValueError(f"{path} holds weights of another network than it says; "
                         f"{remedy}") from error
    large = sum(value.numel() for value in weights.values()) > LARGE
    if large:  # takes over what was read, instead of drawing and holding as much again
        weights = {name: weights.pop(name).float() for name in list(weights)}
        if config.positions == "rotary":
            transformer(model).table = rope_table(config)
    else:
        model = make(config)
    model.load_state_dict(weights, assign=large)  # else copies into fp32 whatever it was stored in
    return model.to(device), record


# ---- everybody else's files ----------------------------------------------------------------------


def load_pretrained(name_or_folder, device="cpu", dtype=torch.float32, prompt_tokens=224,
                    response_tokens=48):
    """
    (Transformer, Tokenizer) from a local folder or a name of the Hugging Face hub: GPT-2, OPT,
    LLaMA 1 to 3 and Qwen2, in the format of `transformers`. The weights are read one by one into
    their places, of `dtype` on `device`: never is more than one file held beside the model.
    Whatever is wrong with the files is said in one sentence, and nothing is half loaded.
    """
    from data import weights

    folder = weights.find(name_or_folder)
    family, settings = weights.settings(folder)
    tokenizer = weights.tokenizer(name_or_folder, prompt_tokens, response_tokens)
    settings["eos"] = tuple(dict.fromkeys((tokenizer.eos, *settings["eos"])))
    with torch.device("meta"):  # shapes without memory
        model = Transformer(ModelConfig(**settings))
    weights.fill(model, family, folder, device, dtype)
    if model.position is None:
        model.table = rope_table(model.config).to(device, dtype)
    return model, tokenizer


def export(path, folder):
    "Write a checkpoint's policy and its tokeniser to a new folder that `transformers` loads alone."
    from data import weights

    model, record = load(path, "policy")
    weights.write(model, record["tokenizer"], folder)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python model.py", allow_abbrev=False)
    parser.add_argument("command", choices=["export"])
    parser.add_argument("checkpoint", help="a policy: sft.pt or ppo.pt of a run folder")
    parser.add_argument("folder", help="a new folder for config.json, model.safetensors and so on")
    args = parser.parse_args(argv)
    try:
        export(args.checkpoint, args.folder)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {args.folder}: AutoModelForCausalLM.from_pretrained({args.folder!r}) loads it")


if __name__ == "__main__":
    main()
