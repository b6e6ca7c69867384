"""
The hub's files in and out: a pretrained model's settings, its tensors, its tokeniser.

A model of the Hugging Face hub is a folder: config.json says how large it is, model.safetensors
(or, of older models, pytorch_model.bin) holds named tensors, and the tokeniser comes in one of four
formats. Each of the tables below is read in both directions, to load a model and to export one.
Nothing that is read here can execute code.
"""

import importlib
import json
import os
import re
import shutil
import zipfile
from functools import partial
from pathlib import Path

import torch

# ---- Where a model is ----------------------------------------------------------------------------

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
    hub = package("huggingface_hub", f"{name} is no folder here, and fetching it from the hub")
    fetch = partial(hub.snapshot_download, Path(name).as_posix())
    try:
        folder = Path(fetch(allow_patterns=SMALL_FILES + [f"{kind}.index.json" for kind in KINDS]))
        for kind in KINDS if tensors else ():
            paths = shards(folder, kind) or [folder / kind]
            fetch(allow_patterns=[path.relative_to(folder).as_posix() for path in paths])
            if all(path.is_file() for path in paths):
                break
    except Exception as error:  # a wrong name, no network, a gate: each library its own errors
        raise OSError(f"{name} is neither a file nor a folder here, and could not be fetched from "
                      f"the hub ({str(error).strip().splitlines()[0]}): check the name and the "
                      f"connection, and for a gated model run `hf auth login`.") from error
    return folder


def package(name, subject):
    """An optional package, or a module of it; a sentence with the pip command if it is absent."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"{subject} needs `pip install {name.split('.')[0]}`.") from None


def read_json(path):
    """A JSON object from a file; None if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: fetch it again.")
    return content


def shards(folder, kind):
    """The files that hold tensors of one kind: a single one, or those of an index, or none."""
    if (folder / kind).is_file():
        return [folder / kind]
    index = read_json(folder / f"{kind}.index.json") or {"weight_map": {}}
    if not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"{folder / kind}.index.json has no weight_map: fetch it again.")
    return [folder / name for name in sorted(set(index["weight_map"].values()))]


# ---- Settings: config.json -----------------------------------------------------------------------

