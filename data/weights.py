"""
The hub's files in and out: a pretrained model's settings, its tensors, its tokeniser.

A model of the Hugging Face hub is a folder: config.json says how large it is, model.safetensors
(or, of older models, pytorch_model.bin) holds named tensors, and the tokeniser comes in one of four
formats. Each of the tables below is read in both directions, to load a model and to export one.
Nothing that is read here can execute code.
"""

import json
import os
import re
import shutil
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

# --------------------------------------------------------------------------------------------
# Where a model is

GPT2 = re.compile(r"(openai-community/)?gpt2(-medium|-large|-xl)?")  # OpenAI's own four
SMALL_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "tokenizer.model", "original/tokenizer.model", "vocab.json", "merges.txt"]
KINDS = ("model.safetensors", "pytorch_model.bin")  # files of tensors, the better one first


def is_pretrained(name):
    """Whether this is a folder, or looks like a name of the hub, and not a file that is or was."""
    path = Path(name)
    if path.exists() or path.suffix in (".pt", ".bpe"):
        return path.is_dir()
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+|(distil)?gpt2[\w-]*", path.as_posix()))


def find(name, tensors=True):
    """
    The folder of a model: `name` itself, or the hub's cache, where what is missing is fetched:
    only the files that are read here, and of the tensors only one kind.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{name} is no folder, and to fetch it from the hub you need "
                                  f"`pip install huggingface_hub`.") from None
    fetch = partial(snapshot_download, Path(name).as_posix())
    try:
        folder = Path(fetch(allow_patterns=SMALL_FILES + [f"{kind}.index.json" for kind in KINDS]))
        for kind in KINDS if tensors else ():
            names = shard_names(folder, kind)
            fetch(allow_patterns=names)
            if all((folder / name).is_file() for name in names):
                break
    except Exception as error:  # a wrong name, no network, a gate: each library its own errors
        raise OSError(f"{name} is neither a file nor a folder here, and could not be fetched from "
                      f"the hub ({str(error).strip().splitlines()[0]}): check the name and the "
                      f"connection, and for a gated model run `hf auth login`.") from error
    return folder


def read_json(path):
    """A JSON object from a file; None if there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: fetch it again.")
    return found


# --------------------------------------------------------------------------------------------
# Settings: config.json

# family: what of ModelConfig is the same in all of its models
STYLES = {
    "gpt2": dict(norm="layer", activation="gelu", positions="learned", bias=True, qkv_bias=False,
                 norm_first=True, embed_width=0),
    "opt": dict(norm="layer", activation="relu", positions="learned", bias=True, qkv_bias=False,
                norm_eps=1e-5),
    "llama": dict(norm="rms", activation="swiglu", positions="rotary", bias=False, qkv_bias=False,
                  norm_first=True, embed_width=0),
}
STYLES["qwen2"] = {**STYLES["llama"], "qkv_bias": True}
# family: what differs, ours and theirs
FIELDS = {
    "gpt2": dict(vocab_size="vocab_size", context="n_positions", layers="n_layer", heads="n_head",
                 channels="n_embd", norm_eps="layer_norm_epsilon"),
    "opt": dict(vocab_size="vocab_size", context="max_position_embeddings", heads=
                "num_attention_heads", layers="num_hidden_layers", channels="hidden_size",
                hidden="ffn_dim"),
}
FIELDS["llama"] = FIELDS["qwen2"] = {**FIELDS["opt"], "hidden": "intermediate_size",
                                     "norm_eps": "rms_norm_eps"}
# family: options that a model may have, with the values that are the same computation as ours
OPTIONS = {
    "gpt2": {"activation_function": ("gelu_new", "gelu_pytorch_tanh"),
             "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,),
             "add_cross_attention": (False,)},
    "opt": {"activation_function": ("relu",), "enable_bias": (True,),
            "layer_norm_elementwise_affine": (True,), "_remove_final_layer_norm": (False,)},
    "llama": {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)},
    "qwen2": {"hidden_act": ("silu",), "use_sliding_window": (False,)},
}
CLASSES = {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "llama": "LlamaForCausalLM",
           "qwen2": "Qwen2ForCausalLM"}
ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def need(config, key, path):
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{path} has {key}={value!r}, and a number is needed.")
    return value


def read_config(folder):
    """config.json of a model of a supported family."""
    path = folder / "config.json"
    config = read_json(path)
    if config is None:
        raise FileNotFoundError(f"{path} does not exist: a pretrained model's folder has one.")
    if config.get("model_type") not in STYLES:
        raise ValueError(f"{path} is of a model of type {config.get('model_type')!r}, and only "
                         f"{', '.join(STYLES)} are supported.")
    return config


