"""
reward.py - learn one number per response that ranks responses the way people do.

    loss = -E log sigmoid(r(x, y_chosen) - r(x, y_rejected))       Sec. 3.2, Stiennon et al. 2020,
                                                                   arXiv:2009.01325
    python reward.py                     # about two minutes on two CPU cores; the last line reads
                                         # the share of held-out pairs it orders as their quality

On the embedded world the comparisons are collected here: answers sampled from the SFT policy, and
references beside edits of them, each pair shown once to a noisy annotator. With `--comparisons
FILE` (or data that brings its own) they are read instead.
"""

import itertools
import math
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import metrics
import model as m


@dataclass
class Config:
    data: str = "summarise"  # summarise or instruct (embedded), or a JSON lines file or folder
    init: str = ""  # the SFT policy to start from (default: sft.pt of the run folder)
    comparisons: str = ""  # a JSON lines file of comparisons, instead of collecting them
    steps: int = 300  # optimiser steps
    batch: int = 32  # comparisons per step
    lr: float = 5e-4  # peak learning rate: 3 % warm-up, then a cosine to zero
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the head, the comparisons and their order
    resume: bool = False  # go on from where an interrupted run was saved
    sampled: float = 0.6  # share of comparisons between two samples; the rest: references and edits
    temperature: float = 1.0  # of those samples
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu or cuda

    micro: int = 0  # comparisons per forward pass, for memory (0: the whole batch)
    eval_size: int = 500  # held-out comparisons for the accuracy
    every: int = 50  # steps between evaluations, saves and logged lines

    def __post_init__(self):
        metrics.within(self, 1, float("inf"), "steps", "batch", "eval_size", "every")
        metrics.within(self, 0, float("inf"), "lr", "micro", "seed", "temperature")
        metrics.within(self, 0, 1, "freeze", "sampled")


def loss(chosen, rejected):
    """Bradley-Terry negative log-likelihood: (B,), (B,) -> scalar, info.

    Only differences matter, so the scores' zero and scale are free; `normalise` fixes them later.
    """
    margin = chosen - rejected  # (B,)
    value = -F.logsigmoid(margin).mean()  # log 2 = 0.693 before any training
    return value, {"accuracy": (margin > 0).float().mean().item(), "margin": margin.mean().item()}


def score(model, ids, positions, is_response, start=None):
    "Scores read at the last response token: (B, T), (B, R), (B, R) -> (B,)."
    last = positions.gather(1, is_response.sum(1, keepdim=True) - 1)  # (B, 1)
    return model(ids, start=start).gather(1, last).squeeze(1)  # (B,)


def reward_fn(model, pad, batch=128):
    "A reward checkpoint as the one interface that PPO and best-of-n know: ids, ids -> (B,)."
    device = next(model.parameters()).device

    @torch.no_grad()
    def fn(prompt_ids, response_ids):
        scores = torch.empty(len(prompt_ids))
        lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids)]
        for index in data.batches(lengths, batch):
            rows = data.join([prompt_ids[i] for i in index], [response_ids[i] for i in index], pad)
            scores[index] = score(model, *(t.to(device) for t in rows)).float().cpu()
        return scores
    return fn


def scored(fn, tokenizer, prompts, responses):
    "Scores of texts by a reward function on ids: (N,) numpy."
    return fn([tokenizer.prompt(p) for p in prompts],
              [tokenizer.response(r) for r in responses]).numpy()


def accuracy(fn, tokenizer, prompts, better, worse):
    "Share of pairs of texts that a reward function orders as given; its ties count half."
    return float(metrics.win_rate(scored(fn, tokenizer, prompts, better),
                                  scored(fn, tokenizer, prompts, worse)).mean())


def sample_pairs(policy, tokenizer, prompts, temperature, seed):
    "Two samples for each prompt, as texts: [(a, b), ...]."
    ids = [tokenizer.prompt(p) for p in prompts]
    ids = m.generate(policy, ids, tokenizer.response_tokens, temperature, 2, seed)
    texts = [tokenizer.decode(r).strip() for r in ids]
    return list(zip(texts[::2], texts[1::2]))


