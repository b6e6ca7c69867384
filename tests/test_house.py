"""
The house rules: who may import whom, what is optional, how a Config is laid out, and that the links
of the pages are real. After each test's name stands the mistake that turns it red.
"""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("sft", "reward", "ppo", "bon", "rlhf")

# file: what it may import besides the standard library, and what only inside a function.
TABLE = {
    "model.py": ("torch", "data.decoding data.files data.gpu data.networks"),
    "metrics.py": ("numpy", "data.measured"),
    "sft.py": ("torch model data data.networks data.optim data.run", "data.base"),
    "reward.py": ("torch model data data.checkpoint data.collect data.networks data.optim "
                  "data.pools data.rewards data.run",
                  ""),
    "ppo.py": ("torch model data data.networks data.optim data.run data.watch reward", ""),
    "bon.py": ("torch numpy model data data.checkpoint data.pools data.run metrics reward", ""),
    "rlhf.py": ("numpy data data.claims data.files data.good data.lineage data.pools data.report "
                "data.run metrics bon", "data.judge"),
    "data/__init__.py": ("torch data.files data.records data.tokenizer", ""),
    "data/__main__.py": ("data data.flags", "torch data.checkpoint data.files data.lineage "
                         "data.say data.weights data.world"),
    "data/say.py": ("torch model reward data data.checkpoint data.decoding data.flags data.records "
                    "data.run", ""),
    "data/tokenizer.py": ("data.files", "tiktoken data.bpe data.weights"),
    "data/files.py": ("tqdm", "pyarrow"),
    "data/flags.py": ("", ""),
    "data/run.py": ("torch tqdm filelock data data.checkpoint data.files data.flags data.networks "
                    "data.tokenizer", "matplotlib model data.gpu data.watch"),
    "data/checkpoint.py": ("torch model data.files data.networks data.tokenizer data.weights", ""),
    "data/optim.py": ("torch data.networks", ""),
    "data/networks.py": ("torch model data.rewards", ""),
    "data/watch.py": ("torch model metrics data data.files data.run", ""),
    "data/pools.py": ("torch numpy tqdm model data data.files data.networks data.run metrics", ""),
    "data/good.py": ("numpy metrics data.claims", "data.world"),
    "data/measured.py": ("numpy metrics data.claims data.encoders data.files data.flags data.good",
                         ""),
    "data/decoding.py": ("torch model", ""),
    "data/gpu.py": ("torch model", "data.networks"),
    "data/rewards.py": ("torch data model", ""),
    "data/base.py": ("torch model data data.flags data.optim", ""),
    "data/world.py": ("numpy data.summarise data.instruct", ""),
    "data/words.py": ("", ""),
    "data/summarise.py": ("data.words", ""),
    "data/instruct.py": ("data.words", ""),
    "data/bpe.py": ("tqdm data.files data.flags", "tiktoken data.tokenizer"),
    "data/encoders.py": ("data.weights", ""),
    "data/records.py": ("data.files", "data.world datasets"),
    "data/collect.py": ("numpy tqdm data data.files metrics", "data.judge data.world"),
    "data/weights.py": ("torch", "safetensors tokenizers huggingface_hub data.bpe"),
    # Its command, and nothing else in it, measures reward checkpoints too, and has intervals.
    "data/judge.py": ("tqdm data data.files", "data.collect data.flags data.measured metrics "
                      "reward"),
    "data/claims.py": ("numpy metrics", ""),
    "data/lineage.py": ("numpy torch data data.checkpoint data.collect data.encoders data.files "
                        "data.networks data.rewards data.run metrics sft reward ppo", "data.world"),
    "data/figures.py": ("numpy data.claims data.files", "matplotlib"),
    "data/report.py": ("numpy data.figures data.files data.claims", ""),
}
OPTIONAL = {"safetensors", "tokenizers", "sentence_transformers", "transformers", "datasets",
            "huggingface_hub"}
FOR_TESTS = {"pytest", "hypothesis", "regex", "ruff"}
LOCAL = {path.stem for path in ROOT.glob("*.py")} | {"data", "tests"}


