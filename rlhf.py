"""
rlhf.py - the study on one page: what does each stage do to generalisation and to diversity?

    generalisation   win rate against people's references, in distribution and under each shift
    diversity        per input: D(16 samples of one prompt); across inputs: D(one sample of each)
                                                        Eq. 2-3, Kirk et al. 2024, arXiv:2310.06452
    python rlhf.py           # a quarter of an hour on two CPU cores: trains what is missing,
                             # samples every policy on every split, writes report.md and .html; the
                             # last lines are the claims
    python rlhf.py --full    # both tasks, 500 inputs x 16 outputs as in the paper, 3 seeds, all
                             # sweeps: a long night
    python rlhf.py --data tldr --init gpt2 --judge gpt-4.1    # the same on other data
    python rlhf.py --full --plan make    # prints a makefile of its runs, for several processes or
                                         # machines that share a folder; --plan alone: shell lines

Outputs are kept as JSON lines and used again: an interrupted study goes on where it stopped. Not
here: which runs are trained (data/lineage.py), the statistics of the claims (data/claims.py),
figures (data/figures.py) and pages (data/report.py).
"""

import time
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

import bon
import data
import metrics
from data import claims, files, good, lineage, pools, report
from data.claims import BEST, FRONTIER, POLICIES, N
from data.run import cli, command_of, lock, progress, within


@dataclass
class Config:
    data: str = "summarise"  # as for the stages (the full study does both summarise and instruct)
    full: bool = False  # the paper's size, 3 seeds and the sweeps
    sweeps: bool = False  # other betas, rates, sizes, controls; of real data other temperatures too
    seeds: int = 0  # how many seeds, each a run of all stages (0: 1, in the full study 3)
    inputs: int = 0  # prompts of each split (0: 100, in the full study 500)
    samples: int = 0  # outputs of each prompt, where diversity is measured (0: 8, or 16)
    init: str = "base"  # the base that SFT starts from, as for sft.py
    out: str = "out"  # the folder of run folders
    device: str = "auto"  # auto, cpu, cuda or mps

    judge: str = ""  # a reward.pt, or a language model, that judges too (see data/judge.py)
    encoder: str = ""  # of embedding diversity: a sentence-transformers model (default: the base)
    same_above: float = 0.0  # outside the world: answers are of one kind above this cosine
    nli: str = ""  # of NLI diversity: a transformers classifier (default: the world's own facts)
    recipe: Literal["", "diverse"] = ""  # beside the rest: sets of good answers that differ
    arms: str = ""  # policies beside the rest, without a value network: rloo, grpo, or rloo,grpo
    final: bool = False  # on the other range of test prompts: once, when all choices are made
    plan: Literal["", "sh", "make"] = ""  # print the commands of its runs instead of doing them

    def __post_init__(self):
        self.seeds = self.seeds or (3 if self.full else 1)
        self.inputs = self.inputs or (500 if self.full else 100)
        self.samples = self.samples or (16 if self.full else 8)
        self.sweeps = self.sweeps or self.full
        within(self, 1, float("inf"), "seeds")
        within(self, 4, float("inf"), "inputs")
        within(self, 2, float("inf"), "samples")
        within(self, 0, 1, "same_above")
        if self.full and self.data not in data.WORLD:
            raise ValueError(f"--full is the study of {' and '.join(data.WORLD)}; for --data "
                             f"{self.data} give --seeds, --inputs, --samples and --sweeps")


DIVERSE, MIN_P = 8, 0.03  # of --recipe diverse: samples for each answer chosen, and their cut
BESTS = 2  # answers of best of n to a prompt: each takes n samples of its own
FEW = dict(inputs=100, samples=8)  # prompts a split, and outputs, at most, of the sweeps
SCORES = {  # of an answer; the first that there is decides a win
    "gold": "the gold score", "other": "a reward model that RLHF does not optimise",
    "proxy": "the reward model that RLHF optimises"}
PLAIN = {  # diversities that need no model
    "ead": metrics.ead, "distinct": metrics.distinct,
    "vendi": lambda texts: metrics.vendi(metrics.cosines(metrics.ngram_counts(texts))),
    "ead_of_2": lambda texts: np.mean([metrics.ead(texts[k:k + 2])
                                       for k in range(0, len(texts) - 1, 2)])}
