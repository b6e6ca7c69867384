"""Numbers against hand-worked cases, definitions and brute force; then flags and logs."""

import itertools
import json
import math
import random
import signal
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

import metrics

# ---- diversity


@pytest.mark.parametrize("texts, value", [
    # From the paper's own code, run on these strings. Full stops and newlines vanish, a tab or a
    # no-break space does not separate, and an n longer than the text counts 0.
    ([], 0.0),
    (["... \n . ", "   ", "\n\n"], 0.0),
    (["hello"], 0.1999999999995437),
    (["one two three four"], 0.80001193880512),
    (["a b c d e f g h i j"], 1.0000696441822035),
    (["e.g. this is v1.2.3 of U.S.A. policy", "eg this is v123 of USA policy"], 0.500044771646806),
    (["tab\tseparated\twords here now and then",
      "non\xa0breaking\xa0space words here now and then"], 0.7635053534465972),
    (["I told my boss that I quit and now I do not know what to do next."] * 16,
     0.06043689586021317),
])
def test_ead_matches_the_paper(texts, value):
    assert metrics.ead(texts) == pytest.approx(value, abs=1e-9)


def test_ead_by_hand_on_two_words():
    # "a b a": 2 distinct of 3 unigrams; V = 2 expects 2 (1 - 1/8) = 1.75. Two bigrams, both
    # distinct: 2 / 1.5; one trigram: 1 / 1. Nothing longer.
    assert metrics.ead(["a b a"], 2) == pytest.approx((2 / 1.75 + 2 / 1.5 + 1) / 5)


def test_distinct_by_hand():
    assert metrics.distinct(["a b a", "a b"], 2) == pytest.approx((2 / 5 + 2 / 3) / 2)
    assert metrics.distinct(["a", "b"], 2) == pytest.approx((1 + 0) / 2)  # no n-gram crosses
    assert metrics.distinct([]) == 0


def test_embedding_diversity_equals_the_pairwise_definition():
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    calls = []
    value = metrics.embedding_diversity(list("abcdefg"), lambda t: calls.append(t) or vectors)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b)
               for a, b in itertools.combinations(vectors, 2)]
    assert value == pytest.approx(1 - np.mean(cosines), abs=1e-12)
    assert calls == [list("abcdefg")]