def settings(folder):
    """Family and fields of ModelConfig; ValueError for a model that computes anything else."""
    path, config = folder / "config.json", read_config(folder)
    family = config["model_type"]
    fields = {ours: need(config, theirs, path) for ours, theirs in FIELDS[family].items()}
    fields = STYLES[family] | fields
    channels, heads = fields["channels"], fields["heads"]
    options = dict(OPTIONS[family])
    fields["kv_heads"] = heads
    fields["tied"] = config.get("tie_word_embeddings", family in ("gpt2", "opt"))
    if family == "gpt2":
        fields["hidden"] = config.get("n_inner") or 4 * channels
    elif family == "opt":
        width = config.get("word_embed_proj_dim") or channels
        fields["embed_width"] = 0 if width == channels else width
        fields["norm_first"] = config.get("do_layer_norm_before", True)
    else:
        fields["kv_heads"] = config.get("num_key_value_heads") or heads
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        fields["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"{path} has rope_scaling of type {kind!r}, and only 'llama3' or none "
                             f"is supported.")
        if kind == "llama3":
            fields["rope_scaling"] = tuple(need(rope, key, path) for key in ROPE)
        options |= {"head_dim": (channels // max(heads, 1), None), "partial_rotary_factor": (1.0,)}
        config = {**rope, **config}
    options["quantization_config"] = (None,)
    for name, values in options.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{path} has {name}={config[name]!r}, and for {family} only "
                             f"{' or '.join(map(repr, values))} is supported.")
    fields["eos"] = tuple(i for i in ends(folder, config) if i < fields["vocab_size"])
    return family, fields


def ends(folder, config):
    """Ids that end a text, the model's own first."""
    both = (config.get("eos_token_id"),
            (read_json(folder / "generation_config.json") or {}).get("eos_token_id"))
    lists = [x if isinstance(x, list) else [] if x is None else [x] for x in both]
    return list(dict.fromkeys(lists[0] + lists[1]))


# --------------------------------------------------------------------------------------------
# Tensors

# family: our module's name, then the hub's; several fill one of ours from the top down
OPT = {"embed": "embed_tokens", "position": "embed_positions", "project_in": "project_in",
       "project_out": "project_out", "norm": "final_layer_norm", "lm_head": "lm_head",
       "blocks": "layers", "norm1": "self_attn_layer_norm", "norm2": "final_layer_norm",
       "attention.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
       "attention.out": "self_attn.out_proj", "mlp.up": "fc1", "mlp.down": "fc2"}
LLAMA = {**OPT, "norm": "norm", "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
         "attention.out": "self_attn.o_proj", "mlp.up": "mlp.gate_proj mlp.up_proj",
         "mlp.down": "mlp.down_proj"}
NAMES = {
    "gpt2": {"embed": "wte", "position": "wpe", "norm": "ln_f", "lm_head": "lm_head", "blocks": "h",
             "norm1": "ln_1", "norm2": "ln_2", "attention.qkv": "attn.c_attn",
             "attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"},
    "opt": OPT, "llama": LLAMA, "qwen2": LLAMA,
}
PREFIX = {"gpt2": "transformer.", "opt": "model.decoder.", "llama": "model.", "qwen2": "model."}
OFFSET = 2  # OPT's first position has row 2; what was padding had row 1
BUFFERS = re.compile(r".*\.(attn\.(masked_)?bias|rotary_emb\.inv_freq)")  # of old files; computed


def places(model, family):
    """
    {the hub's name of a tensor: the part of our parameters that holds it}. The parts are views: to
    copy into them is to load, and to write them is to export. GPT-2's matrices are transposed.
    """
    config, found = model.config, {}
    width = config.channels // config.heads
    for ours, value in model.named_parameters():
        (module, kind), block = ours.rsplit(".", 1), ""
        if module.startswith("blocks."):
            _, number, module = module.split(".", 2)
            block = f"{NAMES[family]['blocks']}.{number}."
        theirs = NAMES[family][module].split()
        sizes = [len(value) // len(theirs)] * len(theirs)
        if len(theirs) == 3:  # queries, keys, values
            sizes = [config.heads * width, config.kv_heads * width, config.kv_heads * width]
        prefix = "" if module == "lm_head" else PREFIX[family]
        for name, part in zip(theirs, value.detach().split(sizes)):
            turned = family == "gpt2" and block and part.dim() == 2
            found[f"{prefix}{block}{name}.{kind}"] = part.T if turned else part
    return found


def shard_names(folder, kind):
    """The files that hold the tensors, by the index of a model that is kept in several."""
    index = read_json(folder / f"{kind}.index.json")
    if index is None:
        return [kind]
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"{folder / kind}.index.json has no weight_map: fetch it again.")
    return sorted(set(index["weight_map"].values()))


def shards(folder):
    for kind in KINDS:
        if (folder / kind).is_file():
            return [folder / kind]
        if (folder / f"{kind}.index.json").is_file():
            paths = [folder / name for name in shard_names(folder, kind)]
            for path in paths:
                if not path.is_file():
                    raise FileNotFoundError(f"{path} does not exist, and {kind}.index.json says "
                                            f"that it holds tensors: fetch it again.")
            return paths
    raise FileNotFoundError(f"{folder} holds neither {' nor '.join(KINDS)}.")


def tensors(path):
    """Yields (name, shape, a function that reads the tensor) for each tensor of a file."""
    if path.suffix == ".safetensors":
        safe_open = safetensors(path).safe_open
        try:
            file = safe_open(path, "pt")
        except Exception as error:  # SafetensorError is no ValueError
            raise ValueError(f"{path} is damaged ({error}): fetch it again.") from error
        with file:
            for name in file.keys():
                shape = tuple(file.get_slice(name).get_shape())
                yield name, shape, partial(file.get_tensor, name)
        return
    try:  # mapped, not read: a tensor comes into memory when it is copied (zip files only)
        held = torch.load(path, map_location="cpu", weights_only=True,
                          mmap=zipfile.is_zipfile(path))
        found = [(name, tuple(value.shape), partial(held.get, name))
                 for name, value in held.items()]
    except Exception as error:  # truncated, foreign, or more than tensors: torch has many ways
        raise ValueError(f"{path} is damaged or holds more than tensors: fetch it "
                         f"again.") from error
    yield from found


def safetensors(path):
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path} needs `pip install safetensors`.") from None
    return safetensors


