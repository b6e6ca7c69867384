"""
What the three stages promise, from their losses to whole runs. Runs here are tiny (a base of one
layer and 32 channels, a few steps) and read a small file of examples, so that the fast part takes
seconds; runs of the commands themselves on the embedded world are marked slow.
After each test's name stands the bug that turns it red.
"""

import copy
import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import bon
import data
import model as m
import ppo
import reward
import sft
from data import (
    checkpoint,
    collect,
    files,
    gpu,
    judge,
    networks,
    optim,
    pools,
    rewards,
    run,
    watch,
    world,
)
from data.run import cli
from tests import chaos

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("quick")
TIMING = {"seconds", "tokens_per_second"}  # of a log on a CPU: what may differ between equal runs
SMALL = dict(layers=1, channels=32, heads=2)


@pytest.fixture(scope="session")
def base(toy):
    return toy / "base/data/base.pt"


@pytest.fixture(scope="session")
def runs(toy):
    "A finished run of each stage -> {stage: path}."
    return {stage: toy / f"whole/{stage}/data/{stage}.pt" for stage in ("sft", "reward", "ppo")}


@pytest.fixture(scope="session")
def tokenizer():
    return data.Tokenizer("world", 24, 8)


def weights(path):
    return torch.load(path, weights_only=True)["weights"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logged(path):
    return [{k: v for k, v in row.items() if k not in TIMING} for row in files.read_log(path)]


# ---- losses --------------------------------------------------------------------------------------


def test_sft_loss_counts_response_tokens_only():  # a mean over padding, or over rows
    logp = torch.randn(3, 7, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 4, 1])[:, None]
    poisoned = torch.where(mask, logp, math.nan).requires_grad_()
    loss, info = sft.loss(poisoned, mask)
    loss.backward()
    torch.testing.assert_close(loss, -logp[mask].mean())
    torch.testing.assert_close(poisoned.grad, torch.where(mask, -1 / 12, 0.0).double())
    assert info["loss"] == loss.item()


def test_reward_loss_worked_by_hand():  # a sigmoid for its logarithm, the pair swapped
    loss, info = reward.loss(torch.zeros(5), torch.zeros(5))
    assert info == {"loss": loss.item(), "accuracy": 0.0, "margin": 0.0}
    chosen = torch.tensor([2.0, -1.0, 0.5]).double().requires_grad_()
    rejected = torch.tensor([0.0, 1.0, 0.0]).double().requires_grad_()
    loss, _ = reward.loss(chosen, rejected)
    loss.backward()
    expected = torch.tensor([-1 / (1 + math.exp(x)) / 3 for x in (chosen - rejected).tolist()])
    torch.testing.assert_close(chosen.grad, expected.double(), atol=1e-7, rtol=0)
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    torch.testing.assert_close(reward.loss(chosen + 7, rejected + 7)[0], loss)
    assert torch.isfinite(reward.loss(torch.tensor([-1e4]), torch.tensor([1e4]))[0])  # log of 0


FUSED = """
import sys
sys.modules["triton"] = None  # as if it were not installed: importing it is an error
from types import SimpleNamespace
import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
import data, model as m, ppo, reward, sft
from data import networks, optim
from data.run import pick_device

device, masks, sdpa = pick_device("auto"), [], torch.nn.functional.scaled_dot_product_attention
def attention(*args, attn_mask=None, **more):
    masks.append(attn_mask is not None)
    return sdpa(*args, attn_mask=attn_mask, **more)
torch.nn.functional.scaled_dot_product_attention = attention

torch.manual_seed(0)
policy = m.Transformer(m.ModelConfig(vocab_size=31, channels=64, hidden=32))
networks.to_device(policy, device)
prompts, responses = [[1, 2, 3], [4, 5]], [[6, 7, 8, 0], [9, 0]]
batch = [t.to(device) for t in data.join(prompts, responses, 31)]
with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # anything else is an error
    sft.loss(m.logprobs(policy, *batch[:2]), batch[2])[0].backward()
    config, scorer = ppo.Config(batch=2, samples=1, minibatches=1), networks.scalar_copy(policy)
    value = ppo.value_network(config, policy, scorer)
    rollout, _ = ppo.experience(config, policy, value, networks.frozen_copy(policy),
                                reward.scorer(networks.frozen_copy(scorer), 31), prompts,
                                responses, 0.1, SimpleNamespace(pad=31, response_tokens=4))
    optimizer = optim.adamw(torch.nn.ModuleList([policy, value]), 1e-5)
    ppo.update(config, policy, value, optimizer, rollout, torch.Generator())
assert len(masks) > 20 and not any(masks), masks  # with a mask, a GPU's flash kernel refuses
with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
    ids, segment, ends = data.join_groups(prompts, [responses, responses], 31)
    scores = scorer(ids.to(device), segment=segment.to(device))[ends].view(-1, 2)
    reward.loss(*scores.unbind(1))[0].backward()
print(sorted(name for name in sys.modules if name.startswith("triton")))
"""


