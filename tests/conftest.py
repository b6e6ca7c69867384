"""
What several files of tests share: the toy set of tests/chaos.py with finished runs, runs without
figures, and how a mistake is read.
"""

import functools
import re
from pathlib import Path

import pytest

import metrics
from data import figures, run
from tests import chaos


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    "The toy set, its base, and finished runs of sft, reward and ppo in `whole`: read only."
    folder = tmp_path_factory.mktemp("toy")
    chaos.toy(folder)
    for stage in ("sft", "reward", "ppo"):
        chaos.go(stage, folder, folder / "whole" / stage)
    return folder


def without_figures(patch):
    "What takes longest of a run that is this small: curves, figures, and the draws of intervals."
    patch.setattr(run, "curve", lambda *args: None)
    patch.setattr(figures, "save", lambda made, path, top=1.0: Path(path).write_bytes(bytes(24)))
    patch.setattr(metrics, "interval", functools.partial(metrics.interval, resamples=20))


@pytest.fixture
def quick(request, monkeypatch):
    if not request.node.get_closest_marker("slow"):
        without_figures(monkeypatch)


@pytest.fixture
def mistake(capsys):
    "Calls what must end with exit code 2 and one sentence, nothing else -> that sentence."
    def said(call, *args, **options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call(*args, **options)
        lines = capsys.readouterr().err.splitlines()
        notes = re.compile(r"%\||were cut to --|^\s*$")  # a bar, and what is said of texts
        lines = [x for x in lines if "error: " in x or not notes.search(x)]
        assert stop.value.code == 2 and len(lines) == 1 and "error: " in lines[0], lines
        return lines[0][lines[0].index("error: "):]
    return said
