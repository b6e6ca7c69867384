"""
Best of n: whom it chooses, and what every n is worth from one pool (by enumeration of all groups:
tests/checks.py). After each test's name stands
the bug that turns it red.
"""

import numpy as np
import pytest

import bon

REF, REWARD = np.array([0.5, 0.3, 0.15, 0.05]), np.arange(4.0)  # a problem with a known answer


@pytest.mark.parametrize("n, mass, reward, kl", [
    (4, [0.0625, 0.3471, 0.40491, 0.18549], 1.71339, 0.56591),
    (16, [0.00002, 0.02813, 0.41198, 0.55987], None, 1.70197)])
def test_exact_distribution_on_a_known_problem(n, mass, reward, kl):  # the worst of n, n - 1 of n
    below = np.cumsum(REF)
    exact = below**n - np.append(0, below[:-1])**n
    np.testing.assert_allclose(exact, mass, atol=1e-5)
    rng = np.random.default_rng(n)
    arms = rng.choice(4, size=(40_000, n), p=REF)
    chosen = arms[np.arange(len(arms)), bon.best_of_n(REWARD[arms])]
    counts = np.bincount(chosen, minlength=4)
    chi = ((counts - len(arms) * exact) ** 2 / (len(arms) * exact)).sum()
    assert chi < 21.1, chi  # exceeded once in 10,000
    if reward:
        assert exact @ REWARD == pytest.approx(reward, abs=1e-4)
    measured = (exact * np.log(exact / REF)).sum()
    assert measured == pytest.approx(kl, abs=1e-4) and measured < bon.kl_bound(n)


def test_one_pool_tells_every_n():  # a pool's bias: the estimate of n = 4 must not know of m = 16
    rng = np.random.default_rng(3)
    scores = REWARD[rng.choice(4, size=(4_000, 16), p=REF)]
    for n, truth in ((1, REF @ REWARD), (4, 1.71339)):
        found = bon.expected_best(scores, scores, n)
        assert abs(found.mean() - truth) < 4 * found.std() / 4_000**0.5


def test_the_best_of_one_is_the_policy():  # selection by score where there is nothing to select
    rng = np.random.default_rng(1)
    scores, values = rng.random((5, 8)), rng.random((5, 8))
    np.testing.assert_allclose(bon.expected_best(scores, values, 1), values.mean(1))
    assert (bon.best_of_n(scores, 1) == 0).all() and bon.kl_bound(1) == 0
    assert [bon.kl_bound(n) for n in (4, 16)] == pytest.approx([0.63629, 1.83509], abs=1e-5)


def test_the_choice_is_of_the_own_prompt():  # argmax over the flattened batch
    scores = np.array([[0.0, 5.0, 1.0], [9.0, 2.0, 3.0], [1.0, 1.0, 0.0]])
    assert bon.best_of_n(scores).tolist() == [1, 0, 0]
    assert bon.best_of_n(scores, 2).tolist() == [1, 0, 0]


def test_disjoint_bests():  # a sample in two groups, a group's worst
    scores = np.random.default_rng(2).random(24)
    chosen = bon.disjoint_bests(scores, 4, 6, seed=5)
    assert len(set(chosen)) == 6 and chosen.max() < 24
    many = [bon.disjoint_bests(scores, 4, 2, seed) for seed in range(3000)]
    values = np.arange(24.0)
    truth = bon.expected_best(scores, values, 4)
    found = values[np.array(many)[:, 0]]
    assert abs(found.mean() - truth) < 4 * found.std() / 3000**0.5
    np.testing.assert_array_equal(chosen, bon.disjoint_bests(scores, 4, 6, seed=5))


def test_diverse_bests():  # the least like what was chosen first, not last; one chosen twice
    texts = ["a b c", "a b c d", "a b c", "x y z", "x y", "q"]
    overlap = bon.overlaps(texts)
    np.testing.assert_array_equal(overlap, overlap.T)
    # word pairs with both ends: a b c has (_ a)(a b)(b c)(c _), a b c d shares three of them
    assert overlap[0].tolist() == [1, 0.75, 1, 0, 0, 0] and overlap[3, 4] == pytest.approx(2 / 3)
    scores = [3.0, 2.9, 2.8, 1.0, 0.9, -9.0]
    assert bon.diverse_bests(scores, overlap, 3, 0).tolist() == [0, 1, 2]
    assert bon.diverse_bests(scores, overlap, 3, 3.0).tolist() == [0, 3, 1]
    assert sorted(bon.diverse_bests(scores, overlap, 6, 3.0)) == list(range(6))
    assert bon.diverse_bests(scores, overlap, 3, 100.0).tolist() == [0, 3, 5]


@pytest.mark.parametrize("call", [
    lambda: bon.rank_weights(4, 5), lambda: bon.rank_weights(4, 0),
    lambda: bon.best_of_n(np.zeros((2, 3)), 4), lambda: bon.best_of_n([[0.0, float("nan")]]),
    lambda: bon.disjoint_bests(np.zeros(7), 4, 2), lambda: bon.Config(n=8, pool=4),
    lambda: bon.Config(n=2, pool=4, diverse=5), lambda: bon.Config(min_p=2),
    lambda: bon.expected_best(np.zeros(3), np.zeros(4), 2),
    lambda: bon.diverse_bests(np.zeros(3), np.eye(3), 4, 1.0)])
def test_impossible_questions(call):  # a number where there is no answer
    with pytest.raises(ValueError, match=r"\d"):
        call()
