"""
What is held once, in which precision, and whether tests/memory.py counts it rightly. Without a GPU
bf16 is asked for on the CPU, which rounds the same. After each test's name stands the bug that
turns it red.
"""

import math
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import model as m
import ppo
import reward
import sft
from data import checkpoint, gpu, networks, optim, pools, run
from tests import chaos, memory

V, PAD = 61, 61
BF16 = torch.bfloat16
STYLES = {
    "gpt2": dict(norm="layer", activation="gelu", positions="learned", bias=True),
    "llama": dict(kv_heads=2, tied=False),
    "opt": dict(norm="layer", activation="relu", positions="learned", bias=True, embed_width=12),
}


def policy_of(freeze=0.67, dtype=None, **changes):
    "A random network with sharp opinions, frozen and on its device."
    torch.manual_seed(0)
    settings = dict(vocab_size=V, context=40, layers=3, heads=4, kv_heads=4, channels=32, hidden=48)
    net = m.Transformer(m.ModelConfig(**{**settings, **changes}))
    for name, p in net.named_parameters():
        p.data.normal_(mean=float("norm" in name and "weight" in name), std=0.2)
    networks.freeze(net, freeze)
    return networks.to_device(net, "cpu", dtype)


def rows(B=5, T=17):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(1))


POSITIONS = torch.arange(8, 17).expand(5, -1)


@pytest.fixture(params=STYLES)
def style(request):
    return STYLES[request.param]


# ---- precision -----------------------------------------------------------------------------------


def test_cpu_computes_in_what_its_weights_are():  # bf16 where nobody asked for it
    net = policy_of(0)
    assert networks.precision("cpu") is None and net.precision is None
    assert net.logits(net(rows())).dtype == torch.float32
    assert policy_of(0).double().logits(policy_of(0).double()(rows())).dtype == torch.float64


@pytest.mark.parametrize("freeze", [0, 0.67])
def test_bf16_is_near_fp32(style, freeze):  # a part computed twice, or left out, in bf16
    expected, net = policy_of(freeze, **style), policy_of(freeze, BF16, **style)
    logp = m.logprobs(expected, rows(), POSITIONS)
    found, entropy = m.logprobs(net, rows(), POSITIONS, entropy=True)
    assert net(rows()).dtype == BF16 and found.dtype == entropy.dtype == torch.float32
    error = (found - logp).square().mean().sqrt() / logp.std()
    assert 1e-4 < error < 0.04, error
    if freeze:
        assert torch.equal(m.logprobs(net, rows(), POSITIONS, bottom=net.frozen_output(rows())),
                           found)


def test_logits_are_not_rounded():  # eight bits of a logit near 20: .06 nats
    net = policy_of(0, BF16, tied=False)
    hidden = 10 * torch.randn(50, 32).to(BF16)
    exact = hidden.double() @ net.lm_head.weight.to(BF16).double().T
    assert exact.abs().max() > 20
    torch.testing.assert_close(net.logits(hidden).double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_multiplies_bf16_and_sums_in_fp32(device, frozen, monkeypatch):
    # a gradient transposed, or of what is frozen; logits rounded to eight bits
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if device == "cpu":
        monkeypatch.setattr(gpu, "multiply", lambda a, b: a.float() @ b.float())
        monkeypatch.setattr(m, "RECORDED", ("cpu",))
    hidden = (10 * torch.randn(3, 7, 32)).to(device, BF16).requires_grad_()
    matrix = torch.randn(53, 32, device=device).to(BF16).requires_grad_(not frozen)
    exact, gradient = hidden.double() @ matrix.double().T, torch.randn(3, 7, 53, device=device)
    found = gpu.product(hidden, matrix)
    assert found.dtype == torch.float32 and exact.abs().max() > 100
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=0)
    found.backward(gradient)
    assert (matrix.grad is None) == frozen
    grad = gradient.to(BF16).double()
    torch.testing.assert_close(hidden.grad.double(), grad @ matrix.double(), atol=1e-2, rtol=2**-8)
    if not frozen:
        torch.testing.assert_close(matrix.grad.double(), grad.flatten(0, 1).T @ hidden.double()
                                   .flatten(0, 1), atol=1e-2, rtol=2**-8)


