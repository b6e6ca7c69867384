"Numbers against hand-worked cases, definitions and brute force."

import functools
import itertools
import json
import math
import sys
import time
import types
import unicodedata

import numpy as np
import pytest

import bon
import metrics
import rlhf
from data import claims, collect, encoders, measured, pools

CAT, DOG = "猫坐在垫子上。", "狗坐在垫子上。"  # the cat, the dog sits on the mat, of six words each

# ---- diversity


@pytest.mark.parametrize("texts, value", [
    # From the paper's own code, run on these strings. Full stops and newlines vanish, a tab or a
    # no-break space does not separate, and an n longer than the text counts 0.
    ([], 0.0),
    (["... \n . ", "   ", "\n\n"], 0.0),
    (["hello"], 0.1999999999995437),
    (["one two three four"], 0.80001193880512),
    (["a b c d e f g h i j"], 1.0000696441822035),
    (["e.g. this is v1.2.3 of U.S.A. policy", "eg this is v123 of USA policy"], 0.500044771646806),
    (["tab\tseparated\twords here now and then",
      "non\xa0breaking\xa0space words here now and then"], 0.7635053534465972),
    (["I told my boss that I quit and now I do not know what to do next."] * 16,
     0.06043689586021317),
])
def test_ead_matches_the_paper(texts, value):
    assert metrics.ead(texts) == pytest.approx(value, abs=1e-9)


def test_distinct_by_hand():
    assert metrics.distinct(["a b a", "a b"], 2) == pytest.approx((2 / 5 + 2 / 3) / 2)
    assert metrics.distinct(["a", "b"], 2) == pytest.approx((1 + 0) / 2)  # no n-gram crosses
    assert metrics.distinct([]) == 0


