"""
Public datasets, from small files in the hub's own layout, columns and quirks. After each test's
name stands the mistake that turns it red. Nothing is fetched: `datasets` reads copies.
"""

import csv
import gzip
import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import data
from data import __main__ as look
from data import records, world

datasets = pytest.importorskip("datasets")

SUBREDDITS = (*records.SUBREDDITS, "pets")
ALPACA = ("Below is an instruction that describes a task. Write a response that appropriately "
          "completes the request.\n\n### Instruction:\nName a dish.\n\n### Response:")
ALPACA_INPUT = ("Below is an instruction that describes a task, paired with an input that provides "
                "further context. Write a response that appropriately completes the request.\n\n"
                "### Instruction:\nTranslate.\n\n### Input:\nun plat\n\n### Response:")


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def array(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=4), encoding="utf-8")


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))


def post(split, i):
    "A post of 243 to 249 words, as split at blanks; every second one is sad."
    words = f"{split} {i} {('sad', 'happy')[i % 2]}   {{curly}}\n\nso".split(" ")
    return " ".join([*words, *["word"] * (243 + i % 7 - len(words))])


def reddit(split, n):
    return [{"id": f"{split}{i}", "subreddit": SUBREDDITS[i % 6], "title": f"T {i}",
             "post": post(split, i), "summary": f"sum {split} {i}"} for i in range(n)]


def judged(split, n):
    rows = [{"info": {"id": r["id"], "post": r["post"], "title": r["title"], "article": None,
                      "subreddit": r["subreddit"]},
             "summaries": [{"text": f" first {i}", "policy": "sup4"},
                           {"text": f" second {i}", "policy": "ref"}],
             "choice": i % 2, "worker": "w", "batch": "batch3", "split": split}
            for i, r in enumerate(reddit(split, n))]
    rows[3]["summaries"][1]["text"] = rows[3]["summaries"][0]["text"] + " "  # prefers nothing
    return rows


def of_article(i, batch):
    info = {"id": str(i), "article": f"News {i}.", "title": "A title", "site": "cnn"}
    info |= dict.fromkeys(("post", "subreddit"), None if "cnndm" in batch else "a post")
    return {"info": info, "summaries": [{"text": f"a{i}", "policy": "x"},
                                        {"text": f"b{i}", "policy": "y"}],
            "choice": i % 2, "worker": "w", "batch": batch, "split": "valid1"}


def farm(split, n):
    rows = [{"instruction": f"{split} instruction {i}", "input": "" if i % 3 else f"input {i}",
             "output": f"output {i}"} for i in range(n)]
    rows[0] = {"instruction": "Name a dish.", "input": "", "output": "Paella"}
    rows[1] = {"instruction": "Translate.", "input": "un plat", "output": "a dish"}
    return rows if split == "sft" else rows[2:]


def preferred(n):
    return [{"instruction": f"choose {i}", "input": "", "output_1": f"one {i}",
             "output_2": f"two {i}", "preference": 1 + i % 2 if i != 5 else 0, "raw_preference": 3}
            for i in range(n)]


def talk(i, answer, first="Hello."):
    return f"\n\nHuman: Hi {i}\n\nAssistant: {first}\n\nHuman: Why?\n\nAssistant: {answer}"


