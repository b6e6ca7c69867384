"""
Pretrained models: what data/weights.py reads and writes is what `transformers` would. Random
models of every supported family are saved by `transformers`, with tokenisers trained here; no
download. After each test's name stands the mistake that turns it red.
"""

import json
import random
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import bon
import data
import model as m
import ppo
import reward
import sft
from data import __main__ as commands
from data import bpe, checkpoint, weights

hf = pytest.importorskip("transformers")
tk = pytest.importorskip("tokenizers")
st = pytest.importorskip("safetensors.torch")
hf.utils.logging.set_verbosity_error()
hf.utils.logging.disable_progress_bar()

# LLaMA 3's rule for what may become one token, from its release
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
          r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LEFT = 7  # rows of a model's embedding beyond its tokeniser's ids, as OPT has them


# ---- tokenisers, in the hub's formats ------------------------------------------------------------


@cache
def corpus():
    words = ("the cat sat on a mat and told my boss about it TITLE: POST: TL;DR: naïve café "
             "123 1234 don't we'll I'M 日本語 \n\n \t!! ... (a) x_y </s> é").split(" ")
    rng = random.Random(0)
    posts = [text for thread in data.texts("summarise", 40) for text in thread]
    return posts + [" ".join(rng.choices(words, k=40)) for _ in range(60)]


def strings(n=2000):
    "Varied texts: words, blanks of all kinds, digits, scripts, emoji, quoted special tokens."
    rng, out = random.Random(1), ["", " ", "a", " a", "  a", "\n", "\na\n\n b ", "\ufeffa", "▁a b"]
    parts = [*" ".join(corpus()[:2] + corpus()[-2:]).split(" "), "  ", "\n", "\r\n", "\t",
             " \n ", "</s>", "<s>", "<unk>", "<0x0A>", "<|endoftext|>", "<|begin_of_text|>",
             "<|eot_id|>", "▁", "Ġ",
             "I'LL", "'s", "12345", "٣٤", "½", "²", "ﬁ", "e\u0301", "👩‍👩‍👧", "मानक", "\u2028",
             "\x00", "\u00a0", "\u3000", "ß", "—", "\U0010ffff", "ſ"]
    while len(out) < n:
        out.append(rng.choice(("", " ")).join(rng.choices(parts, k=rng.randint(1, 12))))
    return out


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


@cache
def byte_level():
    "(400 letters and merged tokens in order, merges) of a byte-level BPE."
    trained = tk.Tokenizer(tk.models.BPE())
    trained.pre_tokenizer = tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(corpus(), tk.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    model = json.loads(trained.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def write_merges(folder, tokens, merges):
    dump(folder / "vocab.json", {token: i for i, token in enumerate(tokens)})
    dump(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def gpt2_files(folder, shuffled=False):
    "GPT-2's files; `shuffled`, with ids in another order than the merges."
    tokens, merges = byte_level()
    tokens = random.Random(4).sample(tokens, 400) if shuffled else tokens
    write_merges(folder, [*tokens, "<|endoftext|>"], merges)
    dump(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    return 401, {"bos_token_id": 400, "eos_token_id": 400}


def opt_files(folder):
    tokens, merges = byte_level()
    tokens = random.Random(2).sample(tokens, 400)
    write_merges(folder, ["<s>", "<pad>", "</s>", "<unk>", *tokens], merges)
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "</s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"}, "unk_token": "</s>",
        "pad_token": "<pad>", "add_prefix_space": False})
    return 404, {"bos_token_id": 2, "eos_token_id": 2}


def llama_files(folder, own="prepend"):
    "SentencePiece's way: a space is a letter, one stands before a text, rare letters are bytes."
    special = ["<unk>", "<s>", "</s>"]
    model = tk.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    trained = tk.Tokenizer(model)
    trained.normalizer = tk.normalizers.Replace(" ", "▁")
    lines = [text.replace("\n", " ") for text in corpus()[:40]]  # a new line is a byte, as theirs
    trained.train_from_iterator(lines, tk.trainers.BpeTrainer(
        vocab_size=500, special_tokens=special + [f"<0x{b:02X}>" for b in range(256)],
        show_progress=False, max_token_length=8))
    spec = json.loads(trained.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in special]
    if own == "prepend":
        spec["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, spec["normalizer"]]}
    else:
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "split": False,
                                 "prepend_scheme": own}
    full = tk.Tokenizer.from_str(json.dumps(spec))
    full.decoder = tk.decoders.Sequence([
        tk.decoders.Replace("▁", " "), tk.decoders.ByteFallback(), tk.decoders.Fuse(),
        tk.decoders.Strip(" ", 1, 0)])
    full.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    full.save(str(folder / "tokenizer.json"))
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    return full.get_vocab_size(), {"bos_token_id": 1, "eos_token_id": 2}


def llama3_files(folder):
    from transformers.convert_slow_tokenizer import TikTokenConverter

    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(folder / "tokenizer.model", bpe.train(corpus(), 401))
    names = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 9: "<|eot_id|>"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # it would keep a copy for the next test
        full = TikTokenConverter(
            str(folder / "tokenizer.model"), pattern=LLAMA3,
            extra_special_tokens=[names.get(n, f"<|reserved_{n}|>") for n in range(16)]).converted()
    full.post_processor = tk.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 400)])
    full.save(str(folder / "tokenizer.json"))  # tokenizer.model stays, as theirs, and says nothing
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eot_id|>"})
    return 400 + 16 - LEFT, {"bos_token_id": 400, "eos_token_id": [401, 409]}


