"""
Every command of every page is run as it stands there, where a reader would type it, after what
they have typed before; at toy size, and with local files for what is fetched. The README stays
short. After each test's name stands the mistake that turns it red.
"""

import argparse
import functools
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import metrics
import model as m
import ppo
import reward
import sft
from data import collect, files, lineage, run, world
from tests.chaos import examples
from tests.handout import LEFT_OUT, ROOT
from tests.test_judge import server  # noqa: F401 (a fixture)
from tests.test_leaderboard import enter
from tests.test_records import copies  # noqa: F401 (a fixture)
from tests.test_stages import FIELDS
from tests.test_weights import FILES, GPT2, LLAMA, OPT, hf, randomise

PAGES = ("README.md", "data/RESULTS.md", "data/WORLD.md", "data/REAL.md", "tests/README.md",
         "tests/PROBLEMS.md")
WORDS, LINES = 2_500, 250  # of the README, at most
STAGES = {"sft": dict(steps=2, batch=4, eval_size=8, base_steps=2),
          "reward": dict(steps=2, batch=4, eval_size=8),
          "ppo": dict(steps=2, batch=8, minibatches=2, lr=0.01)}  # far enough to say something else
TOY = {  # what a command is given at its end, to be small
    **{f"{stage}.py": " ".join(f"{run.flag(name)} {value}" for name, value in sizes.items())
       for stage, sizes in STAGES.items()},
    "bon.py": "--prompts 4 --n 4 --pool 8", "rlhf.py": "--seeds 1 --inputs 4 --samples 2",
    "metrics.py": "", "data": "", "data.bpe": "--vocab 300", "data.judge": "",
    "tests": "", "tests.bench": "scoring --repeats 1", "tests.bughunt": "",
    "tests.chaos": "--kills 1", "tests.evaluate": "-n 4", "tests.fuzz": "--cases 3",
    "tests.gpu": "device --device cpu",
    "tests.handout": "", "tests.leaderboard": "", "tests.memory": "",
    "tests.mutants": "'ties are losses'", "tests.mutants --plant": "", "tests.results": "",
    "tests.halves": "", "tests.smollm2": "",
    "tests.tradeoff": "--seeds 1 --inputs 4", "pytest": "--co -q"}
SLOW = {"rlhf.py", "tests.tradeoff", "tests.evaluate", "tests.bench", "tests.chaos",
        "tests.gpu", "tests.memory", "tests.mutants", "tests.results", "pytest",
        "k1-0.03"}  # words of a block
STAND_INS = {  # words, and what a test has instead of the hub, a friend and 500 prompts
    **{name: f"{name}=copies" for name in ("tldr", "tldr-length", "alpaca")},
    "out/healthy.jsonl": "out/summarise/ppo.jsonl", "out/summarise": "board"}
NOT_RUN = {"python -m venv .venv": "the tests have an environment",
           "source .venv/bin/activate": "the same"}


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks():
    """The commands of all pages, as lists of lines: each bash block, each table, and alone what
    stands in the text; nothing twice that is not part of something new."""
    code = re.compile(r"`((?:python|pip) [^`\n]+)`")
    texts = list(map(text_of, PAGES))
    plain = [re.sub(r"^```.*?^```", "", text, flags=re.S | re.M) for text in texts]
    found = [block.replace("\\\n", " ").replace("&&", "\n").splitlines() for text in texts
             for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)]
    found += [code.findall(table) for text in plain
              for table in re.findall(r"(?:^\|.*\n)+", text, re.M)]
    found += [[line] for text in plain for line in code.findall(text)]
    kept, seen = [], set()
    for lines in found:
        lines = [line.strip() for line in lines if line.strip()]
        if not seen.issuperset(lines):
            kept.append(lines)
        seen.update(lines)
    return kept


BLOCKS = blocks()


def program(line):
    words = shlex.split(line)
    return words[2 if words[1] == "-m" else 1]


def before(lines):
    "What a reader has typed before this block -> its place in BLOCKS, None for the first."
    said = "\n".join(lines)
    for sign, command in (("/samples/", "python rlhf.py"), ("../hunt/", "cp -r . ../hunt"),
                          ("out/my/", "python ppo.py --data my"),
                          ("python rlhf.py", "python rlhf.py --full"),
                          ("--seeds 0 1 2", "python ppo.py --seed 2")):
        if sign in said and command not in said:
            return next(k for k, block in enumerate(BLOCKS)
                        if any(line.startswith(command) for line in block))
    return None if lines is BLOCKS[0] else 0