def dialogues(kind, n):
    rows = [{"chosen": talk(f"{kind} {i}", "Because."), "rejected": talk(f"{kind} {i}", "No.")}
            for i in range(n)]
    rows[2]["rejected"] = talk(f"{kind} 2", "No.", first="Go away.")  # as some of the hub's do
    return rows


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    "A folder of the sets as the hub has them, and `datasets` with a cache of its own."
    root = tmp_path_factory.mktemp("copies")
    datasets.disable_progress_bars()
    cache, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, root / "cache"
    for split, n, file, other in (("train", 240, "train", "train"), ("test", 60, "test", "test"),
                                  ("validation", 40, "valid", "validation")):
        lines(root / f"openai-tldr-filtered/{file}.jsonl", reddit(split, n))
        lines(root / f"openai-tldr-summarisation-preferences/data/{other}-00000-of-00001.json",
              judged(split, n))
    parquet(root / "cnn_dailymail/3.0.0/test-00000-of-00001.parquet",
            [{"article": f"News {i}.\nMore.", "highlights": f"H{i} .\nI .", "id": str(i)}
             for i in range(5)])
    parquet(root / "summarize_from_feedback/comparisons/validation/0000.parquet",
            [of_article(i, ("cnndm0", "batch3", "cnndm2")[i % 3]) for i in range(9)])
    for split, n in (("sft", 12), ("val", 8), ("unlabeled", 9)):
        parquet(root / f"alpaca_farm/alpaca_instructions/{split}/0000.parquet", farm(split, n))
    array(root / "alpaca_farm/alpaca_human_preference.json", preferred(200))
    array(root / "alpaca_farm/alpaca_noisy_multi_preference.json", preferred(100)[::-1])
    parquet(root / "alpaca-farm-id-test/data/train-00000-of-00001-0a.parquet",
            [{"instruction": "id", "dataset": "x", "output": "o"}])
    parquet(root / "sequential-instructions/data/train-00000-of-00001-0b.parquet",
            [{"dataset": "x", "instruction": "First a, then b.", "output": "o", "generator": "g"}])
    array(root / "alpaca_eval/alpaca_eval.json", [
        {"instruction": "ae", "output": "o", "generator": "text_davinci_003", "dataset": "koala"}])
    for kind in ("helpful-base", "harmless-base"):
        lines(root / f"hh-rlhf/{kind}/train.jsonl.gz", dialogues(f"{kind} train", 100))
        lines(root / f"hh-rlhf/{kind}/test.jsonl.gz", dialogues(f"{kind} test", 10))
    lines(root / "hh-rlhf/red-team-attempts/train.jsonl.gz", [{"transcript": "not this"}])
    for path in [p for p in root.rglob("*.*") if p.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")  # macOS's, on other disks
    yield root
    datasets.config.HF_DATASETS_CACHE = cache


def at(copies, name):
    return f"{name}={copies}"


# ---- templates and columns


@pytest.mark.parametrize("name, split, prompt, response", [
    ("tldr", "test", f"SUBREDDIT: r/relationships\nTITLE: T 0\nPOST: {post('test', 0)}\nTL;DR:",
     "sum test 0"),
    ("tldr", "cnn", "ARTICLE: News 0.\nMore.\nTL;DR:", "H0 .\nI ."),
    ("alpaca", "train", ALPACA, "Paella"),
    ("alpaca", "alpaca_eval", ALPACA.replace("Name a dish.", "ae"), "o"),
    ("alpaca-sim", "sequential", ALPACA.replace("Name a dish.", "First a, then b."), "o"),
    ("hh", "test", talk("harmless-base test 0", "").rstrip(), " Because.")])
def test_the_first_example(copies, name, split, prompt, response):  # a blank or a column too many
    found = data.load(at(copies, name), split)[0]
    assert (found.prompt, found.response) == (prompt, response)


def test_an_input_changes_the_instruction(copies):  # the two templates confused, as in their v0
    found = data.load(at(copies, "alpaca"), "train")[1]
    assert (found.prompt, found.response) == (ALPACA_INPUT, "a dish")


CUT = ("validation", "test")  # where these are one in twenty of few rows, there may be none
CUES = {"tldr": "\nTL;DR:", "alpaca": "\n\n### Response:", "hh": "\n\nAssistant:"}


@pytest.mark.parametrize("name", records.NAMES)
def test_every_prompt_ends_as_the_papers(copies, name):  # a split read by another's template
    cue = CUES[name.split("-")[0]]
    for pairs, read in ((False, data.load), (True, data.comparisons)):
        for split in data.tables(at(copies, name), pairs):
            found = read(at(copies, name), split)
            assert found or split in CUT, split
            start = "ARTICLE: " if split == "cnn" else "SUBREDDIT: r/"
            for row in found:
                assert row.prompt.endswith(cue)
                assert not cue.startswith("\nTL") or row.prompt.startswith(start)
                assert "{" not in row.prompt or "{curly}" in row.prompt


@pytest.mark.parametrize("name", records.NAMES)
def test_no_prompt_is_in_two_splits(copies, name):  # validation left in train, rows not prompts cut
    for pairs, read in ((False, data.load), (True, data.comparisons)):
        splits = [s for s in data.tables(at(copies, name), pairs)
                  if s in ("train", "validation", "unlabeled") or s in
                  data.test_splits(at(copies, name))]
        prompts = [{row.prompt for row in read(at(copies, name), s)} for s in splits]
        assert sum(map(len, prompts)) == len(set().union(*prompts)), splits


def test_what_a_set_lacks_is_cut_from_its_training_rows(copies):  # rows lost between the parts
    parts = {s: data.comparisons(at(copies, "alpaca"), s) for s in ("train", "validation", "test")}
    assert sum(map(len, parts.values())) == 199 and all(parts.values())  # of 200, one a tie
    assert all(data.part(row.prompt) == s for s, rows in parts.items() for row in rows)
    hh = {s: data.load(at(copies, "hh"), s) for s in ("train", "validation", "test")}
    assert len(hh["train"]) + len(hh["validation"]) == 200 and len(hh["test"]) == 20
    assert all(data.part(e.prompt) == "validation" for e in hh["validation"])


@pytest.mark.parametrize("name, split, chosen, rejected", [
    ("tldr", "validation", [" first 0", " second 1"], [" second 0", " first 1"]),
    ("tldr", "cnn", ["a0", "a2", "b3"], ["b0", "b2", "a3"]),
    ("alpaca", "train", ["one 0", "two 1"], ["two 0", "one 1"]),
    ("hh", "train", [" Because."], [" No."])])
def test_the_preferred_answer_is_chosen(copies, name, split, chosen, rejected):  # labels swapped
    found = data.comparisons(at(copies, name), split)
    assert [row.chosen for row in found][:len(chosen)] == chosen
    assert [row.rejected for row in found][:len(chosen)] == rejected


def test_news_comparisons_are_those_of_news(copies):  # OpenAI's Reddit rows among them
    found = data.comparisons(at(copies, "tldr"), "cnn")
    assert len(found) == 6 and all("cnndm" in row.meta["batch"] for row in found)


@pytest.mark.parametrize("name, split, left", [
    ("tldr", "test", 59), ("alpaca-sim", "train", None), ("hh", "test", 18)])
def test_rows_without_a_preference_are_counted(copies, capsys, name, split, left):  # kept, silent
    found = data.comparisons(at(copies, name), split)
    assert left in (None, len(found)) and all(row.chosen != row.rejected for row in found)
    said = capsys.readouterr().err
    assert "prefer nothing and are left out (the first: " in said and said.count("\n") == 1


# ---- the structured splits and the subsets


def side(prompts, inside):
    return {p for p in prompts if inside(p.split("POST: ")[1].removesuffix("\nTL;DR:"), p)}


@pytest.mark.parametrize("part, inside", [
    ("length", lambda post, prompt: len(post.split(" ")) <= 245),
    ("tifu", lambda post, prompt: prompt.startswith("SUBREDDIT: r/tifu\n")),
    ("sentiment", lambda post, prompt: " sad " in post)])
def test_structured_splits(copies, part, inside):  # the wrong side, a boundary off by one word
    for read in (data.load, data.comparisons):
        prompts = lambda split, name=part: [
            r.prompt for r in read(at(copies, f"tldr-{name}"), split)]
        for split in ("validation", "test"):
            full = prompts(f"full_{split}")
            assert full == [r.prompt for r in read(at(copies, "tldr"), split)]
            inner, outer = set(prompts(split)), set(prompts(f"ood_{split}"))
            assert inner == side(full, inside) and outer == set(full) - inner
            assert inner and outer
        assert set(prompts("train")) == side(
            [r.prompt for r in read(at(copies, "tldr"), "train")], inside)
    assert data.load(at(copies, f"tldr-{part}"), "cnn") == data.load(at(copies, "tldr"), "cnn")


@pytest.mark.parametrize("kind", [lambda x: np.array(x), list, lambda x: [np.int64(i) for i in x]])
def test_published_sentiment_indices(copies, kind):  # shapes or dtypes taken for row numbers
    wanted = {"train": list(range(0, 240, 3)), "validation": [39, 1], "test": [0, 7, 59]}
    sizes = {"sentiment_indices.npy": 0, "rm_sentiment_indices.npy": 5}
    try:
        for file, shift in sizes.items():
            np.save(copies / file, {k: kind([max(i - shift, 0) for i in v]) for k, v in
                                    wanted.items()}, allow_pickle=True)
        found = data.load(at(copies, "tldr-sentiment"), "test")
        assert [e.response for e in found] == ["sum test 0", "sum test 7", "sum test 59"]
        assert len(data.load(at(copies, "tldr-sentiment"), "ood_test")) == 57
        assert len(data.load(at(copies, "tldr-sentiment"), "train")) == 80
        found = data.comparisons(at(copies, "tldr-sentiment"), "test")
        assert [row.prompt.split("TITLE: ")[1].split("\n")[0] for row in found] == [
            "T 0", "T 2", "T 54"]
        np.save(copies / "sentiment_indices.npy", {"test": kind([60])}, allow_pickle=True)
        with pytest.raises(ValueError, match="another version"):
            data.load(at(copies, "tldr-sentiment"), "test")
    finally:
        for file in sizes:
            (copies / file).unlink()


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("sprung"),))


