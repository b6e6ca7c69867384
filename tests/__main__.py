"""
Grade the fourteen problems of tests/handout.py.

    python -m tests grade                 # points, and every number beside what it should be
    python -m tests grade gae logprobs    # some of them
    python -m tests grade --json          # for a program to read
"""

import argparse
import json
import sys
import time

from tests.checks import CHECKS
from tests.handout import PROBLEMS


def graded(problem):
    "Run one problem's checks -> {problem, points, of, seconds, rows or error}."
    began, rows, error = time.time(), [], None
    try:
        for row in CHECKS[problem.function]():
            found, expected = row.worst()
            rows.append({"what": row.what, "found": found, "expected": expected,
                         "holds": row.holds()})
    except NotImplementedError:
        error = "not written yet"
    except Exception as problem_of_theirs:  # whatever a student's code may do
        error = f"{type(problem_of_theirs).__name__}: {problem_of_theirs}"
    passed = error is None and all(row["holds"] for row in rows)
    return {"problem": problem.function, "points": problem.points * passed, "of": problem.points,
            "seconds": time.time() - began, "rows": rows, "error": error}


def show(number, result):
    print(f"{number:2}  {result['problem']:30}{result['points']:3} of {result['of']}")
    for row in result["rows"]:
        print(f"      {'ok    ' if row['holds'] else 'WRONG '}{row['what']}: {row['found']:.6g}"
              + ("" if row["holds"] else f", should be {row['expected']:.6g}"))
    if result["error"]:
        print(f"      {result['error']}")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["grade"])
    parser.add_argument("problems", nargs="*", help="names of functions, such as gae (all)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args(argv)
    names = [problem.function for problem in PROBLEMS]
    for name in args.problems:
        if not any(name in (known, known.split(".")[1]) for known in names):
            parser.error(f"there is no problem {name}: choose from {', '.join(names)}")
    results = []
    for number, problem in enumerate(PROBLEMS, 1):
        if args.problems and not {problem.function, problem.function.split(".")[1]} & set(
                args.problems):
            continue
        results.append(graded(problem))
        if not args.json:
            show(number, results[-1])
    points, of = (sum(result[key] for result in results) for key in ("points", "of"))
    print(json.dumps({"points": points, "of": of, "problems": results}) if args.json else
          f"\n{points} of {of} points")
    sys.exit(0 if points == of else 1)


if __name__ == "__main__":
    main()
