"""
metrics.py - the numbers of the study, and its lab notebook.

First the measures: diversity of a set of texts, win rates, KL, intervals. They take texts and
arrays, know nothing of models, and get their judges, encoders and relations passed in. Then what
every stage shares: `within` and `cli` (flags from a Config), `Log` and `curve` (what happened).

    python metrics.py OUTPUTS.jsonl      # the text measures of anybody's outputs, one line for each
                                         # input: {"prompt", "outputs": [...], "reference"}
"""

import argparse
import ast
import collections
import contextlib
import dataclasses
import difflib
import errno
import functools
import gc
import gzip
import inspect
import io
import itertools
import json
import math
import os
import re
import signal
import statistics
import sys
import textwrap
import tokenize
import types
import typing
import weakref
import zlib
from pathlib import Path

import numpy as np

# --------------------------------------------------------------------------------------------
# Diversity. Each function takes one set of texts and returns a float, higher = more diverse.


def ngrams(texts, n):
    """All n-grams of the texts, with repeats; none crosses from one text into the next."""
    found = []
    for text in texts:
        # The paper's tokenisation, kept to the letter so that numbers can be compared: full stops
        # and newlines vanish (gluing the words around them), only the space separates.
        words = [w for w in text.replace(".", "").replace("\n", "").split(" ") if w]
        found += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return found


def ead(texts, vocab_size=50257):
    """
    Expectation-adjusted distinct n-grams, mean over n = 1..5 (Liu et al. 2022, arXiv:2202.13587).

    The plain share of distinct n-grams falls with length whatever the text says. EAD divides by
    the number of distinct ones expected if each were drawn uniformly from `vocab_size`, so it can
    slightly exceed 1. An n longer than every text counts 0. 16 identical texts give about 1/16.
    """
    values = []
    for n in range(1, 6):
        found = ngrams(texts, n)
        expected = vocab_size * (1 - ((vocab_size - 1) / vocab_size) ** len(found))
        values.append(len(set(found)) / expected if found else 0.0)
    return sum(values) / 5


def distinct(texts, n_max=5):
    """Distinct n-grams over all n-grams, mean over n = 1..n_max, in [0, 1]; falls with length."""
    values = []
    for n in range(1, n_max + 1):
        found = ngrams(texts, n)
        values.append(len(set(found)) / len(found) if found else 0.0)
    return sum(values) / n_max


def ngram_cosine(texts, n=3):
    """
    1 - mean cosine similarity of n-gram counts over all pairs of texts, in [0, 1]. A text of fewer
    than n words is like no other. ValueError for fewer than 2 texts.
    """
    counts = [collections.Counter(ngrams([text], n)) for text in texts]
    column = {gram: k for k, gram in enumerate(dict.fromkeys(itertools.chain(*counts)))}
    vectors = np.zeros((len(texts), max(len(column), 1)))
    for row, count in zip(vectors, counts):
        row[[column[gram] for gram in count]] = list(count.values())
    return embedding_diversity(texts, lambda texts: vectors)


def embedding_diversity(texts, embed):
    """
    1 - mean cosine similarity over all pairs of texts, in [0, 2]; the paper's SentBERT measure.

    `embed` maps a list of n texts to (n, d) vectors and is called once. ValueError for n < 2.
    """
    n = len(texts)
    if n < 2:
        raise ValueError(f"diversity between texts needs at least 2 of them, not {n}")
    vectors = np.asarray(embed(texts), dtype=np.float64)  # (n, d)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (n, 1)
    vectors = vectors / np.where(norms > 0, norms, 1)  # a zero vector is orthogonal to everything
    # |sum of v|^2 = sum of |v|^2 + twice the sum over pairs: no (n, n) matrix is needed.
    pairs = (np.sum(vectors.sum(axis=0) ** 2) - np.sum(vectors**2)) / (n * (n - 1))
    return float(1 - pairs)


