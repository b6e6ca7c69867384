"""
What the three stages promise, from their losses to whole runs. Runs here are tiny (a base of one
layer and 32 channels, a few steps) and read a small file of examples, so that the fast part takes
seconds; runs of the commands themselves on the embedded world are marked slow.
After each test's name stands the bug that turns it red.
"""

import copy
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import bon
import data
import metrics
import model as m
import ppo
import reward
import sft
from data import collect, judge, world
from tests.chaos import examples

ROOT = Path(__file__).parent.parent
TIMING = {"seconds", "tokens_per_second"}  # the only fields of a log that may differ between runs
SMALL = ["--layers", "1", "--channels", "32", "--heads", "2"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    "A folder of short examples and comparisons: what a user's own data looks like."
    folder = tmp_path_factory.mktemp("corpus")
    examples(folder)
    return folder


def sft_config(corpus, out, **changes):
    return sft.Config(**{**dict(data=str(corpus), out=str(out), steps=6, batch=5, every=2,
                                eval_size=8, prompt_tokens=24, response_tokens=8, device="cpu"),
                         **changes})


def reward_config(corpus, out, **changes):
    return reward.Config(**{**dict(data=str(corpus), out=str(out), steps=6, batch=5, every=2,
                                   eval_size=8, device="cpu"), **changes})


def ppo_config(corpus, out, **changes):
    return ppo.Config(**{**dict(data=str(corpus), out=str(out), steps=6, batch=6, every=2, epochs=2,
                                minibatches=2, device="cpu"), **changes})


@pytest.fixture(scope="session")
def base(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    return sft.train(sft_config(corpus, out, stage="base", steps=20, lr=2e-3, layers=2, channels=32,
                                heads=2, context=40))


@pytest.fixture(scope="session")
def runs(corpus, base, tmp_path_factory):
    "A finished run of each stage, all in one run folder -> {stage: path}."
    out = tmp_path_factory.mktemp("runs")
    return {"sft": sft.train(sft_config(corpus, out, init=str(base))),
            "reward": reward.train(reward_config(corpus, out)),
            "ppo": ppo.train(ppo_config(corpus, out))}


@pytest.fixture(scope="session")
def tokenizer():
    return data.Tokenizer("world", 24, 8)


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logged(path):
    return [{k: v for k, v in row.items() if k not in TIMING} for row in metrics.read(path)]


# ---- losses --------------------------------------------------------------------------------------


def test_sft_loss_counts_response_tokens_only():  # a mean over padding, or over rows
    logp = torch.randn(3, 7, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    value, info = sft.loss(logp, mask)
    torch.testing.assert_close(value, -logp[mask].mean())
    assert info["loss"] == value.item()
    torch.testing.assert_close(sft.loss(logp, mask, tokens=31)[0], -logp[mask].sum() / 31)
    poisoned = torch.where(mask, logp, math.nan).requires_grad_()
    dirty, _ = sft.loss(poisoned, mask)
    dirty.backward()
    assert dirty == value
    torch.testing.assert_close(poisoned.grad, torch.where(mask, -1 / 12, 0.0).double())
    parts = [sft.loss(logp[rows], mask[rows], tokens=12)[0] for rows in torch.arange(3).split(1)]
    torch.testing.assert_close(sum(parts), value)


def test_prompts_are_not_learned_from(base, tokenizer):  # a loss over the prompt, a shift by one
    net, _ = m.load(base, "policy")
    prompt = tokenizer.prompt("Name the red hat.\nAnswer:")
    response = tokenizer.response("The red hat")
    ids, positions, mask = data.join([prompt], [response], tokenizer.pad)
    value, _ = sft.loss(m.logprobs(net, ids, positions), mask)
    with torch.no_grad():
        logits = net.logits(net(ids))[0, len(prompt) - 1:-1]  # what predicts each response token
    expected = nn.functional.cross_entropy(logits, torch.tensor(response))
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)


def test_reward_loss_worked_by_hand():  # a sigmoid for its logarithm, the pair swapped
    zero = torch.zeros(5)
    value, info = reward.loss(zero, zero)
    assert value.item() == pytest.approx(math.log(2)) and info == {"accuracy": 0.0, "margin": 0.0}
    chosen = torch.tensor([2.0, -1.0, 0.5]).double().requires_grad_()
    rejected = torch.tensor([0.0, 1.0, 0.0]).double().requires_grad_()
    value, info = reward.loss(chosen, rejected)
    margin = (chosen - rejected).tolist()
    assert value.item() == pytest.approx(sum(math.log(1 + math.exp(-x)) for x in margin) / 3)
    assert info["accuracy"] == pytest.approx(2 / 3) and info["margin"] == pytest.approx(0.5 / 3)
    value.backward()
    expected = torch.tensor([-1 / (1 + math.exp(x)) / 3 for x in margin]).double()
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)
    assert reward.loss(rejected, chosen)[1]["margin"] == -info["margin"]
    torch.testing.assert_close(reward.loss(chosen + 7, rejected + 7)[0], value)
    assert torch.isfinite(reward.loss(torch.tensor([-1e4]), torch.tensor([1e4]))[0])  # log of 0


FUSED = """
import sys
sys.modules["triton"] = None  # as if it were not installed: importing it is an error
from types import SimpleNamespace
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
import data, model as m, ppo, reward, sft

device, masks, sdpa = m.device("auto"), [], torch.nn.functional.scaled_dot_product_attention
def attention(*args, attn_mask=None, **more):
    masks.append(attn_mask is not None)
    return sdpa(*args, attn_mask=attn_mask, **more)
torch.nn.functional.scaled_dot_product_attention = attention

torch.manual_seed(0)
policy = m.settle(m.Transformer(m.ModelConfig(vocab_size=31, channels=64, hidden=32)), device)
prompts, responses = [[1, 2, 3], [4, 5]], [[6, 7, 8, 0], [9, 0]]
batch = [t.to(device) for t in data.join(prompts, responses, 31)]
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # anything else is an error
    sft.loss(m.logprobs(policy, *batch[:2]), batch[2])[0].backward()
    config, scorer = ppo.Config(batch=2, minibatches=1), m.scalar_from(policy)
    value = ppo.value_network(config, policy, scorer)
    fixed, _ = ppo.experience(config, policy, value, m.fixed(policy), m.fixed(scorer), prompts,
                              responses, 0.1, SimpleNamespace(pad=31, response_tokens=4))
    optimizer = m.adamw(torch.nn.ModuleList([policy, value]), 1e-5)
    ppo.update(config, policy, value, optimizer, fixed, torch.Generator())
assert len(masks) > 20 and not any(masks), masks  # with a mask, a GPU's flash kernel refuses
with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
    ids, segment, last = data.join_groups(prompts, [responses, responses], 31)
    scores = scorer(ids.to(device), segment=segment.to(device))[last].view(-1, 2)
    reward.loss(*scores.unbind(1))[0].backward()
print(sorted(name for name in sys.modules if name.startswith("triton")))
"""


def test_training_attends_in_fused_kernels_without_triton():  # a mask where rows are right-padded
    run = subprocess.run([sys.executable, "-c", FUSED], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "['triton']\n"


def scorer_of(path, seed=0):
    torch.manual_seed(seed)
    return m.scalar_from(m.load(path, "policy")[0])


def test_scores_are_read_at_the_last_response_token(base, tokenizer):  # at padding, or before EOS
    net, eos = scorer_of(base), tokenizer.eos
    rows = [([1, 2, 3], [4, 5, 6, 7, eos]), ([8, 9], [eos])]
    ids, positions, mask = data.join(*zip(*rows), tokenizer.pad)
    with torch.no_grad():
        found = reward.score(net, ids, positions, mask)
        alone = torch.stack([net(torch.tensor([p + r]))[0, -1] for p, r in rows])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
    wide = nn.functional.pad(ids, (0, 4), value=tokenizer.pad)
    far = nn.functional.pad(positions, (0, 3), value=0), nn.functional.pad(mask, (0, 3))
    with torch.no_grad():
        torch.testing.assert_close(reward.score(net, wide, *far), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_lm_loss_is_the_sft_loss_of_the_first_responses(tied):  # a later one, a shifted one, the
    # reward model's own embedding for the policy's output matrix, padding that counts
    torch.manual_seed(0)
    config = m.ModelConfig(vocab_size=11, context=20, layers=2, heads=2, kv_heads=2, channels=16,
                           hidden=8, tied=tied)
    policy, model = m.Transformer(config).double(), m.ScalarModel(config).double()
    for p in (*policy.parameters(), *model.parameters()):
        p.data.normal_(std=0.5)
    prompts, groups = [[1, 2, 3], [4]], [[[5, 6, 7, 8], [9, 1]], [[2, 3], [6, 6, 6], [1, 2]]]
    ids, segment, _ = data.join_groups(prompts, groups, 11)
    found = reward.lm_loss(policy, ids, segment, model.trunk(ids, segment=segment))
    for b, (prompt, group) in enumerate(zip(prompts, groups)):
        row, positions, is_response = data.join([prompt], [group[0]], 11)
        logits = policy.logits(model.trunk(row))[0, len(prompt) - 1:-1]
        expected = nn.functional.cross_entropy(logits, torch.tensor(group[0]))
        torch.testing.assert_close(found[b], expected)


def test_a_reward_function_keeps_the_order_of_its_rows(base, tokenizer):  # sorted by length, lost
    net = scorer_of(base)
    prompts = [[1, 2, 3][:1 + i % 3] for i in range(7)] + [[4, 5]] * 5 + [[1]] * 2
    responses = [list(range(3, 9 - i % 5)) + [tokenizer.eos] for i in range(14)]
    alone = torch.cat([reward.score(net, *data.join([p], [r], tokenizer.pad))
                       for p, r in zip(prompts, responses)]).detach()
    assert len(set(alone.tolist())) > 5
    for batch in (1, 4, 128):
        fn = reward.reward_fn(net, tokenizer.pad, batch)
        torch.testing.assert_close(fn(prompts, responses), alone, atol=1e-5, rtol=0)


def test_normalised_references_have_mean_0_and_std_1(base, corpus, tokenizer):
    # scale before shift, a second call that forgets the first, or all the model's weights moved
    net, examples = scorer_of(base), data.load(corpus, "train")
    score_texts = reward.text_scorer(reward.reward_fn(net, tokenizer.pad), tokenizer)
    texts = [e.prompt for e in examples], [e.response for e in examples]
    raw = score_texts(*texts)
    for _ in range(2):
        reward.normalise(net, score_texts, *texts)
        scores = score_texts(*texts)
        assert abs(scores.mean()) < 1e-5 and scores.std(ddof=1) == pytest.approx(1, abs=1e-5)
        net.head.bias.data += 0.7  # for the second time: now with a scale that is not 1
        net.head.weight.data *= 1.3
    assert ((raw - raw.mean()) / raw.std(ddof=1)) == pytest.approx(scores, abs=1e-4)


def test_finished_reward_models_are_normalised(runs, corpus, tokenizer):  # normalised, not saved
    net, record = m.load(runs["reward"], "reward")
    rows = data.comparisons(corpus, "train")  # no references among the data: the chosen ones
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    score_texts = reward.text_scorer(reward.reward_fn(net, tokenizer.pad), tokenizer)
    scores = score_texts([r.prompt for r in rows], [r.chosen for r in rows])
    assert abs(scores.mean()) < 1e-4 and scores.std(ddof=1) == pytest.approx(1, abs=1e-4)


def test_a_reward_model_learns_preferences(base, tmp_path):  # a loss or a read-out that is wrong
    rows = [{"prompt": f"Say something about {i}:", "chosen": "good" + " so" * (i % 3),
             "rejected": "bad" + " so" * ((i + 1) % 3)} for i in range(60)]
    metrics.write(tmp_path / "comparisons.train.jsonl", rows[:40])
    metrics.write(tmp_path / "comparisons.validation.jsonl", rows[40:])
    path = reward.train(reward_config(tmp_path, tmp_path / "out", init=str(base), steps=40,
                                      batch=10, lr=3e-3, every=40, eval_size=20))
    assert metrics.read(path.with_suffix(".jsonl"))[-1]["validation_accuracy"] > 0.9


def test_parts_of_a_batch_add_up_in_training(corpus, base, runs, tmp_path, monkeypatch):
    # a mean of means in sft.py or reward.py: with SGD, what is left of a step is its gradient
    monkeypatch.setattr(m, "adamw", lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr))
    for stage, config, init in ((sft, sft_config, base), (reward, reward_config, runs["sft"])):
        found = [weights(stage.train(config(corpus, tmp_path / f"{stage.__name__}-{micro}", steps=2,
                                            init=str(init), lr=0.5, micro=micro)))
                 for micro in (0, 1, 2, 4)]
        start = weights(init)
        assert any(not torch.equal(x, start[name.removeprefix("trunk.")])
                   for name, x in found[0].items() if name.removeprefix("trunk.") in start)
        for other in found[1:]:
            for name in other:
                torch.testing.assert_close(other[name], found[0][name], atol=2e-5, rtol=1e-4)


# ---- collecting comparisons ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def collected(base):
    policy, _ = m.load(base, "policy")
    torch.manual_seed(0)  # a fresh one: the world's prompts are longer than the base's 40 tokens
    policy = m.Transformer(dataclasses.replace(policy.config, context=320, layers=1))
    tokenizer = data.Tokenizer("world", 224, 6)
    original = world.edits
    with pytest.MonkeyPatch.context() as patch:  # both are too rare to be met by chance
        patch.setattr(world, "leaks", leaks)
        patch.setattr(world, "edits", lambda rng, prompt, response, n: [
            *original(rng, prompt, response, n)[:2], (response, response)])
        return {name: (collect.collect(reward.Config(data=name, sampled=0.5),
                                       reward.text_sampler(policy, tokenizer), "train", 60),
                       {e.prompt for e in data.load(name, "train", 60, seed=1)})
                for name in data.WORLD}


def leaks(text):
    return len(text) % 5 == 0


@pytest.mark.parametrize("name", data.WORLD)
def test_collected_comparisons(collected, name):  # equal texts, held-out facts, one source only
    rows, prompts = collected[name]
    kinds = {of: [r for r in rows if r.meta["of"] == of] for of in ("edits", "samples")}
    assert rows == kinds["edits"] + kinds["samples"] and {r.prompt for r in rows} <= prompts
    assert 20 < len(kinds["edits"]) <= 2 * 30 and 60 < len(kinds["samples"]) <= 6 * 30
    of_one = {p: [r for r in kinds["edits"] if r.prompt == p] for p in prompts}
    for found in of_one.values():  # the reference, beside each of its edits
        assert len(found) < 2 or {found[0].chosen, found[0].rejected} & {
            found[1].chosen, found[1].rejected}
    for r in rows:
        assert r.chosen != r.rejected and not leaks(r.chosen) and not leaks(r.rejected)


def test_a_language_model_as_annotator(runs, corpus, tmp_path, monkeypatch):
    # the folder's own comparisons read all the same; asked again when a run goes on
    asked = []
    words = judge.by_score(lambda prompts, texts: asked.extend(texts) or [len(t) for t in texts])
    monkeypatch.setattr(judge, "llm", lambda name, cache: words)
    config = reward_config(corpus, tmp_path, init=str(runs["sft"]), annotator="a-model")
    folder = reward.train(config).parent
    rows = metrics.read(folder / "comparisons.jsonl")
    assert {r["split"] for r in rows} == {"train", "validation"} and asked
    assert all(len(r["chosen"]) > len(r["rejected"]) for r in rows)
    asked.clear()
    with pytest.raises(ValueError, match="finished"):
        reward.train(dataclasses.replace(config, resume=True))
    assert not asked


def test_accuracy_of_a_score():  # ties that win, a pair taken apart, no number that loses silently
    rows, seen = [("p", "aaa", "b"), ("q", "a", "bb"), ("r", "a", "c")], []
    length = lambda prompts, texts: seen.extend(zip(prompts, texts)) or [len(t) for t in texts]
    assert collect.accuracy(length, rows) == 0.5
    assert seen == [(p, text) for p, *pair in rows for text in pair]
    assert collect.agreement(lambda prompts, texts: [t == "bb" for t in texts], rows) == {
        "pairs": 3, "gold": pytest.approx(1 / 3), "length": 0.5}
    for score, some in ((length, []), (lambda prompts, texts: [math.nan] * len(texts), rows)):
        with pytest.raises(ValueError):
            collect.accuracy(score, some)


@pytest.mark.parametrize("name", data.WORLD)
def test_the_truth_orders_everything_as_itself(name):  # better for worse, a pair's own prompt
    responses = {e.prompt: e.response for e in data.load(name, "id", 40, seed=2)}
    sample = lambda prompts, temperature, n, seed: [["Thanks.", responses[p]] for p in prompts]
    truth = lambda prompts, texts: [world.gold(p, t) for p, t in zip(prompts, texts)]
    found = collect.quality(truth, sample, name, "id", 40)
    assert found["pairs"] > 20 and found["gold"] == 1 and found["length"] > 0.8
    assert found["wrong_fact"] > 0.9 > found["wrong_fact_permuted"]


def test_comparisons_of_a_prompt_share_a_step(collected):  # split up, out of order, one lost
    rows, _ = collected["summarise"]
    config = reward.Config(steps=40, batch=3)
    steps = list(reward.stream(config, rows))
    assert len(steps) == 40 and all(len(groups) == 3 for groups in steps)
    kinds = [{r.meta["of"] for group in groups for r in group} for groups in steps]
    assert all(len(of) == 1 for of in kinds)
    order = [of.pop() for of in kinds]
    share = len({r.prompt for r in rows if r.meta["of"] == "edits"}) / len({
        (r.prompt, r.meta["of"]) for r in rows})
    assert order == ["edits"] * round(40 * share) + ["samples"] * (40 - round(40 * share))
    whole = {}
    for r in rows:
        whole.setdefault((r.prompt, r.meta["of"]), []).append(r)
    seen = {repr(group) for groups in steps for group in groups}
    assert seen <= set(map(repr, whole.values())) and len(seen) > 0.8 * len(whole)


@pytest.mark.parametrize("lm", [0, 0.7])
def test_a_response_scored_once_is_scored_right(base, tokenizer, tmp_path, monkeypatch, lm):
    # the score of another response, or of another prompt's, a language-modelling loss of a rejected
    # one: against each pair by itself, with SGD
    rows = [("Say a:", "good", "bad"), ("Say a:", "good", "sad"), ("Say a:", "sad", "bad"),
            ("Say b:", "bad", "good"), ("Say b:", "red", "good")]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]
    metrics.write(tmp_path / "comparisons.train.jsonl", rows)
    metrics.write(tmp_path / "comparisons.validation.jsonl", rows)
    monkeypatch.setattr(m, "adamw", lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr))
    path = reward.train(reward_config(tmp_path, tmp_path / "out", init=str(base), steps=1, batch=2,
                                      lr=0.5, every=1, lm=lm))
    torch.manual_seed(0)
    policy = m.load(base, "policy")[0]
    net = m.scalar_from(policy)
    tokenizer = data.Tokenizer.of(torch.load(base, weights_only=True)["tokenizer"])
    margins = []
    for row in rows:
        pair = [data.join([tokenizer.prompt(row["prompt"])], [tokenizer.response(row[key])],
                          tokenizer.pad) for key in ("chosen", "rejected")]
        margins.append(reward.score(net, *pair[0]) - reward.score(net, *pair[1]))
    written = []  # the loss of the chosen response of each prompt's first comparison
    for row in (rows[0], rows[3]):
        ids, positions, _ = data.join([tokenizer.prompt(row["prompt"])],
                                      [tokenizer.response(row["chosen"])], tokenizer.pad)
        logits = nn.functional.linear(net.trunk(ids), policy.embed.weight.detach())
        logp = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        written.append(-logp.gather(1, positions - 1).mean())
    (-nn.functional.logsigmoid(torch.cat(margins)).mean() + lm * sum(written) / 2).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    trained = weights(path)
    for name, p in net.named_parameters():
        torch.testing.assert_close(trained[name], p.data - 0.5 * p.grad, atol=1e-5, rtol=1e-4)


