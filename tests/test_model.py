"""
What model.py promises, in float64 on CPU where it is arithmetic. Sizes are odd and all different
(B=3, T=7, V=11, ...), so that no two axes can be confused without an error.
Run with `python -m pytest tests/test_model.py`; it needs no download.
"""

import json
import math
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import data
import model as m
from data import base, checkpoint, gpu, networks, optim

V, PAD = 11, 11
STYLES = {
    "gpt2": dict(norm="layer", activation="gelu", positions="learned", bias=True),
    "llama": dict(heads=6, kv_heads=2, channels=36),
    "opt-350m": dict(norm="layer", norm_first=False, activation="relu", positions="learned",
                     bias=True, tied=False, embed_width=12),
}


def tiny(seed=0, double=True, **changes):
    "A random network whose weights are large enough that every part of it matters."
    torch.manual_seed(seed)
    settings = dict(vocab_size=V, context=31, layers=3, heads=3, kv_heads=3, channels=18, hidden=13)
    net = m.Transformer(m.ModelConfig(**{**settings, **changes}))
    for name, p in net.named_parameters():
        p.data.normal_(mean=float("norm" in name and "weight" in name), std=0.4)
    return net.double() if double else net


def rows(seed=1, B=3, T=7):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    return text


@pytest.fixture(params=STYLES)
def net(request):
    return tiny(**STYLES[request.param])


# ---- the network (against transformers: tests/test_weights.py) -----------------------------------


def test_config_is_checked_and_eos_is_a_tuple():  # a list from JSON, widths that do not divide
    assert m.ModelConfig(eos=[3, 5]).eos == (3, 5)
    for bad in (dict(channels=130), dict(kv_heads=3), dict(channels=12), dict(norm="rsm"),
                dict(activation="gelu_new"), dict(positions="alibi"), dict(layers=0)):
        with pytest.raises(ValueError) as error:
            m.ModelConfig(**bad)
        one_sentence(error)


def test_initial_sizes():  # residual projections not scaled down, norms not 1, head too large
    torch.manual_seed(0)
    net = m.Transformer(m.ModelConfig())
    assert abs(net.blocks[0].attention.qkv.weight.std() - 0.02) < 1e-3
    assert abs(net.blocks[3].mlp.down.weight.std() - 0.02 / math.sqrt(8)) < 1e-3
    assert abs(net.blocks[3].attention.out.weight.std() - 0.02 / math.sqrt(8)) < 1e-3
    assert (net.blocks[0].norm1.weight == 1).all()
    scalar = m.ScalarModel(m.ModelConfig())
    assert abs(scalar.head.weight.std() * math.sqrt(129) - 1) < 0.2 and scalar.head.bias == 0


# ---- padding -------------------------------------------------------------------------------------


def test_left_padding_changes_nothing(net):  # positions counted from the pad, pads attended to
    ids = rows()
    expected = net(ids)
    for extra in (1, 5, 23):
        padded = torch.cat([torch.full((3, extra), PAD), ids], 1)
        torch.testing.assert_close(net(padded, padded < PAD)[:, extra:], expected)


def test_right_padding_and_company_change_nothing(net):  # a row that sees its padding or neighbours
    ids = rows()
    padded = torch.full((3, 13), PAD)
    lengths = (7, 4, 1)
    for row, length in enumerate(lengths):
        padded[row, :length] = ids[row, :length]
    together = net(padded)
    for row, length in enumerate(lengths):
        alone = net(ids[row:row + 1, :length])
        torch.testing.assert_close(together[row:row + 1, :length], alone)


def test_responses_behind_one_prompt_are_rows_of_their_own(net):  # a response that sees another,
    # or that counts its positions from it; the row is longer than the context, no response is
    prompts = [[1, 2, 3, 4, 5, 6], [7, 8]]
    groups = [[[k, 9, 4] + [2] * (9 - k) for k in range(5)], [[3], [5, 1, 2], [3]]]
    ids, segment, (row, column) = data.join_groups(prompts, groups, PAD)
    assert ids.shape[1] > net.config.context and len(row) == len(column) == 8
    together, n = net(ids, segment=segment), 0
    for b, (prompt, group) in enumerate(zip(prompts, groups)):
        for response in group:
            alone = net(torch.tensor([prompt + response]))[0]
            end = column[n] + 1
            assert row[n] == b and ids[b, end - len(response):end].tolist() == response
            torch.testing.assert_close(together[b, end - len(response):end],
                                       alone[len(prompt):])
            n += 1
    ids, segment, _ = data.join_groups([[1] * 30], [[[2], [3, 4]]], PAD)
    with pytest.raises(ValueError, match="context"):
        net(ids, segment=segment)


