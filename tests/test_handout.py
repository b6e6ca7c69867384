"""
The assignment: the solution has full points, the student's tree none, and a mistake in one problem
costs that problem's points and no others. After each test's name stands what turns it red.
"""

import inspect
import json
import subprocess
import sys

import pytest

from tests import __main__ as grade
from tests import checks, handout

# A plausible mistake in each problem.
MISTAKES = {
    "model.logprobs": ("columns=positions - 1)", "columns=positions)"),
    "sft.loss": ("is_response.sum() if", "is_response.numel() if"),
    "reward.loss": ("-F.logsigmoid(margin)", "-torch.sigmoid(margin).log()"),
    "reward.score": ("keepdim=True) - 1)", "keepdim=True) - 2)"),
    "reward.log_ratio": ("return logp - logp.new", "return logp + logp.new"),
    "ppo.token_rewards": ("rewards = -beta * penalty", "rewards = -beta * penalty.clamp(min=0)"),
    "ppo.gae": ("next_value = values[:, t]", "next_value = values[:, t - 1]"),
    "ppo.policy_loss": ("worse = torch.max(", "worse = torch.min("),
    "ppo.value_loss": ("worse = torch.max(", "worse = torch.min("),
    "ppo.against_group": ("n / (n - 1) if", "1 if"),
    "bon.expected_best": ("order = np.argsort(scores)", "order = np.argsort(-scores)"),
    "metrics.ead": ("len(set(found)) / expected", "len(set(found)) / len(found)"),
    "metrics.embedding_diversity": ("/ (n * (n - 1))", "/ (n * n)"),
    "model.decode_rows": ("place = place + 1", "place = place + 0"),
}


def points():
    return {problem.function: grade.graded(problem)["points"] for problem in handout.PROBLEMS}


FULL = {problem.function: problem.points for problem in handout.PROBLEMS}


def test_the_solution_has_full_points():  # a check that the real code fails
    assert points() == FULL
    assert FULL.keys() == checks.CHECKS.keys() == MISTAKES.keys() and len(FULL) == 14


def with_mistake(name):
    "The function with its mistake, compiled among its module's other names."
    module, function = (sys.modules[name.split(".")[0]], name.split(".")[1])
    source, (right, wrong) = inspect.getsource(getattr(module, function)), MISTAKES[name]
    assert source.count(right) == 1, (name, right)
    names = dict(vars(module))
    exec(compile(source.replace(right, wrong), name, "exec"), names)
    return module, function, names[function]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_costs_its_own_points(name, monkeypatch):  # a check that sees no mistake
    monkeypatch.setattr(*with_mistake(name))
    result = grade.graded(next(p for p in handout.PROBLEMS if p.function == name))
    assert result["points"] == 0
    assert result["error"] or any(not row["holds"] for row in result["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_costs_no_other_points(name, monkeypatch):  # checks that lean on each other
    monkeypatch.setattr(*with_mistake(name))
    assert points() == FULL | {name: 0}


def test_zeros_have_no_points(monkeypatch):  # a tolerance as large as the answer
    for row in (checks.Row("", 0.0, 1e-3), checks.Row("", float("nan"), float("nan")),
                checks.Row("", [1.0], [1.0, 1.0]), checks.Row("", [1.0, 2.0], [1.0, 2.1])):
        assert not row.holds()
    assert checks.Row("", [1.0, 2.0], [1.0, 2.0 + 1e-10]).holds()


def run(folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)


def test_the_students_tree(tmp_path):  # a body left in, a function of another name taken out
    folder = tmp_path / "student"
    done = run(handout.ROOT, "-m", "tests.handout", str(folder))
    assert done.returncode == 0 and "14 problems, 40 points" in done.stdout, done.stderr
    for path in handout.ROOT.glob("*.py"):
        mine, theirs = path.read_text(), (folder / path.name).read_text()
        for problem in handout.PROBLEMS:
            module, name = problem.function.split(".")
            if module == path.stem:
                (a, b), (c, d) = handout.body(mine, name), handout.body(theirs, name)
                taken = mine.splitlines()[a:b]
                left = theirs.splitlines()[c:d]
                assert left[0] == "    raise NotImplementedError(" and len(taken) >= 2
                mine = "\n".join(mine.splitlines()[:a] + left + mine.splitlines()[b:]) + "\n"
        assert mine == theirs, path
    done = run(folder, "-m", "tests", "grade", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 1 and result["points"] == 0 and result["of"] == sum(FULL.values())
    assert {p["error"] for p in result["problems"]} == {"not written yet"}
    again = run(handout.ROOT, "-m", "tests.handout", str(folder))
    assert again.returncode == 2 and "exists" in again.stderr


def test_what_is_printed(capsys):  # numbers without what they should be, an unknown problem
    with pytest.raises(SystemExit) as left:
        grade.main(["grade", "ead", "ppo.gae"])
    printed = capsys.readouterr().out
    assert left.value.code == 0 and "6 of 6 points" in printed and "metrics.ead" in printed
    with pytest.raises(SystemExit) as left:
        grade.main(["grade", "nothing"])
    assert left.value.code == 2 and "there is no problem nothing" in capsys.readouterr().err


def test_the_problem_set_has_these_problems():  # points that were changed in one place
    page = (handout.ROOT / "tests" / "PROBLEMS.md").read_text(encoding="utf-8")
    for number, problem in enumerate(handout.PROBLEMS, 1):
        assert (f"| {number} | `{problem.function}` | {problem.points} | {problem.minutes} |"
                in page), problem.function