# ---- what a run leaves behind --------------------------------------------------------------------

FIELDS = {"sft": {"step", "loss", "validation_loss", "lr", "tokens_per_second"},
          "reward": {"step", "loss", "accuracy", "margin", "lm_loss", "validation_accuracy", "lr",
                     "seconds"},
          "ppo": {"step", "score", "proxy", "kl", "kl_k3", "entropy", "length", "ended", "beta",
                  "policy_loss", "value_loss", "ratio_gap", "clip_fraction", "approx_kl",
                  "gradient", "seconds"}}


def test_runs_write_what_they_say(runs, corpus):  # a file or a field that the README names missing
    folder = runs["ppo"].parent
    assert folder.name == corpus.name
    for stage, path in runs.items():
        assert path == folder / f"{stage}.pt"
        rows = metrics.read(folder / f"{stage}.jsonl")
        assert all(FIELDS[stage] <= row.keys() for row in rows), FIELDS[stage] - rows[0].keys()
        assert [row["step"] for row in rows] == list(range(1, 7) if stage == "ppo" else (2, 4, 6))
        meta = json.loads((folder / f"{stage}.json").read_text())
        assert meta["stage"] == stage and meta["step"] == 6 and meta["finished"] is True
        assert (folder / f"{stage}.png").read_bytes().startswith(b"\x89PNG")
        assert meta["config"]["steps"] == 6 and meta["parent"] and meta["seed"] == 0
    shown = (folder / "samples.txt").read_text()
    for name in ("sft", "rlhf", "reference"):
        assert len(re.findall(rf"^ +{name} ", shown, re.M)) == 4
    assert not list(folder.glob(".*.tmp")) and not list(folder.glob("*.tmp"))


