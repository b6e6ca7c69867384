"""
Text to token ids and back, and the templates: how a prompt and a response become ids.

    prompt    [BOS] + ids of the prompt, cut so that what is asked last survives
    response  ids of " " + response, cut, then EOS, always

The two are tokenised apart and their ids concatenated. Tokenising the joined text instead would
let a merge cross the boundary, and the model would be trained on ids it never sees when sampling.
"""

import bisect
import hashlib
import json
import re
import sys
from pathlib import Path

from .files import progress

BPE = Path(__file__).parent / "world.bpe"
# where a turn of a dialogue begins: "Human:", "### Assistant:", "<|user|>", "[INST]", ...
TURN = re.compile(
    r"(?im:^[#* ]*(?:human|user|assistant|system|bot|ai|prompter|instruction|response|question|q|"
    r"answer|a)\**:)|\b(?:HUMAN|USER|ASSISTANT):|\[/?INST\]|<start_of_turn>\w+|"
    r"<\|(?:im_start|start_header_id)\|>\w+|<\|(?:human|user|assistant|system|prompter)\|>")
BLANKS = re.compile(r"(?<!\s)\s{100000,}")


class Tokenizer:
    """
    Text to ids and back: "world", "gpt2", the path of a file in tiktoken's format, or a pretrained
    model's own, by its folder or its name on the hub (see weights.vocabulary).

    EOS is the last id of the vocabulary, or what the pretrained model has. PAD is the model's
    vocab_size, an id with no embedding row: were PAD an ordinary token or EOS itself (a common
    shortcut), masking the padding would also hide the end of every response, and the model would
    never learn to stop.

    It also knows how long prompts and responses may be, so that every stage cuts them alike, and
    counts those it has `cut`. `kept` is the vocabulary as a checkpoint holds it, in
    primitives: no file is then read.
    """

    def __init__(self, name="world", prompt_tokens=224, response_tokens=48, kept=None):
        # Imported here: `python -m data.bpe` imports this package first, and must not find
        # itself loaded already. tiktoken waits for its first use, too.
        from . import bpe, weights

        self.name, encoding = str(name), None
        self.prompt_tokens, self.response_tokens, self.cut = prompt_tokens, response_tokens, 0
        is_gpt2 = weights.GPT2.fullmatch(self.name) and not Path(name, "config.json").is_file()
        if not kept and name != "world" and weights.is_pretrained(name) and not is_gpt2:
            kept, encoding = weights.vocabulary(weights.find(name, tensors=False))
        elif not kept:  # ranks, EOS after them, and no BOS
            ranks = trained(BPE if name == "world" else Path(name), is_gpt2)
            kept = {"special": {"<|endoftext|>": len(ranks)}, "eos": len(ranks), "bos": None,
                    "vocab_size": len(ranks) + 1, "ranks": bpe.dump(ranks), "pattern": bpe.PATTERN}
        self.kept, self.special = kept, kept["special"]
        self.eos, self.bos, self.vocab_size = kept["eos"], kept["bos"], kept["vocab_size"]
        self.pad = self.vocab_size
        if "spec" in kept:  # a tokenizer.json
            self.encoding = encoding or weights.Pieces(kept["spec"], self.name)
        else:
            import tiktoken

            self.encoding = tiktoken.Encoding(
                self.name, pat_str=kept["pattern"], special_tokens=self.special,
                mergeable_ranks=bpe.load(self.name, kept["ranks"].encode()))
        # A checkpoint stores this: ids mean nothing under another vocabulary, even of equal size.
        primitives = json.dumps(kept, sort_keys=True).encode()
        self.fingerprint = hashlib.sha256(primitives).hexdigest()[:16]

    @property
    def record(self):
        """What a checkpoint keeps of it; `Tokenizer.of(record)` makes it again, in whatever folder,
        with the vocabulary that stands in it (the world's lies beside this file)."""
        return {"name": self.name, "fingerprint": self.fingerprint,
                "prompt_tokens": self.prompt_tokens, "response_tokens": self.response_tokens,
                "kept": None if self.name == "world" else self.kept}

    @classmethod
    def of(cls, record):
        "The tokeniser of a checkpoint's `record`. ValueError if the vocabulary is another now."
        tokenizer = cls(record["name"], record["prompt_tokens"], record["response_tokens"],
                        record.get("kept"))
        if tokenizer.fingerprint != record["fingerprint"]:
            raise ValueError(f"the tokeniser {record['name']} has changed since this model was "
                             f"trained with it: restore that file, or train again")
        return tokenizer

    def prompt(self, text):
        return encode_prompt(self, text, self.prompt_tokens)

    def response(self, text):
        return encode_response(self, text, self.response_tokens)

    def prompts(self, texts):
        "All prompts of a stage, as ids; says on stderr how many of them were cut, if any."
        return self.every(texts, self.prompt, "prompts", self.prompt_tokens)

    def responses(self, texts):
        "All references, or other answers that a stage is given, likewise."
        return self.every(texts, self.response, "responses", self.response_tokens)

    def every(self, texts, encode, what, room):
        before, ids = self.cut, [encode(text) for text in progress(texts, what, unit="text")]
        if self.cut > before:
            print(f"{self.cut - before} of {len(ids)} {what} were cut to --{what[:-1]}-tokens "
                  f"{room}", file=sys.stderr)
        return ids

    def encode(self, text, inside=False):
        """Text -> list of ids. Never EOS: a post that says <|endoftext|> is only quoting it, and
        becomes seven ordinary tokens or so. Lone surrogates become U+FFFD. SentencePiece puts a
        space before every text; not before one that is `inside` another, and goes on from it."""
        encode = self.encoding.encode_ordinary
        further = getattr(self.encoding, "encode_inside", encode)
        first, *more = parts(text)
        return (further if inside else encode)(first) + [i for part in more for i in further(part)]

    def decode(self, ids):
        """Ids (a list or a tensor) -> text, without PAD, EOS and BOS; broken UTF-8 is U+FFFD. Ids
        that only the model has, whose table may be longer than the vocabulary, say nothing."""
        silent = {self.pad, self.eos, self.bos, *self.special.values()}
        return self.encoding.decode([i for i in map(int, ids)
                                     if i not in silent and i < self.encoding.n_vocab])