def execute(line, monkeypatch):
    "One command, in the folder we are in; whatever goes wrong is an exception."
    words = shlex.split(line)
    if line in NOT_RUN:
        return
    if words[0] == "cp":
        subprocess.run(words, check=True)
    elif words[:2] == ["pip", "install"]:
        sources = "\n".join(path.read_text(encoding="utf-8") for path in Path().rglob("*.py"))
        used = r'^ *(import|from) {0}\b|(package|installed)\("{0}"'
        for word, after in zip(words[2:], words[3:] + [""]):
            name = re.split(r"[=<>\[]", word)[0].replace("-", "_")
            assert (word == "-r" and Path(after).is_file() or word.endswith(".txt")
                    or word == "--no-deps"
                    or re.search(used.format(name), sources, re.M)), word
    else:
        assert words[0] == "python" and program(line) in TOY, f"how is this run: {line}"
        name, argv = program(line), [STAND_INS.get(word, word) for word in words[1:]]
        argv += shlex.split(TOY[name + " --plant" * ("--plant" in words)])
        if name == "pytest":
            subprocess.run([sys.executable, *argv], check=True)
            return
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", argv[1:] if argv[0] == "-m" else argv)
            patch.setattr(sys, "stdin", io.StringIO())  # a reader who types nothing
            if name in ("rlhf.py", "tests.tradeoff", "tests.bench"):  # they call the stages
                for stage in (sft, reward, ppo):
                    patch.setattr(stage, "Config", functools.partial(
                        stage.Config, **STAGES[stage.__name__]))
            if name == "tests.bench" and "--figure" in words:  # up to 256 rows and tokens
                patch.setattr(m, "generate", lambda network, prompts, new, num_samples=1,
                              of=m.generate: of(network, prompts[:2], 2))
            try:
                if argv[0] == "-m":
                    runpy.run_module(name, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(Path(name).resolve()), run_name="__main__")
            except SystemExit as stop:
                assert not stop.code, f"{line}: exit code {stop.code}"


def pretrained(folder, kind, config, size, make=hf.AutoModelForCausalLM.from_config):
    vocab, ids = FILES[kind](folder)
    randomise(make(config(vocab_size=vocab, pad_token_id=1, **ids, **size))).save_pretrained(folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory, copies):  # noqa: F811
    "ran(k): the folder in whose `project` block k was run, after what comes before it."
    root = tmp_path_factory.mktemp("reader") / "project"
    shutil.copytree(ROOT, root, ignore=LEFT_OUT)
    (root / "copies").symlink_to(copies)
    (root / "my").mkdir()
    examples(root / "my", test=slice(40, 44))
    files.write_rows(root / "my" / "text.jsonl",
                     [{"text": f"a cat and {i} hats"} for i in range(9)])
    pair = {"prompt": "Name a hat.", "chosen": "A red hat", "rejected": "No"}
    files.write_rows(root / "my" / "comparisons.jsonl", [pair] * 4)
    files.write_rows(root / "comparisons.jsonl",
                     [pair | {"prompt": f"Hat {i}?"} for i in range(99)])
    files.write_rows(root / "my" / "outputs.jsonl", [
        {"prompt": f"Hat {i}?", "outputs": ["A hat", f"No {i}"], "reference": "A red hat",
         "scores": [i, 2]}
        for i in range(4)])
    [example] = re.findall(r"^Save as `mine.py`.*?^```python\n(.*?)^```", text_of("README.md"),
                           re.S | re.M)
    (root / "mine.py").write_text(example)
    enter(root / "board")
    long = dict(max_position_embeddings=1100)
    for name, kind, config, size in (
            ("gpt2", "gpt2", hf.GPT2Config, GPT2 | dict(n_positions=1100)),
            ("facebook/opt-125m", "opt", hf.OPTConfig, OPT | long),
            ("facebook/opt-1.3b", "opt", hf.OPTConfig, OPT | long),
            ("huggyllama/llama-7b", "llama", hf.LlamaConfig, LLAMA | long),
            ("real/smollm2-135m", "llama", hf.LlamaConfig, LLAMA | long)):
        pretrained(root / name, kind, config, size)
    files.write_file(root / "real/minilm/config.json", b"{}")  # made already: nothing is read
    pretrained(root / "roberta-large-mnli", "gpt2", hf.GPT2Config, GPT2 | dict(
        n_positions=1100, id2label={0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}),
        hf.GPT2ForSequenceClassification)
    done = {None: root.parent}

    def ran(k):
        if k not in done:
            start, folder = ran(before(BLOCKS[k])), tmp_path_factory.mktemp("reader")
            shutil.copytree(start, folder, symlinks=True, dirs_exist_ok=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder / "project")
                for line in BLOCKS[k]:
                    execute(line, patch)
            done[k] = folder
        return done[k]
    return ran