def nli_diversity(texts, relation, sentences=5, seed=0, released=False):
    """
    Mean contradiction minus entailment over all pairs of texts, in [-2, 2] (Stasaski & Hearst
    2022). Identical one-sentence texts give -2, mutually contradicting ones 2.

    `relation(premise, hypothesis)` is a float: 1 contradiction, 0 neutral, -1 entailment (or that
    times a model's confidence). From each pair of texts up to `sentences` sentences are drawn
    from either side and related in both directions. A text without words relates to nothing: 0.
    ValueError for fewer than 2 texts.

    `released` does as the paper's released code: it draws characters where the paper has sentences,
    subtracts the mean from 1, which turns the sign around, and divides by `sentences` once more.
    The numbers that the paper prints lie in [-2, 2], as without it.
    """
    if len(texts) < 2:
        raise ValueError(f"diversity between texts needs at least 2 of them, not {len(texts)}")
    random = np.random.default_rng(seed)
    pieces = list if released else lambda t: [
        s for s in re.split(r"(?<=[.!?])\s+|\n+", t.strip()) if s]
    values = []
    for a, b in itertools.combinations(map(pieces, texts), 2):
        if released:
            a, b = a[:len(b)], b[:len(a)]
        k = min(sentences, len(a), len(b))
        left = random.choice(len(a), k, replace=False) if k else []
        right = random.choice(len(b), k, replace=False) if k else []
        both = [relation(a[i], b[j]) + relation(b[j], a[i]) for i, j in zip(left, right)]
        values.append(sum(both) / k if k else 0.0)
    mean = float(np.mean(values))
    return 1 - mean / sentences if released else mean


def per_input(outputs, diversity):
    """Diversity among the samples of each input -> (inputs,); `outputs[i]` lists input i's."""
    return np.array([diversity(samples) for samples in outputs], dtype=np.float64)


def across_inputs(outputs, diversity, column=0):
    """Diversity of one output per input, the `column`-th of each -> float (columns replicate)."""
    return diversity([samples[column] for samples in outputs])


def pooled(outputs, diversity):
    """Diversity of all outputs of all inputs together: what "overall" means in the paper's code."""
    return diversity([text for samples in outputs for text in samples])