def parts(text):
    "A text, cut wherever it has 100,000 blanks in a row: tiktoken ends the process at a million."
    cuts = [i for run in BLANKS.finditer(text) for i in range(run.start(), run.end(), 100_000)]
    return [text[i:j] for i, j in zip([0, *cuts], [*cuts, None])]


def trained(path, is_gpt2):
    """The ranks of OpenAI's vocabulary, or of one trained by data.bpe."""
    from . import bpe

    if is_gpt2:
        import tiktoken

        try:
            return tiktoken.get_encoding("gpt2")._mergeable_ranks
        except OSError as error:  # what `requests` raises without a network
            raise OSError("the gpt2 tokeniser is fetched on its first use, which failed: connect "
                          'once, or use Tokenizer("world")') from error
    if not path.is_file():
        raise FileNotFoundError(f"there is no tokeniser at {path}: make it with "
                                f"`python -m data.bpe TEXT_FILE --vocab 2048 --out {path}`")
    return bpe.load(path)


def encode_prompt(tokenizer, prompt, max_tokens):
    """Prompt text -> at most `max_tokens` ids, BOS included where the family has one.

    A dialogue that is too long (it ends where who has answered is to answer again) loses its oldest
    turns. A last question, or any other prompt, loses the end of what stands before its last line:
    the post's tail, never "TL;DR:" or "### Response:", without which the model is not asked for
    anything. Blanks at the very end go too: the response brings its own. ValueError for an empty
    prompt."""
    prompt = prompt.rstrip()
    if not prompt:
        raise ValueError("the prompt is empty: there is nothing to respond to")
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    room = max_tokens - len(start)
    if room < 1:
        raise ValueError(f"a prompt needs at least {len(start) + 1} tokens, not {max_tokens}")
    ids = tokenizer.encode(prompt)
    if len(ids) > room:
        tokenizer.cut += 1
        line, turns = prompt.rfind("\n"), list(TURN.finditer(prompt))
        end, labels = len(prompt[:max(line, 0)].rstrip("\n")), [turn[0] for turn in turns]
        if turns and turns[-1].start() > line and labels.count(labels[-1]) > 1:
            lead = prompt[:len(prompt) - len(prompt.lstrip())]  # hh's begin with an empty line
            *places, cue = (turn.start() for turn in turns)
            fits = lambda place: len(tokenizer.encode(lead + prompt[place:])) <= room
            place = places[bisect.bisect_left(places[:-1], True, key=fits)]  # or the last question
            end = len(prompt[:cue].rstrip()) - place + len(lead)
            prompt = lead + prompt[place:]
            ids = tokenizer.encode(prompt)
        cue = tokenizer.encode(prompt[end:], inside=True)
        # A single line, or a last line longer than all the room, is no cue: cut it plainly.
        if len(ids) > room >= len(cue) and end:
            ids = tokenizer.encode(prompt[:end])[:room - len(cue)] + cue
    return start + ids[:room]


def encode_response(tokenizer, response, max_tokens):
    """Response text -> at most `max_tokens` ids of which the last is EOS. An empty one is just EOS.

    EOS is appended after the cut. The other order loses it from every long response, and teaches
    a model that long responses do not end."""
    if max_tokens < 1:
        raise ValueError(f"a response needs room for EOS: at least 1 token, not {max_tokens}")
    text = response.strip()
    ids = tokenizer.encode(" " + text, inside=True) if text else []
    tokenizer.cut += len(ids) >= max_tokens
    return ids[: max_tokens - 1] + [tokenizer.eos]