def qwen_files(folder):
    tokens, merges = byte_level()
    model = tk.models.BPE({token: i for i, token in enumerate(tokens)}, list(map(tuple, merges)))
    full = tk.Tokenizer(model)
    full.normalizer = tk.normalizers.NFC()
    full.pre_tokenizer = tk.pre_tokenizers.Sequence([
        tk.pre_tokenizers.Split(tk.Regex(LLAMA3.replace("{1,3}", "")), "isolated"),
        tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    full.decoder = tk.decoders.ByteLevel()
    full.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    folder.mkdir(parents=True, exist_ok=True)
    full.save(str(folder / "tokenizer.json"))
    dump(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "add_bos_token": False})
    return 403, {"bos_token_id": 400, "eos_token_id": 402}


def saved_files(folder, kind):
    "What `transformers` makes of a tokeniser that it loaded: one tokenizer.json."
    size, ids = FILES[kind](folder / "first")
    if kind == "llama-metaspace":  # the class that most models of the hub name
        spec = json.loads((folder / "first" / "tokenizer.json").read_text())["model"]
        found = hf.LlamaTokenizer(vocab=spec["vocab"], merges=list(map(tuple, spec["merges"])),
                                  add_bos_token=True)
    else:
        dump(folder / "first" / "config.json", {"model_type": kind})
        found = hf.AutoTokenizer.from_pretrained(folder / "first")
    shutil.rmtree(folder / "first")
    found.save_pretrained(folder)
    assert not (folder / "vocab.json").exists()
    return size, ids


FILES = {"gpt2": gpt2_files, "gpt2-shuffled": lambda folder: gpt2_files(folder, True),
         "opt": opt_files, "llama": llama_files,
         "llama-metaspace": lambda folder: llama_files(folder, "first"),
         "llama-always": lambda folder: llama_files(folder, "always"),
         "llama3": llama3_files, "qwen": qwen_files}
FILES |= {f"{kind} saved": lambda folder, kind=kind: saved_files(folder, kind)
          for kind in ("gpt2", "opt", "llama-metaspace")}


# ---- models, saved by transformers ---------------------------------------------------------------

GPT2 = dict(n_positions=47, n_embd=18, n_layer=3, n_head=3)
OPT = dict(hidden_size=18, num_hidden_layers=3, ffn_dim=13, num_attention_heads=3,
           max_position_embeddings=47, word_embed_proj_dim=18)
LLAMA = dict(hidden_size=36, num_hidden_layers=3, intermediate_size=13, num_attention_heads=6,
             num_key_value_heads=6, max_position_embeddings=47)
SCALED = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=13)
VARIANTS = {  # name: tokeniser, class of the configuration, its settings
    "gpt2": ("gpt2", hf.GPT2Config, GPT2),
    "gpt2-inner-untied": ("gpt2", hf.GPT2Config, {
        **GPT2, "n_inner": 13, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}),
    "opt": ("opt", hf.OPTConfig, OPT),
    "opt-350m": ("opt", hf.OPTConfig, {
        **OPT, "word_embed_proj_dim": 11, "do_layer_norm_before": False}),
    "opt-projected": ("opt", hf.OPTConfig, {**OPT, "word_embed_proj_dim": 11}),
    "opt-post-norm-untied": ("opt", hf.OPTConfig, {
        **OPT, "do_layer_norm_before": False, "tie_word_embeddings": False}),
    "llama": ("llama", hf.LlamaConfig, LLAMA),
    "llama-2": ("llama-metaspace", hf.LlamaConfig, {
        **LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
    "llama-3": ("llama3", hf.LlamaConfig, {
        **LLAMA, "num_key_value_heads": 3, "rope_theta": 500000.0}),
    "llama-3.2": ("llama3", hf.LlamaConfig, {
        **LLAMA, "num_key_value_heads": 2, "tie_word_embeddings": True,
        "rope_parameters": {**SCALED, "rope_theta": 5000.0}}),
    "qwen2": ("qwen", hf.Qwen2Config, {**LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-6}),
    "qwen2-tied": ("qwen", hf.Qwen2Config, {
        **LLAMA, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1000.0}}),
}


def randomise(net):
    torch.manual_seed(3)
    for name, p in net.named_parameters():
        p.data.normal_(mean=float(p.dim() < 2 and name.endswith("weight")), std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A folder with a model and its tokeniser for each variant."
    root = tmp_path_factory.mktemp("hub")
    for kind, make in FILES.items():
        size, ids = make(root / "tokenisers" / kind)
        dump(root / "tokenisers" / f"{kind}.json", {"vocab_size": size + LEFT, **ids})
    for name, (kind, Config, changes) in VARIANTS.items():
        ids = json.loads((root / "tokenisers" / f"{kind}.json").read_text())
        net = randomise(hf.AutoModelForCausalLM.from_config(Config(**{
            **changes, **ids, "pad_token_id": 1})))
        net.save_pretrained(root / name)
        shutil.copytree(root / "tokenisers" / kind, root / name, dirs_exist_ok=True)
    return root


@pytest.fixture
def copy(root, tmp_path):
    "copy(name): a folder of one's own to change."
    return lambda name, to="copy": Path(shutil.copytree(root / name, tmp_path / to))


def ids_of(V, B=4, T=23):
    return torch.randint(3, V, (B, T), generator=torch.Generator().manual_seed(5))


def reload(folder):
    return hf.AutoModelForCausalLM.from_pretrained(folder).eval()


def edit(path, **changes):
    dump(path, {**json.loads(path.read_text()), **changes})


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    held = st.load_file(path)
    change(held)
    st.save_file({name: value.contiguous() for name, value in held.items()}, path)


def sentence(error):
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    return text


# ---- the same numbers ----------------------------------------------------------------------------


def assert_same(ours, theirs, tolerance=1e-5):
    V = ours.config.vocab_size
    ids = ids_of(V)
    with torch.no_grad():
        expected, actual = theirs(ids).logits, ours.logits(ours(ids))
        assert expected.std() > 0.1 and actual.shape[-1] == V
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
        # rows of other lengths, padded on the left
        real = torch.arange(23) >= torch.tensor([0, 4, 11, 22])[:, None]
        positions = (real.cumsum(1) - 1).clamp(min=0)
        more = {} if isinstance(theirs, hf.OPTForCausalLM) else {"position_ids": positions}
        expected = theirs(ids, attention_mask=real.long(), **more).logits
        actual = ours.logits(ours(ids.where(real, V), real))
        torch.testing.assert_close(actual[real], expected[real], atol=tolerance, rtol=0)


def greedy(net, prompts, count=20):
    "What `transformers` makes of left-padded prompts: ids up to the first EOS."
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ends = net.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    out = net.generate(ids, attention_mask=real, max_new_tokens=count, do_sample=False,
                       pad_token_id=1)[:, width:].tolist()
    cut = lambda row: next((n + 1 for n, i in enumerate(row) if i in ends), len(row))
    return [row[:cut(row)] for row in out]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_and_greedy_samples_equal_transformers(root, name):
    # heads split wrongly, a bias lost, a matrix not turned, OPT's offset, another rotation or norm
    ours, tokenizer = checkpoint.load_pretrained(root / name)
    theirs = reload(root / name)
    assert_same(ours, theirs)
    assert tokenizer.pad == tokenizer.vocab_size == ours.config.vocab_size
    assert tokenizer.eos in ours.config.eos
    rows = ids_of(ours.config.vocab_size).tolist()
    prompts = [row[:n] for row, n in zip(rows, (23, 5, 1, 12))]
    expected = greedy(theirs, prompts)
    assert m.generate(ours, prompts, 20, temperature=0) == expected
    assert len({tuple(row) for row in expected}) > 1


def test_scaled_rotation_equals_transformers_far_out():  # low and high swapped, no blend between
    config = hf.LlamaConfig(**{**LLAMA, "hidden_size": 384, "max_position_embeddings": 4000,
                               "rope_parameters": {**SCALED, "rope_theta": 500000.0,
                                                   "original_max_position_embeddings": 500}})
    shape = dict(channels=384, heads=6, kv_heads=6, context=4000, rope_theta=500000.0)
    rotary = hf.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    table = m.rope_table(m.ModelConfig(rope_scaling=(8.0, 1.0, 4.0, 500), **shape))
    cos, sin = rotary(torch.zeros(1), torch.arange(4000)[None])
    torch.testing.assert_close(table[0], cos[0], atol=3e-4, rtol=0)  # theirs has fp32 angles
    torch.testing.assert_close(table[1, :, 32:], sin[0, :, 32:], atol=3e-4, rtol=0)
    plain = m.rope_table(m.ModelConfig(**shape))
    assert (plain - table).abs().max() > 0.5


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "llama-3.2", "qwen2"])
@pytest.mark.parametrize("form", ["sharded", "bin", "sharded bin", "old"])
def test_every_kind_of_file(copy, name, form):  # a shard forgotten, names of older files unknown
    folder = copy(name)
    expected, net = checkpoint.load_pretrained(folder)[0].state_dict(), reload(folder)
    (folder / "model.safetensors").unlink()
    if form == "sharded":
        net.save_pretrained(folder, max_shard_size="12KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
    else:
        held = {key: value.clone() for key, value in net.state_dict().items()}
        if form == "old":  # buffers, a tied output matrix, no prefix
            held = {key.removeprefix("transformer.").removeprefix("model."): value
                    for key, value in held.items()}
            mask = torch.ones(1, 1, 47, 47, dtype=torch.uint8).tril()
            held |= {"gpt2": {"h.0.attn.bias": mask, "h.1.attn.masked_bias": torch.tensor(-1e4)},
                     "llama-3.2": {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
                     }.get(name, {})
        parts = [dict(list(held.items())[i::3]) for i in range(3)] if "sharded" in form else [held]
        names = [f"pytorch_model-{i}.bin" for i in range(3)] if "sharded" in form else [
            "pytorch_model.bin"]
        for part, file in zip(parts, names):
            torch.save(part, folder / file)
        if "sharded" in form:
            dump(folder / "pytorch_model.bin.index.json", {"weight_map": {
                key: file for part, file in zip(parts, names) for key in part}})
    actual = checkpoint.load_pretrained(folder)[0].state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_of_parameters_and_table(root, dtype):  # fp32 left somewhere: an error in attention
    for name in ("llama-3.2", "opt-350m"):
        net, _ = checkpoint.load_pretrained(root / name, dtype=dtype)
        assert {p.dtype for p in (*net.parameters(), *net.buffers())} == {dtype}
        assert net(ids_of(50)).dtype == dtype
        theirs = reload(root / name).to(dtype)
        if dtype == torch.float64:
            assert_same(net, theirs)
        else:
            assert torch.equal(net.embed.weight, theirs.get_input_embeddings().weight)


class Accounting(TorchDispatchMode):
    "The most bytes of tensors that were alive at once, those on the meta device left out."

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.mapped = {}, 0, set()  # what is mapped from a file takes none

    def note(self, tensor):
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            if self.mapped is None or storage.data_ptr() in self.mapped:
                return
            self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {k: v for k, v in self.alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.note(tensor)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["sharded", "bin"])
def test_never_two_copies_in_memory(root, tmp_path, monkeypatch, form, dtype):
    # a random model made first, a state dict held whole, a model in fp32 on the way to bf16
    folder = tmp_path / "big"
    config = hf.LlamaConfig(**{**LLAMA, "hidden_size": 96, "num_hidden_layers": 8,
                               "intermediate_size": 256, "vocab_size": 507})
    net = randomise(hf.LlamaForCausalLM(config))
    net.save_pretrained(folder, max_shard_size="300KB")
    llama_files(folder)
    largest = 4 * max(p.numel() for p in net.parameters())
    if form == "bin":
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for path in folder.glob("*.safetensors"):
            torch.save(st.load_file(path), path.with_suffix(".bin"))
            path.unlink()
        (folder / "model.safetensors.index.json").unlink()
        dump(folder / "pytorch_model.bin.index.json", {"weight_map": {
            name: Path(file).with_suffix(".bin").name
            for name, file in index["weight_map"].items()}})
    whole = sum(p.numel() for p in net.parameters()) * dtype.itemsize
    with Accounting() as seen:
        read = weights.tensors

        def noted(path):
            for name, shape, get in read(path):
                def got(get=get):
                    value = get()
                    seen.note(value)
                    return value
                yield name, shape, got
        monkeypatch.setattr(weights, "tensors", noted)
        load = torch.load

        def mapping(*args, mmap=False, **more):
            assert mmap
            before, seen.mapped = seen.mapped, None
            held = load(*args, mmap=mmap, **more)
            seen.mapped = before | {value.data_ptr() for value in held.values()}
            return held
        monkeypatch.setattr(torch, "load", mapping)
        loaded, _ = checkpoint.load_pretrained(folder, dtype=dtype)
    table = loaded.table.numel() * 8 * 4  # cosines and sines are made in float64
    assert whole <= seen.peak <= whole + largest + table, (seen.peak, whole, largest)
    assert largest + table < 0.4 * whole


# ---- the same ids --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_ids_equal_transformers(root, kind, tmp_path):
    # merges in the order of the ids, BOS lost or doubled, a space too many, a quoted </s> obeyed
    folder = shutil.copytree(root / "tokenisers" / kind, tmp_path / "model")
    ids = json.loads((root / "tokenisers" / f"{kind}.json").read_text())
    kind = kind.removesuffix(" saved")
    family = {"opt": "opt", "qwen": "qwen2"}.get(kind, kind.split("-")[0].rstrip("3"))
    dump(folder / "config.json", {"model_type": family, **ids})
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), data.Tokenizer(folder, 10_000, 10_000)
    plain = lambda text, **more: theirs(text, split_special_tokens=True, **more).input_ids
    bos = {"gpt2": None, "opt": 2, "qwen2": None}.get(family, 400 if kind == "llama3" else 1)
    eos = {"gpt2": 400, "opt": 2, "qwen2": 402}.get(family, 409 if kind == "llama3" else 2)
    assert (ours.bos, ours.eos, ours.pad) == (bos, eos, ids["vocab_size"])
    texts = strings()
    assert len(texts) == 2000
    adds = kind.startswith("llama") and kind != "llama3"  # SentencePiece brings the space itself
    for text in texts:
        assert ours.encode(text) == plain(text, add_special_tokens=False), text
        if text.strip():
            assert ours.prompt(text) == plain(text.rstrip()), text
            body = text.strip()
            expected = plain(body if adds else " " + body, add_special_tokens=False)
            if not (adds and body.startswith("▁")):  # newer files add no space before this letter
                assert ours.response(text) == [*expected, eos], text
        ids = ours.prompt(text) if text.strip() else ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    special = {ours.eos, *([] if bos is None else [bos])}
    quoted = "a </s><s> <|endoftext|> <|begin_of_text|><|eot_id|> <|im_end|> b"
    assert not special & set(ours.encode(quoted))
    assert ours.decode([ours.pad, *([] if bos is None else [bos]), *ours.encode("a b"), ours.eos,
                        ours.pad - 1, ours.pad]) == "a b"  # a row of the model that is no token
    assert ours.encode("lone \ud800 half") == ours.encode("lone \ufffd half")
    assert ours.encode("\ud83d\ude00") == ours.encode("😀")


@pytest.mark.parametrize("kind", ["llama", "llama-metaspace", "opt"])
def test_a_response_begins_with_one_space_and_a_cue_with_none(root, kind, tmp_path):
    # the space of SentencePiece on top of ours, or in the middle of a prompt that was cut
    folder = shutil.copytree(root / "tokenisers" / kind, tmp_path / "model")
    ids = json.loads((root / "tokenisers" / f"{kind}.json").read_text())
    dump(folder / "config.json", {"model_type": "opt" if kind == "opt" else "llama", **ids})
    tokenizer = data.Tokenizer(folder, 30, 20)
    if kind != "opt":
        text = lambda ids: "".join(map(tokenizer.encoding.tokenizer.id_to_token, ids))
        assert text(tokenizer.response(" the cat ")[:-1]) == "▁the▁cat"
        assert text(tokenizer.encode("the")) == "▁the"
        assert text(tokenizer.encode("\nTL;DR:", inside=True)) == "<0x0A>TL;DR:"
    cue = tokenizer.encode("\nTL;DR:", inside=True)
    post = "the cat " * 40
    start = [tokenizer.bos, *tokenizer.encode(post)[:29 - len(cue)]]
    assert tokenizer.prompt(post + "\nTL;DR:") == [*start, *cue]
    assert tokenizer.decode(start).startswith("the cat the")


def test_fingerprints_and_records(root, copy):  # another vocabulary under a checkpoint's name
    seen = set()
    for name in ("gpt2", "opt", "llama", "llama-2", "llama-3", "qwen2"):
        tokenizer = data.Tokenizer(root / name, 9, 5)
        again = data.Tokenizer.of(tokenizer.record)
        assert (again.fingerprint, again.prompt_tokens, again.response_tokens) == (
            tokenizer.fingerprint, 9, 5)
        seen.add(tokenizer.fingerprint)
    assert len(seen) == 6
    folder = copy("opt")
    record = data.Tokenizer(folder).record
    vocab = json.loads((folder / "vocab.json").read_text())
    a, b = list(vocab)[-2:]
    dump(folder / "vocab.json", {**vocab, a: vocab[b], b: vocab[a]})
    assert data.Tokenizer(folder).fingerprint != data.Tokenizer.of(record).fingerprint
    with pytest.raises(ValueError, match="has changed"):
        data.Tokenizer.of(record | {"kept": None})


def test_whatever_ends_a_text_or_begins_it(copy):  # a chat model that never stops
    folder = copy("gpt2")
    edit(folder / "config.json", eos_token_id=7)
    edit(folder / "generation_config.json", eos_token_id=[7, 9, 10_000, -1])
    net, tokenizer = checkpoint.load_pretrained(folder)
    assert (tokenizer.eos, net.config.eos) == (7, (7, 9))
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    net, tokenizer = checkpoint.load_pretrained(folder)
    assert (tokenizer.eos, net.config.eos) == (400, (400, 7, 9))
    opt, llama = copy("opt", "opt"), copy("llama", "llama")
    (opt / "tokenizer_config.json").unlink()
    assert data.Tokenizer(opt).bos == 2  # OPT's custom without being told
    edit(llama / "tokenizer_config.json", add_bos_token=False)
    assert data.Tokenizer(llama).bos is None
    edit(folder / "config.json", bos_token_id=10_000)
    edit(folder / "tokenizer_config.json", add_bos_token=True)
    assert data.Tokenizer(folder).bos is None  # it would be taken for PAD


@pytest.mark.parametrize("form", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_left_alone(copy, form):  # it is applied, or its marks are obeyed
    plain, folder = data.Tokenizer(copy("qwen2", "plain")), copy("qwen2")
    template = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
                "{% endfor %}<|im_start|>assistant\n")
    edit(folder / "tokenizer_config.json", chat_template=template)
    if form == "chat_template.jinja":
        edit(folder / "tokenizer_config.json", chat_template=None)
        dump(folder / form, template)
    theirs, (_, ours) = hf.AutoTokenizer.from_pretrained(folder), checkpoint.load_pretrained(folder)
    chat = theirs.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False)
    assert chat.startswith("<|im_start|>user") and ours.fingerprint == plain.fingerprint
    assert ours.prompt("a cat") == plain.prompt("a cat") == theirs("a cat").input_ids
    assert not {401, 402} & set(ours.prompt(chat)) and theirs(chat).input_ids.count(402) == 1


