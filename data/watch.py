"""
What is watched while a policy trains: the same prompts again and again, answered, and in ppo.py
scored; and the log's statistics of an iteration.
"""

import shutil

import torch

import data
import metrics
import model as m
from data import files
from data.run import check_finite, say

FOLLOWED = 128  # validation prompts that curves and the last line are of
SHOWN = ("score", "ended", "proxy", "gold", "kl", "length", "entropy", "clip_fraction")
PANELS = [("Reward, the same prompts", ["validation_score", "validation_proxy", "validation_gold"],
           "mean"),
          ("KL to SFT", ["kl", "kl_k3"], "nats per response"),
          ("Length", ["length"], "tokens"), ("Entropy", ["entropy"], "nats per token"),
          ("Value loss", ["value_loss"], "squared score"),
          ("Clip fraction", ["clip_fraction"], "share of tokens")]


def follower(config, run, reward_fn, shaped, gold):
    """policy -> its mean scores on the same prompts with the same random numbers, at any time. (An
    iteration's prompts are of like length, on which scores depend: iterations do not compare.)
    `shaped` makes what PPO is given of what `reward_fn` says."""
    texts = [e.prompt for e in run.validation(FOLLOWED)]
    prompts = [run.tokenizer.prompt(text) for text in texts]

    def rated(prompts, responses):
        proxy = torch.as_tensor(reward_fn(prompts, responses), dtype=torch.float32).cpu()
        check_reward(proxy, len(responses))
        return proxy, shaped(proxy, responses, run.model.config.eos,
                             run.tokenizer.response_tokens, config)
    run.score = lambda *ids: rated(*ids)[1]  # of the samples by step, too

    def scores(policy):
        responses = m.generate(policy, prompts, run.tokenizer.response_tokens, config.temperature,
                               seed=config.seed)
        proxy, score = rated(prompts, responses)
        row = {"validation_score": score.mean().item(), "validation_proxy": proxy.mean().item()}
        if gold:
            row["validation_gold"] = mean_gold(gold, texts, run.tokenizer, responses)
        return row
    return scores


def warn(run, row):
    """A sentence while there is time: where what PPO is given has fallen on the same prompts, and
    in the iteration from which on hardly any response ends."""
    before = run.state["before"].get("validation_score", 0.0)
    now = row.get("validation_score", before)  # which is known every `--every`
    if now < before - 0.1:
        say(f"the score has fallen from {before:.2f} to {now:.2f} on the same prompts: this run "
            f"learns what it is not rewarded for; try --lam 1 (this is {run.config.lam:g}), "
            f"--baseline rloo or a lower --lr")
    if row["ended"] < 0.2 and run.state.get("ends", True):
        say(f"only {row['ended']:.0%} of the responses end: all others score alike, so that little "
            f"can be learned; see whether {run.config.init or 'sft.pt'} ends its own")
    run.state["ends"] = row["ended"] >= 0.2


def sample(run):
    "Append a run's answers to the prompts of `run.shown` to its samples; show the first of them."
    prompts, responses, answers = run.answer(run.model)
    rows = [{"prompt": e.prompt, "answer": text} for e, text in zip(run.shown, answers)]
    gold, scores = data.gold(run.config.data), run.score and run.score(prompts, responses).tolist()
    for i, row in enumerate(rows):
        row |= {"score": scores[i]} if scores else {}
        row |= {"gold": gold(row["prompt"], row["answer"])} if gold else {}
        run.samples.write(run.step, **row)
    room = shutil.get_terminal_size().columns - 8
    for row in rows[:1]:
        say(f"prompt  {one_line(row['prompt'], -room)}\nanswer  {one_line(row['answer'], room)}")


def one_line(text, width):
    "What there is room for of a text's beginning, or, below 0, end; no letter moves the cursor."
    line = " ".join("".join(x if x.isprintable() else " " for x in text).split())
    if len(line) <= abs(width):
        return line
    return f"{line[:width - 3]}..." if width > 0 else f"...{line[width + 3:]}"


def mean_gold(gold, texts, tokenizer, responses):
    "The true quality of as many responses to each text, which only the reader sees."
    n = len(responses) // len(texts)
    return sum(gold(texts[i // n], tokenizer.decode(r).strip())
               for i, r in enumerate(responses)) / len(responses)


def check(row, max_kl):
    "ValueError if an iteration's statistics are not finite, or its KL is beyond --max-kl."
    check_finite(row)
    if max_kl and row["kl"] > max_kl:
        raise ValueError(f"the KL to the SFT policy is {row['kl']:.2f} nats, beyond --max-kl "
                         f"{max_kl:g}, which a higher --beta would keep")


def check_reward(proxy, n):
    "The rewards of n responses, or ValueError: somebody's own function may give anything."
    if proxy.shape != (n,) or not proxy.isfinite().all():
        raise ValueError(f"the reward must be {n} finite numbers, one per response, and is {proxy}")
    return proxy


def check_same(stats, precision):
    "Before the first step nothing was learned, so nothing may have changed."
    same = stats["ratio_gap"] < 1e-4 and stats["clip_fraction"] == 0
    if precision is not None:  # eight bits, rounded otherwise in another batch
        same = stats["approx_kl"] < 0.01
    assert same, f"before its first step the policy differs from itself: {stats}"


def last_line(run):
    "What changed on the same prompts, and how far the last five iterations were."
    before, rows = run.state["before"], files.read_log(run.journal.path)
    kl = sum(row["kl"] for row in rows[-5:]) / len(rows[-5:])
    moved = ", ".join(f"{name.removeprefix('validation_')} {x:.2f} -> {rows[-1][name]:.2f}"
                      for name, x in before.items())
    return f"{moved} on the same validation prompts, {kl:.2f} nats per response from SFT"


def statistics(score, proxy, logp, logp_ref, is_response, responses, eos):
    "Means of an iteration's responses: (B,), (B,), (B, R) three times, lists of ids -> {name: x}."
    k1, k3 = metrics.kl_estimates(*(t.cpu().double().numpy() for t in (logp, logp_ref)),
                                  is_response.cpu().numpy())
    return {"score": score.mean().item(), "proxy": proxy.mean().item(),
            "kl": float(k1.mean()), "kl_k3": float(k3.mean()),
            "length": sum(map(len, responses)) / len(responses),
            "ended": sum(r[-1] in eos for r in responses) / len(responses)}
