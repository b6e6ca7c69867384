"""
`python metrics.py OUTPUTS.jsonl`: anybody's outputs, read, measured and printed. And ROUGE, of
which the study has no need.
"""

import collections
import json
from unicodedata import category, normalize

import numpy as np

import metrics
from data import claims, encoders
from data.files import read_rows, write_file
from data.flags import one_sentence, parser_of


def read_outputs(path):
    """(outputs, references or None) of JSON lines; ValueError names the first bad line: no outputs,
    another number of them than in the line before, something that is not text."""
    outputs, references = [], []
    for row, place in read_rows(path):
        texts = row.get("outputs")
        if not isinstance(texts, list) or not texts:
            raise ValueError(f'{place}: no "outputs", a list with at least one text')
        if not all(isinstance(t, str) for t in [*texts, row.get("reference", "")]):
            raise ValueError(f"{place}: an output, or the reference, is not text")
        if outputs and len(texts) != len(outputs[0]):
            raise ValueError(f"{place}: {len(texts)} outputs where the lines before have "
                             f"{len(outputs[0])}; give every input as many")
        outputs.append(texts)
        references.append(row.get("reference"))
    if not outputs:
        raise ValueError(f"{path} holds no outputs")
    return outputs, None if None in references else references


def rouge(text, reference):
    """ROUGE-1, -2 and -L (Lin 2004): F1 of the words, pairs of words and the longest subsequence
    that a text shares with a reference -> dict, in [0, 1]; lower case, no stemming. Letters, their
    marks and digits make words, of any script."""
    def plain(text):
        letters = [c for c in normalize("NFKC", text).lower() if category(c) != "Cf"]
        return metrics.words("".join(c if category(c)[0] in "LMN" else " " for c in letters))

    a, b, count = plain(text), plain(reference), collections.Counter
    places = collections.defaultdict(int)  # of each word in b, a bit
    for j, word in enumerate(b):
        places[word] |= 1 << j
    # Bit j of `row` is 0 where the longest common subsequence of b[:j + 1] and a, so far, is longer
    # than that of b[:j] (Hyyro 2004, "Bit-parallel LCS-length computation revisited").
    row = whole = (1 << len(b)) - 1
    for word in a:
        met = row & places[word]
        row = (row + met | row - met) & whole
    both, f1 = len(a) + len(b), lambda shared, both: 2 * shared / both if shared else 0.0
    return {"rouge1": f1((count(a) & count(b)).total(), both),
            "rouge2": f1((count(zip(a, a[1:])) & count(zip(b, b[1:]))).total(), both - 2),
            "rougeL": f1(len(b) - row.bit_count(), both)}


def measure(outputs, references=None, embed=None, relation=None):
    """Every text measure of outputs[input][sample] -> {measure: {"mean", "low", "high", "n"}},
    per input also "std", the spread over inputs. What needs several samples per input, several
    inputs, references, an encoder or a relation is left out without them."""
    diversities = {name: getattr(metrics, name) for name in ("ead", "distinct", "ngram_cosine")}
    if embed:
        diversities["embedding"] = lambda texts: metrics.embedding_diversity(texts, embed)
    if relation:
        diversities["nli"] = lambda texts: metrics.nli_diversity(texts, relation)
    each = lambda f: metrics.interval([np.mean([f(t) for t in texts]) for texts in outputs])
    found = {"words": each(lambda t: len(metrics.words(t))), "empty": each(lambda t: not t.strip())}
    if len(outputs[0]) > 1:
        for name, diversity in diversities.items():
            values = metrics.per_input(outputs, diversity)
            found[f"per_input_{name}"] = (*metrics.interval(values), float(values.std()))
    if len(outputs) > 3:
        for name, diversity in diversities.items():
            if name == "nli":  # a forward pass for each pair of inputs: once, without interval
                interval = (metrics.across_inputs(outputs, diversity),)
            else:
                interval = claims.across_interval(outputs, diversity)
            found[f"across_input_{name}"] = interval
    for name in ("ead", "distinct"):
        found[f"pooled_{name}"] = (metrics.pooled(outputs, diversities[name]),)
    if references:
        scores = [[rouge(t, r) for t in texts] for texts, r in zip(outputs, references)]
        for name in ("rouge1", "rouge2", "rougeL"):
            found[name] = metrics.interval([np.mean([s[name] for s in row]) for row in scores])
    return {k: dict(zip(("mean", "low", "high", "n", "std"), row)) for k, row in found.items()}


def main(argv=None):
    "Measure a file, print the figures and keep them; whatever is wrong is one sentence."
    parser = parser_of(metrics.__doc__)
    parser.add_argument("file", help="JSON lines, plain or .gz")
    parser.add_argument("--encoder", help="sentence-transformers model for embedding diversity, "
                        "such as the paper's bert-large-nli-stsb-mean-tokens")
    parser.add_argument("--nli", help="transformers classifier, such as roberta-large-mnli")
    parser.add_argument("--out", help="where to write the figures (default: FILE.metrics.json)")
    args = parser.parse_args(argv)
    path = args.out or f"{args.file}.metrics.json"
    with one_sentence():
        outputs, references = read_outputs(args.file)
        embed = args.encoder and encoders.sentences(args.encoder)
        found = measure(outputs, references, embed, args.nli and encoders.nli(args.nli))
        write_file(path, json.dumps(found, indent=1))
    print(f"{len(outputs)} inputs, {len(outputs[0])} outputs each\n\n"
          f"{'':28}{'mean':>9}{'95 % interval':>20}{'std':>9}")
    for name, row in found.items():
        low = f"{row['low']:.4f} to {row['high']:.4f}" if "low" in row else ""
        std = f"{row['std']:9.4f}" if "std" in row else ""
        print(f"{name:28}{row['mean']:9.4f}{low:>20}{std}")
    print(f"\nwrote {path}")