@pytest.mark.parametrize("form", ["saved", "left over", "listed", "older", "named"])
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama3"])
def test_tokens_of_a_folder_of_ones_own(root, copy, kind, form):
    # the table without what was added to it: an EOS that nothing was taught, a word in pieces
    folder = copy(f"tokenisers/{kind}")
    ids = json.loads((root / "tokenisers" / f"{kind}.json").read_text())
    dump(folder / "config.json", {"model_type": kind.rstrip("3"), **ids, "vocab_size": 500})
    theirs = hf.AutoTokenizer.from_pretrained(folder)
    first, notes = len(theirs), json.loads((folder / "tokenizer_config.json").read_text())
    own = {"<|mine|>": first, "glorp": first + 1, "<|pad|>": first + 2}
    entry = lambda text: {"content": text, "special": text != "glorp", "lstrip": False,
                          "rstrip": False, "single_word": False, "normalized": text == "glorp"}
    named = {"eos_token": "<|mine|>", "pad_token": "<|pad|>"}
    if form in ("saved", "left over"):
        theirs.add_special_tokens(named)
        theirs.add_tokens(["glorp"])
        theirs.save_pretrained(folder)
        for name in ("vocab.json", "merges.txt") if form == "saved" else ():
            (folder / name).unlink(missing_ok=True)
    elif form == "listed":
        dump(folder / "tokenizer_config.json", notes | named | {
            "added_tokens_decoder": {i: entry(text) for text, i in own.items()}})
    elif form == "older":
        dump(folder / "added_tokens.json", own)
        dump(folder / "special_tokens_map.json", named | {"eos_token": entry("<|mine|>")})
    else:
        dump(folder / "tokenizer_config.json", notes | named)
    theirs, ours = hf.AutoTokenizer.from_pretrained(folder), data.Tokenizer(folder, 10_000, 10_000)
    assert ours.eos == theirs.eos_token_id == first and ours.encode("x <|mine|>")[-1] != first
    for text in [*strings(200), "a glorp b<|mine|>", "glorpglorp <|pad|>"]:
        assert ours.encode(text) == theirs(text, split_special_tokens=True,
                                           add_special_tokens=False).input_ids, text
    assert (theirs.convert_tokens_to_ids("glorp") in ours.encode("a glorp")) == (form != "named")
    assert ours.decode([*ours.encode("a glorp"), ours.eos]) == "a glorp"
    again = data.Tokenizer.of(ours.record)
    assert again.fingerprint == ours.fingerprint and again.encode("glorp") == ours.encode("glorp")


