"""
The study: its claims on planted results, its samples kept and reused, and its report. After each
test's name stands the bug that turns it red.
"""

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import bon
import data
import metrics
import model as m
import ppo
import reward
import rlhf
import sft
from data import (
    checkpoint,
    claims,
    collect,
    figures,
    files,
    good,
    judge,
    lineage,
    networks,
    report,
    run,
    watch,
    world,
)
from data.claims import BEST, FRONTIER, POLICIES
from data.run import Run
from tests.test_judge import EVIL, chromium, from_the_right, opened  # noqa: F401 (a fixture)

SPLITS = ("id", "near", "far")


def planted(win=None, ead=None, embedding=None, facts=None, across=None, accuracy=None, good=None,
            seeds=3, noise=0.03, apart=0.0, more=(), draw=0, inputs=200):
    """Values of a made-up study, given by the means of each measure, {policy: {split: mean}} or
    {policy: mean} -> values, rewards.

    Prompt values scatter around the mean by `noise`, the same way for all policies, and by `apart`
    in each policy's own way. `draw` is of all random numbers."""
    rng = np.random.default_rng(draw)
    shared = rng.normal(size=(seeds, inputs)) * noise
    policies = ("sft", "rlhf", BEST, f"{BEST}-t0.7", "sft-t0.7", *more)
    full = lambda given, default: {p: x if isinstance(x, dict) else dict.fromkeys(SPLITS, x)
                                   for p in policies for x in [(given or {}).get(p, default)]}
    means = {"win_rate": full(win, 0.5), "per_input_ead": full(ead, 0.5),
             "per_input_embedding": full(embedding, 0.5), "per_input_facts": full(facts, 0.0)}
    own = lambda *shape: rng.normal(size=shape) * apart
    values = {p: {s: {k: mean[p][s] + shared + own(seeds, inputs) for k, mean in means.items()}
                  for s in SPLITS} for p in policies}
    for p, mean in full(across, 0.8).items():
        for s in SPLITS:  # of halves: they scatter as the whole does
            values[p][s]["across_halves"] = mean[s] + own(seeds, 1) / 10 + own(
                seeds, 1 + claims.HALVES) / 10
            values[p][s]["across_halves"][:, 0] = mean[s] + own(seeds) / 10
    for p, mean in full(good, 2.0).items():
        for s in SPLITS:
            values[p][s] |= {"effective_texts": 3 + own(seeds, inputs),
                             "effective_kinds": mean[s] + own(seeds, inputs)}
    accuracy = accuracy or {"id": 0.75, "near": 0.74, "far": 0.73}
    right = lambda mean: [mean] * seeds if not apart else list(
        rng.binomial(2000, mean, seeds) / 2000) if np.isscalar(mean) else mean
    rewards = {s: {"gold": right(x) if np.isscalar(x) else x, "pairs": [2000] * seeds}
               for s, x in accuracy.items()}
    return values, rewards


def verdict_of(id, *args, main_kl="k1", **more):
    values, rewards = planted(*args, **more)
    found = {c["id"]: c for c in claims.decide(values, values, rewards, SPLITS, main_kl, 8)}
    assert all(c.keys() == {"id", "claim", "statistic", "verdict", "evidence"}
               for c in found.values())
    return found[id]["verdict"]


SFT = {"id": 0.5, "near": 0.4, "far": 0.2}
UP = {"id": 0.6, "near": 0.55, "far": 0.5}  # gains .1, .15 and .3 where SFT drops 0, .1 and .3
DOWN = {"id": 0.4, "near": 0.25, "far": 0.0}
MIXED = {"id": 0.6, "near": 0.4, "far": 0.1}  # one split clearly the other way
TIED = {"id": 0.6, "near": 0.4, "far": 0.3}  # and one as before
FLAT = {"id": 0.6, "near": 0.5, "far": 0.3}
LEVEL = {"id": 0.6, "near": 0.6, "far": 0.6}  # no drop of its own
ONE_OR_THREE = pytest.mark.parametrize("seeds", [1, 3])


@pytest.fixture
def few_draws(monkeypatch):
    "For verdicts that are far from their bars: a quarter of the time."
    monkeypatch.setattr(claims, "DRAWS", 400)
    monkeypatch.setattr(metrics.interval, "__defaults__", (0.95, 400, 0))


@ONE_OR_THREE
@pytest.mark.parametrize("id, policy", [("C1a", "rlhf"), ("C1b", BEST)])
@pytest.mark.parametrize("rate, verdict", [
    (UP, "supported"), (DOWN, "not supported"), (MIXED, "not supported"), (TIED, "inconclusive"),
    (SFT, "inconclusive")])
def test_win_rates_claimed(id, policy, rate, verdict, seeds, few_draws):
    # the difference the wrong way round
    assert verdict_of(id, {"sft": SFT, policy: rate}, seeds=seeds, apart=0.1) == verdict


@ONE_OR_THREE
@pytest.mark.parametrize("rate, verdict", [
    (UP, "supported"), (LEVEL, "supported"), (DOWN, "not supported"), (FLAT, "inconclusive")])
def test_gain_grows_with_the_shift(rate, verdict, seeds, few_draws):  # a slope on RLHF's own drop
    assert verdict_of("C2", {"sft": SFT, "rlhf": rate}, seeds=seeds) == verdict


def test_the_noise_of_sft_is_no_slope(few_draws):  # the same numbers in the drop and in the gain
    slopes = {"ours": [], "plain": []}
    rate = {"id": 0.5, "near": 0.48, "far": 0.46}
    for draw in range(60):
        values, _ = planted({"sft": rate, "rlhf": rate}, apart=0.4, draw=draw, seeds=1, inputs=100)
        _, said = claims.gains_more_further_out(values, SPLITS)
        slopes["ours"].append(float(said.split()[0]))
        sft, rlhf = (np.array([values[p][s]["win_rate"].mean() for s in SPLITS])
                     for p in ("sft", "rlhf"))
        slopes["plain"].append(np.polyfit(sft[0] - sft, rlhf - sft, 1)[0])
    assert np.median(slopes["plain"]) > 0.6 and abs(np.median(slopes["ours"])) < 0.3


def test_gains_are_paired_by_prompt():  # of two means, another policy's, one that has no number
    rng = np.random.default_rng(0)
    of = lambda more: {"id": {k: rng.random((3, 50)) for k in ("win_rate", *more)}}
    values = {p: of(["per_input_ead"]) for p in ("sft", "sft-t0.7", "rlhf", "rloo", "rlhf-t0.8")}
    values |= {claims.BEST: of([]), "reference": of([])}
    values["rlhf"]["id"]["win_rate"] = values["sft"]["id"]["win_rate"] + 0.25  # at every prompt
    found = claims.gains(values, ["id"])
    assert {p: [*by["id"]] for p, by in found.items()} == {
        "rlhf": ["win_rate", "per_input_ead"], "rloo": ["win_rate", "per_input_ead"],
        claims.BEST: ["win_rate"]}
    won = found["rlhf"]["id"]["win_rate"]
    assert [won[k] for k in ("mean", "low", "high")] == pytest.approx([0.25] * 3)
    assert found["rloo"]["id"]["win_rate"]["seeds"] == pytest.approx(
        (values["rloo"]["id"]["win_rate"] - values["sft"]["id"]["win_rate"]).mean(1))


def test_slopes_of_other_policies(few_draws):  # RLHF's for all of them
    values, _ = planted({"sft": SFT, "rlhf": FLAT, BEST: UP})
    slope = {p: claims.slope_of_gains(values, SPLITS, p)["mean"] for p in ("rlhf", BEST)}
    assert slope["rlhf"] < 0.5 < slope[BEST]


@ONE_OR_THREE
@pytest.mark.parametrize("id, measure", [("C3a", "ead"), ("C3b", "embedding")])
@pytest.mark.parametrize("rlhf_value, verdict", [
    (0.3, "supported"), (0.7, "not supported"), (0.5, "inconclusive"),
    ({"id": 0.3, "near": 0.3, "far": 0.7}, "not supported"),
    ({"id": 0.3, "near": 0.3, "far": 0.5}, "inconclusive")])
def test_diversity_lost_per_input(id, measure, rlhf_value, verdict, seeds, few_draws):
    # higher for lower
    assert verdict_of(id, apart=0.05, seeds=seeds, **{measure: {"rlhf": rlhf_value}}) == verdict


@ONE_OR_THREE
@pytest.mark.parametrize("rlhf_value, verdict", [
    (2.2, "supported"), (1.8, "not supported"), (2.0, "inconclusive"),
    ({"id": 2.2, "near": 2.2, "far": 2.0}, "inconclusive")])
def test_good_answers_claimed(rlhf_value, verdict, seeds, few_draws):  # of texts, lower for higher
    assert verdict_of("C8", good={"rlhf": rlhf_value}, apart=0.05, seeds=seeds) == verdict


@ONE_OR_THREE
@pytest.mark.parametrize("across, verdict", [
    ({"rlhf": 0.78}, "supported"), ({"rlhf": 0.2, BEST: 0.5}, "not supported"),
    ({"rlhf": 0.78, BEST: 0.7}, "not supported"), ({"rlhf": 0.2}, "not supported"),
    ({"rlhf": 0.78, BEST: 0.79}, "supported"), ({"rlhf": 0.48}, "inconclusive"),
    ({"rlhf": 0.78, f"{BEST}-t0.7": 0.7}, "not supported"),
    ({"rlhf": 0.78, f"{BEST}-t0.7": 0.7, "sft-t0.7": 0.71}, "supported")])
def test_diversity_kept_across(across, verdict, seeds, few_draws):
    # an absolute drop, a margin forgotten, T
    assert verdict_of("C4", ead={"rlhf": 0.3}, across=across, seeds=seeds, apart=0.02) == verdict


BETAS = ("k1-0.03", "k1-1", "k2-0.03", "k2-1")