def test_long_left_padding_is_never_nan(net):  # a softmax over no keys at all
    ids = torch.full((2, 31), PAD)
    ids[0, -1], ids[1] = 3, 4
    assert net(ids, ids < PAD).isfinite().all()
    everything = torch.full((2, 9), PAD)
    assert net(everything, everything < PAD).isfinite().all()
    for padded in (ids, everything):  # not every version of torch makes it NaN
        assert net.layout(padded, padded < PAD)[1].any(-1).all()


def test_pad_is_fed_as_0_and_has_no_logit():  # an embedding row or an output for PAD
    net = tiny()
    assert torch.equal(net(torch.tensor([[1, PAD, 2]])), net(torch.tensor([[1, 0, 2]])))
    assert net.logits(net(rows())).shape == (3, 7, V) and net.embed.weight.shape[0] == V


def test_row_longer_than_the_context():  # an index error from inside an embedding
    with pytest.raises(ValueError) as error:
        tiny()(rows(T=32))
    assert "32" in one_sentence(error) and "31" in str(error.value)


# ---- sampling ------------------------------------------------------------------------------------

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 1, 4], [2, 2], [10, 3, 5, 1, 1]]


def naive_greedy(net, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(net.logits(net(torch.tensor([ids]))[:, -1]).argmax().item())
        if ids[-1] in net.config.eos:
            break
    return ids[len(prompt):]


@pytest.mark.parametrize("style", STYLES)
def test_greedy_with_cache_is_the_full_forward(style, monkeypatch):
    # cache column, position or mask off by one
    seen = set()
    for seed in range(8):
        net = tiny(seed, **STYLES[style], eos=(0, 7))
        expected = [naive_greedy(net, prompt, 19) for prompt in PROMPTS]
        for copy in (0, 4, 1e9):  # rows leave when they are done, some, or none
            monkeypatch.setattr(m, "COPY", copy)
            assert m.generate(net, PROMPTS, 19, temperature=0) == expected
            assert m.generate(net, PROMPTS, 19, temperature=0, batch=2) == expected
        seen.update(map(len, expected))
    assert 19 in seen and len(seen) > 2  # rows end at different times, and some not at all


def test_sampled_rows_do_not_depend_on_company(net, monkeypatch):
    # compaction that mixes up rows or numbers
    net.config.eos = (0, 4, 7)
    monkeypatch.setattr(m, "COPY", 1)
    together = m.generate(net, PROMPTS, 19, temperature=2.0, num_samples=3, seed=5)
    assert len({len(response) for response in together}) > 3
    assert m.generate(net, PROMPTS, 19, 2.0, num_samples=3, seed=5, batch=4) == together
    uniform = torch.rand(15, 19, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    for row, response in enumerate(together):  # without cache, batch or compaction
        ids = list(PROMPTS[row // 3])
        for number in uniform[row]:
            p = (net.logits(net(torch.tensor([ids]))[0, -1]) / 2).softmax(-1)
            ids.append(int((p.cumsum(0) <= number).sum()))
            if ids[-1] in net.config.eos:
                break
        assert ids[len(PROMPTS[row // 3]):] == response


def chi_square_p(counts, p):
    "P(a chi-square as large as this) by Wilson & Hilferty's cube root."
    expected = p * counts.sum()
    x, df = ((counts - expected) ** 2 / expected).sum().item(), len(p) - 1
    z = ((x / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    return math.erfc(z / math.sqrt(2)) / 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_frequencies_are_the_softmax(temperature):  # temperature ignored or applied twice
    net = tiny(double=False, layers=1)
    net.embed.weight.data.mul_(0.5)
    out = m.generate(net, [[3, 1]], 1, temperature, num_samples=200_000, seed=2, batch=50_000)
    counts = torch.tensor(out).flatten().bincount(minlength=V).double()
    logits = net.logits(net(torch.tensor([[3, 1]]))[0, -1]).double()
    p = (logits / temperature).softmax(-1)
    assert p.min() * 200_000 > 5 and p.max() < 0.8
    assert chi_square_p(counts, p) > 1e-4
    assert chi_square_p(counts, (logits / 0.95 / temperature).softmax(-1)) < 1e-4  # it can fail


def test_choose_at_the_edges():  # PAD or an impossible token at a uniform number of 0 or nearly 1
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.0, -math.inf]]).repeat(2, 1)
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.double)
    assert m.choose(logits, 1.0, uniform).tolist() == [1, 3]
    assert m.choose(logits, 0, uniform).tolist() == [1, 1]


def test_min_p():  # a floor below the sum instead of the largest; judged after the temperature
    logits = torch.tensor([0.5, 0.3, 0.14, 0.06]).log().double()[None]
    uniform = torch.arange(0.0005, 1, 0.001, dtype=torch.double)
    share = lambda t, p: (m.choose(logits.expand(1000, -1), t, uniform, p).bincount(minlength=4)
                          / 1000).tolist()
    assert share(1.0, 0.2) == pytest.approx([50 / 94, 30 / 94, 14 / 94, 0], abs=2e-3)
    assert share(1.0, 0.0) == pytest.approx([0.5, 0.3, 0.14, 0.06], abs=2e-3)
    root = [x**0.5 / (0.5**0.5 + 0.3**0.5) for x in (0.5, 0.3)]
    assert share(2.0, 0.5) == pytest.approx([*root, 0, 0], abs=2e-3)
    assert share(9.0, 1.0) == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="min_p=1.5"):
        m.generate(tiny(), [[1]], 2, min_p=1.5)


def test_samples_of_one_prompt_are_independent():  # one first token copied to all samples
    net = tiny(double=False)
    net.embed.weight.data.mul_(0.3)
    out = m.generate(net, [[3, 1], [2]], 1, num_samples=400)
    for start in (0, 400):
        first, second = out[start:start + 400:2], out[start + 1:start + 400:2]
        assert len({tuple(row) for row in first}) > 4
        agree = sum(a == b for a, b in zip(first, second)) / 200
        assert agree < 0.6


@pytest.mark.parametrize("copy", [0, 1, 1e9])
def test_responses_end_with_eos_once(net, copy, monkeypatch):
    # EOS dropped, tokens after it, no stop, PAD sampled
    net.config.eos = (0, 4, 7)
    calls, decode = [], net.decode
    monkeypatch.setattr(m, "COPY", copy)
    net.decode = lambda ids, *rest: calls.append(len(ids)) or decode(ids, *rest)
    out = m.generate(net, PROMPTS, 24, temperature=3.0, num_samples=4)
    assert len(out) == 20 and all(0 < len(response) <= 24 for response in out)
    for response in out:
        assert not {0, 4, 7} & set(response[:-1]) and max(response) < V
        assert len(response) == 24 or response[-1] in (0, 4, 7)
    assert len(calls) == max(map(len, out)) < 24  # stops when the last row does
    assert calls[0] == 5 and calls[1] <= 20  # prompts read once
    assert (calls[-1] == 20) == (copy == 1e9)  # rows leave
    if not copy:  # each one as soon as it is done
        assert calls[1:] == [sum(len(r) > n for r in out) for n in range(1, len(calls))]


class Recorder(TorchDispatchMode):
    """
    A CUDA graph for CPUs: the operations of a step with the memory that each reads and writes.
    While they are recorded nothing happens: what they change is put back as it was.
    """

    WAITS = "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh"

    def __init__(self, step):
        super().__init__()
        self.calls, self.changed = [], []
        with self:
            step()
        for storage, before in reversed(self.changed):
            storage.copy_(before)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, op.name().removeprefix("aten::")
        assert not name.startswith(self.WAITS), f"GPU and CPU wait for each other in {name}"
        for argument, value in zip(op._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.changed.append((value.untyped_storage(), value.untyped_storage().clone()))
        found = op(*args, **kwargs)
        self.calls.append((op, args, kwargs, found))
        return found

    def replay(self):
        for op, args, kwargs, found in self.calls:
            for old, new in zip(tree_leaves(found), tree_leaves(op(*args, **kwargs))):
                if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)  # into the memory where the next operation looks for it


@pytest.fixture
def recording(monkeypatch):
    "CPUs record, as GPUs do -> a list of what happens: once, recorded, again."
    events = []

    def recorded(step):
        events.append("once")
        step()
        again = Recorder(step)
        events.append("recorded")
        return lambda: (events.append("again"), again.replay())
    monkeypatch.setattr(m, "RECORDED", ("cpu",))
    monkeypatch.setattr(gpu, "recorded", recorded)
    return events


@pytest.mark.parametrize("temperature, min_p", [(0, 0.0), (2.0, 0.1)])
@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], [3] * 7]])  # padded, and not
def test_recorded_steps_are_the_steps(net, recording, monkeypatch, temperature, min_p, prompts):
    # a number looked at while recording, and so always the same; a tensor made anew; NaN * 0
    net.config.eos = (0, 4)
    found = m.generate(net, prompts, 23, temperature, 3, seed=5, min_p=min_p)
    assert recording[:3] == ["once", "recorded", "again"] and recording.count("again") > 10
    left = sum(len(response) > 16 for response in found)  # when it first looks
    assert recording.count("recorded") == 1 + (0 < left <= len(found) / 2)  # anew for those alone
    empty = net.new_cache
    net.new_cache = lambda *shape: empty(*shape).fill_(math.nan)
    assert m.generate(net, prompts, 23, temperature, 3, seed=5, min_p=min_p) == found
    monkeypatch.setattr(m, "RECORDED", ())
    assert m.generate(net, prompts, 23, temperature, 3, seed=5, min_p=min_p) == found