def test_embedding_diversity_by_hand():
    diversity = lambda *v: metrics.embedding_diversity(["t"] * len(v), lambda _: v)
    assert diversity([1, 0], [5, 0]) == pytest.approx(0)
    assert diversity([1, 0], [-2, 0]) == pytest.approx(2)
    assert diversity([1, 0], [0, 3], [1, 0]) == pytest.approx(1 - 1 / 3)
    assert diversity([0, 0], [1, 0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 2"):
        diversity([1, 0])


def test_nli_diversity_runs_from_minus_two_to_two():
    assert metrics.nli_diversity(["I quit."] * 4, lambda a, b: -1.0 if a == b else 1.0) == -2
    assert metrics.nli_diversity(["Yes.", "No.", "Maybe."], lambda a, b: float(a != b)) == 2
    # One direction only: entailment from "A." to the others. Pairs AB, AC: -1; BC: 0.
    one_way = lambda a, b: -1.0 if a == "A." else 0.0
    assert metrics.nli_diversity(["A.", "B.", "C."], one_way) == pytest.approx(-2 / 3)


def test_nli_diversity_samples_sentences():
    seen = []
    relation = lambda a, b: seen.append((a, b)) or 0.0
    long = " ".join(f"This is number {i}." for i in range(9))
    metrics.nli_diversity([long, long.upper()], relation)
    assert len(seen) == 10 and len(set(seen)) == 10  # 5 sentences, both directions
    assert all(s.lower() in [f"this is number {i}." for i in range(9)] for p in seen for s in p)
    assert sum(a.isupper() for a, _ in seen) == 5
    first = seen[:]
    seen.clear()
    metrics.nli_diversity([long, long.upper()], relation)
    assert seen == first
    seen.clear()
    metrics.nli_diversity([long, long.upper()], relation, sentences=2, seed=1)
    assert len(seen) == 4
    assert metrics.nli_diversity(["", "No.", "No."], lambda a, b: -1.0) == pytest.approx(-2 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.nli_diversity(["one"], relation)


def test_words_are_of_any_script():  # ASCII, a letter and its accent apart, a text as one word
    equal = [["Кошка сидит на ковре.", "кошка СИДИТ на ковре"], [CAT, CAT], ["ＡＢ ﬁx", "ab fix"],
             ["Là-bas, l’été", unicodedata.normalize("NFD", "là bas l été")],
             ["हिन्दी में", "हिन्दी, में!"], ["القطة على السجادة؟", "القطة على السجادة"],
             ["می\u200cروم به خانه", "\u200eمیروم به خانه"]]
    for a, b in equal:
        assert measured.rouge(a, b) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}, (a, b)
    assert measured.rouge("हिन्दी में", "हिन्दी")["rouge1"] == pytest.approx(2 / 3)
    assert measured.rouge(CAT, DOG) == pytest.approx({"rouge1": 5 / 6, "rouge2": 4 / 5,
                                                     "rougeL": 5 / 6})
    assert metrics.words("An été\tя  don't! ") == ["An", "été", "я", "don't!"]
    assert metrics.words(f"GPT-4说：{CAT} かな、漢字") == [
        "GPT-4", "说：", *"猫坐在垫子", "上。", "か", "な、", "漢", "字"]
    assert metrics.ead([CAT, CAT]) == pytest.approx(1 / 2, abs=1e-3)
    assert metrics.distinct(["to get her", "tog ether"], 2) == 1  # words glued are not the same
    assert len(set(metrics.ngrams(["a bc", "ab c"], 2))) == 2
    assert metrics.distinct([CAT, DOG[:-1]]) == pytest.approx(
        (7 / 12 + 6 / 10 + 5 / 8 + 4 / 6 + 3 / 4) / 5)
    assert metrics.ngram_cosine([CAT, DOG]) == pytest.approx(1 - 3 / 4)
    assert pools.overlaps([CAT, DOG])[0, 1] == pytest.approx(5 / 7)
    row = {"outputs": [CAT, CAT + DOG], "proxy": [0, 0], "reference_proxy": 0, "kl": None,
           "length": None}
    assert rlhf.measure([row], [row])["words"] == [9]
    assert measured.measure([row["outputs"]])["words"]["mean"] == 9
    assert collect.accuracies(lambda p, t: [1, 0], [("", CAT + DOG, CAT)])["length"] == 1
    seen = set()
    metrics.nli_diversity([CAT + DOG] * 2, lambda a, b: seen.update((a, b)) or 0.0)
    assert seen == {CAT, DOG}


def test_ngram_cosine_by_hand():  # texts without n-grams, counts turned into sets
    assert metrics.ngram_cosine(["a b c", "a b c"]) == pytest.approx(0)
    assert metrics.ngram_cosine(["a b c", "d e f"]) == pytest.approx(1)
    assert metrics.ngram_cosine(["Yes."] * 8) == pytest.approx(0)  # too short for any
    assert metrics.ngram_cosine(["a b", "a b", "b a", ""], n=3) == pytest.approx(1 - 1 / 6)
    # a:2 b:1 against a:1 c:1 -> 2 / sqrt(5 * 2)
    assert metrics.ngram_cosine(["a b a", "c a"], n=1) == pytest.approx(1 - 2 / math.sqrt(10))


@pytest.mark.parametrize("diversity", [metrics.ead, metrics.distinct, metrics.ngram_cosine])
def test_diversity_ignores_order_and_sees_duplicates(diversity):  # a measure of something else
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijkl"), 9)) for _ in range(12)]
    shuffled = [texts[i] for i in rng.permutation(12)]
    assert diversity(texts) == pytest.approx(diversity(shuffled), abs=1e-12)
    assert diversity(texts[:6] * 2) < diversity(texts) - 0.05
    assert diversity(texts[:1] * 12) < 0.3 * diversity(texts)


def test_pooled_is_neither_of_the_two():  # inputs kept apart, or one output each
    outputs = [["a b", "a b"], ["a b", "c d"], ["e f", "g h"]]
    assert metrics.pooled(outputs, lambda texts: float(len(texts))) == 6
    assert metrics.pooled(outputs, lambda texts: float(len(set(texts)))) == 4


def test_rouge_by_hand():  # precision for F1, a substring for a subsequence
    found = measured.rouge("The cat sat on the mat.", "the CAT on a mat")
    # words: the, cat, on, mat of 6 and 5; pairs: "the cat" of 5 and 4; LCS: the cat on mat
    assert found == pytest.approx({"rouge1": 8 / 11, "rouge2": 2 / 9, "rougeL": 8 / 11})
    assert measured.rouge("a b", "b a")["rougeL"] == pytest.approx(0.5)
    assert set(measured.rouge("", "a").values()) == {0.0}
    assert measured.rouge("a a a", "a")["rouge1"] == pytest.approx(0.5)  # counted once


def test_the_longest_common_subsequence():  # a row too short, a carry lost, a loop over pairs
    @functools.cache
    def longest(a, b):
        if not a or not b:
            return 0
        return max(longest(a[1:], b), longest(a, b[1:]), (a[0] == b[0]) + longest(a[1:], b[1:]))

    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 5) * 40:
        a, b = ("".join(rng.choice(list("abcde"[:size]), rng.integers(12))) for _ in range(2))
        expected = 2 * longest(a, b) / max(len(a) + len(b), 1)
        assert measured.rouge(" ".join(a), " ".join(b))["rougeL"] == pytest.approx(expected)
    a, b = (" ".join(map(str, rng.integers(300, size=3000))) for _ in range(2))
    began = time.process_time()
    assert measured.rouge(a, a)["rougeL"] == 1 and 0.05 < measured.rouge(a, b)["rougeL"] < 0.2
    assert time.process_time() - began < 0.5  # each 10 ms; in a loop over pairs, 1.4 s


@pytest.mark.parametrize("similarity, count", [
    (np.ones((4, 4)), 1), (np.eye(5), 5),
    (np.kron(np.eye(3), np.ones((2, 2))), 3),  # three pairs of equals
    # halves and quarters: eigenvalues (1 +- s) / 2, so the entropy of a coin of that bias
    ([[1, 0.5], [0.5, 1]], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))])
