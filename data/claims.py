"""
The claims, each with its statistic fixed beforehand; the controls; and win rate against KL.

Three dicts hold what the study knows, and all functions here take them as they are:

    values   {policy: {split: {measure: (seeds, inputs) array}}}    a number for each prompt
    reports  {policy: {split: {measure: summary}}}                  the same, and what only a set of
                                                                    prompts has: across_input_...
    rewards  {split: {measure: [a number of each seed]}}            what the reward model knows

A summary is {"mean", "low", "high", "n", "seeds"}: the 95 % interval is over n prompts, "seeds" the
mean of each seed. The first of the `splits` is in distribution, the others are shifted. C1 to C7
are the claims of Kirk et al. 2024, arXiv:2310.06452; data/RESULTS.md says when each is supported.
"""

import numpy as np

import metrics

N = 16  # of best of n
BEST = f"bon{N}"
POLICIES = {  # name: (checkpoint, temperature); those of every table
    "base": ("base", 1.0), "sft": ("sft", 1.0), "sft-t0.7": ("sft", 0.7), "sft-greedy": ("sft", 0),
    BEST: ("sft", 0.7), "rlhf": ("ppo", 1.0)}
FRONTIER = {  # one output per prompt: where a lower temperature takes SFT, and RLHF
    "sft-t0.8": ("sft", 0.8), "sft-t0.5": ("sft", 0.5), "sft-t0.3": ("sft", 0.3),
    "rlhf-t0.8": ("ppo", 0.8), "rlhf-t0.7": ("ppo", 0.7), "rlhf-t0.5": ("ppo", 0.5),
    "rlhf-t0.3": ("ppo", 0.3), "rlhf-greedy": ("ppo", 0)}


def summary(interval, seeds):
    "(mean, low, high, n), as metrics.interval gives it, and the mean of each seed -> summary."
    return dict(zip(("mean", "low", "high", "n"), interval), seeds=[float(x) for x in seeds])


def summarised(runs):
    "Values of several seeds on the same prompts: the interval is of the prompts' means over seeds."
    return summary(metrics.interval(np.mean(runs, axis=0)), [np.mean(run) for run in runs])


def summaries(values):
    "{measure: (seeds, inputs)} -> {measure: summary}."
    return {measure: summarised(runs) for measure, runs in values.items()}


def across(outputs, diversities):
    """Diversity across inputs -> {"across_input_<name>": summary}, of `outputs`, over seeds and
    inputs lists of texts; the interval is the mean of the seeds' intervals."""
    result = {}
    for name, diversity in diversities.items():
        if name != "nli":  # it would ask about every pair of inputs
            each = np.array([metrics.across_interval(texts, diversity) for texts in outputs])
            mean, low, high, n = each.mean(0).tolist()
            result[f"across_input_{name}"] = summary((mean, low, high, int(n)), each[:, 0])
    return result


# ---- the claims, each with its statistic fixed beforehand ----------------------------------------


def three_way(holds, fails):
    return "supported" if holds else "not supported" if fails else "inconclusive"


def by_sign(difference, sign=1):
    "The verdict on a summary whose mean should have this sign."
    def clear(side):
        edge = difference["low"] if side > 0 else difference["high"]
        return side * edge > 0 and all(side * x > 0 for x in difference["seeds"])
    return three_way(clear(sign), clear(-sign))