def test_same_seed_same_samples():  # a global generator, a seed that is ignored
    net = tiny()
    out = m.generate(net, PROMPTS, 9, seed=1)
    torch.manual_seed(99)
    assert m.generate(net, PROMPTS, 9, seed=1) == out != m.generate(net, PROMPTS, 9, seed=2)
    generator = torch.Generator().manual_seed(1)
    assert m.generate(net, PROMPTS, 9, seed=2, generator=generator) == out
    assert m.generate(net, PROMPTS, 9, generator=generator) != out  # it moved on


def test_generate_refuses():  # empty or overlong prompts, broken weights
    net = tiny()
    for prompts, count in (([[1], []], 3), ([[1] * 23], 9), ([[1]], 0)):
        with pytest.raises(ValueError) as error:
            m.generate(net, prompts, count)
        one_sentence(error)
    assert len(m.generate(net, [[1] * 22], 9)) == 1 and m.generate(net, [], 9) == []
    for broken in (math.nan, math.inf):
        net.norm.weight.data[0] = broken
        for temperature in (0, 1.0):
            with pytest.raises(ValueError, match="token 1 .*not finite"):
                m.generate(net, [[1, 2]], 3, temperature)


# ---- states of some positions --------------------------------------------------------------------


def mlp_rows(net, call):
    "call's result, and how many positions each block's MLP was computed at."
    seen = []
    hooks = [block.mlp.register_forward_pre_hook(
        lambda _, x: seen.append(x[0].shape[:-1].numel())) for block in net.blocks]
    found = call()
    for hook in hooks:
        hook.remove()
    return found, seen


