"""
Attention while several responses to a prompt are sampled (model.decode_rows).

The keys and values of a prompt are kept once, not once for each of its responses, and all of these
look at them in one product: Sec. 3, Juravsky et al. 2024, arXiv:2402.05099. Sixteen responses to a
prompt of 60 tokens take two thirds of the time, of 120 tokens hardly more than half.
"""

from functools import partial

import torch

import model as m


def attention_to(prompt, is_key, owner, own):
    """
    What `Transformer.decode` takes for its cache: of each layer the attention of rows' new tokens.

    `prompt` (L, 2, B, Hkv, P, D) holds the prompts' keys and values, `is_key` (B, 1, 1, P) which of
    them are no padding; `owner` (rows,) which prompt a row follows, and `own` (L, 2, rows, Hkv, S,
    D) has room for the keys and values of its S new tokens.
    """
    hidden = torch.zeros_like(is_key, dtype=prompt.dtype).masked_fill(~is_key, -torch.inf)
    order = owner.argsort(stable=True)
    slot = torch.empty_like(owner)  # how many rows of its prompt stand before it
    slot[order] = torch.arange(len(order), device=owner.device) - torch.searchsorted(
        owner[order], owner[order])
    return [partial(attend, prompt=one, hidden=hidden, owner=owner, slot=slot, own=two)
            for one, two in zip(prompt, own)]


def attend(q, k, v, n, prompt, hidden, owner, slot, own):
    """Attention of one layer, of each row's n-th new token, from 0, to its prompt and to what came
    after it: queries, keys, values (rows, H or Hkv, 1, D) -> (rows, H, 1, D). The keys and values
    are kept in `own`. A prompt's rows have its `slot`s 0, 1, ..., G - 1; some have no row."""
    own[0, :, :, n:n + 1], own[1, :, :, n:n + 1] = k, v
    (B, Hkv, P, D), rows, G = prompt.shape[1:], len(q), int(slot.max()) + 1
    q = q.reshape(rows, Hkv, -1, D) * D ** -0.5  # (rows, Hkv, H / Hkv, D)
    together = q.new_zeros(B, Hkv, G, q.shape[2], D)
    together[owner, :, slot] = q
    scores = together.flatten(2, 3) @ prompt[0].mT + hidden  # (B, Hkv, G * H / Hkv, P)
    scores = scores.view(*together.shape[:-1], P)[owner, :, slot]  # (rows, Hkv, H / Hkv, P)
    scores = torch.cat([scores, q @ own[0, :, :, :n + 1].mT], -1)
    weights = m.at_least_fp32(scores).softmax(-1).to(q.dtype)
    of_prompt = q.new_zeros(*together.shape[:-1], P)
    of_prompt[owner, :, slot] = weights[..., :P]
    y = (of_prompt.flatten(2, 3) @ prompt[1]).view(together.shape)[owner, :, slot]
    y = y + weights[..., P:] @ own[1, :, :, :n + 1]  # (rows, Hkv, H / Hkv, D)
    return y.view(rows, -1, 1, D)