@pytest.mark.parametrize("id, main_kl, ead, verdict", [
    ("C5a", "k1", {"k1-1": 0.45}, "supported"), ("C5b", "k1", {"k2-1": 0.45}, "supported"),
    ("C5a", "k1", {"rlhf": 0.7}, "not supported"), ("C5b", "k1", {"k2-1": 0.7}, "not supported"),
    ("C5a", "k2", {"rlhf": 0.7}, "supported"), ("C5b", "k2", {"rlhf": 0.7}, "not supported"),
    ("C5a", "k1", {"k1-1": {"id": 0.4, "near": 0.4, "far": 0.6}}, "not supported"),
    ("C5a", "k1", {"k1-1": {"id": 0.4, "near": 0.4, "far": 0.5}}, "inconclusive"),
    ("C5b", "k1", {"k2-1": 0.5}, "inconclusive"),
    ("C5b", "k1", {"rlhf": 0.7, "k1-1": 0.7}, "supported"),
    ("C5a", "k3", {"rlhf": 0.7}, "supported"), ("C5b", "k3", {"rlhf": 0.7}, "supported")])
def test_no_beta_gives_diversity_back(id, main_kl, ead, verdict, few_draws):
    # the worst beta, k1 taken for k2, the main run in the family of another estimator than its own
    given = {p: 0.3 for p in ("rlhf", *BETAS)} | ead
    assert verdict_of(id, ead=given, more=BETAS, main_kl=main_kl) == verdict


@pytest.mark.parametrize("win, kl, holds", [
    ({}, 0.01, [True, True, True]), ({"shuffled": 0.7}, 0.01, [False, True, True]),
    ({"gold": 0.3}, 0.01, [True, False, True]), ({"gold": 0.8}, 0.2, [True, True, False])])
def test_controls(win, kl, holds, few_draws):  # a control that cannot fail
    names = ("shuffled", "gold", "beta-10")
    values, _ = planted(win, more=names)
    for name in names:
        values[name]["id"]["kl"] = np.full((3, 200), kl)
    assert [c["holds"] for c in claims.controls(values, "id")] == holds


@ONE_OR_THREE
def test_a_control_that_differs_in_nothing_shows_nothing(seeds, few_draws):
    # noise taken for a difference
    names, found = ("shuffled", "gold"), []
    for draw in range(100):
        values, _ = planted(more=names, apart=0.3, draw=draw, seeds=seeds)
        for name in names:
            values[name]["id"]["kl"] = np.full((3, 200), 0.0)
        found += [c["holds"] for c in claims.controls(values, "id")]
    assert np.mean(found) >= 0.95


@ONE_OR_THREE
@pytest.mark.parametrize("facts, ead, verdict", [
    (-0.1, 0.3, "supported"), (-1.5, 0.3, "not supported"),
    (-0.1, 0.5, "inconclusive"), (0.5, 0.53, "inconclusive"),  # nothing is lost: nothing to see
    # .3 of EAD's range above 1 / 8 is lost, of EAD .225; of the facts' range .13 and .17
    (-0.26, 0.3875, "supported"), (-0.34, 0.3875, "not supported")])
def test_facts_claimed(facts, ead, verdict, seeds, few_draws):
    # a ratio from another zero, gains for losses
    assert verdict_of("C6", ead={"rlhf": ead}, facts={"rlhf": facts}, seeds=seeds,
                      apart=0.03) == verdict


@pytest.mark.parametrize("far, verdict", [
    ([0.73, 0.72, 0.73], "supported"), ([0.6, 0.61, 0.62], "not supported"),
    ([0.73, 0.72, 0.68], "inconclusive"), ([0.73, 0.6, 0.6], "inconclusive"),
    ([0.73], "supported"), ([0.6], "not supported"), ([0.69], "inconclusive")])
def test_accuracy_claimed(far, verdict, few_draws):
    # a gain taken for a drop, a verdict without an interval
    accuracy = {"id": [0.75] * len(far), "near": [0.74] * len(far), "far": far}
    assert verdict_of("C7", accuracy=accuracy, seeds=len(far)) == verdict


def test_pairs_that_all_seeds_share_are_drawn_once():  # as if three seeds were thrice the pairs
    rewards = {"id": {"gold": [0.7] * 3, "pairs": [400] * 3},
               "far": {"gold": [0.66] * 3, "pairs": [400] * 3}}

    def width(*more):
        _, said = claims.reward_model_generalises(rewards, "id", ["far"], *more)
        mean, low, high = map(float, re.findall(r"[-+]\d\.\d+", said)[:3])
        assert mean == pytest.approx(0.04)
        return high - low
    error = (0.7 * 0.3 / 400 + 0.66 * 0.34 / 400) ** 0.5
    assert width(True) == pytest.approx(2 * 1.96 * error, abs=0.012)
    assert width(False) == pytest.approx(2 * 1.96 * error / 3**0.5, abs=0.012)


@pytest.mark.slow
@ONE_OR_THREE
@pytest.mark.parametrize("decide, means", [
    (lambda v, _: claims.less("rlhf", "sft", "win_rate", 1, v, SPLITS),
     dict(win={"sft": SFT, "rlhf": SFT})),
    (lambda v, _: claims.gains_more_further_out(v, SPLITS), dict(win={"sft": SFT, "rlhf": FLAT})),
    (lambda v, _: claims.less("rlhf", "sft", "per_input_embedding", -1, v, SPLITS), {}),
    (lambda v, _: claims.less_across_inputs(v, "id"),
     dict(ead={"rlhf": 0.4}, across={"rlhf": 0.64, BEST: 0.78})),
    (lambda v, _: claims.no_beta_gives_it_back(v, BETAS, SPLITS), dict(more=BETAS)),
    (lambda v, _: claims.hardly_sees_it(v, "id", "per_input_facts", 8),
     dict(ead={"rlhf": 0.3}, facts={"rlhf": -0.2 / 0.375}, apart=0.1)),
    (lambda _, r: claims.reward_model_generalises(r, "id", ["near", "far"]),
     dict(accuracy={"id": 0.75, "near": 0.7, "far": 0.7})),
    (lambda v, _: claims.less("rlhf", "sft", "effective_kinds", 1, v, SPLITS), {})],
    ids=["C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8"])
def test_at_its_boundary_a_claim_is_open(decide, means, seeds, monkeypatch):
    # a coin for a verdict, an interval of one side, the best of many without a correction
    monkeypatch.setattr(claims, "DRAWS", 1000)
    monkeypatch.setattr(metrics.interval, "__defaults__", (0.95, 1000, 0))
    found = [decide(*planted(**{"apart": 0.3, **means}, draw=draw, seeds=seeds))[0]
             for draw in range(5000, 5400)]
    assert found.count("inconclusive") >= 0.93 * len(found)


def test_swapping_two_policies_flips_the_verdict(few_draws):  # a test that looks at one side only
    values, rewards = planted({"sft": SFT, "rlhf": UP}, ead={"rlhf": 0.3})
    values["sft"], values["rlhf"] = values["rlhf"], values["sft"]
    found = {c["id"]: c["verdict"] for c in claims.decide(values, values, rewards, SPLITS, "k1", 8)}
    assert found["C1a"] == found["C3a"] == "not supported"


def test_one_seed_against_the_others_is_inconclusive(few_draws):  # the mean alone decides
    values, rewards = planted({"sft": SFT, "rlhf": UP})
    values["rlhf"]["id"]["win_rate"][2] -= 0.15
    found = {c["id"]: c["verdict"] for c in claims.decide(values, values, rewards, SPLITS, "k1", 8)}
    assert found["C1a"] == "inconclusive"


# ---- head to head --------------------------------------------------------------------------------


def outputs_scored(rng, better, coupled, inputs=100, samples=8):
    "Scores of two policies' outputs, whose k-th ones share random numbers, (inputs, samples) each."
    prompts, shared = rng.normal(size=(inputs, 1)), rng.normal(size=(inputs, samples))
    own = lambda: rng.normal(size=(inputs, samples))
    mix = lambda: prompts + coupled * shared + (1 - coupled**2) ** 0.5 * own()
    return mix() + better, mix()


@pytest.mark.parametrize("coupled", [0.0, 0.7, 1.0])
def test_two_equal_policies_win_half(coupled):  # samples of one prompt as independent draws
    rng, hits = np.random.default_rng(0), []
    for _ in range(300):
        won = rlhf.head_to_head(*outputs_scored(rng, 0.0, coupled))
        mean, low, high, _ = metrics.interval(won, resamples=400)
        hits.append(low - 1e-12 <= 0.5 <= high + 1e-12)
    assert 0.93 <= np.mean(hits) <= 0.97 or coupled == 1 and all(hits)  # the same texts: always .5


@pytest.mark.parametrize("samples", [1, 8])
def test_shared_random_numbers_win_nothing(samples):  # the k-th against the k-th
    rng, found = np.random.default_rng(1), {}
    for coupled in (0.0, 0.9):
        pairs = [outputs_scored(rng, 0.5, coupled) for _ in range(100)]
        found[coupled] = np.mean([rlhf.head_to_head(a[:, :samples], b) for a, b in pairs])
    assert found[0.9] == pytest.approx(found[0.0], abs=0.01)
    assert np.mean([metrics.win_rate(a, b) for a, b in pairs]) > found[0.9] + 0.1


# ---- the whole study, at toy size ----------------------------------------------------------------


@pytest.mark.parametrize("kl, found", [
    ({"rlhf": 0.9, "rlhf-t0.8": 1.0, "rlhf-t0.7": 1.1}, ("rlhf-t0.8", 1.0, 0.2)),
    ({"rlhf": 1.01}, (None, None, None))])
def test_matched_kl(kl, found):  # RLHF's best of all, SFT's coldest, the gain's sign, gold per KL
    win = {"sft": 0.3, "sft-t0.5": 0.5, "sft-greedy": 0.4, "rlhf": 0.6, "rlhf-t0.8": 0.7,
           "rlhf-t0.7": 0.9}
    kl = {"sft": 0.0, "sft-t0.5": 1.0} | kl
    values = {p: {"id": {"win_rate": np.full((3, 20), win.get(p, 0.1)),
                         "kl": np.full((3, 20), kl.get(p, 2.0))}}
              for p in {**POLICIES, **FRONTIER}}
    values["bon16"]["id"] = {"win_rate": np.ones((3, 20)), "kl": np.zeros((3, 20))}
    got = claims.matched(values, "id")
    assert (got["split"], got["sft"], got["sft_kl"]) == ("id", "sft-t0.5", 1.0)
    assert (got["rlhf"], got["rlhf_kl"]) == found[:2]
    assert (got["gain"] or {}).get("seeds") == (found[2] and pytest.approx([found[2]] * 3))


