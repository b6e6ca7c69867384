"""
sft.py - supervised fine-tuning: imitate what people wrote.

    loss = -sum_t log pi(y_t | x, y_<t) / #tokens     over the response y only, not the prompt x
                                                      Sec. 3.4, Stiennon et al. 2020,
                                                      arXiv:2009.01325

    python sft.py                        # about a minute on two CPU cores; the last lines show
                                         # four prompts with the base model's and the SFT answer

Pretraining is the same loss with every token counted as response: `--stage base` runs it from
random weights, `--init scratch` runs it first and fine-tunes the result.
"""

import itertools
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import data
import metrics
import model as m


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = "base"  # base (shipped), scratch (pretrain first), a checkpoint, a pretrained model
    steps: int = 200  # optimiser steps
    batch: int = 32  # rows per step
    lr: float = 3e-4  # peak learning rate: 3 % warm-up, then a cosine to a tenth
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the weights, the order of the data and the samples
    resume: bool = False  # go on from where an interrupted run was saved
    stage: Literal["sft", "base"] = "sft"  # base: pretrain on raw text instead of fine-tuning
    tokenizer: str = "world"  # of a new base: world, gpt2, or a file made by python -m data.bpe
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu or cuda

    micro: int = 0  # rows per forward pass, for memory (0: the whole batch)
    eval_size: int = 256  # validation examples for the loss
    every: int = 50  # steps between evaluations, saves and logged lines
    prompt_tokens: int = 0  # longer prompts lose their post's end (0: as --init; a new base: 224)
    response_tokens: int = 0  # longer responses are cut, then ended (0: as --init; a new base: 48)
    base_steps: int = 3000  # steps of the pretraining that --init scratch does first
    layers: int = 4  # of a new base, as are the next three
    channels: int = 128  # width of a new base
    heads: int = 4  # attention heads of a new base
    context: int = 320  # longest row a new base can read

    def __post_init__(self):
        metrics.within(self, 1, float("inf"), "steps", "batch", "eval_size", "every", "base_steps",
                       "layers", "channels", "heads", "context")
        metrics.within(self, 0, float("inf"), "lr", "micro", "seed", "prompt_tokens",
                       "response_tokens")
        metrics.within(self, 0, 1, "freeze")


BASE = Path(__file__).parent / "data" / "base.pt"  # the shipped base model of the embedded world
BASE_LR = 3e-3  # of the pretraining that --init scratch does


def loss(logp, is_response, tokens=None):
    """Mean negative log-likelihood per response token: (B, R), (B, R) -> scalar, info.

    `tokens` is the count in the whole batch when these rows are only a part of it: losses of the
    parts then add up to the loss of the whole, however the rows were split.
    """
    total = -torch.where(is_response, logp, 0.0).sum()
    count = is_response.sum() if tokens is None else tokens
    value = total / max(int(count), 1)
    return value, {"loss": value.item()}


def encode(tokenizer, examples):
    return [(tokenizer.prompt(e.prompt), tokenizer.response(e.response)) for e in examples]


def stream(config, tokenizer):
    """Yields each step's rows, (prompt ids, response ids); for the base, a text is one response.

    Their order is a function of the seed and nothing else, so that a resumed run, which skips what
    it has seen, goes on exactly where it stopped.
    """
    epoch = 0
    while True:
        seed = config.seed * 100_003 + epoch
        if config.stage == "base":  # the world writes fresh text: no base reads the same one twice
            longest = tokenizer.prompt_tokens + tokenizer.response_tokens
            rows = []
            for thread in data.texts(config.data, 200 * config.batch, seed):
                ids = [i for text in thread for i in tokenizer.encode(text) + [tokenizer.eos]]
                rows.append((ids[:1], ids[1:longest]))
        elif epoch == 0:
            rows = encode(tokenizer, data.load(config.data, "train"))
        order = torch.Generator().manual_seed(seed)
        for index in data.batches([len(p) + len(r) for p, r in rows], config.batch, order):
            yield [rows[i] for i in index]
        epoch += 1


@torch.no_grad()
def evaluate(policy, rows, pad, device, batch=64):
    "Mean loss per response token over all rows, in nats."
    total, tokens = 0.0, 0
    for index in data.batches([len(p) + len(r) for p, r in rows], batch):
        ids, positions, is_response = (t.to(device) for t in data.join(
            *zip(*(rows[i] for i in index)), pad))
        count = int(is_response.sum())
        total += loss(m.logprobs(policy, ids, positions), is_response)[0].item() * count
        tokens += count
    return total / tokens


def start_from(config):
    "The network to train, its tokeniser and its parent's digest: fresh, shipped, or a checkpoint."
    if config.stage == "base":
        tokenizer = data.Tokenizer(config.tokenizer, config.prompt_tokens or 224,
                                   config.response_tokens or 48)
        shape = m.ModelConfig(vocab_size=tokenizer.vocab_size, context=config.context,
                              layers=config.layers, heads=config.heads, kv_heads=config.heads,
                              channels=config.channels, hidden=config.channels * 11 // 4,
                              eos=(tokenizer.eos,))
        return m.Transformer(shape), tokenizer, None
    policy, record = m.load(BASE if config.init == "base" else config.init, "policy")
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    tokenizer.prompt_tokens = config.prompt_tokens or tokenizer.prompt_tokens
    tokenizer.response_tokens = config.response_tokens or tokenizer.response_tokens
    return policy, tokenizer, record["digest"]


