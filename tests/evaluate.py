"""
What the three stages of one run are worth, against the embedded world's gold score.

    python -m tests.evaluate --data summarise --seeds 0 1 2 -n 500

    python -m tests.evaluate --data my/folder

Reads the checkpoints of finished runs and prints, for every split, the gold win rate against
references of base, SFT and RLHF at several temperatures with their KL from SFT at temperature 1,
the diversity per input, and what the reward model knows; then what they say together. Each seed's
figures are kept in its run folder, as evaluate.json, and reused while its checkpoints are the
same. For other data, where no gold score exists: for every split the loss of held-out responses
before and after SFT and the reward model's score of outputs before and after PPO, with the KL; and
the reward model's accuracy on the comparisons that are stored, beside the length baseline. On
either, `--judge MODEL` adds the win rate by a language model (see data/judge.py).
"""

import hashlib
import json

import numpy as np

import data
import metrics
import model as m
import reward
import sft
from data import checkpoint, collect, pools, rewards
from data.flags import one_sentence, parser_of
from data.judge import both_orders, llm
from data.run import pick_device

POLICIES = [("base", 1.0)] + [(policy, temperature) for policy in ("sft", "rlhf")
                               for temperature in (1.0, 0.9, 0.8, 0.7, 0.5, 0.3, 0.0)]


def judged(judge, examples, texts):
    "Win rate of texts against the examples' references by a judge."
    rows = [(e.prompt, text, e.response) for e, text in zip(examples, texts)]
    return float(np.mean(both_orders(judge, rows)[0]))


def loaded(folder):
    "A run's tokenizer, its policies by name, and its reward function."
    load = lambda path, kind: checkpoint.load_frozen(path, kind, pick_device("auto"))
    policy, record = load(folder / "sft.pt", "policy")
    init = record["meta"]["config"]["init"]
    base, _ = load(sft.BASE if init == "base" else init, "policy")
    networks = {"base": base, "sft": policy, "rlhf": load(folder / "ppo.pt", "policy")[0]}
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    scorer, _ = load(folder / "reward.pt", "reward")
    return tokenizer, networks, reward.scorer(scorer, tokenizer.pad)


