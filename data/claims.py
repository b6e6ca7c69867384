"""
The claims, each with its statistic fixed beforehand; the controls; and win rate against KL.

Two dicts hold what the study knows, and all functions here take them as they are:

    values   {policy: {split: {measure: (seeds, inputs) array}}}    a number for each prompt; and
             "across_halves", (seeds, 1 + halves): EAD across inputs, see `across_draws`
    rewards  {split: {measure: [a number of each seed]}}            what the reward model knows

A summary is {"mean", "low", "high", "n", "seeds"}: the 95 % interval is over n prompts, "seeds" the
mean of each seed. The first of the `splits` is in distribution, the others are shifted. C1 to C7
are the claims of Kirk et al. 2024, arXiv:2310.06452, and C8 is what has been said against C3 since;
data/RESULTS.md says when each is supported.
"""

import statistics

import numpy as np

import metrics

N = 16  # of best of n
BEST = f"bon{N}"
POLICIES = {  # name: (checkpoint, temperature); those of every table
    "base": ("base", 1.0), "sft": ("sft", 1.0), "sft-t0.7": ("sft", 0.7), "sft-greedy": ("sft", 0),
    BEST: ("sft", 1.0), f"{BEST}-t0.7": ("sft", 0.7), "rlhf": ("ppo", 1.0),
    "rlhf-t0.7": ("ppo", 0.7), "dpo": ("dpo", 1.0)}
# Where other temperatures take SFT, and RLHF; of other data with --sweeps alone.
FRONTIER = {  # one output per prompt under the shifts
    "sft-t0.8": ("sft", 0.8), "sft-t0.5": ("sft", 0.5), "sft-t0.3": ("sft", 0.3),
    "rlhf-t1.2": ("ppo", 1.2), "rlhf-t0.8": ("ppo", 0.8), "rlhf-t0.5": ("ppo", 0.5),
    "rlhf-t0.3": ("ppo", 0.3), "rlhf-greedy": ("ppo", 0)}
# How far PPO's steps wander about SFT where only the KL is left to learn from, nats per response.
# Whitened advantages have no scale: beta 3, 10 and 100 hover alike, and half the rate less than
# half as far. The mean of the first ten iterations, at the full rate (2e-4), is .09.
WANDER = 0.1
LEVEL, DRAWS, HALVES = 0.95, 2000, 60  # of intervals; how often prompts are drawn, or halved


def summary(interval, seeds):
    "(mean, low, high, n), as metrics.interval gives it, and the mean of each seed -> summary."
    return dict(zip(("mean", "low", "high", "n"), interval), seeds=[float(x) for x in seeds])


def summarised(runs, level=LEVEL):
    "Values of several seeds on the same prompts: the interval is of the prompts' means over seeds."
    return summary(metrics.interval(np.mean(runs, axis=0), level), [np.mean(run) for run in runs])


def summaries(values):
    "{measure: (seeds, inputs)} -> {measure: summary}."
    return {measure: summarised(runs) for measure, runs in values.items()}


def across(outputs, diversities):
    """Diversity across inputs of `outputs`, over seeds and inputs lists of texts ->
    {"across_input_<name>": summary}, {name: (seeds, 1 + halves)}; the interval is the mean of the
    seeds' intervals."""
    draws = {name: np.stack([across_draws(texts, diversity) for texts in outputs])
             for name, diversity in diversities.items()
             if name in ("ead", "distinct", "embedding")}  # others would compare every two inputs
    found = {}
    for name, seeds in draws.items():
        each = np.array([of_halves(row, len(outputs[0])) for row in seeds])
        mean, low, high, n = each.mean(0).tolist()
        found[f"across_input_{name}"] = summary((mean, low, high, int(n)), each[:, 0])
    return found, draws


# ---- statistics of more than one mean ------------------------------------------------------------


def of_draws(drawn, n, level=LEVEL):
    "(seeds, 1 + draws), first of the prompts as they are, then of drawn ones -> summary."
    low, high = np.quantile(drawn[:, 1:].mean(0), [(1 - level) / 2, (1 + level) / 2])
    return summary((float(drawn[:, 0].mean()), float(low), float(high), n), drawn[:, 0])