@pytest.mark.parametrize("recompute", [False, True])
def test_states_of_some_positions_are_those_of_all(net, recompute):  # taken before the attention
    ids, columns = rows(), torch.tensor([[1, 5, 5], [0, 2, 6], [6, 3, 1]])
    weight, results, net.recompute = torch.randn(3, 3, 18, dtype=torch.double), [], recompute
    if net.config.channels == 36:
        weight = weight.repeat(1, 1, 2)
    for call in (lambda: m.take(net(ids), columns), lambda: net(ids, columns=columns)):
        net.zero_grad()
        found, seen = mlp_rows(net, call)
        (found * weight).sum().backward()
        results.append([found, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert seen == [21, 21, 9]  # the last MLP nowhere else
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_shared_keys_are_not_copied_while_decoding(monkeypatch):  # a cache thrice, for each token
    grouped, copied, repeat = tiny(**STYLES["llama"]), [], torch.Tensor.repeat_interleave
    monkeypatch.setattr(torch.Tensor, "repeat_interleave",
                        lambda x, *args, **kwargs: copied.append(x.shape) or repeat(
                            x, *args, **kwargs))
    m.generate(grouped, rows().tolist(), 4)
    assert copied == [(3, 2, 7, 6)] * 2 * 3  # keys and values of the prompts, in each layer


def test_a_prompt_is_read_to_its_end_alone(net):  # the last MLP at every position of the prompt
    _, seen = mlp_rows(net, lambda: m.generate(net, rows().tolist(), 2))
    assert seen == [21, 21, 3, 3, 3, 3]


# ---- log-probabilities ---------------------------------------------------------------------------


def plain_logprobs(net, ids, positions, temperature):
    full = (net.logits(net(ids)) / temperature).log_softmax(-1)
    out = torch.zeros(positions.shape, dtype=torch.double)
    for b, row in enumerate(positions.tolist()):
        out[b] = torch.stack([full[b, t - 1, ids[b, t]] for t in row])
    return out, torch.stack([torch.distributions.Categorical(logits=full[b, row - 1]).entropy()
                             for b, row in enumerate(positions)])


@pytest.mark.parametrize("chunk", [1, 4, 4096])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_gradients(net, chunk, temperature):  # off by one position, chunk gradients
    ids, positions = rows(), torch.tensor([[1, 2, 3, 4, 6], [2, 3, 4, 5, 6], [6, 5, 1, 1, 2]])
    weight = torch.randn(2, 3, 5, dtype=torch.double)
    results = []
    for function in (lambda: plain_logprobs(net, ids, positions, temperature),
                     lambda: m.logprobs(net, ids, positions, temperature, entropy=True,
                                        chunk=chunk)):
        net.zero_grad()
        out = torch.stack(function())
        (out * weight).sum().backward()
        results.append([out, *(p.grad.clone() for p in net.parameters())])
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected)
    alone = m.logprobs(net, ids, positions, temperature, chunk=chunk)
    torch.testing.assert_close(alone, results[0][0][0])


def test_logprobs_never_hold_all_logits():  # the output matrix on prompts, or (B, T, V) at once
    net, sizes = tiny(), []
    logits = net.logits
    net.logits = lambda hidden: sizes.append(hidden.shape[:-1].numel()) or logits(hidden)
    m.logprobs(net, rows(), torch.tensor([[3, 4]] * 3), chunk=4)
    assert sizes == [4, 2]


def test_logprobs_of_a_large_vocabulary(net, monkeypatch):
    # logits of the padding, all of them at once, or a row's padding taken for the row before it
    ids, positions = rows(), torch.tensor([[3, 4, 5, 5, 5], [5, 6, 6, 6, 6], [2, 3, 4, 5, 6]])
    weight, sizes, logits, results = torch.randn(2, 3, 5, dtype=torch.double), [], net.logits, []
    for most in (m.LOGITS, 4 * V):
        monkeypatch.setattr(m, "LOGITS", most)
        net.zero_grad()
        net.logits = lambda hidden: sizes.append(len(hidden)) or logits(hidden)
        out = torch.stack(m.logprobs(net, ids, positions, 0.7, entropy=True))
        net.logits = logits
        (out * weight).sum().backward()
        results.append([out, *(p.grad.clone() for p in net.parameters())])
    assert sizes == [15, 4, 4, 2]
    for expected, actual in zip(*results):
        torch.testing.assert_close(actual, expected)


def test_logprobs_accept_hidden_states():  # hidden states ignored, or shifted once more
    net, ids, positions = tiny(), rows(), torch.tensor([[3, 4, 6]] * 3)
    expected, hidden = m.logprobs(net, ids, positions, 0.7), net(ids, columns=positions - 1)
    net.forward = None  # not run again
    assert torch.equal(m.logprobs(net, ids, positions, 0.7, hidden=hidden), expected)


def test_logprobs_of_padding_are_harmless():  # PAD as an index into the vocabulary
    net, ids = tiny(), rows()
    ids[1, 4:] = PAD
    out = m.logprobs(net, ids, torch.tensor([[0, 3, 6]] * 3))  # 0 has nothing before it
    assert out.isfinite().all()
    for temperature in (0, -1):
        with pytest.raises(ValueError) as error:
            m.logprobs(net, ids, torch.tensor([[1]] * 3), temperature)
        one_sentence(error)


def test_logprobs_of_a_half_precision_model_are_fp32():  # a log-softmax in eight bits
    out = m.logprobs(tiny().bfloat16(), rows(), torch.tensor([[3]] * 3))
    assert out.dtype == torch.float32


# ---- scalar models and frozen layers -------------------------------------------------------------


def test_scalar_model_is_a_shifted_scaled_head():  # scale before shift, head on another state
    policy = tiny(tied=False)
    scalar = networks.scalar_copy(policy)
    scalar.shift.fill_(0.3), scalar.scale.fill_(1.7)
    expected = (policy(rows()) @ scalar.head.weight[0] + scalar.head.bias - 0.3) / 1.7
    torch.testing.assert_close(scalar(rows()), expected, rtol=1e-6, atol=1e-6)
    assert scalar(rows()).dtype == torch.double
    assert "trunk.lm_head.weight" not in scalar.state_dict() and "shift" in scalar.state_dict()
    assert policy.lm_head is not None
    scalar.trunk.norm.weight.data.zero_()
    assert policy.norm.weight.abs().sum() > 0  # a copy


def test_half_precision_scores_are_fp32():  # eight bits of reward under autocast
    scalar = networks.scalar_copy(tiny(double=False))
    with torch.autocast("cpu", torch.bfloat16):
        assert scalar(rows()).dtype == torch.float32


@pytest.mark.parametrize("fraction,count", [(0.2, 0), (0.7, 2), (1.0, 3)])
def test_trunk_computed_once_is_trunk_computed_every_time(net, fraction, count):  # a layer twice
    networks.freeze(net, fraction)
    assert net.frozen == count
    ids, positions = rows(), torch.tensor([[3, 4, 6]] * 3)
    scalar = networks.scalar_copy(net)
    results = []
    for start in (None, net.frozen_output(ids)):
        net.zero_grad(), scalar.zero_grad()
        logp = m.logprobs(net, ids, positions, bottom=start)
        values = scalar(ids, bottom=start)
        (logp.sum() + values.sum()).backward()
        params = [*net.parameters(), *scalar.parameters()]
        results.append([logp, values, *(p.grad for p in params if p.grad is not None)])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)
    ids[0, :2] = PAD
    start = net.frozen_output(ids, ids < PAD)
    assert torch.equal(net(ids, ids < PAD, start), net(ids, ids < PAD))


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_parameters_get_no_gradient(tied):  # a tied output matrix that still moves
    for net in (tiny(tied=tied), networks.scalar_copy(tiny(tied=tied))):
        networks.freeze(net, 0.7)
        trains = {name for name, p in net.named_parameters() if p.requires_grad}
        tops = {name.removeprefix("trunk.").split(".")[0] for name in trains}
        assert tops - {"head"} == {"blocks", "norm"}
        assert all("blocks.2" in name for name in trains if "blocks" in name)
        [group] = optim.adamw(net, 1e-3).param_groups
        assert len(group["params"]) == len(trains)
        networks.freeze(net, 0)
        assert all(p.requires_grad for p in net.parameters())
        with pytest.raises(ValueError, match="nothing is frozen"):
            getattr(net, "trunk", net).frozen_output(rows())


