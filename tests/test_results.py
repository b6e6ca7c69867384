"""
The results on the pages against what is kept of the study: every table is what tests/results.py
makes of data/results.json, and a sentence beside a table says what is in it. After each test's name
stands the mistake that turns it red.
"""

import json
import re
import runpy
import sys

import numpy as np
import pytest

import data
from data import files, world
from data.claims import BEST
from tests import results
from tests.handout import ROOT
from tests.test_rlhf import small, study  # noqa: F401 (fixtures)

# ---- the pages -----------------------------------------------------------------------------------

KEPT = ROOT / results.KEPT
LEFT_OUT = re.compile(  # what is no number of ours: code, links, papers, sections, versions
    r"^```.*?^```|`[^`\n]*`|\]\([^)]*\)|arXiv:[\d.]+|(?:Sec\.|Eq\.|Python|torch|version) [\d.]+",
    re.M | re.S)
NUMBER = re.compile(r"(?<![\w.+-])([-+]?)(\d*\.\d+)(?!\.?\d|\w)( %)?")
CAPTION = re.compile(r"\*(?!\*)[^*]+\*")  # a line


def numbers(text):
    "Decimal numbers of a text -> (as written, sign, value, unit of its last digit)."
    for sign, digits, percent in NUMBER.findall(text):
        share = 100 if percent else 1
        unit = 10.0 ** -len(digits.partition(".")[2]) / share
        yield sign + digits + percent, sign, float(sign + digits) / share, unit


def behind(section, kept):
    "The numbers that the section's tables show, before they are rounded."
    values, shown = [], results.shown

    def noted(x, *how):
        values.append(x["mean"] if isinstance(x, dict) else x)
        return shown(x, *how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "shown", noted)
        for name, _ in results.MARK.findall(section):
            results.table(name, kept)
    return [x for x in values if x is not None]


def unfounded(text, kept):
    """The decimal numbers in a page's sentences, of sections with a mark, that no table or caption
    of their section has, nor, with more digits, what its tables show."""
    found = []
    for section in re.split("^(?=## )", text, flags=re.M):
        if results.MARK.search(section):
            lines = LEFT_OUT.sub(" ", section).splitlines()
            ground = [x for x in lines if x.startswith("|") or CAPTION.fullmatch(x.strip())]
            values = [value for *_, value, _ in numbers("\n".join(ground))] + behind(section, kept)
            for written, sign, value, unit in numbers("\n".join(
                    x for x in lines if x not in ground)):
                apart = (lambda x: abs(x - value)) if sign else lambda x: abs(abs(x) - value)
                if not any(apart(x) <= unit / 2 + 1e-9 for x in values):
                    found.append(written)
    return found


@pytest.mark.parametrize("page", results.PAGES, ids=str)
def test_tables_are_what_is_kept(page):
    # a number mended by hand, a study that is kept and not written, a mark without its table
    text = (ROOT / page).read_text(encoding="utf-8")
    assert ("<!-- table" in text) == KEPT.exists()
    if "<!-- table" in text:
        assert results.filled(text, results.read(KEPT)) == text
        assert all(rows for _, rows in results.MARK.findall(text))


@pytest.mark.parametrize("page", results.PAGES, ids=str)
def test_sentences_say_what_is_in_their_tables(page):  # a number of an earlier study
    text = (ROOT / page).read_text(encoding="utf-8")
    marks = len(results.MARK.findall(text))
    planted = results.MARK.sub(lambda match: f"It is 98.7654 more.\n\n{match[0]}", text)
    kept = results.read(KEPT) if marks else {}
    assert unfounded(planted, kept) == ["98.7654"] * marks  # these alone, and no section without


def test_the_kept_file_is_small():  # every measure of every policy
    assert not KEPT.exists() or KEPT.stat().st_size < 450_000  # of both tasks


# ---- tables, by hand -----------------------------------------------------------------------------