def drawn_means(tables, seed=0):
    """Means over prompts, as they are and bootstrapped, all tables alike: (..., seeds, inputs) ->
    (..., seeds, 1 + DRAWS)."""
    n = tables.shape[-1]
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
    return np.concatenate([tables.mean(-1, keepdims=True), tables @ times.T / n], axis=-1)


def halves(n, seed=0):
    """(HALVES, n // 2) places of n inputs. For what a bootstrap would bias, as it draws some
    twice, and duplicates lower a diversity: an estimate from half the inputs, drawn without
    replacement, spreads around its mean as the whole one does from one draw of inputs to the next.
    """
    random = np.random.default_rng(seed)
    return np.stack([random.permutation(n)[:n // 2] for _ in range(HALVES)])


def across_draws(outputs, diversity, seed=0):
    """Mean of `metrics.across_inputs` over all columns, then that of each of the `halves` (over 4
    columns, for time, which makes them scatter a little more) -> (1 + HALVES,)."""
    columns, n = range(min(map(len, outputs))), len(outputs)
    if n < 4:
        raise ValueError(f"an interval across inputs needs at least 4 of them, not {n}")

    def mean(rows, columns):
        return np.mean([metrics.across_inputs(rows, diversity, k) for k in columns])
    return np.array([mean(outputs, columns), *(
        mean([outputs[i] for i in half], columns[:4]) for half in halves(n, seed))])


def of_halves(draws, n, level=LEVEL):
    "An estimate, (1 + HALVES,), first of all n inputs and then of `halves`, and its interval."
    reach = statistics.NormalDist().inv_cdf(0.5 + level / 2) * draws[1:].std(ddof=1)
    return float(draws[0]), float(draws[0] - reach), float(draws[0] + reach), n


def across_interval(outputs, diversity, seed=0):
    "Mean of `metrics.across_inputs` over all columns and its interval; n is the count of inputs."
    return of_halves(across_draws(outputs, diversity, seed), len(outputs))


# ---- the claims, each with its statistic fixed beforehand ----------------------------------------


def three_way(holds, fails):
    return "supported" if holds else "not supported" if fails else "inconclusive"


def clear(difference, sign=1, bar=0.0):
    "Whether a summary is on this side of a bar: its whole interval, and every seed."
    edge = difference["low"] if sign > 0 else difference["high"]
    return all(sign * (x - bar) > 0 for x in (edge, *difference["seeds"]))


def by_sign(difference, sign=1):
    "The verdict on a summary whose mean should have this sign."
    return three_way(clear(difference, sign), clear(difference, -sign))


def everywhere(summarise, splits, sign=1, bar=0.0, among=1):
    """The verdict on a claim of all splits: supported where each is clearly on this side of a bar,
    refuted by one that is clearly on the other; of so many, of the best of so many (`among`), one
    may be by chance, so at a level corrected for that. `summarise(split, level)` -> summary."""
    strict = 1 - (1 - LEVEL) / len(splits) / among
    return three_way(all(clear(summarise(s, LEVEL), sign, bar) for s in splits),
                     any(clear(summarise(s, strict), -sign, bar) for s in splits))


def in_words(difference):
    mean, low, high = (f"{difference[key]:+.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}] ({', '.join(f'{x:+.3f}' for x in difference['seeds'])})"


def less(policy, other, measure, sign, values, splits, among=1):  # C1, C3, C5
    "One policy less another, paired by prompt, on all splits -> verdict, evidence."
    def difference(split, level=LEVEL):
        return summarised(values[policy][split][measure] - values[other][split][measure], level)
    return (everywhere(difference, splits, sign, among=among),
            "; ".join(f"{s} {in_words(difference(s))}" for s in splits))


def slope_of_gains(values, splits, policy="rlhf"):
    """Slope of a policy's gain on SFT against SFT's own drop -> summary. SFT's score is in the drop
    and in the gain: its noise would be a slope. So one half of the prompts gives the drops, the
    other the gains, and they change places. (Noise in the drops alone flattens the line.)"""
    both = []
    for first in (0, 1):  # of each (splits, policies, seeds, 1 + draws)
        both.append(np.stack([drawn_means(np.stack([
            values[p][s]["win_rate"][:, first::2] for p in ("sft", policy)]), seed=2 * k + first)
            for k, s in enumerate(splits)]))
    drops = [-half[:, 0] + half[:, 0].mean(0) for half in both]  # centred: the line's own zero
    gains = [half[:, 1] - half[:, 0] for half in both]
    spread = (drops[0] ** 2 + drops[1] ** 2).sum(0)  # least squares
    slopes = (drops[0] * gains[1] + drops[1] * gains[0]).sum(0) / np.maximum(spread, 1e-12)
    return of_draws(slopes, sum(values["sft"][s]["win_rate"].shape[1] for s in splits))


def gains_more_further_out(values, splits):  # C2
    slope = slope_of_gains(values, splits)
    return by_sign(slope), in_words(slope)


def less_across_inputs(values, split):  # C4
    "The prompts are halved for the interval, not drawn: see `halves`."
    def diversity(policy, kind):  # (seeds, 1 + halves)
        if kind == "across":
            return values[policy][split]["across_halves"]
        prompts = values[policy][split]["per_input_ead"]  # (seeds, inputs)
        here = prompts[:, halves(prompts.shape[1])].mean(-1)
        return np.concatenate([prompts.mean(1, keepdims=True), here], axis=1)

    lost = {kind: 1 - diversity("rlhf", kind) / diversity("sft", kind)
            for kind in ("per", "across")}
    parts = {"per input less across": lost["per"] - lost["across"]}
    for best, sft in ((BEST, "sft"), (f"{BEST}-t0.7", "sft-t0.7")):
        parts[f"{best} less {sft} + .02"] = (
            diversity(best, "across") - diversity(sft, "across") + 0.02)

    def difference(name, level=LEVEL):
        n = values["sft"][split]["per_input_ead"].shape[1]
        return summary(of_halves(parts[name].mean(0), n, level), parts[name][:, 0])
    return (everywhere(difference, [*parts]),
            f"rlhf loses {lost['per'][:, 0].mean():.1%} per input and "
            f"{lost['across'][:, 0].mean():.1%} across; "
            + "; ".join(f"{name} {in_words(difference(name))}" for name in parts))


def no_beta_gives_it_back(values, betas, splits):  # C5
    top = max(betas, key=lambda policy: np.mean(
        [values[policy][s]["per_input_ead"].mean() for s in splits]))
    verdict, evidence = less(top, "sft", "per_input_ead", -1, values, splits, len(betas))
    return verdict, f"{top}: {evidence}"


def hardly_sees_it(values, split, measure, samples):  # C6
    """Both measured from what equal answers would have: -2, and for EAD one in so many samples.
    Without a loss there is nothing to see."""
    here = {name: np.stack([values[p][split][name] for p in ("sft", "rlhf")]) - least
            for name, least in ((measure, -2), ("per_input_ead", 1 / samples))}
    means = {name: drawn_means(x) for name, x in here.items()}  # (policies, seeds, 1 + draws)
    lost = {name: 1 - x[1] / x[0] for name, x in means.items()}
    n = here[measure].shape[-1]
    verdict = by_sign(of_draws(lost["per_input_ead"] / 2 - lost[measure], n))
    seen = clear(of_draws(lost["per_input_ead"], n))
    return (verdict if seen else "inconclusive",
            f"of its range it loses {lost[measure][:, 0].mean():.1%}, EAD "
            f"{lost['per_input_ead'][:, 0].mean():.1%}" + ", not clear of none" * (not seen))


def reward_model_generalises(rewards, near, far, same_pairs=False):  # C7
    random = np.random.default_rng(0)
    drawn = {}  # (seeds, 1 + draws) of each split; a pair is right or wrong
    for s in (near, *far):
        right, count = (np.array(rewards[s][key])[:, None] for key in ("gold", "pairs"))
        rate = right.mean(0, keepdims=True) if same_pairs else right  # they are drawn for all seeds
        times = random.binomial(count[:len(rate)], rate, size=(len(rate), DRAWS))
        drawn[s] = np.concatenate([right, right - rate + times / count[:len(rate)]], axis=1)
    pairs = lambda s: int(rewards[s]["pairs"][0])
    drop = lambda s, level=LEVEL: of_draws(drawn[near] - drawn[s], pairs(s), level)
    return (everywhere(drop, far, -1, 0.05),
            "; ".join(f"{s} {in_words(drop(s))}" for s in far))


def decide(values, swept, rewards, splits, main_kl, samples, same_pairs=False):
    """The claims -> [{"id", "claim", "statistic", "verdict", "evidence"}]; `swept` are the values
    of the sweep, `main_kl` is the estimator of the main run, `samples` the outputs of a prompt,
    `same_pairs` whether the reward models of all seeds were measured on the same comparisons.
    What was not measured is left out: C5 without a sweep, C6 without NLI or facts, C7 without
    comparisons under a shift."""
    near, decided = splits[0], []

    def claim(id, text, statistic, verdict, evidence):
        decided.append({"id": id, "claim": text, "statistic": statistic, "verdict": verdict,
                        "evidence": evidence})

    for id, policy in (("C1a", "rlhf"), ("C1b", BEST)):
        claim(id, f"{policy} beats sft in win rate, in distribution and under every shift",
              "win rate less that of sft, both at temperature 1",
              *less(policy, "sft", "win_rate", 1, values, splits))
    claim("C2", "the larger the shift, the more rlhf gains over sft",
          "slope of (rlhf - sft) on sft's own drop from in distribution, over the splits, the one "
          "and the other from different prompts", *gains_more_further_out(values, splits))
    for id, measure in (("C3a", "per_input_ead"), ("C3b", "per_input_embedding")):
        claim(id, f"rlhf lowers {measure.replace('_', ' ')}",
              f"{measure}, rlhf less sft, both at temperature 1",
              *less("rlhf", "sft", measure, -1, values, splits))
    claim("C4", "across inputs diversity falls less than per input, and best of n loses none",
          "relative drop of EAD from sft, in distribution; best of n no lower than sft of its "
          "temperature - .02", *less_across_inputs(values, near))
    for id, kl in (("C5a", "k1"), ("C5b", "k2")):
        if betas := [policy for policy in swept if policy.startswith(f"{kl}-")]:
            betas += ["rlhf"] * (kl == main_kl)  # its beta is one of them
            claim(id, f"no beta gives the diversity back ({kl} in the reward)",
                  f"per-input EAD of the beta with most of it, of {len(betas)}, less sft",
                  *no_beta_gives_it_back(swept, betas, splits))
    for name, what in (("nli", "NLI diversity"), ("facts", "diversity of the facts stated")):
        if f"per_input_{name}" in values["sft"][near]:
            claim("C6", f"{what} hardly sees the loss", "its relative drop under half of EAD's",
                  *hardly_sees_it(values, near, f"per_input_{name}", samples))
    far = [s for s in splits[1:] if s in rewards]
    if near in rewards and far:
        claim("C7", "the reward model's accuracy falls little out of distribution",
              "accuracy in distribution less that under each shift, at most .05",
              *reward_model_generalises(rewards, near, far, same_pairs))
    kinds = kinds_in(values, near)
    claim("C8", "rlhf gives more different good answers than sft",
          f"{kinds.replace('_', ' ')}: of the answers to a prompt that beat the reference, rlhf "
          "less sft, both at temperature 1", *less("rlhf", "sft", kinds, 1, values, splits))
    return decided


def kinds_in(values, split):
    "The measure of effective diversity: of what answers say, if that is known, or of their texts."
    return max(("effective_kinds", "effective_texts"), key=lambda k: k in values["sft"][split])


def controls(values, split):
    """What must be so if the study measures what it says, in distribution ->
    [{"control", "expected", "found", "holds"}]. A control that is the main run is left out."""
    here = {policy: by_split[split] for policy, by_split in values.items() if split in by_split}
    difference = lambda a, b: summarised(here[a]["win_rate"] - here[b]["win_rate"])
    shuffled = difference("shuffled", "sft")
    rows = [("PPO on a reward model of shuffled labels", "does not beat sft",
             f"win rate less sft's {in_words(shuffled)}, KL {here['shuffled']['kl'].mean():.2f}",
             by_sign(shuffled) != "supported")]
    if "gold" in here:  # in the world only
        gold = difference("gold", "rlhf")
        rows.append(("PPO on the gold score", "the ceiling: no lower than rlhf",
                     f"win rate {here['gold']['win_rate'].mean():.3f}, less rlhf's "
                     f"{in_words(gold)}, KL {here['gold']['kl'].mean():.2f}",
                     by_sign(gold, -1) != "supported"))
    if "beta-10" in here:
        kl = here["beta-10"]["kl"].mean(1)  # (seeds,)
        rows.append(("PPO with beta 10", f"stays near sft: KL under {WANDER}",
                     "KL " + ", ".join(f"{x:.3f}" for x in kl), bool((abs(kl) < WANDER).all())))
    return [dict(zip(("control", "expected", "found", "holds"), row)) for row in rows]


# ---- win rate against KL -------------------------------------------------------------------------


def frontier(values, best_of, splits):
    """Win rate against KL to SFT, in distribution and over the prompts of all shifts ->
    {family: [{"label", "kl", "win_rate": summary, "shifted_kl", "shifted_win_rate": summary}]}.

    SFT and RLHF at every temperature, and best of n at temperature 1: `best_of` {n: (KL, {split:
    {"win" and each score: (seeds, inputs)}})} is what that expects, {} if nothing.
    """
    (near, *far), points = splits, {"sft": [], "rlhf": []}
    named = [(policy.partition("-")[0], f"T {temperature:g}",
              {s: (values[policy][s]["kl"].mean(), values[policy][s]["win_rate"]) for s in splits})
             for policy, (_, temperature) in sorted(
                 {**POLICIES, **FRONTIER}.items(), key=lambda item: -item[1][1])
             if policy.startswith(("sft", "rlhf")) and policy in values]
    named += [("bon", f"n {n}", {s: (kl, by_split[s]["win"]) for s in splits})
              for n, (kl, by_split) in best_of.items()]
    for family, label, found in named:  # {split: (nats, (seeds, inputs))}
        points.setdefault(family, []).append({
            "label": label, "kl": float(found[near][0]), "win_rate": summarised(found[near][1]),
            "shifted_kl": float(np.mean([found[s][0] for s in far])),
            "shifted_win_rate": summarised(np.concatenate([found[s][1] for s in far], axis=1))})
    return points


def matched(values, split, measure="win_rate", within="kl", sign=-1):
    """SFT at the temperature with most of a measure against RLHF at the one with most among those
    that are within its limit: by mean no further from SFT (or, with sign 1 and another limit, no
    lower) -> {"split", "sft", "rlhf", "gain": summary, and of both "sft_kl", "rlhf_kl"}. What is of
    RLHF is None where it is never within. The gain on one half of the prompts is of the
    temperatures that the other half chooses: no prompt is chosen by and counted."""
    policies = [p for p in {**POLICIES, **FRONTIER} if p.startswith(("sft", "rlhf"))
                and p in values and measure in values[p][split]]
    most, limit = ({p: values[p][split][k] for p in policies} for k in (measure, within))

    def choice(part):
        of = lambda table: {p: x[:, part].mean() for p, x in table.items()}
        found, at = of(most), of(limit)
        sft = max([p for p in policies if p.startswith("sft")], key=found.get)
        near = [p for p in policies if p.startswith("rlhf") and sign * (at[p] - at[sft]) >= 0]
        return sft, max(near, key=found.get, default=None)

    (sft, rlhf), gain = choice(slice(None)), None
    if rlhf:
        gain, even, odd = np.empty_like(most[sft]), slice(0, None, 2), slice(1, None, 2)
        for part, other in ((even, odd), (odd, even)):
            before, after = choice(other)
            gain[:, part] = most[after or rlhf][:, part] - most[before][:, part]
        gain = summarised(gain)
    return {"split": split, "sft": sft, "rlhf": rlhf, "gain": gain,
            f"sft_{within}": float(limit[sft].mean()),
            f"rlhf_{within}": float(limit[rlhf].mean()) if rlhf else None}


def same_kl(values, estimator, splits):
    """What every policy of the sweep wins more than PPO with this estimator of the KL, all at
    temperature 1, as far from SFT: than the two of its betas, or SFT, on either side, in such parts
    that their KL is the policy's; each seed by itself, as seeds go unlike ways ->
    {policy: {split: summary, or None if a seed is beyond the largest KL}}."""
    betas = ["sft", "rlhf", *(p for p in values if p.startswith(f"{estimator}-"))]

    def gain(policy, split, seed):
        kl = {p: values[p][split]["kl"][seed].mean() for p in (policy, *betas)}
        nearer = max((p for p in betas if kl[p] <= kl[policy]), key=kl.get, default=None)
        further = min((p for p in betas if kl[p] > kl[policy]), key=kl.get, default=None)
        if nearer is None or further is None:
            return None
        part = (kl[policy] - kl[nearer]) / (kl[further] - kl[nearer])
        wins, low, high = (values[p][split]["win_rate"][seed] for p in (policy, nearer, further))
        return wins - (1 - part) * low - part * high

    def of_seeds(policy, split):
        each = [gain(policy, split, seed) for seed in range(len(values[policy][split]["kl"]))]
        return None if any(x is None for x in each) else summarised(np.stack(each))
    return {p: {s: of_seeds(p, s) for s in splits} for p in values if p not in betas}


def at_equal_length(wins, lengths):
    """What a policy wins more than SFT, less what its length is worth -> summary of what is left.
    Wins and lengths of SFT's outputs and of the policy's, each (seeds, inputs, K). What a token is
    worth is the slope, by least squares, among samples of one policy and prompt, where only chance
    makes one longer than another; every draw of prompts has its own."""
    around = [[x - x.mean(-1, keepdims=True) for x in pair] for pair in (wins, lengths)]
    gain, longer = (pair[1].mean(-1) - pair[0].mean(-1) for pair in (wins, lengths))
    both, square = (sum((x * y).sum(-1) for x, y in zip(a, around[1])) for a in around)
    gain, longer, both, square = drawn_means(np.stack([gain, longer, both, square]))
    left = gain - longer * both / np.maximum(square, 1e-12)  # (seeds, 1 + draws)
    return of_draws(left, wins[0].shape[1])


def at_equal_temperature(values, split, measure):
    """RLHF less SFT at every temperature at which both have this measure ->
    [{"temperature", "sft", "rlhf": means, "difference": summary}]."""
    how, rows = {**POLICIES, **FRONTIER}, []
    for sft, (_, temperature) in sorted(how.items(), key=lambda item: -item[1][1]):
        rlhf = sft.replace("sft", "rlhf")
        pair = [values[p][split].get(measure) if p in values else None for p in (sft, rlhf)]
        if sft.startswith("sft") and rlhf in how and not any(x is None for x in pair):
            rows.append({"temperature": temperature, "sft": float(pair[0].mean()),
                         "rlhf": float(pair[1].mean()),
                         "difference": summarised(pair[1] - pair[0])})
    return rows


PAIRED = ("win_rate", "per_input_ead", "per_input_embedding", "per_input_nli", "per_input_facts",
          "effective_kinds")


def gains(values, splits):
    """What each policy of temperature 1 has more than SFT of the same measure, paired by prompt ->
    {policy: {split: {measure: summary}}}; what is not of as many outputs as SFT's is left out."""
    others = [p for p in values if p not in (*FRONTIER, "sft") and POLICIES.get(p, ("", 1))[1] == 1]
    return {p: {s: {k: summarised(values[p][s][k] - values["sft"][s][k]) for k in PAIRED
                    if k in values[p][s] and k in values["sft"][s]}
                for s in splits} for p in others if p != "reference"}


def compared(values, swept, estimator, splits):
    """What the report says of policies side by side -> {"controls", "gains", "slopes",
    "matched_kl", "same_kl"}; of a study without a sweep there are no controls, and nothing at the
    same KL."""
    slopes = {p: slope_of_gains(values, splits, p) for p in ("rlhf", BEST, "dpo")}
    if "gold" in swept:
        slopes["gold"] = slope_of_gains(swept, splits, "gold")
    return {"controls": controls(swept, splits[0]) if swept else [], "slopes": slopes,
            "gains": gains(values, splits),
            "matched_kl": [matched(values, split) for split in splits],
            "same_kl": same_kl(swept, estimator, splits) if swept else {}}