def test_share_frozen_holds_memory_once():  # copies instead of the same tensors, the top shared too
    policy, other = tiny(tied=False), tiny(tied=False)
    scalar = networks.scalar_copy(policy)
    networks.freeze(policy, 0.7)
    other.blocks[2].norm1.weight.data.add_(1)  # the top may differ
    expected = other(rows()).clone(), scalar(rows()).clone()
    networks.share_frozen(policy, other), networks.share_frozen(policy, scalar)
    for net in (other, scalar.trunk):
        for name, p in net.named_parameters():
            shared = name.split(".")[0] in ("embed", "lm_head") or name[:8] in ("blocks.0",
                                                                                "blocks.1")
            assert (p.data_ptr() == policy.get_parameter(name).data_ptr()) == shared, name
        assert net.frozen == 2
    assert torch.equal(other(rows()), expected[0]) and torch.equal(scalar(rows()), expected[1])
    assert len(scalar.trunk.blocks) == 3 and "trunk.blocks.1.norm1.weight" in scalar.state_dict()


@pytest.mark.parametrize("name", ["embed.weight", "blocks.1.mlp.up.weight", "lm_head.weight"])
def test_share_frozen_refuses_other_layers(name):  # another base's trunk used without a word
    policy, other = tiny(tied=False), tiny(tied=False)
    networks.freeze(policy, 0.7)
    other.get_parameter(name).data[1, 2] += 1e-9
    with pytest.raises(ValueError, match="train both from the same base with the same --freeze"):
        networks.share_frozen(policy, other)
    with pytest.raises(ValueError, match="same base"):
        networks.share_frozen(policy, tiny(tied=False, channels=24))
    with pytest.raises(ValueError, match="nothing is frozen"):
        networks.share_frozen(other, policy)