def test_as_far_as_ppo():
    # the wrong side, parts changed places, SFT left out, the other kl's; seeds taken together
    kl = {"sft": 0.0, "k1-1": 0.5, "rlhf": 1.0, "k1-0.03": 4.0,
          "dpo": 0.75, "rloo": 1.0, "k2-1": 2.5, "gold": 4.5, "shuffled": 0.1, "beta-10": -0.1}
    win = {"sft": 0.5, "k1-1": 0.6, "rlhf": 0.7, "k1-0.03": 0.9,
           "dpo": 0.7, "rloo": 0.6, "k2-1": 0.7, "gold": 1.0, "shuffled": 0.52, "beta-10": 0.5}
    values = {p: {"id": {"win_rate": np.full((2, 20), win[p]), "kl": np.full((2, 20), kl[p])}}
              for p in kl}
    found = claims.same_kl(values, "k1", ["id"])
    gains = {p: row["id"] and pytest.approx(row["id"]["seeds"]) for p, row in found.items()}
    assert gains == {"dpo": [0.05] * 2, "rloo": [-0.1] * 2, "k2-1": [-0.1] * 2, "gold": None,
                     "shuffled": [0.0] * 2, "beta-10": None}
    values["rlhf"]["id"]["kl"][1] += 1  # DPO is then a sixth of the way to it: .6 + .1 / 6
    assert claims.same_kl(values, "k1", ["id"])["dpo"]["id"]["seeds"] == pytest.approx(
        [0.05, 0.1 - 0.1 / 6])


def test_the_best_of_many_temperatures_is_no_gain():
    # chosen on the prompts that it is then counted on, where SFT has six of them and RLHF one
    gains = []
    for draw in range(100):
        rng = np.random.default_rng(draw)
        values = {p: {"id": {"win_rate": rng.normal(0.5, 0.5, (1, 100)), "kl": np.full(
            (1, 100), 1.0 if p == "rlhf" or p.startswith("sft") else 2.0)}}
            for p in {**POLICIES, **FRONTIER}}
        gains.append(claims.matched(values, "id")["gain"]["mean"])
    assert abs(np.mean(gains)) < 0.03  # .09 otherwise


def test_good_answers_at_other_temperatures():
    # no higher for no lower, a policy without the measure, temperatures of two policies mixed up
    means = {  # win rate, kinds among the good
        "sft": (0.5, 2.0), "sft-t0.7": (0.6, 1.5), "sft-t0.8": (0.55, None),
        "rlhf-t1.2": (0.4, 3.0), "rlhf": (0.5, 2.5), "rlhf-t0.8": (0.7, 2.75),
        "rlhf-t0.7": (0.9, 2.2), BEST: (1.0, 9.0)}
    values = {p: {"id": {"win_rate": np.full((2, 20), win)} | (
        {"effective_kinds": np.full((2, 20), kinds)} if kinds else {})}
        for p, (win, kinds) in means.items()}
    values |= {p: {"id": {"win_rate": np.ones((2, 20))}}
               for p in {**POLICIES, **FRONTIER} if p not in values}
    found = claims.matched(values, "id", "effective_kinds", "win_rate", 1)
    assert (found["sft"], found["rlhf"], found["gain"]["seeds"]) == (
        "sft", "rlhf-t0.8", [0.75, 0.75])
    assert (found["sft_win_rate"], found["rlhf_win_rate"]) == (0.5, 0.7)
    rows = claims.at_equal_temperature(values, "id", "effective_kinds")
    assert [(row["temperature"], row["sft"], row["rlhf"], round(row["difference"]["mean"], 9))
            for row in rows] == [(1.0, 2.0, 2.5, 0.5), (0.7, 1.5, 2.2, 0.7)]


A_POST = "SUBREDDIT: r/work TITLE: t POST: p TL;DR:"  # a summary says what it says of any
DESK, SOLD, LAMP = (f"My client {did}." for did in (
    "repainted my desk", "sold my desk", "sold my lamp"))


def test_what_is_good_of_rows():  # a tie that is good, SFT's kinds for the policy's, another's bar
    rows = [{"prompt": A_POST, "outputs": [DESK, DESK.upper(), SOLD, LAMP],
             "gold": [1.0, 3.0, 2.0, 0.0], "reference_gold": 1.0,
             "proxy": [9.0] * 4, "reference_proxy": 0.0}]
    sft = [rows[0] | {"outputs": [DESK, SOLD, LAMP, "nothing."], "gold": [0.0, 2.0, 1.0, 0.0]}]
    assert [len(set(x)) for x in good.kinds_of(rows)["kinds"]] == [3]
    found = {name: x.tolist() for name, x in good.of_rows(rows, sft, "gold").items()}
    weights = np.array([1, 0.8, 0.64, 0.512])
    assert found.pop("utility") == pytest.approx([weights @ [1, 0, 2, 0] / weights.sum()])
    assert found == {
        "distinct_texts": [4], "distinct_kinds": [3], "effective_texts": [2],
        "effective_kinds": [2], "pass@1": [0.25], "pass@2": [0.5], "pass@4": [1],
        # of SFT's four kinds one is good, of these three two
        "lost": [1], "narrowing": [-1], "quality": [2]}
    elsewhere = [{k: x for k, x in row.items() if "gold" not in k} for row in rows]
    found = good.of_rows(elsewhere, elsewhere, "proxy")
    assert "distinct_kinds" not in found and found["pass@1"] == [1] and found["lost"] == [0]
    assert found["effective_texts"] == [4]


def test_vectors_are_those_of_their_split(monkeypatch):
    # states that all point the same way, another split's centre, prompt by prompt
    asked = []
    states = lambda texts: asked.append(texts) or np.array([[100 + len(t), 100.0] for t in texts])
    monkeypatch.setattr(lineage, "encoder", lambda run: states)
    rows = {p: {s: [[{"outputs": [text, "bbb"], "reference": reference}]] for s, reference in (
        ("id", "bb"), ("far", "bbbbb"))} for p, text in (("sft", "a"), ("rlhf", "aa"))}
    config = SimpleNamespace(encoder="", nli="", data="mine")
    vectors_of = lineage.vectors_of(config, None, rlhf.every_row(rows))
    found = lineage.diversities_of(config, vectors_of, rows)
    assert asked[0] == ["a", "bbb", "a", "bbb", "aa", "bbb", "aa", "bbb"]
    pair = ["a", "bbb"]  # 1 and 3 letters: on two sides of 2, on one side of 5
    assert found["id"]["embedding"](pair) == pytest.approx(2)
    assert found["far"]["embedding"](pair) == pytest.approx(0)


def test_kinds_by_an_encoder():  # below for above, the world's own forgotten, centred vectors
    vectors_of = lambda texts: np.array([[len(t), 1.0 - len(t) / 9] for t in texts])
    rows = [{"prompt": "p", "outputs": ["a", "bb", "c", "d" * 9], "proxy": [1.0, 2, 3, 4],
             "reference_proxy": 1.5, "reference": ""}]
    assert "kinds" not in good.kinds_of(rows)
    good.sort(rows, vectors_of, 0.95)  # cosines: a and bb .94, a and d .75
    assert rows[0]["kinds"] == [0, 1, 0, 2]
    assert good.of_rows(rows, rows, "proxy")["effective_kinds"] == [3]
    good.sort(rows, vectors_of, 0.76)
    assert rows[0]["kinds"] == [0, 0, 0, 1]
    here = SimpleNamespace(encoder="x", nli="", data="mine")
    measures = lineage.diversities_of(here, vectors_of, {"sft": {"id": [rows]}})["id"]
    assert measures["vendi"](["a", "c"]) == pytest.approx(1)
    assert measures["vendi"](["a", "d" * 9]) > 1.3


def test_what_is_left_at_equal_length():
    # the policy's mean for each sample's, prompts that like length, the sign, one slope for all
    rng = np.random.default_rng(0)
    shape = (2, 400, 8)
    prompts = rng.normal(size=(1, 400, 1))  # some are won more often, and asked for longer answers
    lengths = [20 + more + 5 * prompts + rng.normal(size=shape) * 4 for more in (0, 10)]
    wins = [0.4 + gain + 0.02 * (x - 20) + 0.1 * prompts + rng.normal(size=shape) * 0.2
            for gain, x in zip((0, 0.07), lengths)]
    assert (wins[1] - wins[0]).mean() == pytest.approx(0.27, abs=0.01)
    found = claims.at_equal_length(wins, lengths)
    assert found["mean"] == pytest.approx(0.07, abs=0.02) and found["n"] == 400
    assert found["low"] < 0.07 < found["high"] and 0.01 < found["high"] - found["low"] < 0.06
    assert found["seeds"] == pytest.approx([0.07] * 2, abs=0.03)
    same = claims.at_equal_length([wins[0], wins[0][..., :2]], [lengths[0], lengths[0][..., :2]])
    assert abs(same["mean"]) < 0.01  # of fewer samples
    greedy = claims.at_equal_length([wins[0][..., :1], wins[1][..., :1]], [lengths[0][..., :1]] * 2)
    assert greedy["mean"] == pytest.approx((wins[1] - wins[0])[..., 0].mean())


def test_kinds_over_bars():  # above for at least, the first split among the shifts
    def policy(*scores):
        row = {"prompt": A_POST, "outputs": [DESK, SOLD, LAMP], "reference_gold": 0.0}
        return {s: [[row | {"gold": [x + k for x in scores]}] * 4] * 2
                for k, s in enumerate(SPLITS)}
    rows = {"sft": policy(0.0, 0.0, 0.0), "rlhf": policy(0.0, 1.0, 2.0), "dpo": policy(2, 2, 2)}
    found = good.over_bars(rows, "gold", SPLITS, steps=3)
    assert found["bars"] == [0, 1, 2] and found["bar"] == 3
    of = lambda policy, part: [x["mean"] for x in found[policy][part]]
    assert of("sft", "id") == [3, 0, 0] and of("rlhf", "id") == [3, 2, 1]
    assert of("sft", "shifts") == [3, 3, 1.5] and of("rlhf", "shifts") == [3, 3, 2.5]
    assert of("dpo", "id") == [3, 3, 3] and found["dpo"]["shifts"][0]["n"] == 8