def test_parents_are_named_by_digest(runs, base):  # a lineage that cannot be checked
    records = {stage: torch.load(path, weights_only=True) for stage, path in runs.items()}
    assert records["sft"]["meta"]["parent"] == torch.load(base, weights_only=True)["digest"]
    for stage in ("reward", "ppo"):
        assert records[stage]["meta"]["parent"] == records["sft"]["digest"]
        assert records[stage]["tokenizer"] == records["sft"]["tokenizer"]


def test_earlier_stages_are_left_alone(corpus, base, tmp_path, monkeypatch):
    # the reference or the reward model in the optimiser, or sharing weights with what trains
    sft_path = sft.train(sft_config(corpus, tmp_path, init=str(base), freeze=0.5))
    reward_path = reward.train(reward_config(corpus, tmp_path, freeze=0.5))
    files = {path: path.read_bytes() for path in (sft_path, reward_path, base)}
    seen, original = {}, ppo.experience

    def spy(config, policy, value, reference, reward_fn, *rest):
        now = {"reference": reference, "reward": reward_fn}
        if not seen:
            seen.update({name: copy.deepcopy(net.state_dict()) for name, net in now.items()})
        for name, net in now.items():
            assert same(net.state_dict(), seen[name]), name
        return original(config, policy, value, reference, reward_fn, *rest)
    monkeypatch.setattr(ppo, "experience", spy)
    for freeze in (0.0, 0.5):
        path = ppo.train(ppo_config(corpus, tmp_path, freeze=freeze, lr=1e-2))
        now, before = weights(path), weights(sft_path)
        moved = {name for name in now if not torch.equal(now[name], before[name])}
        frozen = {name for name in now if name.startswith(("embed", "blocks.0."))}
        assert moved == now.keys() - (frozen if freeze else set())
        seen.clear()
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_frozen_layers_stay_in_training(stage, corpus, base, runs, tmp_path):  # a moved embedding
    init = base if stage == "sft" else runs["sft"]
    module, config = {"sft": (sft, sft_config), "reward": (reward, reward_config)}[stage]
    path = module.train(config(corpus, tmp_path, init=str(init), freeze=0.5, lr=1e-2))
    now = {name.removeprefix("trunk."): x for name, x in weights(path).items()}
    before = weights(init)
    for name, x in before.items():
        assert torch.equal(now[name], x) == name.startswith(("embed", "blocks.0.")), name


