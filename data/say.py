"""
What models say: several checkpoints' answers to a prompt, one below the other, token by token.

    python -m data say out/summarise/sft.pt out/summarise/ppo.pt --data summarise --split long
    python -m data say out/instruct/ppo.pt --prompt "Name a fish." --reward out/instruct/reward.pt
    python -m data say out/summarise/ppo.pt          # type, or pipe, a prompt a line

Behind an answer stand "no EOS" if it did not end (PPO gives that -3), its gold score if the prompt
is of the world's data, and its score by --reward. Each prompt stands alone. One of your own is put
into the template of the set that a model was trained on, unless it ends as that does. A pretrained
folder or a name of the hub may stand for a checkpoint; its chat template is not applied.
"""

import contextlib
import math
import os
import re
import shutil
import sys

import torch

import model as m
import reward
from data import Tokenizer, checkpoint, gold, load, records
from data.decoding import attention_to
from data.flags import within
from data.run import pick_device

POST = records.REDDIT.format(subreddit="relationships", title="Is this normal?", post="{}")
TASK = records.TASK.format(instruction="{}")
TEMPLATES = {"summarise": POST, "tldr": POST, "instruct": "### Instruction:\n{}\n\n### Response:",
             "alpaca": TASK, "alpaca-sim": TASK, "hh": "\n\nHuman: {}\n\nAssistant:"}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # but for "\n"


def shown(text):
    "A text that cannot drive the terminal: its control characters by their numbers."
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def asked(prompt, template):
    "A prompt in a template, unless it ends as that does, or is empty."
    cue, text = template.rpartition("{}")[2].strip(), prompt.rstrip()
    return template.format(prompt) if text and not text.endswith(cue) else prompt


def typed():
    "Lines of a terminal, whose arrow keys bring back earlier ones, or of a pipe; no empty ones."
    lines = sys.stdin
    if lines.isatty():
        with contextlib.suppress(ImportError):  # on Windows there is none
            import readline  # noqa: F401 (`input` uses it once it is there)
        print("Type a prompt. Ctrl-C stops an answer, Ctrl-D leaves.")
        lines = iter(lambda: input("> "), None)
    try:
        yield from filter(None, map(str.strip, lines))
    except EOFError:
        print()


def sampled(policy, prompt, count, temperature, generator):
    "Yields the tokens of m.generate(policy, [prompt], count, temperature) as they are chosen."
    uniform = torch.rand(1, count, dtype=torch.float64, generator=generator)
    uniform = uniform.to(policy.embed.weight.device)
    hidden, place, keys, is_key = m.read_prompts(policy, [prompt], 0)
    attention = attention_to(keys, is_key, place.new_zeros(1), policy.new_cache(1, count))
    for n in range(count):  # as m.decode_rows, of one row
        logits = policy.logits(hidden)  # (1, V)
        m.check_logits(logits.sum().isfinite(), n)
        token = m.choose(logits, temperature, uniform[:, n])  # (1,)
        yield token.item()
        if token.item() in policy.config.eos:
            return
        place = place + 1
        hidden = policy.decode(token[:, None], place, None, attention, n)


def write(tokens, tokenizer, indent):
    "Print a response as it comes, but no letter before all of its bytes are there -> ids, text."
    ids, done = [], ""
    show = lambda text: print(shown(text).replace("\n", indent), end="", flush=True)
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids).rstrip("\ufffd").strip()
        show(text[len(done):])
        done = text
    text = tokenizer.decode(ids).strip()
    show(text[len(done):])  # letters that stay in parts
    return ids, text


def opened(args, device):
    "Each checkpoint's name (its path less what all share), policy, tokeniser, template, chance."
    home = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in args.checkpoints])
    for path in args.checkpoints:
        policy, record = checkpoint.load_frozen(path, "policy", device)
        name = os.path.relpath(path, home).removesuffix(".pt")
        tokenizer, config = Tokenizer.of(record["tokenizer"]), record["meta"].get("config", {})
        room = policy.config.context - tokenizer.response_tokens  # a pretrained one may have less
        tokenizer.prompt_tokens = min(tokenizer.prompt_tokens, room)
        template = "{}" if args.data else TEMPLATES.get(records.parse(config.get("data"))[0], "{}")
        yield name, policy, tokenizer, template, torch.Generator().manual_seed(args.seed)


def say(args):
    """Answer the prompts. A checkpoint's answers are those that one call of m.generate, with --seed
    and all of its prompts, would give, though each is sampled by itself."""
    if args.data and args.prompt is not None or args.split and not args.data:
        raise ValueError("give --prompt, or --data and perhaps --split, or none of them")
    within(args, 0, math.inf, "temperature", "seed")
    device, score, reward_fn = pick_device("auto"), gold(args.data), None
    models = list(opened(args, device))
    for fingerprint in {tokenizer.fingerprint for _, _, tokenizer, *_ in models if args.reward}:
        judge, _ = checkpoint.load_frozen(args.reward, "reward", device, fingerprint)
        reward_fn = reward.scorer(judge, judge.config.vocab_size)
    prompts, n = (typed(), 1) if args.prompt is None else ([args.prompt], args.n)
    if args.data:
        prompts = [e.prompt for e in load(args.data, args.split or "validation")[:args.n]]
    for template in dict.fromkeys(template for *_, template, _ in models if template != "{}"):
        print(f"asked, with the prompt for {{}}: {template!r}", file=sys.stderr)
    width = max(len(name) for name, *_ in models)
    for prompt in prompts:
        if args.data:
            print("-" * min(80, shutil.get_terminal_size().columns), shown(prompt), sep="\n")
        try:
            for name, policy, tokenizer, template, generator in models:
                (ids,) = tokenizer.prompts([asked(prompt, template)])
                for _ in range(n):
                    print(f"{name:>{width}}  ", end="", flush=True)
                    tokens = sampled(policy, ids, tokenizer.response_tokens, args.temperature,
                                     generator)
                    response, text = write(tokens, tokenizer, "\n" + " " * (width + 2))
                    notes = ["no EOS"] * (response[-1] not in policy.config.eos)
                    notes += [f"gold {score(prompt, text):.2f}"] if score else []
                    notes += [f"proxy {reward_fn([ids], [response])[0]:.2f}"] if reward_fn else []
                    print(f"  [{', '.join(notes)}]" if notes else "")
        except KeyboardInterrupt:
            if args.data or args.prompt is not None or not sys.stdin.isatty():
                raise
            print()