def test_gpt2_by_its_name(root, monkeypatch):  # another eos, or the hub asked for a tokeniser
    import tiktoken

    byte = {letter: b for b, letter in weights.LETTER.items()}
    ranks = {bytes(map(byte.get, token)): i for i, token in enumerate(byte_level()[0])}
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: tiktoken.Encoding(
        name, pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens={}))
    for name in ("gpt2", "gpt2-xl", "openai-community/gpt2-medium"):
        tokenizer = data.Tokenizer(name)
        assert (tokenizer.eos, tokenizer.pad, tokenizer.bos) == (400, 401, None)
        assert tokenizer.encode("the cat") == data.Tokenizer(root / "gpt2").encode("the cat")


# ---- the hub -------------------------------------------------------------------------------------


def test_names_of_the_hub(tmp_path, monkeypatch):  # a checkpoint looked for in the network
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "distilgpt2", "gpt2-xl", "facebook/opt-125m", "meta-llama/Llama-3.2-1B"):
        assert weights.is_pretrained(name) and weights.is_pretrained(Path(name))
    for name in ("base", "world", "my.bpe", "out/sft.pt", "a/my.bpe", "out/summarise/sft.pt",
                 "../x", "/tmp/x/y", "./a"):
        assert not weights.is_pretrained(name), name
    (tmp_path / "out").mkdir()
    assert weights.is_pretrained("out")
    dump(tmp_path / "my" / "ranks", "x")
    assert not weights.is_pretrained("my/ranks")


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "sharded"])
def test_only_the_needed_files_are_fetched(root, copy, tmp_path, monkeypatch, form):
    # both kinds of weights, or the files of other frameworks
    import fnmatch

    import huggingface_hub

    remote, cache, fetched = copy("llama-2", "remote"), tmp_path / "cache", []
    torch.save(reload(remote).state_dict(), remote / "pytorch_model.bin")
    if form == "sharded":
        (remote / "model.safetensors").unlink()
        reload(root / "llama-2").save_pretrained(remote, max_shard_size="12KB")
    elif form == "pytorch_model.bin":
        (remote / "model.safetensors").unlink()
    for name in ("tf_model.h5", "flax_model.msgpack", "README.md", "onnx/config.json"):
        dump(remote / name, "x")

    def snapshot(name, allow_patterns):
        assert name == "me/mine"
        for path in remote.rglob("*"):
            its = path.relative_to(remote).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(its, p) for p in allow_patterns):
                fetched.append(its)
                (cache / its).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cache / its)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    tokenizer = data.Tokenizer("me/mine")
    assert not [name for name in fetched if name.endswith((".safetensors", ".bin"))]
    net, same = checkpoint.load_pretrained("me/mine")
    assert same.fingerprint == tokenizer.fingerprint == data.Tokenizer.of(same.record).fingerprint
    assert same.name == "me/mine"
    assert_same(net, reload(root / "llama-2"))
    kinds = {Path(name).suffix for name in fetched}
    assert kinds == {".json", Path(form).suffix or ".safetensors"}
    assert "onnx/config.json" not in fetched

    def unreachable(*args, **more):
        raise RuntimeError("no route\nto host")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(OSError, match="no route") as error:
        checkpoint.load_pretrained("me/mine")
    assert "me/mine" in sentence(error)


