"""
What ppo.py promises, in float64 where it is arithmetic; its formulas against the definition are in
tests/checks.py. Sizes are odd and all different (B=3, R=7,
V=11), so that no two axes can be confused without an error. After each test's name stands the bug
that turns it red. The one to read is `test_optimum_of_the_regularised_objective`: a problem whose
answer is known in closed form, solved by the functions that train language models.
"""

import copy
import inspect
import itertools
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import data
import model as m
import ppo
import reward
from data import networks, optim

B, R, V = 3, 7, 11
LENGTHS = torch.tensor([7, 4, 1])
IS_RESPONSE = torch.arange(R) < LENGTHS[:, None]  # (B, R)
EOS = V - 1
JUNK = (math.nan, 1e9)
SOURCE = inspect.getsource(ppo)
TOKENIZER = SimpleNamespace(pad=V, response_tokens=R)  # all that `experience` asks of one


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def junk(x, value):
    return torch.where(IS_RESPONSE, x, value)


def policy_of(seed=0, scale=0.4, **changes):
    torch.manual_seed(seed)
    settings = dict(vocab_size=V, context=31, layers=3, heads=2, kv_heads=2, channels=12, hidden=9,
                    eos=(V - 1,))
    net = m.Transformer(m.ModelConfig(**{**settings, **changes}))
    for name, p in net.named_parameters():
        p.data.normal_(mean=float("norm" in name), std=scale)
    return net


def rollout(config, policy, value, seed=3, n=5, ref_policy=None, beta=0.1, score=None):
    "Prompts and sampled responses of unequal lengths, and what `experience` makes of them."
    random = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, V - 1, (2 + i % 3,), generator=random).tolist() for i in range(n)]
    responses = m.generate(policy, prompts, R, config.temperature, seed=seed)
    responses[1] = [4, EOS]  # lengths differ, whatever was sampled
    found, row = ppo.experience(config, policy, value, ref_policy or policy,
                                score or (lambda p, r: rand(n, seed=seed).float()), prompts,
                                responses, beta, TOKENIZER)
    return found, row, prompts, responses


def value_of(config, policy, seed=5):
    torch.manual_seed(seed)
    net = networks.scalar_copy(policy)
    net.head.weight.data.normal_(std=0.5)
    return ppo.value_network(config, policy, net)


def scene(**changes):
    "A policy and its value network, and a rollout to learn from, of this Config."
    config, policy = ppo.Config(**{"batch": 5, "samples": 1, **changes}), policy_of()
    value = value_of(config, policy)
    return config, policy, value, rollout(config, policy, value)[0]


def learned(config, policy, value, kept):
    optimizer = optim.adamw(nn.ModuleList([policy, value]), config.lr, (0.9, 0.999), 1e-5)
    return ppo.update(config, policy, value, optimizer, kept, torch.Generator())


# ---- advantages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma, lam, expected", [
    (1, 0.95, [0.313638, 1.17225, 0.655, 0.9]), (1, 1, [0.45, 1.25, 0.7, 0.9]),
    (0.9, 0.8, [-0.178541, 0.83536, 0.438, 0.9])])