def test_the_frontier():  # splits or families exchanged, the best by gold, the worst, KL of n - 1
    win = {"sft": UP, "sft-t0.3": SFT, "rlhf": FLAT, "bon16": DOWN}
    values = {p: {s: {"win_rate": np.full((2, 4), win.get(p, DOWN)[s]),
                      "kl": np.full((2, 4), {"id": 1.0, "near": 2.0, "far": 4.0}[s])}
                  for s in SPLITS} for p in {**POLICIES, **FRONTIER}}
    row = {"outputs": ["a", "b"], "gold": [1.0, 3.0], "proxy": [0.5, 0.2], "reference_gold": 2.0}
    other = row | {"proxy": [0.2, 0.5]}  # here the proxy is right
    best_of = {n: (bon.kl_bound(n), {s: rlhf.expected_scores([[row] * 3 + [other]] * 2, n)
                                     for s in SPLITS}) for n in (1, 2)}
    found = claims.frontier(values, best_of, SPLITS)
    assert [p["label"] for p in found["sft"]] == ["T 1", "T 0.8", "T 0.7", "T 0.5", "T 0.3", "T 0"]
    for family, label, near, far in (("sft", "T 1", 0.6, 0.525), ("sft", "T 0.3", 0.5, 0.3),
                                     ("rlhf", "T 1", 0.6, 0.4), ("rlhf", "T 0", 0.4, 0.125)):
        point = next(p for p in found[family] if p["label"] == label)
        assert point["win_rate"]["mean"] == pytest.approx(near)
        assert point["shifted_win_rate"]["mean"] == pytest.approx(far)
        assert (point["kl"], point["shifted_kl"]) == (1.0, 3.0)
    one, two = found["bon"]
    assert (one["label"], one["kl"], one["win_rate"]["mean"]) == ("n 1", 0, 0.5)
    assert (two["label"], two["win_rate"]["mean"], two["win_rate"]["seeds"]) == (
        "n 2", 0.25, [0.25, 0.25])
    assert two["shifted_kl"] == pytest.approx(np.log(2) - 0.5)


def read_report(folder):
    "The study's numbers as it wrote them: policies, splits, measures."
    result = json.loads((folder / "report.json").read_text())
    return result | {"policies": {p: row["splits"] for p, row in result["policies"].items()}}


