"""
Sampling as a GPU wants it: a step of decoding is recorded once, and launched as one CUDA graph.

It is `model.decode_rows` otherwise written, and a test holds the two equal.
"""

import torch

import model as m


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


def decode_recorded(model, prompts, which, temperature, uniform, min_p=0.0, check_every=16):
    """
    `decode_rows` for a GPU, where its loop would wait for Python: the step is recorded once, and
    looked at every `check_every` tokens, because looking makes the CPU wait for the GPU.
    """
    max_new, width = uniform.shape[1], max(map(len, prompts))
    hidden, position, cache, is_key = m.read_prompts(model, prompts, which, max_new)
    cache[..., width:, :] = 0  # attention multiplies what is to come by 0: it must be a number
    matrix, eos = model.matrix(), torch.tensor(model.config.eos, device=hidden.device)
    rows = torch.arange(len(which), device=hidden.device)
    token, done = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    columns = torch.arange(width + max_new, device=hidden.device)  # (S,)
    n = torch.zeros(1, dtype=torch.long, device=hidden.device)  # tokens so far
    is_finite = torch.ones(max_new, dtype=torch.bool, device=hidden.device)
    out = torch.zeros(len(which), max_new, dtype=torch.long, device=hidden.device)

    def pick(hidden):  # the next token of every row, (rows, C)
        logits = model.logits(hidden, matrix)  # (rows, V)
        token.copy_(m.choose(logits, temperature, uniform[rows, n], min_p))
        out[rows, n] = token
        done.logical_or_((token[:, None] == eos).any(1))
        is_finite[n] = logits.sum().isfinite()
        n.add_(1)

    def step():
        position.add_(1)
        column = width - 1 + n
        is_visible = is_key & (columns <= column)
        pick(model.decode(token[:, None], position, is_visible, cache, column))

    pick(hidden)
    again = None
    for count in range(1, max_new + 1):
        if count == max_new or count % check_every == 0:
            m.check_logits(is_finite.all(), int(is_finite.int().argmin()))
            if count == max_new or done.all():
                break
            if 2 * done.sum() >= len(done):
                keep, again = ~done, None
                rows, token, position, done = rows[keep], token[keep], position[keep], done[keep]
                cache, is_key = cache[:, :, keep], is_key[keep]
        if again is None:
            again = recorded(step)
        else:
            again()
    return out