# ---- every stage, and the way out ----------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    "sft, reward, ppo and bon from a folder, on eight rows."
    corpus, out = tmp_path_factory.mktemp("corpus"), str(tmp_path_factory.mktemp("out"))
    rows = [{"prompt": f"TITLE: cat {i}\nTL;DR:", "response": f"the cat sat {i}"} for i in range(8)]
    pairs = [{"prompt": r["prompt"], "chosen": r["response"], "rejected": "a mat"} for r in rows]
    for split in ("train", "validation"):
        dump(corpus / f"{split}.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
        dump(corpus / f"comparisons.{split}.jsonl", "".join(json.dumps(r) + "\n" for r in pairs))
    common = dict(data=str(corpus), out=out, device="cpu")
    first = sft.train(sft.Config(**common, init=str(root / "llama-2"), steps=2, batch=4, every=1,
                                 prompt_tokens=19, response_tokens=12))
    scorer = reward.train(reward.Config(**common, steps=2, batch=4, every=1))
    last = ppo.train(ppo.Config(**common, steps=2, batch=8, minibatches=2, every=1))
    return {"sft": first, "reward": scorer, "ppo": last, "common": common}


def test_stages_start_from_a_folder(root, runs, capsys):  # limits, tokeniser or parent lost
    net, record = checkpoint.load(runs["sft"], "policy")
    kept = record["tokenizer"]
    assert (kept["prompt_tokens"], kept["response_tokens"]) == (19, 12)
    assert kept["name"] == str(root / "llama-2")
    start, parent = checkpoint.load(root / "llama-2", "policy")
    assert record["meta"]["parents"]["init"] == parent["digest"] and start.config == net.config
    assert not torch.equal(start.embed.weight, net.embed.weight)
    for which in ("ppo", "reward"):
        _, record = checkpoint.load(runs[which], "policy" if which == "ppo" else "reward")
        assert record["tokenizer"]["fingerprint"] == data.Tokenizer(root / "llama-2").fingerprint
    common = {**runs["common"], "out": runs["common"]["out"] + "/direct"}
    direct = str(root / "llama-2")
    with pytest.raises(ValueError, match="new ones in a context"):  # 48 do not fit this model
        ppo.train(ppo.Config(**common, init=direct, reward=str(runs["reward"]), steps=1, batch=4,
                             minibatches=1))
    with pytest.raises(ValueError, match="--prompt-tokens 224"):
        reward.train(reward.Config(**common, init=direct, steps=1, batch=4, every=1))
    chosen = bon.train(bon.Config(**common, init=str(runs["sft"]), reward=str(runs["reward"]), n=2,
                                  prompts=2))
    assert Path(chosen).exists()
    with pytest.raises(ValueError, match="--prompt-tokens 224"):
        sft.train(sft.Config(**common, init=direct, steps=1))
    short = {**runs["common"], "out": runs["common"]["out"] + "/short"}
    capsys.readouterr()
    sft.train(sft.Config(**short, init=direct, steps=1, batch=4, prompt_tokens=9,
                         response_tokens=12))
    for stage, more in ((reward, dict(steps=1, batch=4)), (bon, dict(n=2, prompts=2)),
                        (ppo, dict(steps=1, batch=8, minibatches=2))):
        stage.train(stage.Config(**short, **more))
    said = capsys.readouterr().err
    assert said.count("8 of 8 prompts were cut to --prompt-tokens 9") == 4, said  # sft's of 2 files
    assert said.count("2 of 2 prompts were cut") == 1
    with pytest.raises(ValueError, match="another tokenizer"):
        checkpoint.load(root / "opt", "policy", tokenizer=parent["tokenizer"]["fingerprint"])


def exported_equals(path, folder, texts, count=12):
    "The folder alone, by transformers: the same logits, ids and greedy texts as the checkpoint."
    net, record = checkpoint.load(path, "policy")
    ours, theirs = data.Tokenizer.of(record["tokenizer"]), reload(folder)
    text = hf.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():  # the world's logits are in the tens
        largest = net.logits(net(ids_of(net.config.vocab_size))).abs().max().item()
    assert_same(net, theirs, tolerance=max(1e-5, 1.5e-6 * largest))
    for prompt in texts:
        ids = data.encode_prompt(ours, prompt, 10_000)
        assert text(prompt.rstrip(), split_special_tokens=True).input_ids == ids, prompt
    prompts = [text(p).input_ids for p in ("TITLE: cat\nTL;DR:", "the", "TITLE: the boss told")]
    responses = greedy(theirs, prompts, count)
    expected = m.generate(net, prompts, count, temperature=0)
    assert responses == expected
    assert [text.decode(r, skip_special_tokens=True) for r in responses] == [
        ours.decode(r) for r in expected]
    assert any(ours.decode(r).strip() for r in expected)
    again, tokenizer = checkpoint.load_pretrained(folder)
    assert {**vars(again.config), "eos": 0} == {**vars(net.config), "eos": 0}
    assert set(again.config.eos) == set(net.config.eos)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(),
                                                 net.state_dict().values()))
    for prompt in texts:
        assert data.encode_prompt(tokenizer, prompt, 10_000) == data.encode_prompt(
            ours, prompt, 10_000)
        assert tokenizer.response(prompt) == ours.response(prompt)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (ours.bos, ours.eos, ours.pad)


