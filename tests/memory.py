"""
What one step of each stage needs in memory, before it runs, and what it needed.

    python -m tests.memory --model llama-7b --freeze 0.8 --batch 256 --micro 8
    python -m tests.memory --model smollm2-135m --cpu --stage sft --batch 16 --micro 0
    python -m tests.memory --recipes      # large runs on one GPU: GB, and rough hours

The first prints every part in GB (10^9 bytes), with the phases that it is held in, and the sum of
each phase; then it runs two steps with random weights of that size and prints the peak of each
phase. Without a GPU a small model of the same style does that, by the sizes of all tensors that are
alive: what kernels take inside themselves, and what an allocator loses between tensors (CUDA's:
some 5 %), is in neither number. Where a kernel might do with less than another, the larger need is
planned for: RMSNorm before torch 2.9 keeps two fp32 copies for backward, fused ones do not.
With --cpu the plan is of a process in fp32, with what Python and torch take themselves.
"""

import argparse
import contextlib
import math
import random
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import model as m
import ppo
import reward
import sft
from data import collect, gpu, networks, optim, watch
from data.weights import STYLES

STAGES = {"sft": sft, "reward": reward, "ppo": ppo}
PHASES = ("sampling", "scoring", "update")  # scoring: of a rollout; in sft and reward, evaluation
STYLE = {"gpt2": "gpt2", "opt-1.3b": "opt", "opt-6.7b": "opt", "llama-7b": "llama",
         "smollm2-135m": "llama"}
SHAPES = {
    "gpt2": dict(vocab_size=50257, context=1024, layers=12, heads=12, channels=768, hidden=3072),
    "opt-1.3b": dict(vocab_size=50272, context=2048, layers=24, heads=32, channels=2048,
                     hidden=8192),
    "opt-6.7b": dict(vocab_size=50272, context=2048, layers=32, heads=32, channels=4096,
                     hidden=16384),
    "llama-7b": dict(vocab_size=32000, context=2048, layers=32, heads=32, channels=4096,
                     hidden=11008, tied=False),
    "smollm2-135m": dict(vocab_size=49152, context=8192, layers=30, heads=9, kv_heads=3,
                         channels=576, hidden=1536),
}
SMALL = dict(vocab_size=131, context=64, layers=5, heads=4, kv_heads=4, channels=64, hidden=176)
ANSWERS = 4  # different ones to a prompt that comparisons are of; up to data.TOGETHER in a row
PYTHON = 0.27e9  # bytes of a process, with torch and all that it imports, before there is a model
EVALUATED = 64  # rows of an evaluation: sft's batch; half of reward's, which holds pairs

# data/REAL.md's table of large runs, which says --micro 8 (reward: 4) where this does
TLDR = dict(
    sft=sft.Config(batch=128, steps=912, freeze=0.8, micro=8),
    reward=reward.Config(batch=16, steps=1451, freeze=0.8, micro=4),
    ppo=ppo.Config(batch=256, steps=750, minibatches=1, epochs=4, value="shared", freeze=0.8,
                   micro=8))
ALPACA = dict(
    sft=sft.Config(batch=128, steps=234, micro=8),
    reward=reward.Config(batch=16, steps=545, micro=4),
    ppo=ppo.Config(batch=512, steps=80, minibatches=2, epochs=2, micro=8))
RECIPES = [  # what, model, prompt and response tokens, stages
    ("GPT-2 on TL;DR", "gpt2", 512, 48, dict(
        sft=sft.Config(batch=32, steps=1000, micro=8), reward=reward.Config(micro=4),
        ppo=ppo.Config(micro=8))),
    ("OPT-1.3B on the length split", "opt-1.3b", 1024, 48,
     {**TLDR, "sft": replace(TLDR["sft"], steps=456)}),
    ("LLaMA-7B on TL;DR, `--freeze 0.8`", "llama-7b", 1024, 48, TLDR),
    ("LLaMA-7B on AlpacaFarm", "llama-7b", 192, 300, ALPACA),
    ("the same with `--freeze 0.8`", "llama-7b", 192, 300,
     {stage: replace(options, freeze=0.8) for stage, options in ALPACA.items()}),
]