def fill(model, family, folder, device, dtype):
    """
    Give a model on the meta device its memory, of `dtype` on `device`, and read its tensors. All
    names and shapes are checked first, from the files' headers. One tensor is in memory beside the
    model at a time, or one file, if it is a .bin of before 2020.
    """
    paths, prefix = shards(folder), PREFIX[family]
    wanted = {name: tuple(part.shape) for name, part in places(model, family).items()}
    table = f"{prefix}embed_positions.weight"
    if family == "opt":
        rows, columns = wanted[table]
        wanted[table] = (rows + OFFSET, columns)
    tied = "lm_head.weight" not in wanted  # many files hold it all the same
    if tied:
        wanted["lm_head.weight"] = wanted[f"{prefix}{NAMES[family]['embed']}.weight"]

    # each file has a function of its own for both passes: with it goes what it held of the file
    def check(path):
        for name, its, shape, _ in known(path, prefix):
            if name not in wanted:
                raise ValueError(f"{path} holds {its}, which this {family} model has no place for.")
            if shape != wanted[name]:
                raise ValueError(f"{path}: {its} has shape {shape}, and by config.json it should "
                                 f"be {wanted[name]}.")
            yield name

    found = {name for path in paths for name in check(path)}
    missing = [name for name in wanted if name not in found and not (tied and "lm_head" in name)]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise ValueError(f"{folder}: {missing[0]}{more} missing from {paths[0].name}"
                         f"{' and its other parts' if len(paths) > 1 else ''}.")
    model.to(dtype).to_empty(device=device)
    into = places(model, family)

    def read_file(path):
        for name, its, _, read in known(path, prefix):
            value = read()
            if not value.is_floating_point():
                raise ValueError(f"{path}: {its} is {value.dtype}, and only floating-point weights "
                                 f"are supported.")
            if name in into:
                into[name].copy_(value[OFFSET:] if family == "opt" and name == table else value)

    def check_tied(path):
        for name, its, _, read in known(path, prefix):
            if name not in into and not torch.equal(read().to(model.embed.weight),
                                                    model.embed.weight):
                raise ValueError(f"{path}: {its} differs from the embedding, and by config.json "
                                 f"they are tied (tie_word_embeddings).")

    for visit in (read_file, check_tied) if tied and "lm_head.weight" in found else (read_file,):
        for path in paths:
            visit(path)