# family: what of ModelConfig is the same in all of its models
LAYER_NORM = dict(norm="layer", positions="learned", bias=True, qkv_bias=False)
STYLES = {
    "gpt2": dict(LAYER_NORM, activation="gelu", norm_first=True, embed_width=0),
    "opt": dict(LAYER_NORM, activation="relu", norm_eps=1e-5),
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


def number(config, key, path):
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
    options = OPTIONS[family] | {"quantization_config": (None,)}
    fields = STYLES[family] | {
        ours: number(config, theirs, path) for ours, theirs in FIELDS[family].items()}
    channels, fields["kv_heads"] = fields["channels"], fields["heads"]
    fields["tied"] = config.get("tie_word_embeddings", family in ("gpt2", "opt"))
    if family == "gpt2":
        fields["hidden"] = config.get("n_inner") or 4 * channels
    elif family == "opt":
        width = config.get("word_embed_proj_dim") or channels
        fields["embed_width"] = 0 if width == channels else width
        fields["norm_first"] = config.get("do_layer_norm_before", True)
    else:
        fields["kv_heads"] = config.get("num_key_value_heads") or fields["heads"]
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        fields["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "llama3":
            fields["rope_scaling"] = tuple(number(rope, key, path) for key in ROPE)
        options |= {"head_dim": (channels // max(fields["heads"], 1), None),
                    "partial_rotary_factor": (1.0,), "rope_type": ("default", "llama3")}
        config = {**rope, **config, "rope_type": kind}
    for name, values in options.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{path} has {name}={config[name]!r}, and for {family} only "
                             f"{' or '.join(map(repr, values))} is supported.")
    fields["eos"] = tuple(i for i in ends(folder, config) if i < fields["vocab_size"])
    return family, fields


def ends(folder, config):
    """Ids that end a text, the model's own first."""
    generation = read_json(folder / "generation_config.json") or {}
    lists = [ids if isinstance(ids, list) else [ids] for ids in (
        config.get("eos_token_id"), generation.get("eos_token_id"))]
    return [i for i in dict.fromkeys(lists[0] + lists[1]) if i is not None]


# ---- Tensors -------------------------------------------------------------------------------------

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
    config, parts = model.config, {}
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
            parts[f"{prefix}{block}{name}.{kind}"] = part.T if turned else part
    return parts


def tensors(path):
    """(name, shape, a function that reads the tensor) of each tensor of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, and by the index of its folder it holds "
                                f"tensors: fetch it again.")
    library = package("safetensors", path) if path.suffix == ".safetensors" else None
    try:
        if library:
            file = library.safe_open(path, "pt")
            return [(name, tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
                    for name in file.keys()]
        # mapped, not read: a tensor comes into memory when it is copied (zip files only)
        held = torch.load(path, map_location="cpu", weights_only=True,
                          mmap=zipfile.is_zipfile(path))
        return [(name, tuple(value.shape), partial(held.get, name)) for name, value in held.items()]
    except Exception as error:  # truncated or foreign: SafetensorError, and torch has many ways
        raise ValueError(f"{path} is damaged or holds more than tensors: fetch it "
                         f"again.") from error


def renamed(path, prefix):
    """Yields (the name that `transformers` writes, the file's own name, shape, a function that
    reads it) for each tensor of a file: older ones lack the prefix, and hold buffers besides."""
    for own, shape, read in tensors(path):
        short = re.sub(r"^(transformer|model)\.(decoder\.)?|^decoder\.", "", own)
        name = own if short == "lm_head.weight" else prefix + short
        if not BUFFERS.fullmatch(name):
            yield name, own, shape, read


def fill(model, family, folder, device, dtype):
    """
    Give a model on the meta device its memory, of `dtype` on `device`, and read its tensors. All
    names and shapes are checked first, from the files' headers. One tensor is in memory beside the
    model at a time, or one file, if it is a .bin of before 2020.
    """
    paths = next(filter(None, (shards(folder, kind) for kind in KINDS)), None)
    if paths is None:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join(KINDS)}.")
    parts = places(model, family)
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    table = f"{PREFIX[family]}embed_positions.weight"
    if table in shapes:
        shapes[table] = (shapes[table][0] + OFFSET, shapes[table][1])
    shapes.setdefault("lm_head.weight", tuple(model.embed.weight.shape))  # tied, and yet in files

    # each file has a function of its own for each pass: with it goes what it held of the file
    def check(path):
        for name, own, shape, _ in renamed(path, PREFIX[family]):
            if name not in shapes:
                raise ValueError(f"{path} holds {own}, which this {family} model has no place for.")
            if shape != shapes[name]:
                raise ValueError(f"{path}: {own} has shape {shape}, and by config.json it should "
                                 f"be {shapes[name]}.")
            yield name

    stored = {name for path in paths for name in check(path)}
    missing = [name for name in parts if name not in stored]
    if missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise ValueError(f"{folder}: {missing[0]}{more} missing from {paths[0].name}"
                         f"{' and its other parts' if len(paths) > 1 else ''}.")
    model.to(dtype).to_empty(device=device)
    parts = places(model, family)

    def read_file(path, names):
        for name, own, _, read in renamed(path, PREFIX[family]):
            if name not in names:
                continue
            value = read()
            if not value.is_floating_point():
                raise ValueError(f"{path}: {own} is {value.dtype}, and only floating-point weights "
                                 f"are supported.")
            if name in parts:
                parts[name].copy_(value[OFFSET:] if name == table else value)
            elif not torch.equal(value.to(model.embed.weight), model.embed.weight):
                raise ValueError(f"{path}: {own} differs from the embedding, and by config.json "
                                 f"they are tied (tie_word_embeddings).")

    for names in filter(None, (parts.keys(), stored - parts.keys())):  # what is tied comes last
        for path in paths:
            read_file(path, names)


# ---- Tokenisers ----------------------------------------------------------------------------------

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


class Pieces:
    """A tokenizer.json, with what Tokenizer uses of a tiktoken.Encoding: text to ids and back."""

    def __init__(self, text, path):
        library, spec = package("tokenizers", path), json.loads(text)
        self.own_space = without_space(spec)
        try:
            self.tokenizer = library.Tokenizer.from_str(json.dumps(spec))
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
    own_space = None
    for key, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        top = spec.get(key) or {}
        parts = top.get(inner, [top] if top else [])
        for part in parts:
            if part["type"] == "Metaspace":
                older = "always" if part.pop("add_prefix_space", True) else "never"
                if part.get("prepend_scheme", older) != "never":
                    own_space = own_space or "unless"
                part["prepend_scheme"] = "never"
            elif part["type"] == "ByteLevel" and part.get("add_prefix_space"):
                own_space, part["add_prefix_space"] = "unless", False
            elif part["type"] == "Prepend":
                own_space = "always"
        parts = [part for part in parts if part["type"] != "Prepend"]
        spec[key] = {"type": "Sequence", inner: parts} if parts else None
    return own_space


def vocabulary(folder):
    """
    What Tokenizer keeps of a pretrained model: special, eos, bos, vocab_size (the model's, which
    may have more rows than there are tokens), and ranks with a pattern, for tiktoken, where its
    files can be read so (GPT-2's vocab.json with merges.txt, LLaMA 3's tokenizer.model), else a
    spec, for `tokenizers` (tokenizer.json, OPT's vocab.json); and the Pieces made of a spec.
    """
    from . import bpe

    config, path = read_config(folder), folder / "config.json"
    family, vocab_size = config["model_type"], number(config, "vocab_size", path)
    notes = read_json(folder / "tokenizer_config.json") or {}
    ranks, pattern, special, bos = read_ranks(folder, family, vocab_size)
    if ranks:
        kept = {"ranks": bpe.dump(ranks), "pattern": pattern}
        pieces, id_of, ids = None, special.get, len(ranks)
    else:
        spec, source = read_spec(folder, family)
        kept = {"spec": json.dumps(spec | {"truncation": None, "padding": None}, sort_keys=True)}
        pieces = Pieces(kept["spec"], source)
        library, id_of = pieces.tokenizer, pieces.tokenizer.token_to_id
        never = {t["id"] for t in spec.get("added_tokens", ()) if t.get("special")}
        ids = max(set(library.get_vocab().values()) - never, default=-1) + 1
        if source.name == "vocab.json" and family == "opt":
            bos = config.get("bos_token_id")
        else:
            whole, bare = (library.encode("a", add_special_tokens=x).ids for x in (True, False))
            bos = whole[0] if whole[:1] != bare[:1] else None
    if ids > vocab_size:  # an id that is too large would be taken for PAD
        raise ValueError(f"{folder}: the tokeniser has {ids} ids, and by config.json the model "
                         f"only {vocab_size}: one of them belongs to another model.")

    def noted(name):  # text, or an object with its text as "content"
        text = notes.get(name)
        return id_of(text["content"] if isinstance(text, dict) else text) if text else None

    eos = next((i for i in (noted("eos_token"), *ends(folder, config))
                if i is not None and i < vocab_size), None)
    if eos is None:
        raise ValueError(f"{path} has no eos_token_id below vocab_size={vocab_size}, and "
                         f"tokenizer_config.json no eos_token: add one, or responses have no end.")
    if notes.get("add_bos_token") is False:
        bos = None
    elif bos is None and notes.get("add_bos_token"):
        bos = noted("bos_token")
        bos = config.get("bos_token_id") if bos is None else bos
    kept |= {"special": special, "eos": eos, "bos": bos, "vocab_size": vocab_size}
    return kept, pieces


def read_ranks(folder, family, vocab_size):
    """What tiktoken needs: ranks (None if the files are of another kind), pattern, special tokens;
    and the BOS that stands before a text."""
    from . import bpe

    if family == "gpt2" and (folder / "merges.txt").is_file():
        vocab, merges = read_merges(folder)
        tokens = [*sorted(BYTE, key=lambda letter: vocab.get(letter, -1)), *map("".join, merges)]
        if all(vocab.get(token) == i for i, token in enumerate(tokens)):  # in the merges' order
            ranks = {bytes(BYTE[letter] for letter in token): i for i, token in enumerate(tokens)}
            special = {token: i for token, i in vocab.items() if i >= len(ranks)}
            return ranks, bpe.PATTERN, special, None
    for path in (folder / "tokenizer.model", folder / "original" / "tokenizer.model"):
        content = path.read_bytes() if path.is_file() else b""
        if re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", content):  # not SentencePiece's protocol buffer
            ranks = bpe.undump(content, path)
            special = {LLAMA3_SPECIAL.get(n, f"<|reserved_{n}|>"): len(ranks) + n
                       for n in range(vocab_size - len(ranks))}
            return ranks, LLAMA3, special, len(ranks)
    return None, None, {}, None


def read_spec(folder, family):
    """A tokenizer.json, found or made, and the file that it came from."""
    path = folder / "tokenizer.json"
    spec = read_json(path)
    if spec is None and family in ("gpt2", "opt") and (folder / "merges.txt").is_file():
        path, (vocab, merges) = folder / "vocab.json", read_merges(folder)
        named = {"".join(pair) for pair in merges} | BYTE.keys()
        special = [token for token in vocab if token not in named]  # <s>, </s>, ...
        spec = byte_level(path, vocab, merges, special) if vocab else None
    if spec is None:
        raise FileNotFoundError(
            f"{folder} has no tokeniser: no tokenizer.json, no vocab.json with merges.txt, and no "
            f"tokenizer.model in tiktoken's format (if there is one of SentencePiece's, load and "
            f"save the tokeniser once with transformers, which writes tokenizer.json).")
    return spec, path


def read_merges(folder):
    """GPT-2's pair of files: {token: id} of vocab.json and the pairs of merges.txt, best first."""
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise ValueError(f"{path}: merge {number} is not two tokens but {' '.join(pair)!r}.")
    return read_json(folder / "vocab.json") or {}, pairs


def byte_level(path, vocab, merges, special, pattern=None, **options):
    """A tokenizer.json of a BPE over bytes, which cuts text as GPT-2 does, or by a pattern."""
    t = package("tokenizers", path)
    try:
        out = t.Tokenizer(t.models.BPE(vocab, merges, **options))
    except Exception as error:
        raise ValueError(f"{path} and merges.txt do not go together ({error}).") from error
    out.pre_tokenizer = t.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    if pattern:
        split = t.pre_tokenizers.Split(t.Regex(pattern), "isolated")
        out.pre_tokenizer = t.pre_tokenizers.Sequence([split, out.pre_tokenizer])
    out.decoder = t.decoders.ByteLevel()
    out.add_special_tokens(special)
    return json.loads(out.to_str())


def from_ranks(encoding, special):
    """
    A tokenizer.json for a vocabulary of tiktoken's. Every way to cut a token in two that are tokens
    is a merge, in the order of the ranks: that is what a rank means.
    """
    ranks = encoding._mergeable_ranks
    spell = lambda token: "".join(LETTER[b] for b in token)
    cuts = [(token[:i], token[i:]) for token in sorted(ranks, key=ranks.get)
            for i in range(1, len(token))]
    return byte_level("the export", {spell(token): i for token, i in ranks.items()},
                      [(spell(a), spell(b)) for a, b in cuts if a in ranks and b in ranks],
                      sorted(special, key=special.get), ignore_merges=True,
                      pattern=LLAMA3 if encoding._pat_str == LLAMA3 else None)


# ---- Export --------------------------------------------------------------------------------------


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
    save_file = package("safetensors.torch", "the export").save_file
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

    spec = text.kept.get("spec") or json.dumps(from_ranks(text.encoding, text.special))
    t = package("tokenizers", "the export")
    out = t.Tokenizer.from_str(spec)
    names = {"bos_token": text.bos, "eos_token": text.eos}
    names = {key: out.id_to_token(i) for key, i in names.items() if i is not None}
    start = [names["bos_token"]] if text.bos is not None else []
    out.post_processor = t.processors.TemplateProcessing(
        single=[*start, "$A"], pair=[*start, "$A", "$B"],
        special_tokens=[(token, text.bos) for token in start])

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
