"""
The house rules: who may import whom, what is optional, how a Config is laid out, and that the links
of the README and the problem set are real. After each test's name stands the mistake that turns it
red.
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
    "model.py": ("torch", "data.weights"),
    "metrics.py": ("numpy", "matplotlib tqdm sentence_transformers transformers"),
    "sft.py": ("torch numpy tqdm model data metrics", ""),
    "reward.py": ("torch numpy tqdm model data data.collect metrics", ""),
    "bon.py": ("torch numpy tqdm model data metrics reward", ""),
    "ppo.py": ("torch numpy tqdm model data metrics reward", ""),
    "rlhf.py": ("torch numpy tqdm model data metrics sft reward ppo bon data.collect data.report",
                "matplotlib data.judge data.world"),
    "data/__init__.py": ("torch", "tiktoken data.bpe data.world data.hub data.weights"),
    "data/__main__.py": ("data", "data.world"),
    "data/world.py": ("numpy data.summarise data.instruct", ""),
    "data/summarise.py": ("data.words", ""),
    "data/instruct.py": ("data.words", ""),
    "data/words.py": ("", ""),
    "data/bpe.py": ("tiktoken tqdm", "data"),
    "data/hub.py": ("data", "datasets"),
    "data/collect.py": ("numpy tqdm data", "data.judge data.world"),
    "data/weights.py": ("torch", "safetensors tokenizers huggingface_hub tiktoken data data.bpe"),
    # Its command, and nothing else in it, measures reward checkpoints too, and has intervals.
    "data/judge.py": ("data tqdm", "openai metrics reward"),
    "data/report.py": ("numpy", "matplotlib"),
}
OPTIONAL = {"safetensors", "tokenizers", "sentence_transformers", "transformers", "openai",
            "datasets", "huggingface_hub"}
FOR_TESTS = {"pytest", "hypothesis", "regex", "ruff"}
LOCAL = {path.stem for path in ROOT.glob("*.py")} | {"data", "tests"}


def code_files():
    return sorted([*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")])


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    "(module, whether inside a function) for every import of a file; data's by their full names."
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
            here = inside or isinstance(child, (ast.FunctionDef, ast.Lambda))
            yield from walk(child, here)
    yield from walk(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.mark.parametrize("path", code_files(), ids=name_of)
def test_imports(path):  # model importing metrics, a judge in the metrics, a package too many
    assert name_of(path) in TABLE, f"{name_of(path)} is not in the table of DESIGN.md"
    always, inside = (set(x.split()) for x in TABLE[name_of(path)])
    for name, is_inside in imports(path):
        assert name in always or is_inside and name in inside, (name, is_inside)


@pytest.mark.parametrize("path", code_files(), ids=name_of)
def test_optional_packages_are_imported_where_used(path):  # an ImportError for everyone
    for name, is_inside in imports(path):
        assert name not in FOR_TESTS
        assert is_inside or name not in OPTIONAL, name


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
    assert len(groups) == 1 or len(groups[1]) <= 10, groups[1]


@pytest.mark.parametrize("stage", [x for x in STAGES if (ROOT / f"{x}.py").exists()])
def test_stages_have_one_anatomy(stage):  # a trainer class, or a second train
    tree = ast.parse((ROOT / f"{stage}.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(tree).startswith(f"{stage}.py - ")
    assert f"python {stage}.py" in ast.get_docstring(tree)
    names = [n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert names[0] == "Config" and names[-1] == "train" and names.count("train") == 1
    assert not [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name != "Config"]
    assert isinstance(tree.body[-1], ast.If)  # __name__ == "__main__"


PAGES = [ROOT / name for name in ("README.md", "tests/PROBLEMS.md") if (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_of_the_pages(page):  # a picture that was renamed, or one that is a slow page
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
        assert "bughunt" not in target or (page.parent / target).stat().st_size < 80_000, target
