"""
metrics.py - the numbers of the study: diversity of a set of texts, win rates, intervals, KL.

They take texts and arrays; judges, encoders and relations are passed in. The study is in rlhf.py.

    python metrics.py OUTPUTS.jsonl      # the text measures of anybody's outputs, one line for each
                                         # input: {"prompt", "outputs": [...], "reference",
                                         # "scores": [...], or flags: "good": [...]}
"""

import functools
import itertools
import math
import re
import sys
import unicodedata

import numpy as np

# A letter of Thai, Lao, Burmese, Khmer, Japanese or Chinese with the marks and points behind it.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-"
                      "\u9fff\uf900-\ufaff\U00020000-\U0003ffff][^\\w\\s]*")


def words(text, blank=None):
    "The words of a text, as blanks divide it; in a script that sets none, each letter is a word."
    if not text.isascii():  # composed: "é" is one letter, however it was typed
        text = UNSPACED.sub(r" \g<0> ", unicodedata.normalize("NFC", text))
    return text.split(blank)


# ---- diversity of a set of texts -> float, higher = more diverse ---------------------------------


def ngrams(texts, n):
    "All n-grams of the texts, with repeats; none crosses from one text into the next."
    return [gram for text in texts for gram in ngrams_of(text, n)]


# An interval across inputs asks for the same texts hundreds of times: they are kept, as strings,
# which unlike tuples remember their hash, and each gram once.
@functools.lru_cache(2**16)
def ngrams_of(text, n):
    # The paper's tokenisation, kept to the letter so that numbers can be compared: full stops and
    # newlines vanish (gluing the words around them), only the space separates.
    text = text.replace(".", "").replace("。", "").replace("\n", "")
    row = [w for w in words(text, " ") if w]
    return [sys.intern(" ".join(gram)) for gram in zip(*(row[i:] for i in range(n)))]


def ead(texts, vocab_size=50257):
    """Expectation-adjusted distinct n-grams, mean over n = 1..5 (Liu et al. 2022, arXiv:2202.13587)

        distinct / (V (1 - ((V - 1) / V)^C)),  of C n-grams with repeats

    The plain share distinct / C falls with length whatever the text says. EAD divides by how many
    distinct ones C uniform draws from V = `vocab_size` would give, so it can slightly exceed 1. An
    n longer than every text counts 0. 16 identical texts give about 1/16.
    """
    values = []
    for n in range(1, 6):
        found = ngrams(texts, n)
        expected = vocab_size * (1 - ((vocab_size - 1) / vocab_size) ** len(found))
        values.append(len(set(found)) / expected if found else 0.0)
    return sum(values) / 5


def distinct(texts, n_max=5):
    "Distinct n-grams over all n-grams, mean over n = 1..n_max, in [0, 1]; falls with length."
    found = [ngrams(texts, n) for n in range(1, n_max + 1)]
    return sum(len(set(grams)) / len(grams) if grams else 0.0 for grams in found) / n_max


def embedding_diversity(texts, embed):
    """1 - mean cosine similarity over all pairs of texts, in [0, 2]; the paper's SentBERT measure.
    `embed` maps a list of n texts to (n, d) vectors and is called once. ValueError for n < 2."""
    n = len(texts)
    if n < 2:
        raise ValueError(f"diversity between texts needs at least 2 of them, not {n}")
    vectors = np.asarray(embed(texts), dtype=np.float64)  # (n, d)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    vectors = vectors / np.where(norms > 0, norms, 1)  # a zero vector is orthogonal to everything
    # |sum of v|^2 = sum of |v|^2 + twice the sum over pairs: no (n, n) matrix is needed.
    pairs = (np.sum(vectors.sum(axis=0) ** 2) - np.sum(vectors**2)) / (n * (n - 1))
    return float(1 - pairs)


def ngram_cosine(texts, n=3):
    """1 - mean cosine similarity of n-gram counts over all pairs of texts, in [0, 1]. ValueError
    for fewer than 2 texts."""
    return embedding_diversity(texts, lambda texts: ngram_counts(texts, n))


def ngram_counts(texts, n=3):
    """How often each text has each of their n-grams -> (texts, n-grams). A text of fewer than n
    words counts as one n-gram, like its equals alone."""
    found = [ngrams([text], n) or [" ".join(ngrams([text], 1))] for text in texts]
    column = {gram: k for k, gram in enumerate(dict.fromkeys(itertools.chain(*found)))}
    vectors = np.zeros((len(texts), len(column)))
    for row, grams in zip(vectors, found):
        np.add.at(row, [column[gram] for gram in grams], 1)
    return vectors