def in_words(difference):
    mean, low, high = (f"{difference[key]:+.3f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}] ({', '.join(f'{x:+.3f}' for x in difference['seeds'])})"


def less_sft(policy, measure, sign, values, splits):  # C1, C3, C5
    """Policy less SFT, paired by prompt -> verdict, evidence; the verdict is what all splits share,
    and a mixture is inconclusive."""
    by_split = {s: summarised(values[policy][s][measure] - values["sft"][s][measure])
                for s in splits}
    verdicts = {by_sign(difference, sign) for difference in by_split.values()}
    return (verdicts.pop() if len(verdicts) == 1 else "inconclusive",
            "; ".join(f"{s} {in_words(difference)}" for s, difference in by_split.items()))


def gains_more_further_out(values, splits):  # C2
    sft, rlhf = (np.array([values[policy][s]["win_rate"].mean(1) for s in splits])
                 for policy in ("sft", "rlhf"))  # (splits, seeds)
    drop, gain = sft[0] - sft, rlhf - sft
    centred = drop - drop.mean(0)  # least squares: a straight line through the splits
    slopes = (centred * gain).sum(0) / np.maximum((centred**2).sum(0), 1e-12)  # (seeds,)
    slope = summary(metrics.t_interval(slopes), slopes)
    return by_sign(slope), (in_words(slope) if len(slopes) > 1 else
                            f"{slope['mean']:+.3f}, one seed")


def share_lost(reports, measure, split, least=0):
    "How much of SFT's diversity, which is at least `least`, RLHF has lost, in each seed."
    sft, rlhf = (np.array(reports[policy][split][measure]["seeds"]) - least
                 for policy in ("sft", "rlhf"))  # (seeds,)
    return 1 - rlhf / sft


def less_across_inputs(reports, split):  # C4
    per, between = (share_lost(reports, f"{kind}_input_ead", split) for kind in ("per", "across"))
    best, sft = (np.array(reports[policy][split]["across_input_ead"]["seeds"])
                 for policy in (BEST, "sft"))  # (seeds,)
    smaller, kept = (between < per).all(), (best > sft - 0.02).all()
    return (three_way(smaller and kept, not smaller and not kept),
            f"rlhf loses {per.mean():.1%} per input and {between.mean():.1%} across; {BEST} "
            f"has {best.mean():.3f} across, sft {sft.mean():.3f}")


def nli_hardly_sees_it(reports, split):  # C6
    # NLI diversity may be negative: from its least value, -2, it has a zero, as a share needs
    nli = share_lost(reports, "per_input_nli", split, least=-2)
    ead = share_lost(reports, "per_input_ead", split)
    return (three_way((nli < ead / 2).all(), (nli >= ead / 2).all()),
            f"NLI loses {nli.mean():.1%} of its range's share, EAD {ead.mean():.1%}")


def reward_model_generalises(rewards, near, far):  # C7
    drop = np.array([np.array(rewards[near]["gold"]) - np.array(rewards[s]["gold"])
                     for s in far])  # (splits, seeds)
    return (three_way((drop <= 0.05).all(), (drop.mean(1) > 0.05).all()),
            "; ".join(f"{s} {x.mean():+.3f}" for s, x in zip(far, drop)))


def decide(values, reports, rewards, splits, main_kl):
    """The paper's claims -> [{"id", "claim", "statistic", "verdict", "evidence"}]; `main_kl` is the
    estimator of the main run. What was not measured is left out: C5 without a sweep, C6 without
    NLI, C7 without comparisons under a shift."""
    near, decided = splits[0], []

    def claim(id, text, statistic, verdict, evidence):
        decided.append({"id": id, "claim": text, "statistic": statistic, "verdict": verdict,
                        "evidence": evidence})

    for id, policy in (("C1a", "rlhf"), ("C1b", BEST)):
        claim(id, f"{policy} beats sft in win rate, in distribution and under every shift",
              "win rate less that of sft, each at its temperature in the tables",
              *less_sft(policy, "win_rate", 1, values, splits))
    claim("C2", "the larger the shift, the more rlhf gains over sft",
          "slope of (rlhf - sft) on sft's own drop from in distribution, over the splits; "
          "t interval over seeds", *gains_more_further_out(values, splits))
    for id, measure in (("C3a", "per_input_ead"), ("C3b", "per_input_embedding")):
        claim(id, f"rlhf lowers {measure.replace('_', ' ')}", f"{measure}, rlhf less sft",
              *less_sft("rlhf", measure, -1, values, splits))
    claim("C4", "across inputs diversity falls less than per input, and best of n loses none",
          "relative drop of EAD from sft, in distribution; best of n no lower than sft - .02",
          *less_across_inputs(reports, near))
    for id, kl in (("C5a", "k1"), ("C5b", "k2")):
        if betas := [policy for policy in values if policy.startswith(f"{kl}-")]:
            betas += ["rlhf"] * (kl == main_kl)  # its beta is one of them
            top = max(betas, key=lambda policy: np.mean(
                [values[policy][s]["per_input_ead"].mean() for s in splits]))
            verdict, evidence = less_sft(top, "per_input_ead", -1, values, splits)
            claim(id, f"no beta gives the diversity back ({kl} in the reward)",
                  f"per-input EAD of the beta with most of it, of {len(betas)}, less sft",
                  verdict, f"{top}: {evidence}")
    if "per_input_nli" in reports["sft"][near]:
        claim("C6", "NLI diversity hardly sees the loss",
              "its relative drop under half of EAD's", *nli_hardly_sees_it(reports, near))
    far = [s for s in splits[1:] if s in rewards]
    if near in rewards and far:
        claim("C7", "the reward model's accuracy falls little out of distribution",
              "accuracy in distribution less that under each shift, at most .05",
              *reward_model_generalises(rewards, near, far))
    return decided


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
        rows.append(("PPO with beta 10", "stays at sft: KL under .05",
                     "KL " + ", ".join(f"{x:.3f}" for x in kl), bool((abs(kl) < 0.05).all())))
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
             if policy.startswith(("sft", "rlhf"))]
    named += [("bon", f"n {n}", {s: (kl, by_split[s]["win"]) for s in splits})
              for n, (kl, by_split) in best_of.items()]
    for family, label, found in named:  # {split: (nats, (seeds, inputs))}
        points.setdefault(family, []).append({
            "label": label, "kl": float(found[near][0]), "win_rate": summarised(found[near][1]),
            "shifted_kl": float(np.mean([found[s][0] for s in far])),
            "shifted_win_rate": summarised(np.concatenate([found[s][1] for s in far], axis=1))})
    return points


def matched_kl(values, split):
    """SFT at its best temperature against RLHF at the best of those that are, by mean KL, no
    further from SFT -> {"split", "sft", "sft_kl", "rlhf", "rlhf_kl", "gain": summary}. The last
    three are None where RLHF is further away at every temperature."""
    policies = [p for p in {**POLICIES, **FRONTIER} if p.startswith(("sft", "rlhf"))]
    win, kl = ({p: values[p][split][k].mean() for p in policies} for k in ("win_rate", "kl"))
    sft = max([p for p in policies if p.startswith("sft")], key=win.get)
    allowed = [p for p in policies if p.startswith("rlhf") and kl[p] <= kl[sft]]
    rlhf, gain = max(allowed, key=win.get, default=None), None
    if rlhf:
        gain = summarised(values[rlhf][split]["win_rate"] - values[sft][split]["win_rate"])
    return {"split": split, "sft": sft, "sft_kl": float(kl[sft]), "rlhf": rlhf,
            "rlhf_kl": float(kl[rlhf]) if rlhf else None, "gain": gain}