def test_embedding_diversity_by_hand():
    diversity = lambda *v: metrics.embedding_diversity(["t"] * len(v), lambda _: v)
    assert diversity([1, 0], [5, 0]) == pytest.approx(0)
    assert diversity([1, 0], [-2, 0]) == pytest.approx(2)
    assert diversity([1, 0], [0, 3], [1, 0]) == pytest.approx(1 - 1 / 3)
    assert diversity([0, 0], [1, 0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 2"):
        diversity([1, 0])


def test_nli_diversity_runs_from_minus_two_to_two():
    assert metrics.nli_diversity(["I quit."] * 4, lambda a, b: -1.0 if a == b else 1.0) == -2
    assert metrics.nli_diversity(["Yes.", "No.", "Maybe."], lambda a, b: float(a != b)) == 2
    # One direction only: entailment from "A." to the others. Pairs AB, AC: -1; BC: 0.
    one_way = lambda a, b: -1.0 if a == "A." else 0.0
    assert metrics.nli_diversity(["A.", "B.", "C."], one_way) == pytest.approx(-2 / 3)


def test_nli_diversity_samples_sentences():
    seen = []
    relation = lambda a, b: seen.append((a, b)) or 0.0
    long = " ".join(f"This is number {i}." for i in range(9))
    metrics.nli_diversity([long, long.upper()], relation)
    assert len(seen) == 10 and len(set(seen)) == 10  # 5 sentences, both directions
    assert all(s.lower() in [f"this is number {i}." for i in range(9)] for p in seen for s in p)
    assert sum(a.isupper() for a, _ in seen) == 5
    first = seen[:]
    seen.clear()
    metrics.nli_diversity([long, long.upper()], relation)
    assert seen == first
    seen.clear()
    metrics.nli_diversity([long, long.upper()], relation, sentences=2, seed=1)
    assert len(seen) == 4
    assert metrics.nli_diversity(["", "No.", "No."], lambda a, b: -1.0) == pytest.approx(-2 / 3)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.nli_diversity(["one"], relation)


def test_per_input_and_across_inputs_slice_differently():
    outputs = [["a b", "a b"], ["a b", "c d"], ["e f", "g h"]]
    size = lambda texts: float(len(set(texts)))
    assert metrics.per_input(outputs, size).tolist() == [1, 2, 2]
    assert metrics.across_inputs(outputs, size) == 2
    assert metrics.across_inputs(outputs, size, column=1) == 3


# ---- win rates, intervals, KL


def test_win_rate_halves_ties():
    assert metrics.win_rate([1, 2, 3], [2, 2, 2]).tolist() == [0, 0.5, 1]
    longer = lambda i, a, b: 0.5 if len(a) == len(b) else float(len(a) > len(b))
    assert metrics.win_rate(["aa", "b", "c"], ["a", "b", "cc"], longer).tolist() == [1, 0.5, 0]
    assert metrics.win_rate("xyz", "xyz", lambda i, a, b: i / 2).tolist() == [0, 0.5, 1]
    a, b = np.random.default_rng(0).integers(0, 5, (2, 50))
    assert (metrics.win_rate(a, b) + metrics.win_rate(b, a) == 1).all()


def test_win_rate_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="2 outputs"):
        metrics.win_rate([1, 2], [1])
    with pytest.raises(ValueError, match="score 1 is not a number"):
        metrics.win_rate([1, 2], [1, math.nan])
    for verdict in (2, -1, math.nan):
        with pytest.raises(ValueError, match="a judge must answer"):
            metrics.win_rate(["a"], ["b"], lambda i, a, b, v=verdict: v)


def test_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        values = (rng.random(100) < 0.3).astype(float)
        mean, low, high, n = metrics.interval(values, resamples=300, seed=i)
        assert n == 100 and mean == values.mean() and low <= mean <= high
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_interval_matches_the_normal_one_and_repeats():
    values = np.random.default_rng(1).normal(size=400)
    mean, low, high, _ = metrics.interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)
    assert metrics.interval(values) == (mean, low, high, 400)
    narrow = metrics.interval(values, level=0.5)
    assert low < narrow[1] < narrow[2] < high
    assert metrics.interval([0.25]) == (0.25, 0.25, 0.25, 1)
    for bad in ([], [1, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite values"):
            metrics.interval(bad)


def test_kl_estimators_match_exact_kl_on_five_tokens():
    # Responses of one token: weight each of the five by its probability under the policy.
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    q = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    k1, k3 = metrics.kl_estimates(np.log(p)[:, None], np.log(q)[:, None], np.ones((5, 1)))
    exact = (p * np.log(p / q)).sum()
    assert (p * k1).sum() == pytest.approx(exact) and (p * k3).sum() == pytest.approx(exact)
    assert (k1 < 0).any() and (k3 >= 0).all()


def test_kl_estimates_ignore_padding_and_keep_tiny_differences():
    logp = np.array([[-1.0, -2.0, np.nan], [-1.0, np.inf, -np.inf]])
    tiny = 2.0**-17
    ref = np.array([[-1.5, -1.0, 3.0], [-1.0 - tiny, np.inf, np.nan]])
    with np.errstate(all="raise"):
        k1, k3 = metrics.kl_estimates(logp, ref, [[True, True, False], [True, False, False]])
    assert k1 == pytest.approx([-0.5, tiny], rel=1e-9)
    assert k3[0] == pytest.approx(math.exp(-0.5) - 0.5 + math.e - 2)
    assert k3[1] == pytest.approx(tiny**2 / 2 - tiny**3 / 6, rel=1e-8, abs=0)


# ---- flags


@dataclass
class Config:
    data: str = "summarise"  # summarise, instruct or a path
    batch_size: int = 8  # rows per step; 100% of them are used
    lr: float = 1e-3  # step size # of Adam
    resume: bool = False  # go on from the checkpoint
    kl: Literal["k1", "k2"] = "k1"  # which estimator

    steps: int | None = None  # stop early
    level: Literal[1, 2] = 1

    def __post_init__(self):
        metrics.within(self, 1, math.inf, "batch_size", "steps")
        metrics.within(self, 0, 1, "lr")


def test_flags_become_a_config():
    got = metrics.cli(Config, lambda config: config, [])
    assert got == Config()
    argv = "--data x.jsonl --batch-size 2 --lr 1e-2 --resume --kl k2 --steps 9 --level 2".split()
    expected = Config("x.jsonl", 2, 0.01, True, "k2", 9, 2)
    assert metrics.cli(Config, lambda config: config, argv) == expected
    assert metrics.cli(Config, lambda config: config, ["--no-resume"]).resume is False


@pytest.mark.parametrize("argv, words", [
    ("--batch-sizes 3", "there is no --batch-sizes: try --batch-size"),
    ("--batch 3", "there is no --batch: try --batch-size"),  # no abbreviations
    ("--batch_size=3", "there is no --batch_size=3: try --batch-size"),
    ("--zzz", "there is no --zzz: --help lists all"),
    ("extra", "there is no extra: "),
    ("--batch-size 0", "--batch-size 0 is impossible: give a value of at least 1"),
    ("--lr nan", "--lr nan is impossible: give a value between 0 and 1"),
    ("--lr 2", "--lr 2.0 is impossible: give a value between 0 and 1"),
    ("--batch-size x", "--batch-size: invalid int value: 'x'"),
    ("--steps", "--steps: expected one argument"),
    ("--kl k3", "--kl: invalid choice: 'k3'"),
])
def test_impossible_flags_are_one_sentence(argv, words, capsys):
    with pytest.raises(SystemExit) as stop:
        metrics.cli(Config, lambda config: pytest.fail("trained"), argv.split())
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.startswith("error: " + words) and captured.err.count("\n") == 1


def test_help_is_the_comments_and_the_module(capsys):
    with pytest.raises(SystemExit) as stop:
        metrics.cli(Config, print, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and __doc__ in shown
    assert "--batch-size N rows per step; 100% of them are used (default 8)" in shown
    assert "--lr X step size # of Adam (default 0.001)" in shown
    assert "--kl k1|k2 which estimator (default k1)" in shown
    assert "--steps N stop early" in shown and "None" not in shown


def test_mistakes_in_training_are_one_sentence(capsys, monkeypatch):
    def train(config):
        raise {"v": ValueError, "o": OSError, "k": KeyboardInterrupt, "r": RuntimeError}[
            config.data
        ]("row 3\nis bad")

    monkeypatch.delenv("TRACEBACK", raising=False)
    for kind, code, err in (("v", 2, "error: row 3 is bad\n"), ("o", 2, "error: row 3 is bad\n"),
                            ("k", 130, "")):
        with pytest.raises(SystemExit) as stop:
            metrics.cli(Config, train, ["--data", kind])
        assert stop.value.code == code and capsys.readouterr().err == err
    with pytest.raises(RuntimeError):  # a bug of ours keeps its traceback
        metrics.cli(Config, train, ["--data", "r"])
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError):
        metrics.cli(Config, train, ["--data", "v"])


def test_within_knows_open_bounds():
    config = Config()
    metrics.within(config, -math.inf, math.inf, "lr", "batch_size", "steps")
    with pytest.raises(ValueError, match="at most 3$"):
        metrics.within(config, -math.inf, 3, "lr", "batch_size")
    config.lr = math.nan
    with pytest.raises(ValueError, match="that is a number"):
        metrics.within(config, -math.inf, math.inf, "lr")


# ---- the log


def test_log_rows_come_back_as_they_went_in(tmp_path):
    log = metrics.Log(tmp_path / "new", "sft")
    log.log(0, loss=0.1 + 0.2, note="warm", shares=[0.5, 0.25])
    log.log(1, loss=np.float32(0.5), tokens=np.int64(3))
    rows = metrics.read(tmp_path / "new" / "sft.jsonl")  # not closed: each row is flushed
    assert rows == [{"step": 0, "loss": 0.1 + 0.2, "note": "warm", "shares": [0.5, 0.25]},
                    {"step": 1, "loss": 0.5, "tokens": 3}]
    log.close()
    metrics.Log(tmp_path / "new", "sft").close()
    assert metrics.read(tmp_path / "new" / "sft.jsonl") == []  # a new run, a new log


def test_resumed_log_neither_loses_nor_doubles_a_step(tmp_path):
    log = metrics.Log(tmp_path, "ppo")
    for step in range(6):
        log.log(step, loss=float(step))
    log.close()
    with open(tmp_path / "ppo.jsonl", "a") as f:
        f.write('{"step": 6, "lo')  # killed while writing
    assert len(metrics.read(tmp_path / "ppo.jsonl")) == 6
    log = metrics.Log(tmp_path, "ppo", resume_step=3)
    for step in range(4, 7):
        log.log(step, loss=-1.0)
    log.close()
    rows = metrics.read(tmp_path / "ppo.jsonl")
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["loss"] for row in rows] == [0, 1, 2, 3, -1, -1, -1]
    assert [path.name for path in tmp_path.iterdir()] == ["ppo.jsonl"]
    metrics.Log(tmp_path, "reward", resume_step=3).close()  # nothing logged yet: starts empty


def test_altered_logs_are_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        metrics.read(tmp_path / "x.jsonl")


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), [1.0, math.nan]])
def test_log_refuses_nan(tmp_path, value):
    log = metrics.Log(tmp_path, "sft")
    with pytest.raises(ValueError, match="loss is .* at step 7"):
        log.log(7, kl=1.0, loss=value)
    log.close()
    assert (tmp_path / "sft.jsonl").read_text() == ""