OF_ANY_NUMBER = ("ead_of_2", "embedding", "facts", "nli")  # the same, however many outputs


# ---- sampling ------------------------------------------------------------------------------------


def answers_of(run, policy, network, prompts, pool, samples, temperature):
    "What a policy answers to prompts, all as ids: `samples` of each, chosen from a larger pool."
    seed = run.seed + 1_000 * (pool > samples)  # no sample is one of the policy's own
    answers = pools.sample_pool(network, prompts, pool, run.tokenizer.response_tokens, temperature,
                                seed, MIN_P if policy == "diverse" else 0.0)
    if pool == samples:
        return answers
    scores = run.judges["proxy"]([p for p in prompts for _ in range(pool)], [*chain(*answers)])
    chosen = []
    for ids, row in zip(answers, scores.view(-1, pool).numpy()):
        if policy == "diverse":  # in the order of sampling: the first is no better than the last
            overlap = pools.overlaps([run.tokenizer.decode(r) for r in ids])
            places = sorted(pools.diverse_bests(row, overlap, samples))
        else:
            places = bon.disjoint_bests(row, N, samples, run.seed)
        chosen.append([ids[k] for k in places])
    return chosen


MADE_OF = ("sft", "reward", "other")  # beside the policy's weights: the KL, and the scores


def source_of(policy):
    "Its checkpoint and temperature."
    known = {**POLICIES, **FRONTIER, "diverse": ("sft", 1.0)}
    return known.get(policy, (policy, 1.0))  # else a run of the sweep


def outputs_of(run, config, policy, split):
    """Rows of a policy's outputs on a split, from disk if all that they are made of is the same:

    {"prompt", "reference", "outputs", and for each output its "length" in tokens, whether it
    "ended", "kl", the log-ratio to SFT at temperature 1 (None of a set), and the scores "gold" (in
    the world), "proxy" and, with several seeds or --judge, "other"; "reference_gold",
    "reference_length" and so on of the reference}.
    """
    source, temperature = source_of(policy)
    samples, best = config.samples, policy.startswith(BEST)
    if temperature == 0 or policy in FRONTIER and split != data.test_splits(config.data)[0]:
        samples = 1
    elif best:
        samples = min(samples, BESTS)
    pool = samples * (N if best else DIVERSE if policy == "diverse" else 1)
    examples = data.load(config.data, lineage.prompts_of(config, split), config.inputs)

    def make():
        network, tokenizer, gold = run.networks[source], run.tokenizer, data.gold(config.data)
        prompts = [tokenizer.prompt(e.prompt) for e in examples]
        references = [tokenizer.response(e.response) for e in examples]
        answers = answers_of(run, policy, network, prompts, pool, samples, temperature)
        texts = [[tokenizer.decode(ids).strip() for ids in row] for row in answers]
        pairs = [p for p in prompts for _ in range(samples)], [*chain(*answers)]
        kept = {}  # what the frozen layers make of the answers, for all that have these layers
        kl = pools.log_ratio(network, run.networks["sft"], *pairs, temperature, tokenizer.pad, kept)
        kl += bon.kl_bound(N) if best else 0.0
        columns = {"prompt": [e.prompt for e in examples],
                   "reference": [e.response for e in examples], "outputs": texts,
                   # the members of a set are not samples of any policy
                   "kl": ([None] * len(prompts) if policy == "diverse" else
                          kl.reshape(len(prompts), -1).tolist()),
                   "length": [[len(ids) for ids in row] for row in answers],
                   "ended": [[ids[-1] in network.config.eos for ids in row] for row in answers],
                   "reference_length": [len(ids) for ids in references]}
        if gold:
            columns["gold"] = [[gold(e.prompt, t) for t in row] for e, row in zip(examples, texts)]
            columns["reference_gold"] = [gold(e.prompt, e.response) for e in examples]
        for name, judge in run.judges.items():
            columns[name] = judge(*pairs, kept=kept).view(len(prompts), -1).tolist()
            key = name, str(prompts), str(references)
            if key not in run.references:  # which are the same for every policy
                run.references[key] = judge(prompts, references).tolist()
            columns[f"reference_{name}"] = run.references[key]
        return [dict(zip(columns, row)) for row in zip(*columns.values())]

    digests = [run.digests.get(name) for name in (source, *MADE_OF)]
    name = f"{lineage.prompts_of(config, split)}.{policy}.jsonl"
    return lineage.kept(run.folder / "samples" / name,
                        [*digests, temperature, samples, pool, policy, run.seed,
                         [[e.prompt, e.response] for e in examples]], make)