def known(path, prefix):
    """Yields (the name that `transformers` writes, the file's own name, shape, a function that
    reads it) for each tensor of a file: older ones lack the prefix, and hold buffers besides."""
    for its, shape, read in tensors(path):
        short = re.sub(r"^(transformer|model)\.(decoder\.)?|^decoder\.", "", its)
        name = its if short == "lm_head.weight" else prefix + short
        if not BUFFERS.fullmatch(name):
            yield name, its, shape, read


# --------------------------------------------------------------------------------------------
# Tokenisers

# LLaMA 3's rule for what may become one token, from its release
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+"
          r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_SPECIAL = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>",
                  7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>"}  # after the last rank
# GPT-2 writes bytes as letters in its files: printable ones as themselves, the others from U+0100
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTER = {b: chr(b) for b in PRINTABLE}
LETTER |= {b: chr(256 + n) for n, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
BYTE = {letter: b for b, letter in LETTER.items()}


def tokenizer(name, prompt_tokens, response_tokens):
    from . import Tokenizer

    return Tokenizer(name, prompt_tokens, response_tokens)


def tokenizers(path):
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{path} needs `pip install tokenizers`.") from None
    return tokenizers


class Pieces:
    """A tokenizer.json, with what Tokenizer uses of a tiktoken.Encoding: text to ids and back."""

    def __init__(self, spec, path):
        spec |= {"truncation": None, "padding": None}
        self.spec = json.loads(json.dumps(spec))  # as it is now, for an export
        self.own_space = without_space(spec)
        try:
            self.tokenizer = tokenizers(path).Tokenizer.from_str(json.dumps(spec))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{path} is not a tokeniser that the installed version of tokenizers "
                             f"can read ({error}).") from error
        self.tokenizer.encode_special_tokens = True  # a post that says </s> is only quoting it
        self.n_vocab = max(self.tokenizer.get_vocab().values(), default=-1) + 1

    def encode_ordinary(self, text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def lead(self, text):
        """With the space that SentencePiece puts before a text; newer files: if it has none."""
        has = self.own_space == "unless" and text.startswith((" ", "▁"))
        return " " + text if self.own_space and text and not has else text


def without_space(spec):
    """
    Take the space before every text out of a tokenizer.json, where it stands in one of three
    places -> "always", "unless" the text has one, or None. Tokenizer.encode adds it again, where
    the text begins: left to the library, a response would begin with two, and a prompt's last line
    with one that nobody wrote.
    """
    found = None
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        top = spec.get(key) or {}
        parts = top.get(inner, [top] if top else [])
        for part in parts:
            if part["type"] == "Metaspace":
                scheme = part.get("prepend_scheme",
                                  "always" if part.get("add_prefix_space", True) else "never")
                found = found or (None if scheme == "never" else "unless")
                part |= {"prepend_scheme": "never"}
                part.pop("add_prefix_space", None)
            elif part["type"] == "ByteLevel" and part.get("add_prefix_space"):
                found, part["add_prefix_space"] = "unless", False
            elif part["type"] == "Prepend":
                found = "always"
        parts = [part for part in parts if part["type"] != "Prepend"]
        spec[key] = {"type": "Sequence", inner: parts} if parts else None
    return found


def vocabulary(folder):
    """
    What Tokenizer needs to know of a pretrained model: encoding, lead, special, eos, bos,
    vocab_size (the model's, which may have more rows than there are tokens) and parts, which make
    the fingerprint. By tiktoken where its files can be read so (GPT-2's vocab.json with merges.txt,
    LLaMA 3's tokenizer.model), else by `tokenizers` (tokenizer.json, OPT's vocab.json).
    """
    config, path = read_config(folder), folder / "config.json"
    family, vocab_size = config["model_type"], need(config, "vocab_size", path)
    notes = read_json(folder / "tokenizer_config.json") or {}
    encoding, special, id_of, bos = encoding_of(folder, family, config)
    said = {}
    for name in ("bos_token", "eos_token"):  # text, or an object with its text as "content"
        text = notes.get(name)
        said[name] = id_of(text["content"] if isinstance(text, dict) else text) if text else None
    eos = next((i for i in (said["eos_token"], *ends(folder, config))
                if i is not None and i < vocab_size), None)
    if eos is None:
        raise ValueError(f"{path} has no eos_token_id below vocab_size={vocab_size}, and "
                         f"tokenizer_config.json no eos_token: add one, or responses have no end.")
    if notes.get("add_bos_token") is False:
        bos = None
    elif bos is None and notes.get("add_bos_token"):
        bos = config.get("bos_token_id") if said["bos_token"] is None else said["bos_token"]
    if isinstance(encoding, Pieces):  # an id that is too large would be taken for PAD
        parts, lead = json.dumps(encoding.spec, sort_keys=True), encoding.lead
        never = {t["id"] for t in encoding.spec.get("added_tokens", ()) if t.get("special")}
        ids = max(set(encoding.tokenizer.get_vocab().values()) - never, default=-1) + 1
    else:
        parts, lead = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1]), None
        ids = len(parts)
    if ids > vocab_size:
        raise ValueError(f"{folder}: the tokeniser has {ids} ids, and by config.json the model "
                         f"only {vocab_size}: one of them belongs to another model.")
    return SimpleNamespace(encoding=encoding, lead=lead, special=special, eos=eos, bos=bos,
                           vocab_size=vocab_size, parts=(parts, eos, bos, vocab_size))


