"""
Rewards of a group. After each test's name stands the bug that turns it red.
"""

import pytest
import torch

from tests import apart


def test_mara_makes_good_answers_equally_likely():  # another anchor, a lost sign, a bad one raised
    torch.manual_seed(0)
    logp = torch.log_softmax(torch.randn(6, dtype=torch.float64) * 2, 0)
    scores = torch.tensor([1.0, 0.2, 2.0, -1.0, 1.5, 0.9], dtype=torch.float64)
    rewards = apart.anchored(scores, logp, [[*range(6)]], 0.5, 0.9)
    best = torch.softmax(logp + rewards / 0.5, 0)  # of E[reward] - beta KL: in closed form
    good = scores >= 0.9
    assert best[good].allclose(best[good][0]) and (best[~good] < best[good][0]).all()
    z = max(good.nonzero(), key=lambda k: logp[k])
    assert rewards[z] == scores[z] and rewards[~good].equal(scores[~good])
    apiece = apart.anchored(scores, logp, [[k] for k in range(6)], 0.5, 0.9)
    assert apiece.equal(scores)  # alone in its group, each is its own anchor


def test_darling_by_hand():  # the own answer among the others, no floor, groups that are mixed
    scores = torch.tensor([1.0, 3.0, 2.0, -1.0, 5.0])
    assert apart.groups([[1], [1], [1], [1], [2]]) == [[0, 1, 2, 3], [4]]
    rewards = apart.multiplied(scores, ["a", "a", "b", "a", "a"], [[0, 1, 2, 3], [4]], 1.0)
    assert rewards.tolist() == pytest.approx([2 / 3, 4 / 3, 3 * 1, 0, 5])
    rewards = apart.multiplied(scores[:3], ["a", "a", "a"], [[0, 1, 2]], 0.5)
    assert rewards.tolist() == pytest.approx([0, 2 * 0.1 ** 0.5, 0.1 ** 0.5])