def collect(config, policy, tokenizer, split, count):
    "Comparisons that the world's annotator makes: of two samples, or of references and edits."
    rng = np.random.default_rng([config.seed, *split.encode()])
    examples = data.load(config.data, split, count, seed=1 + config.seed)  # not those of the SFT
    rows = []
    for i in tqdm(range(0, count, 512), f"collect {split}", unit="block"):
        block = examples[i:i + 512]
        sampled = block[:round(config.sampled * len(block))]
        pairs = sample_pairs(policy, tokenizer, [e.prompt for e in sampled], config.temperature,
                             seed=config.seed * 1_000_003 + i)
        pairs += [data.world.two_versions(rng, e.prompt, e.response) for e in block[len(sampled):]]
        for k, (e, (a, b)) in enumerate(zip(block, pairs)):
            if a == b or data.world.leaks(a) or data.world.leaks(b):
                continue  # equal texts teach nothing, and held-out facts stay held out
            if not data.world.prefers(rng, e.prompt, a, b):
                a, b = b, a
            kind = "samples" if k < len(sampled) else "edits"
            rows.append(data.Comparison(e.prompt, a, b, {"of": kind, "split": split}))
    return rows


def comparisons(config, folder, policy, tokenizer):
    "Training and validation comparisons: read, or collected and kept for readers and --resume."
    if config.comparisons or config.data not in data.WORLD:
        source = config.comparisons or config.data
        return data.comparisons(source, "train"), data.comparisons(source, "validation")
    path = folder / "comparisons.jsonl"
    if not (config.resume and path.exists()):
        rows = (collect(config, policy, tokenizer, "train", config.steps * config.batch)
                + collect(config, policy, tokenizer, "validation", config.eval_size))
        metrics.write(path, [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected,
                              **r.meta} for r in rows])
    rows = [data.comparison(row, at) for row, at in data.read_rows(path)]
    return tuple([r for r in rows if r.meta["split"] == split] for split in ("train", "validation"))


def quality(fn, policy, tokenizer, name, split, n, seed=0):
    """How well a reward function knows the world's truth on n prompts of a split -> {name: share}.

    gold: two samples of the policy, ordered as by gold score (equal ones left out); length: the
    same if the longer one is always taken; wrong_fact: a reference beside itself with one fact
    changed; permuted: as gold, but each pair is shown with another pair's prompt.
    """
    examples = data.load(name, split, n, seed=2 + seed)
    gold, rng = data.gold(name), np.random.default_rng([seed, 5])
    kept, edits = [], []
    pairs = sample_pairs(policy, tokenizer, [e.prompt for e in examples], 1.0, seed)
    for e, (a, b) in zip(examples, pairs):
        margin = gold(e.prompt, a) - gold(e.prompt, b)
        if abs(margin) > 1e-9:
            kept.append((e.prompt, *((a, b) if margin > 0 else (b, a))))
        edits += [(e.prompt, e.response, text) for text, done in
                  data.world.variants(rng, e.prompt, e.response) if done == "wrong"]
    if not kept or not edits:
        return None  # too few prompts to say anything
    prompts, better, worse = zip(*kept)
    return {"pairs": len(kept), "gold": accuracy(fn, tokenizer, prompts, better, worse),
            "length": float(metrics.win_rate([len(x.split()) for x in better],
                                             [len(x.split()) for x in worse]).mean()),
            "wrong_fact": accuracy(fn, tokenizer, *zip(*edits)),
            "permuted": accuracy(fn, tokenizer, prompts[1:] + prompts[:1], better, worse)}


@torch.no_grad()
def normalise(model, fn, tokenizer, prompts, responses):
    "Shift and scale the scores so that these responses (references) have mean 0 and std 1."
    scores = torch.tensor(scored(fn, tokenizer, prompts, responses))
    if len(scores) < 2 or not scores.std() > 0:
        raise ValueError(f"{len(scores)} reference responses with equal scores give no unit of "
                         f"reward: give more comparisons")
    model.shift += model.scale * scores.mean()
    model.scale *= scores.std()