def row(mean, *seeds, reach=0.01):
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "seeds": [*seeds]}


def task(name, splits, sft, rlhf, claims):
    "What is kept of a task: win rates by split, of two seeds."
    rates = {"sft": sft, "rlhf": rlhf}
    return {"name": name, "splits": splits, "code": [f"`{s}`" for s in splits], "claims": claims,
            "policies": {p: {s: {"win_rate": row(x, x - 0.002, x + 0.002), "kl": row(x / 10)}
                             for s, x in zip(splits, rates[p])} for p in rates}}


SUPPORTED = {"id": "C1a", "verdict": "supported", "claim": "", "statistic": "", "evidence":
             "id +0.241 [+0.200, +0.280] (+0.238, +0.244); far +0.104 [-0.004, +0.210] "
             "(+0.090, +0.118)"}
C4 = {"id": "C4", "verdict": "inconclusive", "evidence":
      "rlhf loses 1.2% per input and -1.6% across; per input less across +0.028 [-0.001, +0.057] "
      "(+0.020, +0.036); bon16-t0.7 less sft-t0.7 + .02 +0.037 [+0.030, +0.044] (+0.037, +0.037)"}
GAINS = {"rlhf": {
    "id": {"win_rate": {"mean": 0.241, "low": 0.2, "high": 0.28, "seeds": [0.238, 0.244]}},
    "far": {"win_rate": {"mean": 0.104, "low": -0.004, "high": 0.21, "seeds": [0.09, 0.118]}}}}
MADE = {"summarise": task("summaries", ["id", "far"], (0.52, 0.4302), (0.761, 0.534),
                          [SUPPORTED, C4]) | {"gains": GAINS},
        "instruct": task("instructions", ["id", "broad", "odd"], (0.4, 0.3, 0.2), (0.5, 0.4, 0.3),
                         [SUPPORTED | {"verdict": "not supported"}]),
        "tables": {"tries": [["", "win rate"], ["beta .1", ".86"]]}}


def test_tables_of_two_tasks():  # a mean for a seed, the other task's splits, a cell that moves
    assert results.in_markdown(results.table("wins", MADE)) == """\
| summaries | `id` | `far` |  |
|---|--:|--:|--:|
| SFT | .52 [.51, .53] | .43 [.42, .44] |  |
| RLHF | .76 [.75, .77] | .53 [.52, .54] |  |
| **instructions** | **`id`** | **`broad`** | **`odd`** |
| SFT | .40 [.39, .41] | .30 [.29, .31] | .20 [.19, .21] |
| RLHF | .50 [.49, .51] | .40 [.39, .41] | .30 [.29, .31] |
"""
    assert results.in_markdown(results.table("policies", MADE)) == """\
| summaries | T | win rate | KL |
|---|--:|--:|--:|
| SFT | 1 | .52 / .43 | .05 / .04 |
| RLHF | 1 | .76 / .53 | .08 / .05 |
| **instructions** | **T** | **win rate** | **KL** |
| SFT | 1 | .40 / .25 | .04 / .03 |
| RLHF | 1 | .50 / .35 | .05 / .04 |
"""


def test_differences():  # one of the means where a paired one is known, an interval of nothing
    assert results.in_markdown(results.table("gains", {"summarise": MADE["summarise"]})) == """\
| summaries | `id` | `far` |
|---|--:|--:|
| RLHF | +.24 [.20, .28] | +.10 [-.00, .21] |
| each seed | +.24 +.24 | +.09 +.12 |
"""
    alone = {"summarise": MADE["summarise"] | {"gains": {}}}
    assert results.in_markdown(results.table("gains", alone)).splitlines()[2:] == [
        "| RLHF | +.24 | +.10 |", "| each seed | +.24 +.24 | +.10 +.10 |"]
    assert results.gain(MADE["summarise"], "rlhf", than="rlhf")[0]["mean"] == 0  # not as of SFT