def nli_diversity(texts, relation, sentences=5, seed=0):
    """Mean contradiction minus entailment over all pairs of texts, from -2, identical one-sentence
    texts, to 2 (Stasaski & Hearst 2022). ValueError for fewer than 2 texts.

    `relation(premise, hypothesis)` is 1 for contradiction, 0 neutral, -1 entailment (or that times
    a model's confidence). Up to `sentences` sentences of either text of a pair are related in both
    directions; a text without words relates to nothing: 0."""
    if len(texts) < 2:
        raise ValueError(f"diversity between texts needs at least 2 of them, not {len(texts)}")
    split = re.compile(r"(?<=[.!?])\s+|(?<=[。！？।؟])\s*|\n+").split
    pieces = [[s for s in split(t.strip()) if s] for t in texts]
    random, values = np.random.default_rng(seed), []
    for a, b in itertools.combinations(pieces, 2):
        k = min(sentences, len(a), len(b))
        left, right = (random.choice(len(side), k, replace=False) if k else [] for side in (a, b))
        both = [relation(a[i], b[j]) + relation(b[j], a[i]) for i, j in zip(left, right)]
        values.append(sum(both) / k if k else 0.0)
    return float(np.mean(values))


# ---- what of a set is different, and good --------------------------------------------------------


def cosines(vectors):
    "Cosine similarities of (n, d) vectors -> (n, n); one of zeros is like itself alone."
    vectors = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    vectors = vectors / np.where(norms > 0, norms, 1)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, 1.0)
    return similarity


def vendi(similarity):
    """How many different things there are, by (n, n) similarities with ones on the diagonal ->
    float, from 1, if all are the same, to n, if none is like another

        exp(-sum of l log l)  of the eigenvalues l of similarity / n

    Vendi score, Def. 3.1, Friedman and Dieng 2023, arXiv:2210.02410. ValueError for a matrix that
    is not of similarities: another diagonal, not symmetric, a negative eigenvalue.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    found = np.linalg.eigvalsh(similarity) / len(similarity)
    if not (np.allclose(similarity, similarity.T) and np.allclose(similarity.diagonal(), 1)
            and found[0] > -1e-8):
        raise ValueError("similarities are symmetric, 1 on the diagonal, positive semi-definite")
    found = found[found > 1e-12]  # l log l of 0 is 0
    return float(np.exp(-(found * np.log(found)).sum()))


def kinds(texts, same):
    """The kind of each text, numbered as they appear -> list of ints. `same(a, b)` says whether two
    texts are of one kind; a text is compared with the first of every kind so far. Their number is
    NoveltyBench's distinct_k (Zhang et al. 2025, arXiv:2504.05228)."""
    firsts, found = [], []
    for text in texts:
        kind = next((k for k, first in enumerate(firsts) if same(first, text)), len(firsts))
        firsts += [text] * (kind == len(firsts))
        found.append(kind)
    return found


def effective(kinds, good):
    """How many kinds there are among the good of a prompt's outputs: (K,), (K,) -> int. Effective
    diversity (Shypula et al. 2025, arXiv:2504.12522): what is not good adds nothing to it."""
    return len({kind for kind, is_good in zip(kinds, good) if is_good})


def utility(kinds, scores, patience=0.8):
    """What outputs are worth, (K,) kinds and (K,) scores, to who reads them in turn, goes on after
    each with probability `patience`, and gains its score from the first of a kind only -> float

        (1 - p) / (1 - p^K)  sum over i of  p^i [kind i is new] score i,   i = 0 .. K - 1

    NoveltyBench's utility_k (Zhang et al. 2025, arXiv:2504.05228).
    """
    weights = patience ** np.arange(len(kinds))
    is_new = [kind not in kinds[:i] for i, kind in enumerate(kinds)]
    return float(np.average(np.where(is_new, scores, 0.0), weights=weights))


def pass_at_k(good, k):
    """Chance that one of k of these outputs is good: (inputs, K) flags -> (inputs,), of c good ones
    1 - C(K - c, k) / C(K, k), unbiased (Eq. 1, Chen et al. 2021, arXiv:2107.03374). ValueError for
    k beyond K."""
    good = np.asarray(good, dtype=bool)
    n = good.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"of {n} outputs no {k} can be drawn")
    return np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in good.sum(1)])


