"""
reward.py - learn one number per response that ranks responses the way people do.

    loss = -E log sigmoid(r(x, y_chosen) - r(x, y_rejected))       Sec. 3.4, Stiennon et al. 2020,
                                                                   arXiv:2009.01325
    python reward.py                     # about two minutes on two CPU cores; the last line has
                                         # the share of held-out pairs it orders as their quality

The comparisons are read from `--comparisons FILE` or from data that brings its own, or collected by
data/collect.py: by default the embedded world's annotator labels edits of references and answers of
the SFT policy; with `--annotator NAME`, on any data, a language model does.
All comparisons of a prompt share a step, so that each response is scored once, however many it
stands in (Sec. 3.5, Ouyang et al. 2022, arXiv:2203.02155). Beside the loss above stands the
language-modelling loss of chosen responses, `--lm 0` for none (see `lm_loss`).
"""

import itertools
import time
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import metrics
import model as m
from data import collect


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct, tldr, alpaca, hh, OWNER/NAME, a file or a folder
    init: str = ""  # a checkpoint or pretrained model (default: sft.pt of the run folder)
    steps: int = 400  # optimiser steps
    batch: int = 20  # prompts per step, each with all of its comparisons
    lr: float = 2e-3  # peak learning rate: 3 % warm-up, then a cosine to a tenth
    freeze: float = 0.0  # share of the layers, from the bottom, that stay as they are (paper: 0.8)
    seed: int = 0  # of the head, the comparisons and their order
    resume: bool = False  # go on from where an interrupted run was saved
    comparisons: str = ""  # a JSON lines file of comparisons, instead of collecting them
    sampled: float = 0.25  # share of prompts with samples to compare; the rest: edits of references
    temperature: float = 1.0  # of those samples
    lm: float = 1.0  # weight of the language-modelling loss on chosen responses (paper: 0)
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu or cuda

    micro: int = 0  # prompts per forward pass, for memory (0: the whole batch)
    eval_size: int = 500  # held-out comparisons for the accuracy
    every: int = 50  # steps between evaluations, saves and logged lines
    variant: str = ""  # a folder below the run's, for a run that differs from the main one
    annotator: str = "world"  # who labels what is collected: the world, or a language model's name

    def __post_init__(self):
        metrics.within(self, 1, float("inf"), "steps", "batch", "eval_size", "every")
        metrics.within(self, 0, float("inf"), "lr", "micro", "seed", "temperature", "lm")
        metrics.within(self, 0, 1, "freeze", "sampled")
        if self.comparisons and self.annotator != "world":
            raise ValueError("--comparisons are labelled already: leave out --annotator, or them")


def loss(chosen, rejected):
    """Bradley-Terry negative log-likelihood: (B,), (B,) -> scalar, info.

    Only differences matter, so the scores' zero and scale are free; `normalise` fixes them later.
    """
    margin = chosen - rejected  # (B,)
    value = -F.logsigmoid(margin).mean()  # log 2 = 0.693 before any training
    return value, {"accuracy": (margin > 0).float().mean().item(), "margin": margin.mean().item()}


def lm_loss(policy, ids, segment, hidden):
    """Language-modelling loss of each row's first response, a chosen one, by the policy's own
    output matrix: (B, T), (B, T), (B, T, C) -> (B,), nats per token.

    It keeps the hidden states able to predict the text. What a network copies from the prompt in
    order to write is what it needs in order to check, and noisy comparisons would wear it away:
    without this loss a wrong fact is seen in .58 of pairs where with it .80 are, after 300 steps of
    edits. Sec. 3.2, Yang et al. 2024, arXiv:2406.10216
    """
    start, length = ((segment == k).sum(1, keepdim=True) for k in (0, 1))  # (B, 1)
    step = torch.arange(int(length.max()), device=ids.device)  # (R,)
    positions = torch.minimum(start + step, start + length - 1)  # (B, R)
    logp = m.logprobs(policy, ids, positions, hidden=m.take(hidden, positions - 1))  # (B, R)
    return -torch.where(step < length, logp, 0.0).sum(1) / length.squeeze(1)


def score(model, ids, positions, is_response, bottom=None):
    "Scores read at the last response token: (B, T), (B, R), (B, R) -> (B,)."
    last = positions.gather(1, is_response.sum(1, keepdim=True) - 1)  # (B, 1)
    return model(ids, bottom=bottom, at=last).squeeze(1)  # (B,)


def reward_fn(model, pad, batch=128):
    "A reward model as the one interface that PPO and best-of-n know: ids, ids -> (B,)."
    device = next(model.parameters()).device

    @torch.no_grad()
    def fn(prompt_ids, response_ids):
        scores = torch.empty(len(prompt_ids))
        for places, ids, segment, last in data.shared_rows(prompt_ids, response_ids, pad, batch):
            scores[places] = model(ids.to(device), segment=segment.to(device))[last].float().cpu()
        return scores
    return fn