def test_claims():  # a verdict of the other task, a margin read as a number, percents
    assert results.in_markdown(results.table("verdicts", MADE)) == """\
|  | claim | summaries | instructions | found on summaries |
|---|---|---|---|---|
| C1a | RLHF beats SFT, shifted or not | supported | not supported | +.10 to +.24 |
| C4 | across inputs it falls less; of best of n by under .02 | inconclusive |  | \
RLHF loses 1.2 % per input and -1.6 % across |
"""
    assert results.table("claims", MADE)[1:3] == [
        ["C1a", "RLHF beats SFT, shifted or not", "supported",
         "id +.24 [.20, .28] (+.24 +.24); far +.10 [-.00, .21] (+.09 +.12)"],
        ["C4", "across inputs it falls less; of best of n by under .02", "inconclusive",
         "RLHF loses 1.2 % per input and -1.6 % across; per input less across +.028 [-.001, .057] "
         f"(+.020 +.036); {results.NAMES[BEST]} at T .7 less SFT at T .7 plus .02: "
         "+.037 [.030, .044] (+.037 +.037)"]]


@pytest.mark.parametrize("x, digits, sign, text", [
    (0.756, 2, "", ".76"), (10.5, 2, "", "10.50"), (-0.004, 2, "", ".00"), (0.304, 2, "+", "+.30"),
    (-0.004, 2, "+", "-.00"), (-0.0226, 3, "", "-.023"), (None, 2, "", ""),
    (float("nan"), 2, "", ""), (row(0.5), 2, "", ".50"), (2.0, 1, "", "2.0")])
def test_shown(x, digits, sign, text):  # 1.5 for 10.5, a zero below zero
    assert results.shown(x, digits, sign) == text


# ---- pages, by hand ------------------------------------------------------------------------------

PAGE = """# A page of 7.31 things

## Who wins?

RLHF wins .76 for .52, or .761, and .8 by one digit; +.24 [.20, .28] more, which is 24.1 % of all.
As arXiv:2310.06452 (Sec. 3.4, `--beta 0.05`) and k1-0.03 say, since T .6.

![A figure](figure.png)

*The second panel is at T .6.*

<!-- table gains -->
| an old | table |
of 3 lines

<!-- table wins -->

Text below.

## A section without a mark

It is 5.55.

## Tries

<!-- table tries -->

By hand: .86.
"""


def test_a_page_is_filled():  # the text below a table is lost, a second time changes something
    once = results.filled(PAGE, MADE)
    assert once == results.filled(once, MADE)
    for name in ("gains", "wins", "tries"):
        rows = results.in_markdown(results.table(name, MADE))
        assert f"<!-- table {name} -->\n{rows}\n" in once
    plain = lambda text: [x for x in text.splitlines() if x[:1] not in ("|", "<")]
    assert plain(once) == [x for x in plain(PAGE) if x != "of 3 lines"]


def test_sentences_are_held_to_their_tables():
    # a sign, another section's table, a digit more than is known, a share taken for a number
    once = results.filled(PAGE, MADE)
    assert unfounded(once, MADE) == []
    for said, instead, found in (
            ("wins .76 for", "wins .79 for", [".79"]), (".761", ".766", [".766"]),
            ("digit; +", "digit; -", ["-.24"]), ("24.1 %", "24.9 %", ["24.9 %"]),
            ("24.1 %", "24.1", ["24.1"]), ("hand: .86", "hand: .76", [".76"]),
            ("Text below.", "Of 1.234 more.", ["1.234"]), ("by one", "(.9) by one", [".9"]),
            ("It is 5.55", "It is 6.66", []), ("Sec. 3.4", "(3.4)", ["3.4"])):
        assert said in once
        assert unfounded(once.replace(said, instead), MADE) == found, instead
    assert unfounded(once.replace("panel is at T .6", "panel is"), MADE) == [".6"]