def code_files():
    return sorted([*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")])


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """(module, whether inside a function or `if __name__`) for every import of a file; data's by
    their full names."""
    def names(node):
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        module = node.module or ""
        if node.level:  # inside data/: from . import world, or from .world import x
            return [f"data.{module}"] if module else [
                f"data.{a.name}" if (ROOT / "data" / f"{a.name}.py").exists() else "data"
                for a in node.names]
        if module == "data":
            return [f"data.{a.name}" if (ROOT / "data" / f"{a.name}.py").exists() else "data"
                    for a in node.names]
        return [module]

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                for name in names(child):
                    first = name.split(".")[0]
                    if first not in sys.stdlib_module_names:
                        yield (name if first == "data" else first), inside
            here = inside or isinstance(child, (ast.FunctionDef, ast.Lambda, ast.If))
            yield from walk(child, here)
    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.mark.parametrize("path", code_files(), ids=name_of)
def test_imports(path):  # model importing metrics, a package too many, an ImportError for everyone
    assert name_of(path) in TABLE, f"{name_of(path)} is not in TABLE"
    always, inside = (set(x.split()) for x in TABLE[name_of(path)])
    assert not always & OPTIONAL and not (always | inside) & FOR_TESTS
    for name, is_inside in imports(path):
        assert name in always or is_inside and name in inside, (name, is_inside)


def test_no_cycles():  # two files that only make sense together
    graph = {path.stem if path.parent == ROOT else f"data.{path.stem}".replace(".__init__", ""):
             {name for name, inside in imports(path) if name.split(".")[0] in LOCAL and not inside}
             for path in code_files()}
    done = set()
    while graph.keys() - done:
        free = {k for k in graph.keys() - done if not (graph[k] & graph.keys()) - done - {k}}
        assert free, graph.keys() - done
        done |= free


def test_requirements_name_what_is_imported():  # a package that only the author has
    def listed(path):
        text = re.sub(r"#.*", "", path.read_text(encoding="utf-8"))
        return {re.split(r"[<>=~!\[; ]", line.strip())[0].replace("-", "_")
                for line in text.splitlines() if line.strip()}
    core = listed(ROOT / "requirements.txt")
    assert core <= {"torch", "numpy", "tiktoken", "datasets", "tqdm", "matplotlib"}
    for path in code_files():
        used = {name.split(".")[0] for name, _ in imports(path)} - LOCAL
        used -= {"filelock", "pyarrow"}  # which torch and datasets bring along
        assert used <= core | OPTIONAL, used - core - OPTIONAL


@pytest.mark.parametrize("stage", [x for x in STAGES if (ROOT / f"{x}.py").exists()])
def test_configs_are_short_and_explained(stage):  # the fifteenth everyday flag
    source = (ROOT / f"{stage}.py").read_text(encoding="utf-8")
    node = next(n for n in ast.parse(source).body
                if isinstance(n, ast.ClassDef) and n.name == "Config")
    lines = source.splitlines()
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    groups = [[]]
    for field, before in zip(fields, [None, *fields]):
        if before is not None and field.lineno > before.end_lineno + 1:
            assert not any(x.strip() for x in lines[before.end_lineno:field.lineno - 1])
            groups.append([])
        groups[-1].append(field.target.id)
        assert re.search(r"  # \S.*", lines[field.end_lineno - 1]), field.target.id
        assert field.value is not None  # every flag has a default
    assert len(groups) <= 2 and len(groups[0]) <= 14 and len(groups[-1]) <= 14
    assert len(groups) == 1 or len(groups[1]) <= 12, groups[1]


@pytest.mark.parametrize("stage", [x for x in STAGES if (ROOT / f"{x}.py").exists()])
def test_stages_have_one_anatomy(stage):  # a trainer class, or a second train
    tree = ast.parse((ROOT / f"{stage}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree).startswith(f"{stage}.py - ")
    assert f"python {stage}.py" in ast.get_docstring(tree)
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert names[0] == "Config" and names[-1] == "train" and names.count("train") == 1
    assert not [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name != "Config"]
    assert isinstance(tree.body[-1], ast.If)  # __name__ == "__main__"


PAGES = [ROOT / name for name in (
    "README.md", "data/RESULTS.md", "data/WORLD.md", "data/REAL.md", "tests/README.md",
    "tests/PROBLEMS.md")]


def anchors(page):
    "The names by which GitHub knows a page's headings."
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_the_pages(page):  # a picture that was renamed, or one that is a slow page
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), (target, anchor)
    for target in re.findall(r'(?:\]\(|src=")([^)":]+\.(?:png|svg))[)"]', text):
        path = page.parent / target
        assert path.exists() and ("bughunt" not in target or path.stat().st_size < 80_000), target


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.name)
def test_a_function_is_read_at_a_glance(path):  # plumbing that came back into the lesson
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            most = 45 if node.name == "train" else 60
            assert node.end_lineno - node.lineno < most, node.name


def test_the_lesson_stays_short():
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in ROOT.glob("*.py")) < 2300
