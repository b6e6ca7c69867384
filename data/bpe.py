"""
Train a byte-level byte-pair encoding, and write it in tiktoken's own file format.

Start from the 256 bytes. Again and again, glue together the pair of neighbouring tokens that is
most frequent in the text, and call the result a new token (Sennrich et al. 2016, arXiv:1508.07909;
over bytes as in GPT-2). The order of the merges is the vocabulary: a token's rank is both its id
and its priority when text is encoded, so a file of tokens and ranks says everything.

    python -m data.bpe corpus.txt more.jsonl.gz --vocab 2048 --out my.bpe
"""

import argparse
import base64
import gzip
import heapq
import re
import zlib
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from .files import read_rows, write_file
from .flags import fail

# GPT-2's rule for what may become one token (a word with the space before it, a run of digits, of
# punctuation, of blanks), as in tiktoken's r50k_base. It is written out because the tokeniser's
# fingerprint covers it: in another spelling of tiktoken's, checkpoints must not look foreign.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
# The same rule for the standard library's `re`, to count words by. It has no \p{L}: what it calls a
# letter includes numerals such as superscripts, so a merge of those is learned that no text uses.
WORDS = re.compile(r"""'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s""")
FIELDS = ("text", "prompt", "response", "chosen", "rejected", "post", "title")


def train(texts, vocab_size, progress=False):
    """Learn a vocabulary from an iterable of strings -> dict from token (bytes) to rank.

    It has vocab_size - 1 ranks: the last id is left for <|endoftext|>. The 256 bytes are always
    the first of them, so any text can be encoded. Ties go to the pair that sorts first, which
    makes the result a function of the text alone. ValueError when the text has too few pairs."""
    if vocab_size < 257:
        raise ValueError(f"--vocab {vocab_size} is impossible: 256 bytes and EOS make at least 257")
    # merges never cross words, so each distinct word is looked at once
    frequency = Counter(word for text in texts for word in WORDS.findall(text))
    words = [[bytes([b]) for b in word.encode("utf-8", "replace")] for word in frequency]
    times = list(frequency.values())

    counts, holders = Counter(), defaultdict(set)  # pair -> how often; -> in which words
    for w, word in enumerate(words):
        for pair in zip(word, word[1:]):
            counts[pair] += times[w]
            holders[pair].add(w)
    # Every pair has a heap entry at or above its true count: rises are pushed when they happen,
    # falls are noticed when the entry comes up. The first entry that is up to date is the best.
    heap = [(-n, pair) for pair, n in counts.items()]
    heapq.heapify(heap)
    ranks = {bytes([b]): b for b in range(256)}
    with tqdm(total=vocab_size - 257, desc="merges", disable=not progress) as bar:
        while len(ranks) < vocab_size - 1:
            if not heap:
                raise ValueError(f"the text yields only {len(ranks) + 1} tokens: give more text, "
                                 f"or --vocab {len(ranks) + 1}")
            n, pair = heapq.heappop(heap)
            if -n != counts[pair]:
                if counts[pair] > 0:
                    heapq.heappush(heap, (-counts[pair], pair))
                continue
            token = pair[0] + pair[1]
            grown = set()
            for w in holders.pop(pair):  # only words that hold the pair are counted anew
                for old in zip(words[w], words[w][1:]):
                    counts[old] -= times[w]
                words[w] = merge(words[w], pair, token)
                for new in zip(words[w], words[w][1:]):
                    counts[new] += times[w]
                    if token in new:  # other pairs were in this word before, and did not rise
                        holders[new].add(w)
                        grown.add(new)
            for new in grown:
                heapq.heappush(heap, (-counts[new], new))
            # Always new: every word has seen the same merges in the same order, so the same bytes
            # between two token boundaries are always cut alike, and never spelt in two ways.
            ranks[token] = len(ranks)
            bar.update()
    return ranks


def merge(word, pair, token):
    """Replace each occurrence of `pair` in a list of tokens by `token`, from the left."""
    out = []
    for part in word:
        if part == pair[1] and out[-1:] == [pair[0]]:
            out[-1] = token
        else:
            out.append(part)
    return out


def save(path, ranks):
    write_file(path, dump(ranks))


def dump(ranks):
    """Ranks as tiktoken writes them: base64 of the token, a space, its rank, one per line."""
    return "".join(f"{base64.b64encode(token).decode()} {ranks[token]}\n"
                   for token in sorted(ranks, key=ranks.get))


def load(path, content=None):
    """
    A file of ranks, or its `content` -> dict from token (bytes) to rank; ValueError names the path
    if it is none. (tiktoken's own loader keeps a copy by path in the temporary folder, and so goes
    on returning the old vocabulary after a new one was trained.)
    """
    content = Path(path).read_bytes() if content is None else content
    ranks = {}
    for number, line in enumerate(content.rstrip(b"\n").split(b"\n"), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"{path}, line {number}: not a token in base64 and its rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: the ranks are not 0, 1, 2, ... without gaps")
    if not ranks.keys() >= {bytes([b]) for b in range(256)}:
        raise ValueError(f"{path}: not all of the 256 single bytes have a rank")
    return ranks


def read(path):
    """Yield a .txt file whole, or from JSON lines the texts under the keys in FIELDS."""
    if ".jsonl" in path:
        for row, _ in read_rows(path):
            yield from (row[key] for key in FIELDS if isinstance(row.get(key), str))
        return
    with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
        yield f.read()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m data.bpe", allow_abbrev=False,
                                     description="Train a byte-level BPE vocabulary.")
    parser.add_argument("files", nargs="+", metavar="FILE", help=".txt, .jsonl or .jsonl.gz")
    parser.add_argument("--vocab", type=int, default=4096, help="tokens, EOS included")
    parser.add_argument("--out", required=True, help="the file to write")
    args = parser.parse_args()
    try:
        texts = [text for path in args.files for text in read(path)]
        ranks = train(texts, args.vocab, progress=True)
        save(args.out, ranks)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        fail(error)

    import tiktoken

    from .tokenizer import parts

    encoding = tiktoken.Encoding("", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    tokens = sum(len(encoding.encode_ordinary(x)) for text in texts for x in parts(text))
    size = sum(len(text.encode("utf-8", errors="replace")) for text in texts)
    print(f"{len(ranks) + 1} tokens, {size / max(tokens, 1):.2f} bytes per token on the text, "
          f"written to {args.out}")