def encoding_of(folder, family, config):
    """The encoding, its special tokens if it is tiktoken's, a function from a token's text to its
    id (None: no such token), and the BOS that it puts before a text."""
    def by_tiktoken(ranks, pattern, special, bos):
        import tiktoken

        encoding = tiktoken.Encoding(str(folder), pat_str=pattern, mergeable_ranks=ranks,
                                     special_tokens=special)
        return encoding, special, special.get, bos

    from . import bpe

    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    vocab = read_json(vocab_path) if merges_path.is_file() else None
    if family == "gpt2" and vocab and (ranks := ranks_of(vocab, read_merges(merges_path))):
        special = {token: i for token, i in vocab.items() if i >= len(ranks)}
        return by_tiktoken(ranks, bpe.PATTERN, special, None)
    model = next((p for p in (folder / "tokenizer.model", folder / "original" / "tokenizer.model")
                  if p.is_file() and is_tiktoken(p)), None)
    if model:
        ranks = bpe.load(model)
        count = need(config, "vocab_size", folder / "config.json") - len(ranks)
        special = {LLAMA3_SPECIAL.get(n, f"<|reserved_{n}|>"): len(ranks) + n for n in range(count)}
        return by_tiktoken(ranks, LLAMA3, special, len(ranks))
    path = folder / "tokenizer.json"
    spec = read_json(path)
    if spec is None and vocab and family in ("gpt2", "opt"):
        path, spec = vocab_path, from_merges(vocab, read_merges(merges_path), vocab_path)
    if spec is None:
        raise FileNotFoundError(
            f"{folder} has no tokeniser: no tokenizer.json, no vocab.json with merges.txt, and no "
            f"tokenizer.model in tiktoken's format (if there is one of SentencePiece's, load and "
            f"save the tokeniser once with transformers, which writes tokenizer.json).")
    pieces = Pieces(spec, path)
    whole, bare = (pieces.tokenizer.encode("a", add_special_tokens=x).ids for x in (True, False))
    bos = whole[0] if whole[:1] != bare[:1] else None
    if path == vocab_path and family == "opt":
        bos = config.get("bos_token_id")
    return pieces, {}, pieces.tokenizer.token_to_id, bos


def is_tiktoken(path):
    """Whether lines of base64 and a rank, and not SentencePiece's protocol buffer."""
    with open(path, "rb") as f:
        return bool(re.fullmatch(rb"[A-Za-z0-9+/=]+ \d+\s*", f.readline(4096)))


def read_merges(path):
    """The pairs of a merges.txt, best first."""
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise ValueError(f"{path}: merge {number} is not two tokens but {' '.join(pair)!r}.")
    return [tuple(pair) for pair in pairs]


def ranks_of(vocab, merges):
    """Tokens as bytes -> rank, if ids are in the order of the merges as GPT-2's are; else None."""
    tokens = [*sorted(BYTE, key=lambda letter: vocab.get(letter, -1)), *map("".join, merges)]
    if any(vocab.get(token) != i for i, token in enumerate(tokens)):
        return None
    return {bytes(BYTE[letter] for letter in token): i for i, token in enumerate(tokens)}


def from_merges(vocab, merges, path):
    """A tokenizer.json for GPT-2's way of cutting text, whatever the order of the ids."""
    t = tokenizers(path)
    try:
        out = t.Tokenizer(t.models.BPE(vocab, merges))
    except Exception as error:
        raise ValueError(f"{path} and merges.txt do not go together ({error}).") from error
    out.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = t.decoders.ByteLevel()
    named = {"".join(pair) for pair in merges} | BYTE.keys()
    out.add_special_tokens([token for token in vocab if token not in named])  # <s>, </s>, ...
    return json.loads(out.to_str())