def sampled_study(config, few, runs, splits):
    "Outputs of every policy; and of the sweep, of `few` prompts, with those of SFT, RLHF, DPO, ..."
    more = FRONTIER if config.sweeps or config.data in data.WORLD else ()
    policies = [*POLICIES, *more, *lineage.arms(config), *filter(None, [config.recipe])]
    rows = sampled(config, runs, dict.fromkeys(policies, splits))
    rows["reference"] = {s: [reference_rows(own) for own in rows["sft"][s]] for s in splits}
    swept = sampled(few, runs, lineage.sweep_splits(config, splits))
    for policy in ["sft", "rlhf", *lineage.arms(config), "dpo"] if swept else []:
        small = {s: [fewer(own, few, s) for own in rows[policy][s]] for s in splits}
        swept[policy] = swept.get(policy, {}) | small
    return rows, swept


def sampled(config, runs, where):
    "Outputs of {policy: splits} -> {policy: {split: rows of each seed}}."
    return {policy: {split: [outputs_of(first_alike(runs, run, policy), config, policy, split)
                             for run in runs] for split in splits}
            for policy, splits in where.items()}


def first_alike(runs, run, policy):
    "The first of runs in which a policy and its judges are those of this run: seeds of one SFT."
    made_of = lambda one: [one.digests.get(name) for name in (source_of(policy)[0], *MADE_OF)]
    return next(one for one in runs if made_of(one) == made_of(run))


def fewer(rows, config, split):
    "What a study of fewer prompts of a split, and fewer outputs of each, has of these rows."
    prompts = data.load(config.data, lineage.prompts_of(config, split), config.inputs)
    wanted = {(e.prompt, e.response) for e in prompts}
    return [{key: x[:config.samples] if isinstance(x, list) else x for key, x in row.items()}
            for row in rows if (row["prompt"], row["reference"]) in wanted]


def every_row(rows):
    "All rows of {policy: {split: rows of each seed}}."
    return [row for by_split in rows.values() for seeds in by_split.values()
            for row in chain(*seeds)]


def reference_rows(rows):
    "People's references as if they were a policy's outputs, one per prompt."
    return [row | {name: [row[f"reference_{name}"]] for name in ("length", *scores_of(rows))}
            | {"kl": None, "ended": None, "outputs": [row["reference"]]} for row in rows]


# ---- measuring -----------------------------------------------------------------------------------


def scores_of(rows):
    "The scores that there are of these outputs; the first decides a win: the fairest."
    return [name for name in SCORES if name in rows[0]]


def column(rows, name):
    return np.array([row[name] for row in rows])


def wins(rows, score):
    "Does each output beat the reference? 1, 0 or .5 -> (inputs, samples)."
    return metrics.win_rate(column(rows, score), column(rows, f"reference_{score}")[:, None])


def head_to_head(score, other):
    """How often a policy's outputs beat another's, of all pairs of a prompt: (inputs, K),
    (inputs, J) -> (inputs,). Not of k and k: the same random numbers drew them, so that they are
    alike, and no sample of one policy against a sample of another."""
    won = metrics.win_rate(score[:, :, None], other[:, None])  # (inputs, K, J)
    return won[:, ~np.eye(*won.shape[1:], dtype=bool)].mean(1)


def measure(rows, sft_rows, diversities=PLAIN):
    "Values of every measure, one per prompt -> {measure: (inputs,)}."
    decides, outputs = scores_of(rows)[0], [row["outputs"] for row in rows]
    score, sft_score = column(rows, decides), column(sft_rows, decides)  # (inputs, samples)
    values = {"vs_sft": head_to_head(score, sft_score)}
    values["words"] = metrics.per_input(
        outputs, lambda texts: np.mean([len(metrics.words(t)) for t in texts]))
    for name in scores_of(rows):
        values[name] = column(rows, name).mean(1)
        values[f"win_rate_{name}"] = wins(rows, name).mean(1)
    values["win_rate"] = values[f"win_rate_{decides}"]
    values |= {name: column(rows, name).mean(1) for name in ("kl", "length", "ended")
               if rows[0].get(name) is not None}
    same = score.shape == sft_score.shape  # else EAD, and what is good of a set, is another number
    if score.shape[1] > 1:
        values |= {f"per_input_{name}": metrics.per_input(outputs, diversity)
                   for name, diversity in diversities.items() if same or name in OF_ANY_NUMBER}
    return values | (good.of_rows(rows, sft_rows, decides) if same else {})