@pytest.mark.parametrize("mark, said", [
    ("<!-- table winns -->", "there is no table winns: try verdicts, claims, "),
    ("Here: <!-- table wins -->", "a mark is a line by itself"),
    ("<!--table wins-->", "a mark is a line by itself")])
def test_marks_that_are_none(mark, said):  # a table that is never written again
    with pytest.raises(ValueError, match=said):
        results.filled(f"# Page\n\n{mark}\n\nText.\n", MADE)


# ---- what is kept --------------------------------------------------------------------------------


def report_in(folder, **changes):
    "A report of one number in each place where tests/results.py looks for some."
    x = {"mean": 1 / 3, "low": -1e-5 / 3, "high": 2 / 3, "n": 500, "seeds": [0.25, 123456.7]}
    by_split = {s: {"win_rate": x, "kl": x, "utility": x, "words": x} for s in ("id", "far")}
    report = {k: [] for k in results.WHOLE} | {
        "settings": dict(seeds=2, inputs=500, samples=16, arms="", out=str(folder), data="a",
                         final=False),
        "policies": {"sft": {"splits": by_split}}, "sweep": {"k1-1": by_split},
        "slopes": {"rlhf": x}, "claims": [{"id": "C2", "evidence": "+0.333 [+0.0, +0.7] (+0.2)"}],
        "ppo": [[{"step": 1, "kl": 2 / 3, "proxy": 9.0}]]} | changes
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))


def test_what_is_kept(tmp_path):
    # a path, a measure of no table, another task's numbers gone, digits that say nothing
    kept = tmp_path / "results.json"
    report_in(tmp_path / "summarise")
    (tmp_path / "summarise" / "ppo.jsonl").write_text('{"seconds": 30}\n{"seconds": 90}\n')
    tradeoff = {"rows": [{"seed": 0, "ead": [[0.12344, 0, 1]]}], "drawn": [
        [["best of n", "n 2", {"ead": 0.5}]], [["best of n", "n 2", {"ead": 0.7}]]]}
    (tmp_path / "summarise" / "tradeoff.json").write_text(json.dumps(tradeoff))
    results.keep(tmp_path, kept)
    text = kept.read_text()
    assert '"win_rate": "0.3333 [-3.333e-06, 0.6667] (0.25, 1.235e+05)"' in text
    assert str(tmp_path) not in text and "words" not in text and "proxy" not in text
    found = results.read(kept)["summarise"]
    rounded = {"mean": 0.3333, "low": -3.333e-06, "high": 0.6667, "seeds": [0.25, 123500.0]}
    assert found["policies"]["sft"] == {
        "id": dict.fromkeys(("win_rate", "kl", "utility"), rounded),
        "far": dict.fromkeys(("win_rate", "kl"), rounded)}
    assert results.said(found, "C2") == {"": rounded} and found["minutes"]["ppo"] == [1.5]
    assert found["ppo"] == [[{"step": 1, "kl": 0.6667}]] and found["name"] == "summaries"
    assert found["tradeoff"] == {"rows": [{"seed": 0, "ead": [[0.1234, 0, 1]]}],
                                 "drawn": [[["best of n", "n 2", {"ead": 0.6}]], []]}

    by_hand = json.loads(text) | {"tables": {"tries": [["", "a"], ["b", ".1 [.0, .2]"]]}}
    kept.write_text(json.dumps(by_hand))
    (tmp_path / "summarise" / "tradeoff.json").unlink()
    report_in(tmp_path / "summarise", beta=0.5)
    (tmp_path / "summarise").rename(tmp_path / "instruct")
    for again in (1, 2):  # the first task is not there, and then what it had but a drawing
        results.keep(tmp_path, kept)
        there = json.loads(kept.read_text())
        assert '[ "b", ".1 [.0, .2]" ]' in kept.read_text()  # a line for each row
        assert there["tables"] == by_hand["tables"] and there["instruct"]["beta"] == 0.5
        assert ("tradeoff" in there["summarise"]) and "tradeoff" not in there["instruct"]
        assert (there["summarise"] == by_hand["summarise"]) == (again == 1)
        report_in(tmp_path / "summarise", beta=0.25)


