"""
What the three stages of one run are worth, against the embedded world's gold score.

    python -m tests.evaluate --data summarise --seeds 0 1 2 -n 500

Reads the checkpoints of finished runs and prints, for every split, the gold win rate against
references of base, SFT and RLHF at several temperatures with their KL from SFT at temperature 1,
the diversity per input, and what the reward model knows. Writes out/<data>/evaluate.json.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import data
import metrics
import model as m
import reward
import sft

POLICIES = [("base", 1.0), ("sft", 1.0), ("sft", 0.7), ("sft", 0.5), ("sft", 0.3), ("sft", 0.0),
            ("rlhf", 1.0), ("rlhf", 0.7), ("rlhf", 0.5), ("rlhf", 0.3), ("rlhf", 0.0)]


@torch.no_grad()
def loglikelihood(model, tokenizer, prompts, responses, temperature):
    "Log-probability of each whole response, (N,); of a greedy policy it is 0."
    if temperature == 0:
        return np.zeros(len(prompts))
    out = np.zeros(len(prompts))
    for index in data.batches([len(p) + len(r) for p, r in zip(prompts, responses)], 128):
        ids, positions, is_response = data.join([prompts[i] for i in index],
                                                [responses[i] for i in index], tokenizer.pad)
        logp = m.logprobs(model, ids, positions, temperature)
        out[index] = torch.where(is_response, logp, 0.0).sum(1).numpy()
    return out


def evaluate(name, seed, n, out):
    folder = data.run_folder(name, seed, out)
    base, _ = m.load(sft.BASE, "policy")
    policy, record = m.load(folder / "sft.pt", "policy")
    rlhf, _ = m.load(folder / "ppo.pt", "policy")
    scorer, _ = m.load(folder / "reward.pt", "reward")
    tokenizer, gold = data.Tokenizer.of(record["tokenizer"]), data.gold(name)
    fn = reward.reward_fn(scorer, tokenizer.pad)
    networks, found = {"base": base, "sft": policy, "rlhf": rlhf}, {}
    for split in data.world.SPLITS[name]:
        examples = data.load(name, split, n)
        prompts = [tokenizer.prompt(e.prompt) for e in examples]
        references = [gold(e.prompt, e.response) for e in examples]
        rows = {}
        for which, temperature in POLICIES:
            ids = m.generate(networks[which], prompts, tokenizer.response_tokens, temperature,
                             seed=seed)
            texts = [tokenizer.decode(r).strip() for r in ids]
            scores = [gold(e.prompt, t) for e, t in zip(examples, texts)]
            mean, low, high, _ = metrics.interval(metrics.win_rate(scores, references))
            kl = (loglikelihood(networks[which], tokenizer, prompts, ids, temperature)
                  - loglikelihood(policy, tokenizer, prompts, ids, 1.0))
            rows[f"{which} T={temperature:g}"] = {
                "win_rate": mean, "low": low, "high": high, "gold": float(np.mean(scores)),
                "kl": float(kl.mean()), "words": float(np.mean([len(t.split()) for t in texts])),
                "ended": float(np.mean([r[-1] == tokenizer.eos for r in ids])),
                "proxy": float(fn(prompts, ids).mean())}
        for which in ("sft", "rlhf"):
            few = prompts[:min(n, 60)]
            texts = [tokenizer.decode(r).strip() for r in m.generate(
                networks[which], few, tokenizer.response_tokens, 1.0, num_samples=16, seed=seed)]
            rows[f"{which} T=1"]["per_input_ead"] = float(metrics.per_input(
                [texts[16 * i:16 * i + 16] for i in range(len(few))], metrics.ead).mean())
        found[split] = {"policies": rows, "reward": reward.quality(
            fn, policy, tokenizer, name, split, max(n * 5 // 2, 40), seed)}
        show(name, seed, split, found[split])
    return found


def show(name, seed, split, found):
    print(f"\n{name}, seed {seed}, {split}")
    print(" " * 12 + "".join(
        k.rjust(10) for k in ("win rate", "gold", "KL", "words", "proxy", "EAD")))
    for policy, row in found["policies"].items():
        print(policy.ljust(12) + "".join(f"{row[k]:10.3f}" if k in row else "" for k in (
            "win_rate", "gold", "kl", "words", "proxy", "per_input_ead")))
    print("reward model: " + ", ".join(f"{k} {v:.3f}" for k, v in found["reward"].items()),
          flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=data.WORLD, default="summarise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("-n", type=int, default=500, help="prompts a split")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()
    results = {seed: evaluate(args.data, seed, args.n, args.out) for seed in args.seeds}
    path = Path(args.out) / args.data / "evaluate.json"
    path.write_text(json.dumps(results, indent=1))
    print(f"\nwrote {path}")