def test_adaptive_beta_moves_once_an_iteration(corpus, runs, tmp_path):  # or per step, or never
    init = {"init": str(runs["sft"]), "reward": str(runs["reward"])}
    path = ppo.train(ppo_config(corpus, tmp_path, target_kl=0.05, lr=5e-3, **init))
    rows = metrics.read(path.with_suffix(".jsonl"))
    assert rows[0]["beta"] == ppo.Config().beta and len({row["beta"] for row in rows}) > 3
    for row, after in zip(rows, rows[1:]):
        assert after["beta"] == ppo.adapted(row["beta"], row["kl"], 0.05, 6)
    assert torch.load(path, weights_only=True)["state"]["beta"] != rows[-1]["beta"]


# ---- seeds and resuming --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def frozen(corpus, base, tmp_path_factory):
    "SFT and reward model that share the bottom half of the base."
    out = tmp_path_factory.mktemp("frozen")
    return {"sft": sft.train(sft_config(corpus, out, init=str(base), freeze=0.5)),
            "reward": reward.train(reward_config(corpus, out, freeze=0.5))}


def run_stage(which, corpus, base, runs, out, **changes):
    chain = {"init": str(base if which == "sft" else runs["sft"])}
    if which == "ppo":
        chain["reward"] = str(runs["reward"])
    module, config = {"sft": (sft, sft_config), "reward": (reward, reward_config),
                      "ppo": (ppo, ppo_config)}[which]
    return module.train(config(corpus, out, **{**chain, **changes}))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_seeds(stage, corpus, base, runs, tmp_path, monkeypatch):  # a seed that is ignored, or time
    monkeypatch.setattr(metrics, "curve", lambda *args: None)
    first = run_stage(stage, corpus, base, runs, tmp_path / "a")
    second = run_stage(stage, corpus, base, runs, tmp_path / "b")
    assert same(weights(first), weights(second))
    assert logged(first.with_suffix(".jsonl")) == logged(second.with_suffix(".jsonl"))
    other = run_stage(stage, corpus, base, runs, tmp_path / "c", seed=7)
    assert other.parent.name == "seed-7" and not same(weights(first), weights(other))
    assert logged(first.with_suffix(".jsonl")) != logged(other.with_suffix(".jsonl"))