def test_vendi_by_hand(similarity, count):  # not over n, log for exp, a base of 2
    assert metrics.vendi(similarity) == pytest.approx(count, abs=1e-9)


def test_vendi_counts_shares():  # eigenvalues that are not the shares: 5 of one kind, 3, 2
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    p = np.array([0.5, 0.3, 0.2])
    found = metrics.vendi(labels[:, None] == labels)
    assert found == pytest.approx(math.exp(-(p * np.log(p)).sum()), abs=1e-9)
    for bad in ([[1, 2], [2, 1]], [[1, 0.5], [0.4, 1]], [[2, 0], [0, 1]]):
        with pytest.raises(ValueError, match="positive semi-definite"):
            metrics.vendi(bad)


def test_cosines_by_hand():  # a text without a vector is unlike itself, which Vendi refuses
    found = metrics.cosines([[3, 4], [0, 2], [0, 0]])
    np.testing.assert_allclose(found, [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 1]], atol=1e-12)


def test_kinds_by_hand():  # the last of a kind compared, a kind numbered twice, all pairs asked
    near = lambda a, b: abs(a - b) <= 1
    assert metrics.kinds([5, 6, 7, 5, 4, 9, 7], near) == [0, 0, 1, 0, 0, 2, 1]
    assert metrics.kinds([], near) == []
    asked = []
    metrics.kinds("aabba", lambda a, b: (asked.append((a, b)), a == b)[1])
    assert asked == [("a", "a"), ("a", "b"), ("a", "b"), ("b", "b"), ("a", "a")]


def test_effective_diversity_and_utility_by_hand():  # bad kinds counted, a kind paid twice
    kinds, good = [0, 1, 0, 2, 1, 3], [True, False, True, True, False, False]
    assert metrics.effective(kinds, good) == 2
    assert metrics.effective(kinds, [False] * 6) == 0
    # of a kind that is bad in one output and good in another, the good one counts
    assert metrics.effective([0, 0], [False, True]) == 1
    assert metrics.utility([0, 0, 1], [1.0, 5.0, 2.0], 0.5) == pytest.approx(
        (1 - 0.5) / (1 - 0.5**3) * (1 * 1 + 0 + 0.25 * 2))
    assert metrics.utility([4], [3.0]) == pytest.approx(3)
    assert metrics.utility([0] * 5, [1.0] * 5) == pytest.approx(0.2 / (1 - 0.8**5))