def split_loss(before, after):
    """What one policy's outputs have lost of another's kinds, each (kinds, good) of one prompt ->
    {"lost", "quality": kinds of which none is good, "narrowing": kinds among the good}, numbers of
    kinds, which add up; negative is a gain. After Karouzos et al. 2026, arXiv:2604.16027, who
    compare diversities of all outputs and of the correct ones: here kinds are counted."""
    (all_before, good_before), (all_after, good_after) = (
        (len(set(kinds)), effective(kinds, good)) for kinds, good in (before, after))
    lost, narrowing = all_before - all_after, good_before - good_after
    return {"lost": lost, "quality": lost - narrowing, "narrowing": narrowing}


def per_input(outputs, diversity):
    "Diversity among the samples of each input -> (inputs,); `outputs[i]` lists input i's."
    return np.array([diversity(samples) for samples in outputs], dtype=np.float64)


def across_inputs(outputs, diversity, column=0):
    "Diversity of one output per input, the `column`-th of each -> float (columns replicate)."
    return diversity([samples[column] for samples in outputs])


def pooled(outputs, diversity):
    'Diversity of all outputs of all inputs together: what "overall" means in the paper\'s code.'
    return diversity([text for samples in outputs for text in samples])


def win_rate(a, b):
    """Does score a[i] beat b[i]? -> (N,): 1 yes, 0 no, .5 a tie; `interval` of it is the win rate.
    ValueError for scores that cannot be compared."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} outputs cannot be compared with {len(b)}")
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if np.isnan(a).any() or np.isnan(b).any():  # NaN would silently lose every comparison
        raise ValueError(f"score {int(np.argmax(np.isnan(a) | np.isnan(b)))} is not a number")
    return (a > b) + 0.5 * (a == b)


def kl_estimates(logp, logp_ref, is_response):
    """(B, R) log-probabilities, in nats, of tokens sampled from the first -> k1, k3, each (B,).

    Both estimate KL(policy || ref_policy) of a whole response. With d = logp - logp_ref, k1 = d is
    unbiased and often negative; k3 = exp(-d) - 1 + d is never negative, has the same expectation
    and mostly less variance (Schulman 2020, "Approximating KL divergence"). Padding may hold NaN.
    """
    # Masked before the subtraction: NaN times 0 is NaN, and inf - inf would warn.
    new = np.where(is_response, np.asarray(logp, dtype=np.float64), 0)
    ref = np.where(is_response, np.asarray(logp_ref, dtype=np.float64), 0)
    d = new - ref  # (B, R), 0 on padding, where k3 is 0 too
    return d.sum(axis=1), (np.expm1(-d) + d).sum(axis=1)  # expm1: exact also where d is tiny


# ---- intervals -> (mean, low, high, n) -----------------------------------------------------------


def interval(values, level=0.95, resamples=2000, seed=0):
    """Mean of (N,) values and its bootstrap interval over them. One value per prompt: prompts are
    the independent draws, samples of one prompt are not. To compare two policies pass the
    difference per prompt, which removes the prompts' own spread."""
    values, random = finite(values), np.random.default_rng(seed)
    n, means = len(values), []
    rows = min(resamples, max(2**20 // n, 1))  # at a time: of large N the whole table does not fit
    for _ in range(0, resamples, rows):
        means.extend(values[random.integers(n, size=(rows, n))].mean(1))
    low, high = np.quantile(means[:resamples], [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high), n


def t_interval(values, level=0.95):
    """Mean of (N,) values and its Student t interval: for a few seeds, where resampling has nothing
    to resample. With one value the interval is infinite."""
    values = finite(values)
    mean, n, half = values.mean(), len(values), math.inf
    if n > 1:
        half = t_quantile(0.5 + level / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return float(mean), float(mean - half), float(mean + half), n


def finite(values):
    values = np.asarray(values, dtype=np.float64).reshape(-1)  # (N,)
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, of {len(values)} here not all are")
    return values


def t_quantile(p, v):
    """The p-quantile, p > .5, of Student's t with v degrees of freedom, from its density

        f(x) = gamma((v + 1) / 2) / (gamma(v / 2) sqrt(v pi)) (1 + x^2 / v)^(-(v + 1) / 2)

    integrated from the median on, over the angle of x = tan(angle), which has no infinite tail.
    """
    scale = math.exp(math.lgamma((v + 1) / 2) - math.lgamma(v / 2)) / math.sqrt(v * math.pi)
    angle = np.linspace(0, math.pi / 2, 20_001)[:-1]
    x = np.tan(angle)
    density = scale * (1 + x**2 / v) ** (-(v + 1) / 2) * (1 + x**2)  # f(x) dx / dangle
    areas = (density[1:] + density[:-1]) / 2 * np.diff(angle)  # trapezia
    return float(np.tan(np.interp(p - 0.5, np.append(0, np.cumsum(areas)), angle)))


if __name__ == "__main__":
    from data import measured

    measured.main()
