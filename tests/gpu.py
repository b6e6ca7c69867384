"""
What this project does on a GPU: one command for any machine that has one.

    python -m tests.gpu                              # up to 8 minutes; what it finds is in out/gpu
    python -m tests.gpu decoding sft --minutes 3 --out FOLDER

Each part runs in a process of its own, has its own share of the minutes, and writes a row as soon
as it has one, into FOLDER/PART.jsonl, beside PART.log with all that it printed. After each part
gpu.md and gpu.json are written anew: a part that fails or runs out of time takes nothing with it.

    device     which one, and what it reaches: products and copies a second, the limits below
    decoding   recorded as one CUDA graph against started by Python: the same tokens, and how fast
    sft        steps of GPT-2's shape, plain and compiled
    ppo        iterations of the 7B shape with --freeze 0.8: memory as tests.memory plans it
    world      the three commands, with the minutes they take
    tests      of the model, memory, PPO and the stages, which take the GPU where there is one
"""

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import model as m
import ppo
import sft as sft_stage
from data import files, networks, optim
from data.run import pick_device
from tests import bench, memory

ROOT = Path(__file__).parent.parent
LIMITS = {"device": 0.1, "decoding": 0.25, "sft": 0.25, "ppo": 0.25, "tests": 0.5, "world": 0.4}
# of the minutes, at most: a part that is done sooner leaves its time to the others


def limits(device, small):
    "{operations, bytes} a second that this device reaches: of large products, of a long copy."
    dtype = torch.float32 if small else torch.bfloat16
    compute, bandwidth = bench.limits(bench.shape("world" if small else "1.3b"), device, dtype)
    return {"TFLOP/s": compute / 1e12, "GB/s": bandwidth / 1e9}


def device(name, small, tell):
    if name != "cpu":
        its = torch.cuda.get_device_properties(0)
        tell(what=its.name, memory_GB=its.total_memory / 1e9, capability=f"{its.major}.{its.minor}",
             torch=torch.__version__, CUDA=torch.version.cuda, **limits(name, small))
    else:
        tell(what="CPU", threads=torch.get_num_threads(), torch=torch.__version__,
             **limits(name, small))


def timed(call, name, repeats=3):
    "Median seconds of a call, once it is warm."
    return bench.seconds({"": call}, name, repeats)[""]