# ---- the checkpoint ------------------------------------------------------------------------------

TOKENIZER = {"name": "test", "fingerprint": "abc"}


def write(path, kind="policy", net=None, meta=None, **more):
    if net is None:
        net = tiny(double=False) if kind == "policy" else networks.scalar_copy(tiny(double=False))
    meta = {"step": 3, "loss": 0.5} if meta is None else meta
    checkpoint.save(path, kind, net, TOKENIZER, meta, **more)
    return net


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_checkpoint_round_trip(tmp_path, kind, dtype):  # a weight lost, rounded, or left in bf16
    net = tiny(double=False, **STYLES["opt-350m"], eos=(3, 5))
    if kind == "reward":
        net = networks.scalar_copy(net)
        net.shift.fill_(0.123456789), net.scale.fill_(1.23456789)
    state = {"optimizer": {0: torch.arange(3)}, "beta": 0.1, "rng": torch.get_rng_state()}
    path = tmp_path / "new" / "folder" / "a.pt"
    write(path, kind, net, state=state, dtype=dtype)
    again, record = checkpoint.load(path, kind, tokenizer="abc")
    assert again.config == net.config and type(again) is type(net)
    for name, value in net.state_dict().items():
        expected = value.to(dtype).float() if dtype and value.dim() else value
        assert torch.equal(again.state_dict()[name], expected), name
        assert again.state_dict()[name].dtype == torch.float32
    assert record["meta"] == {"step": 3, "loss": 0.5} and record["kind"] == kind
    assert record["tokenizer"] == TOKENIZER and record["state"]["beta"] == 0.1
    assert torch.equal(record["state"]["rng"], state["rng"]) and record["format"] == 2
    assert json.loads((path.parent / "a.json").read_text())["step"] == 3
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.json", "a.pt"]
    if dtype:
        raw = torch.load(path, weights_only=True)["weights"]
        assert {v.dtype for v in raw.values() if v.dim()} == {dtype}