def test_scores_and_values_are_fp32():  # a head in bf16, or one that is given bf16
    policy = policy_of(dtype=BF16)
    scorer = networks.scalar_copy(policy)
    assert scorer.head.weight.dtype == torch.float32
    for net in (scorer, networks.frozen_copy(scorer)):
        net.shift.fill_(0.3), net.scale.fill_(1.7)
        hidden = net.trunk(rows()).float()
        exact = ((hidden @ scorer.head.weight[0] + scorer.head.bias) - 0.3) / 1.7
        torch.testing.assert_close(net(rows()), exact)
    head = ppo.value_network(ppo.Config(value="shared"), policy, None)
    _, values = ppo.act(policy, head, rows(), POSITIONS, 1.0)
    exact = head(policy(rows()).float()).squeeze(-1)
    torch.testing.assert_close(values, exact.gather(1, POSITIONS - 1))


def test_masters_add_up_small_steps():  # trained weights kept in bf16: a step of 1e-5 is no step
    net = policy_of(dtype=BF16)
    frozen = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in net.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in frozen.values()} == {BF16}
    optimizer = optim.adamw(net, 1e-5)
    before = net.norm.weight.detach().clone()
    for _ in range(30):
        m.logprobs(net, rows(), POSITIONS).mean().backward()
        assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
        optimizer.step(), optimizer.zero_grad()
    moved = (net.norm.weight - before).abs()
    assert moved.median() > 1e-4  # thirty steps of 1e-5, none of which alone is seen in bf16
    assert all(torch.equal(p, frozen[name]) for name, p in net.named_parameters() if name in frozen)
    trains = {id(p) for p in net.parameters() if p.requires_grad}
    assert {id(p) for p in optimizer.state} == trains
    assert {x.dtype for state in optimizer.state.values() for x in state.values()
            } == {torch.float32}


@pytest.mark.parametrize("freeze", [0, 0.67])
def test_policy_and_ref_policy_begin_equal(style, freeze):  # masters used unrounded: a KL of noise
    policy = policy_of(freeze, BF16, **style)
    ref_policy = networks.frozen_copy(policy)
    assert {p.dtype for p in ref_policy.parameters()} == {BF16}
    assert torch.equal(*(m.logprobs(net, rows(), POSITIONS) for net in (policy, ref_policy)))
    assert m.generate(policy, rows().tolist(), 12) == m.generate(ref_policy, rows().tolist(), 12)


# ---- recomputing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("freeze", [0, 0.67])
def test_recomputed_gradients_are_the_same(style, freeze, dtype):  # another forward in backward
    found = []
    for recompute in (False, True):
        net = policy_of(freeze, dtype, **style)
        net.recompute = recompute
        start = net.frozen_output(rows()) if freeze else None
        m.logprobs(net, rows(), POSITIONS, bottom=start).sum().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


# ---- sharing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, BF16])
def test_the_frozen_bottom_is_held_once(dtype):  # a copy of the trunk; a top that two networks move
    policy = policy_of(dtype=dtype, tied=False)
    scorer = networks.scalar_copy(policy)
    value = ppo.value_network(ppo.Config(), policy, scorer)
    nets = [policy, networks.frozen_copy(policy), scorer.trunk,
            networks.frozen_copy(scorer).trunk, value.trunk]
    for name, p in policy.named_parameters():
        held = {net.get_parameter(name).data_ptr() for net in nets
                if name in dict(net.named_parameters())}
        several = 2 if name.startswith("lm_head") else 5  # scalar models have no output matrix
        assert len(held) == (several if p.requires_grad else 1), name
    assert value.head.weight.data_ptr() != scorer.head.weight.data_ptr()
    assert [p.requires_grad for p in value.parameters()] == [
        p.requires_grad for p in scorer.parameters()]
    assert not any(p.requires_grad for net in (nets[1], nets[3]) for p in net.parameters())


def test_a_loaded_reward_model_is_rounded_to_the_shared_trunk():  # refused, or held in fp32
    policy = policy_of(freeze=0)
    scorer = networks.scalar_copy(policy)
    networks.freeze(policy, 0.67), networks.to_device(policy, "cpu", BF16)
    networks.freeze(scorer, 0.67), networks.share_frozen(policy, scorer)
    networks.to_device(scorer, "cpu", BF16)
    assert scorer.trunk.embed.weight is policy.embed.weight
    assert {p.dtype for p in scorer.trunk.blocks[2].parameters()} == {torch.float32}
    start = policy.frozen_output(rows())
    assert torch.equal(scorer(rows(), bottom=start), scorer(rows()))


