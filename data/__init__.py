"""
Text and token ids: the tokeniser, templates, records, splits, padding, batches.

A dataset is a list of plain-text records, whatever it came from: the embedded world
("summarise", "instruct"), a public set by its name ("tldr", "alpaca", ...: data/hub.py) or files.
Everything a model sees is made from them here:

    prompt    [BOS] + ids of the prompt, cut so that its last line (the cue) survives
    response  ids of " " + response, cut, then EOS, always

The two are tokenised apart and their ids concatenated. Tokenising the joined text instead would
let a merge cross the boundary, and the model would be trained on ids it never sees when sampling.
"""

import gzip
import hashlib
import itertools
import json
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch

WORLD = ("summarise", "instruct")
FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")  # of files
BPE = Path(__file__).parent / "world.bpe"


# --------------------------------------------------------------------------------------------
# Rows and batches: ids to tensors


def join(prompts, responses, pad):
    """
    Prompts and responses, as lists of ids -> what every loss needs:

        ids          (B, T)  prompt + response, right-padded
        positions    (B, R)  where in `ids` each response token stands
        is_response  (B, R)  True on response tokens, False on padding

    Quantities of the response are gathered once by `positions`, so that nothing downstream
    counts prompt tokens by hand. Padding repeats a valid position: safe to gather, then masked.
    ValueError for a prompt without tokens, after which nothing could be predicted.
    """
    if not all(map(len, prompts)):
        raise ValueError("every prompt needs at least one token")
    ids = pad_right([[*p, *r] for p, r in zip(prompts, responses, strict=True)], pad)  # (B, T)
    start = torch.tensor([len(p) for p in prompts]).view(-1, 1)  # (B, 1)
    length = torch.tensor([len(r) for r in responses]).view(-1, 1)  # (B, 1)
    step = torch.arange(max(map(len, responses), default=0))  # (R,)
    positions = torch.minimum(start + step, start + length - 1)  # (B, R)
    return ids, positions, step < length


def join_groups(prompts, groups, pad):
    """
    Prompts, each with several responses behind it, so that it is read once for all of them ->

        ids      (B, T)    prompt, response, response, ..., right-padded
        segment  (B, T)    0 in the prompt, k in its k-th response, -1 in padding
        last     (N,), (N,)  row and column of the last token of each response, in order
    """
    segments = [[0] * len(p) + [k for k, r in enumerate(group, 1) for _ in r]
                for p, group in zip(prompts, groups, strict=True)]
    rows = [[*p, *itertools.chain(*group)] for p, group in zip(prompts, groups)]
    ends = [list(itertools.accumulate(map(len, group), initial=len(p) - 1))[1:]
            for p, group in zip(prompts, groups)]
    last = [(b, end) for b, row in enumerate(ends) for end in row]
    return pad_right(rows, pad), pad_right(segments, -1), torch.tensor(last).unbind(1)


def predicted_at(segment):
    """
    Where each token of rows made by `join_groups` is predicted, a column: (B, T) -> (B, T).

    That is one column before it. But a response's first token is predicted where the prompt ends,
    also if other responses stand between. (A row's very first token is not predicted at all.)
    """
    column = torch.arange(segment.shape[1], device=segment.device)  # (T,)
    prompt = (segment == 0).sum(1, keepdim=True)  # (B, 1)
    is_first = segment != segment.roll(1, dims=1)  # (B, T)
    return torch.where(is_first, prompt, column) - 1


def pad_right(rows, pad):
    """Lists of ids -> LongTensor (B, T), filled up with `pad` on the right."""
    ids = torch.full((len(rows), max(map(len, rows), default=0)), pad)  # (B, T)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids


def batches(lengths, batch_size, generator=None):
    """
    Lengths of N items -> lists of at most `batch_size` indices that cover each item once.

    Rows of similar length share a batch, because a batch costs B times its longest row. Sorting
    everything would show the model the same batches every epoch, so items are shuffled first and
    sorted only within pools of 50 batches: little padding, and still random. Without a
    `generator`, for evaluation, everything is sorted.
    """
    n = len(lengths)
    if generator is None:
        order, pool = range(n), max(n, 1)
    else:
        order, pool = torch.randperm(n, generator=generator).tolist(), 50 * batch_size
    cut = []
    for i in range(0, n, pool):
        ordered = sorted(order[i : i + pool], key=lambda j: lengths[j])
        cut += [ordered[j : j + batch_size] for j in range(0, len(ordered), batch_size)]
    if generator is not None:
        cut = [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
    return cut


def shared_rows(prompts, responses, pad, batch_size=128, together=16):
    """
    Yields (places, *join_groups): all responses, as lists of ids, about `batch_size` at a time. Up
    to `together` that stand next to each other and answer the same prompt share a row; `places`
    says which they are.
    """
    groups = []
    for i, prompt in enumerate(prompts):
        if i and prompt == prompts[i - 1] and len(groups[-1]) < together:
            groups[-1].append(i)
        else:
            groups.append([i])
    lengths = [len(prompts[g[0]]) + sum(len(responses[i]) for i in g) for g in groups]
    for index in batches(lengths, max(batch_size // max(map(len, groups), default=1), 1)):
        part = [groups[k] for k in index]
        yield [i for g in part for i in g], *join_groups(
            [prompts[g[0]] for g in part], [[responses[i] for i in g] for g in part], pad)


def epochs(lengths, batch_size, seed):
    """Yields batches of indices for ever, each epoch in an order of its own that `seed` decides."""
    epoch = 0
    while True:
        order = torch.Generator().manual_seed(100_003 * seed + epoch)
        # A smaller last batch would be a noisier step; but never drop the only one.
        whole = [b for b in batches(lengths, batch_size, order) if len(b) == batch_size]
        yield from whole or [list(range(len(lengths)))]
        epoch += 1


# --------------------------------------------------------------------------------------------
# Records


@dataclass(frozen=True)
class Example:
    """A prompt and the reference response to it; `meta` is whatever else the source knew."""

    prompt: str
    response: str
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt, of which somebody preferred `chosen`."""

    prompt: str
    chosen: str
    rejected: str
    meta: dict = field(default_factory=dict)


# --------------------------------------------------------------------------------------------
# Tokeniser


class Tokenizer:
    """
    Text to ids and back: "world", "gpt2", the path of a file in tiktoken's format, or a pretrained
    model's own, by its folder or its name on the hub (see weights.vocabulary).

    EOS is the last id of the vocabulary, or what the pretrained model has. PAD is the model's
    vocab_size, an id with no embedding row: were PAD an ordinary token or EOS itself (a common
    shortcut), masking the padding would also hide the end of every response, and the model would
    never learn to stop.

    It also knows how long prompts and responses may be, so that every stage cuts them alike.
    """

    def __init__(self, name="world", prompt_tokens=224, response_tokens=48):
        from . import weights

        self.name = str(name)
        self.prompt_tokens, self.response_tokens = prompt_tokens, response_tokens
        is_gpt2 = weights.GPT2.fullmatch(self.name) and not Path(name, "config.json").is_file()
        if name != "world" and weights.is_pretrained(name) and not is_gpt2:
            vocabulary = weights.vocabulary(weights.find(name, tensors=False))
        else:
            vocabulary = self.trained(name, is_gpt2)
        self.encoding, self.special = vocabulary.encoding, vocabulary.special
        self.eos, self.bos, self.vocab_size = vocabulary.eos, vocabulary.bos, vocabulary.vocab_size
        self.pad, self.lead = self.vocab_size, vocabulary.lead
        # A checkpoint stores this: ids mean nothing under another vocabulary, even of equal size.
        self.fingerprint = hashlib.sha256(repr(vocabulary.parts).encode()).hexdigest()[:16]

    def trained(self, name, is_gpt2):
        """OpenAI's vocabulary, or one trained by data.bpe: ranks, EOS after them, and no BOS."""
        # Imported here: `python -m data.bpe` imports this package first, and must not find
        # itself loaded already. tiktoken waits for its first use, too.
        import tiktoken

        from . import bpe

        if is_gpt2:
            try:
                ranks = tiktoken.get_encoding("gpt2")._mergeable_ranks
            except OSError as error:  # what `requests` raises without a network
                raise OSError(
                    "the gpt2 tokeniser is fetched on its first use, which failed: connect once, "
                    'or use Tokenizer("world")'
                ) from error
        else:
            path = BPE if name == "world" else Path(name)
            if not path.is_file():
                raise FileNotFoundError(
                    f"there is no tokeniser at {path}: make it with "
                    f"`python -m data.bpe TEXT_FILE --vocab 2048 --out {path}`"
                )
            ranks = bpe.load(path)
        eos = len(ranks)
        special = {"<|endoftext|>": eos}
        encoding = tiktoken.Encoding(
            self.name, pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens=special
        )
        parts = [sorted(ranks.items(), key=lambda item: item[1]), sorted(special.items())]
        return SimpleNamespace(encoding=encoding, parts=(parts, bpe.PATTERN), special=special,
                               eos=eos, bos=None, vocab_size=eos + 1, lead=None)

    @property
    def record(self):
        """What a checkpoint keeps of it; `Tokenizer.of(record)` makes it again."""
        return {"name": self.name, "fingerprint": self.fingerprint,
                "prompt_tokens": self.prompt_tokens, "response_tokens": self.response_tokens}

    @classmethod
    def of(cls, record):
        tokenizer = cls(record["name"], record["prompt_tokens"], record["response_tokens"])
        if tokenizer.fingerprint != record["fingerprint"]:
            raise ValueError(f"the tokeniser {record['name']} has changed since this model was "
                             f"trained with it: restore that file, or train again")
        return tokenizer

    def prompt(self, text):
        return encode_prompt(self, text, self.prompt_tokens)

    def response(self, text):
        return encode_response(self, text, self.response_tokens)

    def encode(self, text, inside=False):
        """
        Text -> list of ids. Never EOS: a post that says <|endoftext|> is only quoting it, and
        becomes seven ordinary tokens or so. Lone surrogates become U+FFFD. SentencePiece puts a
        space before every text; not before one that is `inside` another, and goes on from it.
        """
        if self.lead and not inside:
            text = self.lead(text)
        return self.encoding.encode_ordinary(text)

    def decode(self, ids):
        """Ids (a list or a tensor) -> text, without PAD, EOS and BOS; broken UTF-8 is U+FFFD. Ids
        that only the model has, whose table may be longer than the vocabulary, say nothing."""
        silent = {self.pad, self.eos, self.bos, *self.special.values()}
        return self.encoding.decode([i for i in map(int, ids)
                                     if i not in silent and i < self.encoding.n_vocab])


# --------------------------------------------------------------------------------------------
# Templates: records to ids


def encode_prompt(tokenizer, prompt, max_tokens):
    """
    Prompt text -> at most `max_tokens` ids, BOS included where the family has one.

    A prompt that is too long loses the end of what stands before its last line: the post's tail,
    never "TL;DR:" or "### Response:", without which the model is not asked for anything. Blanks
    at the very end go too: the response brings its own. ValueError for an empty prompt.
    """
    prompt = prompt.rstrip()
    if not prompt:
        raise ValueError("the prompt is empty: there is nothing to respond to")
    start = [] if tokenizer.bos is None else [tokenizer.bos]
    room = max_tokens - len(start)
    if room < 1:
        raise ValueError(f"a prompt needs at least {len(start) + 1} tokens, not {max_tokens}")
    ids = tokenizer.encode(prompt)
    if len(ids) > room:
        post, newline, cue = prompt.rpartition("\n")
        cue = tokenizer.encode(newline + cue, inside=True)
        # A single line, or a last line longer than all the room, is no cue: cut it plainly.
        keep = room - len(cue) if newline and len(cue) <= room else None
        ids = ids[:room] if keep is None else tokenizer.encode(post)[:keep] + cue
    return start + ids


def encode_response(tokenizer, response, max_tokens):
    """
    Response text -> at most `max_tokens` ids of which the last is EOS. An empty one is just EOS.

    EOS is appended after the cut. The other order loses it from every long response, and teaches
    a model that long responses do not end.
    """
    if max_tokens < 1:
        raise ValueError(f"a response needs room for EOS: at least 1 token, not {max_tokens}")
    text = response.strip()
    ids = tokenizer.encode(" " + text, inside=True) if text else []
    return ids[: max_tokens - 1] + [tokenizer.eos]


# --------------------------------------------------------------------------------------------
# Records: where they come from


def load(name_or_path, split, n=None, seed=0):
    """
    The examples of a split -> list of Example: all of them, or `n` chosen by `seed`.

    `name_or_path` is "summarise" or "instruct", a public set (data/hub.py), a folder of files named
    `<split>.jsonl` (or .jsonl.gz, .csv, .parquet), or one such file, cut into train, validation and
    test by a hash of the prompt (so that a prompt with several responses falls on one side).
    ValueError names an unknown split or a bad row.
    """
    if name_or_path in WORLD:
        from . import world

        check_split(name_or_path, split, split_names(name_or_path))
        return [Example(*row) for row in world.examples(name_or_path, split, n, seed)]
    examples = public(name_or_path, split)
    if examples is None:
        examples = [example(*row) for row in read_split(name_or_path, split, "")]
    return some(examples, n, seed)


def comparisons(name_or_path, split, n=None, seed=0):
    """The comparisons of a split -> list of Comparison, from public sets or files as for `load`."""
    if name_or_path in WORLD:
        raise ValueError(
            f"{name_or_path} has no stored comparisons: "
            "reward.py collects them from the SFT policy and an annotator"
        )
    found = public(name_or_path, split, True)
    if found is None:
        found = [comparison(*row) for row in read_split(name_or_path, split, "comparisons.")]
    return some(found, n, seed)


def some(records, n, seed):
    "All records, or n of them in their order."
    if n is None or n >= len(records):
        return records
    return [records[i] for i in sorted(random.Random(seed).sample(range(len(records)), n))]


def public(name_or_path, split, pairs=False):
    "The records of a public set; None for a path."
    from . import hub

    return hub.records(name_or_path, split, pairs) if hub.knows(name_or_path) else None


def split_names(name_or_path, pairs=False):
    """The splits that a dataset has, of examples or (`pairs`) of stored comparisons -> tuple."""
    from . import hub

    if name_or_path in WORLD:
        from . import world

        return () if pairs else ("train", "validation", *world.SPLITS[name_or_path])
    if hub.knows(name_or_path):
        return hub.splits(name_or_path, pairs)
    path = Path(name_or_path)
    if not path.is_dir():
        return ("train", "validation", "test")
    return tuple(s for s in splits(path, "comparisons." if pairs else "") if s != "text")


def test_splits(name_or_path, pairs=False):
    """
    The splits to test on -> tuple; the first is in distribution ("id" or "test"), the others are
    shifted. With `pairs`, those of them that have stored comparisons. ValueError without a first.
    """
    found = [s for s in split_names(name_or_path)
             if s not in ("train", "validation", "unlabeled", "ood_validation")
             and not s.startswith("full_")]
    first = [s for s in ("id", "test") if s in found][:1]
    if not first:
        raise ValueError(f"{name_or_path} has no split 'test', in distribution, to test on")
    found = (*first, *(s for s in found if s not in first))
    stored = split_names(name_or_path, True) if pairs else found
    return tuple(s for s in found if s in stored)


def prompts(name_or_path):
    """The prompts that a policy practises on -> list of texts: of the split "unlabeled" where the
    dataset keeps some for this, as AlpacaFarm does, else of "train"."""
    names = split_names(name_or_path)
    split = "unlabeled" if "unlabeled" in names else "train"
    return [e.prompt for e in load(name_or_path, split)]


def texts(name_or_path, n=None, seed=0):
    """
    Raw text to pretrain on -> list of threads, each a tuple of messages; an EOS ends each message.
    For files: train examples, and the rows of text.jsonl[.gz], as threads of one message.
    """
    if name_or_path in WORLD:
        from . import world

        return list(world.pretraining(n, seed))
    found, folder = [], Path(name_or_path)
    if not folder.is_dir() or "train" in splits(folder, ""):
        found += [(f"{e.prompt} {e.response}",) for e in load(name_or_path, "train")]
    if folder.is_dir() and "text" in splits(folder, ""):
        found += [(string(row, at, "text"),) for row, at in read_rows(splits(folder, "")["text"])]
    if not found:
        raise ValueError(f"{name_or_path} holds neither train.jsonl nor text.jsonl")
    random.Random(seed).shuffle(found)
    return found[:n]


def gold(name):
    """The world's gold score, a function of (prompt, response) texts; None for real data."""
    if name not in WORLD:
        return None
    from . import world

    return world.gold


def run_folder(data, seed=0, out="out"):
    """
    Where the runs on a dataset go -> Path: out/<data>, and below it seed-S for S != 0. The folder
    of owner/name:config is owner--name--config, whatever copies it is read from.
    """
    from . import hub

    if data in WORLD or hub.knows(data):
        name = str(data).partition("=")[0].replace("/", "--").replace(":", "--")
    else:
        name = file_stem(Path(data).resolve())
    return Path(out) / name / f"seed-{seed}" if seed else Path(out) / name


# --------------------------------------------------------------------------------------------
# Files: JSON lines with the standard library, so that a bad row can be named by its number


def file_stem(path):
    name = path.name.removesuffix(".gz")
    return name.removesuffix(next((f for f in FORMATS if name.endswith(f)), ""))


def check_split(source, split, valid):
    if split not in valid:
        raise ValueError(f"{source} has no split {split!r}: choose from {', '.join(valid)}")


def splits(folder, prefix):
    """The files of a folder, `prefix` being "" or "comparisons." -> dict from split to Path."""
    found = {}
    for path in sorted(folder.iterdir()):
        mine = path.name.startswith("comparisons.") == bool(prefix)
        if mine and path.name.endswith(FORMATS):
            found[file_stem(path).removeprefix(prefix)] = path
    return found


def read_split(name_or_path, split, prefix):
    """Yield (row, where it stands) for the rows of one split of a folder or a file."""
    path = Path(name_or_path)
    if path.is_dir():
        found = splits(path, prefix)
        found.pop("text", None)  # raw text, for `texts` only
        if not found:
            raise ValueError(f"{path} holds no {prefix}<split>.jsonl (or {', '.join(FORMATS[1:])})")
        check_split(path, split, found)
        yield from read_rows(found[split])
    elif not path.name.endswith(FORMATS):
        from . import hub

        raise ValueError(
            f"there is no dataset {name_or_path}: give {', '.join((*WORLD, *hub.NAMES))}, "
            f"OWNER/NAME of the hub, a folder, or a file ({', '.join(FORMATS)})"
        )
    else:
        check_split(path, split, ("train", "validation", "test"))
        for row, at in read_rows(path):
            if split == part(string(row, at, "prompt")):
                yield row, at


def part(prompt, of=("validation", "test")):
    "The split that a prompt belongs to: 1 in 20 each for those in `of`, whatever the order."
    bucket = {0: "validation", 1: "test"}.get(zlib.crc32(prompt.encode("utf-8", "replace")) % 20)
    return bucket if bucket in of else "train"


LONGEST = 2**24  # bytes of a line: what was written to fill a memory is not read into it


def read_rows(path):
    """Yield (object, "file, line n") for each line of JSON; ValueError names what is wrong. Rows of
    CSV and Parquet files likewise."""
    if path.suffix in (".csv", ".parquet"):
        from . import hub

        for number, row in enumerate(hub.open_file(path, path), 1):
            yield row, f"{path}, row {number}"
        return
    number, unpacked, size = 0, 0, path.stat().st_size
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
            for number, line in enumerate(iter(lambda: f.readline(LONGEST + 1), b""), 1):
                at = f"{path}, line {number}"
                unpacked += len(line)
                if len(line) > LONGEST or unpacked > max(LONGEST, 200 * size):
                    raise ValueError(f"{at}: more text than any data has: lines of at most "
                                     f"{LONGEST:,} bytes, packed to no less than a 200th")
                try:
                    line = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    row = json.loads(line) if line else None
                except UnicodeDecodeError:
                    raise ValueError(f"{at}: not UTF-8") from None
                except (ValueError, RecursionError):
                    raise ValueError(f"{at}: not JSON") from None
                if line:  # a blank line, as at the end of many files, is no row
                    if not isinstance(row, dict):
                        raise ValueError(f"{at}: not a JSON object")
                    yield row, at
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, after line {number}: broken gzip ({error})") from None


def string(row, at, key):
    """The text under `key` of a row; ValueError says where and what is wrong with it."""
    if key not in row:
        raise ValueError(f'{at}: no "{key}"')
    if not isinstance(row[key], str):
        raise ValueError(f'{at}: "{key}" is not text but {row[key]!r:.40}')
    if key == "prompt" and not row[key].strip():
        raise ValueError(f"{at}: the prompt is empty")
    return row[key]


def example(row, at):
    key = "response" if "response" in row or "reference" not in row else "reference"
    meta = {k: v for k, v in row.items() if k not in ("prompt", key)}
    return Example(string(row, at, "prompt"), string(row, at, key), meta)


def comparison(row, at):
    prompt, chosen, rejected = (string(row, at, key) for key in ("prompt", "chosen", "rejected"))
    if chosen.strip() == rejected.strip():  # equal in what the model would see
        raise ValueError(f"{at}: chosen and rejected are equal, so nothing was preferred")
    meta = {k: v for k, v in row.items() if k not in ("prompt", "chosen", "rejected")}
    return Comparison(prompt, chosen, rejected, meta)