def test_compiled_models_are_saved_uncompiled(tmp_path):  # names that start with _orig_mod.
    net = tiny(double=False)
    write(tmp_path / "a.pt", net=torch.compile(net))
    again, _ = checkpoint.load(tmp_path / "a.pt", "policy")
    assert torch.equal(again.embed.weight, net.embed.weight)


def test_missing_wrong_foreign_and_other_files_name_the_remedy(tmp_path):  # a traceback instead
    path = tmp_path / "a.pt"

    def complaint(kind="policy", tokenizer=None, error=ValueError):
        with pytest.raises(error) as info:
            checkpoint.load(path, kind, tokenizer=tokenizer)
        text = one_sentence(info)
        assert str(path) in text and {"policy": "sft.py", "reward": "reward.py"}[kind] in text
        return text

    assert "not exist" in complaint(error=FileNotFoundError)
    write(path)
    assert "is a policy, not a reward" in complaint("reward")
    assert "another tokenizer" in complaint(tokenizer="abd")
    record = torch.load(path, weights_only=True)
    torch.save({**record, "format": 99}, path)
    assert "99" in complaint()
    record["weights"]["norm.weight"][0] += 1e-6
    torch.save(record, path)
    assert "altered" in complaint()
    for foreign in ({"weights": torch.zeros(3)}, {"format": {1, 2}}, random.Random(0)):
        torch.save(foreign, path)
        complaint()
    for name, value in (("model", None), ("model", {**record["model"], "layers": "1"}),
                        ("model", {**record["model"], "heads": 1.5}), ("meta", "x"),
                        ("tokenizer", None), ("tokenizer", {}), ("weights", [])):  # by another hand
        other = {**record, name: value}
        torch.save({**other, "digest": checkpoint.digest(other)}, path)
        complaint(tokenizer="abc")
    for content in (b"", b"hello", b"{}" * 999):
        path.write_bytes(content)
        complaint()