def gain_at_length(seeds, sft_seeds):
    "Rows of each seed, and SFT's -> summary of what they win more than SFT's of the same length."
    each, score = (sft_seeds, seeds), scores_of(seeds[0])[0]
    return claims.at_equal_length([np.stack([wins(rows, score) for rows in x]) for x in each],
                                  [np.stack([column(rows, "length") for rows in x]) for x in each])


def stacked(each):
    "[{name: (inputs,)} of each seed] -> {name: (seeds, inputs)}."
    return {name: np.stack([values[name] for values in each]) for name in each[0]}


def expected_scores(seeds, n):
    """What is expected of the best of n of these outputs, by the proxy: each score, and "win" ->
    {name: (seeds, inputs)}."""
    each = []
    for rows in seeds:
        scores, known = column(rows, "proxy"), scores_of(rows)
        values = {name: column(rows, name) for name in known} | {"win": wins(rows, known[0])}
        each.append({name: bon.expected_best(scores, x, n) for name, x in values.items()})
    return stacked(each)


def judged_by(judge, rows):
    "Win rate of each row's first output against the reference, by a judge of texts -> (inputs,)."
    from data.judge import both_orders

    shown = [(row["prompt"], row["outputs"][0], row["reference"]) for row in rows]
    return np.array(both_orders(judge, shown)[0])


def measure_all(rows, sft_rows, models=None, judge=None):
    """Of {policy: {split: rows of each seed}}: values, as data/claims.py has them, and reports
    {policy: {split: {measure: summary}}}. `sft_rows`: {split: rows of each seed}. With `models`,
    the diversities that need one, {split: {name: of texts}}, also across inputs."""
    values, reports = {}, {}
    for policy, by_split in progress(rows.items(), "measure", "policy"):
        values[policy], reports[policy] = {}, {}
        for split, seeds in by_split.items():
            pairs = zip(seeds, sft_rows[split])
            diversities = PLAIN | (models[split] if models else {})
            measured = stacked([measure(own, sft, diversities) for own, sft in pairs])
            if judge and (policy in POLICIES or "gold" not in measured):
                measured["win_rate_judge"] = np.stack([judged_by(judge, own) for own in seeds])
                if "gold" not in measured:
                    measured["win_rate"] = measured["win_rate_judge"]
            values[policy][split], reports[policy][split] = measured, claims.summaries(measured)
            reports[policy][split]["gain_at_length"] = gain_at_length(seeds, sft_rows[split])
            if models and policy not in FRONTIER:
                outputs = [[row["outputs"] for row in own] for own in seeds]
                found, draws = claims.across(outputs, diversities)
                reports[policy][split] |= found
                measured["across_halves"] = draws["ead"]
    return values, reports


def measure_sizes(config, splits, lap):
    """SFT and RLHF of every width with the first seed, their base included, which is trained here
    -> {width: {policy: {split, or "shifts", all of them together: summaries}}}."""
    sizes = {}
    for name, small, wanted in lineage.sizes(config):
        lineage.train(wanted)
        rows = sampled(small, [lineage.load_run(small, 0)], {"sft": splits, "rlhf": splits})
        values, _ = measure_all(rows, rows["sft"])
        for policy, by_split in values.items():
            found = {s: {k: by_split[s][k] for k in ("win_rate", "per_input_ead")} for s in splits}
            found["shifts"] = {k: np.concatenate([found[s][k] for s in splits[1:]], axis=1)
                               for k in found[splits[0]]}
            sizes.setdefault(name, {})[policy] = {s: claims.summaries(x) for s, x in found.items()}
        lap(f"width {name}")
    return sizes


# ---- the study -----------------------------------------------------------------------------------


def splits_of(config):
    "Test splits. ValueError if none is shifted: there is nothing to generalise to."
    splits = data.test_splits(config.data)
    if len(splits) < 2:
        raise ValueError(f"{config.data} has only {splits[0]!r} to test on, and this study is of "
                         f"shifts: name another dataset, or add a file such as other.jsonl to its "
                         f"folder (python -m tests.evaluate measures runs without shifts)")
    return splits