@pytest.mark.parametrize("freeze", [0, 0.67, 1])
def test_frozen_layers_read_once_what_is_evaluated(freeze, monkeypatch):
    # once more each time; the last scores for new ones; what the same ids, packed otherwise, have
    # left, or other ids; more than there is room for
    ran, policy, ids = [], policy_of(freeze), rows().tolist()
    policy.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))  # of its copies, too
    scorer, ref_policy = networks.scalar_copy(policy), networks.frozen_copy(policy)
    prompts, responses = [row[:9] for row in ids], [row[9:17 - n] for n, row in enumerate(ids)]
    score = reward.scorer(scorer, PAD)
    implicit = reward.implicit_scorer(policy, ref_policy, 0.3, PAD)
    evaluations = [
        lambda kept: sft.evaluate(policy, [*zip(prompts, responses)], PAD, "cpu", kept=kept),
        lambda kept: score(prompts, responses, kept=kept),
        lambda kept: score(prompts, responses[::-1], kept=kept),
        lambda kept: score([ids[0][:9]] * 2, [[1, 2], [3]], kept=kept),
        lambda kept: score([ids[0][:8]] * 2, [[ids[0][8], 1, 2], [3]], kept=kept),
        lambda kept: implicit(prompts, responses, kept=kept)]
    for room in (networks.KEPT, 5 * 17 * 32 * 4):
        monkeypatch.setattr(networks, "KEPT", room)
        kept = {}
        for turn in range(2):
            for evaluate in evaluations:
                found, counts = [], []
                for how in (kept, None):
                    ran.clear()
                    found.append(torch.as_tensor(evaluate(how)))
                    counts.append(len(ran))
                torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)  # threads round
                assert counts[1] > 0
                assert counts[0] == 0 or not turn or not freeze or room < 2**30
            for p in (*policy.parameters(), *scorer.parameters()):
                p.data += 0.1 * p.requires_grad
        assert bool(kept) == (freeze > 0) and sum(x.nbytes for x in kept.values()) <= room


def test_a_run_reads_once_what_it_is_evaluated_on(toy, tmp_path, monkeypatch, quick):
    # a dict that nobody passes on: 8 steps, evaluated every 2; sft.py before them, too, DPO's
    # reference as well
    ran, asked, frozen_output, kept_output = [], [], m.Transformer.frozen_output, (
        networks.kept_output)
    monkeypatch.setattr(m.Transformer, "frozen_output", lambda *args, **more: (
        ran.append(1), frozen_output(*args, **more))[1])
    monkeypatch.setattr(networks, "kept_output", lambda *args, **more: (
        asked.append(kept_output(*args, **more)), asked[-1])[1])
    for stage, more, times in (("sft", {}, 5), ("reward", {}, 4), ("reward", {"implicit": .3}, 8)):
        ran.clear(), asked.clear()
        chaos.go(stage, toy, tmp_path, freeze=0.5, own=True, **more)
        assert len(ran) == 1 and len([x for x in asked if x is not None]) == times, (stage, more)


def test_a_frozen_copy_does_not_follow():  # a reference policy that trains along
    for dtype in (None, BF16):
        policy = policy_of(0, dtype)
        ref_policy = networks.frozen_copy(policy)
        before = m.logprobs(ref_policy, rows(), POSITIONS)
        for p in policy.parameters():
            p.data.add_(0.1)
        assert torch.equal(m.logprobs(ref_policy, rows(), POSITIONS), before)


def test_what_is_only_used_is_rounded(tmp_path, monkeypatch):  # a judge in fp32, or one that trains
    net = policy_of(0)
    checkpoint.save(tmp_path / "p.pt", "policy", net, {"name": "world", "fingerprint": "x"}, {})
    plain, _ = checkpoint.load_frozen(tmp_path / "p.pt", "policy", "cpu")
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert torch.equal(plain(rows()), net(rows()))
    monkeypatch.setattr(networks, "precision", lambda device: BF16)
    small, record = checkpoint.load_frozen(tmp_path / "p.pt", "policy", "cpu", "x")
    assert {p.dtype for p in small.parameters()} == {BF16} and record["kind"] == "policy"
    assert not any(p.requires_grad for p in [*small.parameters(), *plain.parameters()])
    with pytest.raises(ValueError, match="tokeni"):
        checkpoint.load_frozen(tmp_path / "p.pt", "policy", "cpu", "y")


