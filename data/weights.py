"""
The hub's files in and out: a pretrained model's settings, its tensors, its tokeniser.

A model of the Hugging Face hub is a folder: config.json says how large it is, model.safetensors
(or, older, pytorch_model.bin) holds named tensors, and the tokeniser is tokenizer.json (or, older,
vocab.json with merges.txt). The tables of settings and tensors are read in both directions, to load
a model and to export one. Nothing that is read here can execute code.
"""

import importlib
import json
import math
import os
import re
import shutil
from functools import partial
from pathlib import Path

import torch

# ---- Where a model is ----------------------------------------------------------------------------

GPT2 = re.compile(r"(openai-community/)?gpt2(-medium|-large|-xl)?")  # OpenAI's own four
SMALL_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "added_tokens.json", "special_tokens_map.json", "vocab.json", "merges.txt"]
KINDS = ("model.safetensors", "pytorch_model.bin")  # files of tensors, the better one first


def is_pretrained(name):
    """Whether this is a folder, or looks like a name of the hub, and not a file that is or was."""
    path = Path(name)
    if path.exists() or path.suffix in (".pt", ".bpe"):
        return path.is_dir()
    return bool(re.fullmatch(r"\w[\w.-]*/[\w.-]+|(distil)?gpt2[\w-]*", path.as_posix()))


def find(name, tensors=True):
    """The folder of a model: `name` itself, or the hub's cache, with the files that are read here,
    and of the tensors only one kind."""
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
    """A JSON object from a file; an empty one if there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object: fetch it again.")
    return content


WORDS = {int: "a whole number", float: "a number", bool: "true or false",
         str: "text", dict: "an object"}


def field(content, key, kind, path, default=...):
    """What a file has under a key, of this kind; a `default` for nothing or null. ValueError."""
    value = content.get(key)
    if value is None and default is not ...:
        return default
    right = isinstance(value, (int, float) if kind is float else kind)
    if kind in (int, float) and right:
        right = not isinstance(value, bool) and 0 <= value < math.inf
    if not right:
        raise ValueError(f"{path} has {key}={value!r}, and {WORDS[kind]} is needed.")
    return value


def tensor_files(folder):
    """The files of a model's tensors, of the better kind that is there. FileNotFoundError."""
    paths = next(filter(None, (shards(folder, kind) for kind in KINDS)), None)
    if paths is None:
        raise FileNotFoundError(f"{folder} holds no weights, neither {' nor '.join(KINDS)}: copy "
                                f"that file of the model there too.")
    return paths


def shards(folder, kind):
    """The files that hold tensors of one kind: a single one, or those of an index, or none."""
    single, path = folder / kind, folder / f"{kind}.index.json"
    if single.is_file() or not path.is_file():
        return [single] * single.is_file()
    names = field(read_json(path), "weight_map", dict, path)
    return [folder / name for name in sorted({field(names, key, str, path) for key in names})]


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
# family: what differs, ours and theirs; the kinds of those that are no whole numbers
COMMON = dict(vocab_size="vocab_size", context="max_position_embeddings", layers=
              "num_hidden_layers", heads="num_attention_heads", channels="hidden_size",
              tied="tie_word_embeddings")
FIELDS = {
    "gpt2": dict(vocab_size="vocab_size", context="n_positions", layers="n_layer", heads="n_head",
                 channels="n_embd", hidden="n_inner", norm_eps="layer_norm_epsilon",
                 tied="tie_word_embeddings"),
    "opt": dict(COMMON, hidden="ffn_dim", embed_width="word_embed_proj_dim",
                norm_first="do_layer_norm_before"),
    "llama": dict(COMMON, hidden="intermediate_size", kv_heads="num_key_value_heads",
                  norm_eps="rms_norm_eps", rope_theta="rope_theta"),
}
FIELDS["qwen2"] = FIELDS["llama"]
OF_KIND = dict(norm_eps=float, rope_theta=float, tied=bool, norm_first=bool)
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


def read_config(folder):
    """config.json of a model of a supported family."""
    path = folder / "config.json"
    config = read_json(path)
    if not config:
        raise FileNotFoundError(f"{path} does not exist: a pretrained model's folder has one.")
    if config.get("model_type") not in tuple(STYLES):
        raise ValueError(f"{path} is of a model of type {config.get('model_type')!r}, and only "
                         f"{', '.join(STYLES)} are supported.")
    return config