def decoding(name, small, tell):
    """Tokens must be equal in float64, where no rounding decides; the speed is that of the
    precision in which the device samples. Of the largest only four layers are compared."""
    rows, prompt, new = (3, 9, 20) if small else (64, 128, 128)
    bandwidth = 1e9 * limits(name, small)["GB/s"]
    ways = {"plain": bench.unrecorded()(m.generate), "recorded": m.generate}
    for size in ["world"] if small else ["gpt2", "1.3b", "7b"]:
        config = bench.shape(size, context=prompt + new)
        prompts = [p[i % 3:] for i, p in enumerate(bench.tokens(config, rows, prompt).tolist())]
        exact = replace(config, layers=min(config.layers, 4))
        network = memory.random_policy(exact, 1.0, name, torch.float64).double()
        network.precision = None
        plain, recorded = (way(network, prompts[:8], new // 2) for way in ways.values())
        network = bench.read_only(config, name)
        spent = {}
        for who, way in ways.items():
            for count in (1, new):  # one token: the prompts are read and that is all
                call = functools.partial(way, network, prompts, count)
                spent[who, count] = timed(call, name)
        size_of = network.embed.weight.element_size()
        weights = sum(p.numel() for p in network.parameters()) * size_of
        moved = new * (weights + rows * m.cache_bytes(network, prompt + new / 2))
        tell(what=size, equal_tokens=plain == recorded, rows=rows, prompt=prompt, new=new,
             plain_tokens_per_s=rows * new / spent["plain", new],
             recorded_tokens_per_s=rows * new / spent["recorded", new],
             prompts_s=spent["recorded", 1], whole_s=spent["recorded", new],
             of_the_bandwidth=moved / bandwidth / spent["recorded", new])


def sft(name, small, tell):
    "Full rows, in which every token counts, as in pretraining."
    rows, length = (2, 24) if small else (16, 1024)
    compute = 1e12 * limits(name, small)["TFLOP/s"]
    config = bench.shape("world" if small else "gpt2", context=length)
    policy = networks.to_device(m.Transformer(config), name)
    optimizer = optim.adamw(policy, 1e-4)
    ids = bench.tokens(config, rows, length).to(name)
    positions = torch.arange(1, length, device=name).expand(rows, -1)
    is_response = torch.ones_like(positions, dtype=torch.bool)

    def step(micro=rows):
        policy.recompute = micro < rows
        for part in torch.arange(rows).split(micro):
            loss, _ = sft_stage.loss(m.logprobs(policy, ids[part], positions[part]),
                                     is_response[part], rows * (length - 1))
            loss.backward()
        optim.step(optimizer, policy.named_parameters())
    work = 3 * bench.operations(lambda: forward(policy, ids, positions))
    micro = functools.partial(step, rows // 2)
    for who, call in (("plain", step), (f"--micro {rows // 2}", micro),
                      ("compiled", bench.compiled(step))):
        if name != "cpu":
            torch.cuda.reset_peak_memory_stats()
        began = time.time()
        call()
        bench.synchronise(name)
        first = time.time() - began
        spent = timed(call, name)
        tell(what=who, rows=rows, length=length, first_step_s=first, step_s=spent,
             tokens_per_s=rows * length / spent, of_the_peak=work / compute / spent,
             peak_GB=torch.cuda.max_memory_allocated() / 1e9 if name != "cpu" else None)


@torch.no_grad()
def forward(policy, ids, positions):
    m.logprobs(policy, ids, positions)


def ppo_7b(name, small, tell):
    options = ppo.Config(batch=64, micro=8, minibatches=1, epochs=2, value="shared", freeze=0.8)
    shape, prompt, new, dtype = memory.shape("llama-7b"), 512, 48, torch.bfloat16
    if small:
        options = replace(options, batch=8, micro=4)
        shape, prompt, new, dtype = memory.shape("llama-7b", **memory.SMALL), 24, 8, None
    plan = memory.peaks(memory.budget("ppo", shape, options, prompt, new, dtype))
    times = memory.seconds("ppo", shape, options, prompt, new)
    spent = {}
    found = memory.measure("ppo", shape, options, prompt, new, name, dtype, spent)
    for phase in memory.PHASES:
        tell(what=phase, rows=options.batch, prompt=prompt, new=new, planned_GB=plan[phase] / 1e9,
             peak_GB=found[phase] / 1e9, planned_s=times[phase], seconds=spent[phase])


def world(name, small, tell):
    flags = ["--steps", "2", "--batch", "16", "--eval-size", "8"] if small else []
    with tempfile.TemporaryDirectory() as out:
        for stage in ("sft", "reward", "ppo"):
            began = time.time()
            made = subprocess.run(
                [sys.executable, f"{stage}.py", "--device", name, "--out", out,
                 *(flags if stage != "ppo" else flags[:4])],
                cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
            print(made.stdout, made.stderr, flush=True)
            said = [x for x in made.stdout.splitlines() if x.startswith(f"{stage}: ")]
            tell(what=f"python {stage}.py", seconds=time.time() - began, exit=made.returncode,
                 said="".join(said))


def tests(name, small, tell):
    chosen = [f"tests/test_{name}.py" for name in ("model", "memory", "ppo", "stages")]
    chosen = ["tests/test_memory.py", "-k", "recipes"] if small else chosen
    made = subprocess.run([sys.executable, "-m", "pytest", "-q", *chosen], cwd=ROOT, check=False,
                          capture_output=True, encoding="utf-8")
    print(made.stdout, made.stderr, flush=True)
    lines = made.stdout.splitlines()
    tell(what="pytest", exit=made.returncode, said=lines[-1].strip("= ") if lines else "nothing")
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            tell(what=line[:300])


PARTS = {"device": device, "decoding": decoding, "sft": sft, "ppo": ppo_7b, "tests": tests,
         "world": world}


# ---- each in its process -------------------------------------------------------------------------


def part(name, command, folder, limit):
    "A part's command, for `limit` seconds at most -> {rows, seconds, end}, whatever happens."
    rows, began = Path(folder) / f"{name}.jsonl", time.time()
    rows.write_bytes(b"")
    with open(Path(folder) / f"{name}.log", "wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        try:
            code = child.wait(limit)
            end = "done" if code == 0 else f"failed with exit code {code}: see {name}.log"
        except subprocess.TimeoutExpired:
            end = f"stopped after {limit:.0f} seconds"
        finally:
            if child.poll() is None:
                stop(child)
    return {"rows": files.read_log(rows), "seconds": time.time() - began, "end": end}


def stop(child):
    "End a process, and those that it has started."
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()


def shown(value):
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value).replace("|", "/")


def report(found):
    "{part: {rows, seconds, end}} -> Markdown."
    lines = ["# On a GPU", ""]
    for name, one in found.items():
        lines += [f"## {name}: {one['end']}, {one['seconds']:.0f} s", ""]
        columns = list(dict.fromkeys(key for row in one["rows"] for key in row))
        if columns:
            lines += ["| " + " | ".join(key.replace("_", " ") for key in columns) + " |",
                      "|---" * len(columns) + "|"]
            lines += ["| " + " | ".join(shown(row.get(key)) for key in columns) + " |"
                      for row in one["rows"]] + [""]
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (all, if none is named)")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", default="out/gpu")
    parser.add_argument("--device", default="cuda", help="cpu: small shapes, to try the command")
    parser.add_argument("--rows", default="", help=argparse.SUPPRESS)  # we are the part's process
    args = parser.parse_args(argv)
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"there is no {name!r}: choose from {', '.join(PARTS)}")
    try:
        device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.rows:
        return write_rows(args.parts[0], device, args.rows)
    folder, found, began = Path(args.out).resolve(), {}, time.time()
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.parts or PARTS:
        left = 60 * args.minutes - (time.time() - began)
        if left < 5:
            found[name] = {"rows": [], "seconds": 0.0, "end": "no time was left"}
        else:
            command = [sys.executable, "-m", "tests.gpu", name, "--device", device, "--rows",
                       str(folder / f"{name}.jsonl")]
            limit = left if args.parts else min(left, LIMITS[name] * 60 * args.minutes)
            found[name] = part(name, command, folder, limit)
        files.write_file(folder / "gpu.json", json.dumps(found, indent=1) + "\n")
        files.write_file(folder / "gpu.md", report(found))
        print(report({name: found[name]}).split("\n", 2)[2], flush=True)
    print(f"wrote {folder / 'gpu.md'} and {folder / 'gpu.json'}")
    sys.exit(any(one["end"] != "done" for one in found.values()))


def write_rows(name, device, path):
    with open(path, "a", encoding="utf-8") as file:
        def tell(**row):
            file.write(json.dumps(row) + "\n")
            file.flush()
        PARTS[name](device, device == "cpu", tell)


if __name__ == "__main__":
    main()