def test_large_checkpoints_are_held_once(tmp_path, monkeypatch):  # drawn and then overwritten
    tokenizer = {"name": "world", "fingerprint": "x"}
    net = policy_of(0)
    checkpoint.save(tmp_path / "p.pt", "policy", net, tokenizer, {}, dtype=BF16)
    checkpoint.save(tmp_path / "r.pt", "reward", networks.scalar_copy(net), tokenizer, {})
    for name, kind in (("p.pt", "policy"), ("r.pt", "reward")):
        usual, _ = checkpoint.load(tmp_path / name, kind)
        with monkeypatch.context() as patch:
            patch.setattr(networks, "LARGE", 0)
            state = torch.get_rng_state()
            large, _ = checkpoint.load(tmp_path / name, kind)
        assert torch.equal(torch.get_rng_state(), state)
        assert {p.dtype for p in large.parameters()} == {torch.float32}
        assert all(p.requires_grad for p in large.parameters())
        assert torch.equal(usual(rows()), large(rows()))
    monkeypatch.setattr(networks, "LARGE", 0)
    monkeypatch.setattr(m.Transformer, "__init__", None)  # is not called
    assert networks.scalar_copy(net)(rows()).shape == (5, 17)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another way to keep freed memory")
def test_freed_memory_goes_back_if_a_model_is_large(monkeypatch):  # to nobody, or for small ones
    torch.ones(2**22), torch.ones(2**22)  # from now on tensors of 1 MB lie side by side
    held = [torch.ones(2**18) for _ in range(300)]
    full, held[:-1] = resident(), []  # the last one is above all the others
    networks.trim(policy_of().parameters())
    assert resident() > full - 50e6
    monkeypatch.setattr(networks, "LARGE", 0)
    networks.trim(policy_of().parameters())
    assert resident() < full - 250e6 and len(held) == 1


def test_a_run_holds_no_more_than_it_needs(toy, tmp_path, monkeypatch, quick):
    # what it was resumed from, the whole time; memory freed in a step, in the next one as well; a
    # reward model twice
    trimmed, saved, made, scores = [], [], [], []
    for where, name, spy in (
            (networks, "trim", lambda result, *args: trimmed.append(1)),
            (run.Run, "save", lambda result, self, *_: saved.append(self.saved)),
            (networks, "start_ppo", lambda result, *_: made.append(result[1])),
            (ppo, "experience", lambda result, *args: scores.append(args[4].model))):
        original = getattr(where, name)
        monkeypatch.setattr(where, name, lambda *args, f=original, spy=spy, **more: (
            result := f(*args, **more), spy(result, *args))[0])
    stop = []
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "stop_signal", lambda: stop)
        patch.setattr(sft, "evaluate", lambda *args, evaluate=sft.evaluate, **more: (
            stop.append(1), evaluate(*args, **more))[1])
        chaos.go("sft", toy, tmp_path)
    trimmed.clear()
    chaos.go("sft", toy, tmp_path, resume=True)
    assert len(trimmed) == 1 + 7  # before the first of the seven steps that are left, and in each
    chaos.go("ppo", toy, tmp_path)
    assert saved and not any(saved) and scores and all(x is made[0] for x in scores)
    assert not any(p.requires_grad for p in scores[0].parameters())


def test_a_large_model_scores_few_rows_at_once(monkeypatch):  # 64 rows of 7B
    policy, ids, seen, usual = policy_of(), rows().tolist(), [], networks.LARGE
    policy.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    scorer = networks.scalar_copy(policy)
    prompts, responses = [[i, 1] for i in range(40)], [ids[i % 5][:3 + i % 7] for i in range(40)]
    by = {"score": lambda: reward.scorer(scorer, PAD)(prompts, responses),
          "loglikelihood": lambda: torch.tensor(pools.loglikelihood(policy, prompts, responses,
                                                                    1.0, PAD))}
    for name, compute in by.items():
        found = []
        for large, most in ((usual, 40), (0, 16)):
            monkeypatch.setattr(networks, "LARGE", large)
            seen.clear()
            found.append(compute())
            assert max(seen) == most, name
        torch.testing.assert_close(*found, atol=1e-4, rtol=1e-5)