def text_scorer(fn, tokenizer):
    "A reward function as a function of texts: prompts, responses -> (N,) numpy."
    return lambda prompts, responses: fn([tokenizer.prompt(p) for p in prompts],
                                         [tokenizer.response(r) for r in responses]).numpy()


def load_text_scorer(path):
    "A reward checkpoint as a function of texts, as above."
    model, record = m.settled(path, "reward", m.device("auto"))
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    return text_scorer(reward_fn(model, tokenizer.pad), tokenizer)


def text_sampler(policy, tokenizer):
    "A policy as a function of texts: prompts, temperature, n, seed -> n samples of each, in lists."
    def sample(prompts, temperature, n, seed):
        ids = [tokenizer.prompt(p) for p in prompts]
        ids = m.generate(policy, ids, tokenizer.response_tokens, temperature, n, seed)
        texts = [tokenizer.decode(r).strip() for r in ids]
        return [texts[i:i + n] for i in range(0, len(texts), n)]
    return sample


def packed(tokenizer, groups):
    """Comparisons, a list over prompts of lists, with each prompt and each response once -> ids
    (B, T), segment (B, T) and last (N responses), as by data.join_groups, and pairs (comparisons,
    2): which of the N was chosen and which rejected."""
    answers, pairs, n = [], [], 0
    for group in groups:
        place = {}  # of each of the prompt's responses, once
        pairs += [[n + place.setdefault(text, len(place)) for text in (row.chosen, row.rejected)]
                  for row in group]
        answers.append([tokenizer.response(text) for text in place])
        n += len(place)
    prompts = [tokenizer.prompt(group[0].prompt) for group in groups]
    return *data.join_groups(prompts, answers, tokenizer.pad), torch.tensor(pairs)


def stream(config, rows):
    """Yields each step's comparisons, a list over `batch` prompts of lists.

    Edits come before samples. Whether an answer is true is the harder lesson: mixed with the noise
    of annotators who compare two middling samples it is not learned in so few steps, and what comes
    after does not undo it.
    """
    kinds = {}
    for row in rows:
        prompts = kinds.setdefault(str(row.meta.get("of")), {})
        prompts.setdefault(row.prompt, []).append(row)
    total, seen, taken = sum(map(len, kinds.values())), 0, 0
    for prompts in kinds.values():
        groups = list(prompts.values())
        seen += len(groups)
        steps = round(config.steps * seen / total) - taken  # in proportion to its prompts
        taken += steps
        lengths = [len(g[0].prompt) + sum(map(len, {text for row in g for text in
                                                    (row.chosen, row.rejected)})) for g in groups]
        batches = data.epochs(lengths, config.batch, config.seed)
        for index in itertools.islice(batches, steps):
            yield [groups[i] for i in index]


def evaluate(score_texts, rows):
    "Share of comparisons that are ordered as they were labelled."
    return collect.accuracy(score_texts, [(r.prompt, r.chosen, r.rejected) for r in rows])


def start_from(config, folder):
    "The SFT policy of a run folder, or what `--init` names; its tokeniser and its digest."
    policy, record = m.load(config.init or folder / "sft.pt", "policy")
    return policy, data.Tokenizer.of(record["tokenizer"]), record["digest"]


def references(config, rows):
    "Up to 500 responses that give the score its zero and unit, with their prompts: texts, texts."
    found = [(row.prompt, row.chosen) for row in rows[:500]]
    if config.data in data.WORLD:
        found = [(e.prompt, e.response) for e in data.load(config.data, "train")[:500]]
    return zip(*found)


@torch.no_grad()
def normalise(model, score_texts, prompts, responses):
    "Shift and scale the scores so that these responses (references) have mean 0 and std 1."
    scores = torch.tensor(score_texts(prompts, responses))
    if len(scores) < 2 or not scores.std() > 0:
        raise ValueError(f"{len(scores)} reference responses with equal scores give no unit of "
                         f"reward: give more comparisons")
    model.shift += model.scale * scores.mean()
    model.scale *= scores.std()


def report(folder, score_texts, rows):
    "The curves, and comparisons with their scores."
    metrics.curve(folder / "reward.png", metrics.read(folder / "reward.jsonl"),
                  [("Loss", ["loss"], "nats per comparison"),
                   ("LM loss", ["lm_loss"], "nats per token"),
                   ("Accuracy", ["accuracy", "validation_accuracy"], "share ordered as labelled"),
                   ("Margin", ["margin"], "score, chosen - rejected")])
    metrics.side_by_side(folder / "reward.txt", [r.prompt for r in rows],
                         {"chosen": [r.chosen for r in rows],
                          "rejected": [r.rejected for r in rows]},
                         lambda prompt, text: score_texts([prompt], [text])[0])