def interrupt_after(monkeypatch, steps):
    "Ctrl-C during this optimiser step: what `stop_signal` returns is no longer empty after it."
    asked, count, original = [], [], nn.utils.clip_grad_norm_

    def counting(*args, **kwargs):
        count.append(1)
        if len(count) == steps:
            asked.append(signal.SIGINT)
        return original(*args, **kwargs)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", counting)
    monkeypatch.setattr(metrics, "stop_signal", lambda: asked)


@pytest.mark.parametrize("stage, changes, after", [
    ("sft", {}, 3), ("sft", {"freeze": 0.5, "micro": 2}, 2), ("reward", {}, 2), ("reward", {}, 3),
    ("ppo", {}, 3), ("ppo", {"target_kl": 0.05, "value": "shared", "freeze": 0.5, "lr": 5e-3}, 2),
    ("ppo", {"freeze": 0.5}, 3), ("base", {}, 2)])
def test_resumed_is_uninterrupted(stage, changes, after, corpus, base, runs, frozen, tmp_path,
                                  monkeypatch):
    # a schedule that starts again, an optimiser, generator, beta or data cursor not restored
    monkeypatch.setattr(metrics, "curve", lambda *args: None)  # drawing takes most of the time
    if stage == "base":
        stage, changes = "sft", {"stage": "base", "layers": 1, "channels": 32, "heads": 2}
    chain = frozen if "freeze" in changes else runs
    whole = run_stage(stage, corpus, base, chain, tmp_path / "whole", **changes)
    per_step = 4 if stage == "ppo" else 1  # epochs times minibatches
    with monkeypatch.context() as patch:
        interrupt_after(patch, after * per_step)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage, corpus, base, chain, tmp_path / "parts", **changes)
    path = next((tmp_path / "parts").rglob(whole.name))
    meta = torch.load(path, weights_only=True)["meta"]
    assert meta["step"] == after and not meta["finished"]
    resumed = run_stage(stage, corpus, base, chain, tmp_path / "parts", resume=True, **changes)
    assert resumed == path and same(weights(path), weights(whole))
    assert logged(path.with_suffix(".jsonl")) == logged(whole.with_suffix(".jsonl"))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_resuming_what_cannot_be(stage, corpus, base, runs, tmp_path):
    # a traceback from a variable that only the loop sets, or a good file replaced by a longer run
    path = run_stage(stage, corpus, base, runs, tmp_path)
    files = {p: p.read_bytes() for p in path.parent.iterdir()}
    for changes in ({}, {"steps": 9}, {"lr": 1e-5}):
        with pytest.raises(ValueError, match="resume"):
            run_stage(stage, corpus, base, runs, tmp_path, resume=True, **changes)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == files
    with pytest.raises((ValueError, OSError), match="does not exist"):
        run_stage(stage, corpus, base, runs, tmp_path / "elsewhere", resume=True)