def settings(folder):
    """Family and fields of ModelConfig; ValueError for a model that computes anything else."""
    path, config = folder / "config.json", read_config(folder)
    family = config["model_type"]
    rope = (field(config, "rope_parameters", dict, path, {})
            or field(config, "rope_scaling", dict, path, {}))
    config |= rope | {"rope_type": rope.get("rope_type", rope.get("type", "default"))}
    read = lambda ours, default=...: field(config, FIELDS[family][ours], OF_KIND.get(ours, int),
                                            path, default)
    channels, heads = read("channels"), read("heads")
    defaults = dict(hidden=4 * channels if family == "gpt2" else ..., embed_width=channels,
                    norm_first=True, kv_heads=heads, rope_theta=10000.0,
                    tied=family in ("gpt2", "opt"))
    fields = {"kv_heads": heads} | STYLES[family] | {
        ours: read(ours, defaults.get(ours, ...)) for ours in FIELDS[family]}
    fields["embed_width"] *= fields["embed_width"] != channels
    if config["rope_type"] == "llama3":
        fields["rope_scaling"] = tuple(field(config, key, float, path) for key in ROPE)
    options = OPTIONS[family] | {
        "quantization_config": (None,), "head_dim": (channels // max(heads, 1), None),
        "partial_rotary_factor": (1.0,), "rope_type": ("default", "llama3")}
    for name, values in options.items():
        if config.get(name, values[0]) not in values:
            raise ValueError(f"{path} has {name}={config[name]!r}, and for {family} only "
                             f"{' or '.join(map(repr, values))} is supported.")
    fields["eos"] = tuple(i for i in ends(folder, config) if i < fields["vocab_size"])
    return family, fields


def ends(folder, config):
    """Ids that end a text, the model's own first."""
    found, generation = [], folder / "generation_config.json"
    for path, content in ((folder / "config.json", config), (generation, read_json(generation))):
        ids = content.get("eos_token_id")
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(type(i) is int for i in ids):
            raise ValueError(f"{path} has eos_token_id={content['eos_token_id']!r}, and a whole "
                             f"number or a list of them is needed.")
        found += [i for i in ids if i >= 0]  # -1 stands for none
    return list(dict.fromkeys(found))


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
    """[(name, shape, a function that reads the tensor)] of a file, of which nothing but the header
    is in memory before."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, and by the index of its folder it holds "
                                f"tensors: fetch it again.")
    library = package("safetensors", path) if path.suffix == ".safetensors" else None
    try:
        if library:
            file = library.safe_open(path, "pt")
            return [(name, tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
                    for name in file.keys()]
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return [(name, tuple(value.shape), partial(held.get, name)) for name, value in held.items()]
    except Exception as error:  # truncated or foreign: SafetensorError, and torch has many ways
        raise ValueError(f"{path} is damaged or holds more than tensors: fetch it "
                         f"again.") from error


def fill(model, family, paths, device, dtype):
    """Give a model on the meta device its memory, of `dtype` on `device`, and read its tensors, of
    which one at a time is in memory beside it. All names and shapes are checked first."""
    prefix, parts, found = PREFIX[family], places(model, family), {}
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    table = f"{prefix}embed_positions.weight"
    if table in shapes:
        shapes[table] = (shapes[table][0] + OFFSET, shapes[table][1])
    shapes.setdefault("lm_head.weight", tuple(model.embed.weight.shape))  # tied, and yet in files
    for path in paths:
        for own, shape, read in tensors(path):  # names in older files lack the prefix
            short = re.sub(r"^(transformer|model)\.(decoder\.)?|^decoder\.", "", own)
            name = own if short == "lm_head.weight" else prefix + short
            if BUFFERS.fullmatch(name):
                continue
            if shape != shapes.get(name):
                wanted = f"be {shapes[name]}" if name in shapes else f"not be in a {family} model"
                raise ValueError(f"{path}: {own} has shape {shape}, and by config.json it should "
                                 f"{wanted}.")
            found[name] = f"{path}: {own}", read
    missing = [name for name in parts if name not in found]
    if missing:
        raise ValueError(f"{paths[0].parent}: {missing[0]} is missing from {paths[0].name}, as is "
                         f"every other of {len(missing)}.")
    model.to(dtype).to_empty(device=device)
    parts = places(model, family)
    for name in sorted(found, key=lambda name: name not in parts):  # what is tied comes last
        (place, read), part = found[name], parts.get(name)
        value = read()
        if not value.is_floating_point():
            raise ValueError(f"{place} is {value.dtype}, and only floating-point weights are "
                             f"supported.")
        if part is not None:
            part.copy_(value[OFFSET:] if name == table else value)
        elif not torch.equal(value.to(model.embed.weight), model.embed.weight):
            raise ValueError(f"{place} differs from the embedding, and by config.json they are "
                             f"tied (tie_word_embeddings).")


# ---- Tokenisers ----------------------------------------------------------------------------------

# GPT-2 writes bytes as letters in its files: printable ones as themselves, the others from U+0100
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTER = {b: chr(b) for b in PRINTABLE}
LETTER |= {b: chr(256 + n) for n, b in enumerate(sorted(set(range(256)) - set(PRINTABLE)))}
RARE = "\ua66e"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


class Pieces:
    """A tokenizer.json, with what Tokenizer uses of a tiktoken.Encoding: text to ids and back."""

    n_vocab = 2**32  # whatever is no token says nothing

    def __init__(self, text, path):
        library = package("tokenizers", path)
        try:
            self.tokenizer = library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{path} is not a tokeniser that the installed version of tokenizers "
                             f"can read ({error}).") from error
        self.tokenizer.encode_special_tokens = True  # a post that says </s> is only quoting it

    def encode_ordinary(self, text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_inside(self, text):
        """Without the space that SentencePiece puts before every text: ids of what follows a letter
        that no token joins with anything."""
        return self.encode_ordinary(RARE + text)[len(self.encode_ordinary(RARE)):]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def vocabulary(folder):
    """
    What Tokenizer keeps of a pretrained model: special (none), eos, bos, vocab_size (the model's,
    which may have more rows than there are tokens) and spec, a tokenizer.json; and its Pieces.
    """
    config, path, source = read_config(folder), folder / "config.json", folder / "tokenizer.json"
    vocab_size = field(config, "vocab_size", int, path)
    first = field(config, "bos_token_id", int, path, None)
    t, merges = package("tokenizers", source), folder / "merges.txt"
    family, starts = config["model_type"], False
    if source.is_file():
        text = json.dumps(read_json(source) | {"truncation": None, "padding": None}, sort_keys=True)
    elif family in ("gpt2", "opt") and merges.is_file():
        source, starts = folder / "vocab.json", family == "opt"
        try:
            text = byte_level(t.models.BPE.from_file(str(source), str(merges)))
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{source} and merges.txt do not go together ({error}).") from error
    else:
        raise FileNotFoundError(f"{folder} has no tokeniser: neither tokenizer.json nor vocab.json "
                                f"with merges.txt (if it has tokenizer.model, load and save it "
                                f"once with transformers, which writes tokenizer.json).")
    pieces = Pieces(text, source)
    library, (notes, named, own) = pieces.tokenizer, own_tokens(folder)
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    for content, (number, flags) in own.items():
        if content not in known:  # added beside the table
            library.add_tokens([t.AddedToken(content, **flags)])
            text = library.to_str()
            if number not in (None, library.token_to_id(content)):
                raise ValueError(f"{folder} adds {content!r} as id {number}, and behind the tokens "
                                 f"of {source.name} it is {library.token_to_id(content)}.")
    never = {i for i, token in library.get_added_tokens_decoder().items() if token.special}
    ids = max(set(library.get_vocab().values()) - never, default=-1) + 1
    if ids > vocab_size:  # an id that is too large would be taken for PAD
        raise ValueError(f"{folder}: the tokeniser has {ids} ids, and by config.json the model "
                         f"only {vocab_size}: one of them belongs to another model.")
    eos = next((i for i in (library.token_to_id(named["eos_token"]), *ends(folder, config))
                if i is not None and i < vocab_size), None)
    if eos is None:
        raise ValueError(f"{path} has no eos_token_id below vocab_size={vocab_size}, and "
                         f"tokenizer_config.json no eos_token: add one, or responses have no end.")
    whole, bare = (library.encode("a", add_special_tokens=x).ids for x in (True, False))
    given = whole[:whole[:1] != bare[:1]]
    bos = next((i for i in (*given, library.token_to_id(named["bos_token"]), first)
                if i is not None and i < vocab_size), None)
    starts = field(notes, "add_bos_token", bool, folder / "tokenizer_config.json",
                   bool(starts or given))
    return {"special": {}, "spec": text, "eos": eos, "bos": bos if starts else None,
            "vocab_size": vocab_size}, pieces


def own_tokens(folder):
    """
    What a folder says of its tokens beside their table: its tokenizer_config.json, {"eos_token" or
    so: its text}, and {text: (id or None, flags)} of all of them, by their ids. Two other files
    have the same where there is no `added_tokens_decoder` (before 2023).
    """
    path, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    notes, named, own = read_json(path), {}, {}
    listed = field(notes, "added_tokens_decoder", dict, path, {})
    for source in [path] if listed else [path, older]:
        content = read_json(source)
        for key in NAMED:
            token = content.get(key)
            holder = token if isinstance(token, dict) else {"content": token}
            named[key] = field(holder, "content", str, f"{source}: {key}", named.get(key, ""))
    if not listed:  # what either of the two names as it is, in whatever list, is special
        path, names = folder / "added_tokens.json", json.dumps([notes, content])
        numbers = read_json(path)
        listed = {str(field(numbers, token, int, path)): {
            "content": token, "special": json.dumps(token) in names} for token in numbers}
    numbers = {key: int(key) if key.isdecimal() else key for key in listed}
    for key in sorted(listed, key=lambda key: field(numbers, key, int, path)):
        token = field(listed, key, dict, path)
        own[field(token, "content", str, path)] = numbers[key], {
            flag: field(token, flag, bool, path) for flag in FLAGS if flag in token}
    for token in filter(None, named.values()):
        own.setdefault(token, (None, {"special": True}))
    return notes, named, own


def byte_level(model, special=(), pattern=None):
    """A tokenizer.json of a BPE over bytes, which cuts text as GPT-2 does, or by a pattern."""
    t = package("tokenizers", "a tokeniser")
    out = t.Tokenizer(model)
    out.pre_tokenizer = t.pre_tokenizers.ByteLevel(False, use_regex=not pattern)
    if pattern:
        split = t.pre_tokenizers.Split(t.Regex(pattern), "isolated")
        out.pre_tokenizer = t.pre_tokenizers.Sequence([split, out.pre_tokenizer])
    out.decoder = t.decoders.ByteLevel()
    out.add_special_tokens(list(special))
    return out.to_str()


def from_ranks(kept):
    """
    A tokenizer.json for a vocabulary of tiktoken's. Every way to cut a token in two that are tokens
    is a merge, in the order of the ranks: that is what a rank means.
    """
    from . import bpe

    ranks = bpe.load("the vocabulary", kept["ranks"].encode())
    spell = lambda token: "".join(LETTER[b] for b in token)
    cuts = [(token[:i], token[i:]) for token in sorted(ranks, key=ranks.get)
            for i in range(1, len(token))]
    model = package("tokenizers", "the export").models.BPE(
        {spell(token): i for token, i in ranks.items()},
        [(spell(a), spell(b)) for a, b in cuts if a in ranks and b in ranks], ignore_merges=True)
    return byte_level(model, sorted(kept["special"], key=kept["special"].get),
                      None if kept["pattern"] == bpe.PATTERN else kept["pattern"])


# ---- Export --------------------------------------------------------------------------------------


def write(model, text, folder):
    """Write a Transformer, and its Tokenizer, to a new folder in the hub's format, the dtype kept.
    ValueError for a network that none of the families has."""
    folder, c = Path(folder), model.config
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: give the name of a new folder.")
    family = next((name for name, style in STYLES.items()
                   if all(getattr(c, field) == value for field, value in style.items())
                   and (name in ("llama", "qwen2") or c.kv_heads == c.heads)), None)
    if family is None:
        raise ValueError(f"a network with norm={c.norm!r}, activation={c.activation!r}, positions="
                         f"{c.positions!r} and bias={c.bias} is none of {', '.join(STYLES)}.")
    save_file = package("safetensors.torch", "the export").save_file
    config = {name: values[0] for name, values in OPTIONS[family].items()}
    config |= {theirs: getattr(c, ours) for ours, theirs in FIELDS[family].items()}
    config |= {"model_type": family, "architectures": [CLASSES[family]],
               "bos_token_id": text.bos, "pad_token_id": None,
               "eos_token_id": text.eos if c.eos == (text.eos,) else list(c.eos),
               "torch_dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    if c.rope_scaling:
        config["rope_scaling"] = {"rope_type": "llama3", **dict(zip(ROPE, c.rope_scaling))}
    weights = {name: part.cpu().contiguous() for name, part in places(model, family).items()}
    if family == "opt":
        config["word_embed_proj_dim"] = c.embed_width or c.channels
        name = f"{PREFIX[family]}embed_positions.weight"
        weights[name] = torch.cat([weights[name].new_zeros(OFFSET, c.channels), weights[name]])

    t = package("tokenizers", "the export")
    out = t.Tokenizer.from_str(text.kept.get("spec") or from_ranks(text.kept))
    start = [] if text.bos is None else [out.id_to_token(text.bos)]
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
                "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
                                          "eos_token": out.id_to_token(text.eos),
                                          "bos_token": start[0] if start else None,
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