def test_gains_on_the_frontier():  # an empty cell of what it has no answer to, bold of what is not
    part = [[0.1, 0.05, 0.2], [0.1, -0.05, 0.2]]
    row = {"seed": 1, "family": "sets", "label": "p", "ead": [[float("nan"), 0.1, 0.2], part[0]],
           "embedding": part}
    _, cells = results.TABLES["tradeoff"]({"tradeoff": {"rows": [row]}})
    assert cells == ["sets, p", "1", "none so diverse", "**+.10** [.05, .20]",
                     "**+.10** [.05, .20]", "+.10 [-.05, .20]"]
    row["kinds"] = row["ead"][::-1]
    _, cells = results.TABLES["min_p"]({"tradeoff": {"min_p": [row]}})
    assert cells[2:] == ["none so diverse", "**+.10** [.05, .20]", "none wins so much"]


@pytest.mark.parametrize("task", data.WORLD)
def test_parts_of_the_gold_score(task, tmp_path):  # a part left out, one seed's, of five answers
    rows, scores = data.load(task, "id", 4), []
    more = ["Thanks for reading.", "Is it?", "Hope this helps!"]
    for seed, each in (("", rows[:2]), ("seed-1/", rows[2:])):
        path = tmp_path / seed / "samples" / "final-id.sft.jsonl"
        path.parent.mkdir(parents=True)
        files.write_rows(path, [
            {"prompt": e.prompt, "outputs": [e.response, *more, "x"]} for e in each])
        scores += [world.parts(e.prompt, text) for e in each for text in (e.response, *more)]
    found = results.of_parts(tmp_path, ["id"], "final-")["sft"]["id"]
    assert set(found) == {"content", "slips", "habits"}
    assert sum(found.values()) == pytest.approx(np.mean(
        [sum(x.values()) - x["length"] for x in scores]))
    slips = np.mean([x["wrong"] + x["language"] for x in scores])
    assert slips < 0 and found["slips"] == pytest.approx(slips)
    assert results.of_parts(tmp_path, ["id"], "")["sft"] == {"id": {}}  # of other prompts


@pytest.mark.parametrize("argv, said", [
    (["nowhere"], "error: nowhere has no summarise/report.json and no instruct/report.json: give "),
    (["a", "b"], "error: ")])
def test_one_sentence(argv, said, monkeypatch, capsys, tmp_path):  # a traceback, an empty file kept
    monkeypatch.setattr(sys, "argv", ["results", *argv])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(results.__file__, run_name="__main__")
    err = capsys.readouterr().err
    assert err.startswith(said) and err.count("\n") == 1


def test_nothing_is_kept(tmp_path):  # a page written of nothing
    with pytest.raises(ValueError, match="does not exist: python -m tests.results OUT"):
        results.read(tmp_path / "results.json")


@pytest.mark.slow
def test_a_real_study(study, tmp_path):  # noqa: F811
    # a measure of the study that was renamed; what a quick study lacks
    kept = tmp_path / "results.json"
    results.keep(study[1].parent.parent, kept)
    found = results.read(kept)
    empty = {name for name in results.TABLES if not results.table(name, found)}
    assert empty == {"same_kl", "betas", "lrs", "controls", "sizes", "min_p", "annotators",
                     *results.BESIDE}
    left_out = results.draw(found, tmp_path)
    assert left_out == ["compared", "betas", "sizes", "tradeoff", "narrowing"]
    for name in results.FIGURES.keys() - {*left_out}:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000


def test_all_of_what_is_kept():  # a row longer than its header, a table without numbers
    for name in [*results.TABLES, "verdicts"] if KEPT.exists() else []:
        header, *rows = results.table(name, results.read(KEPT))
        assert rows and {len(row) for row in rows} == {len(header)}, name