def train(config):
    "Train, and return the path of the checkpoint."
    torch.manual_seed(config.seed)
    device = m.device(config.device)
    parents = data.run_folder(config.data, config.seed, config.out)
    folder = parents / config.variant
    path = folder / "reward.pt"

    policy, tokenizer, parent = start_from(config, parents)
    m.freeze(policy, config.freeze)
    model = m.scalar_from(m.settle(policy, device))
    model.trunk.recompute = config.micro > 0
    policy = m.fixed(policy)  # for the samples, and for the language-modelling loss

    start, state = 0, None
    if config.resume:
        trained, record = m.load(path, "reward", tokenizer=tokenizer.fingerprint, unfinished=True)
        start, state = metrics.resumed(config, record), record["state"]
        model.load_state_dict(trained.state_dict())
    optimizer = m.adamw(model, config.lr)
    if state:
        optimizer.load_state_dict(state["optimizer"])

    _held = metrics.lock(folder)  # until this function ends
    sample = text_sampler(policy, tokenizer)
    rows, validation = collect.comparisons(config, folder, sample, metrics.write)
    if not rows or not validation:
        raise ValueError(f"{config.comparisons or config.data} has {len(rows)} comparisons to "
                         f"train on and {len(validation)} to validate with: both need some")
    score_texts = text_scorer(reward_fn(model, tokenizer.pad), tokenizer)
    validation_accuracy = record["meta"]["metrics"]["validation_accuracy"] if state else None
    log = metrics.Log(folder, "reward", start if config.resume else None)
    stop = metrics.stop_signal()
    batches = itertools.islice(stream(config, rows), start, config.steps)
    recent, began = state["recent"] if state else [], time.time()

    def save(step, finished):  # finished: whatever the run writes is there
        m.save(path, "reward", model, tokenizer.record,
               {"stage": "reward", "step": step, "finished": finished,
                "config": asdict(config), "parent": parent, "seed": config.seed,
                "metrics": {"validation_accuracy": validation_accuracy}},
               {"optimizer": optimizer.state_dict(), "recent": recent})

    for step, batch in enumerate(tqdm(batches, "reward", config.steps - start, unit="step"),
                                 start + 1):
        # ---- one optimiser step
        for group in optimizer.param_groups:
            group["lr"] = m.schedule(config.lr, step, config.steps)
        micro = config.micro or len(batch)
        total = dict.fromkeys(("loss", "accuracy", "margin", "lm_loss"), 0.0)
        for i in range(0, len(batch), micro):
            part = batch[i:i + micro]
            ids, segment, last, pairs = packed(tokenizer, part)
            ids, segment, pairs = ids.to(device), segment.to(device), pairs.to(device)
            hidden = model.trunk(ids, segment=segment)  # (B, T, C)
            scores = model.read(hidden)[last]  # (N,)
            value, info = loss(*scores[pairs].unbind(1))
            written = lm_loss(policy, ids, segment, hidden)  # (B,)
            # this part's share of the step's comparisons, and of its prompts
            shares = len(pairs) / sum(map(len, batch)), len(part) / len(batch)
            (value * shares[0] + config.lm * written.mean() * shares[1]).backward()
            for name, x in {"loss": value.item(), **info}.items():
                total[name] += x * shares[0]
            total["lm_loss"] += written.mean().item() * shares[1]
        with metrics.at(f"reward, step {step}"):
            m.clip_gradients(model.named_parameters(), {k: total[k] for k in ("loss", "lm_loss")})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(total)

        # ---- once in a while: evaluate, log, save
        last = step == config.steps
        if step % config.every == 0 or last:
            validation_accuracy = evaluate(score_texts, validation[:config.eval_size])
            log.log(step, **{k: sum(t[k] for t in recent) / len(recent) for k in total},
                    validation_accuracy=validation_accuracy,
                    lr=group["lr"], seconds=time.time() - began)
            recent = []
        if step % config.every == 0 or last or stop:
            if last:  # what is saved has the zero and the unit of the score
                normalise(model, score_texts, *references(config, rows))
            save(step, finished=False)
            if stop and not last:
                print(f"stopped after step {step} and saved: the same with --resume goes on")
                raise KeyboardInterrupt

    report(folder, score_texts, validation[:4])
    save(config.steps, finished=True)
    print(f"reward: orders {validation_accuracy:.3f} of {min(len(validation), config.eval_size)} "
          f"held-out comparisons as they were labelled")
    found = config.data in data.WORLD and collect.quality(
        score_texts, sample, config.data, "validation", config.eval_size, config.seed)
    if found:
        print("against the truth: orders {gold:.3f} of {pairs} pairs of samples as their gold "
              "score does (the longer\none: {length:.3f}), {wrong_fact:.3f} of pairs that differ "
              "in one fact ({wrong_fact_permuted:.3f} under other prompts)".format(**found))
    print(f"wrote {path}, {log.path} and {path.with_suffix('.png')}; next: python "
          f"ppo.py --data {config.data}")
    return path


if __name__ == "__main__":
    metrics.cli(Config, train)