def test_pass_at_k_is_that_of_all_choices():  # 1 - (1 - c / K)^k, which is biased; ties lost
    good = np.random.default_rng(0).random((6, 7)) < [[0.0], [0.1], [0.3], [0.6], [0.9], [1.0]]
    for k in range(1, 8):
        brute = [np.mean([any(c) for c in itertools.combinations(row, k)]) for row in good]
        np.testing.assert_allclose(metrics.pass_at_k(good, k), brute, atol=1e-12)
        best = [bon.expected_best(good[None, i] * 1.0, good[None, i] * 1.0, k)[0] for i in range(6)]
        np.testing.assert_allclose(metrics.pass_at_k(good, k), best, atol=1e-12)
    for k in (0, 8):
        with pytest.raises(ValueError, match="of 7 outputs no"):
            metrics.pass_at_k(good, k)


def test_split_of_a_loss_adds_up():  # a kind in two parts, bad ones that are good elsewhere
    before = [0, 1, 2, 3, 3], [True, False, True, False, True]
    after = [0, 0, 1, 1, 0], [True, True, False, False, True]
    # 4 kinds, of which 3 have a good one; 2 kinds, of which 1 has
    assert metrics.split_loss(before, after) == {"lost": 2, "quality": 0, "narrowing": 2}
    cleaner = [0, 2, 3, 3, 0], [True] * 5
    assert metrics.split_loss(before, cleaner) == {"lost": 1, "quality": 1, "narrowing": 0}
    random = np.random.default_rng(1)
    for _ in range(200):
        one, other = ((random.integers(5, size=8).tolist(), random.random(8) < 0.5)
                      for _ in range(2))
        found = metrics.split_loss(one, other)
        assert found["lost"] == found["quality"] + found["narrowing"]
        assert found["lost"] == len(set(one[0])) - len(set(other[0]))
        bad_only = [len(set(k)) - len({x for x, g in zip(k, ok) if g}) for k, ok in (one, other)]
        assert found["quality"] == bad_only[0] - bad_only[1]


def test_per_input_and_across_inputs_slice_differently():
    outputs = [["a b", "a b"], ["a b", "c d"], ["e f", "g h"]]
    size = lambda texts: float(len(set(texts)))
    assert metrics.per_input(outputs, size).tolist() == [1, 2, 2]
    assert metrics.across_inputs(outputs, size) == 2
    assert metrics.across_inputs(outputs, size, column=1) == 3


# ---- win rates, intervals, KL


def test_win_rate_halves_ties():
    assert metrics.win_rate([1, 2, 3], [2, 2, 2]).tolist() == [0, 0.5, 1]
    a, b = np.random.default_rng(0).integers(0, 5, (2, 50))
    assert (metrics.win_rate(a, b) + metrics.win_rate(b, a) == 1).all()