def test_gae_worked_by_hand(gamma, lam, expected):  # any of its coefficients
    values, rewards = (torch.tensor([row]).double() for row in (
        [0.5, -0.2, 0.3, 0.1], [-0.1, 0.05, 0, 1]))
    found, returns = ppo.gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), gamma, lam)
    torch.testing.assert_close(found[0], torch.tensor(expected).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(returns, found + values)  # whitened before they were added


def test_the_worked_example_beside_the_code():  # a number of the table that the code does not give
    lines = re.findall(r"^#   (\S.*?)  +((?:-?\d\.\d\d +){4}-?\d\.\d\d)", SOURCE, re.M)
    table = {name: torch.tensor([[float(x) for x in row.split()]]).double() for name, row in lines}
    one = torch.ones(1, 5, dtype=torch.bool)
    values = table["value V"]
    rewards = ppo.token_rewards(torch.ones(1), table["log pi_old"], table["log pi_ref"], one, 0.1)
    advantages, returns = ppo.gae(rewards, values, one, 1, 0.95)
    delta = rewards + torch.cat([values[:, 1:], torch.zeros(1, 1)], 1) - values
    found = {"reward r": rewards, "delta": delta, "advantage A": advantages, "return": returns,
             "whitened A": ppo.whiten(advantages, one)}
    assert table.keys() == found.keys() | {"log pi_old", "log pi_ref", "value V"}
    for name, x in found.items():
        torch.testing.assert_close(x, table[name], atol=0.0051, rtol=0, msg=name)


# ---- rewards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "abs"])
def test_estimators_of_tiny_differences(kl):  # exp(-d) - 1 + d, which is 0 in floating point
    one = torch.ones(1, 1, dtype=torch.bool)
    found = ppo.token_rewards(torch.zeros(1), torch.tensor([[1e-8]]).double(), torch.zeros(1, 1),
                              one, 1.0, kl)
    assert -found.item() == pytest.approx({"k1": 1e-8, "abs": 1e-8}.get(kl, 5e-17), rel=0.1)


def kl_between(logp, logq):
    return (logp.exp() * (logp - logq)).sum()


def gradient(f, logits):
    leaf = logits.clone().requires_grad_()
    f(leaf.log_softmax(-1)).backward()
    return leaf.grad


def test_only_k1_in_the_reward_has_the_gradient_of_the_kl():  # its sign, or k3 as the default
    logits, ref = rand(5), rand(5, seed=1).log_softmax(-1)
    forward = gradient(lambda logp: kl_between(logp, ref), logits)
    reverse = gradient(lambda logp: kl_between(ref, logp), logits)

    def of(kl):  # of minus the expected penalty, every token weighted by its probability
        def expected(logp):
            one = torch.ones(5, 1, dtype=torch.bool)
            old = logp.detach()[:, None]  # (5, 1): five rows of one token
            r = ppo.token_rewards(torch.zeros(5), old, ref[:, None], one, 1.0, kl)
            return -(logp.exp().detach() * r[:, 0] * logp).sum()
        return gradient(expected, logits)
    torch.testing.assert_close(of("k1"), forward)
    torch.testing.assert_close(of("k3"), forward - reverse)  # hardly anything near ref
    assert (of("k3") - forward).norm() > 0.5 * forward.norm()
    assert (of("k2") - forward).norm() > 0.2 * forward.norm()


@pytest.mark.parametrize("response, score", [
    ([1, EOS], 0.5), ([EOS], 0.5), ([1] * (R - 1) + [EOS], 0.5), ([1] * R, ppo.MISSING_EOS),
    ([1], ppo.MISSING_EOS), ([EOS, 1], ppo.MISSING_EOS)])
def test_missing_eos(response, score):  # an EOS in the last slot taken for a cut, or EOS anywhere
    found = ppo.shaped(torch.tensor([0.5]), [response], (EOS,), R, ppo.Config())
    assert found.tolist() == [score] and ppo.MISSING_EOS == -3


def test_shaped_by_hand():  # the penalty per token, on the first token, a touched -3
    scores = torch.tensor([9.0, -9.0, 1.0, 9.0])
    rows = [[EOS], [1, 2, EOS], [1] * 6 + [EOS], [1] * 7]
    config = ppo.Config(length_penalty=0.7)
    found = ppo.shaped(scores, rows, (EOS, 0), R, config)
    torch.testing.assert_close(found, torch.tensor([9 - 0.1, -9 - 0.3, 1 - 0.7, -3.0]))
    torch.testing.assert_close(ppo.shaped(scores, rows, (EOS,), R, ppo.Config()),
                               torch.tensor([9.0, -9.0, 1.0, -3.0]))  # off by default
    assert ppo.shaped(scores, [[0]] * 4, (EOS, 0), R, config)[2] > 0  # any of several ids ends


# ---- means and whitening -------------------------------------------------------------------------


@pytest.mark.parametrize("value", JUNK)
def test_masked_statistics_are_those_of_the_slice(value):  # padding in a mean, or in its count
    x = rand(B, R) + 5
    slice_ = x[IS_RESPONSE]
    torch.testing.assert_close(ppo.masked_mean(junk(x, value), IS_RESPONSE), slice_.mean())
    torch.testing.assert_close(ppo.masked_mean(x, IS_RESPONSE, tokens=17), slice_.sum() / 17)
    white = ppo.whiten(junk(x, value), IS_RESPONSE)
    expected = (slice_ - slice_.mean()) / slice_.std(correction=0)
    torch.testing.assert_close(white[IS_RESPONSE], expected, atol=1e-7, rtol=0)
    assert (white[~IS_RESPONSE] == 0).all()


def test_equal_advantages_whiten_to_zero():  # 0 / 0
    assert (ppo.whiten(torch.full((B, R), 2.0), IS_RESPONSE) == 0).all()


# ---- losses --------------------------------------------------------------------------------------

ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize("advantage, ratio, value, slope", [
    (1, 0.5, -0.5, -0.5), (1, 0.9, -0.9, -0.9), (1, 1.1, -1.1, -1.1), (1, 1.5, -1.2, 0),
    (-1, 0.5, 0.8, 0), (-1, 0.9, 0.9, 0.9), (-1, 1.1, 1.1, 1.1), (-1, 1.5, 1.5, 1.5)])
def test_policy_clip(advantage, ratio, value, slope):  # min for max, or clipping the good side
    logp = torch.tensor([[math.log(ratio) - 2]]).double().requires_grad_()
    found, info = ppo.policy_loss(logp, torch.tensor([[-2.0]]).double(),
                                  torch.tensor([[float(advantage)]]).double(), ONE, 0.2)
    found.backward()
    assert found.item() == pytest.approx(value) and logp.grad.item() == pytest.approx(slope)
    assert info["clip_fraction"] == (ratio in (0.5, 1.5))
    assert info["ratio_gap"] == pytest.approx(abs(ratio - 1))
    assert info["approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio))


@pytest.mark.parametrize("v, old, target, value, slope", [
    (0.1, 0, 1, 0.405, -0.9),  # inside
    (0.5, 0, 1, 0.32, 0), (-0.5, 0, -1, 0.32, 0),  # moved too far towards the return: stop
    (0.5, 0, -1, 1.125, 1.5), (-0.5, 0, 1, 1.125, -1.5),  # moved away: pull back in full
    (1.0, 5, 0, 11.52, 0), (4.9, 5, 0, 12.005, 4.9), (6.0, 5, 0, 18, 6.0)])  # far from the return
def test_value_clip(v, old, target, value, slope):  # min for max, the half, clipping to the return
    values = torch.tensor([[v]]).double().requires_grad_()
    found, _ = ppo.value_loss(values, *(torch.tensor([[float(x)]]).double() for x in (old, target)),
                              ONE, 0.2)
    found.backward()
    assert found.item() == pytest.approx(value) and values.grad.item() == pytest.approx(slope)


def test_gradient_at_ratio_one_is_reinforce():  # a mean over padding, over rows, or a sign
    logits, tokens = rand(B, R, V), torch.randint(0, V, (B, R, 1))
    advantages = rand(B, R, seed=2)

    def gradient_of(f):
        leaf = logits.clone().requires_grad_()
        f(leaf.log_softmax(-1).gather(2, tokens).squeeze(2)).backward()
        return leaf.grad
    ours = gradient_of(lambda logp: ppo.policy_loss(logp, logp.detach(), advantages, IS_RESPONSE,
                                                    0.2)[0])
    theirs = gradient_of(lambda logp: -(advantages * logp)[IS_RESPONSE].sum() / IS_RESPONSE.sum())
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_a_minibatch_add_up(size):  # a mean of means, which weights short rows more
    lengths = torch.tensor([7, 1, 4, 2, 6])
    mask = torch.arange(R) < lengths[:, None]
    leaves = [rand(5, R, seed=1).requires_grad_(), rand(5, R, seed=2).requires_grad_()]
    old, advantages, returns = (rand(5, R, seed=s) for s in (3, 4, 5))

    def total(rows, tokens=None):
        logp, values = (leaf[rows] for leaf in leaves)
        pg, info = ppo.policy_loss(logp, old[rows], advantages[rows], mask[rows], 0.2, tokens)
        vf, _ = ppo.value_loss(values, old[rows], returns[rows], mask[rows], 0.2, tokens)
        return pg + vf, info
    whole, info = total(slice(None))
    expected = torch.autograd.grad(whole, leaves)
    parts = [total(rows, int(lengths.sum())) for rows in torch.arange(5).split(size)]
    torch.testing.assert_close(sum(x for x, _ in parts), whole)
    for x, y in zip(torch.autograd.grad(sum(x for x, _ in parts), leaves), expected):
        torch.testing.assert_close(x, y)
    for name in ("clip_fraction", "approx_kl"):
        assert sum(i[name] for _, i in parts) == pytest.approx(info[name])


@pytest.mark.parametrize("value", JUNK)
def test_poisoned_padding_changes_nothing(value):  # x * mask: NaN * 0 is NaN, here or in backward
    inputs = [rand(B, R, seed=s) for s in range(7)]

    def run(poison):
        logp, old, advantages, v, v_old, returns, ref = (
            (junk(x, value) if poison else x.clone()) for x in inputs)
        logp, v = logp.requires_grad_(), v.requires_grad_()
        pg, info = ppo.policy_loss(logp, old, advantages, IS_RESPONSE, 0.2)
        vf, _ = ppo.value_loss(v, v_old, returns, IS_RESPONSE, 0.2)
        (pg + vf).backward()
        return pg.detach(), vf.detach(), logp.grad, v.grad, torch.tensor(list(info.values()))
    for clean, dirty in zip(run(False), run(True)):
        assert torch.isfinite(dirty).all() and torch.equal(clean, dirty)


def test_adaptive_beta():  # a step per row instead of per rollout, no clip, the target inverted
    beta, seen = 0.1, []
    for kl in (12.0, 6.6, 6.0, 5.7, 0.0):  # far above, 10 % above, at, 5 % below, far below 6
        beta = ppo.adapted(beta, kl, 6.0, 50)
        seen.append(beta)
    factors = [1 + 0.2 * 0.05, 1 + 0.1 * 0.05, 1, 1 - 0.05 * 0.05, 1 - 0.2 * 0.05]
    expected = list(itertools.accumulate([0.1, *factors], lambda a, b: a * b))[1:]
    assert seen == pytest.approx(expected)
    for kl, factor in ((12.0, 1.2), (0.0, 0.8)):  # however many responses: below zero there is none
        assert ppo.adapted(0.1, kl, 6.0, 20_000) == pytest.approx(0.1 * factor)


# ---- networks: act, experience, update -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["reward", "shared"])
def test_values_are_read_before_their_token(kind):  # off by one: the baseline sees the action
    policy = policy_of().double()
    value = value_of(ppo.Config(value=kind), policy).double()
    rows = [[1, 2, 3], [4, 5]], [[6, 7, 8, 9, EOS], [1, 2, EOS]]
    ids, positions, is_response = data.join(*rows, V)
    before = ppo.act(policy, value, ids, positions, 1.0)[1]
    for t in range(5):
        other = ids.clone()
        other[0, 3 + t] = (ids[0, 3 + t] + 1) % V
        after = ppo.act(policy, value, other, positions, 1.0)[1]
        changed = (before - after).abs()[0] > 1e-12
        assert not changed[:t + 1].any() and changed[t + 1:].all()
        assert torch.equal(before[1], after[1])
    if kind == "reward":
        assert torch.equal(before[0], value(ids)[0, 2:7])  # whole: the state after the prompt, too


def test_the_value_network_starts_as_the_reward_model():  # a fresh head, or one with no scale
    policy = policy_of()
    scorer = networks.scalar_copy(policy)
    scorer.shift.fill_(0.7)
    scorer.scale.fill_(3.0)
    value = ppo.value_network(ppo.Config(), policy, scorer)
    ids, positions, _ = data.join([[1, 2, 3], [4, 5]], [[6, 7, 8, 9, EOS], [1, 2, EOS]], V)
    with torch.no_grad():
        expected = scorer(ids, columns=positions - 1)
        assert torch.equal(ppo.act(policy, value, ids, positions, 1.0)[1], expected)
    assert not {id(p) for p in value.parameters()} & {id(p) for p in scorer.parameters()}
    head = ppo.value_network(ppo.Config(value="shared"), policy, None)
    assert isinstance(head, nn.Linear)
    with pytest.raises(ValueError, match="--value shared"):
        ppo.value_network(ppo.Config(), policy, None)


@pytest.mark.parametrize("kind", ["reward", "shared"])
def test_the_trunk_computed_once(kind):  # a block run twice or left out, in policy or value
    policy = policy_of()
    networks.freeze(policy, 0.67)
    value = value_of(ppo.Config(value=kind), policy)
    if kind == "reward":
        networks.freeze(value, 0.67)
        networks.share_frozen(policy, value)
    ids, positions, _ = data.join([[1, 2, 3], [4, 5]], [[6, 7, 8, 9, EOS], [1, 2, EOS]], V)
    with torch.no_grad():
        whole = ppo.act(policy, value, ids, positions, 0.7)
        top = ppo.act(policy, value, ids, positions, 0.7, policy.frozen_output(ids))
    for x, y in zip(whole, top):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_temperature_is_part_of_the_policy(temperature):  # one of old, new and ref without it
    config = ppo.Config(temperature=temperature, batch=5, samples=1)
    policy, other = policy_of(), policy_of(1)
    value = value_of(config, policy)
    kept, row, prompts, responses = rollout(config, policy, value, ref_policy=other)
    ids, positions, mask = data.join(prompts, responses, V)
    with torch.no_grad():
        logp, ref = (
            (net.logits(net(ids)) / temperature).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None]
            .clamp(max=V - 1)).squeeze(2).gather(1, positions - 1) for net in (policy, other))
    torch.testing.assert_close(kept["logp_old"][mask], logp[mask], atol=1e-5, rtol=0)
    k1 = torch.where(mask, logp - ref, 0).sum(1)
    assert row["kl"] == pytest.approx(k1.mean().item(), abs=1e-5)
    _, same, _, _ = rollout(config, policy, value)  # ref_policy is the policy
    assert same["kl"] == same["kl_k3"] == 0
    # and the new log-probabilities are those of the old temperature, or this would raise
    learned(config, policy, value, kept)