def test_networks_of_shapes_compute_nothing(style):
    # two seconds and 70 MB at the start of everything; one that stays hollow, or is not hollow
    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))
    names, settings = set(), dict(vocab_size=V, channels=32, hidden=48)
    before = nn.init.normal_, m.rope_table
    with pytest.raises(ValueError, match="last"), Seen(), networks.hollow():
        nets = [kind(m.ModelConfig(**{**settings, **style})) for kind in (
            m.Transformer, m.ScalarModel)]
        raise ValueError("the last line")
    assert names <= {"empty", "uniform_", "fill_", "zero_"}, names
    usual = [kind(m.ModelConfig(**{**settings, **style})) for kind in (
        m.Transformer, m.ScalarModel)]
    for hollow, net in zip(nets, usual):
        for a, b in zip([*hollow.parameters(), *hollow.buffers()],
                        [*net.parameters(), *net.buffers()], strict=True):
            assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype and not b.is_meta
    assert (nn.init.normal_, m.rope_table) == before


def test_sampling_in_chunks_changes_nothing(monkeypatch):
    # random numbers by place in a chunk; a prompt counted once where a GPU keeps it for each sample
    policy = policy_of(0)
    prompts = [row[:4 + i] for i, row in enumerate(rows().tolist())]
    whole, decode = m.generate(policy, prompts, 9, num_samples=2), m.decode_rows
    for name, module, columns in (("decode_rows", m, 4 + 9), ("decode_recorded", gpu, 8 + 9)):
        sizes = []
        monkeypatch.setattr(module, name, lambda model, prompts, which, *rest: (
            sizes.append(len(which)), decode(model, prompts, which, *rest))[1])
        monkeypatch.setitem(m.CACHE, "cpu", 4 * m.cache_bytes(policy, columns))
        assert m.generate(policy, prompts, 9, num_samples=2) == whole and sizes == [4, 4, 2]
        monkeypatch.setitem(m.CACHE, "cpu", 1)
        assert m.generate(policy, prompts, 9, num_samples=2) == whole
        monkeypatch.setattr(m, "RECORDED", ("cpu",))
    assert m.cache_bytes(policy, 17) == policy.new_cache(1, 17).nbytes


def test_prompts_read_in_parts_change_nothing(monkeypatch):
    # a part at the wrong columns; padding that is read, or that is no number where nothing is read
    policy, whole, read, new = policy_of(0).double(), None, [], m.Transformer.new_cache
    prompts = [row[:n] for row, n in zip(rows().tolist(), (3, 11, 4, 10, 2))]
    policy.blocks[0].register_forward_pre_hook(lambda _, x: read.append(tuple(x[0].shape[:2])))
    for large, parts in ((networks.LARGE, [(5, 11)]), (0, [(2, 11), (2, 4), (1, 2)])):
        monkeypatch.setattr(networks, "LARGE", large)
        monkeypatch.setattr(networks, "AT_ONCE", 2)
        monkeypatch.setattr(m.Transformer, "new_cache",
                            lambda *args, x=large: new(*args).fill_(0 if x else math.nan))
        read.clear()
        found = m.generate(policy, prompts, 9, num_samples=2)
        assert found == (whole or found) and read[:len(parts)] == parts
        whole = found


# ---- a whole run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value, samples", [("reward", 1), ("shared", 2), ("reward", 4)])
def test_a_run_in_bf16(value, samples, toy, tmp_path, monkeypatch, quick):
    # a dtype that meets another; a checkpoint that rounds what trains; a resume that does
    monkeypatch.setattr(networks, "precision", lambda device: BF16)
    small = dict(freeze=0.5, micro=2, steps=2, own=True)
    sft_path = chaos.go("sft", toy, tmp_path, **small)
    reward_path = chaos.go("reward", toy, tmp_path, lr=1e-4, **small)
    seen, original = [], ppo.experience
    monkeypatch.setattr(ppo, "experience", lambda *args: (seen.append(args), original(*args))[1])
    small |= dict(value=value, every=1, lr=1e-5, samples=samples)
    ppo_path = chaos.go("ppo", toy, tmp_path, **small)
    weights = {path.stem: torch.load(path, weights_only=True)["weights"]
               for path in (sft_path, reward_path, ppo_path)}
    for stage, tensors in weights.items():
        for name, x in tensors.items():
            frozen = name.removeprefix("trunk.").startswith(("embed", "blocks.0."))
            assert x.dtype == (BF16 if frozen else torch.float32), (stage, name)
            if frozen:
                assert torch.equal(x, weights["sft"][name.removeprefix("trunk.")])
    moved = weights["ppo"]["norm.weight"] - weights["sft"]["norm.weight"]
    assert 0 < moved.abs().max() < 1e-3  # smaller than bf16 resolves at 1
    _, policy, network, ref_policy, reward_fn, *_ = seen[0]
    assert reward_fn.model.trunk.embed.weight.data_ptr() == policy.embed.weight.data_ptr()
    assert policy.recompute and getattr(network, "trunk", policy).recompute
    assert {p.dtype for p in ref_policy.parameters()} == {BF16}

    # the first of two iterations, saved, and the second after --resume: the same weights
    stop = []
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "stop_signal", lambda: stop)
        patch.setattr(ppo, "update", lambda *args, update=ppo.update: (
            stop.append(1), update(*args))[1])
        chaos.go("ppo", toy, tmp_path, **small)
    assert torch.load(ppo_path, weights_only=True)["meta"]["step"] == 1
    chaos.go("ppo", toy, tmp_path, resume=True, **small)
    again = torch.load(ppo_path, weights_only=True)["weights"]
    assert all(torch.equal(x, weights["ppo"][name]) for name, x in again.items())


