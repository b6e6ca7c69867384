"""
The rows and batches of token ids that are made of records: plain text, whatever it came from
(data/records.py). How text becomes ids is in data/tokenizer.py.
"""

import itertools

import torch

from .files import progress
from .records import *  # noqa: F403 (records, where they come from: part of this module)
from .tokenizer import Tokenizer, encode_prompt, encode_response  # noqa: F401 (likewise)


def join(prompts, responses, pad, device=None):
    """Prompts and responses, as lists of ids -> what every loss needs:

        ids          (B, T)  prompt + response, right-padded
        positions    (B, R)  where in `ids` each response token stands
        is_response  (B, R)  True on response tokens, False on padding

    Quantities of the response are gathered once by `positions`: nothing downstream counts prompt
    tokens. Padding repeats a valid position, safe to gather, then masked. ValueError for a prompt
    without tokens, after which nothing could be predicted."""
    if not all(map(len, prompts)):
        raise ValueError("every prompt needs at least one token")
    ids = pad_right([[*p, *r] for p, r in zip(prompts, responses, strict=True)], pad)  # (B, T)
    start = torch.tensor([len(p) for p in prompts]).view(-1, 1)  # (B, 1)
    length = torch.tensor([len(r) for r in responses]).view(-1, 1)  # (B, 1)
    step = torch.arange(max(map(len, responses), default=0))  # (R,)
    positions = torch.minimum(start + step, start + length - 1)  # (B, R)
    return ids.to(device), positions.to(device), (step < length).to(device)


def join_groups(prompts, groups, pad):
    """Prompts, each with several responses behind it, so that it is read once for all of them ->

        ids      (B, T)      prompt, response, response, ..., right-padded
        segment  (B, T)      0 in the prompt, k in its k-th response, -1 in padding
        ends     (N,), (N,)  row and column of the last token of each response, in order

    A prompt of three tokens with two responses, [4, 5, EOS] and [6, EOS], in a row of ten:

        column     0    1    2    3    4    5    6    7    8    9
        ids        1    2    3    4    5  EOS    6  EOS  PAD  PAD
        segment    0    0    0    1    1    1    2    2   -1   -1
        place      0    1    2    3    4    5    3    4              counted by the model
        ends                                *         *              where a score is read

    A token sees the prompt, and what is before it in its own segment: nothing of other responses.
    """
    ids = pad_right([sum(g, [*p]) for p, g in zip(prompts, groups, strict=True)], pad)  # (B, T)
    segment = pad_right([[0] * len(p) + [k for k, r in enumerate(g, 1) for _ in r]
                         for p, g in zip(prompts, groups)], -1)
    is_last = (segment > 0) & (segment != segment.roll(-1, dims=1))  # (B, T); a row begins with 0
    return ids, segment, is_last.nonzero().unbind(1)


def join_samples(prompts, groups, pad, device=None):
    """Prompts with as many responses each, N -> rows as by join_groups, and of each of their
    response tokens, response by response, what `join` says:

        ids, segment  (G, T)      segment is None for N = 1: these rows are those of `join`
        positions     (G, N * R)  where in `ids` it stands
        is_response   (G, N * R)
    """
    n = len(groups[0])
    owners = [p for p in prompts for _ in range(n)]
    ids, positions, is_response = join(owners, [r for group in groups for r in group], pad)
    segment = None
    if n > 1:
        ids, segment, _ = join_groups(prompts, groups, pad)
        lengths = is_response.sum(1).view(-1, n)  # (G, N)
        before = (lengths.cumsum(1) - lengths).view(-1, 1)  # (G * N, 1), of earlier responses
        positions, segment = positions + before, segment.to(device)
    flat = lambda x: x.reshape(len(prompts), -1).to(device)
    return ids.to(device), flat(positions), flat(is_response), segment


