"""
The one file that every stage reads and writes, and the way in and out for everybody else's models.

A checkpoint is a dict of primitives and tensors: the network's settings and weights, its tokeniser,
what it was made by and from (`meta`, also written beside it as readable JSON), and what a run needs
to go on (`state`). A digest covers all of it. Nothing in a file can run code.
"""

import hashlib
import json
import platform
import struct
import zipfile
from dataclasses import asdict
from pathlib import Path

import torch

import model as m
from data import files, networks, weights
from data.tokenizer import Tokenizer

FORMAT = 2
MADE_BY = {"policy": "python sft.py", "reward": "python reward.py"}
HOLDS = {"format": int, "kind": str, "model": dict, "weights": dict, "tokenizer": dict,
         "meta": dict, "digest": str}


def digest(record):
    "SHA-256 over everything in `record` but its digest: same numbers, same text, whatever the zip."
    sha = hashlib.sha256()

    def walk(value):
        kind = type(value)
        if issubclass(kind, dict):
            sha.update(b"dict %d\n" % len(value))
            for key in sorted(value, key=lambda key: (type(key).__name__, key)):
                walk(key), walk(value[key])
        elif kind in (list, tuple):
            sha.update(b"%s %d\n" % (kind.__name__.encode(), len(value)))
            for item in value:
                walk(item)
        elif issubclass(kind, torch.Tensor):
            if value.nbytes > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {value.nbytes} bytes is larger than its storage.")
            sha.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
            value = value.detach().cpu().contiguous().reshape(-1)
            sha.update(value.view(torch.uint8).numpy())
        elif kind in (str, int, float, bool, type(None)):
            text = struct.pack("<d", value) if kind is float else str(value).encode()
            sha.update(b"%s %d\n" % (kind.__name__.encode(), len(text)) + text)
        else:
            raise ValueError(f"a checkpoint holds primitives and tensors only, not {kind}.")

    walk({key: value for key, value in record.items() if key != "digest"})
    return sha.hexdigest()


def size(value):
    "Bytes of the tensors in a record."
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value
    return sum(map(size, parts)) if isinstance(value, (dict, list, tuple)) else 0


def machine(device):
    "What a checkpoint's `meta` says of where it was saved."
    name = (torch.cuda.get_device_name(device) if device.startswith("cuda") else
            f"{device} {platform.processor() or platform.machine()}")
    return {"device": name, "torch": str(torch.__version__), "threads": torch.get_num_threads()}


def save(path, kind, model, tokenizer, meta, state=None, dtype=None):
    """Write `model` ("policy" or "reward"), and `meta` as readable JSON beside it. `tokenizer` is a
    Tokenizer's record; `state` is what resuming needs; `dtype` stores the weights smaller."""
    if kind not in MADE_BY:
        raise ValueError(f"kind={kind!r} is not one of {tuple(MADE_BY)}.")
    path, model = Path(path), getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    # single numbers (shift, scale) keep their precision
    tensors = {name: value.detach().to("cpu", dtype if dtype and value.dim() else value.dtype)
               for name, value in model.state_dict().items()}
    record = {"format": FORMAT, "kind": kind, "model": asdict(model.config), "weights": tensors,
              "tokenizer": tokenizer, "meta": meta}
    if state is not None:
        record["state"] = state
    files.announce("saving", path, size(record))
    record["digest"] = digest(record)
    readable = json.dumps(meta, indent=2, default=str).encode()

    def write(file):
        torch.save(record, file)
        file.flush()
        # There was room for the weights; they get their name last. After a kill between the two,
        # what goes on from the old ones writes both again.
        files.write_file(path.with_suffix(".json"), readable)

    files.write_file(path, write)