@pytest.mark.parametrize("gap, stops", [(0.02, False), (0.3, True)])
def test_bf16_may_differ_from_itself_a_little(gap, stops):  # an assertion that noise turns on
    torch.manual_seed(0)
    policy = policy_of(dtype=BF16)
    config = ppo.Config(batch=5, samples=1, minibatches=1, epochs=1, value="shared", freeze=0.67)
    value = ppo.value_network(config, policy, None)
    prompts = [row[:8] for row in rows().tolist()]
    rollout, _ = ppo.experience(config, policy, value, networks.frozen_copy(policy),
                                lambda *_: torch.ones(5), prompts, m.generate(policy, prompts, 9),
                                0.1, SimpleNamespace(pad=PAD, response_tokens=9))
    rollout["logp_old"] += gap
    optimizer = optim.adamw(nn.ModuleList([policy, value]), 1e-5)
    if stops:
        with pytest.raises(AssertionError, match="differs from itself"):
            ppo.update(config, policy, value, optimizer, rollout, torch.Generator())
    else:
        ppo.update(config, policy, value, optimizer, rollout, torch.Generator())


# ---- the accounting ------------------------------------------------------------------------------


def options_of(stage, value="shared", **changes):
    own = dict(value=value, samples=1, minibatches=2, epochs=1) if stage == "ppo" else {}
    return memory.STAGES[stage].Config(**own | changes)


@pytest.mark.parametrize("name, stage, dtype, changes", [
    ("gpt2", "sft", None, dict(micro=0)), ("gpt2", "reward", BF16, dict(micro=2, freeze=0.8)),
    ("gpt2", "ppo", None, dict(micro=2, value="reward")),
    ("gpt2", "ppo", BF16, dict(micro=0, freeze=0.8)),
    ("opt-1.3b", "sft", BF16, dict(micro=2, freeze=0.8)),
    ("opt-1.3b", "reward", None, dict(micro=4)),
    ("opt-1.3b", "ppo", None, dict(micro=4, freeze=0.8)),
    ("opt-1.3b", "ppo", BF16, dict(micro=2, value="reward")),
    ("llama-7b", "sft", None, dict(micro=2, freeze=0.8)),
    ("llama-7b", "reward", BF16, dict(micro=2, freeze=0.8)),
    ("llama-7b", "ppo", BF16, dict(micro=2, freeze=0.8)),
    ("llama-7b", "ppo", None, dict(micro=0, freeze=0.8, value="reward")),
    ("llama-7b", "ppo", BF16, dict(micro=3, freeze=0.4)),
    ("gpt2", "ppo", None, dict(micro=4, samples=4, value="reward")),
    ("gpt2", "ppo", BF16, dict(micro=4, samples=4, value="reward", baseline="rloo")),
    ("opt-1.3b", "ppo", None, dict(micro=0, samples=2, value="reward", baseline="grpo")),
    ("llama-7b", "ppo", BF16, dict(micro=2, samples=2, freeze=0.8))])
def test_the_plan_is_what_is_measured(name, stage, dtype, changes):
    # a cache, a copy or a gradient that nobody planned for; one that is planned and not needed
    c, options = memory.shape(name, **memory.SMALL), options_of(stage, batch=8, **changes)
    planned = memory.peaks(memory.budget(stage, c, options, 24, 8, dtype))
    measured = memory.measure(stage, c, options, 24, 8, dtype=dtype)
    most = 1.15 if options.micro else 1.25  # what is kept is rounded up, and then most of it
    for phase in memory.PHASES:
        assert 0.98 < planned[phase] / measured[phase] < most, (phase, planned, measured)


