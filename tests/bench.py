"""
How fast each part is: against the machine's limit, and against what else would do the same work.

    python -m tests.bench                        # a few minutes on two CPU cores
    python -m tests.bench --against              # beside transformers and TRL, where installed
    python -m tests.bench --size gpt2 --device cuda
    python -m tests.bench sampling scoring "PPO iteration" --size 7b      # what fits one GPU
    python -m tests.bench --figure speed.png     # how cost grows with rows, length, n and width
    python -m tests.bench "PPO iteration"        # one part
    python -m tests.bench --profile              # where the time of the three commands goes

The limits come first, measured on this machine with the shapes that follow: how many operations a
second its matrix products reach, and how many bytes a second a copy moves. Training and reading a
prompt are bound by the first, decoding a token at a time by the second. Operations are counted by
torch while the work runs, so that a share of the limit is work done, not work that could have been
spared. Rivals take turns in one process, and medians are shown: only ratios of one run mean much.
One rival is the work's own matrix products and attention, of the same shapes and as many, without
all that stands between them: what no program that does this work in these operations can beat.
"""

import argparse
import contextlib
import importlib.util
import io
import statistics
import tempfile
import time
import weakref
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import bon
import data
import metrics
import model as m
import ppo
import reward
import sft
from data import checkpoint, collect, networks, optim, run
from data.run import pick_device
from tests import memory, rivals
from tests.rivals import tokens

ROWS, PROMPT, NEW = 64, 64, 32  # prompts of an iteration, and tokens
SIZES = {
    "world": dict(vocab_size=1024, layers=4, heads=4, kv_heads=4, channels=128, hidden=512),
    "gpt2": dict(vocab_size=50257, layers=12, heads=12, kv_heads=12, channels=768, hidden=3072),
    "1.3b": dict(vocab_size=50272, layers=24, heads=32, kv_heads=32, channels=2048, hidden=8192),
    "7b": dict(vocab_size=32000, layers=32, heads=32, kv_heads=32, channels=4096, hidden=16384)}


def shape(size, context=PROMPT + NEW, eos=()):
    "GPT-2's layers in a size of the table; without EOS every response has the full length."
    return m.ModelConfig(context=context, norm="layer", activation="gelu", positions="learned",
                         bias=True, eos=eos, **SIZES[size])


def synchronise(device):
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(calls, device, repeats=5):
    "{name: call} -> {name: median seconds}; each is run once unmeasured, then they take turns."
    spent = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            synchronise(device)
            began = time.perf_counter()
            call()
            synchronise(device)
            if turn:
                spent[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in spent.items()}


@contextlib.contextmanager
def unrecorded():
    "Every step of decoding is started by Python, where whoever counts can see it."
    recorded, m.RECORDED = m.RECORDED, ()
    try:
        yield
    finally:
        m.RECORDED = recorded


@unrecorded()
def operations(call):
    "Floating-point operations of the matrix products and attention that a call does."
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


