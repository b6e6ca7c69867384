"""
Can a policy win as often and stay more diverse? Two rewards of all answers to a prompt at once.

    python -m tests.apart --seeds 3

    MARA     of the answers to a prompt whose score is at least a bar, each gets the score of the
             likeliest, z, and beta (log pi_SFT(z) - log pi_SFT(y)) on top. What that and the KL
             penalty leave is the entropy: the best policy makes all good answers equally likely
                                              Alg. 1, GX-Chen et al. 2025, arXiv:2510.20817
    DARLING  an answer's score, counted from the lowest of its group, times the share of the others
             that say something else, at least .1        Sec. 3, Li et al. 2025, arXiv:2509.02534

Both train as RLOO does, in groups of 8 and for as many iterations, with four settings each and two
temperatures, of which the validation prompts of seed 0 choose one. What that gains is measured as
in tests/tradeoff.py, on a frontier that here also has RLOO with as many settings, and on that of
RLOO alone. Takes finished runs of `python rlhf.py --seeds 3 --sweeps`; writes apart.json.
"""

import json
from itertools import groupby

import torch

import data
import reward
import rlhf
from data import checkpoint, lineage, pools, world
from data.flags import parser_of
from tests import narrowing, tradeoff

GROUPS = dict(baseline="rloo", steps=30, samples=8)
PLAIN = "RLOO"  # which is of the frontier
SETTINGS = {  # family: {label: (beta, its reward or None for the plain one, options)}
    PLAIN: {f"beta {beta:g}": (beta, None, {}) for beta in (0.06, 0.12, 0.25, 0.5)},
    "MARA": {f"beta {beta:g}, bar {bar:g}": (beta, "mara", dict(beta=beta, bar=bar))
             for beta in (0.25, 0.5) for bar in (0.5, 1.0)},
    "DARLING": {f"beta {beta:g}, power {power:g}": (beta, "darling", dict(power=power))
                for beta in (0.12, 0.25) for power in (0.5, 1.0)}}
TEMPERATURES = (1.0, 0.7)


# ---- the rewards ---------------------------------------------------------------------------------


def groups(prompt_ids):
    "Places of the answers to each prompt, which stand side by side."
    return [[k for k, _ in same] for _, same in groupby(enumerate(prompt_ids), lambda x: x[1])]


def anchored(scores, logp_ref, places, beta, bar):
    "MARA's rewards: (B,), (B,) -> (B,)."
    rewards = scores.clone()
    for group in places:
        good = [k for k in group if scores[k] >= bar]
        if good:
            z = max(good, key=lambda k: logp_ref[k])
            rewards[good] = scores[z] + beta * (logp_ref[z] - logp_ref[good])
    return rewards


def multiplied(scores, kinds, places, power):
    "DARLING's rewards: (B,), what each answer says -> (B,)."
    rewards = scores.clone()
    for group in places:
        for k in group if len(group) > 1 else []:
            share = sum(kinds[j] != kinds[k] for j in group) / (len(group) - 1)
            rewards[k] = (scores[k] - scores[group].min()) * max(share, 0.1) ** power
    return rewards


def load(folder):
    "A run's SFT policy, its reward function, its tokeniser."
    policy, record = checkpoint.load_frozen(f"{folder}/sft.pt", "policy", "cpu")
    model, _ = checkpoint.load_frozen(f"{folder}/reward.pt", "reward", "cpu")
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    return policy, reward.scorer(model, tokenizer.pad), tokenizer


def mara(folder, beta, bar):
    policy, score, tokenizer = load(folder)

    def reward_fn(prompt_ids, response_ids):
        logp = pools.loglikelihood(policy, prompt_ids, response_ids, 1.0, tokenizer.pad)
        return anchored(score(prompt_ids, response_ids), torch.tensor(logp, dtype=torch.float32),
                        groups(prompt_ids), beta, bar)
    return reward_fn


def darling(folder, power):
    _, score, tokenizer = load(folder)

    def reward_fn(prompt_ids, response_ids):
        kinds = [world.kind(tokenizer.decode(p), tokenizer.decode(r).strip())
                 for p, r in zip(prompt_ids, response_ids)]
        return multiplied(score(prompt_ids, response_ids), kinds, groups(prompt_ids), power)
    return reward_fn


# ---- the comparison ------------------------------------------------------------------------------


def train(config, run, family, label):
    "A policy -> its name among the run's networks."
    beta, kind, options = SETTINGS[family][label]
    name = f"{family}-{label}".replace(" ", "-").replace(",", "")
    folder = lineage.home(config, run.seed)
    flags = GROUPS | dict(beta=beta, variant=f"apart/{name}")
    if kind:
        file = folder / "apart" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        given = ", ".join(f"{k}={x}" for k, x in options.items())
        file.write_text(f"from tests.apart import {kind}\n\n"
                        f"reward_fn = {kind}({str(folder)!r}, {given})\n", encoding="utf-8")
        flags["reward"] = str(file)
    narrowing.train(*lineage.run_of(config, run.seed, "ppo",
                                    lineage.main_flags(config, "ppo") | flags))
    network, record = checkpoint.load_frozen(folder / flags["variant"] / "ppo.pt", "policy",
                                             run.device)
    run.networks[name], run.digests[name] = network, record["digest"]
    return name


def points(config, run, family, labels):
    "Trains these settings of a family -> {label: how, as in tests/tradeoff.py}."
    return {f"{label}, T {t:g}": ("sample", train(config, run, family, label), t, 0)
            for label in labels for t in TEMPERATURES}


def compare(config):
    """Everything -> what apart.json holds: {"rows": a seed's gains of a family, as tradeoff.compare
    has them, "against" everything or RLOO}. On instructions, of the better one on summaries."""
    runs, splits, rows = tradeoff.load(config), data.test_splits(config.data)[1:], []
    of = lambda run, families, splits: tradeoff.points_of(config, run, {
        family: points(config, run, family, labels) for family, labels in families.items()}, splits)
    plain, tried = {PLAIN: SETTINGS[PLAIN]}, {f: x for f, x in SETTINGS.items() if f != PLAIN}
    if config.data == "summarise":
        alone = of(runs[0], plain, ["validation"])
        chosen = tradeoff.choose(of(runs[0], tried, ["validation"]), tradeoff.frontier_of(
            config, runs[0], ["validation"], alone))
    else:
        path = data.run_folder("summarise", 0, config.out) / "apart.json"
        best = max(json.loads(path.read_text())["rows"], key=lambda row: row["validation"])
        chosen = {best["family"]: (best["label"], best["validation"])}
    for run in runs:
        mine = of(run, {family: [label.rpartition(", T ")[0]]
                        for family, (label, _) in chosen.items()}, splits)
        alone = of(run, plain, splits)
        for name, base in (("everything", tradeoff.frontier_of(config, run, splits, alone)),
                           (PLAIN, alone)):
            rows += [row | {"against": name}
                     for row in tradeoff.beyond(run, chosen, mine, base, 2 * len(chosen))]
    return {"rows": rows}


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--data", default="summarise", choices=data.WORLD)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs there are")
    parser.add_argument("--inputs", type=int, default=60, help="prompts a split")
    parser.add_argument("--out", default="out")
    args = parser.parse_args()
    found = compare(rlhf.Config(data=args.data, seeds=args.seeds, inputs=args.inputs, out=args.out,
                                sweeps=True))
    path = data.run_folder(args.data, 0, args.out) / "apart.json"
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"wrote {path}")
