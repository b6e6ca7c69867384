"""
The assignment: fourteen functions of the real code, to be written again.

    python -m tests.handout ../student    # the project, with the bodies of the fourteen taken out
    python -m tests grade                 # there: points, and every number beside what it should be
    python -m tests grade gae --json      # one problem, for a program to read

The code carries no marks: a problem names its function, which is found in the source, and
everything but its first lines, its docstring and its signature is replaced by what is to be done.
"""

import argparse
import ast
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns("out", ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")


class Problem(NamedTuple):
    function: str  # module.function
    points: int
    minutes: int
    task: str


PROBLEMS = (
    Problem("model.logprobs", 4, 40, "log softmax of the logits at temperature T, read where the "
            "token before stands: log pi(y_t | x, y_<t) = z_t[y_t] / T - logsumexp(z_t / T)"),
    Problem("sft.loss", 2, 15, "the negative log-likelihood of response tokens, over their number"),
    Problem("reward.loss", 2, 15, "-log sigmoid(r(x, y_w) - r(x, y_l)), Eq. 1 of Ouyang et al. "
            "2022, without overflow"),
    Problem("reward.score", 2, 20, "the model's number at the last response token of each row"),
    Problem("ppo.token_rewards", 3, 30, "r_t = -beta k(log-ratio_t), and the score at the last "
            "response token"),
    Problem("ppo.gae", 4, 30, "A_t = delta_t + gamma lam A_t+1 with delta_t = r_t + gamma V_t+1 - "
            "V_t, Eq. 11-12 of Schulman et al. 2016; returns are A + V"),
    Problem("ppo.policy_loss", 3, 30, "-min(ratio A, clip(ratio) A), Eq. 7 of Schulman et al. "
            "2017; info: ratio_gap (the largest |ratio - 1|), clip_fraction, approx_kl (k3)"),
    Problem("ppo.value_loss", 2, 20, "half the worse of the squared errors of V and of V clipped "
            "to within `clip` of the old one"),
    Problem("ppo.against_group", 3, 25, "a response's whole reward less the mean of the others to "
            "its prompt (rloo), or less the group's mean and over its std (grpo), at all its "
            "tokens"),
    Problem("reward.log_ratio", 2, 25, "DPO's log pi(y | x) - log pi_ref(y | x): sums over each "
            "response's tokens (pools.row_loglikelihoods), less what `logp_ref` has of its key"),
    Problem("bon.expected_best", 3, 40, "values weighted by the chance of their score's rank to "
            "be the best of n (rank_weights), ties sharing theirs"),
    Problem("metrics.ead", 2, 20, "distinct n-grams over V (1 - ((V - 1) / V)^C), C their number "
            "with repeats, mean over n = 1..5"),
    Problem("metrics.embedding_diversity", 2, 20, "1 - mean cosine over all pairs of texts"),
    Problem("model.decode_rows", 6, 90, "from read_prompts on: choose a token for every row, "
            "decode it, until all rows have ended; go on without those that have"),
)


def body(source, name):
    "Lines [first, last) of what is to be written again in a function: all behind its docstring."
    found = next(node for node in ast.parse(source).body
                 if isinstance(node, ast.FunctionDef) and node.name == name)
    said = ast.get_docstring(found) is not None
    return found.body[said].lineno - 1, found.end_lineno


def stripped(source, number, problem):
    "A module's source without the body of one of its functions."
    name = problem.function.split(".")[1]
    first, last = body(source, name)
    task = (f"problem {number}, {problem.function} ({problem.points} points, about "
            f"{problem.minutes} minutes): {problem.task}. Check: python -m tests grade {name}")
    words, lines = task.split(" "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 80:
            lines.append("")
        lines[-1] += word + " "
    lines[-1] = lines[-1].rstrip()
    said = "\n".join(f"        {line!r}" for line in lines)
    code = source.splitlines(keepends=True)
    return "".join([*code[:first], f"    raise NotImplementedError(\n{said})\n", *code[last:]])


def write(folder):
    "The student's tree -> its path. FileExistsError if there is something already."
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name a new folder, so that nobody's work is lost")
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    for number, problem in enumerate(PROBLEMS, 1):
        path = folder / f"{problem.function.split('.')[0]}.py"
        path.write_text(stripped(path.read_text(encoding="utf-8"), number, problem),
                        encoding="utf-8")
    return folder


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.handout", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a new folder for the student's tree")
    try:
        folder = write(parser.parse_args(argv).folder)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {folder}: {len(PROBLEMS)} problems, {sum(p.points for p in PROBLEMS)} points, "
          f"about {sum(p.minutes for p in PROBLEMS) / 60:.0f} hours; there: python -m tests grade")


if __name__ == "__main__":
    main()