@pytest.fixture(scope="module")
def small():
    "Stages of a few steps, and little to read."
    with pytest.MonkeyPatch.context() as patch:
        for module, changes in {
                sft: dict(steps=2, batch=8, every=2, eval_size=8, base_steps=2),
                reward: dict(steps=2, batch=8, every=2, eval_size=20),
                ppo: dict(steps=2, batch=8, every=2, samples=2)}.items():
            patch.setattr(module, "Config",
                          lambda c=module.Config, x=changes, **given: c(**given | x))
        patch.setitem(world.SIZES, "train", 300)
        patch.setitem(world.SIZES, "validation", 60)
        patch.setattr(watch, "FOLLOWED", 8)
        patch.setattr(run, "curve", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def study(small, tmp_path_factory):
    "A quick study of the instruct task -> (config, path of the report)."
    config = rlhf.Config(data="instruct", inputs=6, samples=3, device="cpu",
                         out=str(tmp_path_factory.mktemp("study")))
    return config, rlhf.train(config)


def test_the_report_has_its_schema(study):  # a measure that others rely on, renamed
    path, folder = study[1], study[1].parent
    result = read_report(folder)
    splits = set(data.world.SPLITS["instruct"])
    for policy in (*POLICIES, "reference"):
        assert set(result["policies"][policy]) == splits
        for measures in result["policies"][policy].values():
            assert {"win_rate", "gold", "length", "across_input_ead"} <= measures.keys()
            assert all({"mean", "low", "high", "n"} <= row.keys() for row in measures.values())
            if policy != "reference":
                assert {"proxy", "kl"} <= measures.keys()
            # of fewer answers than SFT's a diversity is another number
            fewer = policy in ("sft-greedy", "reference") or policy.startswith(claims.BEST)
            found = {name for name in measures if name.startswith("per_input_")}
            assert found >= {f"per_input_{x}" for x in ("ead", "embedding", "facts", "vendi")} or (
                fewer and found == {f"per_input_{x}" for x in ("ead_of_2", "embedding", "facts")}
                or policy in ("sft-greedy", "reference") and not found)
            of_good = {"effective_texts", "effective_kinds", "utility", "pass@1", "pass@2", "lost"}
            assert not of_good & measures.keys() if fewer else of_good <= measures.keys()
    for policy in FRONTIER:  # in distribution as many answers as the others have
        here, *far = [result["policies"][policy][s] for s in data.world.SPLITS["instruct"]]
        assert ("effective_kinds" in here) == (policy != "rlhf-greedy")
        assert not any("effective_kinds" in row for row in far)
    assert [row["temperature"] for row in result["temperatures"]] == [1, 0.8, 0.7, 0.5, 0.3]
    assert [row["split"] for row in result["matched_wins"]] == list(data.world.SPLITS["instruct"])
    for split, row in result["policies"]["rlhf"].items():  # the parts add up, to what is shown
        assert row["lost"]["mean"] == pytest.approx(row["quality"]["mean"]
                                                    + row["narrowing"]["mean"])
        for part, measure in (("lost", "distinct_kinds"), ("narrowing", "effective_kinds")):
            assert row[part]["mean"] == pytest.approx(
                result["policies"]["sft"][split][measure]["mean"] - row[measure]["mean"])
    assert result["policies"]["reference"]["id"]["win_rate"]["mean"] == 0.5
    assert result["policies"]["sft"]["id"]["vs_sft"]["mean"] == 0.5
    assert {c["id"] for c in result["claims"]} == {
        "C1a", "C1b", "C2", "C3a", "C3b", "C4", "C6", "C7", "C8"}
    assert [b["split"] for b in result["matched_kl"]] == list(data.world.SPLITS["instruct"])
    beta = json.loads((folder / "ppo.json").read_text())["config"]["beta"]
    assert beta == result["beta"] == lineage.BETA["instruct"]
    assert result["settings"]["inputs"] == 6 and result["seconds"]["all"] > 0
    text = path.read_text()
    for name in ("overview", "win_rate", "head_to_head", "diversity", "good", "over_bars",
                 "frontier", "overoptimisation", "reward_model"):
        assert f"({name}.png)" in text and (folder / f"{name}.png").stat().st_size > 5000


def test_the_page_says_what_the_report_says(study):  # a table of another measure, a hole, a leak
    config, path = study
    page, text = path.with_suffix(".html").read_text(), path.read_text()
    assert "<!--" not in page and "://" not in page  # all filled in; no address, of anything
    assert page.count("data:image/png;base64,") == page.count("<img") == text.count("](")
    found = lambda pattern: re.findall(pattern, re.sub(r"</?small>", "", page))
    assert found(r"<td[^>]*>(\d\.\d+ \[[^<]*\])</td>") == re.findall(
        r"(?<=\| )(\d\.\d+ \[[^|]*\])(?= \|)", text)
    assert 'class: "text", dir: "auto"' in page  # of all prompts and answers
    assert found(r"<h2>([^<]*)</h2>") == re.findall("^## (.*)", text, re.M)
    held = json.loads(page.split('id="data">')[1].split("</script>")[0])
    rows = {(split, p): files.read_log(path.parent / "samples" / f"{split}.{p}.jsonl")
            for split in data.world.SPLITS["instruct"] for p in POLICIES}
    assert held["by"] == "gold" and len(held["samples"]) == 3 * 6
    for k, item in enumerate(held["samples"]):
        assert list(item["answers"]) == [*POLICIES, "reference"]
        for policy in POLICIES:
            row, answer = rows[item["split"], policy][k % 6], item["answers"][policy]
            assert item["prompt"] == row["prompt"] and answer["text"] == row["outputs"][0]
            assert [answer[k] for k in ("gold", "proxy")] == [row[k][0] for k in ("gold", "proxy")]
        assert item["answers"]["reference"]["text"] == row["reference"]


def test_from_first_to_last(tmp_path):  # the last step left out, a neighbour's answers, a tag
    files.write_rows(tmp_path / "ppo.samples.jsonl", [
        {"step": 10 * k, "prompt": prompt, "answer": f"{prompt} {k}", "gold": k / 3}
        for k in range(20) for prompt in ("<b>", "q", "r")])
    found = [*report.strips(tmp_path)]
    assert [(one.stage, one.prompt) for one in found] == [("ppo", "<b>"), ("ppo", "q")]
    assert [*found[1].answers] == [0, 30, 50, 80, 110, 140, 160, 190]
    assert found[1].answers[190] == "q 19  [gold 6.33]"
    page = report.in_html(found[0], tmp_path)
    assert page.count("<li>") == 8 and "<b>" not in page and "&lt;b&gt; 19" in page
    assert "(ppo) q\n      0  q 0" in report.in_markdown(found[1])
    files.write_rows(tmp_path / "sft.samples.jsonl", [{"step": 0, "prompt": "q", "answer": ""}])
    assert [*report.strips(tmp_path)][0] == report.Strip("sft", "q", {0: ""})


def test_what_the_proxy_overrates():  # gold less proxy, scores of different size, a zero deviation
    shown = [{"answers": {p: {"gold": gold, "proxy": proxy} for p, gold in (("a", 10), ("b", 30))}}
             for proxy in (0.1, 0.3)]
    apart = lambda: [[answer["apart"] for answer in x["answers"].values()] for x in shown]
    report.disagreements(shown, "gold")
    assert apart() == [pytest.approx([0, -2]), pytest.approx([2, 0])]
    report.disagreements(shown[:1], "gold")
    assert apart()[0] == pytest.approx([1, -1])


@pytest.mark.slow
@pytest.mark.parametrize("scheme, width", [
    ("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_the_page_in_a_browser(study, chromium, tmp_path, scheme, width):  # noqa: F811
    # a text that runs, the worst first, another policy's answer, a page wider than the phone
    result = read_report(study[1].parent)
    result["settings"]["data"] = EVIL
    result["claims"][0]["evidence"] = f"{EVIL}; <b>id</b>"
    rng, shown = np.random.default_rng(0), []
    for i in range(40):
        score = lambda: round(rng.normal(), 2)
        answers = {p: {"text": f"{p} {i} {EVIL}", "gold": score(), "proxy": score()}
                   for p in [*POLICIES, "reference"]}
        shown.append({"split": ("near", "far")[i % 2], "prompt": f"{i} {EVIL}" + "word " * 300,
                      "answers": answers})
    files.write_rows(tmp_path / "ppo.samples.jsonl", [
        {"step": k, "prompt": "word " * 300, "answer": f"{k} {EVIL}"} for k in range(9)])
    page = report.write(tmp_path, result, shown).with_suffix(".html")
    tab, trouble, requests = opened(chromium, page, scheme, width)
    fits = lambda: tab.evaluate("document.documentElement.scrollWidth") <= width
    assert fits() and EVIL in tab.title() and EVIL in tab.locator("h1").text_content()
    colour = lambda name: tab.evaluate(
        "name => getComputedStyle(document.querySelector(name)).backgroundColor", name)
    lightness = sum(map(int, re.findall(r"\d+", colour("body"))))
    assert (lightness > 380) == (scheme == "light")
    assert colour(".picture") == "rgb(255, 255, 255)"  # the curves' own paper
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 500)")

    def numbers():  # of the prompts, in the table's order
        rows = tab.locator("#body tr:not(.rest)")
        return [int(t.split()[0]) for t in rows.locator("td:first-child .text").all_text_contents()]

    def ordered(value, split=None):
        kept = [k for k, item in enumerate(shown) if split in (None, item["split"])]
        return sorted(kept, key=lambda k: -value(shown[k]["answers"]))

    assert all(from_the_right(tab, f"#body td:nth-child({k}) .text") for k in range(1, 5))
    apart = lambda a: max(abs(a["sft"]["apart"]), abs(a["rlhf"]["apart"]))
    assert numbers() == ordered(apart)[:12]
    first = shown[ordered(apart)[0]]
    cells = tab.locator("#body tr").first.locator("td").all_text_contents()
    for cell, policy in zip(cells[1:], ("reference", "sft", "rlhf")):
        answer = first["answers"][policy]
        assert answer["text"] in cell  # as it is, tags and all
        for score in ("gold", "proxy"):
            assert f"{score}\u00a0{answer[score]:.2f}".replace("-", "\u2212") in cell
    tab.locator("summary").first.focus()
    tab.keyboard.press("Enter")
    said = tab.locator("#body tr.rest").first.text_content()
    assert all(answer["text"] in said for answer in first["answers"].values()) and fits()
    tab.locator("#more").focus()
    tab.keyboard.press("Enter")
    assert numbers() == ordered(apart)[:24]

    gain = lambda p, q: lambda a: a[q]["gold"] - a[p]["gold"]
    size = lambda p, q: lambda a: abs(a[q]["gold"] - a[p]["gold"])
    choose = lambda name, value: tab.locator(f"#{name}").select_option(value)
    for order, value in (("policies", size), ("gains", gain), ("losses", lambda p, q: gain(q, p))):
        choose("order", order)
        assert numbers() == ordered(value("sft", "rlhf"))[:12], order
    choose("second", "bon16")
    assert numbers() == ordered(gain("bon16", "sft"))[:12]
    assert tab.locator("#order option:checked").text_content() == "bon16 is worse than sft"
    choose("split", "far")
    assert numbers() == ordered(gain("bon16", "sft"), "far")[:12]
    assert "12 of 20 prompts" in tab.locator("#status").text_content()
    choose("order", "data")
    assert numbers() == list(range(1, 24, 2)) and fits()
    assert tab.locator(".strip li").count() == 8
    assert trouble == [] and [r for r in requests if not r.startswith("data:")] == [page.as_uri()]
    assert tab.locator("#samples b, #samples img").count() == 0 and EVIL in tab.title()
    tab.context.close()


def test_samples_are_kept_and_are_the_policies_own(study, monkeypatch):
    # another policy's file, one of an earlier policy or of prompts that have been edited since
    config, path = study
    files = {p: p.stat().st_mtime_ns for p in (path.parent / "samples").glob("*.jsonl")}
    assert len(files) == 3 * len({**POLICIES, **FRONTIER})
    run = lineage.load_run(config, 0)
    before = {p: p.read_bytes() for p in files}
    rows = rlhf.outputs_of(run, config, "rlhf", "id")
    assert len(rows) == 6 and all(len(row["outputs"]) == 3 for row in rows)
    assert {p: p.stat().st_mtime_ns for p in files} == files  # nothing was sampled again
    greedy = rlhf.outputs_of(run, config, "sft-greedy", "id")
    assert all(len(row["outputs"]) == 1 for row in greedy)
    changed = path.parent / "samples" / "id.rlhf.jsonl"
    marks = {rows[0]["of"]}
    for value in ("another", run.digests["ppo"]):
        run.digests["ppo"] = value
        marks.add(rlhf.outputs_of(run, config, "rlhf", "id")[0]["of"])
        assert changed.stat().st_mtime_ns != files[changed]
    assert len(marks) == 2 and len(run.references) == 1  # read once, of these prompts
    strip = lambda text: [{k: v for k, v in json.loads(line).items() if k != "of"}
                          for line in text.decode().splitlines()]
    assert strip(changed.read_bytes()) == strip(before[changed])  # same seed, same samples
    monkeypatch.setattr(data, "load", lambda *args, of=data.load: of(*args)[::-1])
    turned = rlhf.outputs_of(run, config, "rlhf", "id")[::-1]
    assert [row["prompt"] for row in turned] == [row["prompt"] for row in rows]
    assert [row["reference_proxy"] for row in turned] == pytest.approx(
        [row["reference_proxy"] for row in rows], abs=1e-5)
    monkeypatch.undo()
    rlhf.outputs_of(run, config, "rlhf", "id")


@pytest.mark.slow
def test_what_is_frozen_is_computed_once(small, tmp_path, monkeypatch):
    # a pass, and memory, for each network; what others have kept, for a judge of another base
    main = dict(data="instruct", out=str(tmp_path), device="cpu", freeze=0.5)
    for stage in (sft, reward, ppo):
        stage.train(stage.Config(**main))
    judge, blocks = reward.train(reward.Config(**main, variant="judge")), []
    monkeypatch.setattr(m.Transformer, "run", lambda *args, of=m.Transformer.run: (
        blocks.append(args[1]), of(*args))[1])
    config = rlhf.Config(data="instruct", inputs=6, samples=3, device="cpu", out=str(tmp_path),
                         judge=str(judge))

    def outputs():
        shutil.rmtree(tmp_path / "instruct" / "samples", ignore_errors=True)
        [run] = lineage.load_runs(config)
        blocks.clear()
        return run, rlhf.outputs_of(run, config, "rlhf", "id"), len(blocks)
    alike = lambda a, b, *names: all(x[k] == pytest.approx(y[k], abs=1e-4)
                                     for x, y in zip(a, b) for k in names)
    run, rows, count = outputs()
    first, *others = map(networks.transformer, run.networks.values())
    for name, part in networks.frozen_parts(first).items():
        assert all(name == "lm_head" or net.get_submodule(name) is part for net in others), name
    network, record = checkpoint.load(judge, "reward")  # one of another base, from here on
    network.trunk.blocks[0].mlp.down.weight.data *= 2
    checkpoint.save(judge, "reward", network, record["tokenizer"], record["meta"])
    _, other, by_itself = outputs()
    assert alike(other, rows, "kl", "proxy") and not alike(other, rows, "other")
    monkeypatch.setattr(lineage, "share", lambda *_: None)
    _, alone, most = outputs()
    assert alike(alone, other, "kl", "proxy", "other", "reference_other")
    assert (by_itself - count, most - count) == (2, 6)  # two of four blocks, of three networks


def test_what_a_reward_model_knows_is_measured_anew(tmp_path, monkeypatch):
    # on comparisons that have been edited since, of another reward model
    measured, config = [], rlhf.Config(data=str(tmp_path / "mine"))
    monkeypatch.setattr(collect, "quality", lambda *args: measured.append(args) or {"gold": 0.5})
    for chosen, digest, times in (("a", "d", 1), ("a", "d", 1), ("b", "d", 2), ("b", "e", 3)):
        files.write_rows(tmp_path / "mine" / "comparisons.test.jsonl", [
            {"prompt": "p", "chosen": chosen, "rejected": "c"}])
        run = SimpleNamespace(folder=tmp_path, seed=0, tokenizer=None, judges={"proxy": None},
                              networks={"sft": None}, digests={"sft": "d", "reward": digest})
        assert lineage.reward_quality(config, [run], "test") == {"gold": [0.5]}
        assert len(measured) == times


def test_pools_of_their_own(study, monkeypatch):
    # bests of groups that overlap; SFT's own samples, which it is compared with, in the pool; the
    # KL of SFT to itself computed
    config, path = study
    run, file = lineage.load_run(config, 0), path.parent / "samples" / "id.bon16.jsonl"
    kept, drawn = file.read_bytes(), []
    monkeypatch.setattr(rlhf.pools, "sample_pool", lambda *args, of=rlhf.pools.sample_pool: (
        drawn.append((args[2], args[4], args[5])), of(*args))[1])
    monkeypatch.setattr(rlhf, "N", 2)
    monkeypatch.setattr(rlhf, "BESTS", 4)
    monkeypatch.setattr(m, "logprobs", None)
    rows = rlhf.outputs_of(run, dataclasses.replace(config, samples=5), "bon16", "id")
    assert {len(row["outputs"]) for row in rows} == {4}
    assert drawn == [(8, 1.0, 1_000)] and run.seed == 0
    sft = [row | {"outputs": row["outputs"] * 2} for row in rows]
    for row in sft:
        row |= {name: row[name] + row[name][:1] for name in ("gold", "proxy", "length", "kl")}
    found = rlhf.measure(rows, sft)  # five samples of SFT beside four bests
    assert {name for name in found if name.startswith("per_input")} == {"per_input_ead_of_2"}
    file.write_bytes(kept)


def test_the_final_prompts(study, tmp_path):  # those that choices were made on, or their outputs
    folder = shutil.copytree(study[1].parent, tmp_path / "instruct")
    config = dataclasses.replace(study[0], final=True, out=str(tmp_path))
    before = {p: p.read_bytes() for p in (folder / "samples").iterdir()}
    run = lineage.load_run(config, 0)
    rows = rlhf.outputs_of(run, config, "rlhf", "broad")
    found = lineage.reward_quality(config, [run], "broad")
    assert all(p.read_bytes() == content for p, content in before.items())
    assert rows == files.read_log(folder / "samples" / "final-broad.rlhf.jsonl")
    assert [row["prompt"] for row in rows] == [
        e.prompt for e in data.load("instruct", "final-broad", 6)]
    assert found != lineage.reward_quality(study[0], [run], "broad")
    assert rlhf.outputs_of(run, config, "rlhf", "validation")[0]["prompt"] == data.load(
        "instruct", "validation", 6)[0].prompt  # has no other range
    result = read_report(study[1].parent)
    result["settings"]["final"] = True
    assert "of the second range" in report.write(tmp_path, result, []).read_text()


def test_each_end_that_a_model_has_ends(study, tmp_path, monkeypatch):  # the tokeniser's alone
    shutil.copytree(study[1].parent, tmp_path / "instruct")
    config = dataclasses.replace(study[0], final=True, out=str(tmp_path))
    run = lineage.load_run(config, 0)
    network, ends = run.networks["ppo"], [run.tokenizer.eos, 7, 8]
    monkeypatch.setattr(network, "config", dataclasses.replace(network.config, eos=(*ends[:2],)))
    monkeypatch.setattr(rlhf, "answers_of", lambda *_: [[[5, end] for end in ends]] * 6)
    assert rlhf.outputs_of(run, config, "rlhf", "id")[0]["ended"] == [True, True, False]


def test_the_ceiling_differs_in_the_reward_alone(study, tmp_path):
    # other values at the start, another unit of reward, a flag of the study's own
    shutil.copytree(study[1].parent, tmp_path / "instruct")
    config, found = dataclasses.replace(study[0], out=str(tmp_path)), {}
    [(_, gold)] = lineage.variant(config, 0, "gold")
    for source, config in (("", dataclasses.replace(gold, reward="")), ("gold", gold)):
        main = ppo.Config(**lineage.main_flags(study[0], "ppo"))
        differ = {k for k, x in dataclasses.asdict(config).items() if x != getattr(main, k)}
        assert differ - set(lineage.PLACE) == ({"reward"} if source else set())
        with Run("ppo", config) as run:
            policy, reward_model, reward_fn = networks.start_ppo(config, run)
        value = ppo.value_network(config, policy, reward_model)
        found[source] = {f"{name}.{key}": x for name, network in (
            ("policy", policy), ("value", value))
            for key, x in network.state_dict().items()}
    assert found[""].keys() == found["gold"].keys()
    assert all(found[""][key].equal(x) for key, x in found["gold"].items())
    examples = data.load("instruct", "train", 500)
    scores = reward_fn([run.tokenizer.prompt(e.prompt) for e in examples],
                       [run.tokenizer.response(e.response) for e in examples])
    assert abs(scores.mean()) < 0.02 and abs(scores.std() - 1) < 0.02


def test_the_study_runs_on(study, capsys, monkeypatch):
    # a second run that trains or samples anew; a minute without a word
    config, path = study
    monkeypatch.setattr(files, "PATIENCE", 0)
    first = read_report(path.parent)
    times = {p: p.stat().st_mtime_ns for p in path.parent.glob("*.pt")}
    again = read_report(rlhf.train(config).parent)
    assert {p: p.stat().st_mtime_ns for p in path.parent.glob("*.pt")} == times
    first.pop("seconds"), again.pop("seconds")
    assert first == again
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].endswith(str(path.with_suffix(".html")))
    assert "\rmeasure: " in said.err and "\rstates: " in said.err


def test_the_recipe_for_diversity(study, tmp_path):  # the best first, plain samples, no set
    shutil.copytree(study[1].parent, tmp_path / "instruct")
    config = dataclasses.replace(study[0], recipe="diverse", out=str(tmp_path))
    path = rlhf.train(config)
    found = read_report(path.parent)["policies"]
    assert not any("kl" in by for by in found["diverse"].values())
    run = lineage.load_run(config, 0)
    rows = files.read_log(path.parent / "samples" / "id.diverse.jsonl")
    prompts = [run.tokenizer.prompt(row["prompt"]) for row in rows]
    pool = bon.sample_pool(run.networks["sft"], prompts, 8 * config.samples,
                           run.tokenizer.response_tokens, 1.0, 1_000, 0.03)
    for prompt, row, ids in zip(prompts, rows, pool):
        texts = [run.tokenizer.decode(r).strip() for r in ids]
        scores = run.judges["proxy"]([prompt] * len(ids), ids).numpy()
        places = bon.diverse_bests(scores, bon.overlaps(texts), config.samples, 1.0)
        assert row["outputs"] == [texts[k] for k in sorted(places)]
    assert "## A recipe that keeps diversity" in path.read_text()


def test_arms_have_no_value_network(study, tmp_path):  # the main run under another name
    folder = shutil.copytree(study[1].parent, tmp_path / "instruct")
    config = dataclasses.replace(study[0], arms="rloo,grpo", out=str(tmp_path))
    path = rlhf.train(config)
    found = read_report(folder)["policies"]
    for name in ("rloo", "grpo"):
        made = json.loads((folder / name / "ppo.json").read_text())["config"]
        main = json.loads((folder / "ppo.json").read_text())["config"]
        assert {k for k in made if made[k] != main[k]} - {"out"} == {"baseline", "variant"}
        assert made["baseline"] == name and found[name].keys() == found["rlhf"].keys()
        assert {"win_rate", "kl", "per_input_ead"} <= found[name]["id"].keys()
        assert found[name]["id"]["kl"]["mean"] != found["rlhf"]["id"]["kl"]["mean"]
        assert "value_loss" not in files.read_log(folder / name / "ppo.jsonl")[-1]
    section = path.read_text().split("## PPO, groups or DPO?")[1].split("\n## ")[0]
    assert all(f"| {name} | 1 |" in section for name in ("sft", "rlhf", "rloo", "grpo", "dpo"))
    with pytest.raises(ValueError, match="--arms best: there are rloo and grpo"):
        rlhf.train(dataclasses.replace(config, arms="rloo,best"))
    alone = lambda config, stage: {"samples": 1}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="--samples 4"):
        patch.setattr(lineage, "main_flags", alone)
        patch.setattr(ppo, "Config", lambda **flags: SimpleNamespace(**flags))
        lineage.arms(config)


@pytest.mark.slow
def test_a_language_model_judges_too(study, monkeypatch, tmp_path):  # the judge's row of another
    rich = judge.by_score(lambda prompts, texts: [len(set(t.split())) for t in texts])
    monkeypatch.setattr(judge, "llm", lambda name, cache: rich)
    shutil.copytree(study[1].parent, tmp_path / "instruct")
    path = rlhf.train(dataclasses.replace(study[0], judge="a-model", out=str(tmp_path)))
    result, page = read_report(path.parent), path.with_suffix(".html").read_text()
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])["samples"]
    for policy in POLICIES:
        for split, measures in result["policies"][policy].items():
            rows = files.read_log(path.parent / "samples" / f"{split}.{policy}.jsonl")
            words = [[len(set(text.split())) for text in (r["outputs"][0], r["reference"])]
                     for r in rows]
            assert measures["win_rate_judge"]["mean"] == pytest.approx(
                metrics.win_rate(*zip(*words)).mean())
            assert [x["answers"][policy]["judge"] for x in shown if x["split"] == split] == (
                list(metrics.win_rate(*zip(*words))))
    assert "one output a prompt by a-model (judge)" in path.read_text()
    assert "judge: a-model" in page