def test_statistics_of_a_rollout():  # padding counted, a score reported after its penalties
    config = ppo.Config(length_penalty=0.5, batch=5, samples=1)
    policy = policy_of()
    value = value_of(config, policy)
    kept, row, prompts, responses = rollout(config, policy, value, beta=0.0)
    ended = [r[-1] == EOS for r in responses]
    proxy = rand(5, seed=3).float()
    score = [s - 0.5 * len(r) / R if e else -3 for s, r, e in zip(proxy.tolist(), responses, ended)]
    assert row["proxy"] == pytest.approx(proxy.mean().item())
    assert row["score"] == pytest.approx(sum(score) / 5, abs=1e-6)
    assert row["ended"] == sum(ended) / 5 and row["length"] == sum(map(len, responses)) / 5
    mask = kept["is_response"]
    assert kept["advantages"][mask].mean().abs() < 1e-6
    assert kept["advantages"][mask].std(correction=0) == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        hidden = policy(kept["ids"]).gather(
            1, (kept["positions"] - 1)[..., None].expand(-1, -1, 12))
        logp = policy.logits(hidden).log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)[mask].mean().item()
    assert row["entropy"] == pytest.approx(entropy, abs=1e-5)
    # with lambda 1 and no penalty every token's return is the score: gamma is 1
    config = ppo.Config(lam=1.0, batch=5, samples=1)
    kept, _, _, responses = rollout(config, policy, value, beta=0.0)
    expected = ppo.shaped(proxy, responses, (EOS,), R, config)[:, None].expand(-1, mask.shape[1])
    torch.testing.assert_close(kept["returns"][mask], expected[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("freeze", [0.0, 0.67])
def test_scores_of_a_rollouts_own_rows_are_the_scores(freeze):  # another token, another trunk
    policy = policy_of()
    networks.freeze(policy, freeze)
    scorer = networks.scalar_copy(policy)
    scorer.shift.fill_(0.3)
    reward_fn = reward.scorer(networks.frozen_copy(scorer), V)
    prompts = [[1, 2, 3], [4, 5], [4, 5], [6]]
    responses = [[6, 7, 8, 9, EOS], [1, 2, EOS], [7], [8, EOS]]
    ids, positions, is_response = data.join(prompts, responses, V)
    bottom = policy.frozen_output(ids) if freeze else None
    with torch.no_grad():
        found = reward_fn.score_rows(ids, positions, is_response, bottom=bottom)
    torch.testing.assert_close(found, reward_fn(prompts, responses), atol=1e-5, rtol=0)
    assert len(set(found.tolist())) == 4
    config, seen = ppo.Config(freeze=freeze, batch=5, samples=1), []
    asked = lambda *rows: seen.append("called") or reward_fn(*rows)
    asked.score_rows = lambda *rows: seen.append("its rows") or reward_fn.score_rows(*rows)
    _, row, shown, sampled = rollout(config, policy, value_of(config, policy), score=asked)
    assert seen == ["its rows"]
    assert row["proxy"] == pytest.approx(reward_fn(shown, sampled).mean().item(), abs=1e-5)


@pytest.mark.parametrize("bad", [torch.tensor([0, 0, math.nan, 0, 0]), torch.zeros(4),
                                 torch.zeros(5, 1), torch.tensor([math.inf, 0, 0, 0, 0])])
def test_impossible_rewards_are_refused(bad):  # a NaN that reaches the weights, silent broadcasting
    policy = policy_of()
    config = ppo.Config(batch=5, samples=1)
    with pytest.raises(ValueError, match="5 finite numbers"):
        rollout(config, policy, value_of(config, policy), score=lambda p, r: bad)


def test_the_first_step_starts_from_the_sampling_policy():  # another forward, mask or temperature
    *nets, kept = scene(lr=0.0, epochs=3, minibatches=2)
    row = learned(*nets, kept)
    assert row["ratio_gap"] < 1e-5 and row["clip_fraction"] == 0  # lr 0: in every epoch
    assert abs(row["approx_kl"]) < 1e-6 and row["gradient"] > 0
    with pytest.raises(AssertionError, match="differs from itself"):
        learned(*nets, kept | {"logp_old": kept["logp_old"] - 0.01})


def test_zero_advantages_leave_the_policy_alone():  # weight decay, or an entropy bonus nobody set
    config, policy, value, kept = scene(lr=1e-2)
    kept["advantages"] = torch.zeros_like(kept["advantages"])
    before, value_before = copy.deepcopy(policy.state_dict()), copy.deepcopy(value.state_dict())
    learned(config, policy, value, kept)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    assert any(not torch.equal(x, value_before[name]) for name, x in value.state_dict().items())


@pytest.mark.parametrize("kind", ["reward", "shared"])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batches_change_nothing(kind, micro):  # another count of tokens, a step per part
    def step(micro):
        config = ppo.Config(batch=5, samples=1, value=kind, micro=micro, epochs=1)
        policy = policy_of()
        value = value_of(config, policy)
        # in fp32, where another batch shape rounds otherwise: one rollout for both
        kept, _, _, _ = rollout(replace(config, micro=0), policy, value)
        policy, value = policy.double(), value.double()
        kept = {k: x.double() if x is not None and x.is_floating_point() else x
                 for k, x in kept.items()}
        optimizer = torch.optim.SGD(nn.ModuleList([policy, value]).parameters(), lr=1.0)
        row = ppo.update(config, policy, value, optimizer, kept, torch.Generator().manual_seed(2))
        return [*policy.parameters(), *value.parameters()], row
    (whole, expected), (parts, row) = step(0), step(micro)
    for x, y in zip(whole, parts):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)
    assert row.keys() == expected.keys()
    for name in row:
        assert row[name] == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("kind", ["reward", "shared"])
def test_a_rollout_scored_in_parts_is_the_same(kind):  # parts in another order, or one left out
    policy = policy_of()
    value = value_of(ppo.Config(value=kind), policy)
    (whole, row), (parts, other) = (
        rollout(ppo.Config(batch=5, samples=1, value=kind, micro=micro), policy, value)[:2]
        for micro in (0, 2))
    for name, x in whole.items():
        if x is not None and x.is_floating_point():
            torch.testing.assert_close(parts[name], x, atol=1e-5, rtol=0)
    assert other == pytest.approx(row, abs=1e-5)


def test_every_response_is_learned_from_once_an_epoch(monkeypatch):  # rows that a split drops
    *nets, kept = scene(minibatches=2, epochs=3, micro=2)
    seen, original = [], ppo.act
    monkeypatch.setattr(ppo, "act", lambda *args: seen.append(args[2]) or original(*args))
    learned(*nets, kept)
    rows = [tuple(row) for ids in seen for row in ids.tolist()]
    assert sorted(rows) == sorted(3 * [tuple(row) for row in kept["ids"].tolist()])


def test_broken_losses_stop_the_run():  # NaN weights, saved over good ones
    config, policy, value, kept = scene()
    kept["returns"] = kept["returns"] * math.inf
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(ValueError, match="the value_loss is inf"):
        learned(config, policy, value, kept)
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())