def evaluate(name, seed, n, folder, judge=None):
    tokenizer, networks, fn = loaded(folder)
    policy, gold, found = networks["sft"], data.gold(name), {}
    for split in data.test_splits(name):
        examples = data.load(name, split, n)
        prompts = [tokenizer.prompt(e.prompt) for e in examples]
        references = [gold(e.prompt, e.response) for e in examples]
        ids = {}
        for which, temperature in POLICIES:
            ids[which, temperature] = m.generate(
                networks[which], prompts, tokenizer.response_tokens, temperature, seed=seed)
        # what all policies answered to a prompt is read together
        owners = [p for p in prompts for _ in POLICIES]
        answers = [r for of_one in zip(*ids.values()) for r in of_one]
        proxy = fn(owners, answers).view(len(prompts), -1).mean(0)
        by_sft = pools.loglikelihood(policy, owners, answers, 1.0, tokenizer.pad)
        by_sft = by_sft.reshape(len(prompts), -1)
        rows = {}
        for k, ((which, temperature), mine) in enumerate(ids.items()):
            texts = [tokenizer.decode(r).strip() for r in mine]
            scores = [gold(e.prompt, t) for e, t in zip(examples, texts)]
            won = metrics.win_rate(scores, references)
            mean, low, high, _ = metrics.interval(won)
            own = pools.loglikelihood(networks[which], prompts, mine, temperature, tokenizer.pad)
            rows[f"{which} T={temperature:g}"] = {
                "win_rate": mean, "low": low, "high": high, "gold": float(np.mean(scores)),
                "kl": float((own - by_sft[:, k]).mean()),
                "halves": {name: [float(x[::2].mean()), float(x[1::2].mean())]
                           for name, x in (("win_rate", won), ("kl", own - by_sft[:, k]))},
                "words": float(np.mean([len(metrics.words(t)) for t in texts])),
                "ended": float(np.mean([r[-1] in networks[which].config.eos for r in mine])),
                "proxy": float(proxy[k])}
            if judge:
                rows[f"{which} T={temperature:g}"]["judge"] = judged(judge, examples, texts)
        for which in ("sft", "rlhf"):
            texts = rewards.text_sampler(networks[which], tokenizer)(
                [e.prompt for e in examples[:60]], 1.0, 16, seed)
            rows[f"{which} T=1"]["per_input_ead"] = float(
                metrics.per_input(texts, metrics.ead).mean())
        found[split] = {"policies": rows, "reward": collect.quality(
            rewards.text_scorer(fn, tokenizer), rewards.text_sampler(policy, tokenizer), name,
            split, max(n * 5 // 2, 40), seed)}
        show(name, seed, split, found[split])
    return found


def evaluate_text(name, seed, n, folder, judge=None):
    "What can be said without a gold score, of one run on a user's own data."
    tokenizer, networks, fn = loaded(folder)
    policy, found = networks["sft"], {"splits": {}, "reward model": {}}
    for split in data.test_splits(name):
        examples = data.load(name, split, n)
        prompts = [tokenizer.prompt(e.prompt) for e in examples]
        rows = sft.encode(tokenizer, examples)
        row = found["splits"][split] = {"prompts": len(examples), "reference": {
            "proxy": float(fn(prompts, [r for _, r in rows]).mean()),
            "length": float(np.mean([len(r) for _, r in rows]))}}
        for which, network in networks.items():
            ids = m.generate(network, prompts, tokenizer.response_tokens, seed=seed)
            kl = pools.log_ratio(network, policy, prompts, ids, 1.0, tokenizer.pad)
            row[which] = {"loss": sft.evaluate(network, rows, tokenizer.pad, pick_device("auto")),
                          "proxy": float(fn(prompts, ids).mean()), "kl": float(kl.mean()),
                          "length": float(np.mean([len(r) for r in ids])),
                          "ended": float(np.mean([r[-1] in network.config.eos for r in ids]))}
            if judge:
                row[which]["judge"] = judged(judge, examples, [tokenizer.decode(r) for r in ids])
            for e, r in zip(examples[:4], ids):
                print(f"{split}, {which:>4}: ...{e.prompt[-60:]!r}{tokenizer.decode(r)}")
    for split in ("validation", *data.test_splits(name, pairs=True)):
        found["reward model"][split] = collect.quality(
            rewards.text_scorer(fn, tokenizer), rewards.text_sampler(policy, tokenizer), name,
            split, 5 * n)
    print(json.dumps(found, indent=1))
    return found


def measured(folder, n, judge=None):
    "What kept figures are of: the records beside a run's checkpoints, prompts and judge."
    records = [(folder / f"{stage}.json").read_text() for stage in ("sft", "reward", "ppo")]
    return hashlib.sha256(json.dumps([*records, n, judge]).encode()).hexdigest()


def show(name, seed, split, found):
    print(f"\n{name}, seed {seed}, {split}")
    print(" " * 12 + "".join(
        k.rjust(10) for k in ("win rate", "gold", "KL", "words", "proxy", "EAD", "judge")))
    for policy, row in found["policies"].items():
        print(policy.ljust(12) + "".join(f"{row[k]:10.3f}" if k in row else " " * 10 for k in (
            "win_rate", "gold", "kl", "words", "proxy", "per_input_ead", "judge")))
    print("reward model: " + ", ".join(f"{k} {v:.3f}" for k, v in found["reward"].items()),
          flush=True)


def spread(values):
    "Mean over seeds, with the 95 % t interval where there are several, and every seed."
    mean, _, high, n = metrics.t_interval(values)
    seeds = " ".join(f"{v:.2f}" for v in values)
    return f"{mean:.3f} +- {high - mean:.3f} ({seeds})" if n > 1 else f"{mean:.3f}"


def over_seeds(name, results):
    """The claims, split by split, over the seeds of `results` {seed: {split: found}}.

    SFT's temperature is the best by its mean over the seeds, RLHF's the best of those
    whose mean KL from SFT at temperature 1 is no higher than SFT's at its own. The gain on one half
    of the prompts is at the temperatures that are the best on the other half.
    """
    for split in data.test_splits(name):
        rows = [found[split]["policies"] for found in results.values()]
        of = lambda policy, key: np.array([row[policy][key] for row in rows])
        half = lambda policy, key, k: np.array([row[policy]["halves"][key][k] for row in rows])
        temperatures = [f"T={t:g}" for p, t in POLICIES if p == "sft"]

        def choice(mean):
            best = max(temperatures, key=lambda t: mean(f"sft {t}", "win_rate"))
            near = [t for t in temperatures
                    if mean(f"rlhf {t}", "kl") <= mean(f"sft {best}", "kl")]
            return best, max(near, key=lambda t: mean(f"rlhf {t}", "win_rate"), default=None)

        mean = lambda policy, key: of(policy, key).mean()
        best, mine = choice(mean)
        print(f"\n{name}, {split}, {len(rows)} seeds")
        print("  win rate at T=1:", ", ".join(f"{policy} {spread(of(f'{policy} T=1', 'win_rate'))}"
                                              for policy in ("base", "sft", "rlhf")))
        print("  RLHF - SFT at equal temperature:", ", ".join(
            f"{t} {spread(of(f'rlhf {t}', 'win_rate') - of(f'sft {t}', 'win_rate'))}"
            for t in temperatures))
        print(f"  SFT's best: {best}, win rate {spread(of(f'sft {best}', 'win_rate'))}, KL "
              f"{mean(f'sft {best}', 'kl'):.2f}; SFT greedy {spread(of('sft T=0', 'win_rate'))}")
        if mine:
            gains = []
            for k in (0, 1):
                before, after = choice(lambda policy, key: half(policy, key, 1 - k).mean())
                gains.append(half(f"rlhf {after or mine}", "win_rate", k)
                             - half(f"sft {before}", "win_rate", k))
            print(f"  RLHF at no higher KL: {mine}, win rate "
                  f"{spread(of(f'rlhf {mine}', 'win_rate'))}, KL {mean(f'rlhf {mine}', 'kl'):.2f}; "
                  f"gain {spread(np.mean(gains, axis=0))}")
        else:
            print(f"  RLHF has no temperature at so low a KL: its lowest is "
                  f"{min(mean(f'rlhf {t}', 'kl') for t in temperatures):.2f}")
        print("  KL of RLHF at T=1:", spread(of("rlhf T=1", "kl")))
        print("  EAD per input:", ", ".join(f"{p} {spread(of(f'{p} T=1', 'per_input_ead'))}"
                                            for p in ("sft", "rlhf")))
        print("  reward model:", ", ".join(
            f"{key} {np.mean([found[split]['reward'][key] for found in results.values()]):.3f}"
            for key in next(iter(results.values()))[split]["reward"]))


def main(args):
    judge = llm(args.judge, f"{args.out}/judge.jsonl") if args.judge else None
    results = {}
    for seed in args.seeds:
        folder = data.run_folder(args.data, seed, args.out)
        path, of = folder / "evaluate.json", measured(folder, args.n, args.judge)
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept.pop("of", None) != of:
            measure = evaluate if args.data in data.WORLD else evaluate_text
            kept = measure(args.data, seed, args.n, folder, judge)
            path.write_text(json.dumps(kept | {"of": of}, indent=1))
            print(f"\nwrote {path}")
        results[seed] = kept
    if args.data in data.WORLD:
        over_seeds(args.data, results)


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--data", default="summarise", help="as for the stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("-n", type=int, default=500, help="prompts a split")
    parser.add_argument("--out", default="out")
    parser.add_argument("--judge", help="a language model that judges too")
    with one_sentence():
        main(parser.parse_args())