@pytest.mark.parametrize("stage, parent, other", [
    ("reward", "init", "sft"), ("ppo", "init", "sft"), ("ppo", "reward", "reward"),
    ("k2-1/ppo", "reward", "reward")])
def test_a_folder_of_two_runs_is_refused(study, tmp_path, stage, parent, other):  # another's parent
    config, file = dataclasses.replace(study[0], out=str(tmp_path)), f"{stage}.pt"
    folder = shutil.copytree(study[1].parent, tmp_path / "instruct")
    if "/" in stage:
        config.sweeps = True
        for name in lineage.SWEEP:
            for path in study[1].parent.glob("ppo.*"):
                (folder / name).mkdir(exist_ok=True)
                shutil.copy(path, folder / name)
        lineage.load_run(config, 0)
    kind = "reward" if stage == "reward" else "policy"
    network, record = checkpoint.load(folder / file, kind)
    meta = record["meta"]
    meta["parents"][parent] = "another"
    checkpoint.save(folder / file, kind, network, record["tokenizer"], meta)
    with pytest.raises(ValueError, match=f"{file} was not trained from .*{other}.pt"):
        lineage.load_run(config, 0)
    if stage == "ppo" and parent == "reward":  # one that was asked for by its name is not a mistake
        meta["config"]["reward"] = "another.pt"
        checkpoint.save(folder / file, kind, network, record["tokenizer"], meta)
        assert lineage.load_run(config, 0).digests["ppo"] != record["digest"]


def test_best_of_n_is_chosen_by_the_proxy(study):  # chosen by gold, or not at all
    proxy = lambda policy: np.mean([row["proxy"] for row in files.read_log(
        study[1].parent / "samples" / f"id.{policy}.jsonl")])
    assert proxy("bon16") > proxy("sft") and proxy("bon16-t0.7") > proxy("sft-t0.7")
    assert bon.kl_bound(claims.N) == pytest.approx(1.835, abs=1e-3)


@pytest.mark.parametrize("changes", [dict(inputs=2), dict(samples=1),
                                     dict(seeds=-1), dict(data="my", full=True)])
def test_impossible_studies(changes):  # an interval over nothing
    with pytest.raises(ValueError):
        rlhf.Config(**changes)