def test_training_attends_in_fused_kernels_without_triton():  # a mask where rows are right-padded
    done = subprocess.run([sys.executable, "-c", FUSED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['triton']\n"


def scorer_of(path, seed=0):
    torch.manual_seed(seed)
    return networks.scalar_copy(checkpoint.load(path, "policy")[0])


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
        fn = reward.scorer(net, tokenizer.pad, batch)
        torch.testing.assert_close(fn(prompts, responses), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["score", "loglikelihood"])
def test_equal_texts_are_read_once(kind, base, tokenizer):
    # each time they come; a neighbour's number; the same answer to another prompt, or the same ids
    # cut elsewhere into the two, for equal ones
    net, eos, ids = scorer_of(base), tokenizer.eos, []
    if kind == "score":
        fn = reward.scorer(net, tokenizer.pad)
    else:
        fn = lambda *rows: pools.loglikelihood(net.trunk, *rows, 1.0, tokenizer.pad)
        net.trunk = checkpoint.load(base, "policy")[0]
    rows = [([1, 2], [3, eos]), ([1, 2], [4, 5, eos]), ([6], [3, eos]), ([1], [2, 3, eos]),
            ([1, 2], [5, eos])]
    which = [0, 2, 0, 2, 3, 1, 4, 1, 0]
    alone = [float(fn([p], [r])[0]) for p, r in rows]
    assert len(set(alone)) == len(rows) - (kind == "score")  # which is read at the end alone
    net.trunk.blocks[0].register_forward_pre_hook(lambda _, args: ids.append(args[0].shape[:2]))
    found = fn(*zip(*[rows[i] for i in which])).tolist()
    assert found == pytest.approx([alone[i] for i in which], abs=1e-5)
    assert all(found[i] == found[which.index(k)] for i, k in enumerate(which))
    assert sum(B for B, _ in ids) == 4  # two of one prompt, which now stand together, share a row
    assert len(fn([], [])) == 0


def test_normalised_references_have_mean_0_and_std_1(base, toy, tokenizer):
    # scale before shift, a second call that forgets the first, or all the model's weights moved
    net, examples = scorer_of(base), data.load(toy / "data", "train")
    score_texts = rewards.text_scorer(reward.scorer(net, tokenizer.pad), tokenizer)
    texts = [e.prompt for e in examples], [e.response for e in examples]
    raw = score_texts(*texts)
    for _ in range(2):
        reward.normalise(net, score_texts, *texts)
        scores = score_texts(*texts)
        assert abs(scores.mean()) < 1e-5 and scores.std(ddof=1) == pytest.approx(1, abs=1e-5)
        net.head.bias.data += 0.7  # for the second time: now with a scale that is not 1
        net.head.weight.data *= 1.3
    assert ((raw - raw.mean()) / raw.std(ddof=1)) == pytest.approx(scores, abs=1e-4)


def test_finished_reward_models_are_normalised(runs, toy):  # normalised, not saved
    net, record = checkpoint.load(runs["reward"], "reward")
    rows = data.load(toy / "data", "train")  # not the chosen ones, which it was fitted to
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    score_texts = rewards.text_scorer(reward.scorer(net, tokenizer.pad), tokenizer)
    scores = score_texts([r.prompt for r in rows], [r.response for r in rows])
    assert abs(scores.mean()) < 1e-4 and scores.std(ddof=1) == pytest.approx(1, abs=1e-4)


def test_without_people_the_chosen_ones_are_the_unit(tmp_path):  # a file of comparisons alone
    rows = [data.Comparison(f"p{k}", f"chosen {k}", "rejected") for k in range(600)]
    files.write_rows(tmp_path / "comparisons.train.jsonl", [dataclasses.asdict(r) for r in rows])
    prompts, texts = reward.references(reward.Config(data=str(tmp_path)), rows)
    assert texts == tuple(f"chosen {k}" for k in range(500))


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_parts_of_a_batch_add_up_in_training(stage, toy, base, runs, tmp_path, monkeypatch):
    # a mean of means in sft.py or reward.py: with SGD, what is left of a step is its gradient
    monkeypatch.setattr(optim, "adamw", lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr))
    found = [weights(chaos.go(stage, toy, tmp_path / str(micro), steps=2, lr=0.5, micro=micro))
             for micro in (0, 1, 2, 4)]
    start = weights(base if stage == "sft" else runs["sft"])
    assert any(not torch.equal(x, start[name.removeprefix("trunk.")])
               for name, x in found[0].items() if name.removeprefix("trunk.") in start)
    for other in found[1:]:
        for name in other:
            torch.testing.assert_close(other[name], found[0][name], atol=2e-5, rtol=1e-4)


# ---- collecting comparisons ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def collected(base):
    policy, _ = checkpoint.load(base, "policy")
    torch.manual_seed(0)  # a fresh one: the world's prompts are longer than the base's 40 tokens
    policy = m.Transformer(dataclasses.replace(policy.config, context=320, layers=1))
    tokenizer = data.Tokenizer("world", 224, 6)
    original = world.edits
    with pytest.MonkeyPatch.context() as patch:  # both are too rare to be met by chance
        patch.setattr(world, "leaks", leaks)
        patch.setattr(world, "edits", lambda rng, prompt, response, n: [
            *original(rng, prompt, response, n)[:2], (response, response)])
        return {name: (collect.collect(reward.Config(data=name, sampled=0.5),
                                       rewards.text_sampler(policy, tokenizer), "train", 60),
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


def test_the_reference_as_annotator(toy):
    # two samples compared, sides swapped, a label by noise, the own reference among the others
    sample = lambda prompts, temperature, n, seed: [[f"{seed} {k}" for k in range(n)]
                                                    for _ in prompts]
    for name in ("summarise", str(toy / "data")):
        config = reward.Config(data=name, annotator="reference", seed=1)
        rows = collect.collect(config, sample, "train", 20)
        examples = data.load(name, "train", 20, seed=2)
        people = [e.response.strip() for e in examples]
        assert [(r.prompt, r.chosen, r.rejected) for r in rows] == [
            (e.prompt, own, other)
            for e, own, after in zip(examples, people, people[1:] + people[:1])
            for other in ("1000003 0", after) if other != own]
        assert {r.meta["split"] for r in rows} == {"train"}


def test_a_language_model_as_annotator(toy, tmp_path, capsys, monkeypatch):
    # the folder's own comparisons read all the same; asked again when a run goes on, or not asked
    # where the comparisons that are there are of another, which was killed before it had saved
    asked = []
    words = judge.by_score(lambda prompts, texts: asked.extend(texts) or [len(t) for t in texts])
    monkeypatch.setattr(judge, "llm", lambda name, cache: words)
    folder = chaos.go("reward", toy, tmp_path, annotator="a-model").parent
    rows = files.read_log(folder / "comparisons.jsonl")
    assert {r["split"] for r in rows} == {"train", "validation"} and asked
    assert all(len(r["chosen"]) > len(r["rejected"]) for r in rows)
    asked.clear()
    chaos.go("reward", toy, tmp_path, annotator="a-model", resume=True)
    assert "finished" in capsys.readouterr().out and not asked
    (folder / "reward.pt").unlink()
    chaos.go("reward", toy, tmp_path, annotator="a-model", resume=True)
    assert "begins" in capsys.readouterr().out and asked


def test_accuracy_of_a_score():  # ties that win, a pair taken apart, no number that loses silently
    rows, seen = [("p", "aaa", "b"), ("q", "a", "bb"), ("r", "a", "c")], []
    length = lambda prompts, texts: seen.extend(zip(prompts, texts)) or [len(t) for t in texts]
    assert collect.accuracy(length, rows) == 0.5
    assert seen == [(p, text) for p, *pair in rows for text in pair]
    assert collect.accuracies(lambda prompts, texts: [t == "bb" for t in texts], rows) == {
        "pairs": 3, "gold": pytest.approx(1 / 3), "length": 0.5}
    for score, some in ((length, []), (lambda prompts, texts: [math.nan] * len(texts), rows)):
        with pytest.raises(ValueError):
            collect.accuracy(score, some)


def test_pairs_that_are_equal_once_they_are_cut(toy, tmp_path, mistake, capsys):  # a loss of .693,
    # and an accuracy that rounding decides
    rows = files.read_log(toy / "data/comparisons.train.jsonl")
    long = {"prompt": "a b c", **{key: "a b c d " * 9 + key for key in ("chosen", "rejected")}}
    for split, more in (("whole", []), ("cut", [long])):
        (tmp_path / split).mkdir()
        for name in ("train", "validation"):
            files.write_rows(tmp_path / split / f"comparisons.{name}.jsonl", [*more, *rows])
        chaos.go("reward", toy, tmp_path / "out", comparisons=tmp_path / split, variant=split)
    assert capsys.readouterr().out.count(f"1 of {len(rows) + 1} comparisons are equal once ") == 2
    whole, cut = (chaos.found(tmp_path / f"out/data/{name}") for name in ("whole", "cut"))
    assert whole["reward.jsonl"] == cut["reward.jsonl"]
    files.write_rows(tmp_path / "cut/comparisons.validation.jsonl", [long])
    said = mistake(chaos.go, "reward", toy, tmp_path / "out", comparisons=tmp_path / "cut")
    assert "0 to validate with" in said
    score = rewards.text_scorer(lambda prompts, texts: torch.arange(len(texts)) / 7,
                                data.Tokenizer("world", 20, 8))
    rows = [("p", long["chosen"], long["rejected"]), ("q", "a", "b")]
    assert score("pppqp", ["a", *rows[0][1:], "a", "b"]).tolist() == pytest.approx(
        [0, 1 / 7, 1 / 7, 3 / 7, 4 / 7])
    assert collect.accuracy(score, rows) == 0.25  # half of a tie, and a rise


@pytest.mark.parametrize("name", data.WORLD)
def test_the_truth_orders_everything_as_itself(name):  # better for worse, a pair's own prompt
    responses = {e.prompt: e.response for e in data.load(name, "id", 40, seed=2)}
    sample = lambda prompts, temperature, n, seed: [["Thanks.", responses[p]] for p in prompts]
    truth = lambda prompts, texts: [world.gold(p, t) for p, t in zip(prompts, texts)]
    found = collect.quality(truth, sample, name, "id", 40)
    assert found["pairs"] > 20 and found["gold"] == 1 and found["length"] > 0.8
    assert found["wrong_fact"] > 0.9 > found["wrong_fact_permuted"]


@pytest.mark.parametrize("name", data.WORLD)
def test_the_panel_says_what_pairs_do_not(name):  # another's reference, no warning, or always one
    examples = data.load(name, "id", 40, seed=2)
    people = [e.prompt for e in examples], [e.response for e in examples]
    sample = lambda prompts, temperature, n, seed: [["Thanks."] for _ in prompts]
    truth = lambda prompts, texts: [world.gold(p, t) for p, t in zip(prompts, texts)]
    found = collect.panel(truth, sample, *people)
    assert found["the references"][1] == 0.5
    for what in found.keys() - {"the references", "cut in half"}:  # half an answer may do
        assert found[what][1] < 0.2, what
    assert "mind:" not in collect.panel_lines(found)
    found = collect.panel(lambda prompts, texts: [len(t.split()) for t in texts], sample, *people)
    counts = np.array([len(text.split()) for text in people[1]])
    assert {what: mean for what, (mean, _) in found.items()} == pytest.approx({
        "the references": counts.mean(), "of another prompt": counts.mean(),
        "words shuffled": counts.mean(), "said twice": 2 * counts.mean(),
        "cut in half": ((counts + 1) // 2).mean(), "empty": 0, "SFT's samples": 1})
    assert found["words shuffled"][1] == 0.5 and found["said twice"][1] == 1
    assert "mind:" not in collect.panel_lines(found)
    unfinished = lambda prompts, texts: [float(not t.endswith(tuple(".!?"))) for t in texts]
    assert "mind:" in collect.panel_lines(collect.panel(unfinished, sample, *people))


def test_the_panel_reads_each_prompt_once():  # for each of the seven answers anew
    asked = []
    sample = lambda prompts, temperature, n, seed: [[f"{seed}"] for _ in prompts]
    collect.panel(lambda prompts, texts: asked.append(prompts) or [0.0] * len(texts), sample,
                  ["p", "q", "r"], ["a b", "c d", "e f"])
    assert asked == [["p"] * 7 + ["q"] * 7 + ["r"] * 7]


def test_pairs_of_four_prompts_are_shown(toy, tmp_path):  # four of the first, or the last of each
    rows = [{"prompt": f"Say {p}:", "chosen": f"{p} {i}", "rejected": "no"}
            for p in "abcde" for i in range(3)]
    rows.append(dict(rows[0], chosen="again"))
    for split in ("train", "validation"):
        files.write_rows(tmp_path / f"comparisons.{split}.jsonl", rows)
    path = chaos.go("reward", toy, tmp_path / "out", data=tmp_path, steps=1)
    shown = re.findall(r"^ +chosen \[.*\] +(.*)$", path.with_suffix(".txt").read_text(), re.M)
    assert shown == ["a 0", "b 0", "c 0", "d 0"]


def test_comparisons_of_a_prompt_share_a_step(collected):  # split up, out of order, one lost
    rows, _ = collected["summarise"]
    config = reward.Config(steps=40, batch=3)
    steps = list(collect.stream(config, rows))
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


@pytest.mark.parametrize("n", [5, 16, 17, 40])
def test_a_prompt_of_many_answers_counts_as_several(n):  # a row without an end, a comparison lost
    rows = [data.Comparison("p", f"a{i}", f"a{j}", {}) for i in range(n) for j in range(i)]
    found = collect.parts(rows)
    answers = [{text for row in part for text in (row.chosen, row.rejected)} for part in found]
    assert max(map(len, answers)) <= 16 and sorted(map(repr, rows)) == sorted(
        repr(row) for part in found for row in part)
    assert len(found) == {17: 3, 40: 10}.get(n, 1)  # and not one for each comparison
    assert found[0][0] == rows[0] and (n > 16 or found == [rows])
    other = [data.Comparison("q", "b", "c", {})] * 3
    steps = itertools.islice(collect.stream(reward.Config(steps=50, batch=2), [*rows, *other]), 50)
    seen = {repr(group) for groups in steps for group in groups}
    assert seen == {repr(group) for group in (*found, other)}


def test_parts_of_a_prompt_in_one_step(base, tokenizer):  # DPO's reference of other answers
    policy, _ = checkpoint.load(base, "policy")
    rows = [data.Comparison("Say a:", *pair, {}) for pair in itertools.combinations(
        ("good", "bad", "a red hat"), 2)]
    groups = collect.parts(rows, most=2)
    ids, segment, ends, pairs = data.join_comparisons(tokenizer, groups, "cpu")
    logp_ref = reward.log_likelihoods(policy, tokenizer, rows)
    found = reward.log_ratio(policy, ids, segment, ends, policy(ids, segment=segment), groups,
                             logp_ref)
    assert len(groups) == 3 and pairs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.tolist() == pytest.approx([0] * 6, abs=1e-5)


@pytest.mark.parametrize("lm, beta", [(0, 0), (0.7, 0), (0, 0.3), (0.7, 0.3)])
def test_a_response_scored_once_is_scored_right(toy, base, tokenizer, tmp_path, monkeypatch, lm,
                                                beta):
    # the score of another response, or of another prompt's, a language-modelling loss of a rejected
    # one; DPO's mean over tokens, or no reference: against each pair by itself, with SGD
    rows = [("Say a:", "good", "bad"), ("Say a:", "good", "sad"), ("Say a:", "sad", "bad"),
            ("Say b:", "bad", "good"), ("Say b:", "red", "good")]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]
    files.write_rows(tmp_path / "comparisons.train.jsonl", rows)
    files.write_rows(tmp_path / "comparisons.validation.jsonl", rows)
    monkeypatch.setattr(optim, "adamw", lambda net, lr: torch.optim.SGD(net.parameters(), lr=lr))
    with monkeypatch.context() as patch:
        if not lm:  # nor is it computed, which a real vocabulary makes the larger part
            patch.setattr(reward, "lm_loss", None)
        path = chaos.go("reward", toy, tmp_path / "out", data=tmp_path, init=base, steps=1, batch=2,
                        lr=0.5, every=1, lm=lm, implicit=beta)
    assert ("lm_loss" in files.read_log(path.with_suffix(".jsonl"))[0]) == (lm > 0)
    torch.manual_seed(0)
    policy = checkpoint.load(base, "policy")[0]
    net = policy if beta else networks.scalar_copy(policy)
    ref = networks.frozen_copy(policy)
    tokenizer = data.Tokenizer.of(torch.load(base, weights_only=True)["tokenizer"])
    margins = []

    def score(ids, positions, is_response):
        if not beta:
            return reward.score(net, ids, positions, is_response)
        ours, before = (m.logprobs(p, ids, positions) for p in (net, ref))
        return beta * (ours - before)[is_response].sum()[None]

    for row in rows:
        pair = [data.join([tokenizer.prompt(row["prompt"])], [tokenizer.response(row[key])],
                          tokenizer.pad) for key in ("chosen", "rejected")]
        margins.append(score(*pair[0]) - score(*pair[1]))
    written = []  # the loss of the chosen response of each prompt's first comparison
    for row in (rows[0], rows[3]):
        ids, positions, _ = data.join([tokenizer.prompt(row["prompt"])],
                                      [tokenizer.response(row["chosen"])], tokenizer.pad)
        logits = (policy.logits(policy(ids)) if beta else
                  nn.functional.linear(net.trunk(ids), policy.embed.weight.detach()))
        logp = logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
        written.append(-logp.gather(1, positions - 1).mean())
    (-nn.functional.logsigmoid(torch.cat(margins)).mean() + lm * sum(written) / 2).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    trained = weights(path)
    for name, p in net.named_parameters():
        torch.testing.assert_close(trained[name], p.data - 0.5 * p.grad, atol=1e-5, rtol=1e-4)


def test_dpo_of_exact_preferences(toy, base, tmp_path):
    # the sign, the reference or beta: pi(y) / pi_ref(y) is exp(r(y) / beta) / Z (Rafailov et al.,
    # Eq. 4), so that the log-ratios of two answers differ by the difference of their rewards / beta
    rewards_of, beta = {"good": 1.0, "bad": -1.0, "sad": 0.0, "red rose": 0.5}, 0.5
    rows = [{"prompt": "Say a:", "chosen": a, "rejected": b}
            for a, b in itertools.permutations(rewards_of, 2)
            for _ in range(round(50 / (1 + math.exp(rewards_of[b] - rewards_of[a]))))]
    for split in ("train", "validation"):
        files.write_rows(tmp_path / f"comparisons.{split}.jsonl", rows)
    path = chaos.go("reward", toy, tmp_path / "out", data=tmp_path, init=base, steps=150, batch=1,
                    lr=3e-3, every=150, implicit=beta)
    assert path.name == "dpo.pt"
    policy, record = checkpoint.load_frozen(path, "policy", "cpu")
    ref = checkpoint.load_frozen(base, "policy", "cpu")[0]
    tokenizer = data.Tokenizer.of(record["tokenizer"])
    score = rewards.text_scorer(reward.implicit_scorer(policy, ref, beta, tokenizer.pad), tokenizer)
    found = score(["Say a:"] * 4, [*rewards_of])
    wanted = [*rewards_of.values()]
    assert max(abs((found[i] - found[0]) - (wanted[i] - wanted[0])) for i in range(4)) < 0.05
    assert abs(found).max() > 0.3  # and not all of it by one answer's likelihood


# ---- what a run leaves behind --------------------------------------------------------------------

FIELDS = {"sft": {"step", "loss", "validation_loss", "lr", *TIMING},
          "reward": {"step", "loss", "accuracy", "margin", "lm_loss", "validation_accuracy", "lr",
                     *TIMING},
          "ppo": {"step", "score", "proxy", "kl", "kl_k3", "entropy", "length", "ended", "beta",
                  "policy_loss", "value_loss", "ratio_gap", "clip_fraction", "approx_kl",
                  "gradient", *TIMING}}


def test_runs_write_what_they_say(runs):  # a file or a field that the README names missing
    for stage, path in runs.items():
        rows, steps = files.read_log(path.with_suffix(".jsonl")), chaos.STAGES[stage][1]["steps"]
        assert all(FIELDS[stage] <= row.keys() for row in rows), FIELDS[stage] - rows[0].keys()
        every = 1 if stage == "ppo" else 2
        assert [row["step"] for row in rows] == list(range(every, steps + 1, every))
        meta = json.loads(path.with_suffix(".json").read_text())
        assert meta["stage"] == stage and meta["step"] == steps and meta["finished"] is True
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert meta["config"]["steps"] == steps and meta["seed"] == 0
        assert meta["machine"]["torch"] == torch.__version__ and meta["machine"]["threads"] >= 1
        assert meta["machine"]["device"].startswith("cpu ")
        assert [*meta["parents"]] == ["init", *["reward"] * (stage == "ppo"), "data"]
        assert path.with_suffix(".samples.jsonl").exists() == (stage != "reward")
        assert not [*path.parent.glob(".*.tmp"), *path.parent.glob("*.tmp")]
    shown = path.with_name("samples.txt").read_text()
    for name in ("sft", "rlhf", "reference"):
        assert len(re.findall(rf"^ +{name} ", shown, re.M)) == 4


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_the_speed_of_a_run(stage, toy, tmp_path, monkeypatch):
    # tokens of a part of the run, of prompts or padding; a value network that costs nothing
    name = {"sft": "join", "reward": "join_comparisons", "ppo": "join_samples"}[stage]
    ticks, seen, counted, of = itertools.count(), [], [], getattr(data, name)

    def counting(*args):
        found = of(*args)
        if stage != "sft" or torch.is_grad_enabled():  # not of the validation loss
            seen.append(int((found[1] > 0).sum() if stage == "reward" else found[2].sum()))
        return found

    def count(network, done):
        counted.append(isinstance(network, nn.Module))
        done[0] = 500
    monkeypatch.setattr(data, name, counting)
    monkeypatch.setattr(run.time, "time", lambda: float(next(ticks)))
    monkeypatch.setattr(gpu, "count", count)
    monkeypatch.setattr(gpu, "peak", lambda device: 1e3)
    monkeypatch.setattr(run, "pick_device", lambda name: Cuda("cpu"))
    monkeypatch.setattr(checkpoint, "machine", lambda device: {})
    path = chaos.go(stage, toy, tmp_path, **({} if stage == "ppo" else {"micro": 2}))
    row = files.read_log(path.with_suffix(".jsonl"))[-1]
    assert row["seconds"] * row["tokens_per_second"] == pytest.approx(sum(seen))
    assert row["seconds"] * row["peak_share"] == pytest.approx(500 / 1e3)
    assert sum(counted) == 1 + (stage == "ppo")
    assert "peak_share" not in json.loads(path.with_suffix(".json").read_text())["metrics"]


class Cuda(str):
    "A device that a run takes for a GPU, and torch for the CPU."

    def startswith(self, prefix):
        return prefix == "cuda"


@pytest.fixture(scope="session")
def frozen(toy, tmp_path_factory):
    "SFT and reward model that share the bottom half of the base -> flags for who goes on."
    out = tmp_path_factory.mktemp("frozen")
    init = chaos.go("sft", toy, out, freeze=0.5, lr=1e-2)
    return {"init": init, "reward": chaos.go("reward", toy, out, freeze=0.5, lr=1e-2, init=init)}


@pytest.mark.parametrize("freeze, value", [(0.0, "reward"), (0.5, "reward"), (0.5, "shared")])
def test_earlier_stages_are_left_alone(freeze, value, toy, base, frozen, tmp_path, monkeypatch):
    # the ref_policy or the reward model in the optimiser, or sharing weights with what trains; an
    # optimiser that holds frozen weights
    files = {path: path.read_bytes() for path in (*frozen.values(), base)}
    seen, original = {}, ppo.experience

    def spy(config, policy, value, ref_policy, reward_fn, *rest):
        now = {"ref_policy": ref_policy, "reward": reward_fn.model}
        if not seen:
            seen.update({name: copy.deepcopy(net.state_dict()) for name, net in now.items()})
        for name, net in now.items():
            assert same(net.state_dict(), seen[name]), name
        return original(config, policy, value, ref_policy, reward_fn, *rest)
    monkeypatch.setattr(ppo, "experience", spy)
    path = chaos.go("ppo", toy, tmp_path, freeze=freeze, value=value, lr=1e-2, **frozen)
    now, before = weights(path), weights(frozen["init"])
    moved = {name for name in now if not torch.equal(now[name], before[name])}
    held = {name for name in now if name.startswith(("embed", "blocks.0."))}
    assert moved == now.keys() - (held if freeze else set())
    learned = torch.load(path, weights_only=True)["state"]["kept"]["value"]
    began = {"bias": torch.zeros(1)} if value == "shared" else weights(frozen["reward"])
    assert any(not torch.equal(x, learned[name]) for name, x in began.items())
    assert seen and all(path.read_bytes() == content for path, content in files.items())


def test_frozen_layers_stay_in_training(base, frozen):  # a moved embedding
    for path, init in ((frozen["init"], base), (frozen["reward"], frozen["init"])):
        now = {name.removeprefix("trunk."): x for name, x in weights(path).items()}
        for name, x in weights(init).items():
            assert torch.equal(now[name], x) == name.startswith(("embed", "blocks.0.")), name


def test_adaptive_beta_moves_once_an_iteration(toy, tmp_path):  # or per step, or never
    path = chaos.go("ppo", toy, tmp_path, target_kl=0.05, lr=5e-3)
    rows = files.read_log(path.with_suffix(".jsonl"))
    assert rows[0]["beta"] == ppo.Config().beta and len({row["beta"] for row in rows}) > 3
    for row, after in zip(rows, rows[1:]):
        assert after["beta"] == ppo.adapted(row["beta"], row["kl"], 0.05, 8)
    assert torch.load(path, weights_only=True)["state"]["state"]["beta"] != rows[-1]["beta"]


# ---- seeds and resuming --------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_seeds(stage, toy, runs, tmp_path):  # a seed that is ignored, or time
    first, second = runs[stage], chaos.go(stage, toy, tmp_path)
    assert same(weights(first), weights(second))
    assert logged(first.with_suffix(".jsonl")) == logged(second.with_suffix(".jsonl"))
    other = chaos.go(stage, toy, tmp_path, seed=7)
    assert other.parent.name == "seed-7" and not same(weights(first), weights(other))
    assert logged(first.with_suffix(".jsonl")) != logged(other.with_suffix(".jsonl"))


def interrupted(steps, stage, /, *args, **flags):
    "A stage, with Ctrl-C during this optimiser step: `stop_signal` is no longer empty after it."
    asked, count, original = [], [], nn.utils.clip_grad_norm_

    def counting(*args, **kwargs):
        count.append(1)
        if len(count) == steps:
            asked.append(signal.SIGINT)
        return original(*args, **kwargs)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(nn.utils, "clip_grad_norm_", counting)
        patch.setattr(run, "stop_signal", lambda: asked)
        chaos.go(stage, *args, **flags)
    assert stop.value.code == 130


@pytest.mark.parametrize("stage, changes, after", [
    ("sft", {}, 3), ("sft", {"freeze": 0.5, "micro": 2}, 2), ("reward", {}, 2), ("reward", {}, 3),
    ("ppo", {}, 3), ("ppo", {"target_kl": 0.05, "value": "shared", "freeze": 0.5, "lr": 5e-3}, 2),
    ("ppo", {"freeze": 0.5}, 3), ("ppo", {"samples": 2, "minibatches": 2}, 3),
    ("ppo", {"samples": 2, "minibatches": 2, "baseline": "rloo"}, 2),
    ("sft", {"stage": "base", **SMALL}, 2)])
def test_resumed_is_uninterrupted(stage, changes, after, toy, runs, frozen, tmp_path):
    # a schedule that starts again, an optimiser, generator, beta or data cursor not restored
    if stage == "ppo" and "freeze" in changes:
        changes = changes | frozen
    whole = chaos.go(stage, toy, tmp_path / "whole", **changes) if changes else runs[stage]
    per_step = 4 if stage == "ppo" else 1  # epochs times minibatches
    interrupted(after * per_step, stage, toy, tmp_path / "parts", **changes)
    (path,) = (tmp_path / "parts").rglob("*.pt")
    meta = torch.load(path, weights_only=True)["meta"]
    assert meta["step"] == after and not meta["finished"]
    resumed = chaos.go(stage, toy, tmp_path / "parts", resume=True, **changes)
    assert resumed == path and same(weights(path), weights(whole))
    for name in (".jsonl", ".samples.jsonl") if stage != "reward" else (".jsonl",):
        assert logged(path.with_suffix(name)) == logged(whole.with_suffix(name))


def test_an_interrupted_run_is_no_parent(toy, tmp_path, mistake):
    # a reward model of half an SFT, without a word
    interrupted(3, "sft", toy, tmp_path)
    said = mistake(chaos.go, "reward", toy, tmp_path, own=True)
    assert re.search("interrupted.*--resume", said)


def test_resuming_from_scratch(toy, tmp_path):
    # an interrupted pretraining that no command goes on with, or a finished one done again
    flags = dict(init="scratch", base_steps=3, prompt_tokens=24, response_tokens=8, **SMALL)
    whole = chaos.go("sft", toy, tmp_path / "whole", **flags)
    for after in (2, 3 + 4):  # while it pretrains, and while it fine-tunes
        parts = tmp_path / f"parts-{after}"
        interrupted(after, "sft", toy, parts, **flags)
        assert same(weights(chaos.go("sft", toy, parts, resume=True, **flags)), weights(whole))


# ---- best of n -----------------------------------------------------------------------------------


def scored_pool(runs, tokenizer, path, size, temperature, **more):
    "Rows that bon.py wrote; and to each prompt `size` samples, as texts, and their scores, anew."
    policy, scorer = (checkpoint.load(runs[stage], kind)[0] for stage, kind in (
        ("sft", "policy"), ("reward", "reward")))
    rows = files.read_log(path)
    assert len(rows) == 5  # fewer prompts than a block: one call
    prompts = [tokenizer.prompt(row["prompt"]) for row in rows]
    ids = m.generate(policy, prompts, 8, temperature, size, seed=0, **more)
    scores = reward.scorer(scorer, tokenizer.pad)([p for p in prompts for _ in range(size)], ids)
    texts = [tokenizer.decode(response).strip() for response in ids]
    return zip(rows, [texts[i:i + size] for i in range(0, 5 * size, size)],
               scores.view(5, size).numpy())


def test_best_of_n_of_a_run(toy, runs, tokenizer, tmp_path, monkeypatch):
    # a neighbour's best, another text; the KL of a policy to itself computed
    path = chaos.go("bon", toy, tmp_path, prompts=5)
    assert path.name == "bon4.jsonl"
    for row, texts, scores in scored_pool(runs, tokenizer, path, 6, 0.7):
        assert row["scores"] == pytest.approx([scores[:4].max()], abs=1e-5)
        assert row["outputs"] == [texts[scores[:4].argmax()]]
    curve = files.read_log(path.with_name("bon.jsonl"))
    assert [row["n"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert all(a["proxy"] <= b["proxy"] + 1e-9 for a, b in zip(curve, curve[1:]))
    assert curve[0]["kl"] != 0  # a temperature of .7 is another policy, even without a choice
    with monkeypatch.context() as patch:
        patch.setattr(m, "logprobs", None)
        plain = files.read_log(chaos.go("bon", toy, tmp_path / "b", prompts=5, temperature=1.0)
                               .with_name("bon.jsonl"))
    assert [row["kl"] for row in plain] == pytest.approx([bon.kl_bound(n) for n in range(1, 7)])
    before = path.read_bytes()
    assert chaos.go("bon", toy, tmp_path, prompts=5).read_bytes() == before


def test_a_diverse_choice_of_a_run(toy, runs, tokenizer, tmp_path, capsys):  # one answer, the
    # best without regard to the others, samples without min-p
    path = chaos.go("bon", toy, tmp_path, prompts=5, pool=12, diverse=3, min_p=0.2,
                    temperature=1.5)
    assert path.name == "diverse3.jsonl"
    for row, texts, scores in scored_pool(runs, tokenizer, path, 12, 1.5, min_p=0.2):
        places = bon.diverse_bests(scores, bon.overlaps(texts), 3)
        assert row["outputs"] == [texts[p] for p in places]
        assert row["scores"] == pytest.approx(scores[places].tolist(), abs=1e-5)
    row = files.read_log(path.with_name("bon.jsonl"))[0]
    assert "kl" not in row  # of what is cut none is known
    assert "bon: any 3 -> chosen of 12, proxy" in capsys.readouterr().out
    assert bon.Config(diverse=8).pool == 64 and bon.Config(n=20, diverse=2).pool == 20


def test_loglikelihood_of_whole_responses(runs, tokenizer):  # padding counted, rows in sorted
    # order, a response predicted from the end of the one before it
    policy, _ = checkpoint.load(runs["sft"], "policy")
    prompts = [tokenizer.prompt(f"Name the {x}.\nAnswer:")
               for x in ("red hat", "boat", "boat", "boat", "big cake", "big cake")]
    responses = [tokenizer.response(x) for x in (
        "The red hat it is", "No", "", "A big boat", "", "The cake is a cake")]
    for temperature in (1.0, 0.5):
        found = pools.loglikelihood(policy, prompts, responses, temperature, tokenizer.pad)
        for value, p, r in zip(found, prompts, responses):
            with torch.no_grad():
                logits = policy.logits(policy(torch.tensor([p + r])))[0, len(p) - 1:-1]
            logp = (logits / temperature).log_softmax(-1)
            expected = logp.gather(1, torch.tensor(r)[:, None]).sum().item()
            assert value == pytest.approx(expected, abs=1e-4)
    assert (pools.loglikelihood(policy, prompts, responses, 0, tokenizer.pad) == 0).all()


@pytest.mark.parametrize("temperature, passes", [(1.0, 0), (0.7, 1), (0, 1)])
def test_a_temperature_costs_one_pass(temperature, passes, runs, tokenizer):
    # the same text read twice, or once for two networks; either side's temperature at the other's
    policy, other = (checkpoint.load(runs[stage], "policy")[0].double() for stage in ("sft", "ppo"))
    prompts = [[1, 2, 3], [1, 2, 3], [4], [5, 6]]
    responses = [[7, 8, 9], [3, 2047], [2047], [8, 7, 6, 5]]
    alone = lambda network, t: pools.loglikelihood(network, prompts, responses, t, tokenizer.pad)
    ran = []
    for network in (policy, other):
        network.blocks[0].register_forward_pre_hook(lambda *_: ran.append(1))
    for ref_policy, expected in ((policy, passes), (other, 1 + bool(temperature))):
        wanted = alone(policy, temperature) - alone(ref_policy, 1.0)
        ran.clear()
        found = pools.log_ratio(policy, ref_policy, prompts, responses, temperature, tokenizer.pad)
        assert len(ran) == expected and abs(found - wanted).max() < 1e-9
        assert (abs(found).max() > 1e-6) == (expected > 0)


# ---- rewards of other kinds ----------------------------------------------------------------------


def test_custom_reward_files(toy, runs, tmp_path, mistake):  # other texts, or the file not used
    file = tmp_path / "mine.py"
    (tmp_path / "beside_it.py").write_text("SIGN = -1.0\n")
    file.write_text("from __future__ import annotations\n"
                    "import dataclasses, torch\nfrom beside_it import SIGN\n"
                    "@dataclasses.dataclass\nclass Taste:\n    sign: float = SIGN\n"
                    "def reward_fn(prompt_ids, response_ids):\n"
                    "    assert all(isinstance(i, int) for p in prompt_ids for i in p)\n"
                    "    return torch.tensor([Taste().sign * len(r) for r in response_ids])\n")
    path = chaos.go("ppo", toy, tmp_path, reward=file, value="shared")
    rows = files.read_log(path.with_suffix(".jsonl"))
    assert all(row["proxy"] == pytest.approx(-row["length"]) for row in rows)
    config = ppo.Config(**chaos.STAGES["ppo"][1], data=str(toy / "data"), init=str(runs["sft"]),
                        out=str(tmp_path / "b"), value="shared", device="cpu")
    given = ppo.train(config, lambda p, r: torch.tensor([-float(len(x)) for x in r]))
    assert logged(given.with_suffix(".jsonl")) == logged(path.with_suffix(".jsonl"))
    said = mistake(chaos.go, "ppo", toy, tmp_path, reward=file)  # no value network to copy
    assert "--value shared" in said
    file.write_text("def other(): pass\n")
    assert "reward_fn" in mistake(chaos.go, "ppo", toy, tmp_path, reward=file, value="shared")


def test_the_curve_is_of_the_same_prompts(toy, runs, tmp_path, monkeypatch):
    # an iteration's own prompts, other random numbers each time; measured after the first step
    shape = dict(steps=3, batch=8, every=2, minibatches=2)
    plain = chaos.go("ppo", toy, tmp_path / "plain", **shape)
    rows = files.read_log(plain.with_suffix(".jsonl"))
    assert [("validation_proxy" in row) for row in rows] == [True, True, True]
    known = len(data.load(str(toy / "data"), "validation"))
    reward_model = checkpoint.load(runs["reward"], "reward")[0]
    for path, row in ((runs["sft"], rows[0]), (plain, rows[-1])):
        policy, record = checkpoint.load(path, "policy")
        tokenizer = data.Tokenizer.of(record["tokenizer"])
        prompts = [tokenizer.prompt(e.prompt) for e in data.load(str(toy / "data"), "validation")]
        responses = m.generate(policy, prompts, tokenizer.response_tokens, seed=0)
        scores = reward.scorer(reward_model, tokenizer.pad)(prompts, responses)
        assert len(scores) == known > 6
        assert row["validation_proxy"] == pytest.approx(scores.mean().item(), abs=1e-6)
    assert rows[0]["validation_proxy"] != rows[-1]["validation_proxy"]
    monkeypatch.setattr(watch, "follower", lambda *_: lambda policy: {"validation_proxy": 0.0})
    other = chaos.go("ppo", toy, tmp_path / "other", **shape)
    assert same(weights(plain), weights(other))  # being watched changes nothing


@pytest.mark.parametrize("micro, logged", [(0, 3), (4, 6)])
def test_a_logged_loss_is_the_mean_of_its_steps(micro, logged, toy, tmp_path, monkeypatch):
    # a sum, a mean over parts, what was logged before counted again
    monkeypatch.setattr(sft, "loss", lambda *args, of=sft.loss: (of(*args)[0], {"loss": 3.0}))
    path = chaos.go("sft", toy, tmp_path, steps=5, every=2, batch=8, micro=micro)
    assert [(row["step"], row["loss"]) for row in files.read_log(path.with_suffix(".jsonl"))] == [
        (step, logged) for step in (2, 4, 5)]


@pytest.mark.parametrize("stage, changes", [("sft", {}), ("ppo", {}), ("reward", {"implicit": 1})])
def test_samples_by_step(stage, changes, toy, base, runs, tmp_path, capsys, monkeypatch):
    # another policy's, other prompts or random numbers at each step, the last step left out, a
    # score of other answers; training that draws from the sampler's numbers
    monkeypatch.setenv("COLUMNS", "20")
    sizes = dict(steps=3, every=2, lr=1e-2, **changes)
    path = chaos.go(stage, toy, tmp_path / "a", **sizes)
    said, rows = capsys.readouterr().out, files.read_log(path.with_suffix(".samples.jsonl"))
    shown = data.load(str(toy / "data"), "validation")[:4]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, e.prompt) for step in (0, 2, 3) for e in shown]
    fn = reward.scorer(checkpoint.load(runs["reward"], "reward")[0], 2048)
    for where, at in ((base if stage == "sft" else runs["sft"], slice(4)), (path, slice(8, 12))):
        policy, record = checkpoint.load(where, "policy")
        tokenizer = data.Tokenizer.of(record["tokenizer"])
        ids = [tokenizer.prompt(e.prompt) for e in shown]
        found = m.generate(policy, ids, tokenizer.response_tokens, seed=0)
        assert [row["answer"] for row in rows[at]] == [tokenizer.decode(r).strip() for r in found]
        if stage == "ppo":
            score = ppo.shaped(fn(ids, found), found, policy.config.eos, 8, ppo.Config())
            assert [row["score"] for row in rows[at]] == pytest.approx(score.tolist(), abs=1e-5)
    assert all(row.keys() == rows[0].keys() and "gold" not in row for row in rows)
    assert ("score" in rows[0]) == (stage == "ppo") and rows[0]["answer"] != rows[8]["answer"]
    lines = [x for x in said.splitlines() if x.startswith(("prompt  ", "answer  "))]
    assert [x[8:] for x in lines[::2]] == [watch.one_line(shown[0].prompt, -12)] * 3
    assert [x[8:] for x in lines[1::2]] == [watch.one_line(r["answer"], 12) for r in rows[::4]]
    monkeypatch.setattr(watch, "sample", lambda run: None)
    assert same(weights(path), weights(chaos.go(stage, toy, tmp_path / "b", **sizes)))


def test_one_line():  # a text that clears the screen, or is cut at its other end
    assert watch.one_line("a\n\tb \x1b[2Jc\u202ed", 99) == "a b [2Jc d"
    assert watch.one_line("abcdefg", 6) == "abc..." and watch.one_line("abcdefg", -6) == "...efg"
    assert watch.one_line("abcdefg", 7) == watch.one_line("abcdefg", -7) == "abcdefg"


def test_dpo_without_validation_answers_comparisons(tmp_path, toy, base):  # a traceback; a double
    rows = [{"prompt": f"{k // 2}:", "chosen": "a", "rejected": "b"} for k in range(12)]
    for split in ("train", "validation"):
        files.write_rows(tmp_path / f"comparisons.{split}.jsonl", rows)
    path = chaos.go("reward", toy, tmp_path / "out", data=tmp_path, init=base, steps=1, implicit=1)
    found = files.read_log(path.with_suffix(".samples.jsonl"))
    assert [row["prompt"] for row in found] == ["0:", "1:", "2:", "3:"] * 2


def test_a_run_that_gets_worse_says_so(toy, runs, tmp_path, capsys, monkeypatch):
    # silence, or a sentence where all is well: what PPO is given falls while the proxy rises
    shape = dict(steps=2, batch=8, every=1, minibatches=2, lr=0.0)
    for changes, fallen in (({}, False), ({0: 0.5}, True)):
        steps = iter(range(9))
        shaped = lambda proxy, *_: torch.full_like(proxy, changes.get(0, 0.0) * -next(steps))
        monkeypatch.setattr(ppo, "shaped", shaped)
        chaos.go("ppo", toy, tmp_path / str(fallen), **shape)
        said = capsys.readouterr().out
        assert ("the score has fallen" in said) == fallen
    monkeypatch.undo()
    run = SimpleNamespace(state={"before": {"validation_score": 0.0}}, config=ppo.Config())
    for ended, said in ((0.2, False), (0.19, True), (0.1, False), (0.2, False), (0.0, True)):
        watch.warn(run, {"ended": ended})  # in every iteration, and once until it is over
        assert ("responses end" in capsys.readouterr().out) == said


def test_gold_is_the_worlds_score(tokenizer):  # EOS or a leading space in what is judged
    tokenizer = data.Tokenizer()
    examples = data.load("summarise", "train", 5) + data.load("instruct", "train", 5)
    fn = rewards.gold("summarise", tokenizer)
    found = fn([tokenizer.prompt(e.prompt) for e in examples],
               [tokenizer.response(e.response) for e in examples])
    people = [world.gold(e.prompt, e.response) for e in data.load("summarise", "train")[:500]]
    unit = [statistics.mean(people), statistics.stdev(people)]
    expected = [(world.gold(e.prompt, e.response) - unit[0]) / unit[1] for e in examples]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="only the embedded world"):
        rewards.gold("my/folder", tokenizer)


# ---- mistakes ------------------------------------------------------------------------------------


def command_line(module, *argv):
    return cli(module.Config, module.train, list(map(str, argv)))


@pytest.mark.parametrize("module, argv, words", [
    *((module, argv, argv[0]) for module in (sft, reward, ppo) for argv in (
        ["--nonsense", "1"], ["--batch", "0"], ["--lr", "-1"], ["--steps", "many"],
        ["--freeze", "1.5"], ["--lr", "nan"])),
    *((module, argv, words) for module in (sft, reward, ppo) for argv, words in (
        (["--ste", "3"], "--steps"), (["--data", "no_such_folder"], ""),
        (["--init", "no.pt"], "no.pt"))),
    (ppo, ["--beta", "-1"], "--beta"), (ppo, ["--kl", "k9"], "k1"),
    (ppo, ["--minibatches", "65"], "--batch"), (ppo, ["--temperature", "0"], "--temperature"),
    (ppo, ["--lam", "1.1"], "--lam"), (bon, ["--n", "0"], "--n"), (bon, ["--pool", "3"], "--pool"),
    (bon, ["--temperature", "-1"], "--temperature"), (bon, ["--prompts", "0"], "--prompts"),
    (bon, ["--init", "no.pt"], "python sft.py")])
def test_impossible_flags(module, argv, words, mistake, tmp_path):  # a traceback, a silent default,
    # a bound forgotten, a best of nothing
    assert words in mistake(command_line, module, *argv, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_wrong_and_damaged_checkpoints(toy, runs, base, mistake, tmp_path):
    # training on what is not there, on the wrong kind, or over something good
    go = lambda stage, **flags: mistake(chaos.go, stage, toy, tmp_path, own=True, **flags)
    assert "python sft.py" in go("reward")
    assert "python sft.py" in go("ppo")
    found = go("ppo", init=runs["sft"])
    assert "reward.pt" in found and "python reward.py" in found
    assert "not a policy" in go("ppo", init=runs["reward"])
    assert "not a policy" in go("sft", init=runs["reward"])
    assert "not a reward" in go("ppo", init=runs["sft"], reward=runs["sft"])
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(runs["sft"].read_bytes()[:-5000])
    assert "damaged" in go("reward", init=damaged)
    record = torch.load(runs["reward"], weights_only=True)
    record["tokenizer"]["fingerprint"] = "0" * 16
    record["digest"] = checkpoint.digest(record)
    torch.save(record, tmp_path / "other.pt")
    assert "tokenizer" in go("ppo", init=runs["sft"], reward=tmp_path / "other.pt")
    # of another base: the frozen layers differ
    assert "--freeze" in go("ppo", init=base, reward=runs["reward"], freeze=0.5)
    assert "abacus" in go("sft", device="abacus")
    assert {p.name for p in tmp_path.rglob("*.pt")} == {"damaged.pt", "other.pt"}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_mistakes_leave_an_earlier_run_alone(stage, toy, runs, mistake, tmp_path):
    # a log emptied, or a checkpoint replaced, before the mistake is found; a traceback from a
    # variable that only the loop sets, or a good file replaced by a longer run
    shutil.copytree(toy / "whole" / stage, tmp_path, dirs_exist_ok=True)
    files = {p: p.read_bytes() for p in (tmp_path / "data").iterdir()}
    go = lambda **flags: mistake(chaos.go, stage, toy, tmp_path, **flags)
    go(init=tmp_path / "missing.pt"), go(init=runs["reward"])
    if stage == "ppo":
        go(reward=tmp_path / "missing.pt"), go(reward="gold")
    for flags in ({"steps": 9}, {"lr": 1e-5}):
        assert "resume" in go(resume=True, **flags)
    assert {p: p.read_bytes() for p in (tmp_path / "data").iterdir()} == files
    path = tmp_path / f"data/{stage}.pt"
    damaged = files[path][:-3000]
    path.write_bytes(damaged)  # --resume from something broken
    go(resume=True)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == {**files, path: damaged}


def test_bad_rows_are_named(toy, mistake, tmp_path):  # a row skipped
    good = json.dumps({"prompt": "a b c", "response": "d"})
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(f'{good}\n{{"prompt": "a"}}\n{good}\n')
    found = mistake(chaos.go, "sft", toy, tmp_path / "out", data=tmp_path)
    assert "line 2" in found and "response" in found
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize("stage", ["sft", "base", "reward", "ppo", "bon"])
def test_empty_files_are_named(stage, toy, runs, mistake, tmp_path, monkeypatch):
    # a loop that waits for a row for ever, a traceback, a word after the training
    monkeypatch.setattr(sft.itertools, "count", lambda: range(9))  # it would be red, and not hang
    shutil.copytree(toy / "data", tmp_path / "data")
    flags = {"base": {"stage": "base"}, "bon": {"split": "train"}}.get(stage, {})
    for split in ("train", "validation")[:1 + (stage not in ("bon", "base"))]:
        for path in (tmp_path / "data").glob(f"*{split}.jsonl"):
            path.write_text("\n")
        said = mistake(chaos.go, "sft" if stage == "base" else stage, toy, tmp_path / "out",
                       data=tmp_path / "data", **flags)
        assert f"{split}.jsonl has no " in said and "add some" in said, said
        shutil.copytree(toy / "data", tmp_path / "data", dirs_exist_ok=True)
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_fewer_prompts_than_minibatches(toy, runs, tmp_path):  # a minibatch of no rows: a traceback
    files.write_rows(tmp_path / "train.jsonl", [{"prompt": "a b c", "response": "d"}])
    shutil.copy(toy / "data/validation.jsonl", tmp_path)
    log = chaos.go("ppo", toy, tmp_path / "out", data=tmp_path, steps=1).with_suffix(".jsonl")
    (row,) = files.read_log(log)
    assert all(math.isfinite(x) for x in row.values())


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
    folder = tmp_path / "out" / name
    for stage in ("sft", "reward", "ppo"):
        more = [] if stage == "ppo" else ["--eval-size", 40]
        done = command(tmp_path, f"{stage}.py", "--data", name, "--steps", 3, "--batch", 16,
                       "--every", 2, *more)
        assert done.returncode == 0, done.stderr
        rows = files.read_log(folder / f"{stage}.jsonl")
        assert rows[-1]["step"] == 3 and all(FIELDS[stage] <= row.keys() for row in rows)
        assert all(math.isfinite(v) for row in rows for v in row.values())
    assert {"gold", "validation_gold"} <= rows[0].keys()
    assert (folder / "samples.txt").read_text() in done.stdout
    done = command(tmp_path, "ppo.py", "--data", name, "--steps", 2, "--batch", 16, "--reward",
                   "gold", "--value", "shared", "--freeze", "0.5")
    assert done.returncode == 0, done.stderr
    people = [world.gold(e.prompt, e.response) for e in data.load(name, "train", 500)]
    for row in files.read_log(folder / "ppo.jsonl"):
        assert row["gold"] == pytest.approx(
            row["proxy"] * statistics.stdev(people) + statistics.mean(people), abs=1e-4)