def pretrained(config, folder):
    "`--init scratch`: trains the base, or finishes it -> the config that starts from it."
    made = False
    if config.resume and (folder / "base.pt").exists():
        _, record = m.load(folder / "base.pt", "policy", unfinished=True)
        made = record["meta"]["finished"]
    if not made:
        train(replace(config, stage="base", steps=config.base_steps, lr=BASE_LR))
    return replace(config, init=str(folder / "base.pt"), resume=made and config.resume)


def report(config, folder, tokenizer, policies, examples):
    "The curve, and prompts with the answers of each of `policies`."
    metrics.curve(folder / f"{config.stage}.png", metrics.read(folder / f"{config.stage}.jsonl"),
                  [("Loss", ["loss", "validation_loss"], "nats per token")])
    prompts, answers = [tokenizer.prompt(e.prompt) for e in examples], {}
    for name, policy in policies.items():
        ids = m.generate(policy, prompts, tokenizer.response_tokens, seed=config.seed)
        answers[name] = [tokenizer.decode(r) for r in ids]
    answers["reference"] = [e.response for e in examples]
    metrics.side_by_side(folder / f"{config.stage}.txt", [e.prompt for e in examples], answers,
                         data.gold(config.data))


def train(config):
    "Train, and return the path of the checkpoint."
    torch.manual_seed(config.seed)
    device = m.device(config.device)
    folder = data.run_folder(config.data, config.seed, config.out)
    path = folder / f"{config.stage}.pt"
    if config.stage == "sft" and config.init == "scratch":
        config = pretrained(config, folder)

    model, tokenizer, parent = start_from(config)
    if tokenizer.prompt_tokens + tokenizer.response_tokens > model.config.context:
        raise ValueError(f"--prompt-tokens {tokenizer.prompt_tokens} and --response-tokens "
                         f"{tokenizer.response_tokens} are more than the {model.config.context} "
                         f"tokens that this model can read")
    m.freeze(model, config.freeze)
    m.settle(model, device)
    model.recompute = config.micro > 0
    before = m.fixed(model)  # for the samples at the end

    start, state = 0, None
    if config.resume:
        trained, record = m.load(path, "policy", tokenizer=tokenizer.fingerprint, unfinished=True)
        start, state = metrics.resumed(config, record), record["state"]
        model.load_state_dict(trained.state_dict())
    fresh = config.stage == "base"
    optimizers = m.pretrainers(model, config.lr) if fresh else [m.adamw(model, config.lr)]
    if state:
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)

    shown = data.load(config.data, "validation")[:config.eval_size]
    if not shown:
        raise ValueError(f"{config.data} has no validation examples: add some")
    validation = encode(tokenizer, shown)
    first_loss = validation_loss = evaluate(before, validation, tokenizer.pad, device)
    if state:
        validation_loss = record["meta"]["metrics"]["validation_loss"]
    _held = metrics.lock(folder)  # until this function ends
    log = metrics.Log(folder, config.stage, start if config.resume else None)
    stop = metrics.stop_signal()
    batches = itertools.islice(stream(config, tokenizer), start, config.steps)
    recent, seen, began = state["losses"] if state else [], 0, time.time()

    def save(step, finished):  # finished: whatever the run writes is there
        small = finished and fresh  # to be shipped: bf16, nothing to resume
        m.save(path, "policy", model, tokenizer.record,
               {"stage": config.stage, "step": step, "finished": finished,
                "config": asdict(config), "parent": parent, "seed": config.seed,
                "metrics": {"validation_loss": validation_loss}},
               None if small else {"optimizers": [o.state_dict() for o in optimizers],
                                   "losses": recent},
               torch.bfloat16 if small else None)

    for step, batch in enumerate(tqdm(batches, config.stage, config.steps - start, unit="step"),
                                 start + 1):
        # ---- one optimiser step
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = m.schedule(config.lr, step, config.steps)
        micro = config.micro or len(batch)
        total, tokens = 0.0, sum(len(r) for _, r in batch)
        for i in range(0, len(batch), micro):
            part = batch[i:i + micro]
            ids, positions, is_response = (
                t.to(device) for t in data.join(*zip(*part), tokenizer.pad))
            value, info = loss(m.logprobs(model, ids, positions), is_response, tokens)
            value.backward()
            total += info["loss"]
        with metrics.at(f"{config.stage}, step {step}"):
            m.clip_gradients(model.named_parameters(), {"loss": total})
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(total)
        seen += tokens

        # ---- once in a while: evaluate, log, save
        last = step == config.steps
        if step % config.every == 0 or last:
            validation_loss = evaluate(model, validation, tokenizer.pad, device)
            log.log(step, loss=sum(recent) / len(recent), validation_loss=validation_loss,
                    lr=group["lr"], tokens_per_second=seen / (time.time() - began))
            recent = []
        if step % config.every == 0 or last or stop:
            save(step, finished=False)
            if stop and not last:
                print(f"stopped after step {step} and saved: the same with --resume goes on")
                raise KeyboardInterrupt

    report(config, folder, tokenizer, {"before": before, "after": model}, shown[:4])
    save(config.steps, finished=True)
    print(f"{config.stage}: validation loss {first_loss:.3f} -> {validation_loss:.3f} nats per "
          f"response token")
    print(f"wrote {path}, {log.path} and {path.with_suffix('.png')}; next: python "
          f"{'reward' if config.stage == 'sft' else 'sft'}.py --data {config.data}")
    return path


if __name__ == "__main__":
    metrics.cli(Config, train)
