"""
What a GPU wants written otherwise. Tests hold each equal to the plain form in model.py.

Decoding: a step is recorded once, and launched as one CUDA graph (`model.decode_rows`).
The output matrix: bf16 numbers multiplied as such, and summed and kept in fp32 (`model.logits`).
And how much of what it can do a run makes use of: `peak` and `count`.
"""

import time

import torch

import model as m


def multiply(a, b):
    "a @ b of bf16, in fp32."
    return torch.mm(a, b, out_dtype=torch.float32)


class Product(torch.autograd.Function):
    """hidden @ matrix.T, (rows, C), (V, C) of bf16 -> (rows, V) of fp32. The same numbers as after
    hidden.float() and matrix.float(), which multiply a fifth as fast and take twice the memory."""

    @staticmethod
    def forward(ctx, hidden, matrix):
        ctx.save_for_backward(hidden, matrix)
        return multiply(hidden, matrix.T)

    @staticmethod
    def backward(ctx, grad):
        hidden, matrix = ctx.saved_tensors
        grad = grad.to(hidden.dtype)  # as every other layer's gradient
        return grad @ matrix, grad.T @ hidden if ctx.needs_input_grad[1] else None


def product(hidden, matrix):
    "(..., C), (V, C) -> (..., V) in fp32."
    if (hidden.device.type not in m.RECORDED or hidden.dtype != torch.bfloat16
            or not hasattr(torch.ops.aten.mm, "dtype")):  # before torch 2.8
        return torch.nn.functional.linear(hidden.float(), matrix.float())
    return Product.apply(hidden.flatten(0, -2), matrix).view(*hidden.shape[:-1], -1)


def peak(device, size=8192, repeats=10):
    "Operations a second that large products reach here, in what networks compute in."
    from data import networks

    draw = torch.Generator(device).manual_seed(0)  # nothing else is drawn from it
    a, b = (torch.randn(size, size, generator=draw, device=device).to(networks.precision(device))
            for _ in range(2))
    for n in (1, repeats):  # once to warm up
        wait(device)
        began = time.time()
        for _ in range(n):
            a @ b
        wait(device)
    return repeats * 2 * size ** 3 / (time.time() - began)


def wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def count(network, done):
    """From now on, whenever a network reads rows, add to done[0] the operations of its blocks'
    products: two for each weight and token, and four more to learn. (Roughly: padding counts, too,
    and attention, logits, sampling and what is computed a second time do not.)"""
    network = getattr(network, "trunk", network)
    if not isinstance(network, m.Transformer):
        return
    sizes = [sum(p.numel() for p in block.parameters() if p.dim() > 1) for block in network.blocks]
    frozen, trained = sum(sizes[:network.frozen]), sum(sizes[network.frozen:])

    def hook(network, args, kwargs):  # (ids, is_real, bottom, ...)
        bottom = args[2] if len(args) > 2 else kwargs.get("bottom")
        read = trained + (frozen if bottom is None else 0)
        learned = trained if torch.is_grad_enabled() else 0
        done[0] += args[0].numel() * (2 * read + 4 * learned)
    network.register_forward_pre_hook(hook, with_kwargs=True)


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
    """`decode_rows` for a GPU, where its loop would wait for Python: the step is recorded once, and
    looked at every `check_every` tokens, because looking makes the CPU wait for the GPU."""
    max_new, width = uniform.shape[1], max(map(len, prompts))
    hidden, place, cache, is_key = m.read_prompts(model, prompts, max_new)
    owner = torch.tensor(which, device=hidden.device)  # each row has a copy of its prompt's part
    hidden, place, is_key = hidden[owner], place[owner], is_key[owner]
    if which != list(range(len(prompts))):  # large: not twice without need
        cache = cache[:, :, owner]
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
        place.add_(1)
        column = width - 1 + n
        is_visible = is_key & (columns <= column)
        pick(model.decode(token[:, None], place, is_visible, cache, column))

    pick(hidden)
    again = None
    for count in range(1, max_new + 1):
        if count == max_new or count % check_every == 0:
            m.check_logits(is_finite.all(), int(is_finite.int().argmin()))
            if count == max_new or done.all():
                break
            if 2 * done.sum() >= len(done):
                keep, again = ~done, None
                rows, token, place, done = rows[keep], token[keep], place[keep], done[keep]
                cache, is_key = cache[:, :, keep], is_key[keep]
        if again is None:
            again = recorded(step)
        else:
            again()
    return out
