"""
model.py - tensors: one transformer, and what is sampled from it.

A language model is a function from token ids to a distribution over the next id. Everything in
this project is one network used in four ways: as a policy (`generate`), as a measure of how likely
a given response is (`logprobs`), as a judge or a value function (`ScalarModel`, the same layers
with one number per position instead of V logits), and as a frozen bottom that all of them share
(data/networks.py). GPT-2, OPT and LLaMA are the same layers with other settings.

Axes: B rows, T positions, R response positions, C channels, H heads, D head width (C / H),
V vocabulary, S cache columns. Nothing here knows about text, rewards or PPO.
"""

import math
from dataclasses import dataclass

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


def take(x, columns):
    "What x (B, T, C) holds in these columns, (B, R) -> (B, R, C)."
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


def make_norm(config):
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.channels, eps=config.norm_eps)


def rope_table(config):
    """Cosines and sines of every position's angles (2, context, D), the first half of the sines
    negated. LLaMA 3.1 was trained on a short context and stretched: waves that turn fewer than
    `low` times in that context are slowed by `factor`, those that turn more than `high` times are
    left alone, and in between it blends: the rule of the code released with arXiv:2407.21783"""
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
    """Turn channel pair (i, i + D/2) by angle position * theta^(-2i/D), so that a query-key product
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
        if callable(cache):  # it keeps keys and values in another way: data/decoding.py
            return self.out(cache(q, k, v, column).reshape(B, T, C))
        if torch.is_tensor(column):  # (1,): all of the cache, of which `is_visible` hides the rest
            k, v = (held.index_copy_(2, column, ours) for held, ours in zip(cache, (k, v)))
        elif cache is not None:  # (2, B, Hkv, S, D), empty so far: keep ours
            cache[0, :, :, :T], cache[1, :, :, :T] = k, v
        shared = self.heads // self.kv_heads  # query heads that are served by the same key head
        if T == 1:  # as so many queries of that head, so that the cache is not copied
            q = q.reshape(B, self.kv_heads, shared, self.width)
        elif shared > 1:
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        # no mask on right-padded rows, so that the fused causal kernels stay eligible
        is_causal = is_visible is None and T > 1
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=is_visible, is_causal=is_causal)
        return self.out((y if T == 1 else y.transpose(1, 2)).reshape(B, T, C))


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

    def forward(self, x, rotation, is_visible, columns=None, *cache):
        "(B, T, C) -> (B, T, C), or of these `columns` (B, R) only, (B, R, C)."
        where = (rotation, is_visible, *cache)
        if self.norm_first:
            x = x + self.attention(self.norm1(x), *where)
            x = x if columns is None else take(x, columns)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, *where))
        x = x if columns is None else take(x, columns)
        return self.norm2(x + self.mlp(x))


class Transformer(nn.Module):
    def __init__(self, config, lm_head=True):
        super().__init__()
        self.config = config
        self.frozen = 0  # how many blocks `freeze` has frozen
        self.precision = None  # what it computes in, if not in that of its weights: see `to_device`
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
        Every token's place, which is how many of its own text stand before it, (T,) or (B, T), and
        which keys it may see (None: all before it): those before it in its own segment and in
        segment 0, the prompt, which the others all follow. Segment -1 is padding: left-padded rows
        count from their first real token. A padding token sees itself, because a softmax over no
        keys at all is NaN, and NaN * 0 is NaN further down.
        """
        T, context = ids.shape[1], self.config.context
        if is_real is None and segment is None:
            longest, place, is_visible = T, torch.arange(T, device=ids.device), None
        else:
            if segment is None:
                segment = is_real.long() - 1  # (B, T)
            causal = torch.ones(T, T, dtype=torch.bool, device=ids.device).tril()
            own = causal & (segment[:, :, None] == segment[:, None, :])  # (B, T, T)
            is_visible = (own | causal & (segment == 0)[:, None])[:, None]  # (B, 1, T, T)
            prompt = (segment == 0).sum(1, keepdim=True)  # (B, 1)
            place = (own.sum(-1) - 1 + prompt * (segment > 0)) * (segment >= 0)  # (B, T)
            longest = int(place.max()) + 1
        if longest > context:
            raise ValueError(f"a row of {longest} ids does not fit the model's context of "
                             f"{context}; cut the prompt or take a model with a longer context.")
        return place, is_visible

    def embeddings(self, ids, place):
        x = self.embed(ids.where(ids < self.config.vocab_size, 0))  # PAD is fed as 0: (B, T, C)
        x = x.to(self.precision or x.dtype)
        x = x if self.project_in is None else self.run(self.project_in, x)
        return x if self.position is None else x + self.position(place).to(x.dtype)

    def rotation(self, place):
        return None if self.position is not None else self.table[:, place].unsqueeze(-2)

    def run(self, module, x, *where):
        "module(x, *where), its fp32 weights rounded here, where they are used, to x's precision."
        if self.precision is None:
            return module(x, *where)
        rounded = {name: p.to(x.dtype) for name, p in module.named_parameters()}
        return functional_call(module, rounded, (x, *where))

    def run_block(self, block, x, *where):
        "A block as above; if told to `recompute`, only its input is kept for the backward pass."
        if not (self.recompute and torch.is_grad_enabled()):
            return self.run(block, x, *where)
        return checkpoint(self.run, block, x, *where, use_reentrant=False, preserve_rng_state=False)

    def forward(self, ids, is_real=None, bottom=None, segment=None, columns=None):
        """Final hidden states (B, T, C), or those of these `columns` (B, R) only, (B, R, C):
        the last MLP is then computed nowhere else. `is_real` None: rows are right-padded, and
        causal attention keeps real tokens from ever seeing the padding. `is_real` (B, T): rows are
        left-padded. `segment` (B, T): each row is a prompt and several responses to it, as by
        data.join_groups.
        `bottom`: what `frozen_output` gave for these rows, so that only the top layers run."""
        place, is_visible = self.layout(ids, is_real, segment)
        x = self.embeddings(ids, place) if bottom is None else bottom
        rotation = self.rotation(place)
        blocks = self.blocks[0 if bottom is None else self.frozen:]
        for block in blocks:
            x = self.run_block(block, x, rotation, is_visible,
                               columns if block is blocks[-1] else None)
        if columns is not None and not blocks:  # all frozen
            x = take(x, columns)
        return self.run(self.norm, x)

    def matrix(self):
        "The output matrix (V, width), rounded as all weights are."
        weight = self.embed.weight if self.lm_head is None else self.lm_head.weight
        return weight if self.precision is None else weight.to(self.precision)

    def logits(self, hidden, matrix=None):
        hidden = hidden if self.project_out is None else self.run(self.project_out, hidden)
        matrix = self.matrix() if matrix is None else matrix
        if self.precision is None:
            return F.linear(hidden, matrix)
        from data.gpu import product  # in fp32: a logit near 20 in bf16 would be off by .06 nats

        return product(hidden, matrix)

    @torch.no_grad()
    def frozen_output(self, ids, is_real=None, segment=None):
        "What the frozen layers make of `ids`: compute it once, pass it as `bottom` many times."
        if self.embed.weight.requires_grad:
            raise ValueError("nothing is frozen, so there is no fixed trunk to compute once.")
        place, is_visible = self.layout(ids, is_real, segment)
        x, rotation = self.embeddings(ids, place), self.rotation(place)
        for block in self.blocks[:self.frozen]:
            x = self.run(block, x, rotation, is_visible)
        return x

    def new_cache(self, rows, columns):
        config = self.config
        shape = (config.layers, 2, rows, config.kv_heads, columns, config.channels // config.heads)
        return self.embed.weight.new_empty(shape)

    def decode(self, ids, place, is_visible, cache, column):
        """Keep the keys and values of `ids` (B, T) in the cache; the last one's final hidden state
        (B, C). The cache is empty; or a function (data/decoding.py), of this `column`; or, where
        `column` is a tensor (1,), filled at that place (data/gpu.py)."""
        x, rotation = self.embeddings(ids, place), self.rotation(place)
        B, T = ids.shape
        last = None if T == 1 else ids.new_full((B, 1), T - 1)
        for block, part in zip(self.blocks, cache):
            columns = last if block is self.blocks[-1] else None
            x = block(x, rotation, is_visible, columns, part, column)
        return self.norm(x[:, -1])


class ScalarModel(nn.Module):
    """One number per position: the reward model, read at the last response token, and the value
    network, read everywhere. Output = (head(hidden) - shift) / scale; reward.py sets the two
    numbers so that references have mean 0 and standard deviation 1."""

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

    def forward(self, ids, is_real=None, bottom=None, segment=None, columns=None):
        return self.read(self.trunk(ids, is_real, bottom, segment, columns))

    def read(self, hidden):
        hidden = at_least_fp32(hidden)  # (B, T, C)
        with torch.autocast(hidden.device.type, enabled=False):  # eight bits are not a score
            weight, bias = self.head.weight.to(hidden.dtype), self.head.bias.to(hidden.dtype)
            return (F.linear(hidden, weight, bias).squeeze(-1) - self.shift) / self.scale  # (B, T)


# ---- how likely a response is --------------------------------------------------------------------

LOGITS = 2**25  # numbers of (rows, V) at once: 680 rows of 49,152 tokens, 128 MiB in fp32


def logprobs(model, ids, positions, temperature=1.0, bottom=None, hidden=None, entropy=False,
             chunk=4096):
    """log pi(token at each of `positions` | all before it), (B, T), (B, R) -> (B, R); rows of `ids`
    are right-padded, and positions that fall in the padding give numbers that the caller masks.
    With `entropy` also the exact entropy, in nats, of each of those distributions. `hidden`
    (B, R, C) are the states that predict these tokens, from a caller who had another use for them.

    Logits are the memory: 64 rows x 600 x 50,257 in fp32 are 7.7 GB. So only the R positions reach
    the output matrix, `chunk` at a time, of a large vocabulary fewer, and where they are many, each
    once (padding repeats the one before it). Backward computes each chunk's logits again."""
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: log-probabilities need one above 0.")
    positions = positions.clamp(1, ids.shape[1] - 1)
    if hidden is None:  # the state that predicts the token at t is the one at t - 1
        hidden = model(ids, bottom=bottom, columns=positions - 1)  # (B, R, C)
    tokens = ids.gather(1, positions)  # (B, R)
    tokens = tokens.where(tokens < model.config.vocab_size, 0)

    def score(hidden, tokens):  # (rows, C), (rows,) -> (rows,), and with `entropy` (rows,)
        logits = at_least_fp32(model.logits(hidden))
        logp = F.log_softmax(logits if temperature == 1 else logits / temperature, dim=-1)
        found = logp.gather(1, tokens[:, None]).squeeze(1)
        return (found, -(logp.exp() * logp).sum(-1)) if entropy else (found,)

    most, kept, back = max(LOGITS // model.config.vocab_size, 1), slice(None), slice(None)
    if tokens.numel() > most:
        kept = positions.diff(dim=1, prepend=positions[:, :1] - 1).flatten() != 0  # (B * R,)
        back = kept.cumsum(0) - 1  # where each of them is among those kept
    found = in_chunks(score, min(chunk, most), hidden.flatten(0, 1)[kept], tokens.flatten()[kept])
    logp, *spread = (x[back].view(positions.shape) for x in found)  # (B, R)
    return (logp, *spread) if entropy else logp


def in_chunks(f, size, *tensors):
    "f(*tensors), tensors both, of `size` rows at a time; backward computes each part once more."
    parts = list(zip(*(x.split(size) for x in tensors)))
    if len(parts) > 1 and torch.is_grad_enabled():
        found = [checkpoint(f, *part, use_reentrant=False, preserve_rng_state=False)
                 for part in parts]
    else:
        found = [f(*part) for part in parts]
    return [torch.cat(column) for column in zip(*found)]


# ---- sampling ------------------------------------------------------------------------------------

RECORDED = ("cuda",)  # devices on which Python takes longer to start a kernel than it runs
FLOAT64 = {"mps": "cpu"}  # devices that have none, and where it is computed instead
# bytes of keys and values that are decoded at once; on a GPU 15 rows of 1,072 tokens at 7B
CACHE = {"cpu": 2**29, "cuda": 2**33}
COPY = 16  # products that take as long as to copy one number of keys and values, on two CPUs


def cache_bytes(model, columns):
    "Size of one row's keys and values."
    width = model.config.channels // model.config.heads * model.config.kv_heads
    return 2 * model.config.layers * width * columns * model.embed.weight.element_size()


def choose(logits, temperature, uniform, min_p=0.0):
    """The next token of every row, (rows, V), (rows,) -> (rows,): the first one at which the summed
    probability passes the row's uniform number. One random number per token instead of the V that
    the Gumbel trick needs, and, unlike torch.multinomial, no wait for the GPU.

    A token less than `min_p` times as likely as the likeliest is never chosen, as the model has it
    before the temperature (Nguyen et al. 2025, arXiv:2407.01082): slips go, real choices stay."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = at_least_fp32(logits)
    if min_p:
        likeliest = logits.amax(-1, keepdim=True)
        logits = logits.masked_fill(logits < likeliest + math.log(min_p), -math.inf)
    probs = F.softmax(logits / temperature, dim=-1).to(uniform.device)
    cdf = probs.cumsum(-1, dtype=torch.float64)  # in fp32 a rare token would be rounded away
    token = torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).squeeze(1)
    return token.clamp(max=logits.shape[-1] - 1).to(logits.device)


def read_prompts(model, prompts, max_new_tokens):
    """
    Read every prompt, the longest first -> the state that predicts the first token of its responses
    (B, C), its place (B, 1), the cache (L, 2, B, Hkv, S, D) with room for `max_new_tokens` more,
    and which columns are not padding (B, 1, 1, S).
    """
    from data.networks import rows_at_once

    device, pad, width = model.embed.weight.device, model.config.vocab_size, max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)  # (B, P)
    place, is_visible = model.layout(ids, ids < pad)
    cache, states = model.new_cache(len(prompts), width + max_new_tokens), []
    size = rows_at_once(model, len(prompts))
    for part in (slice(i, i + size) for i in range(0, len(prompts), size)):
        start = width - max(map(len, prompts[part]))  # what is padding in all rows is not read
        cache[:, :, part, :, :start] = 0  # but will be multiplied by 0: it must be a number
        states.append(model.decode(ids[part, start:], place[part, start:],
                                   is_visible[part, :, start:, start:],
                                   cache[:, :, part, :, start:], 0))
    is_key = F.pad(ids < pad, (0, max_new_tokens), value=True)[:, None, None]
    return torch.cat(states), place[:, -1:], cache, is_key


def decode_rows(model, prompts, which, temperature, uniform, min_p=0.0):
    """
    Responses to prompts[which[row]], as (rows, max_new_tokens) ids; what follows a row's first EOS
    is arbitrary. `uniform` holds every row's random numbers, so no row depends on its neighbours.
    """
    from data.decoding import attention_to

    max_new = uniform.shape[1]
    hidden, place, prompt, is_key = read_prompts(model, prompts, 0)
    owner = torch.tensor(which, device=hidden.device)  # which prompt a row follows
    hidden, place, own = hidden[owner], place[owner], model.new_cache(len(which), max_new)
    attention = attention_to(prompt, is_key, owner, own)
    eos = torch.tensor(model.config.eos, dtype=torch.long, device=hidden.device)
    matrix = model.matrix()  # once, not once per token
    weights = sum(p.numel() for p in model.parameters())  # about as many products a row and token
    rows = torch.arange(len(which), device=hidden.device)  # the rows still decoded
    done = torch.zeros_like(rows, dtype=torch.bool)
    out = torch.zeros(len(which), max_new, dtype=torch.long, device=hidden.device)
    for n in range(max_new):
        logits = model.logits(hidden, matrix)  # (rows, V)
        check_logits(logits.sum().isfinite(), n)
        token = choose(logits, temperature, uniform[rows.to(uniform.device), n], min_p)  # (rows,)
        out[rows, n] = token
        done = done | (token[:, None] == eos).any(1)
        if n == max_new - 1 or done.all():
            break
        if done.sum() * weights >= COPY * (~done).sum() * own[:, :, 0].numel():  # go on without
            keep = ~done
            rows, token, place, done = rows[keep], token[keep], place[keep], done[keep]
            owner, own = owner[keep], own[:, :, keep]
            attention = attention_to(prompt, is_key, owner, own)
        place = place + 1
        hidden = model.decode(token[:, None], place, None, attention, n)
    return out


def check_logits(is_finite, n):
    if not is_finite:
        raise ValueError(f"the logits of sampled token {n + 1} are not finite, so the weights are "
                         f"broken: lower the learning rate.")


@torch.no_grad()
def generate(model, prompts, max_new_tokens, temperature=1.0, num_samples=1, seed=0,
             generator=None, batch=256, min_p=0.0):
    """Sample `num_samples` responses to each prompt: lists of ids in, len(prompts) * num_samples
    lists out, prompt by prompt, each with its EOS if it came to one. Temperature 0 is greedy; for
    `min_p` see `choose`.
    At most `batch` rows are decoded at a time, and fewer where their keys and values would take
    more than CACHE bytes; that changes the memory, not the random numbers."""
    from data.files import progress

    if model.precision is not None:
        from data.networks import frozen_copy

        model = frozen_copy(model, copied=False)  # round masters once, not once per token
    room = model.config.context - max_new_tokens
    if temperature < 0 or not 0 <= min_p <= 1 or min(max_new_tokens, num_samples, batch) < 1:
        raise ValueError(f"{temperature=} must not be negative, {min_p=} must be in 0 to 1, and "
                         f"{max_new_tokens=}, {num_samples=} and {batch=} must be at least 1.")
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= room:
            raise ValueError(f"prompt {i} has {len(prompt)} tokens; it must have 1 to {room}, to "
                             f"leave room for {max_new_tokens} new ones in a context of "
                             f"{model.config.context}.")
    if generator is None:
        generator = torch.Generator().manual_seed(seed)
    # all random numbers come first, one per token: row r gets the same ones in whatever company
    device = model.embed.weight.device
    uniform = torch.rand(
        len(prompts) * num_samples, max_new_tokens, dtype=torch.float64, generator=generator,
        device=generator.device).to(FLOAT64.get(device.type, device))
    eos, out = set(model.config.eos), [None] * len(uniform)
    decode = decode_rows
    if uniform.device.type in RECORDED:
        from data.gpu import decode_recorded as decode
    # rows of like length go together; the longest first, so that memory runs out now or never
    order = sorted(range(len(out)), key=lambda row: -len(prompts[row // num_samples]))
    longest = max(map(len, prompts), default=0)
    if decode is decode_rows:  # a prompt's keys and values are there once for all of its samples
        longest = -(-longest // num_samples)
    most = CACHE.get(uniform.device.type, CACHE["cpu"])
    batch = min(batch, max(most // cache_bytes(model, longest + max_new_tokens), 1))
    for i in progress(range(0, len(order), batch), "sample"):
        rows = order[i:i + batch]
        owners = {row // num_samples: None for row in rows}  # prompts in this batch, in order
        nth = {owner: n for n, owner in enumerate(owners)}
        tokens = decode(model, [list(prompts[owner]) for owner in owners],
                        [nth[row // num_samples] for row in rows], temperature, uniform[rows],
                        min_p)
        for row, response in zip(rows, tokens.tolist()):
            end = next((n for n, token in enumerate(response) if token in eos), len(response))
            out[row] = response[:end + 1]
    return out