def study(config):
    """Run the study of one dataset -> the path of its report. A win is decided by the gold score;
    outside the world by `--judge` if it is given, else by a reward model."""
    gold, splits = data.gold(config.data), splits_of(config)
    began, judge = time.time(), None
    if config.judge and not config.judge.endswith(".pt"):
        from data.judge import llm

        judge = llm(config.judge, Path(config.out) / "judge.jsonl")
    folder = data.run_folder(config.data, 0, config.out)
    _held = lock(folder)  # until this function ends
    seconds = lineage.train(lineage.all_runs(config))
    runs = lineage.load_runs(config)

    def lap(what):  # what has taken the time since the last one
        seconds[what] = time.time() - began - sum(seconds.values())

    few = replace(config, **{key: min(getattr(config, key), most) for key, most in FEW.items()})
    rows, swept = sampled_study(config, few, runs, splits)
    lap("sampling and scoring")
    vectors_of = lineage.vectors_of(config, runs[0], every_row(rows))
    if config.same_above:
        good.sort(every_row(rows) + every_row(swept), vectors_of, config.same_above)
    models = lineage.diversities_of(config, vectors_of, rows)
    values, reports = measure_all(rows, rows["sft"], models, judge)
    swept_values, sweep = measure_all(swept, swept.get("sft"))
    lap("measuring")
    compared = splits if gold else data.test_splits(config.data, pairs=True)
    judged, main = lineage.reward_models(config, runs, compared), lineage.made_with(folder, "ppo")
    lap("judging the reward model")
    sizes = measure_sizes(few, splits, lap) if config.sweeps and gold else {}
    best_of = {n: (bon.kl_bound(n), {s: expected_scores(rows["sft"][s], n) for s in splits})
               for n in (1, 2, 4, 8, 16) if n <= config.samples}
    scores = {name: SCORES[name] for name in scores_of(rows["sft"][splits[0]][0])}
    decides, by_judge = next(iter(scores.values())), judge and not gold
    if judge:
        scores["judge"] = f"{config.judge}, 1 if better than the reference"
    result = {
        "settings": asdict(config), "policies": reports, "sweep": sweep, "sizes": sizes,
        "beta": main["beta"], "lr": main["lr"], "estimator": main["kl"],
        "judge": config.judge if by_judge else decides, "score": decides, "scores": scores,
        "claims": claims.decide(values, swept_values, judged["reward_model"], splits, main["kl"],
                                config.samples, same_pairs=not gold),
        **claims.compared(values, swept_values, main["kl"], splits),
        "frontier": claims.frontier(values, {} if by_judge else best_of, splits),
        "cut": {s: [row["reference_length"] >= runs[0].tokenizer.response_tokens
                    for row in rows["sft"][s][0]].count(True) for s in splits},
        "bon": [{"n": n, "kl": kl, **{k: float(x.mean()) for k, x in by_split[splits[0]].items()}}
                for n, (kl, by_split) in best_of.items()],
        "ppo": [[{k: row[k] for k in row if k in ("step", "kl") or k.endswith(("proxy", "gold"))}
                 for row in files.read_log(run.folder / "ppo.jsonl")] for run in runs],
        **good.found(values, rows, next(iter(scores)), splits), **judged,
        "seconds": seconds | {"all": time.time() - began}}
    path = report.write(folder, result, report.samples(rows, values, splits))
    print(report.last_lines(result, path))
    return path


def plan(config, studies):
    "The commands of the runs of studies, and after them this one's, as lines or as a makefile."
    for one in studies:  # what it would refuse is not to be found out after a night
        splits_of(one)
    rows = [row for one in studies for row in lineage.plan(one)]
    written = lineage.as_makefile if config.plan == "make" else lineage.as_lines
    return written(rows, command_of("rlhf.py", replace(config, plan="")))


def train(config):
    "Run the study, of both tasks if it is the full one, and return the path of its last report."
    studies = [replace(config, data=task) for task in data.WORLD] if config.full else [config]
    if config.plan:
        return print(plan(config, studies))
    for one in studies:
        path = study(one)
    return path


if __name__ == "__main__":
    cli(Config, train)