def test_win_rate_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="2 outputs"):
        metrics.win_rate([1, 2], [1])
    with pytest.raises(ValueError, match="score 1 is not a number"):
        metrics.win_rate([1, 2], [1, math.nan])


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        values = (rng.random(100) < 0.3).astype(float)
        mean, low, high, n = metrics.interval(values, resamples=300, seed=i)
        assert n == 100 and mean == values.mean() and low <= mean <= high
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_interval_matches_the_normal_one_and_repeats():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high, _ = metrics.interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert metrics.interval(values) == (mean, low, high, 400)
    narrow = metrics.interval(values, level=0.5)
    assert low < narrow[1] < narrow[2] < high
    assert metrics.interval([0.25]) == (0.25, 0.25, 0.25, 1)
    for n in (1, 7, 300):  # drawn in several tables, as in one loop
        wide, rng = values[:n], np.random.default_rng(0)
        means = [wide[rng.integers(n, size=n)].mean() for _ in range(10_000)]
        assert metrics.interval(wide, resamples=10_000)[1:3] == tuple(
            np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2]))
    for bad in ([], [1, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite values"):
            metrics.interval(bad)


def test_intervals_of_paired_differences_cover():  # the prompts' own spread left in
    rng, hits, widths = np.random.default_rng(2), 0, []
    for i in range(200):
        prompts = rng.normal(size=120) * 3
        a, b = (prompts + rng.normal(size=120) + shift for shift in (0.2, 0.0))
        _, low, high, _ = metrics.interval(a - b, resamples=300, seed=i)
        hits += low <= 0.2 <= high
        widths.append(high - low)
    assert 0.90 <= hits / 200 <= 0.99 and np.mean(widths) < 0.7


def test_t_interval():  # the normal quantile for three seeds, ddof forgotten
    for p, freedom, value in ((0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 9, 2.26216),
                              (0.95, 4, 2.13185), (0.995, 29, 2.75639)):
        assert metrics.t_quantile(p, freedom) == pytest.approx(value, rel=1e-4)
    mean, low, high, n = metrics.t_interval([1.0, 2.0, 3.0])
    assert (mean, n) == (2, 3) and high - mean == pytest.approx(4.30265 / math.sqrt(3), rel=1e-4)
    assert metrics.t_interval([0.5])[1:3] == (-math.inf, math.inf)
    rng = np.random.default_rng(0)
    hits = [low <= 0 <= high for _, low, high, _ in
            (metrics.t_interval(rng.normal(size=3)) for _ in range(1000))]
    assert 0.93 <= np.mean(hits) <= 0.97
    with pytest.raises(ValueError, match="finite"):
        metrics.t_interval([])


def planted(rng, inputs, samples):
    "Outputs of a made-up policy: each input has a topic, each output two words of it."
    topics, words = rng.integers(0, 40, inputs), rng.integers(0, 6, (inputs, samples, 2))
    return [[f"{t} {a} {t} {b}" for a, b in of_one] for t, of_one in zip(topics, words.tolist())]


def test_across_interval_covers_the_expected_diversity():  # a bootstrap, whose duplicates deflate
    rng = np.random.default_rng(4)
    truth = np.mean([metrics.across_inputs(planted(rng, 60, 1), metrics.distinct)
                     for _ in range(1500)])
    hits, means, halves = [], [], []
    for i in range(120):
        mean, low, high, n = claims.across_interval(planted(rng, 60, 4), metrics.distinct, seed=i)
        hits.append(low <= truth <= high)
        means.append(mean)
        halves.append(high - mean)
    assert 0.8 < np.mean(halves) / (1.96 * np.std(means)) < 1.25
    assert n == 60 and 0.89 <= np.mean(hits) <= 1.0, np.mean(hits)
    assert abs(np.mean(means) - truth) < 0.005
    collapsed = claims.across_interval([["yes"]] * 60, metrics.distinct)
    assert collapsed[0] == collapsed[1] == collapsed[2]
    with pytest.raises(ValueError, match="at least 4"):
        claims.across_interval([["a"]] * 3, metrics.distinct)


def test_kl_estimators_match_exact_kl_on_five_tokens():
    # Responses of one token: weight each of the five by its probability under the policy.
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    q = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    k1, k3 = metrics.kl_estimates(np.log(p)[:, None], np.log(q)[:, None], np.ones((5, 1)))
    exact = (p * np.log(p / q)).sum()
    assert (p * k1).sum() == pytest.approx(exact) and (p * k3).sum() == pytest.approx(exact)
    assert (k1 < 0).any() and (k3 >= 0).all()


def test_kl_estimates_ignore_padding_and_keep_tiny_differences():
    logp = np.array([[-1.0, -2.0, np.nan], [-1.0, np.inf, -np.inf]])
    tiny = 2.0**-17
    ref = np.array([[-1.5, -1.0, 3.0], [-1.0 - tiny, np.inf, np.nan]])
    with np.errstate(all="raise"):
        k1, k3 = metrics.kl_estimates(logp, ref, [[True, True, False], [True, False, False]])
    assert k1 == pytest.approx([-0.5, tiny], rel=1e-9)
    assert k3[0] == pytest.approx(math.exp(-0.5) - 0.5 + math.e - 2)
    assert k3[1] == pytest.approx(tiny**2 / 2 - tiny**3 / 6, rel=1e-8, abs=0)


# ---- python metrics.py


def outputs_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_measures_of_a_file(tmp_path, capsys):  # a measure that never reaches the table or the file
    rng = np.random.default_rng(0)
    words = "red hat blue cat sits on the mat and reads".split()
    rows = [{"prompt": f"p{i}", "reference": " ".join(rng.choice(words, 6)),
             "outputs": [" ".join(rng.choice(words, 6)) for _ in range(5)]} for i in range(8)]
    path = outputs_file(tmp_path / "a.jsonl", rows)
    measured.main([str(path)])
    found = json.loads((tmp_path / "a.jsonl.metrics.json").read_text())
    outputs = [row["outputs"] for row in rows]
    assert found["per_input_ead"]["mean"] == pytest.approx(
        metrics.per_input(outputs, metrics.ead).mean())
    assert found["per_input_ead"]["std"] == pytest.approx(
        metrics.per_input(outputs, metrics.ead).std())
    assert found["across_input_ead"]["mean"] == pytest.approx(
        np.mean([metrics.across_inputs(outputs, metrics.ead, k) for k in range(5)]))
    assert found["pooled_ead"]["mean"] == metrics.pooled(outputs, metrics.ead)
    assert found["words"]["mean"] == 6 and found["empty"]["mean"] == 0
    assert {"rouge1", "rouge2", "rougeL", "per_input_ngram_cosine"} <= found.keys()
    printed = capsys.readouterr().out
    assert all(name in printed for name in found) and "8 inputs, 5 outputs each" in printed


def test_what_is_good_of_a_file(tmp_path, capsys):  # a bar that is not met for met, another's kinds
    rows = [{"outputs": ["a b c d", "a b c d", "a b c e", "x y z"], "scores": [3, 1, 2, 0.5]},
            {"outputs": ["p q r", "s t u", "v w x", "p q r"], "scores": [0, 0, 2, 2]}]
    path = outputs_file(tmp_path / "a.jsonl", rows)

    def means(*flags):
        measured.main([str(path), *flags])
        found = json.loads((tmp_path / "a.jsonl.metrics.json").read_text())
        return {name: row["mean"] for name, row in found.items()}

    # of "a b c d" and "a b c e" one of two triples is shared: cosine .5
    found = means("--bar", "2", "--same-above", "0.4")
    assert found["distinct_texts"] == 3 and found["distinct_kinds"] == (2 + 3) / 2
    assert found["effective_texts"] == 2 and found["effective_kinds"] == (1 + 2) / 2
    assert found["pass@1"] == 0.5 and found["pass@2"] == 5 / 6 and found["pass@4"] == 1
    weights = np.array([1, 0.8, 0.64, 0.512])
    assert found["utility"] == pytest.approx(
        (weights @ [3, 0, 0, 0.5] + weights @ [0, 0, 2, 0]) / weights.sum() / 2)
    similarity = [[[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]],
                  [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]]
    assert found["per_input_vendi"] == pytest.approx(np.mean([*map(metrics.vendi, similarity)]))
    found = means()  # scores without a bar
    assert found["utility"] == pytest.approx(
        (weights @ [3, 0, 2, 0.5] + weights @ [0, 0, 2, 0]) / weights.sum() / 2)
    assert not {"distinct_kinds", "effective_texts", "pass@1"} & found.keys()
    path = outputs_file(path, [{"outputs": r["outputs"], "good": [s >= 2 for s in r["scores"]]}
                               for r in rows])
    assert means()["effective_texts"] == 2


def test_a_collapsed_policy_is_called_collapsed():  # a diversity that rises with repetition
    rng = np.random.default_rng(1)
    free = [[" ".join(rng.choice(list("abcdefghijklmnop"), 8)) for _ in range(16)]
            for _ in range(12)]
    stuck = [[row[0]] * 16 for row in free]  # one answer per input
    mute = [["i cannot help with that at all"] * 16 for _ in free]  # one answer for all
    free, stuck, mute = map(measured.measure, (free, stuck, mute))
    for name in ("ead", "distinct", "ngram_cosine"):
        key = f"per_input_{name}"
        assert stuck[key]["high"] < 0.35 * free[key]["low"]
        key = f"across_input_{name}"
        assert stuck[key]["mean"] == pytest.approx(free[key]["mean"], abs=0.05)
        assert mute[key]["high"] < 0.35 * free[key]["low"]


def test_encoder_and_nli_are_used_and_cached(monkeypatch):  # every pair encodes both of its texts
    seen = []
    embed = lambda texts: seen.extend(texts) or [[len(t), 1.0] for t in texts]
    outputs = [["a", "bb", "ccc"], ["dd", "e", "f"], ["g", "h", "ii"], ["j", "k", "l"]]
    found = measured.measure(outputs, embed=embed, relation=lambda a, b: float(a != b))
    assert found["per_input_nli"]["mean"] == 2 and found["across_input_nli"]["mean"] == 2
    assert 0 < found["per_input_embedding"]["mean"] < 1

    class Model:
        def __init__(self, name):
            assert name == "some-model"

        def encode(self, texts, show_progress_bar):
            seen.extend(texts)
            return [np.array([len(t), 1.0]) for t in texts]
    package = types.ModuleType("sentence_transformers")
    package.SentenceTransformer = Model
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    seen.clear()
    again = measured.measure(outputs, embed=encoders.sentences("some-model"))
    assert sorted(seen) == sorted(t for row in outputs for t in row)  # each text once
    assert again["per_input_embedding"] == found["per_input_embedding"]


@pytest.mark.parametrize("flag, package", [("--encoder", "sentence_transformers"),
                                           ("--nli", "transformers")])
def test_absent_packages_are_named(flag, package, tmp_path, capsys, monkeypatch):  # an ImportError
    monkeypatch.setitem(sys.modules, package, None)
    path = outputs_file(tmp_path / "a.jsonl", [{"outputs": ["a", "b"]}])
    with pytest.raises(SystemExit) as stop:
        measured.main([str(path), flag, "x"])
    assert stop.value.code == 2 and f"pip install {package}" in capsys.readouterr().err


@pytest.mark.parametrize("rows, words", [
    ([], "no outputs"), ([{"prompt": "a"}], "line 1"), ([{"outputs": []}], "line 1"),
    ([{"outputs": ["a", "b"]}, {"outputs": ["a"]}], "line 2"), ([{"outputs": ["a", 3]}], "text"),
    ([["a"]], "line 1"), ([{"outputs": ["a"], "reference": 5}], "reference"),
    ([{"outputs": ["a", "b"], "scores": [1]}], "2 outputs"),
    ([{"outputs": ["a"], "good": ["yes"]}], "one number"),
    ([{"outputs": ["a"], "scores": 1}], "one number")])
def test_bad_output_files(rows, words, tmp_path, capsys):  # a traceback, or a number all the same
    path = outputs_file(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit) as stop:
        measured.main([str(path)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_odd_output_files(tmp_path, capsys):  # empty strings, single outputs, one input
    measured.main([str(outputs_file(tmp_path / "a.jsonl", [{"outputs": ["", ""]}] * 5))])
    found = json.loads((tmp_path / "a.jsonl.metrics.json").read_text())
    assert found["empty"]["mean"] == 1 and found["per_input_ead"]["mean"] == 0
    measured.main([str(outputs_file(tmp_path / "b.jsonl", [{"outputs": ["one two"]}]))])
    found = json.loads((tmp_path / "b.jsonl.metrics.json").read_text())
    assert found.keys() == {"words", "empty", "pooled_ead", "pooled_distinct"}