class Made(memory.Live):
    "What was there before, as weights are, does not count."

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if torch.is_tensor(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    weakref.finalize(storage, self.seen.discard, storage._cdata)
        return super().__torch_dispatch__(op, types, args, kwargs)


def peak(call, device):
    "Bytes of the tensors that a call makes and holds at once, at most."
    live, before = Made(), 0
    if device != "cpu":
        live, before = memory.Cuda(), torch.cuda.memory_allocated()
    with live:
        live.start()
        call()
    return live.peak - before


class Products(TorchDispatchMode):
    "The matrix products and attention of a call, to be run again by themselves."

    def __init__(self, call):
        super().__init__()
        self.count, self.first = {}, {}
        with self, unrecorded():
            call()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.name().removeprefix("aten::").split(".")[0]
        if name in ("mm", "addmm", "bmm", "baddbmm") or name.startswith("_scaled_dot_product"):
            key = name, *((x.shape, x.stride()) if torch.is_tensor(x) else x for x in args)
            self.count[key] = self.count.get(key, 0) + 1
            self.first.setdefault(key, (op, args, kwargs or {}))
        return op(*args, **(kwargs or {}))

    def run(self):
        for key, (op, args, kwargs) in self.first.items():
            for _ in range(self.count[key]):
                op(*args, **kwargs)


def limits(config, device, dtype):
    "(operations, bytes) a second: the best of the block's products and of a long copy."
    best = 0
    for rows in (ROWS * (PROMPT + NEW) // 2, ROWS * (PROMPT + NEW)):
        for out in (config.channels, 3 * config.channels, config.hidden):
            a = torch.randn(rows, config.channels, device=device, dtype=dtype)
            b = torch.randn(out, config.channels, device=device, dtype=dtype)
            call = lambda a=a, b=b: [a @ b.T for _ in range(20)]
            spent = seconds({"": call}, device, 3)[""] / 20
            best = max(best, 2 * rows * out * config.channels / spent)
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() / seconds({"": lambda: target.copy_(source)}, device, 3)[""]
    return best, moved


# ---- the work: {part: (how much, unit, {who: call}, bound)} --------------------------------------


def read_only(config, device):
    "A network as a stage has it that does not train it."
    return networks.frozen_copy(memory.random_policy(config, 1.0, device))


def sampling(config, device, dtype, against, n=1):
    network = read_only(config, device)
    prompts = tokens(config, ROWS // n, PROMPT).tolist()
    calls = {"plain": lambda: m.generate(network, prompts, NEW, num_samples=n)}
    if device in m.RECORDED:
        calls["no CUDA graph"] = unrecorded()(calls["plain"])
    if against:
        other = rivals.gpt2(config, pad_token_id=0).to(device, dtype).eval()
        ids = torch.tensor(prompts, device=device)
        calls["transformers"] = lambda: other.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=True, top_k=0,
            num_return_sequences=n, use_cache=True)
    # every token reads all weights, and the keys and values so far
    weights = sum(p.numel() for p in network.parameters()) * dtype.itemsize
    cached = 2 * config.layers * ROWS * config.kv_heads * (config.channels // config.heads)
    once = 1 if device in m.RECORDED else n  # a prompt's for all of its samples
    moved = NEW * (weights + cached * (PROMPT / once + NEW / 2) * dtype.itemsize)
    return ROWS * NEW, "tokens", calls, moved


def scoring(config, device, dtype, against):
    network = read_only(config, device)
    ids = tokens(config, ROWS, PROMPT + NEW).to(device)
    positions = torch.arange(PROMPT, PROMPT + NEW, device=device).expand(ROWS, -1)
    calls = {"plain": lambda: m.logprobs(network, ids, positions)}
    if against:
        other = rivals.gpt2(config).to(device, dtype).requires_grad_(False)

        def call():
            logits = other(ids).logits[:, PROMPT - 1:-1]
            return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None])
        calls["transformers"] = call
    return ROWS * (PROMPT + NEW), "tokens", calls, None


def training(config, device, dtype, against):
    "SFT on equal rows of which every token counts, as in pretraining: nanoGPT's loop."
    network, rows = networks.to_device(m.Transformer(config), device), 16
    optimizer = optim.adamw(network, 1e-4)
    ids = tokens(config, rows, PROMPT + NEW).to(device)
    positions = torch.arange(1, PROMPT + NEW, device=device).expand(rows, -1)
    is_response = torch.ones_like(positions, dtype=torch.bool)

    def plain():
        sft.loss(m.logprobs(network, ids, positions), is_response)[0].backward()
        optim.step(optimizer, network.named_parameters())
    calls = {"plain": plain}
    if against:  # as in nanoGPT: all logits, cross-entropy, fused AdamW
        other = rivals.gpt2(config).to(device)
        its = torch.optim.AdamW(other.parameters(), lr=1e-4, fused=True)

        def nano():
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                loss = torch.nn.functional.cross_entropy(
                    other(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            its.step()
            its.zero_grad(set_to_none=True)
        calls["transformers, nanoGPT's loop"] = nano
    return rows * (PROMPT + NEW), "tokens", calls, None


def ragged(config, device, dtype, against):
    "SFT on rows of the study's lengths, against padding each batch to its longest row."
    network = networks.to_device(m.Transformer(config), device)
    random = np.random.default_rng(0)
    optimizer = optim.adamw(network, 1e-4)
    rows = [([1] * int(p), [1] * int(r)) for p, r in zip(
        random.integers(PROMPT // 4, PROMPT, 128), random.integers(NEW // 4, NEW, 128))]
    lengths = [len(p) + len(r) for p, r in rows]
    kinds = {"plain": list(data.batches(lengths, 16)),
             "batches at random": np.arange(128).reshape(-1, 16).tolist()}

    def epoch(batches):
        for index in batches:
            ids, positions, is_response = (t.to(device) for t in data.join(
                *zip(*(rows[i] for i in index)), config.vocab_size))
            sft.loss(m.logprobs(network, ids, positions), is_response)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return sum(lengths), "tokens", {k: lambda b=b: epoch(b) for k, b in kinds.items()}, None


def ranking(config, device, dtype, against):
    "The reward model's step on pairs that share their prompt, as comparisons do."
    network = networks.to_device(networks.scalar_copy(m.Transformer(config)), device)
    optimizer, pairs = optim.adamw(network, 1e-4), 16
    prompts = tokens(config, pairs, PROMPT).tolist()
    answers = [tokens(config, 2, NEW, seed).tolist() for seed in range(pairs)]
    ids, segment, ends = data.join_groups(prompts, answers, config.vocab_size)
    ids, segment = ids.to(device), segment.to(device)

    def step(scores, optimizer):
        chosen, rejected = scores().view(pairs, 2).unbind(1)
        reward.loss(chosen, rejected)[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    calls = {"plain": lambda: step(lambda: network(ids, segment=segment)[ends], optimizer)}
    if against:
        other = rivals.scalar(config).to(device)
        its = torch.optim.AdamW(other.parameters(), lr=1e-4, fused=True)
        flat = torch.tensor([p + a for p, two in zip(prompts, answers) for a in two],
                            device=device)
        calls["transformers"] = lambda: step(lambda: other(flat).logits, its)
    return pairs, "pairs", calls, None


def implicit(config, device, dtype, against):
    "DPO's step on such pairs, the reference's log-probabilities included."
    policy = networks.to_device(m.Transformer(config), device)
    ref_policy, optimizer = networks.frozen_copy(policy), optim.adamw(policy, 1e-5)
    ids = [tokens(config, 16, length, k) for k, length in enumerate((PROMPT, NEW, NEW))]
    tokenizer = SimpleNamespace(prompt=list, response=list, pad=config.vocab_size)
    pairs = [data.Comparison(*map(tuple, row)) for row in zip(*(x.tolist() for x in ids))]

    def step():
        logp_ref = reward.log_likelihoods(ref_policy, tokenizer, pairs)
        rows, segment, ends, places = data.join_comparisons(tokenizer, [[p] for p in pairs], device)
        hidden = policy(rows, segment=segment)
        scores = 0.1 * reward.log_ratio(policy, rows, segment, ends, hidden, [[p] for p in pairs],
                                        logp_ref)
        reward.loss(*scores[places].unbind(1))[0].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    calls = {"plain": step}
    if against and importlib.util.find_spec("trl"):
        calls["TRL times 4"] = rivals.dpo(config, device, *ids, 4)
    return len(pairs), "pairs", calls, None


def best_of(config, device, dtype, against):
    "Best of 16 for 16 prompts: sample, score, choose."
    network = read_only(config, device)
    scorer = networks.frozen_copy(networks.scalar_copy(network)).to(device)
    prompts, n = tokens(config, 16, PROMPT).tolist(), 16
    fn = reward.scorer(scorer, config.vocab_size)

    def call():
        ids = m.generate(network, prompts, NEW, num_samples=n)
        return bon.best_of_n(fn([p for p in prompts for _ in range(n)], ids).view(-1, n))
    return len(prompts), "prompts", {"plain": call}, None


def iteration(config, device, kind="reward", frozen=0.0, once=True, samples=1, packed=True,
              baseline="value", lengths=None):
    """One iteration of PPO as ppo.py does it, between untrained networks; if not `once`, the frozen
    trunk is computed whenever it is needed, and if not `packed`, so is the prompt of each of its
    `samples`."""
    flags = ppo.Config(batch=ROWS, samples=samples if packed else 1, epochs=2, minibatches=2,
                       baseline=baseline, value=kind, freeze=frozen * once)
    prompt, new = lengths or (PROMPT, NEW)
    tokenizer = SimpleNamespace(pad=config.vocab_size, response_tokens=new)
    policy = m.Transformer(config)
    networks.freeze(policy, frozen)
    networks.to_device(policy, device)
    ref_policy, scorer = networks.frozen_copy(policy), networks.scalar_copy(policy)
    value = ppo.value_network(flags, policy, scorer)
    reward_fn = reward.scorer(networks.frozen_copy(scorer), config.vocab_size)
    trained = torch.nn.ModuleList([policy] if value is None else [policy, value]).to(device)
    optimizer = optim.adamw(trained, 1e-5)
    prompts = tokens(config, ROWS // samples, prompt).tolist()
    if not packed:
        prompts = [p for p in prompts for _ in range(samples)]
    sampler, shuffler = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)

    def call():
        responses = m.generate(policy, prompts, new, num_samples=flags.samples, generator=sampler)
        rollout, _ = ppo.experience(flags, policy, value, ref_policy, reward_fn, prompts, responses,
                                    0.1, tokenizer)
        ppo.update(flags, policy, value, optimizer, rollout, shuffler)
    return call


def iterations(config, device, dtype, against):
    """PPO with separate networks, with the paper's shared trunk, and with three quarters frozen; of
    the largest model, what one GPU can hold."""
    if config.channels == SIZES["7b"]["channels"]:
        return ROWS * (PROMPT + NEW), "tokens", {
            "plain": iteration(config, device, "shared", 0.8)}, None
    calls = {"plain": iteration(config, device),
             "shared value": iteration(config, device, "shared"),
             "shared value, freeze 0.75": iteration(config, device, "shared", 0.75),
             "its trunk every time": iteration(config, device, "shared", 0.75, once=False)}
    if against and importlib.util.find_spec("trl"):
        calls["TRL times 2"] = rivals.ppo(config, device, ROWS, PROMPT, NEW, 2)
    return ROWS * (PROMPT + NEW), "tokens", calls, None


def groups(config, device, dtype, against, lengths=None):
    "PPO with four responses to each prompt: in one row with it, or one row each."
    lengths = lengths or (PROMPT, NEW)
    config = replace(config, context=sum(lengths))
    call = lambda **how: iteration(config, device, samples=4, lengths=lengths, **how)
    return ROWS * sum(lengths), "tokens", {
        "plain": call(), "one row a response": call(packed=False)}, None


def long_groups(config, device, dtype, against):
    "The same with longer prompts and shorter responses."
    return groups(config, device, dtype, against, (160, 24))


def without_values(config, device, dtype, against):
    "The same without a value network: RLOO."
    calls = {"plain": iteration(config, device, samples=4, baseline="rloo")}
    if against and importlib.util.find_spec("trl"):
        calls["TRL times 2"] = rivals.rloo(config, device, ROWS, 4, PROMPT, NEW, 2)
    return ROWS * (PROMPT + NEW), "tokens", calls, None


def diversity(config, device, dtype, against):
    "EAD per input of 500 x 16 outputs of 25 words."
    random = np.random.default_rng(0)
    words = np.array([f"w{k}" for k in range(2000)])
    outputs = [[" ".join(words[random.zipf(1.4, 25) % 2000]) for _ in range(16)]
               for _ in range(500)]
    return 8000, "texts", {"plain": lambda: metrics.per_input(outputs, metrics.ead)}, None


def compiled(call):
    "The same with the networks' forward compiled, which needs a C++ compiler, on a GPU Triton."
    plain, forward = m.Transformer.forward, torch.compile(m.Transformer.forward, dynamic=True)

    def run():
        m.Transformer.forward = forward
        call()
        m.Transformer.forward = plain
    return run


PARTS = {"sampling": sampling, "sampling, 4 each": partial(sampling, n=4),
         "sampling, 16 each": partial(sampling, n=16),
         "scoring": scoring, "SFT": training, "SFT, ragged rows": ragged,
         "reward model": ranking, "DPO": implicit, "best of 16": best_of,
         "PPO iteration": iterations, "groups of 4": groups, "groups, 160 + 24": long_groups,
         "RLOO, groups of 4": without_values, "EAD": diversity}
TRAINS = ("SFT", "SFT, ragged rows", "reward model", "DPO", "PPO iteration", "groups of 4",
          "groups, 160 + 24", "RLOO, groups of 4")


def measured(part, config, device, dtype, against, repeats=5, compile=False):
    """Rows of a part: {"part", "who", "seconds", "rate", "unit", "ratio", "operations", "moved",
    "peak"}; the ratio is that of a rival's seconds to the first one's."""
    dtype = torch.float32 if part in TRAINS and device == "cpu" else dtype
    amount, unit, calls, moved = PARTS[part](config, device, dtype, against)
    watched = {name: call for name, call in calls.items() if unit != "texts"}
    peaks = {name: peak(call, device) for name, call in watched.items()}
    counted = {name: operations(call) for name, call in watched.items() if "TRL" not in name}
    if watched:
        calls["its products alone"] = Products(calls["plain"]).run
    if compile and part in ("scoring", *TRAINS):
        calls["compiled"], counted["compiled"] = compiled(calls["plain"]), counted["plain"]
    spent = seconds(calls, device, repeats)
    rows = []
    for name, each in spent.items():
        who, _, many = name.partition(" times ")
        many = int(many or 1)
        rows.append({"part": part, "who": who,
                     "seconds": each / many, "rate": amount * many / each, "unit": unit,
                     "ratio": each / many / spent["plain"], "operations": counted.get(name),
                     "moved": moved if name == "plain" else None, "peak": peaks.get(name)})
    return rows


def show(rows, compute, memory):
    print(f"{'':18}{'':26}{'seconds':>10}{'a second':>18}{'of the limit':>14}{'times ours':>12}"
          f"{'peak MB':>9}")
    for row in rows:
        share = ""
        if row["moved"]:
            share = f"{row['moved'] / memory / row['seconds']:.0%} bytes"
        elif row["operations"]:
            share = f"{row['operations'] / compute / row['seconds']:.0%}"
        rate = f"{row['rate']:,.0f} {row['unit']}"
        print(f"{row['part']:18}{row['who']:26}{row['seconds']:10.3f}{rate:>18}{share:>14}"
              f"{row['ratio']:12.2f}" + (f"{row['peak'] / 1e6:9,.0f}" if row["peak"] else ""))


PHASES = {  # of a stage: who spends the time, in functions that may call each other
    "sampling": [(m, "generate")], "forward": [(m.Transformer, "forward"), (m, "logprobs")],
    "backward": [(torch.Tensor, "backward")],
    "optimiser": [(optim, "step"), (torch.optim.AdamW, "step")],
    "texts and batches": [(data, "load"), (data, "prompts"), (data, "join"), (data, "join_groups"),
                          (data.Tokenizer, "encode"), (data.Tokenizer, "decode"),
                          (collect, "comparisons"), (collect, "quality")],
    "figures": [(run, "curve")],
    "checkpoints": [(checkpoint, "save"), (checkpoint, "load")]}


def profile(call, device):
    "Seconds that a call spends in each phase and not in another one that it calls: {phase: s}."
    spent, inner, originals = dict.fromkeys((*PHASES, "the rest"), 0.0), [], []

    def watched(function, phase):
        def timed(*args, **kwargs):
            synchronise(device)
            began = time.perf_counter()
            inner.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                synchronise(device)
                whole = time.perf_counter() - began
                spent[phase] += whole - inner.pop()
                if inner:
                    inner[-1] += whole
        return timed
    for phase, places in PHASES.items():
        for owner, name in places:
            originals.append((owner, name, getattr(owner, name)))
            setattr(owner, name, watched(getattr(owner, name), phase))
    try:
        watched(call, "the rest")()
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
    return spent


def profiles(device, **flags):
    "Of the three commands, one after the other as they are by default -> {stage: profile}."
    found = {}
    with tempfile.TemporaryDirectory() as out:
        for stage in (sft, reward, ppo):
            config = stage.Config(out=out, device=device, **flags)
            with contextlib.redirect_stdout(io.StringIO()):
                found[stage.__name__] = profile(lambda: stage.train(config), device)
    print(f"{'seconds of':18}" + "".join(f"{stage + '.py':>18}" for stage in found))
    for phase in (*PHASES, "the rest"):
        cells = [(spent[phase], sum(spent.values())) for spent in found.values()]
        print(f"{phase:18}" + "".join(f"{s:11.1f} {s / whole:6.1%}" for s, whole in cells))
    print(f"{'together':18}" + "".join(f"{sum(s.values()):11.1f}{'':7}" for s in found.values()))
    return found


def growth(device, dtype, path):
    "How the cost of sampling and of a step of training grows, as one figure and its numbers."
    from matplotlib.figure import Figure

    def sample(size, rows=64, new=NEW, n=1):
        network = read_only(size, device)
        prompts = tokens(size, rows, PROMPT).tolist()
        return seconds({"": lambda: m.generate(network, prompts, new, num_samples=n)}, device,
                       3)[""]

    def learn(size):
        return seconds(training(size, device, dtype, False)[2], device, 3)["plain"]

    def wider(width):
        return replace(world, channels=width, hidden=4 * width, heads=width // 32,
                       kv_heads=width // 32)
    world = shape("world", context=PROMPT + 8 * NEW)
    panels = {
        "prompts at once": [(k, sample(world, k) / k) for k in (4, 8, 16, 32, 64, 128, 256)],
        "tokens of a response": [(k, sample(world, 64, k) / 64 / k)
                                 for k in (8, 16, 32, 64, 128, 256)],
        "n samples of each of 16 prompts": [(k, sample(world, 16, n=k) / 16 / k)
                                            for k in (1, 2, 4, 8, 16, 32)],
        "channels": [(k, sample(wider(k)) / 64) for k in (64, 128, 256, 512)]}
    made = Figure(figsize=(3.1 * len(panels), 2.8))
    units = ("ms a response", "ms a token", "ms a sample", "ms")
    for k, ((x, points), unit) in enumerate(zip(panels.items(), units)):
        axis = made.add_subplot(1, len(panels), k + 1)
        axis.semilogx(*zip(*((a, 1000 * b) for a, b in points)), "o-", color="#0072B2",
                      label="sampling, a response")
        if x == "channels":
            axis.set_yscale("log")
            axis.plot([a for a, _ in points], [1000 * learn(wider(a)) / 16 for a, _ in points],
                      "s--", color="#D55E00", label="a step of SFT, a row")
            axis.legend(frameon=False, fontsize=7)
        else:
            axis.set_ylim(0)
        axis.set_xlabel(x)
        axis.set_ylabel(unit)
        axis.set_xticks([a for a, _ in points], [str(a) for a, _ in points], fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        print(x + ": " + ", ".join(f"{a} {1000 * b:.2f}" for a, b in points) + f" ({unit})")
    made.tight_layout()
    made.savefig(path, dpi=150)
    print(f"wrote {path}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all, if none is named)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", default="world", choices=SIZES)
    parser.add_argument("--against", action="store_true", help="measure rivals too")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--figure", default="", help="draw how cost grows into this file instead")
    parser.add_argument("--profile", action="store_true", help="time the three commands instead")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"there is no {part!r}: choose from {', '.join(PARTS)}")
    device = pick_device(args.device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    if args.profile:
        return profiles(device)
    if args.figure:
        return growth(device, dtype, args.figure)
    config = shape(args.size)
    compute, memory = limits(config, device, dtype)
    print(f"limits: {compute / 1e9:,.0f} GFLOP/s in products of these shapes, {memory / 1e9:,.1f} "
          f"GB/s copied; {torch.get_num_threads()} threads, torch {torch.__version__}")
    rows = [row for part in args.parts or PARTS
            for row in measured(part, config, device, dtype, args.against, args.repeats,
                                args.compile)]
    show(rows, compute, memory)


if __name__ == "__main__":
    main()