def test_an_interrupted_run_is_no_parent(corpus, base, runs, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # a reward model of half an SFT, without a word
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run_stage("sft", corpus, base, runs, tmp_path)
    with pytest.raises(ValueError, match="interrupted.*--resume"):
        reward.train(reward_config(corpus, tmp_path))


def test_resuming_from_scratch(corpus, tmp_path, monkeypatch):
    # an interrupted pretraining that no command goes on with, or a finished one done again
    def run(resume, out):
        return sft.train(sft_config(corpus, tmp_path / out, init="scratch", base_steps=3, layers=1,
                                    channels=32, heads=2, resume=resume))
    whole = run(False, "whole")
    for after in (2, 3 + 4):  # while it pretrains, and while it fine-tunes
        with monkeypatch.context() as patch:
            interrupt_after(patch, after)
            with pytest.raises(KeyboardInterrupt):
                run(False, f"parts-{after}")
        assert same(weights(run(True, f"parts-{after}")), weights(whole))


# ---- best of n -----------------------------------------------------------------------------------


def bon_config(corpus, out, runs, **changes):
    return bon.Config(**{**dict(data=str(corpus), out=str(out), init=str(runs["sft"]), n=4, pool=6,
                                reward=str(runs["reward"]), prompts=5, device="cpu"), **changes})


def test_best_of_n_of_a_run(corpus, runs, tokenizer, tmp_path):  # a neighbour's best, another text
    path = bon.train(bon_config(corpus, tmp_path, runs))
    scorer, _ = m.load(runs["reward"], "reward")
    fn, rows = reward.reward_fn(scorer, tokenizer.pad), metrics.read(path)
    assert path.name == "bon4.jsonl" and len(rows) == 5
    policy, _ = m.load(runs["sft"], "policy")
    prompts = [tokenizer.prompt(row["prompt"]) for row in rows]
    pool = m.generate(policy, prompts, 8, 0.7, 6, seed=0)  # fewer prompts than a block: one call
    for k, (row, prompt) in enumerate(zip(rows, prompts)):
        first = pool[6 * k:6 * k + 4]
        scores = fn([prompt] * 4, first)
        assert row["scores"] == pytest.approx([scores.max().item()], abs=1e-5)
        assert row["outputs"] == [tokenizer.decode(first[int(scores.argmax())]).strip()]
    curve = metrics.read(path.with_name("bon.jsonl"))
    assert [row["n"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert all(a["proxy"] <= b["proxy"] + 1e-9 for a, b in zip(curve, curve[1:]))
    assert curve[0]["kl"] != 0  # a temperature of .7 is another policy, even without a choice
    plain = metrics.read(bon.train(bon_config(corpus, tmp_path / "b", runs, temperature=1.0)
                                   ).with_name("bon.jsonl"))
    assert [row["kl"] for row in plain] == pytest.approx([bon.kl_bound(n) for n in range(1, 7)])
    before = path.read_bytes()
    assert bon.train(bon_config(corpus, tmp_path, runs)).read_bytes() == before


def test_a_diverse_choice_of_a_run(corpus, runs, tokenizer, tmp_path, capsys):  # one answer, the
    # best without regard to the others, samples without min-p
    config = bon_config(corpus, tmp_path, runs, pool=12, diverse=3, min_p=0.2, temperature=1.5)
    path = bon.train(config)
    scorer, _ = m.load(runs["reward"], "reward")
    policy, _ = m.load(runs["sft"], "policy")
    fn, rows = reward.reward_fn(scorer, tokenizer.pad), metrics.read(path)
    assert path.name == "diverse3.jsonl" and len(rows) == 5
    prompts = [tokenizer.prompt(row["prompt"]) for row in rows]
    pool = m.generate(policy, prompts, 8, 1.5, 12, seed=0, min_p=0.2)
    for k, (row, prompt) in enumerate(zip(rows, prompts)):
        mine = pool[12 * k:12 * k + 12]
        scores, texts = fn([prompt] * 12, mine).numpy(), [tokenizer.decode(r).strip() for r in mine]
        places = bon.diverse_bests(scores, bon.overlaps(texts), 3)
        assert row["outputs"] == [texts[p] for p in places]
        assert row["scores"] == pytest.approx(scores[places].tolist(), abs=1e-5)
    assert "kl" not in metrics.read(path.with_name("bon.jsonl"))[0]  # of what is cut none is known
    assert "bon: any 3 -> chosen of 12, proxy" in capsys.readouterr().out
    assert bon.Config(diverse=8).pool == 64 and bon.Config(n=20, diverse=2).pool == 20


def test_loglikelihood_of_whole_responses(runs, tokenizer):  # padding counted, rows in sorted
    # order, a response predicted from the end of the one before it
    policy, _ = m.load(runs["sft"], "policy")
    prompts = [tokenizer.prompt(f"Name the {x}.\nAnswer:")
               for x in ("red hat", "boat", "boat", "boat", "big cake", "big cake")]
    responses = [tokenizer.response(x) for x in (
        "The red hat it is", "No", "", "A big boat", "", "The cake is a cake")]
    for temperature in (1.0, 0.5):
        found = bon.loglikelihood(policy, prompts, responses, temperature, tokenizer.pad)
        for value, p, r in zip(found, prompts, responses):
            with torch.no_grad():
                logits = policy.logits(policy(torch.tensor([p + r])))[0, len(p) - 1:-1]
            logp = (logits / temperature).log_softmax(-1)
            expected = logp.gather(1, torch.tensor(r)[:, None]).sum().item()
            assert value == pytest.approx(expected, abs=1e-4)
    assert (bon.loglikelihood(policy, prompts, responses, 0, tokenizer.pad) == 0).all()


# ---- rewards of other kinds ----------------------------------------------------------------------


def test_custom_reward_files(corpus, runs, tmp_path):  # other texts, or the file not used
    file = tmp_path / "mine.py"
    file.write_text("import torch\ndef reward_fn(prompt_ids, response_ids):\n"
                    "    assert all(isinstance(i, int) for p in prompt_ids for i in p)\n"
                    "    return torch.tensor([-float(len(r)) for r in response_ids])\n")
    path = ppo.train(ppo_config(corpus, tmp_path, init=str(runs["sft"]), reward=str(file),
                                value="shared"))
    rows = metrics.read(path.with_suffix(".jsonl"))
    assert all(row["proxy"] == pytest.approx(-row["length"]) for row in rows)
    given = ppo.train(ppo_config(corpus, tmp_path / "b", init=str(runs["sft"]), value="shared"),
                      lambda p, r: torch.tensor([-float(len(x)) for x in r]))
    assert logged(given.with_suffix(".jsonl")) == logged(path.with_suffix(".jsonl"))
    with pytest.raises(ValueError, match="--value shared"):  # nothing to copy a value network from
        ppo.train(ppo_config(corpus, tmp_path, init=str(runs["sft"]), reward=str(file)))
    file.write_text("def other(): pass\n")
    with pytest.raises(ValueError, match="reward_fn"):
        ppo.train(ppo_config(corpus, tmp_path, init=str(runs["sft"]), reward=str(file),
                             value="shared"))


def test_gold_is_the_worlds_score(tokenizer):  # EOS or a leading space in what is judged
    tokenizer = data.Tokenizer()
    examples = data.load("summarise", "train", 5) + data.load("instruct", "train", 5)
    fn = ppo.gold_reward(world.gold, tokenizer)
    found = fn([tokenizer.prompt(e.prompt) for e in examples],
               [tokenizer.response(e.response) for e in examples])
    expected = [world.gold(e.prompt, e.response) for e in examples]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="only the embedded world"):
        ppo.gold_reward(None, tokenizer)


# ---- mistakes ------------------------------------------------------------------------------------


def mistake(capsys, module, *argv):
    "Run a stage's command line that must fail: exit code 2 and one sentence -> that sentence."
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        metrics.cli(module.Config, module.train, list(map(str, argv)))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if "it/s" not in line and "/step" not in line]
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize("module", [sft, reward, ppo])
@pytest.mark.parametrize("argv, words", [
    (["--nonsense", "1"], "--nonsense"), (["--ste", "3"], "--steps"), (["--batch", "0"], "--batch"),
    (["--lr", "-1"], "--lr"), (["--steps", "many"], "--steps"), (["--freeze", "1.5"], "--freeze"),
    (["--lr", "nan"], "--lr"), (["--data", "no_such_folder"], ""), (["--init", "no.pt"], "no.pt")])
def test_impossible_flags(module, argv, words, capsys, tmp_path):  # a traceback, a silent default
    if "--out" not in argv:
        argv = [*argv, "--out", tmp_path / "out"]
    assert words in mistake(capsys, module, *argv)
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("argv, words", [
    (["--beta", "-1"], "--beta"), (["--kl", "k9"], "k1"), (["--minibatches", "65"], "--batch"),
    (["--temperature", "0"], "--temperature"), (["--lam", "1.1"], "--lam")])
def test_impossible_flags_of_ppo(argv, words, capsys, tmp_path):  # a bound forgotten
    assert words in mistake(capsys, ppo, *argv, "--out", tmp_path)


@pytest.mark.parametrize("argv, words", [
    (["--n", "0"], "--n"), (["--pool", "3"], "--pool"), (["--temperature", "-1"], "--temperature"),
    (["--prompts", "0"], "--prompts"), (["--init", "no.pt"], "python sft.py")])
def test_impossible_flags_of_bon(argv, words, capsys, tmp_path):  # a best of nothing
    assert words in mistake(capsys, bon, *argv, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_wrong_and_damaged_checkpoints(corpus, runs, base, capsys, tmp_path):
    # training on what is not there, on the wrong kind, or over something good
    common = ["--data", corpus, "--out", tmp_path, "--device", "cpu"]
    assert "python sft.py" in mistake(capsys, reward, *common)
    assert "python sft.py" in mistake(capsys, ppo, *common)
    found = mistake(capsys, ppo, *common, "--init", runs["sft"])
    assert "reward.pt" in found and "python reward.py" in found
    assert "not a policy" in mistake(capsys, ppo, *common, "--init", runs["reward"])
    assert "not a policy" in mistake(capsys, sft, *common, "--init", runs["reward"])
    assert "not a reward" in mistake(capsys, ppo, *common, "--init", runs["sft"],
                                     "--reward", runs["sft"])
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(runs["sft"].read_bytes()[:-5000])
    assert "damaged" in mistake(capsys, reward, *common, "--init", damaged)
    record = torch.load(runs["reward"], weights_only=True)
    record["tokenizer"]["fingerprint"] = "0" * 16
    record["digest"] = m.digest(record)
    torch.save(record, tmp_path / "other.pt")
    assert "tokenizer" in mistake(capsys, ppo, *common, "--init", runs["sft"],
                                  "--reward", tmp_path / "other.pt")
    # of another base: the frozen layers differ
    assert "--freeze" in mistake(capsys, ppo, *common, "--init", base, "--reward", runs["reward"],
                                 "--freeze", ".5")
    assert "abacus" in mistake(capsys, sft, *common[:4], "--init", base, "--device", "abacus",
                               "--prompt-tokens", "24", "--response-tokens", "8")
    assert {p.name for p in tmp_path.rglob("*.pt")} == {"damaged.pt", "other.pt"}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_mistakes_leave_an_earlier_run_alone(stage, corpus, base, runs, capsys, tmp_path):
    # a log emptied, or a checkpoint replaced, before the mistake is found
    path = run_stage(stage, corpus, base, runs, tmp_path)
    files = {p: p.read_bytes() for p in path.parent.iterdir()}
    module = {"sft": sft, "reward": reward, "ppo": ppo}[stage]
    common = ["--data", corpus, "--out", tmp_path, "--device", "cpu"]
    mistake(capsys, module, *common, "--init", tmp_path / "missing.pt")
    mistake(capsys, module, *common, "--init", runs["reward"])
    if stage == "ppo":
        mistake(capsys, module, *common, "--init", runs["sft"], "--reward", tmp_path / "missing.pt")
        mistake(capsys, module, *common, "--init", runs["sft"], "--reward", "gold")
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == files
    damaged = files[path][:-3000]
    path.write_bytes(damaged)  # --resume from something broken
    chain = ["--init", base if stage == "sft" else runs["sft"]]
    chain += ["--reward", runs["reward"]] if stage == "ppo" else []
    mistake(capsys, module, *common, *chain, "--resume")
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == {**files, path: damaged}


@pytest.mark.parametrize("line, words", [
    ("{\"prompt\": \"a\"", "not JSON"), ("{\"prompt\": 3, \"response\": \"x\"}", "prompt"),
    ("{\"prompt\": \"  \", \"response\": \"x\"}", "empty"), ("{\"prompt\": \"a\"}", "response")])
def test_bad_rows_are_named(line, words, base, capsys, tmp_path):  # a row skipped
    good = json.dumps({"prompt": "a b c", "response": "d"})
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    found = mistake(capsys, sft, "--data", tmp_path, "--init", base, "--out", tmp_path / "out",
                    "--prompt-tokens", "24", "--response-tokens", "8")
    assert "line 2" in found and words in found
    assert not list((tmp_path / "out").rglob("*.pt"))


# ---- the commands themselves ---------------------------------------------------------------------


def command(folder, *argv, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRACEBACK": ""}
    return subprocess.run([sys.executable, str(ROOT / argv[0]), *map(str, argv[1:])], cwd=folder,
                          env=environment, capture_output=True, text=True, timeout=600, **more)


def test_mistakes_of_the_commands(tmp_path):  # `__main__` without the cli around it
    done = command(tmp_path, "ppo.py", "--batch", "0")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --batch 0") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", data.WORLD)
def test_the_three_commands(name, tmp_path):  # the order, the defaults and the chain of the README
    scratch = [] if sft.BASE.exists() else ["--init", "scratch", "--base-steps", 2, *SMALL]
    following = {"sft": "reward", "reward": "ppo"}
    for stage, more in (("sft", scratch), ("reward", ["--eval-size", 40]), ("ppo", [])):
        done = command(tmp_path, f"{stage}.py", "--data", name, "--steps", 3, "--batch", 8,
                       "--every", 2, *more)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "out" / name
        if stage in following:
            assert f"next: python {following[stage]}.py --data {name}" in done.stdout
        for suffix in (".pt", ".jsonl", ".json", ".png"):
            assert (folder / f"{stage}{suffix}").stat().st_size > 0
        rows = metrics.read(folder / f"{stage}.jsonl")
        assert rows[-1]["step"] == 3 and all(FIELDS[stage] <= row.keys() for row in rows)
        assert all(math.isfinite(v) for row in rows for v in row.values())
    assert "gold" in rows[0]
    assert (folder / "samples.txt").read_text() in done.stdout
    done = command(tmp_path, "ppo.py", "--data", name, "--steps", 2, "--batch", 8, "--reward",
                   "gold", "--value", "shared", "--freeze", "0.5")
    assert done.returncode == 0, done.stderr
    assert all(row["gold"] == pytest.approx(row["proxy"], abs=1e-4)
               for row in metrics.read(folder / "ppo.jsonl"))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole group")
def test_ctrl_c(corpus, base, tmp_path):  # no save, no exit code 130, or no word on how to go on
    argv = ["sft.py", "--data", corpus, "--init", base, "--steps", 100_000, "--batch", 5,
            "--every", 100_000, "--eval-size", 4, "--prompt-tokens", 24, "--response-tokens", 8]
    process = subprocess.Popen([sys.executable, str(ROOT / "sft.py"), *map(str, argv[1:])],
                               cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = tmp_path / "out" / corpus.name / "sft.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.2)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert b"--resume" in out and b"Traceback" not in error
    meta = torch.load(log.with_suffix(".pt"), weights_only=True)["meta"]
    assert meta["step"] > 0 and not meta["finished"] and metrics.read(log) == []