def test_truncated_and_flipped_files_are_refused(tmp_path):  # damage that trains on unnoticed
    path, rng = tmp_path / "a.pt", random.Random(0)
    write(path, "reward")
    good, truth = path.read_bytes(), checkpoint.digest(torch.load(path, weights_only=True))
    for _ in range(100):
        path.write_bytes(good[:rng.randrange(len(good))])
        with pytest.raises(ValueError) as error:
            checkpoint.load(path, "reward")
        one_sentence(error)
    refused = 0
    for _ in range(100):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:  # the zip pads tensors to 64 bytes: a flip there alters nothing that is read
            checkpoint.load(path, "reward")
            assert checkpoint.digest(torch.load(path, weights_only=True)) == truth
        except ValueError as error:
            assert "\n" not in str(error) and "reward.py" in str(error)
            refused += 1
    assert refused >= 50


def test_digest_sees_everything():  # a field, a type, a shape or a dtype left out of the hash
    base = {"a": torch.zeros(2, 3), "b": 1, "c": "x", "d": [1, 2], "e": None, "f": 0.5}
    variants = [base, {**base, "a": torch.zeros(3, 2)}, {**base, "a": torch.zeros(6)},
                {**base, "a": torch.zeros(2, 3).int()}, {**base, "b": True}, {**base, "b": 1.0},
                {**base, "b": "1"}, {**base, "c": "y"}, {**base, "d": (1, 2)}, {**base, "e": 0},
                {**base, "d": [[1], 2]}, {**base, "g": None}, {**base, "f": 0.5 + 2**-53}]
    assert len({checkpoint.digest(variant) for variant in variants}) == len(variants)
    shuffled = dict(reversed(base.items()))
    other = {**shuffled, "a": torch.zeros(3, 2).T, "digest": 1}
    assert checkpoint.digest(other) == checkpoint.digest(base)
    with pytest.raises(ValueError, match="primitives and tensors"):
        checkpoint.digest({"a": {1, 2}})


@pytest.mark.parametrize("where", ["torch.save", "os.replace", "os.fsync"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_kill_leaves_the_old_file(tmp_path, monkeypatch, where, error):  # writing in place
    path = tmp_path / "a.pt"
    write(path)
    old = path.read_bytes()

    def kill(*args):
        if where == "torch.save":
            args[1].write(b"half a file")
        raise error("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, kill)
        with pytest.raises(OSError if error is RuntimeError else KeyboardInterrupt):
            write(path, meta={"step": 4})
    assert path.read_bytes() == old and checkpoint.load(path, "policy")[1]["meta"]["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.pt"]


# ---- the optimiser -------------------------------------------------------------------------------


def test_adamw_lets_nothing_decay():  # torch's own default
    net = tiny(double=False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = optim.adamw(net, lr=0.1)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        assert torch.equal(p.detach(), before[name])


def test_base_optimisers_share_all_weights():  # an embedding under Muon, a norm nobody trains
    net = tiny(double=False)
    optimizer = base.optimizer(net, 1e-3)
    optimizers = getattr(optimizer, "optimizers", [optimizer])
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in optimizers]
    assert sum(map(len, held)) == len(set().union(*held)) == len(list(net.parameters()))
    matrices = {id(p) for p in net.blocks.parameters() if p.dim() == 2}
    if hasattr(torch.optim, "Muon"):
        assert held[0] == matrices and isinstance(optimizers[0], torch.optim.Muon)
    before = [p.clone() for p in net.parameters()]
    net(torch.tensor([[1, 2, 3]])).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters())]
    assert all(moved), [name for (name, _), x in zip(net.named_parameters(), moved) if not x]


def test_the_base_optimiser_without_muon(monkeypatch):  # torch before 2.9
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert isinstance(base.optimizer(tiny(double=False), 1e-3), torch.optim.AdamW)