@pytest.fixture
def small(monkeypatch):
    "What no flag makes small; and an encoder that is not installed."
    for split, size in (("train", 200), ("validation", 40)):
        monkeypatch.setitem(world.SIZES, split, size)
    monkeypatch.setitem(world.SPLITS, "summarise", ("id", "long"))
    monkeypatch.setattr(lineage, "SIZES", {"64": lineage.SIZES["64"]})
    monkeypatch.setattr(metrics, "interval", functools.partial(metrics.interval, resamples=20))
    quality = collect.quality
    monkeypatch.setattr(collect, "quality", lambda *args: quality(*args[:4], 12, *args[5:]))
    encoder = SimpleNamespace(encode=lambda texts, **_: np.array([[len(t), 1.0] for t in texts]))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(
        SentenceTransformer=lambda name: encoder))


def is_slow(k):
    return k is not None and (is_slow(before(BLOCKS[k])) or not SLOW.isdisjoint(
        word for line in BLOCKS[k] for word in line.split()))


@pytest.mark.parametrize("k", [
    pytest.param(k, id=lines[0], marks=[pytest.mark.slow] * is_slow(k))
    for k, lines in enumerate(BLOCKS)])
def test_commands(k, ran, small, server):  # noqa: F811
    # a flag that was renamed, a stage that wants what no earlier command has written
    if any(line.startswith("python -m data log") for line in BLOCKS[k]):
        pytest.importorskip("tensorboard")
    server.script = lambda shown, before: "A" if shown["A"] < shown["B"] else "B"
    folder = ran(k)
    if k not in map(before, BLOCKS):
        shutil.rmtree(folder)


@pytest.mark.parametrize("line", dict.fromkeys(
    line for k, lines in enumerate(BLOCKS) if is_slow(k) for line in lines
    if line.split()[0] not in ("cp", "pip", "source") and program(line) != "pytest"), ids=str)
def test_flags_of_what_takes_long(line, monkeypatch):  # one that was renamed, seen at once
    def parse(self, *args, of=argparse.ArgumentParser.parse_known_args):
        sys.exit(of(self, *args)[1] or 0)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
    monkeypatch.chdir(ROOT)
    execute(line, monkeypatch)


def test_what_is_not_run_is_there():  # an excuse that outlives its command
    assert NOT_RUN.keys() <= {line for lines in BLOCKS for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_fences(page):  # one of another name: what is in it is run by nobody
    found = re.findall(r"^```(\w*)$", text_of(page), re.M)
    assert "bash" in found and set(found) <= {"bash", "text", "bibtex", "python", ""}
    assert len(found) == 2 * found.count("")
    assert found.count("python") == (page == "README.md")  # mine.py, which a command reads


def test_the_readme_is_short():  # a lab book that begins again on the first page
    text = text_of("README.md")
    assert len(text.split()) <= WORDS and len(text.splitlines()) <= LINES


def test_the_readme_leads_everywhere():  # a page that nobody finds, a file that the map forgets
    text = text_of("README.md")
    for page in PAGES[1:]:
        assert f"]({page}" in text, page
    for path in (*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")):
        assert re.search(rf"[`/]{path.name}`", text), path.name


def test_the_readme_begins_with_the_two_commands():  # an order that others type from
    first, second = re.findall(r"^```bash\n(.*?)^```", text_of("README.md"), re.S | re.M)[:2]
    assert len(first.splitlines()) == 1 and first.endswith(
        "pip install -r requirements.txt && python sft.py && python reward.py && python ppo.py\n")
    assert second == "pip install -r tests/requirements.txt && python -m pytest\n"


def test_the_glossary_has_every_logged_field():  # a column of a log that nothing explains
    glossary = text_of("README.md").partition("## Glossary")[2].partition("\n## ")[0]
    for stage, fields in FIELDS.items():
        for name in fields - {"step"} | ({"gold"} if stage == "ppo" else set()):
            assert f"`{name}`" in glossary, f"{name} of {stage}.jsonl"