@pytest.mark.parametrize("name", ["gpt2-inner-untied", "opt", "opt-350m", "llama", "llama-2",
                                  "llama-3.2", "qwen2"])
def test_export_of_every_family(root, tmp_path, name):  # a view saved with its neighbours, no bos
    net, tokenizer = checkpoint.load_pretrained(root / name)
    checkpoint.save(tmp_path / "x.pt", "policy", net, tokenizer.record, {})
    checkpoint.export(tmp_path / "x.pt", tmp_path / "folder")
    exported_equals(tmp_path / "x.pt", tmp_path / "folder", [t for t in strings(150) if t.strip()])


def test_export_of_a_trained_policy(runs, tmp_path, capsys):
    commands.main(["export", str(runs["ppo"]), str(tmp_path / "ppo")])
    assert "AutoModelForCausalLM" in capsys.readouterr().out
    exported_equals(runs["ppo"], tmp_path / "ppo", ["cat 3\nTL;DR:"])  # 12 tokens at most


@pytest.mark.skipif(not sft.BASE.exists(), reason="no shipped base")
def test_export_of_the_embedded_world(tmp_path):  # merges that are not those of the ranks
    checkpoint.export(sft.BASE, tmp_path / "base")
    texts = [e.prompt for e in data.load("summarise", "validation", 20)]
    texts += [t for t in strings() if t.strip()]
    exported_equals(sft.BASE, tmp_path / "base", texts, count=48)