def test_the_plan_of_a_process(capsys):  # a GPU's, without what Python takes; more kept than is
    c, options = memory.shape("smollm2-135m"), sft.Config(freeze=0.8)
    _, (_, kept, _) = memory.process("sft", c, options, 128, 96)
    assert kept == 256 * 224 * 576 * 4
    for stage, options, kept in (("ppo", ppo.Config(freeze=0.8), 0), ("sft", sft.Config(), 0),
                                 ("reward", reward.Config(freeze=1, eval_size=10**5), 2**30)):
        assert memory.process(stage, c, options, 128, 96)[1][1] == kept
    memory.main(["--model", "smollm2-135m", "--cpu", "--stage", "reward", "--batch", "2", "--micro",
                 "0", "--answers", "99"])
    said = capsys.readouterr().out
    few, most = (memory.budget("reward", c, reward.Config(batch=2, freeze=0.8), 1024, 48, None, n)
                 for n in (4, 16))
    python = memory.PYTHON + 2**30  # 500 rows of 1,120 tokens would be more
    assert memory.peaks(most)["update"] > memory.peaks(few)["update"]
    assert f"{(memory.peaks(most)['update'] + python) / 1e9:10.2f}\n" in said
    assert "measured" not in said


def test_llama_7b_fits_one_gpu():  # a whole copy more
    options = ppo.Config(freeze=0.8, value="shared", batch=256, samples=1, micro=8)
    parts = memory.budget("ppo", memory.shape("llama-7b"), options, 1024, 48, BF16)
    peaks = memory.peaks(parts)
    assert max(peaks.values()) < 60e9 < 80e9
    size = {name: n for name, n, _ in parts}
    whole, top = 6_738_415_616, 7 * 202_383_360 + 4096  # Touvron et al. 2023: 6.7 B parameters
    assert size["frozen weights, held once"] == 2 * (whole - top)
    assert size["policy, what trains, fp32"] == 4 * top
    assert size["reference policy, the top"] == 2 * top
    assert size["optimiser state, fp32"] == 8 * (top + 4097)
    assert size["bottom's output, once"] == 256 * 1072 * 4096 * 2
    assert size["keys and values of 15 rows"] == 15 * 2 * 32 * 4096 * 1072 * 2
    assert peaks["update"] == sum(n for _, n, phases in parts if "update" in phases)
    with networks.hollow():
        assert memory.count(m.Transformer(memory.shape("gpt2")), True) == 124_439_808


def test_the_recipes_are_those_of_the_page():  # a table for other settings
    text = (Path(__file__).parents[1] / "data" / "REAL.md").read_text(encoding="utf-8")
    for _, _, P, R, stages in memory.RECIPES[:-1]:
        assert f"--prompt-tokens {P} --response-tokens {R} --batch {stages['sft'].batch} --steps " \
               f"{stages['sft'].steps}" in text


def test_the_time_is_what_arithmetic_says():  # a factor of two, hours for seconds
    c = memory.shape("llama-7b")
    found = memory.seconds("sft", c, sft.Config(batch=128, freeze=0.0), 1024, 48)["update"]
    tokens, weights = 128 * 1072, 32 * 202_383_360
    flop = 6 * tokens * weights + 3 * 4 * 32 * 4096 * 1072 * tokens
    assert math.isclose(found, flop / (0.4 * 990e12), rel_tol=0.02)  # the output matrix beside it
    frozen = memory.seconds("sft", c, sft.Config(batch=128, freeze=1.0), 1024, 48)["update"]
    assert math.isclose(found / frozen, 3, rel_tol=0.05)


def test_the_command(capsys, monkeypatch):  # a table that no longer prints
    monkeypatch.setattr(memory, "measure", lambda *args: dict.fromkeys(memory.PHASES, 1))
    memory.main(["--recipes"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(memory.RECIPES)
    memory.main(["--model", "gpt2", "--stage", "sft", "--batch", "8", "--micro", "2",
                 "--prompt-tokens", "2000"])
    out = capsys.readouterr().out
    assert "8 prompts of 976 tokens" in out and "planned" in out