def load(path, kind, device="cpu", tokenizer=None, unfinished=False):
    """(module, record) from a checkpoint; weights come back as fp32 parameters. Whatever is wrong
    with the file, and `tokenizer`, a fingerprint, that is not its own, is said in one sentence.
    What an interrupted run saved is refused, unless `unfinished`: it is no model to build on.
    A policy may also be a pretrained model, by the hub's name or a folder: see load_pretrained."""
    if kind == "policy" and weights.is_pretrained(path):
        model, own = load_pretrained(path, device)
        if tokenizer not in (None, own.fingerprint):
            raise ValueError(f"{path} has another tokenizer than the model it is to go with.")
        return model, {"tokenizer": own.record, "meta": {"stage": "pretrained", "finished": True},
                       "digest": digest({"weights": model.state_dict()})}
    path, remedy = Path(path), f"make a {kind} with `{MADE_BY[kind]}`."
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; {remedy}")
    files.announce("reading", path, path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as parts:  # torch packs nothing: what would grow is not its own
            if sum(part.file_size for part in parts.infolist()) > path.stat().st_size:
                raise ValueError("more inside than outside")
        # weights_only: nothing in a file can run code
        record = torch.load(path, map_location="cpu", weights_only=True)
        actual = digest(record)
    except Exception as error:  # truncated, altered or foreign: torch has a dozen ways to say so
        raise ValueError(f"{path} is damaged or not a checkpoint; {remedy}") from error
    if not all(isinstance(record.get(name), of) for name, of in HOLDS.items()):
        raise ValueError(f"{path} is not a checkpoint of this project; {remedy}")
    if record["format"] != FORMAT:
        raise ValueError(f"{path} has format {record['format']}, and this version reads format "
                         f"{FORMAT}; {remedy}")
    if record["digest"] != actual:
        raise ValueError(f"{path} was altered after it was written; {remedy}")
    if record["kind"] != kind:
        raise ValueError(f"{path} is a {record['kind']}, not a {kind}; {remedy}")
    own, meta = record["tokenizer"], record["meta"]
    if tokenizer not in (None, own.get("fingerprint")):
        raise ValueError(f"{path} was made with another tokenizer ({own.get('name')}); {remedy}")
    if not unfinished and not meta.get("finished", True):
        raise ValueError(f"{path} was saved at step {meta.get('step')} of a run that was "
                         f"interrupted: finish it with the same command and --resume.")
    make = m.Transformer if kind == "policy" else m.ScalarModel
    try:
        config = m.ModelConfig(**record["model"])
        with networks.hollow():
            model = make(config)
        model.load_state_dict(record.pop("weights"), assign=True)  # takes over what was read
    except Exception as error:
        raise ValueError(f"{path} holds weights of another network than it says; "
                         f"{remedy}") from error
    tensors = model.float().state_dict()
    if sum(value.numel() for value in tensors.values()) <= networks.LARGE:
        model = make(config)
        model.load_state_dict(tensors)
    elif config.positions == "rotary":  # what is large is not drawn and held once more
        networks.transformer(model).table = m.rope_table(config)
    return model.to(device), record


def load_frozen(path, kind, device, tokenizer=None):
    "`load` for what is only used, not trained: all of it in the device's precision."
    model, record = load(path, kind, tokenizer=tokenizer)
    return networks.to_device(model.requires_grad_(False), device), record


def load_pretrained(name_or_folder, device="cpu", dtype=torch.float32, prompt_tokens=224,
                    response_tokens=48):
    """(Transformer, Tokenizer) from a local folder or a name of the Hugging Face hub: GPT-2, OPT,
    LLaMA 1 to 3 and Qwen2, in the format of `transformers`; the weights of `dtype` on `device`.
    A chat template is left alone: prompts are what the data says, and a mark such as <|im_start|>
    in them is letters. Whatever is wrong with the files is said in one sentence."""
    folder = weights.find(name_or_folder)
    (family, settings), paths = weights.settings(folder), weights.tensor_files(folder)
    tokenizer = Tokenizer(name_or_folder, prompt_tokens, response_tokens)
    settings["eos"] = tuple(dict.fromkeys((tokenizer.eos, *settings["eos"])))
    try:
        with networks.hollow():
            model = m.Transformer(m.ModelConfig(**settings))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    files.announce("reading", folder, sum(path.stat().st_size for path in paths if path.is_file()))
    weights.fill(model, family, paths, device, dtype)
    if model.position is None:
        model.table = m.rope_table(model.config).to(device, dtype)
    return model, tokenizer


def export(path, folder):
    "Write a checkpoint's policy and its tokeniser to a new folder that `transformers` loads alone."
    model, record = load(path, "policy")
    weights.write(model, Tokenizer.of(record["tokenizer"]), folder)