def shape(name, **changes):
    "ModelConfig of a model by name; nothing ends a response, so that all are of full length."
    settings = {**STYLES[STYLE[name]], **SHAPES[name], **changes}
    return m.ModelConfig(**{"kv_heads": settings["heads"], **settings}, eos=())


# ---- the plan ------------------------------------------------------------------------------------


def count(model, trains):
    "Parameters of a model that train, or that do not."
    return sum(p.numel() for p in model.parameters() if p.requires_grad is trains)


def block_forward(c):
    "Numbers per token that are alive at once in a block without gradients: attention, MLP."
    q, kv = c.channels, c.channels // c.heads * c.kv_heads
    turned = 3 * (q + kv) if c.positions == "rotary" else 0  # x cos, the rolled x, their sum
    attention = 2 * c.channels + q + 2 * kv + max(turned, turned // 3 + q)
    gated = c.activation == "swiglu"
    return max(attention, 3 * c.channels + c.hidden * (3 + gated if gated else 2))


def block_saved(c, size):
    """Numbers per token that a block keeps for backward, of its attention and of its MLP, and those
    that backward adds in the MLP."""
    q, kv = c.channels, c.channels // c.heads * c.kv_heads
    attention = q + 2 * kv + (q + kv if c.positions == "rotary" else 0) + q
    saved, added = {"swiglu": (4, 2), "gelu": (2, 1), "relu": (1, 2)}[c.activation]
    norm = norm_saved(c, size)
    return norm + attention, norm + saved * c.hidden, c.channels + added * c.hidden


def norm_saved(c, size):
    "Input and output; RMSNorm's own steps besides, in fp32, where its input is then no longer."
    return c.channels * (2 if c.norm == "layer" else 3 if size == 4 else 5)


def logit_rows(c, rows):
    "How many of these rows of logits there are at once."
    return min(rows, 4096, max(m.LOGITS // c.vocab_size, 1))


def cached(c, rows, length, size):
    "How many rows are decoded at once, and the bytes of one row's keys and values."
    row = 2 * c.layers * c.kv_heads * (c.channels // c.heads) * length * size
    return min(256, rows, max(m.CACHE["cuda" if size == 2 else "cpu"] // row, 1)), row


def process(stage, c, options, prompt_tokens, response_tokens):
    "What of a CPU's memory is neither the networks' nor a step's, as `budget` gives it."
    rows = prompt_tokens + response_tokens * (2 if stage == "reward" else 1)
    rows *= 0 if stage == "ppo" or int(options.freeze * c.layers) == 0 else options.eval_size
    kept = min(4 * rows * c.channels, networks.KEPT)
    return [("Python, torch", PYTHON, PHASES),
            ("frozen layers' output, validation", kept, PHASES)]


def sampling(stage, policy, options, prompt_tokens, response_tokens, size):
    "[(rows decoded at once, bytes of their keys and values, of what is beside them)] of its calls."
    c, found = policy.config, []
    calls = {"sft": [(4, 1)], "reward": [(collect.SEEN, 1)], "ppo": [(watch.FOLLOWED, 1)]}[stage]
    if stage == "ppo":
        calls = [*calls, (options.batch, options.samples)]
    for rows, n in calls:
        rows, row = cached(c, rows, prompt_tokens + response_tokens, size)
        prompts = math.ceil(rows / n)
        read = networks.rows_at_once(policy, prompts)
        prefill = (read * prompt_tokens * (size * block_forward(c) + (1 + size) * prompt_tokens)
                   + (prompts - read) * prompt_tokens**2)  # masks are of all
        choice = rows * c.vocab_size * (4 + 12)  # logits, probabilities, their fp64 sums
        found.append((rows, rows * row, max(prefill, choice, rows * row // 2)))
    return found


def budget(stage, c, options, prompt_tokens, response_tokens, dtype=None, answers=ANSWERS):
    """
    [(part, bytes, phases that hold it)] of a step: the stage's name, a ModelConfig, the stage's
    Config, the length of prompts and responses, and the precision of `networks.to_device`, None for
    fp32. `answers`, for the reward model: different ones to a prompt.
    """
    size = dtype.itemsize if dtype else 4
    with networks.hollow():  # shapes without memory
        policy, scalar = m.Transformer(c), m.ScalarModel(c)
    networks.freeze(policy, options.freeze), networks.freeze(scalar, options.freeze)
    top, scalar_top, head = count(policy, True), count(scalar.trunk, True), c.channels + 1
    values = stage == "ppo" and options.baseline == "value"
    own = values and options.value == "reward"  # a value network of its own
    n = getattr(options, "samples", 1)  # responses that share a row with their prompt
    copies, trains = {
        "sft": ({"policy as it was, the top": size * top}, {"policy": top}),
        "reward": ({"policy, the top": size * top}, {"reward model": scalar_top + head}),
        "ppo": ({"reference policy, the top": size * top,
                 "reward model, the top": size * scalar_top + 4 * head},
                {"policy": top, "value network": scalar_top * own + head * values})}[stage]
    trained = sum(trains.values())
    parts = [("frozen weights, held once", size * count(policy, False), PHASES)]
    parts += [(f"{name}, what trains, fp32", 4 * n, PHASES) for name, n in trains.items()]
    parts += [(name, n, PHASES) for name, n in copies.items()]
    parts.append(("optimiser state, fp32", 8 * trained, PHASES))
    if c.positions == "rotary":  # of each network, and of the one that samples
        parts.append(("rotary tables", 5 * size * 2 * c.context * c.channels // c.heads, PHASES))

    # sampling: the cache of one chunk, and beside it a prompt's forward or a copy of a half of it
    rows, cache, beside = max(sampling(stage, policy, options, prompt_tokens, response_tokens,
                                       size), key=lambda call: call[1] + call[2])
    matrix = 4 * c.channels * c.vocab_size * bool(dtype)  # the output matrix as fp32
    copied = bool(dtype) and stage != "reward"  # whose policy is frozen
    parts += [
        ("rounded copy of what trains", size * top * copied, ("sampling",)),
        ("output matrix in fp32", matrix, ("sampling",)),
        (f"keys and values of {rows} rows", cache, ("sampling",)),
        ("a forward, or rows sorted out", beside, ("sampling",))]

    # scoring: of a rollout, all rows are kept, and `micro` are computed at a time
    width, blocks = c.channels, c.layers - policy.frozen
    if stage == "ppo":
        length, all_rows = prompt_tokens + n * response_tokens, options.batch // n
        trunk = size * width * all_rows * length if options.freeze else 0
        ids = (8 + 8 * (n > 1)) * all_rows * length  # and segments
        parts += [("rollout: ids and numbers", ids + 26 * options.batch * response_tokens,
                   PHASES[1:]),
                  ("bottom's output, once", trunk, PHASES[1:])]
    else:
        trunk = 0
    micro = options.micro and max(options.micro // n, 1)
    rows = micro or all_rows if stage == "ppo" else EVALUATED
    if stage == "reward":  # two responses in each
        rows = networks.rows_at_once(scalar, 2 * EVALUATED) // 2
    length = prompt_tokens + response_tokens * (2 if stage == "reward" else n)
    masks = (1 + size) * rows * length**2 if stage == "reward" or n > 1 else 0
    tokens, logits = rows * length, logit_rows(c, rows * n * response_tokens) * c.vocab_size
    logits *= stage != "reward"
    rounded = size * top // max(blocks, 1) * bool(dtype)  # one block's, about
    read = tokens if stage == "reward" else rows * n * response_tokens  # of the last states
    beside = width * 3 * read * (stage == "ppo")  # states of other networks
    work = max(size * (tokens * block_forward(c) + beside) + rounded + masks,
               size * (tokens + read) * width + 16 * logits + matrix)
    parts.append(("scoring's forward, logits", max(work, trunk), ("scoring",)))

    # update: what a micro-batch keeps for backward, and what backward adds
    rows = math.ceil(options.batch / n / getattr(options, "minibatches", 1))
    rows = min(micro or rows, rows)
    length = prompt_tokens + response_tokens * (answers if stage == "reward" else n)
    tokens, logits = rows * length, logit_rows(c, rows * n * response_tokens) * c.vocab_size
    read = tokens if stage == "reward" else rows * n * response_tokens  # the last MLP computes it
    attention, mlp, added = block_saved(c, size)
    kept = tokens * blocks * (width if options.micro else attention + mlp)  # micro: inputs alone
    if blocks and not options.micro:
        kept -= (tokens - read) * mlp
    kept += read * (norm_saved(c, size) + (2 * width if size == 2 else 0))  # the head's fp32 input
    start = tokens * width if options.freeze else 0
    largest = max(p.numel() for p in policy.parameters() if p.requires_grad)
    most = tokens if blocks > 1 else read  # that an MLP which trains computes
    again = tokens * attention + most * mlp if options.micro else 0
    masks = (1 + size) * rows * length**2 if stage == "reward" or n > 1 else 0
    one_chunk = logits == rows * n * response_tokens * c.vocab_size  # which is then kept
    parts += [
        ("gradients, fp32", 4 * trained, ("update",)),
        ("a gradient before it is added", 4 * largest, ("update",)),
        ("rounded weights in backward", bool(dtype) * size * (top + scalar_top * own) // (
            max(blocks, 1) if options.micro else 1), ("update",)),
        (f"kept of {rows} rows for backward",
         size * ((1 + own) * kept + start) + masks, ("update",)),
        ("a block, or logits, in backward", max(
            size * (again + most * added), (12 + 4 * one_chunk) * logits + matrix), ("update",))]
    return parts


def peaks(parts):
    return {phase: sum(n for _, n, phases in parts if phase in phases) for phase in PHASES}


# ---- the time ------------------------------------------------------------------------------------

# of an H100, and the share of each that is counted on
BF16, TF32, BANDWIDTH = 0.4 * 990e12, 0.4 * 495e12, 0.5 * 3.35e12  # FLOP/s, FLOP/s, bytes/s
LAUNCH = 1e-5  # seconds that Python needs for an operation; a block's forward is about 20


def seconds(stage, c, options, prompt_tokens, response_tokens):
    """
    {what: seconds} of a step on one GPU, computed: FLOP of prefill, scoring and training, bytes of
    decoding. Every row is counted at full length, as no text is; evaluations and saving are not.
    """
    with torch.device("meta"):
        policy = m.Transformer(c)
    length = prompt_tokens + response_tokens * (ANSWERS if stage == "reward" else 1)
    block = 2 * sum(p.numel() for p in policy.blocks[0].parameters()) + 4 * length * c.channels
    frozen = int(options.freeze * c.layers + 1e-9)
    bottom, top = frozen * block, (c.layers - frozen) * block  # FLOP per token of a forward
    matrix = 2 * c.vocab_size * c.channels * response_tokens  # FLOP per row
    learn = 4 if options.micro else 3  # forwards that a step costs: backward is two, and again one
    rows = options.batch
    launches = 20 * LAUNCH * math.ceil(rows / (options.micro or rows))  # of a layer
    if stage != "ppo":
        work = rows * length * (bottom + learn * top) / BF16
        return {"update": max(work, launches * (frozen + learn * (c.layers - frozen)))
                + rows * 4 * matrix / TF32}
    n = options.samples
    networks = 1 + (options.baseline == "value" and options.value == "reward")  # that train
    chunk, row = cached(c, rows, length, 2)
    step = 2 * sum(p.numel() for p in policy.blocks.parameters()) + chunk * row
    step += 4 * c.vocab_size * c.channels  # the output matrix, in fp32
    step = max(step / BANDWIDTH, 20 * c.layers * LAUNCH)
    length = prompt_tokens / n + response_tokens  # of what is computed, for each response
    return {"sampling": rows / n * prompt_tokens * (bottom + top) / BF16
            + math.ceil(rows / chunk) * response_tokens * step,
            "scoring": rows * (length * (bottom + (2 + networks) * top) / BF16 + 2 * matrix / TF32),
            "update": options.epochs * (learn * networks * max(
                rows * length * top / BF16, launches * (c.layers - frozen))
                + rows * 4 * matrix / TF32)}


def recipes():
    print("| run | SFT | reward model | PPO |\n|---|--:|--:|--:|")
    for title, name, P, R, stages in RECIPES:
        cells = []
        for stage, options in stages.items():
            c = shape(name)
            peak = max(peaks(budget(stage, c, options, P, R, torch.bfloat16)).values())
            hours = options.steps * sum(seconds(stage, c, options, P, R).values()) / 3600
            time = f"{hours:.1f} h" if hours > 1 else f"{math.ceil(60 * hours)} min"
            cells.append(f"{peak / 1e9:.0f} GB, {time}")
        print(f"| {title} | {' | '.join(cells)} |")


# ---- the measurement -----------------------------------------------------------------------------


class Live(TorchDispatchMode):
    "Bytes of all tensors alive, now and at most, of those that are held or made meanwhile."

    def __init__(self, *modules):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()
        self.hold([[*module.parameters(), *module.buffers()] for module in modules])

    def hold(self, tree):
        for tensor in tree_leaves(tree):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.seen:
                    self.seen.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.drop, key, size)

    def drop(self, key, size):
        self.seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.hold(out)
        return out

    def start(self):
        self.peak = self.now


class Cuda:
    "The same of a GPU, by its allocator."

    def start(self):
        torch.cuda.reset_peak_memory_stats()

    peak = property(lambda self: torch.cuda.max_memory_allocated())
    __enter__ = __exit__ = lambda self, *_: None


def random_policy(c, freeze, device, dtype=None):
    "As `to_device` leaves a policy, but made one tensor at a time: never whole in fp32."
    with networks.hollow():
        policy = m.Transformer(c)
    networks.freeze(policy, freeze)
    for module in policy.modules():
        for name, p in module.named_parameters(recurse=False):
            its = dtype if dtype and not p.requires_grad else p.dtype
            value = torch.empty(p.shape, device=device, dtype=its).normal_(std=0.02)
            setattr(module, name, nn.Parameter(value, requires_grad=p.requires_grad))
    if policy.position is None:
        policy.table = m.rope_table(c)
    return networks.to_device(policy, device, dtype)


def measure(stage, c, options, prompt_tokens, response_tokens, device="cpu", dtype=None,
            spent=None):
    """{phase: peak in bytes} of the second of two steps; the first makes the optimiser's state.
    `spent`, if given, gets {phase: seconds} of that step."""
    torch.manual_seed(0)
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    write = lambda n: [rng.randrange(c.vocab_size) for _ in range(n)]
    pad, P, R = c.vocab_size, prompt_tokens, response_tokens
    prompts = [write(P - (i == 0)) for i in range(max(options.batch, collect.SEEN,
                                                      watch.FOLLOWED))]
    # one is shorter: sampling then needs masks
    policy = random_policy(c, options.freeze, device, dtype)
    if stage == "sft":
        trained, frozen = [policy], [networks.frozen_copy(policy)]
        rows = [(prompt, write(R)) for prompt in prompts]
        sample = lambda _: m.generate(policy, prompts[:4], R)
        score = lambda _: sft.evaluate(policy, rows[:EVALUATED], pad, device)
    elif stage == "reward":
        trained, frozen = [networks.scalar_copy(policy)], [networks.frozen_copy(policy)]
        policy = frozen[0]
        answers = [[write(R) for _ in range(ANSWERS)] for _ in prompts]
        fn = reward.scorer(trained[0], pad)
        sample = lambda _: m.generate(policy, prompts[:collect.SEEN], R)
        score = lambda _: fn([p for p in prompts[:EVALUATED] for _ in range(2)],
                             [a for two in answers[:EVALUATED] for a in two[:2]])
    else:
        scorer = networks.scalar_copy(policy)
        value = ppo.value_network(options, policy, scorer)
        trained = [policy] if value is None else [policy, value.to(device)]
        frozen = [networks.frozen_copy(policy), networks.frozen_copy(scorer)]
        del scorer
        asked = prompts[:options.batch // options.samples]
        sample = lambda _: (m.generate(policy, prompts[:watch.FOLLOWED], R), m.generate(
            policy, asked, R, 1.0, options.samples, generator=generator))[1]
        score = lambda responses: ppo.experience(
            options, policy, value, frozen[0], reward.scorer(frozen[1], pad, options.micro or 128),
            asked, responses, 0.2,
            SimpleNamespace(pad=pad, response_tokens=R))[0]
    for network in trained:
        getattr(network, "trunk", network).recompute = options.micro > 0
    optimizer = optim.adamw(nn.ModuleList(trained), 1e-5, betas=(0.9, 0.999), eps=1e-5)

    def learn(rollout):
        if stage == "ppo":
            return ppo.update(options, policy, value, optimizer, rollout, generator)
        for part in torch.arange(options.batch).split(options.micro or options.batch):
            if stage == "sft":
                ids, positions, is_response = (
                    t.to(device) for t in data.join(*zip(*(rows[i] for i in part)), pad))
                loss, _ = sft.loss(m.logprobs(policy, ids, positions), is_response)
            else:
                ids, segment, ends = data.join_groups(
                    [prompts[i] for i in part], [answers[i] for i in part], pad)
                ids, segment = ids.to(device), segment.to(device)
                hidden = trained[0].trunk(ids, segment=segment)
                scores = trained[0].read(hidden)[ends].view(-1, ANSWERS)
                loss = reward.loss(scores[:, 0], scores[:, 1])[0] + reward.lm_loss(
                    policy, ids, segment, hidden).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    live, found = Live(*trained, *frozen) if device == "cpu" else Cuda(), {}
    stack = contextlib.ExitStack()
    if device == "cpu":  # what a GPU does: a CPU keeps a prompt's keys once for all its samples
        stack.enter_context(mock.patch.object(m, "decode_rows", gpu.decode_recorded))
        stack.enter_context(mock.patch.object(gpu, "recorded", lambda step: step() or step))
    with stack, live:
        for _ in range(2):
            made = None  # by one phase, for the next
            for phase, work in zip(PHASES, (sample, score, learn)):
                live.start()
                began = time.perf_counter()
                made = work(made)
                if device != "cpu":
                    torch.cuda.synchronize()
                found[phase] = live.peak
                if spent is not None:
                    spent[phase] = time.perf_counter() - began
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.memory", allow_abbrev=False)
    parser.add_argument("--recipes", action="store_true")
    parser.add_argument("--stage", choices=STAGES, default="ppo")
    parser.add_argument("--model", choices=SHAPES, default="llama-7b")
    parser.add_argument("--freeze", type=float, default=0.8)
    parser.add_argument("--value", choices=["shared", "reward"], default="shared")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--baseline", choices=["value", "rloo", "grpo"], default="value")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--minibatches", type=int, default=ppo.Config.minibatches)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--response-tokens", type=int, default=48)
    parser.add_argument("--answers", type=int, default=ANSWERS, help="of a prompt: reward.py")
    parser.add_argument("--cpu", action="store_true", help="a process in fp32, and no measurement")
    args = parser.parse_args(argv)
    if args.recipes:
        return recipes()
    c, stage = shape(args.model), args.stage
    P, R = min(args.prompt_tokens, c.context - args.response_tokens), args.response_tokens
    options = STAGES[stage].Config(freeze=args.freeze, batch=args.batch, micro=args.micro)
    if stage == "ppo":
        options = replace(options, value=args.value, samples=args.samples, baseline=args.baseline,
                          minibatches=args.minibatches)
    show = lambda name, row, unit: print(f"{name:36}" + "".join(
        f"{row[phase] / unit:10.2f}" if phase in row else " " * 10 for phase in PHASES))
    parts = process(stage, c, options, P, R) if args.cpu else []
    parts += budget(stage, c, options, P, R, None if args.cpu else torch.bfloat16,
                    min(args.answers, data.TOGETHER))
    print(f"{args.model}, {stage} on a {'CPU' if args.cpu else 'GPU'}, {args.batch} prompts of {P} "
          f"tokens and {R} new ones, GB\n{'':36}" + "".join(phase.rjust(10) for phase in PHASES))
    for name, n, phases in parts:
        if n:
            show(name, dict.fromkeys(phases, n), 1e9)
    show("planned", peaks(parts), 1e9)
    stored = sum(n for name, n, _ in parts if name.startswith(
        ("frozen", "optimiser")) or "what trains, fp32" in name)
    print(f"a checkpoint, with what --resume needs: {stored / 1e9:.1f} GB on disk each time")
    if args.cpu:
        return
    if torch.cuda.is_available():
        show("measured", measure(stage, c, options, P, R, "cuda", torch.bfloat16), 1e9)
        return
    c, P, R = shape(args.model, **SMALL), 24, 8
    options = replace(options, batch=16, micro=min(args.micro, 2))
    print(f"no GPU here: {SMALL['layers']} layers of {SMALL['channels']} channels instead, MB")
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        show(f"planned, {name}", peaks(budget(stage, c, options, P, R, dtype)), 1e6)
        show(f"measured, {name}", measure(stage, c, options, P, R, "cpu", dtype), 1e6)


if __name__ == "__main__":
    main()