def test_export_writes_all_or_nothing(runs, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    dump(tmp_path / "full" / "x", "mine")
    with pytest.raises(ValueError, match="exists already"):
        checkpoint.export(runs["sft"], tmp_path / "full")
    with pytest.raises(SystemExit) as exit:
        commands.main(["export", str(tmp_path / "none.pt"), str(tmp_path / "new")])
    assert exit.value.code == 2 and "does not exist" in capsys.readouterr().err

    def full_disk(*args, **more):
        raise RuntimeError("no space left")  # the library's own error is no OSError either
    monkeypatch.setattr(st, "save_file", full_disk)
    with pytest.raises(OSError, match="could not be written"):
        checkpoint.export(runs["sft"], tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]
    odd = m.Transformer(m.ModelConfig(vocab_size=2048, activation="relu"))
    with pytest.raises(ValueError, match="none of gpt2, opt, llama, qwen2"):
        weights.write(odd, data.Tokenizer(), tmp_path / "odd")


# ---- bad input -----------------------------------------------------------------------------------


def drop(name):
    return lambda folder: edit_tensors(folder, lambda held: held.pop(name))


def put(name, value):
    return lambda folder: edit_tensors(folder, lambda held: held.update({name: value}))


def config(**changes):
    return lambda folder: edit(folder / "config.json", **changes)


def index(weight_map):
    def change(folder):
        (folder / "model.safetensors").unlink()
        dump(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    return change


def without(field):
    def change(folder):
        held = json.loads((folder / "config.json").read_text())
        del held[field]
        dump(folder / "config.json", held)
    return change


def truncate(name, share=0.6):
    def change(folder):
        held = (folder / name).read_bytes()
        (folder / name).write_bytes(held[:int(share * len(held))])
    return change


def truncated_bin(folder):
    torch.save(st.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    truncate("pytorch_model.bin")(folder)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):  # what unpickling it would call
        return Path.mkdir, (self.path,)


def hostile_bin(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Hostile(folder / "obeyed")}, folder / "pytorch_model.bin")


def lost_shard(folder):
    net = reload(folder)
    (folder / "model.safetensors").unlink()
    net.save_pretrained(folder, max_shard_size="12KB")
    next(folder.glob("model-00002*")).unlink()


def no_tokeniser(folder):
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)


def sentencepiece(folder):
    no_tokeniser(folder)
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")