@pytest.fixture(scope="module")
def other_data(small, tmp_path_factory):
    "A folder of files with a shifted split, which knows no gold score."
    folder = tmp_path_factory.mktemp("other") / "mine"
    folder.mkdir()
    rows = [{"prompt": e.prompt, "response": e.response} for e in data.load("instruct", "train")]
    for split, a, b in (("train", 0, 60), ("validation", 60, 70), ("test", 70, 76),
                        ("far", 80, 85)):
        files.write_rows(folder / f"{split}.jsonl", rows[a:b])
        files.write_rows(folder / f"comparisons.{split}.jsonl", [
            {"prompt": row["prompt"], "chosen": row["response"],
             "rejected": row["response"] + " no"} for row in rows[a:b]])
    return folder


@pytest.mark.slow
def test_a_study_of_other_data(other_data, tmp_path, monkeypatch):
    # gold asked for, more rows than there are
    config = rlhf.Config(data=str(other_data), inputs=6, samples=3, device="cpu",
                         out=str(tmp_path))
    sft.train(sft.Config(data=config.data, init=str(sft.BASE), out=config.out))
    result = read_report(rlhf.train(config).parent)
    assert list(result["policies"]["rlhf"]) == ["test", "far"] and result["sizes"] == {}
    assert set(result["policies"]) == {*POLICIES, "reference"}
    assert [p["label"] for p in result["frontier"]["rlhf"]] == ["T 1", "T 0.7"]
    for split, n in (("test", 6), ("far", 5)):
        measures = result["policies"]["rlhf"][split]
        assert measures["win_rate"] == measures["win_rate_proxy"] and measures["kl"]["n"] == n
        assert "gold" not in measures and "per_input_facts" not in measures
        assert result["reward_model"][split]["pairs"] == [n]
    assert result["judge"] == "the reward model that RLHF optimises"
    assert {c["id"] for c in result["claims"]} == {
        "C1a", "C1b", "C2", "C3a", "C3b", "C4", "C7", "C8"}
    assert result["kinds"] == "effective_texts" and result["over_bars"]["bar"] is None
    assert [p["kl"] for p in result["frontier"]["bon"]][0] == 0

    # a second judge of the same SFT policy decides; one of another policy's is another run's
    second = reward.Config(data=config.data, seed=1, steps=2, eval_size=4, out=config.out)
    [run] = lineage.load_runs(config)
    for init, judges in ((sft.BASE, {"proxy"}), (run.folder / "sft.pt", {"proxy", "other"})):
        reward.train(dataclasses.replace(second, init=str(init)))
        [run] = lineage.load_runs(config)
        assert set(run.judges) == judges
    row = rlhf.outputs_of(run, config, "rlhf", "far")[0]
    assert row["other"] != row["proxy"] and rlhf.scores_of([row])[0] == "other"

    # one that --judge names, of another policy too; never what RLHF optimised
    reward.train(dataclasses.replace(second, init=str(sft.BASE)))
    named = dataclasses.replace(config, judge=str(lineage.home(config, 1) / "reward.pt"))
    assert [*lineage.load_runs(named)[0].judges] == ["proxy", "other"]
    with pytest.raises(ValueError, match="is what RLHF optimised"):
        lineage.load_runs(dataclasses.replace(config, judge=str(run.folder / "reward.pt")))

    # seeds of one SFT and one reward model, by copies: no judge of each other; one sample for all
    second_judge = reward.train(dataclasses.replace(second, seed=0, variant="judge"))
    for seed in (1, 2):
        shutil.copytree(run.folder, lineage.home(config, seed), dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("seed-*", "samples"))
    for name, seeds, judges in (("", 3, ["proxy"]), ("gpt", 3, ["proxy"]), ("", 1, ["proxy"]),
                                (str(second_judge), 3, ["proxy", "other"])):
        several = dataclasses.replace(config, seeds=seeds, judge=name)
        runs = lineage.load_runs(several)
        assert [[*run.judges] for run in runs] == [judges] * seeds
    drawn = []
    monkeypatch.setattr(rlhf, "outputs_of", lambda run, config, policy, split: drawn.append(
        (run.seed, policy)))
    runs[1].digests["ppo"] = "another"
    rlhf.sampled(several, runs, {"sft": ["test"], "rlhf": ["test"]})
    assert drawn == [(0, "sft")] * 3 + [(0, "rlhf"), (1, "rlhf"), (0, "rlhf")]
    for name in ("sft", "reward", "other", "dpo"):
        drawn.clear()
        own = dict(runs[2].digests)
        runs[2].digests[name] = "another"
        rlhf.sampled(several, runs, {"rlhf": ["test"]})
        assert [seed for seed, _ in drawn] == [0, 1, 0 if name == "dpo" else 2]
        runs[2].digests |= own

    # what --reward named, too
    ppo.train(ppo.Config(data=config.data, out=config.out, reward=str(second_judge)))
    with pytest.raises(ValueError, match="is what RLHF optimised"):
        lineage.load_runs(dataclasses.replace(config, judge=str(second_judge)))


def test_a_language_model_decides_where_no_gold_score_does(other_data, monkeypatch, tmp_path):
    # the proxy decides, its wins in the frontier of best of n
    shorter = judge.by_score(lambda prompts, texts: [-len(t) for t in texts])
    monkeypatch.setattr(judge, "llm", lambda name, cache: shorter)
    config = rlhf.Config(data=str(other_data), inputs=5, samples=2, device="cpu", judge="a-model",
                         same_above=0.5, out=str(tmp_path))
    path = rlhf.train(config)
    result = read_report(path.parent)
    assert result["judge"] == "a-model" and "by a-model against" in path.read_text()
    assert result["kinds"] == "effective_kinds"
    for policy, by_split in result["policies"].items():
        for split, measures in by_split.items():
            assert measures["win_rate"] == measures["win_rate_judge"], policy
            rows = files.read_log(path.parent / "samples" / f"{split}.sft.jsonl")
    won = [np.sign(len(r["reference"]) - len(r["outputs"][0])) / 2 + 0.5 for r in rows]
    assert result["policies"]["sft"]["far"]["win_rate"]["mean"] == pytest.approx(np.mean(won))
    assert set(result["frontier"]) == {"sft", "rlhf"}


def test_without_a_shift_there_is_no_study(other_data, tmp_path):  # after an hour of training
    for path in other_data.iterdir():
        if "far" not in path.name:
            shutil.copy(path, tmp_path)
    with pytest.raises(ValueError, match="has only 'test' to test on"):
        rlhf.train(rlhf.Config(data=str(tmp_path), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def by_hand(folder, **configs):
    "What is in a seed's folder after stages of these Configs, less the networks."
    for name, config in configs.items():
        path = folder / getattr(config, "variant", "") / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"config": dataclasses.asdict(config)}))
        path.with_suffix(".pt").touch()


def main_run():
    "Seed 0, made by hand, with flags that are nobody's default."
    return {"sft": sft.Config(lr=3e-5, freeze=0.5, micro=4, out="elsewhere"),
            "reward": reward.Config(lr=3e-5, freeze=0.5, lm=0.5, comparisons="mine.jsonl", micro=2),
            "dpo": reward.Config(lr=1e-5, freeze=0.5, implicit=0.3, comparisons="mine.jsonl"),
            "ppo": ppo.Config(lr=1e-4, freeze=0.5, kl="k2", beta=0.1, value="shared", max_kl=9.0)}


@pytest.fixture
def trained(monkeypatch):
    "What is trained, instead of training it -> [Config]."
    seen = []
    for module in (sft, reward, ppo):
        monkeypatch.setattr(module, "train", seen.append)
    monkeypatch.setattr(checkpoint, "load", lambda *args, **more: (None, {"meta": {}}))
    monkeypatch.setattr(lineage, "shuffled_labels", lambda *args: None)
    return seen


def test_every_run_has_the_flags_of_the_main_run(tmp_path, trained):
    # defaults in the second seed, a control or a width; a main run that is trained once more
    config = rlhf.Config(data="instruct", out=str(tmp_path), seeds=2, sweeps=True)
    main = main_run()
    by_hand(tmp_path / "instruct", **main)
    lineage.train(lineage.all_runs(config))
    place = dict(data="instruct", out=str(tmp_path))
    shuffled = [tmp_path / "instruct" / folder / "shuffled" for folder in ("", "seed-1")]
    expected = [dataclasses.replace(c, **place, seed=1) for c in main.values()]
    for seed, places in enumerate(shuffled):
        expected.append(dataclasses.replace(
            main["reward"], **place, seed=seed, variant="shuffled", comparisons=str(places)))
        for name, changes in lineage.SWEEP.items():
            if name == "shuffled":
                changes = dict(reward=str(places / "reward.pt"))
            if name not in ("k2-0.1", "lr-1e-4"):  # these are the main run
                expected.append(dataclasses.replace(main["ppo"], **place, seed=seed, variant=name,
                                                    **changes))
    key = lambda given: sorted(map(str, dataclasses.asdict(given).items()))
    assert sorted(map(key, trained)) == sorted(map(key, expected))

    trained.clear()
    wide = rlhf.Config(data="instruct", out=str(tmp_path / "wide"))
    lineage.train(lineage.all_runs(wide, config, init="scratch", channels=64))
    # a study that is killed while it pretrains goes on with that
    place["out"], size = wide.out, dict(init="scratch", channels=64, resume=True)
    assert trained == [dataclasses.replace(c, **place, **size if name == "sft" else {})
                       for name, c in main.items()]


def test_what_is_not_there_gets_what_the_stage_before_had(tmp_path, trained):
    # frozen layers that differ, so that PPO refuses them; a seed's own parents for all seeds
    config = rlhf.Config(data="instruct", out=str(tmp_path), seeds=2)
    assert lineage.main_flags(config, "ppo") == {"beta": lineage.BETA["instruct"], "freeze": 0.0}
    folder = tmp_path / "instruct"
    by_hand(folder, sft=dataclasses.replace(main_run()["sft"], init=str(folder / "base.pt")),
            reward=reward.Config(freeze=0.8, init=str(folder / "sft.pt")))
    by_hand(folder, base=sft.Config(init="scratch", stage="base"))
    lineage.train(lineage.all_runs(config))
    assert [(type(c).__module__, c.seed, c.freeze, c.init) for c in trained] == [
        ("reward", 0, 0.5, ""), ("ppo", 0, 0.8, ""), ("sft", 1, 0.5, "scratch"),
        ("reward", 1, 0.8, ""), ("reward", 1, 0.5, ""), ("ppo", 1, 0.8, "")]
    assert [c.implicit for c in trained if type(c).__module__ == "reward"] == [
        lineage.IMPLICIT, 0, lineage.IMPLICIT]