def from_ranks(encoding, special):
    """
    A tokenizer.json for a vocabulary of tiktoken's. Every way to cut a token in two that are tokens
    is a merge, in the order of the ranks: that is what a rank means.
    """
    t, ranks = tokenizers("the export"), encoding._mergeable_ranks
    spell = lambda token: "".join(LETTER[b] for b in token)
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [(spell(a), spell(b)) for a, b in cuts if a in ranks and b in ranks]
    out = t.Tokenizer(t.models.BPE({spell(token): i for token, i in ranks.items()}, merges,
                                   ignore_merges=True))
    if encoding._pat_str == LLAMA3:
        split = t.pre_tokenizers.Split(t.Regex(LLAMA3), "isolated")
        out.pre_tokenizer = t.pre_tokenizers.Sequence(
            [split, t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:  # GPT-2's rule is built in
        out.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = t.decoders.ByteLevel()
    out.add_special_tokens(sorted(special, key=special.get))
    return json.loads(out.to_str())


# --------------------------------------------------------------------------------------------
# Export


def write(model, record, folder):
    """
    Write a Transformer, and the tokeniser of this record, to a new folder in the hub's format, the
    dtype kept. ValueError for a network that none of the families has.
    """
    from . import Tokenizer

    folder, c, text = Path(folder), model.config, Tokenizer.of(record)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: give the name of a new folder.")
    family = next((name for name, style in STYLES.items()
                   if all(getattr(c, field) == value for field, value in style.items())
                   and (name in ("llama", "qwen2") or c.kv_heads == c.heads)), None)
    if family is None:
        raise ValueError(f"a network with norm={c.norm!r}, activation={c.activation!r}, positions="
                         f"{c.positions!r} and bias={c.bias} is none of {', '.join(STYLES)}.")
    save_file = safetensors("the export").torch.save_file
    config = {theirs: getattr(c, ours) for ours, theirs in FIELDS[family].items()}
    config |= {name: values[0] for name, values in OPTIONS[family].items()}
    config |= {"model_type": family, "architectures": [CLASSES[family]],
               "tie_word_embeddings": c.tied, "bos_token_id": text.bos, "pad_token_id": None,
               "eos_token_id": text.eos if c.eos == (text.eos,) else list(c.eos),
               "torch_dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    if family == "gpt2":
        config["n_inner"] = c.hidden
    elif family == "opt":
        config |= {"word_embed_proj_dim": c.embed_width or c.channels,
                   "do_layer_norm_before": c.norm_first}
    else:
        config |= {"num_key_value_heads": c.kv_heads, "rope_theta": c.rope_theta,
                   "rope_scaling": {"rope_type": "llama3", **dict(zip(ROPE, c.rope_scaling))}
                   if c.rope_scaling else None}

    weights = {name: part.cpu().contiguous() for name, part in places(model, family).items()}
    if family == "opt":
        name = f"{PREFIX[family]}embed_positions.weight"
        weights[name] = torch.cat([weights[name].new_zeros(OFFSET, c.channels), weights[name]])

    spec = text.encoding.spec if isinstance(text.encoding, Pieces) else \
        from_ranks(text.encoding, text.special)
    t = tokenizers("the export")
    out = t.Tokenizer.from_str(json.dumps(spec))
    names = {"bos_token": text.bos, "eos_token": text.eos}
    names = {key: out.id_to_token(i) for key, i in names.items() if i is not None}
    start = [(names["bos_token"], text.bos)] if text.bos is not None else []
    first = [token for token, _ in start]
    out.post_processor = t.processors.TemplateProcessing(
        single=[*first, "$A"], pair=[*first, "$A", "$B"], special_tokens=start)

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")  # the folder, whole, or none
    try:
        temporary.mkdir(parents=True)
        out.save(str(temporary / "tokenizer.json"))
        save_file(weights, temporary / "model.safetensors", {"format": "pt"})
        for name, content in {
                "config.json": config,
                "generation_config.json": {"bos_token_id": text.bos, "eos_token_id": list(c.eos),
                                           "pad_token_id": text.eos},
                "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **names,
                                          "model_max_length": c.context,
                                          "clean_up_tokenization_spaces": False}}.items():
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except Exception as error:  # a full disk, as each library reports it
        raise OSError(f"{folder} could not be written ({error}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