BAD = {  # what is wrong: the model, how it is broken, words of the sentence
    "tensor missing": ("gpt2", drop("transformer.h.1.mlp.c_fc.weight"),
                       ["model.safetensors", "transformer.h.1.mlp.c_fc.weight is missing"]),
    "output missing": ("llama", drop("lm_head.weight"), ["lm_head.weight is missing"]),
    "tensor too many": ("llama", put("model.layers.0.self_attn.q_proj.bias", torch.ones(36)),
                        ["model.safetensors", "q_proj.bias", "not be in a llama"]),
    "layer too many": ("opt", config(num_hidden_layers=2), ["layers.2.", "not be in"]),
    "layer too few": ("opt", config(num_hidden_layers=4), ["layers.3.", "of 16"]),
    "wrong shape": ("llama-2", put("model.norm.weight", torch.ones(35)),
                    ["model.safetensors", "model.norm.weight", "(35,)", "(36,)"]),
    "not turned": ("gpt2", put("transformer.h.0.attn.c_attn.weight", torch.ones(54, 18)),
                   ["c_attn.weight", "(54, 18)", "(18, 54)"]),
    "positions": ("opt", config(max_position_embeddings=49), ["embed_positions", "(49,", "(51,"]),
    "vocabulary": ("opt", config(vocab_size=500), ["embed_tokens", "(411, 18)", "(500, 18)"]),
    "integers": ("opt", put("model.decoder.layers.0.fc1.bias", torch.ones(13, dtype=torch.int8)),
                 ["fc1.bias", "int8"]),
    "not tied": ("llama-3.2", put("lm_head.weight", torch.ones(416, 36)),
                 ["lm_head.weight", "tie_word_embeddings"]),
    "truncated": ("llama", truncate("model.safetensors"), ["model.safetensors is damaged"]),
    "truncated header": ("llama", truncate("model.safetensors", 0.001), ["is damaged"]),
    "truncated bin": ("gpt2", truncated_bin, ["pytorch_model.bin is damaged"]),
    "code in a bin": ("gpt2", hostile_bin, ["pytorch_model.bin", "more than tensors"]),
    "no weights": ("gpt2", lambda folder: (folder / "model.safetensors").unlink(),
                   ["neither model.safetensors nor pytorch_model.bin", "copy that file"]),
    "config alone": ("gpt2", lambda folder: [path.unlink() for path in folder.iterdir()
                                             if path.name != "config.json"],
                     ["holds no weights", "copy that file"]),
    "lost shard": ("llama", lost_shard, ["model-00002", "does not exist"]),
    "no config": ("gpt2", lambda folder: (folder / "config.json").unlink(), ["config.json"]),
    "config cut": ("gpt2", truncate("config.json"), ["config.json is damaged"]),
    "config a list": ("gpt2", lambda folder: dump(folder / "config.json", "[]"), ["JSON object"]),
    "field missing": ("gpt2", without("n_layer"), ["config.json", "n_layer=None"]),
    "field of text": ("llama", config(rms_norm_eps="1e-5"), ["rms_norm_eps='1e-5'"]),
    "heads": ("llama", config(num_attention_heads=7), ["head_dim"]),
    "architecture": ("gpt2", config(model_type="bloom"),
                     ["'bloom'", "gpt2, opt, llama, qwen2 are supported"]),
    "activation": ("gpt2", config(activation_function="gelu"), ["'gelu'", "'gelu_new'"]),
    "relu": ("opt", config(activation_function="gelu"), ["'gelu'", "'relu'"]),
    "inverse layer": ("gpt2", config(scale_attn_by_inverse_layer_idx=True), ["inverse_layer_idx"]),
    "attention bias": ("llama", config(attention_bias=True), ["attention_bias=True"]),
    "head width": ("llama", config(head_dim=12), ["head_dim=12"]),
    "rope": ("llama", config(rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=None),
             ["'linear'", "'llama3'"]),
    "rope field": ("llama", config(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
                   ["low_freq_factor=None"]),
    "window": ("qwen2", config(use_sliding_window=True), ["use_sliding_window"]),
    "quantised": ("llama", config(quantization_config={"bits": 4}), ["quantization_config"]),
    **{f"{field} {value!r}": (name, config(**{field: value}), ["config.json", f"{field}={value!r}"])
       for name, field, value in (
           ("gpt2", "n_layer", 3.0), ("gpt2", "n_head", True), ("gpt2", "n_inner", "13"),
           ("gpt2", "vocab_size", None), ("gpt2", "eos_token_id", "400"),
           ("gpt2", "eos_token_id", [400, None]), ("gpt2", "n_embd", None),
           ("gpt2", "layer_norm_epsilon", [1e-5]), ("gpt2", "tie_word_embeddings", "yes"),
           ("opt", "do_layer_norm_before", 1), ("opt", "word_embed_proj_dim", "18"),
           ("opt", "bos_token_id", "2"), ("llama", "num_key_value_heads", 2.5),
           ("llama", "num_hidden_layers", -1), ("llama", "rope_parameters", "llama3"))},
    "architectures": ("gpt2", config(model_type=["gpt2"]), ["config.json", "['gpt2']"]),
    "no layers": ("llama", config(num_hidden_layers=0), ["config.json", "layers=0"]),
    "theta": ("llama", config(rope_parameters={"rope_theta": "1e4"}),
              ["config.json has rope_theta='1e4'"]),
    **{f"{file} {content}": (name, lambda folder, file=file, content=content: dump(
        folder / file, content), [file, *words]) for name, file, content, *words in (
            ("gpt2", "generation_config.json", {"eos_token_id": {"id": 1}}, "eos_token_id={'id'"),
            ("gpt2", "generation_config.json", "[" * 10**5, "damaged"),
            ("gpt2", "tokenizer_config.json", {"eos_token": 7}, "eos_token has", "=7"),
            ("gpt2", "tokenizer_config.json", {"eos_token": {"content": 7}}, "content=7"),
            ("gpt2", "tokenizer_config.json", {"added_tokens_decoder": []}, "decoder=[]"),
            ("gpt2", "tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}},
             "x='x'", "whole number"),
            ("gpt2", "tokenizer_config.json", {"added_tokens_decoder": {"401": "y"}}, "401='y'"),
            ("gpt2", "added_tokens.json", {"<x>": None}, "<x>=None"),
            ("gpt2", "vocab.json", {"a": "b"}, "merges.txt"),
            ("llama", "tokenizer.json", {"normalizer": "NFC"}, "can read"))},
    "index": ("gpt2", index(["model.safetensors"]), ["safetensors.index.json", "weight_map=["]),
    "index of numbers": ("gpt2", index({"wte.weight": 1, "wpe.weight": "x"}),
                         ["safetensors.index.json", "wte.weight=1"]),
    "no tokeniser": ("gpt2", no_tokeniser, ["tokenizer.json", "vocab.json", "tokenizer.model"]),
    "sentencepiece": ("llama", sentencepiece, ["tokenizer.model", "tokenizer.json"]),
    "tokeniser cut": ("llama", truncate("tokenizer.json"), ["tokenizer.json is damaged"]),
    "tokeniser foreign": ("llama", lambda folder: dump(folder / "tokenizer.json", {"model": {}}),
                          ["tokenizer.json", "can read"]),
    "merge of three": ("opt", lambda folder: dump(folder / "merges.txt", "a b\na b c\n"),
                       ["merges.txt", "line 2"]),
    "vocab of others": ("opt", lambda folder: dump(folder / "merges.txt", "a zzz\n"),
                        ["vocab.json", "merges.txt", "zzz"]),
    "added elsewhere": ("gpt2", lambda folder: dump(folder / "added_tokens.json", {"<x>": 405}),
                        ["'<x>'", "405", "401"]),
    "larger tokeniser": ("llama", config(vocab_size=400), ["500 ids", "only 400"]),
    "no end": ("gpt2", lambda folder: [config(eos_token_id=None)(folder),
                                       (folder / "generation_config.json").unlink()],
               ["eos_token_id"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_in_a_sentence(copy, case):  # a traceback, or a half-loaded model
    name, damage, words = BAD[case]
    folder = copy(name)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        checkpoint.load_pretrained(folder)
    text = sentence(error)
    assert all(word in text for word in words), text
    assert str(folder) in text
    assert not (folder / "obeyed").exists()


def test_absent_libraries_name_the_command(root, monkeypatch):  # an ImportError for a reader
    for library, name in (("safetensors", "gpt2"), ("tokenizers", "gpt2"), ("tokenizers", "llama")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            with pytest.raises(ModuleNotFoundError, match=f"pip install {library}"):
                checkpoint.load_pretrained(root / name)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(ModuleNotFoundError, match="pip install huggingface_hub"):
            checkpoint.load_pretrained("nobody/nothing")