def test_an_index_file_runs_nothing(tmp_path, monkeypatch):  # numpy.load(allow_pickle=True)
    monkeypatch.chdir(tmp_path)
    np.save("trap.npy", {"train": Trap()}, allow_pickle=True)
    assert records.published("trap.npy") == {"train": set()} and not Path("sprung").exists()
    pickle.loads(pickle.dumps(Trap()))
    assert Path("sprung").exists()  # the trap works
    Path("broken.npy").write_bytes(b"\x93NUMPY\x01\x00\x02\x00{}\x80\x04no")
    with pytest.raises(ValueError, match="broken.npy is not one of the authors'"):
        records.published("broken.npy")


def test_fewer_rows_are_among_more(tmp_path):  # another draw for every n, another order
    rows = [{"prompt": f"{k}", "response": "a"} for k in range(40)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    some = {n: [e.prompt for e in data.load(str(tmp_path), "test", n)] for n in (3, 10, 39, 40, 99)}
    assert [len(x) for x in some.values()] == [3, 10, 39, 40, 40]
    for fewer, more in zip(some.values(), [*some.values()][1:]):
        assert fewer == [p for p in more if p in set(fewer)]
    assert some[40] == [row["prompt"] for row in rows] and some[10] != some[40][:10]


def test_subsets_are_nested(copies):  # drawn with replacement, or each by a seed of its own
    for read in (data.load, data.comparisons):
        of = lambda name, split: [r.prompt for r in read(at(copies, name), split)]
        for split, n in (("train", 240), ("validation", 40)):
            some = {name: of(name, split) for name in ("tldr-10", "tldr-50", "tldr")}
            for name, count in (("tldr-10", n // 10), ("tldr-50", n // 2)):
                assert count - 1 <= len(some[name]) <= count  # one comparison may prefer nothing
                assert len(set(some[name])) == len(some[name])
                assert some[name] == [p for p in some["tldr"] if p in set(some[name])]  # in order
                assert some[name] == of(name, split)
            assert set(some["tldr-10"]) < set(some["tldr-50"]) < set(some["tldr"])
        assert of("tldr-10", "test") == of("tldr", "test")


# ---- where things are, and what can go wrong


def test_what_is_asked_of_the_hub(copies, monkeypatch):  # another file, a revision forgotten
    asked, real = [], datasets.load_dataset

    def fake(kind, data_files, split):
        if not data_files.startswith("hf://"):
            return real(kind, data_files=data_files, split=split)
        asked.append(f"{kind} {data_files}")
        name = data_files.removeprefix("hf://datasets/").split("/", 1)[1]
        name = name.replace("@refs%2Fconvert%2Fparquet", "")
        return real(kind, data_files=str(copies / name), split=split)
    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert data.load("tldr", "test") == data.load(at(copies, "tldr"), "test")
    asked.clear()
    data.load("tldr", "validation")
    data.load("tldr", "cnn")
    data.comparisons("tldr", "train")
    data.comparisons("tldr", "cnn")
    data.load("alpaca", "unlabeled")
    data.comparisons("alpaca", "validation")
    data.load("hh", "validation")
    converted = "@refs%2Fconvert%2Fparquet"
    assert [a.replace("hf://datasets/", "") for a in asked] == [
        "json UCL-DARK/openai-tldr-filtered/valid.jsonl",
        "parquet abisee/cnn_dailymail/3.0.0/test-*.parquet",
        "json UCL-DARK/openai-tldr-summarisation-preferences/data/train-*.json",
        f"parquet openai/summarize_from_feedback{converted}/comparisons/validation/*.parquet",
        f"parquet tatsu-lab/alpaca_farm{converted}/alpaca_instructions/unlabeled/*.parquet",
        "json tatsu-lab/alpaca_farm/alpaca_human_preference.json",
        "json Anthropic/hh-rlhf/h*/train.jsonl.gz"]


def test_no_network_and_no_package(monkeypatch, capsys):  # a page of somebody else's traceback
    def fail(*args, **options):
        raise RuntimeError("name not\nknown")
    monkeypatch.setattr(datasets, "load_dataset", fail)
    for name in ("tldr", "someone/set"):
        with pytest.raises(OSError, match="cannot read .*(name not known).*NAME=FOLDER.*train"):
            data.load(name, "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        data.load("tldr", "train")
    with pytest.raises(SystemExit) as stop:
        look.main(["hh", "--split", "test"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_unknown_names_and_splits(copies, tmp_path):  # a guess instead of a sentence
    for name in ("tldr-news", "tldrs", "alpaca-gpt4"):
        with pytest.raises(ValueError, match=f"no dataset {name}: .*tldr-10, .*hh, OWNER/NAME"):
            data.load(name, "train")
    with pytest.raises(ValueError, match="no split 'id': choose from train, .*test, cnn$"):
        data.load(at(copies, "tldr"), "id")
    with pytest.raises(FileNotFoundError, match="openai-tldr-filtered/train.jsonl. Without"):
        data.load(at(tmp_path, "tldr"), "train")
    with pytest.raises(FileNotFoundError, match="no folder .*set. Without"):
        data.load(at(tmp_path, "someone/set"), "train")


GOOD = reddit("train", 3)


@pytest.mark.parametrize("change, words", [
    (lambda rows: [r.pop("post") for r in rows],
     'openai-tldr-filtered/train.jsonl, line 1: no "post": found id, subreddit, title, summary'),
    (lambda rows: rows[1].update(title=None), 'line 2: "title" is not text but None'),
    (lambda rows: rows[2].pop("summary"), 'train.jsonl, line 3: no "summary": found id, subr'),
    (lambda rows: [r.update(summary=7) for r in rows], 'line 1: "summary" is not text but 7')])
def test_malformed_rows_are_named(tmp_path, change, words):  # a prompt that says None
    rows = [dict(row) for row in GOOD]
    change(rows)
    lines(tmp_path / "openai-tldr-filtered/train.jsonl", rows)
    with pytest.raises(ValueError, match=words) as error:
        data.load(at(tmp_path, "tldr"), "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change, words", [
    (lambda row: row.update(choice=2), "2 summaries and choice 2"),
    (lambda row: row["summaries"].pop(), "1 summaries and choice 0"),
    (lambda row: row["summaries"][0].update(text=None), '"text" is not text'),
    (lambda row: row["info"].update(subreddit=None), '"subreddit" is not text')])
def test_malformed_comparisons_are_named(change, words):  # choice 2 taken for the second
    row = judged("train", 4)[0]
    change(row)
    with pytest.raises(ValueError, match=f"here, row 9: .*{words}|here, row 9: {words}"):
        records.summaries(row, "here, row 9")


def test_a_dialogue_needs_an_answer():  # a prompt of nothing
    with pytest.raises(ValueError, match='row 1: "chosen" has no turn'):
        records.dialogues({"chosen": "Hello", "rejected": talk(1, "no")}, "row 1")


def test_broken_files_are_named(tmp_path):  # datasets' own error
    (tmp_path / "openai-tldr-filtered").mkdir()
    (tmp_path / "openai-tldr-filtered/train.jsonl").write_text('{"post": "a"}\n{"post": \n')
    with pytest.raises(ValueError, match="openai-tldr-filtered/train.jsonl, line 2: not JSON"):
        data.load(at(tmp_path, "tldr"), "train")
    for name in ("train.parquet", "set/data/test.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"PAR1 no")
    for name in (tmp_path / "train.parquet", at(tmp_path, "someone/set")):
        with pytest.raises(OSError, match="cannot read .*(train.parquet|someone/set)"):
            data.load(name, "test")


# ---- any other set, and files


def test_other_sets_of_the_hub(tmp_path, copies):  # only the paper's sets
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "n": i} for i in range(300)]
    parquet(tmp_path / "set/data/train-00000-of-00001.parquet", rows)
    name = at(tmp_path, "someone/set")
    assert tuple(data.tables(name)) == ("train", "validation", "test")
    found = {s: data.load(name, s) for s in data.tables(name)}
    assert sum(map(len, found.values())) == 300 and found["test"]
    assert data.Example("p7", "c7", {"n": 7}) in [e for part in found.values() for e in part]
    with pytest.raises(ValueError, match='row 1: no "chosen", "rejected": found prompt, co'):
        data.comparisons(name, "train")
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(300)]
    parquet(tmp_path / "pairs/data/train-00000-of-00001.parquet", pairs)
    parquet(tmp_path / "pairs/data/test-00000-of-00001.parquet", pairs[:9])
    name = at(tmp_path, "some.one/pairs")
    assert data.comparisons(name, "test") == [data.Comparison(f"p{i}", "a", "b") for i in range(9)]
    assert data.load(name, "test")[0] == data.Example("p0", "a", {"rejected": "b"})
    path = tmp_path / "pairs/data/test-00000-of-00001.parquet"
    before = path.stat()
    parquet(path, pairs[1:9])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(data.load(name, "test")) == 8  # not what a cache has of that time


ROWS = [{"prompt": f"prompt {i}", "response": answer} for i, answer in enumerate(
    ["NA", "007", "a, \"b\"\nc", "", "naïve", "null"] * 20)]


def as_csv(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode("utf-8-sig"))


@pytest.mark.parametrize("write, end", [(as_csv, "csv"), (parquet, "parquet")])
def test_csv_and_parquet(tmp_path, copies, write, end):  # "NA" missing, "007" a number, a mark
    wanted = [data.Example(**row) for row in ROWS]
    path = tmp_path / f"all.{end}"
    write(path, ROWS)
    parts = [data.load(path, s) for s in ("train", "validation", "test")]
    assert sorted((e for part in parts for e in part), key=lambda e: int(e.prompt[7:])) == wanted
    assert data.run_folder(path).name == "all"
    folder = tmp_path / "folder [v2]"  # taken for a pattern
    folder.mkdir()
    write(folder / f"test.{end}", ROWS)
    pairs = [{"prompt": "p", "chosen": "1", "rejected": "2"}]
    write(folder / f"comparisons.train.{end}", pairs)
    assert data.load(folder, "test") == wanted
    before = (folder / f"test.{end}").stat()
    write(folder / f"test.{end}", ROWS[1:])
    os.utime(folder / f"test.{end}", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data.load(folder, "test") == wanted[1:]  # not what a cache has of that time
    assert data.comparisons(folder, "train") == [data.Comparison("p", "1", "2")]
    write(folder / f"train.{end}", [{"prompt": "p", "answer": "r"}])
    with pytest.raises(ValueError, match=f'train.{end}, (row 1|line 2): no "response"'):
        data.load(folder, "train")


# ---- what there is to test on


def test_test_splits(copies, tmp_path):  # a shifted split first, validation among them
    assert data.test_splits("summarise") == world.SPLITS["summarise"]
    assert data.test_splits("summarise", pairs=True) == ()
    assert data.test_splits("tldr") == data.test_splits("tldr", True) == ("test", "cnn")
    assert data.test_splits("tldr-length") == ("test", "cnn", "ood_test")
    assert data.test_splits("alpaca") == ("test", "alpaca_eval", "sequential")
    assert data.test_splits("alpaca", True) == data.test_splits("hh") == ("test",)
    for name in ("train", "validation", "text", "long", "test", "comparisons.train"):
        (tmp_path / f"{name}.jsonl").write_text("")
    (tmp_path / "comparisons.long.jsonl").write_text("")
    assert data.test_splits(tmp_path) == ("test", "long")
    assert data.test_splits(tmp_path, True) == ("long",)
    assert data.test_splits(tmp_path / "train.jsonl") == ("test",)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(ValueError, match="no split 'test'"):
        data.test_splits(tmp_path)


def test_prompts_to_practise_on(copies):  # PPO on the prompts of SFT
    alpaca, tldr = at(copies, "alpaca"), at(copies, "tldr")
    assert data.prompts(alpaca) == [e.prompt for e in data.load(alpaca, "unlabeled")]
    assert data.prompts(tldr) == [e.prompt for e in data.load(tldr, "train")]
    assert len(data.texts(tldr)) == 240


@pytest.mark.parametrize("name, folder", [
    ("tldr", "tldr"), ("tldr-10=/a/b:c", "tldr-10"), ("someone/set", "someone--set"),
    ("some.one/set:part=x", "some.one--set--part")])
def test_run_folders_are_legal(name, folder):  # a slash, or one folder for two sets
    assert data.run_folder(name, 0, "out") == Path("out", folder)


def test_a_path_comes_before_the_hub(tmp_path, monkeypatch):  # my/data looked for on the hub
    monkeypatch.chdir(tmp_path)
    lines(Path("my/data/train.jsonl"), [{"prompt": "p", "response": "r"}])
    assert data.load("my/data", "train") == [data.Example("p", "r")]
    assert data.run_folder("my/data") == Path("out/data")


def test_looking_at_a_public_set(copies, capsys):  # a set that only training can read
    look.main([at(copies, "tldr"), "--split", "cnn", "-n", "5"])
    shown = capsys.readouterr().out
    assert shown.count("ARTICLE: News") == 5 and "5 of 5" in shown and "TL;DR: H4 .\nI ." in shown