def test_console_repeats_its_header(tmp_path, capsys):
    log = metrics.Log(tmp_path, "sft")
    for step in range(41):
        log.log(step, loss=1 / 3)
    log.log(41, accuracy_on_validation=0.5)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    headers = [i for i, line in enumerate(lines) if "step" in line]
    assert headers == [0, 21, 42, 44]
    assert lines[1].split() == ["0", "0.3333"]
    assert len(set(map(len, lines[:44]))) == 1  # aligned


def test_console_shows_the_chosen_fields(tmp_path, capsys):
    log = metrics.Log(tmp_path, "ppo", show=("kl",))
    log.log(3, kl=0.5, detail=1.0)
    log.close()
    assert capsys.readouterr().out.split() == ["step", "kl", "3", "0.5"]
    assert metrics.read(tmp_path / "ppo.jsonl") == [{"step": 3, "kl": 0.5, "detail": 1.0}]


def test_written_rows_read_back(tmp_path):
    metrics.write(tmp_path / "x.jsonl", [{"text": "naïve\u2028\n"}, {"n": 1}])
    assert metrics.read(tmp_path / "x.jsonl") == [{"text": "naïve\u2028\n"}, {"n": 1}]
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_stop_signal_waits_once():
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        asked = metrics.stop_signal()
        assert not asked
        signal.raise_signal(signal.SIGTERM)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_policies_side_by_side(tmp_path, capsys):
    answers = {"sft": [" one", " two"], "rlhf": [" three", " four"]}
    gold = lambda prompt, text: float(len(prompt + text))
    metrics.side_by_side(tmp_path / "samples.txt", ["p1", "p2"], answers, gold)
    kept = (tmp_path / "samples.txt").read_text()
    assert kept.strip() in capsys.readouterr().out
    lines = [line.split() for line in kept.splitlines()]
    assert ["sft", "[", "5.00]", "one"] in lines and ["rlhf", "[", "6.00]", "four"] in lines


def test_curve_draws_what_there_is(tmp_path):
    path = tmp_path / "ppo.png"
    rng = random.Random(0)
    rows = [{"step": s, "reward": rng.random(), "kl": 0.1 * s} for s in range(9)]
    rows.append({"step": 9, "gold": 1.0})
    panels = [("Reward", ["reward", "gold"], "score (std)"), ("KL", ["kl"], "nats"),
              ("Never logged", ["nothing"], "share")]
    metrics.curve(path, rows, panels)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) > 10_000
    width, height = (int.from_bytes(content[i : i + 4], "big") for i in (16, 20))
    assert width > height > 600
    assert [p.name for p in tmp_path.iterdir()] == ["ppo.png"]
    metrics.curve(path, rows[:1], panels)
    assert path.read_bytes() != content
    assert json.loads(json.dumps(rows)) == rows  # drawing changes nothing