def train(config):
    "Train, and return the path of the checkpoint."
    torch.manual_seed(config.seed)
    device = m.device(config.device)
    folder = data.run_folder(config.data, config.seed, config.out)
    path = folder / "reward.pt"
    policy, parent = m.load(config.init or folder / "sft.pt", "policy", device)
    tokenizer = data.Tokenizer.of(parent["tokenizer"])
    train_rows, validation = comparisons(config, folder, policy, tokenizer)
    if not train_rows or not validation:
        raise ValueError(f"{config.comparisons or config.data} has {len(train_rows)} comparisons "
                         f"to train on and {len(validation)} to validate with: both need some")

    model, start, state = m.scalar_from(policy), 0, None
    if config.resume:
        model, record = m.load(path, "reward", device, tokenizer.fingerprint, unfinished=True)
        start, state = metrics.resumed(config, record), record["state"]
    m.freeze(model, config.freeze)
    optimizer = m.adamw(model, config.lr)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    fn = reward_fn(model, tokenizer.pad)
    log = metrics.Log(folder, "reward", start if config.resume else None)
    stop = metrics.stop_signal()

    rows = [(tokenizer.prompt(r.prompt),
             tokenizer.response(r.chosen),
             tokenizer.response(r.rejected)) for r in train_rows]
    lengths = [len(p) + max(len(c), len(r)) for p, c, r in rows]
    batches = itertools.islice(data.epochs(lengths, config.batch, config.seed), start,
                               config.steps)
    recent, held_out, began = state["recent"] if state else [], None, time.time()

    for step, index in enumerate(tqdm(batches, "reward", config.steps - start, unit="step"),
                                 start + 1):
        # ---- one optimiser step
        for group in optimizer.param_groups:
            group["lr"] = m.schedule(config.lr, step, config.steps)
        sums = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0}
        for part in torch.tensor(index).split(config.micro or len(index)):
            p, c, r = zip(*(rows[i] for i in part))
            batch = data.join(p + p, c + r, tokenizer.pad)  # one forward for both
            scores = score(model, *(t.to(device) for t in batch))
            value, info = loss(*scores.chunk(2))
            share = len(part) / len(index)
            (value * share).backward()
            sums["loss"] += value.item() * share
            sums["accuracy"] += info["accuracy"] * share
            sums["margin"] += info["margin"] * share
        if not math.isfinite(sums["loss"]):
            raise ValueError(f"the loss is {sums['loss']} at step {step}, which was not taken; try "
                             f"--lr {config.lr / 3:.0e}, or --resume from the last checkpoint")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(sums)

        # ---- once in a while: evaluate, log, save
        finished = step == config.steps
        if step % config.every == 0 or finished:
            held_out = accuracy(fn, tokenizer, *zip(*((r.prompt, r.chosen, r.rejected)
                                                      for r in validation[:config.eval_size])))
            log.log(step, **{k: sum(s[k] for s in recent) / len(recent) for k in sums},
                    validation_accuracy=held_out, lr=group["lr"], seconds=time.time() - began)
            recent = []
        if step % config.every == 0 or finished or stop:
            if finished:  # the zero and the unit of the score: reference responses
                references = [data.Example(r.prompt, r.chosen) for r in train_rows[:500]]
                if config.data in data.WORLD:
                    references = data.load(config.data, "train")[:500]
                normalise(model, fn, tokenizer, [e.prompt for e in references],
                          [e.response for e in references])
            m.save(path, "reward", model, parent["tokenizer"],
                   {"stage": "reward", "step": step, "finished": finished, "config": asdict(config),
                    "parent": parent["digest"], "seed": config.seed,
                    "metrics": {"validation_accuracy": held_out}},
                   {"optimizer": optimizer.state_dict(), "recent": recent})
            if stop and not finished:
                print(f"stopped after step {step} and saved: the same with --resume goes on")
                raise KeyboardInterrupt

    # ---- the result: a curve, some scores, one line, the next command
    picture = folder / "reward.png"
    metrics.curve(picture, metrics.read(log.path),
                  [("Loss", ["loss"], "nats per comparison"),
                   ("Accuracy", ["accuracy", "validation_accuracy"], "share ordered as labelled"),
                   ("Margin", ["margin"], "score, chosen - rejected")])
    shown = validation[:4]
    metrics.side_by_side(folder / "reward.txt", [r.prompt for r in shown],
                         {"chosen": [r.chosen for r in shown],
                          "rejected": [r.rejected for r in shown]},
                         lambda prompt, text: scored(fn, tokenizer, [prompt], [text])[0])
    print(f"reward: orders {held_out:.3f} of {min(len(validation), config.eval_size)} held-out "
          f"comparisons as they were labelled")
    if config.data in data.WORLD:
        found = quality(fn, policy, tokenizer, config.data, "validation", config.eval_size,
                        config.seed)
    if config.data in data.WORLD and found:
        print("against the truth: orders {gold:.3f} of {pairs} pairs of samples as their gold "
              "score does (the longer\none: {length:.3f}), {wrong_fact:.3f} of pairs that differ "
              "in one fact, {permuted:.3f} under other prompts".format(**found))
    print(f"wrote {path}, {log.path} and {picture}; next: python ppo.py --data {config.data}")
    return path


if __name__ == "__main__":
    metrics.cli(Config, train)