# ---- several responses to a prompt ---------------------------------------------------------------

PROMPTS = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 1, 2]]


def answers_to(prompts, n, seed=0):
    "n responses to each prompt, of unequal lengths, with EOS or cut."
    random = torch.Generator().manual_seed(seed)
    draw = lambda k: torch.randint(0, V - 1, (k,), generator=random).tolist()
    return [draw(1 + (3 * i) % (R - 1)) + [EOS] * (i % 4 > 0) for i in range(n * len(prompts))]


def one_iteration(n, dtype=torch.float64, freeze=0.0, micro=0, responses=None, **changes):
    "Four responses to each of PROMPTS, n of them in a row -> a rollout, its statistics, the steps."
    prompts = [p for p in PROMPTS for _ in range(4 // n)]
    config = ppo.Config(batch=16, samples=n, freeze=freeze, micro=micro, minibatches=1, epochs=1,
                        **changes)
    policy = policy_of().to(dtype)
    networks.freeze(policy, freeze)
    value = value_of(config, policy)
    value = value if value is None else value.to(dtype)
    scorer = networks.frozen_copy(networks.scalar_copy(policy)).to(dtype)
    kept, row = ppo.experience(config, policy, value, networks.frozen_copy(policy),
                               reward.scorer(scorer, V), prompts,
                               responses or answers_to(PROMPTS, 4), 0.1, TOKENIZER)
    both = nn.ModuleList([policy] if value is None else [policy, value])
    optimizer = torch.optim.SGD([p for p in both.parameters() if p.requires_grad], lr=1.0)
    before = [p.detach().clone() for p in both.parameters()]
    row |= ppo.update(config, policy, value, optimizer, kept, torch.Generator().manual_seed(2))
    return kept, row, [p.detach() - old for p, old in zip(both.parameters(), before)]


@pytest.mark.parametrize("dtype, within", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("n, freeze, micro, value", [
    (4, 0.0, 0, "reward"), (2, 0.0, 5, "reward"), (4, 0.67, 4, "reward"), (2, 0.67, 0, "shared"),
    (4, 0.0, 1, "shared")])
def test_a_row_of_several_responses_is_as_one_each(dtype, within, n, freeze, micro, value):
    # a response that sees another, a place that counts it, a first token predicted behind it
    packed, row, steps = one_iteration(n, dtype, freeze, micro, value=value)
    alone, expected, wanted = one_iteration(1, dtype, freeze, value=value)
    assert len(packed["ids"]) == 16 // n and len(alone["ids"]) == 16
    for name in ("logp_old", "values_old", "returns", "advantages"):
        mine, theirs = (kept[name][kept["is_response"]] for kept in (packed, alone))
        torch.testing.assert_close(mine, theirs, atol=within, rtol=within)
        assert mine.std() > 0.05
    for mine, theirs in zip(steps, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=within, rtol=within)
    assert row == pytest.approx(expected, abs=100 * within)


def test_the_order_within_a_group_is_nothing():  # a baseline of the first, places that add up
    responses = answers_to(PROMPTS, 4)
    turned = [r for i in range(0, 16, 4) for r in responses[i:i + 4][::-1]]
    for baseline in ("value", "rloo", "grpo"):
        found = []
        for given in (responses, turned):
            kept, row, steps = one_iteration(4, baseline=baseline, responses=given)
            each = kept["advantages"].view(16, -1)
            mask = kept["is_response"].view(16, -1)
            found.append(({tuple(r): x[m] for r, x, m in zip(given, each, mask)}, row, steps))
        (first, row, steps), (second, other, theirs) = found
        for response, x in first.items():
            torch.testing.assert_close(second[response], x, atol=1e-10, rtol=0)
        for mine, their in zip(steps, theirs):
            torch.testing.assert_close(mine, their, atol=1e-10, rtol=0)
        assert row == pytest.approx(other, abs=1e-9)


def test_advantages_against_a_group_by_hand():  # itself in the mean, padding, another group's
    rewards = torch.tensor([[0.5, 0.5], [2.0, 9.0], [3.0, 3.0],  # in all 1, 2, 6
                            [2.0, 3.0], [5.0, 9.0], [1.0, 1.0], [-3.0, 9.0], [-3.0, 9.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [1, 0], [1, 1], [1, 0], [1, 0]]).bool()
    two_groups = rewards[:6], mask[:6], 3
    for baseline, each in (("rloo", [-3.0, -1.5, 4.5, 1.5, 1.5, -3.0]),
                           ("grpo", [-0.7559, -0.378, 1.1339, 0.5774, 0.5774, -1.1547])):
        found = ppo.against_group(*two_groups, baseline)
        expected = torch.where(mask[:6], torch.tensor(each)[:, None], 0.0)
        torch.testing.assert_close(found, expected, atol=3e-4, rtol=0)
    found = ppo.against_group(rewards[2:4], mask[2:4], 2, "rloo")  # 6 and 5: each the other's mean
    torch.testing.assert_close(found, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    for baseline in ("rloo", "grpo"):  # all cut, with the same score: nothing to learn from
        assert not ppo.against_group(rewards[6:], mask[6:], 2, baseline).any()


def test_a_group_of_one_has_no_baseline():  # a division by zero, hours later
    for changes in (dict(samples=1, baseline="rloo"), dict(samples=1, baseline="grpo"),
                    dict(samples=3), dict(samples=32)):
        with pytest.raises(ValueError, match="--samples"):
            ppo.Config(**changes)
    assert ppo.value_network(ppo.Config(samples=4, baseline="rloo"), policy_of(), None) is None


# ---- problems with a known answer ----------------------------------------------------------------


def solve(ref, reward, beta, iterations=250, batch=1000, lr=0.1, noise=0.0, kl="k1", baseline=""):
    """PPO on a table of logits, one token a response -> the probabilities it ends with. With a
    group for a `baseline`, the batch is groups of four."""
    logits = ref.log().clone().requires_grad_()
    v = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, v], lr=lr)
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(batch, 1, dtype=torch.bool)
    for i in range(iterations):
        optimizer.param_groups[0]["lr"] = lr * (1 - i / iterations)
        with torch.no_grad():
            actions = torch.multinomial(logits.softmax(-1), batch, True, generator=random)
            old = logits.log_softmax(-1)[actions][:, None]
            score = reward[actions] + noise * torch.randn(batch, generator=random,
                                                          dtype=torch.float64)
            rewards = ppo.token_rewards(score, old, ref.log()[actions][:, None], mask, beta, kl)
            v_old = v.expand(batch)[:, None].clone()
            advantages, returns = ppo.gae(rewards, v_old, mask, ppo.GAMMA, 0.95)
            if baseline:
                advantages = ppo.against_group(rewards, mask, 4, baseline)
            advantages = ppo.whiten(advantages, mask)
        for _ in range(4):
            logp = logits.log_softmax(-1)[actions][:, None]
            pg, _ = ppo.policy_loss(logp, old, advantages, mask, ppo.CLIP)
            vf, _ = ppo.value_loss(v.expand(batch)[:, None], v_old, returns, mask, ppo.CLIP)
            optimizer.zero_grad()
            (pg + ppo.VALUE_COEFFICIENT * vf).backward()
            optimizer.step()
    return logits.softmax(-1).detach()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_bandit(noise):  # the gradient's sign: it finds the worst arm
    reward = torch.tensor([0.1, 0.9, 0.4, 1.4, 0.2, 0.0, 0.7]).double()
    ref = torch.full((7,), 1 / 7).double()
    assert solve(ref, reward, 0.0, iterations=60, noise=noise)[3] > 0.95


REF = torch.tensor([0.5, 0.3, 0.15, 0.05]).double()
SCORES = torch.tensor([0.0, 1, 2, 3]).double()


@pytest.mark.parametrize("beta, listed, objective", [
    (0.5, [0.01609, 0.07133, 0.26352, 0.64906], 1.718248),
    (1.0, [0.14585, 0.23788, 0.32331, 0.29295], 1.232012),
    (2.0, [0.30742, 0.30411, 0.2507, 0.13778], 0.972791)])
def test_optimum_of_the_regularised_objective(beta, listed, objective):
    # any error of sign, scale, estimator or temperature: the optimum is ref * exp(r / beta) / Z
    optimum = (REF.log() + SCORES / beta).softmax(-1)
    torch.testing.assert_close(optimum, torch.tensor(listed).double(), atol=1e-5, rtol=0)
    found = solve(REF, SCORES, beta)
    assert (found - optimum).abs().sum() / 2 < 0.02
    reached = (found * SCORES).sum() - beta * kl_between(found.log(), REF.log())
    assert objective - 0.01 < reached <= objective + 1e-6


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_rloo_finds_the_optimum_and_grpo_another(beta):  # a group's mean with itself, its own std
    optimum = (REF.log() + SCORES / beta).softmax(-1)
    far = {name: (solve(REF, SCORES, beta, baseline=name) - optimum).abs().sum() / 2
           for name in ("rloo", "grpo")}
    print(far)
    assert far["rloo"] < 0.02


def test_k3_in_the_reward_ends_elsewhere():  # k3 by default would pass every test but these two
    optimum = (REF.log() + SCORES).softmax(-1)
    assert (solve(REF, SCORES, 1.0, kl="k3") - optimum).abs().sum() / 2 > 0.05


LETTERS, END = 3, 3  # a vocabulary of three letters and EOS, responses of at most three tokens
SEQUENCES = [seq for n in (1, 2, 3) for seq in itertools.product(range(LETTERS + 1), repeat=n)
             if END not in seq[:-1] and (n == 3 or seq[-1] == END)]  # 40: 13 end, 27 are cut


@torch.no_grad()
def distribution(net, prompt):
    "The probability of every response, by enumeration (40,)."
    ids, positions, mask = data.join([prompt] * len(SEQUENCES), SEQUENCES, LETTERS + 1)
    logp = m.logprobs(net, ids, positions).double()
    return torch.where(mask, logp, 0).sum(1)


@pytest.mark.slow
def test_optimum_with_a_transformer():  # left padding, EOS, values and lambda, all at once
    config = ppo.Config(batch=256, samples=1, lam=0.95, beta=1.0, epochs=4, lr=3e-3, steps=120)
    tokenizer = SimpleNamespace(pad=LETTERS + 1, response_tokens=3)
    # learned positions: to attention with rotary ones, [0] and [0, 0] look alike
    shape = dict(vocab_size=LETTERS + 1, context=8, layers=2, channels=24, hidden=32,
                 positions="learned", eos=(END,))
    ref_policy = policy_of(scale=0.2, **shape)
    policy = copy.deepcopy(ref_policy)
    prompts = [[0], [1, 2], [2, 0, 1]]
    table = rand(len(prompts), len(SEQUENCES))
    lookup = {(tuple(p), seq): table[i, j] for i, p in enumerate(prompts)
              for j, seq in enumerate(SEQUENCES)}
    value = value_of(config, policy)
    optimizer = optim.adamw(nn.ModuleList([policy, value]), config.lr, (0.9, 0.999), 1e-5)
    sampler, shuffler = (torch.Generator().manual_seed(s) for s in (1, 2))
    chosen = [prompts[i % 3] for i in range(config.batch)]

    def reward_fn(p, r):
        return torch.stack([lookup[tuple(x), tuple(y)] for x, y in zip(p, r)]).float()
    wanted = []
    for i, prompt in enumerate(prompts):
        ref = distribution(ref_policy, prompt)
        assert ref.exp().sum().item() == pytest.approx(1, abs=1e-5)
        final = torch.tensor([s if seq[-1] == END else ppo.MISSING_EOS
                              for s, seq in zip(table[i].tolist(), SEQUENCES)])
        wanted.append((ref + final / config.beta).softmax(-1))
    for step in range(config.steps):
        optim.set_lr(optimizer, config.lr * (1 - step / config.steps))
        responses = m.generate(policy, chosen, 3, generator=sampler)
        kept, _ = ppo.experience(config, policy, value, ref_policy, reward_fn, chosen, responses,
                                 config.beta, tokenizer)
        ppo.update(config, policy, value, optimizer, kept, shuffler)
    for prompt, optimum in zip(prompts, wanted):
        start = (distribution(ref_policy, prompt).exp() - optimum).abs().sum() / 2
        end = (distribution(policy, prompt).exp() - optimum).abs().sum() / 2
        assert start > 0.3 and end < 0.03, (start, end)