def rouge(text, reference):
    """
    ROUGE-1, -2 and -L, the F1 of each -> dict, in [0, 1]; lower case, no stemming (Lin 2004).

    The overlap of words, of pairs of words, and the longest common subsequence, with a reference.
    """
    a, b = (re.findall(r"[a-z0-9]+", t.lower()) for t in (text, reference))
    found = {}
    for n in (1, 2):
        left, right = (collections.Counter(zip(*(words[i:] for i in range(n)))) for words in (a, b))
        found[f"rouge{n}"] = f1((left & right).total(), left.total(), right.total())
    row = [0] * (len(b) + 1)  # longest common subsequence of a[:i] and b[:j]
    for word in a:
        above, row = row, [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
    return found | {"rougeL": f1(row[-1], len(a), len(b))}


def f1(overlap, left, right):
    return 2 * overlap / (left + right) if overlap else 0.0


# --------------------------------------------------------------------------------------------
# Win rates, intervals, KL


def win_rate(a, b, judge=None):
    """
    Does a[i] beat b[i]? -> (N,): 1 yes, 0 no, .5 a tie; `interval` of it is the win rate.

    Without a `judge`, a and b are scores. With one they are anything it can read, and
    judge(i, a[i], b[i]) is the value itself, in [0, 1]. ValueError for different lengths, for
    scores that are not numbers and for verdicts out of range.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} outputs cannot be compared with {len(b)}")
    if judge is None:
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        if np.isnan(a).any() or np.isnan(b).any():  # NaN would silently lose every comparison
            raise ValueError(f"score {int(np.argmax(np.isnan(a) | np.isnan(b)))} is not a number")
        return (a > b) + 0.5 * (a == b)
    verdicts = np.array([judge(i, x, y) for i, (x, y) in enumerate(zip(a, b))], dtype=np.float64)
    if not ((verdicts >= 0) & (verdicts <= 1)).all():
        raise ValueError("a judge must answer 1 (first wins), 0 (second wins) or .5 (tie)")
    return verdicts


def interval(values, level=0.95, resamples=2000, seed=0):
    """
    Mean of (N,) values and its bootstrap interval over them -> (mean, low, high, n).

    One value per prompt: prompts are the independent draws, samples of one prompt are not. To
    compare two policies pass the difference per prompt, which removes the prompts' own spread.
    ValueError when there are no values or one is not a finite number.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)  # (N,)
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, of {n} here not all are")
    random = np.random.default_rng(seed)
    # In a loop rather than as one (resamples, N) table, which would not fit for large N.
    means = [values[random.integers(n, size=n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.mean()), float(low), float(high), n


def t_interval(values, level=0.95):
    """
    Mean of (N,) values and its Student t interval -> (mean, low, high, n): for a few seeds, where
    resampling has nothing to resample. With one value the interval is infinite.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, of {n} here not all are")
    half = math.inf
    if n > 1:
        half = t_quantile(0.5 + level / 2, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half), n


def t_quantile(p, freedom):
    "The p-quantile, p > .5, of Student's t, from its integrated density."
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    scale /= math.sqrt(freedom * math.pi)
    angle = np.linspace(0, math.pi / 2, 20_001)[:-1]  # x = tan(angle): no infinite tail
    density = scale * (1 + np.tan(angle) ** 2 / freedom) ** (-(freedom + 1) / 2)
    density *= 1 + np.tan(angle) ** 2
    steps = (density[1:] + density[:-1]) / 2 * np.diff(angle)
    return float(np.tan(np.interp(p - 0.5, np.append(0, np.cumsum(steps)), angle)))


def gap(values, shifted, level=0.95, resamples=2000, seed=0):
    """
    The generalisation gap: mean in distribution - mean under a shift -> (gap, low, high, n).

    (N,), (M,): the two splits have different prompts, so each is resampled by itself.
    """
    a, b = (np.asarray(x, dtype=np.float64).reshape(-1) for x in (values, shifted))
    if not len(a) or not len(b) or not np.isfinite(a).all() or not np.isfinite(b).all():
        raise ValueError(f"a gap needs finite values on both sides, of {len(a)} and {len(b)}")
    random = np.random.default_rng(seed)
    means = [a[random.integers(len(a), size=len(a))].mean()
             - b[random.integers(len(b), size=len(b))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(a.mean() - b.mean()), float(low), float(high), len(a) + len(b)


def across_interval(outputs, diversity, level=0.95, resamples=60, seed=0):
    """
    Diversity across inputs and its interval -> (mean over columns, low, high, inputs).

    Inputs are resampled *without* replacement, half of them at a time: a bootstrap would draw some
    twice, and duplicates lower a diversity. The spread of estimates from half the inputs, around
    their own mean, is that of the whole estimate from one draw of inputs to the next. (It is taken
    from at most 4 columns, for time: a little wide when there are more.)
    """
    columns, n = range(min(map(len, outputs))), len(outputs)
    if n < 4:
        raise ValueError(f"an interval across inputs needs at least 4 of them, not {n}")
    random, normal = np.random.default_rng(seed), statistics.NormalDist().inv_cdf(0.5 + level / 2)

    def estimate(chosen, columns):
        return np.mean([across_inputs(chosen, diversity, column) for column in columns])
    halves = [estimate([outputs[i] for i in random.permutation(n)[:n // 2]], columns[:4])
              for _ in range(resamples)]
    mean, half = estimate(outputs, columns), normal * np.std(halves, ddof=1)
    return float(mean), float(mean - half), float(mean + half), n


def kl_estimates(logp, logp_ref, is_response):
    """
    (B, R) log-probabilities, in nats, of tokens sampled from the first -> k1, k3, each (B,).

    Both estimate KL(policy || reference) of a whole response. With d = logp - logp_ref, k1 = d is
    unbiased and often negative; k3 = exp(-d) - 1 + d is never negative, has the same expectation
    and mostly less variance (Schulman 2020, "Approximating KL divergence"). Padding may hold NaN.
    """
    is_response = np.asarray(is_response, dtype=bool)
    # Masked before the subtraction: NaN times 0 is NaN, and inf - inf would warn.
    new = np.where(is_response, np.asarray(logp, dtype=np.float64), 0)
    ref = np.where(is_response, np.asarray(logp_ref, dtype=np.float64), 0)
    d = new - ref  # (B, R), 0 on padding, where k3 is 0 too
    return d.sum(axis=1), (np.expm1(-d) + d).sum(axis=1)  # expm1: exact also where d is tiny


def kl_full(logp, logp_ref, is_response):
    """
    (B, R, V) log-probabilities over the whole vocabulary -> (B,) KL of each sampled path, in nats.

    The sum over a path's tokens of the exact KL of the next-token distributions. Its mean over
    sampled paths is the KL of the two policies, like that of k1, with less variance.
    """
    is_response = np.asarray(is_response, dtype=bool)
    new, ref = (np.where(is_response[..., None], np.asarray(x, dtype=np.float64), 0)
                for x in (logp, logp_ref))
    return (np.exp(new) * (new - ref)).sum(axis=-1).sum(axis=-1, where=is_response)


# --------------------------------------------------------------------------------------------
# Flags: one per field of a stage's Config


def flag(name):
    return "--" + name.replace("_", "-")


def within(config, low, high, *names):
    """Raise ValueError unless each named field is in [low, high]; inf is no bound. NaN never is,
    and nothing from 2**40 on."""
    for name in names:
        value = getattr(config, name)
        if value is None or low <= value <= high and abs(value) < 2**40:  # None: not given
            continue
        bounds = f"between {low} and {high}"
        if value >= 2**40:  # more than any of them can mean, and than a generator's seed can hold
            bounds = f"below {2**40}"
        elif high == math.inf:
            bounds = f"of at least {low}" if low > -math.inf else "that is a number"
        elif low == -math.inf:
            bounds = f"of at most {high}"
        raise ValueError(f"{flag(name)} {value} is impossible: give a value {bounds}")


def comments(Config):
    """The comment after each field of a dataclass -> dict; it is the field's help text."""
    source = textwrap.dedent(inspect.getsource(Config))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    return {node.target.id: by_line.get(node.end_lineno, "") for node in fields}


def options(kind, default):
    """What argparse needs to know about a field of this type and default -> dict."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):  # int | None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        shown = "|".join(map(str, choices))
        return {"type": type(choices[0]), "choices": choices, "metavar": shown}
    if kind is bool:  # type=bool would turn "--resume False" into True
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind, "metavar": {int: "N", float: "X"}.get(kind, "TEXT")}


class CannotResume(ValueError):
    "There is a checkpoint, but not of a part of this run."


def resumed(config, record):
    """
    The step to go on from. CannotResume unless the checkpoint `record` is of an unfinished run with
    the very flags of `config`: with others, its curve and its name would tell of neither run.
    """
    saved = record["meta"]["config"]
    free = ("resume", "out", "device", "every", "micro", "max_kl")  # they make no other run of it
    for name, value in dataclasses.asdict(config).items():
        if name not in free and name in saved and value != saved[name]:
            raise CannotResume(f"--resume goes on with the flags of the interrupted run, and that "
                               f"had {flag(name)} {saved[name]}, not {value}")
    if record["meta"]["finished"]:
        raise CannotResume(f"this run finished at step {record['meta']['step']}: there is nothing "
                           f"to resume; leave out --resume to train anew")
    return record["meta"]["step"]


def halved(config):
    """
    A stage's config with half as many rows per forward pass: as many in a step, for half the
    memory. ValueError where there is no half.
    """
    if not hasattr(config, "micro"):
        raise ValueError("out of memory: run the stage that ran out by itself, with --auto-batch, "
                         "and this goes on from there")
    whole = -(-config.batch // getattr(config, "minibatches", 1))
    rows = min(config.micro or whole, whole)
    if rows == 1:
        raise ValueError("out of memory, even with --micro 1: try a smaller --batch, or --freeze")
    return dataclasses.replace(config, micro=rows // 2)


def fitted(config, train, auto_batch):
    """
    Train; with `auto_batch`, where memory runs out, once more with half as many rows per forward
    pass, from what the attempt before has saved, if it came to that. ValueError without.
    """
    going_on = False  # from a checkpoint, without having been told to
    while True:
        try:
            return train(config)
        except (CannotResume, FileNotFoundError):
            if not going_on:
                raise
            following, going_on = dataclasses.replace(config, resume=False), False
        except RuntimeError as error:
            if (type(error).__name__ != "OutOfMemoryError"
                    and "can't allocate memory" not in str(error)):
                raise
            following = halved(config)
            if not auto_batch:
                raise ValueError(f"out of memory: try --micro {following.micro} (--auto-batch "
                                 f"tries by itself), and --resume if it had saved") from error
            following, going_on = (dataclasses.replace(following, resume=True),
                                   going_on or not config.resume)
            print(f"out of memory: once more, with --micro {following.micro}")
        config = following
        gc.collect()  # what the attempt held


def cli(Config, train, argv=None):
    """
    Run `train(Config(...))` with one flag per field; batch_size becomes --batch-size.

    A mistake, in the flags or in the data, is one sentence on stderr and exit code 2 (set the
    variable TRACEBACK to see where it was raised). Ctrl-C, which a stage passes on once it has
    saved, exits 130. Help is the docstring of Config's module and the comments of its fields.
    """
    parser = argparse.ArgumentParser(
        description=sys.modules[Config.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --b would be --beta today and --batch tomorrow
    )
    parser.error = lambda message: fail(message.removeprefix("argument ") + " (try --help)")
    hints, notes = typing.get_type_hints(Config), comments(Config)
    for f in dataclasses.fields(Config):
        note = notes[f.name].replace("%", "%%")  # argparse formats help texts
        note += "" if f.default is None else f" (default {f.default})"
        parser.add_argument(flag(f.name), default=f.default, help=note.strip(),
                            **options(hints[f.name], f.default))
    if hasattr(Config, "micro"):
        parser.add_argument("--auto-batch", action="store_true",
                            help="where memory runs out, halve --micro and go on")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag(f.name) for f in dataclasses.fields(Config)]
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, 1)
        fail(f"there is no {unknown[0]}: " + (f"try {close[0]}" if close else "--help lists all"))
    auto_batch = vars(args).pop("auto_batch", False)
    try:
        config = Config(**vars(args))
        return fitted(config, train, auto_batch)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(problem):
    print("error: " + " ".join(str(problem).split()), file=sys.stderr)
    sys.exit(2)


# --------------------------------------------------------------------------------------------
# The run folder, which one process at a time writes into, and its log: what happened, one JSON
# object per step

HELD = weakref.WeakValueDictionary()  # lock files of this process, which may ask for one twice


def lock(folder):
    """
    Keep other processes out of a run folder for as long as the file that this returns is held.

    ValueError if another has it. The system lets go of it when a process ends, however it ends, so
    that the file which stays behind locks nobody out; on a drive without locks there are none.
    """
    path = Path(folder).resolve() / ".lock"
    mine = os.getpid(), path  # a forked copy of this process is another one
    if mine in HELD:
        return HELD[mine]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")
    except OSError as error:
        raise OSError(f"{folder} is no place to write into ({error.strerror}): give another "
                      f"--out") from error
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise ValueError(f"another process is at work in {folder}: wait until it has ended, or "
                             f"give this one another --out or --seed") from None
    HELD[mine] = file
    return file


class Log:
    """
    Appends a row per logged step to <folder>/<stage>.jsonl, and prints it.

    A new log replaces an old one. With `resume_step`, the step of the checkpoint a run goes on
    from, rows up to it are kept and later ones dropped (they will be written again), so that no
    step is lost or doubled. Each row is flushed: a killed run keeps what it has logged. `show`
    names the fields worth a column on the screen; the file has all.
    """

    def __init__(self, folder, stage, resume_step=None, show=None):
        self.path = Path(folder) / f"{stage}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        if resume_step is not None and self.path.exists():
            rows = [row for row in read(self.path) if row["step"] <= resume_step]
        write(self.path, rows)
        self.file = open(self.path, "ab", buffering=0)
        self.header, self.printed, self.show = None, 0, show

    def log(self, step, **fields):
        """Write one row; values are numbers, text or lists of them. ValueError for NaN and inf."""
        row = {"step": step}
        for name, value in fields.items():
            value = value.tolist() if hasattr(value, "tolist") else value  # tensors, numpy
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise ValueError(f"{name} is {value} at step {step}: not a finite number") from None
            row[name] = value
        line = json.dumps(row).encode() + b"\n"
        try:
            if self.file.write(line) < len(line):  # the disk had room for half of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(f"{self.path} could not be written at step {step} ({error.strerror}): "
                          f"make room, then --resume from the last checkpoint") from error
        self.print({k: v for k, v in row.items() if not self.show or k in ("step", *self.show)})

    def print(self, row):
        from tqdm import tqdm  # its `write` keeps a progress bar below the rows

        widths = [max(len(name), 9) for name in row]
        header = "  ".join(name.rjust(w) for name, w in zip(row, widths))
        if header != self.header or self.printed % 20 == 0:
            tqdm.write(header)
            self.header, self.printed = header, 0
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
        tqdm.write("  ".join(cell.rjust(w) for cell, w in zip(cells, widths)))
        self.printed += 1

    def close(self):
        self.file.close()


def read(path):
    """
    The rows of a log -> list of dicts. A last line that a kill cut short is dropped; ValueError
    for any other line that is not JSON.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    whole, rows = lines[:-1], []  # after the last newline: nothing, or half a row
    for number, line in enumerate(whole, 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            raise ValueError(f"{path}, line {number}: not JSON; the log was altered") from None
    return rows


def write(path, rows):
    """Write a list of dicts as JSON lines: all of them, or none."""
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put(path, content):
    """
    Write text or bytes beside `path`, then rename: whoever looks while a run goes on, or after it
    was killed, finds the old file or the new one, whole. Lone surrogates, which no file can hold,
    become "?". OSError names the file that there was no room for.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error.strerror}); an older file of that name "
                      f"is still whole") from error
    finally:
        temporary.unlink(missing_ok=True)


def curve(path_png, rows, panels, x="step"):
    """
    Draw rows of a log over their step (or another field, `x`), as a grid of small plots, to a PNG.

    `panels` is a list of (title, [field, ...], label of the y axis with its unit). Rows without a
    field are skipped: some things are measured less often than others.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state, just a file

    # Okabe & Ito's colours differ for every kind of colour vision, the dashes in print as well.
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    dashes = ("-", "--", "-.", ":")
    columns = min(len(panels), 2)  # two are still readable at half of their size
    figure = Figure(figsize=(3.4 * columns, 2.6 * math.ceil(len(panels) / columns)))
    for k, (title, fields, label) in enumerate(panels, 1):
        axis = figure.add_subplot(math.ceil(len(panels) / columns), columns, k)
        for i, name in enumerate(fields):
            points = [(row[x], row[name]) for row in rows if name in row]
            axis.plot(*np.array(points).reshape(-1, 2).T, dashes[i % 4], lw=1.6, label=name,
                      color=colours[i % 7], marker="o" if len(points) == 1 else None)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(x)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(fields) > 1:
            axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    put(path_png, picture.getvalue())


@contextlib.contextmanager
def at(where):
    "A ValueError inside says where it was, and that nothing came of it."
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}; this step was not taken: try a lower --lr, or go on "
                         f"from the last checkpoint with --resume") from error


def stop_signal():
    """
    A set that is no longer empty once Ctrl-C or SIGTERM has come: a stage looks at it after each
    step, saves, and raises KeyboardInterrupt. A second Ctrl-C does not wait, nor does one after the
    stage, when nobody looks any more.
    """
    asked = set()
    listener = weakref.ref(asked)

    def ask(number, frame):
        heard = listener()
        if heard is None or heard:
            raise KeyboardInterrupt
        heard.add(number)

    for name in ("SIGINT", "SIGTERM"):
        try:
            signal.signal(getattr(signal, name), ask)
        except ValueError:  # not the main thread: a notebook's own handling stays
            pass
    return asked


def side_by_side(path, prompts, answers, gold=None):
    """
    Print and keep several answers to each prompt: `answers` is {who gave it: texts}, and `gold`
    scores (prompt, text), if there is anything to score with.
    """
    lines = []
    for i, prompt in enumerate(prompts):
        lines += ["-" * 88, prompt]
        for name, texts in answers.items():
            score = "" if gold is None else f" [{gold(prompt, texts[i].strip()):5.2f}]"
            lines.append(f"  {name:>9}{score}  {texts[i].strip()}")
    text = "\n".join(lines).encode("utf-8", "replace").decode()  # no console has lone surrogates
    print("\n" + text + "\n" + "-" * 88)
    put(path, text + "\n")


# --------------------------------------------------------------------------------------------
# python metrics.py OUTPUTS.jsonl: the text measures of anybody's outputs


def sentence_encoder(name):
    """A model of sentence-transformers as `embed` for `embedding_diversity`; texts are cached, so
    that each is embedded once however many measures ask."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError("--encoder needs: pip install sentence-transformers") from None
    model, cache = SentenceTransformer(name), {}

    def embed(texts):
        new = list(dict.fromkeys(t for t in texts if t not in cache))
        if new:
            cache.update(zip(new, model.encode(new, show_progress_bar=len(new) > 256)))
        return [cache[t] for t in texts]
    return embed


def nli_relation(name):
    "A classifier of transformers as `relation` for `nli_diversity`: its likeliest label's score."
    try:
        from transformers import pipeline
    except ImportError:
        raise ImportError("--nli needs: pip install transformers") from None
    classify = pipeline("text-classification", model=name, truncation=True)

    @functools.lru_cache(None)
    def relation(premise, hypothesis):
        found = classify({"text": premise, "text_pair": hypothesis})
        found = found[0] if isinstance(found, list) else found
        sign = {"contradiction": 1, "entailment": -1}.get(found["label"].lower(), 0)
        return sign * found["score"]
    return relation


LONGEST = 2**24  # bytes of a line: what was written to fill a memory is not read into it


def json_lines(path):
    "Yields (value, 'file, line n') of each line, plain or .gz; ValueError names what is wrong."
    number, unpacked, size = 0, 0, Path(path).stat().st_size
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), 1):
                at, unpacked = f"{path}, line {number}", unpacked + len(line)
                if len(line) > LONGEST or unpacked > max(LONGEST, 200 * size):
                    raise ValueError(f"{at}: more text than any data has: lines of at most "
                                     f"{LONGEST:,} bytes, packed to no less than a 200th")
                try:
                    if line.strip():
                        yield json.loads(line.decode()), at
                except UnicodeDecodeError:
                    raise ValueError(f"{at}: not UTF-8") from None
                except (ValueError, RecursionError):
                    raise ValueError(f"{at}: not JSON") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, after line {number}: broken gzip ({error})") from None


def read_outputs(path):
    """
    (outputs, references or None) of a file of JSON lines, plain or .gz: {"prompt", "outputs":
    [text, ...], "reference"}. ValueError names the first bad line: no outputs, another number of
    them than the line before, something that is not text.
    """
    outputs, references = [], []
    for row, at in json_lines(path):
        texts = row.get("outputs") if isinstance(row, dict) else None
        if not isinstance(texts, list) or not texts:
            raise ValueError(f'{at}: no "outputs", a list with at least one text')
        if not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{at}: an output is not text")
        if outputs and len(texts) != len(outputs[0]):
            raise ValueError(f"{at}: {len(texts)} outputs where the lines before have "
                             f"{len(outputs[0])}; give every input as many")
        if not isinstance(row.get("reference", ""), str):
            raise ValueError(f"{at}: the reference is not text")
        outputs.append(texts)
        references.append(row.get("reference"))
    if not outputs:
        raise ValueError(f"{path} holds no outputs")
    return outputs, references if all(r is not None for r in references) else None


def measure(outputs, references=None, embed=None, relation=None):
    """
    Every text measure of outputs[input][sample] -> {measure: {"mean", "low", "high", "n"}}; `std`
    beside per-input figures is their spread over inputs. What needs several samples per input,
    several inputs, references, an encoder or a relation is left out without them.
    """
    sets = {"ead": ead, "distinct": distinct}
    pairs = {"ngram_cosine": ngram_cosine}
    if embed:
        pairs["embedding"] = lambda texts: embedding_diversity(texts, embed)
    if relation:
        pairs["nli"] = lambda texts: nli_diversity(texts, relation)
    named = lambda found: dict(zip(("mean", "low", "high", "n"), found))
    lengths = [np.mean([len(t.split()) for t in texts]) for texts in outputs]
    found = {"words": named(interval(lengths))}
    empty = [np.mean([not t.strip() for t in texts]) for texts in outputs]
    found["empty"] = named(interval(empty))
    if len(outputs[0]) > 1:
        for name, diversity in {**sets, **pairs}.items():
            values = per_input(outputs, diversity)
            found[f"per_input_{name}"] = named(interval(values)) | {"std": float(values.std())}
    if len(outputs) > 3:
        for name, diversity in {**sets, **pairs}.items():
            if name == "nli":  # a forward pass for each pair of inputs: no interval
                found[f"across_input_{name}"] = {"mean": across_inputs(outputs, diversity)}
            else:
                found[f"across_input_{name}"] = named(across_interval(outputs, diversity))
    for name, diversity in sets.items():
        found[f"pooled_{name}"] = {"mean": pooled(outputs, diversity)}
    if references:
        scores = [[rouge(t, r) for t in texts] for texts, r in zip(outputs, references)]
        for name in ("rouge1", "rouge2", "rougeL"):
            found[name] = named(interval([np.mean([s[name] for s in row]) for row in scores]))
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: fail(message + " (try --help)")
    parser.add_argument("file", help="JSON lines, plain or .gz")
    parser.add_argument("--encoder", help="sentence-transformers model for embedding diversity, "
                        "such as the paper's bert-large-nli-stsb-mean-tokens")
    parser.add_argument("--nli", help="transformers classifier for NLI diversity, such as the "
                        "paper's roberta-large-mnli")
    parser.add_argument("--out", help="where to write the figures (default: FILE.metrics.json)")
    args = parser.parse_args(argv)
    try:
        outputs, references = read_outputs(args.file)
        found = measure(outputs, references, args.encoder and sentence_encoder(args.encoder),
                        args.nli and nli_relation(args.nli))
        path = Path(args.out or f"{args.file}.metrics.json")
        put(path, json.dumps(found, indent=1))
    except (ValueError, OSError, ImportError) as error:
        fail(error)
    print(f"{len(outputs)} inputs, {len(outputs[0])} outputs each\n\n"
          f"{'':28}{'mean':>9}{'95 % interval':>20}{'std':>9}")
    for name, row in found.items():
        low = f"{row['low']:.4f} to {row['high']:.4f}" if "low" in row else ""
        std = f"{row['std']:9.4f}" if "std" in row else ""
        print(f"{name:28}{row['mean']:9.4f}{low:>20}{std}")
    print(f"\nwrote {path}")


if __name__ == "__main__":
    main()
