"""
`python metrics.py OUTPUTS.jsonl`: anybody's outputs, read, measured and printed. And ROUGE, of
which the study has no need.
"""

import collections
import json
from unicodedata import category, normalize

import numpy as np

import metrics
from data import claims, encoders, good
from data.files import read_rows, write_file
from data.flags import one_sentence, parser_of


def read_outputs(path):
    """(outputs, references or None, scores or None) of JSON lines; flags "good" are scores of 1 and
    0. ValueError names the first bad line: no outputs, another number of them than in the line
    before, something that is not text, scores that are not one number each."""
    outputs, references, scores = [], [], []
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
        scores.append(row.get("good", row.get("scores")))
        if scores[-1] is not None and not (
                isinstance(scores[-1], list) and len(scores[-1]) == len(texts)
                and all(isinstance(x, (int, float)) and np.isfinite(x) for x in scores[-1])):
            raise ValueError(f"{place}: its scores, or what is good, are not one number for each "
                             f"of {len(texts)} outputs")
    if not outputs:
        raise ValueError(f"{path} holds no outputs")
    return outputs, *(None if None in found else found for found in (references, scores))


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


def measure(outputs, references=None, embed=None, relation=None, scores=None, bar=None,
            same_above=None):
    """Every text measure of outputs[input][sample] -> {measure: {"mean", "low", "high", "n"}},
    per input also "std", the spread over inputs. What needs several samples per input, several
    inputs, references, an encoder or a relation is left out without them; scores, (inputs, K), of
    at least a `bar` are good; a cosine `same_above` which two texts are of one kind."""
    diversities = {name: getattr(metrics, name) for name in ("ead", "distinct", "ngram_cosine")}
    if embed:
        diversities["embedding"] = lambda texts: metrics.embedding_diversity(texts, embed)
    if relation:
        diversities["nli"] = lambda texts: metrics.nli_diversity(texts, relation)
    vectors_of = embed or metrics.ngram_counts
    diversities["vendi"] = lambda texts: metrics.vendi(metrics.cosines(vectors_of(texts)))
    each = lambda f: metrics.interval([np.mean([f(t) for t in texts]) for texts in outputs])
    found = {"words": each(lambda t: len(metrics.words(t))), "empty": each(lambda t: not t.strip())}
    if len(outputs[0]) > 1:
        for name, diversity in diversities.items():
            values = metrics.per_input(outputs, diversity)
            found[f"per_input_{name}"] = (*metrics.interval(values), float(values.std()))
        kinds = {"texts": [metrics.kinds(texts, str.__eq__) for texts in outputs]}
        if same_above is not None:
            kinds["kinds"] = good.kinds_by_cosine(outputs, vectors_of, same_above)
        passes = None if scores is None or bar is None else np.asarray(scores) >= bar
        for name, values in good.of_good(kinds, scores, passes).items():
            found[name] = (*metrics.interval(values), float(values.std()))
    if len(outputs) > 3:
        for name, diversity in diversities.items():
            if name in ("nli", "vendi"):  # slow for many inputs: once, without interval
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
    parser.add_argument("--bar", type=float, help='the least of a row\'s "scores" that is good '
                        '(of flags "good": 1)')
    parser.add_argument("--same-above", type=float, metavar="COSINE", help="how like each other "
                        "texts of one class are, by the encoder or by shared triples of words")
    parser.add_argument("--out", help="where to write the figures (default: FILE.metrics.json)")
    args = parser.parse_args(argv)
    path = args.out or f"{args.file}.metrics.json"
    with one_sentence():
        outputs, references, scores = read_outputs(args.file)
        flags = scores is not None and {x for row in scores for x in row} <= {0, 1}
        bar = 1.0 if args.bar is None and flags else args.bar
        if scores is None and bar is not None:
            raise ValueError(f'--bar {bar:g}: not every row of {args.file} has "scores" or "good"')
        embed = args.encoder and encoders.sentences(args.encoder)
        found = measure(outputs, references, embed, args.nli and encoders.nli(args.nli),
                        scores=scores, bar=bar, same_above=args.same_above)
        write_file(path, json.dumps(found, indent=1))
    print(f"{len(outputs)} inputs, {len(outputs[0])} outputs each\n\n"
          f"{'':28}{'mean':>9}{'95 % interval':>20}{'std':>9}")
    for name, row in found.items():
        low = f"{row['low']:.4f} to {row['high']:.4f}" if "low" in row else ""
        std = f"{row['std']:9.4f}" if "std" in row else ""
        print(f"{name:28}{row['mean']:9.4f}{low:>20}{std}")
    print(f"\nwrote {path}")