@pytest.mark.parametrize("name, changes, said", [
    ("sft", dict(freeze=0.0), "sft.pt was trained with --freeze 0.0, .* needs 0.5"),
    ("reward", dict(lm=1.0), "reward.pt was trained with --lm 1.0, .* needs 0.5"),
    ("ppo", dict(beta=0.2), "ppo.pt was trained with --beta 0.2, .* needs 0.1"),
    ("ppo", dict(variant="k1-1"), "k1-1/ppo.pt was trained with --"),
    ("ppo", dict(variant="k1-1", beta=1.0, kl="k1", max_kl=0.0), None),
    ("ppo", dict(every=3, micro=5), None),
    ("reward", dict(comparisons="elsewhere/mine.jsonl"), None)])
def test_a_mixture_of_flags_is_refused(tmp_path, trained, name, changes, said):
    # averaged without a word, found hours later; refused for what makes no other run of it
    config = rlhf.Config(data="instruct", out=str(tmp_path), seeds=2, sweeps=True)
    main = main_run()
    by_hand(tmp_path / "instruct", **main)
    by_hand(tmp_path / "instruct" / "seed-1", **{name: dataclasses.replace(main[name], **changes)})
    if said:
        with pytest.raises(ValueError, match=said):
            lineage.train(lineage.all_runs(config))
        assert trained == []
    else:
        lineage.train(lineage.all_runs(config))
    with pytest.raises(ValueError, match="sft.pt was trained with --init base, .* needs gpt2"):
        lineage.train(lineage.all_runs(dataclasses.replace(config, init="gpt2")))


@pytest.mark.parametrize("main_kl", ["k1", "k2", "k3"])
def test_figures_of_the_sweep(monkeypatch, main_kl):
    # the main run on the other curve, an interval that is the mean of intervals
    drawn, row = [], lambda mean, reach: {"mean": mean, "low": mean - reach, "high": mean + reach}
    monkeypatch.setattr(figures, "save", lambda made, *args, **more: drawn.append(made.axes))
    measures = ("kl", "win_rate", "per_input_ead")
    runs = {name: {"id": dict.fromkeys(measures, row(0.5, 0.1))}
            for name in ("k1-0.03", "k1-1", "k2-0.03", "k2-1", "lr-1e-4")}
    main = {"id": dict.fromkeys(measures, row(0.7, 0.1))}
    sizes = {"64": {p: {s: dict.fromkeys(measures, row(0.5, reach)) for s, reach in (
        ("id", 0.1), ("near", 0.1), ("far", 0.1), ("shifts", 0.07))} for p in ("sft", "rlhf")}}
    runs |= {"rlhf": main, "sft": main}
    result = {"sweep": runs, "policies": {"sft": dict.fromkeys(SPLITS)},
              "beta": 0.1, "estimator": main_kl, "sizes": sizes}
    figures.betas(None, result, "id")
    curves = {c.get_label(): c.lines[0].get_xydata().tolist() for c in drawn[0][0].containers}
    for kl in ("k1", "k2"):
        assert curves[f"rlhf, {kl}"] == [[0.03, 0.5], *[[0.1, 0.7]] * (kl == main_kl), [1, 0.5]]
    figures.sizes(None, result)
    for axis, reach in zip(drawn[1], (0.1, 0.07, 0.1)):
        [bar] = axis.containers[0].lines[2][0].get_segments()
        assert bar[:, 1] == pytest.approx([0.5 - reach, 0.5 + reach])


def test_overoptimisation_is_of_the_same_prompts(monkeypatch):
    # scores of an iteration's own prompts; levels of prompts that differ
    drawn = []
    monkeypatch.setattr(figures, "save", lambda made, *args: drawn.append(made.axes))
    rows = [{"step": k, "kl": 0.1 * k, "proxy": 9.0} for k in range(12)]
    for k, score in ((0, -0.2), (9, 0.3), (11, 0.25)):
        rows[k]["validation_proxy"] = score
    best = [{"n": n, "kl": kl, "proxy": score} for n, kl, score in ((1, 0, 0.7), (2, 0.2, 0.9))]
    figures.overoptimisation(None, {"bon": best, "ppo": [rows]})
    ppo, bon = (line.get_xydata().ravel().tolist() for line in drawn[0][0].lines)
    assert ppo == pytest.approx([0, 0, 0.7**0.5, 0.5, 0.9**0.5, 0.45])
    assert bon == pytest.approx([0, 0, 0.2**0.5, 0.2])


@pytest.mark.slow
def test_a_study_with_sweeps(small, tmp_path, monkeypatch):
    # a variant that is the main run, a judge of itself, a control without the frozen layers, a
    # sweep beside more prompts and samples than it has
    monkeypatch.setattr(rlhf, "FEW", dict(inputs=4, samples=2))
    config = rlhf.Config(data="instruct", inputs=5, samples=3, seeds=2, sweeps=True, device="cpu",
                         out=str(tmp_path))
    main = dict(data=config.data, out=config.out, device="cpu", freeze=0.5)
    sft.train(sft.Config(**main))
    reward.train(reward.Config(**main, lm=0.5))
    ppo.train(ppo.Config(**main, kl="k2", beta=1.0, lr=1e-4))
    path = rlhf.train(config)
    result, names = read_report(path.parent), lineage.SWEEP.keys() - {"k2-1", "lr-1e-4"}
    assert {c["id"] for c in result["claims"]} == {
        "C1a", "C1b", "C2", "C3a", "C3b", "C4", "C5a", "C5b", "C6", "C7", "C8"}
    assert all("of 3," in c["statistic"] for c in result["claims"] if c["id"][:2] == "C5")
    assert (result["beta"], result["estimator"], len(result["controls"])) == (1, "k2", 3)
    assert set(result["sizes"]) == {str(width) for width in lineage.SIZES}
    assert set(result["sweep"]) == {*names, "rlhf", "sft", "dpo"} and all(
        len(result["sweep"][name]["id"]["kl"]["seeds"]) == 2 for name in names)
    for policy, by_split in result["policies"].items():
        assert {"win_rate_proxy", "win_rate_other"} <= by_split["id"].keys(), policy
    gold = lambda policy, seed: [row["gold"] for row in files.read_log(
        path.parent / seed / "samples" / f"id.{policy}.jsonl")]
    assert result["sweep"]["k1-0.03"]["id"]["vs_sft"]["seeds"] == pytest.approx([np.mean([
        metrics.win_rate(mine[i::2], theirs[1 - i::2]) for i in range(2)])
        for seed in ("", "seed-1") for mine, theirs in [
            [np.array(gold(policy, seed))[:4, :2].ravel() for policy in ("k1-0.03", "sft")]]])
    for width in result["sizes"].values():
        each = [width["rlhf"][s]["win_rate"]["mean"] for s in ("broad", "sequential", "shifts")]
        assert each[2] == pytest.approx(np.mean(each[:2]))
        assert width["rlhf"]["shifts"]["win_rate"]["n"] == 8  # prompts of both
    for policy, n, each in (("rlhf", 5, 3), ("k1-0.03", 4, 2)):
        rows = files.read_log(path.parent / "samples" / f"broad.{policy}.jsonl")
        assert len(rows) == n and {len(row["outputs"]) for row in rows} == {each}
    assert result["sweep"]["rlhf"]["broad"]["win_rate"]["n"] == 4
    assert set(result["same_kl"]) == {*names, "dpo"} - {n for n in names if n.startswith("k2")}
    section = path.read_text().split("## PPO, groups or DPO?")[1].split("\n## ")[0]
    assert "(compared.png)" in section and "\n| dpo | " in section.split("as far from SFT |")[1]
    runs = lineage.load_runs(config)
    rows = rlhf.outputs_of(runs[0], config, "rlhf", "id")
    assert rows[0]["proxy"] != rows[0]["other"]
    for name in ("betas", "sizes"):
        assert f"({name}.png)" in path.read_text()
        assert (path.parent / f"{name}.png").stat().st_size > 5000
    before = {p: p.stat().st_mtime_ns for p in path.parent.rglob("*") if "samples" in p.parts
              or p.suffix == ".pt"}
    rlhf.train(config)
    assert {p: p.stat().st_mtime_ns for p in before} == before  # nothing trained or sampled anew


@pytest.mark.parametrize("source", ["", "mine"])
def test_shuffled_labels_prefer_either(tmp_path, source):
    # no swap, all swapped, a comparison lost, those of an earlier run of the reward model
    folder = tmp_path / "instruct"
    for where, name in ((folder, ""), (tmp_path / "mine", "mine")):
        rows = [{"prompt": f"{name}{k}", "chosen": "a", "rejected": "b", "of": "edits",
                 "split": "train" if k % 4 else "validation"} for k in range(400)]
        files.write_rows(where / "comparisons.jsonl", rows)
        for split in ("train", "validation"):
            files.write_rows(where / f"comparisons.{split}.jsonl",
                             [row for row in rows if row["split"] == split])
    by_hand(folder, reward=reward.Config(comparisons=source and str(tmp_path / source)))
    lineage.shuffled_labels("instruct", folder, 0)
    found = [c for split in ("train", "validation")
             for c in data.comparisons(folder / "shuffled", split)]
    assert {c.prompt for c in found} == {f"{source}{k}" for k in range(400)}
    assert 160 < sum(c.chosen == "a" for c in found) < 240
    assert {c.meta["of"] for c in found} == {"edits"}


@pytest.mark.parametrize("changes, tasks", [
    (dict(data="instruct"), ["instruct"]), (dict(full=True), ["summarise", "instruct"])])
def test_the_full_study_is_of_both_tasks(monkeypatch, changes, tasks):  # the default one twice
    seen = []
    monkeypatch.setattr(rlhf, "study", lambda config: seen.append(config) or config.data)
    assert rlhf.train(rlhf.Config(**changes)) == tasks[-1]
    assert [config.data for config in seen] == tasks
    assert all((c.seeds, c.inputs, c.samples, c.sweeps) == ((3, 500, 16, True) if c.full else
                                                            (1, 100, 8, False)) for c in seen)