def join_comparisons(tokenizer, groups, device):
    """Comparisons, a list over prompts of lists, each prompt and response once -> ids, segment and
    ends as by join_groups, and pairs (comparisons, 2): the chosen and the rejected one's number."""
    answers, pairs, n = [], [], 0
    for group in groups:
        number = {}  # of each of the prompt's responses, the first chosen one first
        for row in group:
            pairs.append([n + number.setdefault(text, len(number))
                          for text in (row.chosen, row.rejected)])
        answers.append([tokenizer.response(text) for text in number])
        n += len(number)
    prompts = [tokenizer.prompt(group[0].prompt) for group in groups]
    ids, segment, ends = join_groups(prompts, answers, tokenizer.pad)
    return ids.to(device), segment.to(device), ends, torch.tensor(pairs, device=device)


def predicted_at(segment):
    """Where each token of rows made by `join_groups` is predicted: (B, T) -> (B, T), columns. That
    is one before it, but of a response's first token where the prompt ends, also if other responses
    stand between. (A row's very first token is not predicted at all.)"""
    column = torch.arange(segment.shape[1], device=segment.device)  # (T,)
    prompt = (segment == 0).sum(1, keepdim=True)  # (B, 1)
    is_first = segment != segment.roll(1, dims=1)  # (B, T)
    return torch.where(is_first, prompt, column) - 1


def pad_right(rows, pad):
    """Lists of ids -> LongTensor (B, T), filled up with `pad` on the right."""
    ids = torch.full((len(rows), max(map(len, rows), default=0)), pad)  # (B, T)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def batches(lengths, batch_size, generator=None):
    """Lengths of N items -> lists of at most `batch_size` indices that cover each item once.

    Rows of similar length share a batch, which costs B times its longest row. Sorting everything
    would make the same batches every epoch, so items are shuffled first and sorted only within
    pools of 50 batches. Without a `generator`, for evaluation, everything is sorted."""
    n, cut = len(lengths), []
    order, pool = range(n), max(n, 1)
    if generator is not None:
        order, pool = torch.randperm(n, generator=generator).tolist(), 50 * batch_size
    for i in range(0, n, pool):
        ordered = sorted(order[i : i + pool], key=lambda j: lengths[j])
        cut += [ordered[j : j + batch_size] for j in range(0, len(ordered), batch_size)]
    if generator is not None:
        cut = [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
    return cut


def distinct(prompts, responses):
    """N prompts and responses, as lists of ids -> the pairs that differ, in their order, and for
    each of the N which of them it is: what is computed of equal ones is computed once."""
    pairs = [(tuple(p), tuple(r)) for p, r in zip(prompts, responses, strict=True)]
    number = {pair: k for k, pair in enumerate(dict.fromkeys(pairs))}
    return [[*p] for p, _ in number], [[*r] for _, r in number], [number[pair] for pair in pairs]


TOGETHER = 16  # responses to a prompt that share a row, at most: a row has then a longest length


def shared_rows(prompts, responses, pad, batch_size=128, together=TOGETHER):
    """Yields (places, *join_groups): all responses, as lists of ids, about `batch_size` at a time.
    Up to `together` that stand next to each other and answer the same prompt share a row; `places`
    says which they are."""
    groups = []
    for i, prompt in enumerate(prompts):
        if not groups or prompt != prompts[i - 1] or len(groups[-1]) == together:
            groups.append([])
        groups[-1].append(i)
    lengths = [len(prompts[g[0]]) + sum(len(responses[i]) for i in g) for g in groups]
    size = max(batch_size // max(map(len, groups), default=1), 1)
    for index in progress(batches(lengths, size), "responses"):
        part = [groups[k] for k in index]
        yield [i for g in part for i in g], *join_groups(
            [prompts[g[0]] for g in part], [[responses[i] for i in g] for g in part], pad)


def epochs(lengths, batch_size, seed):
    """Yields batches of indices for ever, each epoch in an order of its own that `seed` decides."""
    for epoch in itertools.count():
        order = torch.Generator().manual_seed(100_003 * seed + epoch)
        # A smaller last batch would be a noisier step; but never drop the only one.
        whole = [b for b in batches(lengths, batch_size, order) if len(b) == batch_size]
        yield from whole or [list(range(len(lengths)))]
