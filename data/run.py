"""
What every run needs and no lesson is about: a folder and its lock, a log, curves, samples, and to
be stopped and resumed without a trace. (Its flags: data/flags.py.)

A stage uses it like this, and the loop's body is the lesson:

    with Run("sft", config) as run:                      # seed, device, folder
        policy = run.load("init", path)                  # a parent, whose digest is kept
        for step, batch in run.steps(batches, policy, optimizer=optimizer):
            ...                                          # learn, run.add(loss=...)
            if run.due:                                  # every so many steps, and at the last
                run.log(validation_loss=...)
        return run.finish(...)                           # curve, samples, the last save
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import filelock
import torch
from tqdm import tqdm

import data
from data import checkpoint, files, networks
from data.files import progress  # noqa: F401 (for stages, as some of the next)
from data.flags import CannotResume, Finished, cli, fail, flag, within  # noqa: F401
from data.tokenizer import Tokenizer

# ---- the run folder, which one process at a time writes into, and its log -----------------------

HELD = weakref.WeakValueDictionary()  # locks of this process, which may ask for one twice


def lock(folder):
    """Keep other processes out of a run folder for as long as what this returns is held.

    ValueError if another has it. The system lets go of it when a process ends, however it ends, so
    that the file which stays behind locks nobody out; on a drive without locks there are none."""
    path = Path(folder).resolve() / ".lock"
    key = os.getpid(), path  # a forked copy of this process is another one
    if key not in HELD:
        held = filelock.FileLock(path, timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NotImplementedError):
                held.acquire()
        except filelock.Timeout:
            raise ValueError(f"another process is at work in {folder}: wait until it has ended, or "
                             f"give this one another --out or --seed") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # a drive without locks
                raise OSError(f"{folder} is no place to write into ({error.strerror}): give "
                              f"another --out") from error
        HELD[key] = held
    return HELD.get(key) or held


class Log:
    """Appends a row per logged step to <folder>/<stage>.jsonl, and prints it.

    A new log replaces an old one. With `resume_step`, the step of the checkpoint a run goes on
    from, rows up to it are kept and later ones dropped (they will be written again), so that no
    step is lost or doubled. Each row is flushed: a killed run keeps what it has logged. `show`
    names the fields worth a column on the screen; the file has all."""

    def __init__(self, folder, stage, resume_step=None, show=None):
        self.path = Path(folder) / f"{stage}.jsonl"
        rows = []
        if resume_step is not None and self.path.exists():
            rows = [row for row in files.read_log(self.path) if row["step"] <= resume_step]
        files.write_rows(self.path, rows)
        self.file = open(self.path, "ab", buffering=0)
        self.header, self.printed, self.show = None, 0, show

    def log(self, step, **fields):
        "Write one row, and print it."
        row = self.write(step, **fields)
        self.print({k: v for k, v in row.items() if not self.show or k in ("step", *self.show)})

    def write(self, step, **fields):
        """Write one row -> it. Values are numbers, text or lists of them; ValueError for NaN and
        inf."""
        row = {"step": step}
        for name, value in fields.items():
            value = value.tolist() if hasattr(value, "tolist") else value  # tensors, numpy
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise ValueError(f"{name} is {value} at step {step}: not a finite number") from None
            row[name] = value
        line = json.dumps(row).encode() + b"\n"
        try:
            if self.file.write(line) < len(line):  # the disk had room for half of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(f"{self.path} could not be written at step {step} ({error.strerror}): "
                          f"make room, then --resume from the last checkpoint") from error
        return row

    def print(self, row):
        widths = [max(len(name), 9) for name in row]
        header = "  ".join(name.rjust(w) for name, w in zip(row, widths))
        if header != self.header or self.printed % 20 == 0:
            tqdm.write(header)  # a progress bar stays below it
            self.header, self.printed = header, 0
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
        tqdm.write("  ".join(cell.rjust(w) for cell, w in zip(cells, widths)))
        self.printed += 1

    def close(self):
        self.file.close()


def curve(path_png, rows, panels, x="step"):
    """
    Draw rows of a log over their step (or another field, `x`), as a grid of small plots, to a PNG.

    `panels` is a list of (title, [field, ...], label of the y axis with its unit). Rows without a
    field are skipped: some things are measured less often than others, or not at all.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state, just a file

    # Okabe & Ito's colours differ for every kind of colour vision, the dashes in print as well.
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    dashes = ("-", "--", "-.", ":")
    panels = [panel for panel in panels if any(name in row for name in panel[1] for row in rows)]
    columns = min(len(panels), 2)  # two are still readable at half of their size
    figure = Figure(figsize=(3.4 * columns, 2.6 * math.ceil(len(panels) / columns)))
    for k, (title, fields, label) in enumerate(panels, 1):
        axis = figure.add_subplot(math.ceil(len(panels) / columns), columns, k)
        fields = [name for name in fields if any(name in row for row in rows)]
        for i, name in enumerate(fields):
            drawn = [row for row in rows if name in row]
            axis.plot([row[x] for row in drawn], [row[name] for row in drawn], dashes[i % 4],
                      lw=1.6, label=name, color=colours[i % 7],
                      marker="o" if len(drawn) == 1 else None)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel(x)
        axis.set_ylabel(label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(fields) > 1:
            axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    files.write_file(path_png, lambda file: figure.savefig(file, format="png", dpi=150))


def say(text):
    "Print what the console has letters for, above a progress bar."
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, "replace").decode(encoding))


def side_by_side(path, prompts, answers, gold=None):
    """Print and keep several answers to each prompt: `answers` is {who gave it: texts}, and `gold`
    scores (prompt, text), if there is anything to score with."""
    lines = []
    for i, prompt in enumerate(prompts):
        lines += ["-" * 88, prompt]
        for name, texts in answers.items():
            score = "" if gold is None else f" [{gold(prompt, texts[i].strip()):5.2f}]"
            lines.append(f"  {name:>9}{score}  {texts[i].strip()}")
    text = "\n".join(lines)
    files.write_file(path, text + "\n")
    say("\n" + text + "\n" + "-" * 88)


def stop_signal():
    """A set that is no longer empty once Ctrl-C or SIGTERM has come: a stage looks at it after each
    step, saves, and raises KeyboardInterrupt. A second Ctrl-C does not wait, nor does one after the
    stage, when nobody looks any more."""
    asked = set()
    listener = weakref.ref(asked)

    def ask(number, frame):
        heard = listener()
        if heard is None or heard:
            raise KeyboardInterrupt
        heard.add(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread: a notebook's own stays
            signal.signal(number, ask)
    return asked


# ---- a run ---------------------------------------------------------------------------------------

# of a log: the fields that differ between equal runs
TIMING = ("seconds", "tokens_per_second", "peak_share")
FREE = ("resume", "out", "device", "every", "micro", "max_kl")  # flags that make no other run of it


def pick_device(name):
    "auto (cuda or cpu), cpu, cuda or mps, an Apple GPU -> the name torch wants."
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "mps") and not name.startswith("cuda"):
        raise ValueError(f"--device {name} is none that this runs on: give auto, cpu, cuda or mps.")
    there = torch.backends.mps if name == "mps" else torch.cuda
    if name != "cpu" and not there.is_available():
        raise ValueError(f"--device {name}: torch finds no such GPU here; leave the flag out.")
    if name.startswith("cuda"):  # the output matrix's product in fp32: what was rounded to bf16 is
        torch.set_float32_matmul_precision("high")  # exact in TF32, too, and that is much faster
    return name


def check_finite(numbers):
    "ValueError names the first of these that is not finite."
    for name, x in numbers.items():
        if not math.isfinite(x):
            raise ValueError(f"the {name} is {x}")


def quoted(*words):
    "A command line that a shell takes for these words."
    words = [str(word) for word in words]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def command(program, config, **flags):
    "The command that goes on from a run, with its data, seed, folder and frozen share; None: not."
    for name, default in (("seed", 0), ("out", "out"), ("freeze", 0.0)):
        own = getattr(config, name, default)
        flags.setdefault(name, None if own == default else own)
    given = [(flag(name), value) for name, value in flags.items() if value is not None]
    return quoted("python", *program.split(), "--data", config.data, *itertools.chain(*given))


def command_of(program, config):
    "The command whose flags are those of a Config, less what is its default."
    usual, words = dataclasses.asdict(type(config)()), []
    for name, value in dataclasses.asdict(config).items():
        if name == "data" or value != usual[name]:
            words += [flag(name)] if value is True else [flag(name), value]
    return quoted("python", program, *words)


class Run:
    """One run of a stage: `with Run("sft", config) as run`. `kind` is that of its checkpoint.

    `device`; `tokenizer`, set by the first parent loaded; `parents`, {name: digest} of what the run
    stands on; `home`, the run folder where the other stages are; `folder` and `path`, where this
    one writes; `state`, a dict of numbers that a resumed run needs; `metrics`, the last logged row;
    `tokens` of responses learned from so far; `shown`, four examples that a policy answers every so
    many steps, and `score`, what rates these answers, lists of prompt and of response ids -> (N,).
    """

    def __init__(self, stage, config, kind="policy", unit="step", show=None):
        torch.manual_seed(config.seed)
        self.stage, self.config, self.kind, self.unit, self.show = stage, config, kind, unit, show
        self.device = pick_device(config.device)
        self.home = data.run_folder(config.data, config.seed, config.out)
        self.folder = self.home / getattr(config, "variant", "")
        self.path = self.folder / f"{stage}.pt"
        self.tokenizer, self.parents, self.state, self.metrics = None, {}, {}, {}
        self.sums, self.count, self.tokens = {}, 0, 0
        self.step, self.learning, self.journal, self.held = 0, False, None, None
        self.saved, self.shown, self.score, self.samples = None, None, None, None
        if config.resume:
            self.resumed()  # what is finished needs no lock, and may be asked for by many
            self.lock()  # before the look that counts: nobody goes on with it in between
            self.saved = self.resumed()
            if not self.saved:
                print(f"{self.path} is not there yet: this run begins")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.held = None
        for log in filter(None, (self.journal, self.samples)):
            log.close()
        if self.learning and isinstance(error, ValueError):
            raise ValueError(f"{self.stage}, {self.unit} {self.step}: {error}; try a lower --lr, "
                             f"or go on from the last checkpoint with --resume") from error

    def load(self, name, path, kind="policy"):
        "The network of a checkpoint that this run stands on; the first brings the tokeniser."
        fingerprint = self.tokenizer and self.tokenizer.fingerprint
        model, record = checkpoint.load(path, kind, tokenizer=fingerprint)
        self.tokenizer = self.tokenizer or Tokenizer.of(record["tokenizer"])
        self.parents[name] = record["digest"]
        return model

    def check_lengths(self, policy):
        "ValueError if the longest prompt and response together are more than a policy can read."
        t, context = self.tokenizer, policy.config.context
        if t.prompt_tokens + t.response_tokens > context:
            raise ValueError(f"--prompt-tokens {t.prompt_tokens} and --response-tokens "
                             f"{t.response_tokens} are more than the {context} tokens that this "
                             f"model can read")

    def validation(self, count):
        "The first validation examples."
        return data.load(self.config.data, "validation")[:count]

    def reads(self, name, content):
        "Keep the digest of what the run learns from: bytes, or anything whose repr says it all."
        if not isinstance(content, bytes):
            content = repr(content).encode("utf-8", "replace")
        self.parents[name] = hashlib.sha256(content).hexdigest()

    def resumed(self):
        """What to go on from, (weights, record), or None where nothing is. Finished if nothing is
        left to do; CannotResume unless the checkpoint is of a run with the very flags of `config`:
        with others, its curve and its name would tell of neither run."""
        if not self.path.exists():
            return None
        model, record = checkpoint.load(self.path, self.kind, unfinished=True)
        saved = record["meta"]["config"]
        for name, value in dataclasses.asdict(self.config).items():
            if name not in FREE and name in saved and value != saved[name]:
                raise CannotResume(f"--resume goes on with the flags of the run in {self.path}, "
                                   f"and that had {flag(name)} {saved[name]}, not {value}")
        if record["meta"]["finished"]:
            raise Finished(f"{self.path} has these flags and finished at {self.unit} "
                           f"{record['meta']['step']}: nothing is left to do (it is trained anew "
                           f"without --resume)")
        return model.state_dict(), record

    def restore(self):
        "Put back what the interrupted run had. CannotResume if it stood on anything else."
        weights, record = self.saved
        for name, digest in record["meta"]["parents"].items():
            if self.parents.get(name) != digest:
                what = {"init": "the policy that it starts from", "data": "its data",
                        "reward": "its reward"}[name]
                raise CannotResume(f"--resume: {what} has changed since {self.path} was saved: put "
                                   f"it back as it was, or leave out --resume to train anew")
        if record["tokenizer"]["fingerprint"] != self.tokenizer.fingerprint:
            raise CannotResume(f"--resume: {self.path} was made with another tokenizer")
        self.model.load_state_dict(weights)
        state = record["state"]
        for name, thing in self.kept.items():
            put_back = getattr(thing, "load_state_dict", None) or thing.set_state
            put_back(state["kept"][name])
        self.state, self.sums, self.count = state["state"], state["sums"], state["count"]
        self.step, self.metrics = record["meta"]["step"], record["meta"]["metrics"]

    def lock(self):
        self.held = lock(self.folder)  # until the run is left

    def steps(self, batches, model, **kept):
        """Yields (step, batch) from 1, or from where an interrupted run had come to, up to
        config.steps; saves every config.every steps, and when it is told to stop.

        `model` is what the checkpoint is of, and `kept` what going on needs besides: modules and
        optimisers by their state_dict, generators by their state."""
        from data import gpu, watch  # what they need reads this file

        config, self.model, self.kept = self.config, model, kept
        if self.saved:
            self.restore()
        start = self.step
        self.lock()
        upto = start if self.saved else None
        self.journal = Log(self.folder, self.stage, upto, self.show)
        if self.kind == "policy":  # a reward model answers nothing
            self.samples = Log(self.folder, f"{self.stage}.samples", upto)
            self.shown = self.shown or self.validation(4)
            if not self.saved:
                watch.sample(self)
        self.peak, self.operations = None, [0]
        if self.device.startswith("cuda"):  # of a CPU, which others share, it would say little
            self.peak = gpu.peak(self.device)
            for network in (model, *kept.values()):
                gpu.count(network, self.operations)
        self.saved = None  # as large as what it was put back into
        networks.trim(model.parameters())
        stop, self.began = stop_signal(), time.time()
        batches = itertools.islice(batches, start, config.steps)
        bar = tqdm(batches, self.stage, config.steps - start, unit=self.unit)
        for self.step, batch in enumerate(bar, start + 1):
            last = self.step == config.steps
            self.due, self.learning = last or self.step % config.every == 0, True
            self.count += 1
            yield self.step, batch
            self.learning = False
            if self.due and self.samples:
                watch.sample(self)
            if self.due or stop:
                self.save(finished=False)
            if stop and not last:
                print(f"stopped after {self.unit} {self.step} and saved: the same with --resume "
                      f"goes on")
                raise KeyboardInterrupt

    def micro(self, batch):
        "The whole of a step's batch, or parts of it of config.micro rows, for memory."
        size = self.config.micro or len(batch)
        return [batch[i:i + size] for i in range(0, len(batch), size)]

    def add(self, **numbers):
        "Numbers of a part of the step: they add up over it. ValueError for one that is not finite."
        check_finite(numbers)
        for name, x in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + x

    def log(self, **fields):
        """A row of the log: means over the steps since the last one of what was added, `fields`,
        and the speed, since this process began to train."""
        seconds = time.time() - self.began
        speed = {"seconds": seconds, "tokens_per_second": self.tokens / seconds}
        if self.peak:
            speed["peak_share"] = self.operations[0] / seconds / self.peak
        row = {name: x / self.count for name, x in self.sums.items()} | fields | speed
        self.sums, self.count = {}, 0
        self.journal.log(self.step, **row)
        self.metrics = {name: x for name, x in row.items() if name not in TIMING}

    def save(self, finished):
        "Write the checkpoint; `finished` says that whatever the run writes is there."
        shipped = finished and self.stage == "base"  # in bf16, and nothing to resume
        state = {name: thing.state_dict() if hasattr(thing, "state_dict") else thing.get_state()
                 for name, thing in self.kept.items()}
        checkpoint.save(
            self.path, self.kind, self.model, self.tokenizer.record,
            {"stage": self.stage, "step": self.step, "finished": finished,
             "config": dataclasses.asdict(self.config), "parents": self.parents,
             "seed": self.config.seed, "metrics": self.metrics,
             "machine": checkpoint.machine(self.device)},
            None if shipped else {"kept": state, "state": self.state, "sums": self.sums,
                                  "count": self.count},
            torch.bfloat16 if shipped else None)

    def answer(self, policy):
        """What a policy answers to the prompts of `shown` -> ids of both, and texts. The random
        numbers are the same every time, so that nothing but the policy makes a difference; the
        temperature is 1, or what the run was told."""
        import model as m

        prompts = [self.tokenizer.prompt(e.prompt) for e in self.shown]
        responses = m.generate(policy, prompts, self.tokenizer.response_tokens,
                               getattr(self.config, "temperature", 1.0), seed=self.config.seed)
        return prompts, responses, [self.tokenizer.decode(r).strip() for r in responses]

    def answers(self, policies):
        "The examples of `shown`; and what each of `policies` answers, and their references: texts."
        found = {name: self.answer(policy)[2] for name, policy in policies.items()}
        return self.shown, found | {"reference": [e.response for e in self.shown]}

    def following(self):
        "The command that goes on from what was made: the next stage, the study, or a look."
        config, stage = self.config, self.stage
        if stage == "base":
            return command("sft.py", config, init=self.path)
        if stage == "sft":
            return command("reward.py", config)
        if stage == "reward":
            variant = dict(reward=self.path, variant=config.variant) if config.variant else {}
            return command("ppo.py", config, init=config.init or None, **variant)
        if config.variant or config.init or getattr(config, "reward", ""):  # not of the study
            init = config.init or self.home / "sft.pt"
            return quoted("python", "-m", "data", "say", init, self.path, "--data", config.data)
        if config.data in data.WORLD:
            return command("rlhf.py", config, seed=None, freeze=None,
                           seeds=config.seed + 1 if config.seed else None)
        return command("-m tests.evaluate", config, seed=None, freeze=None,
                       seeds=config.seed or None)

    def finish(self, last_line, panels, shown, answers, score=None, samples=None):
        """Draw the curves (`panels`, as for `curve`), show and keep the `answers` to the prompts of
        `shown` (as for `side_by_side`; with `score`, else the gold score), save, and say what came
        of it, by a text or a function that gives it, and which command goes on -> the path."""
        picture, log = self.path.with_suffix(".png"), self.journal.path
        curve(picture, files.read_log(log), panels)
        side_by_side(self.folder / (samples or f"{self.stage}.txt"), [e.prompt for e in shown],
                     answers, score or data.gold(self.config.data))
        self.save(finished=True)
        last_line = last_line() if callable(last_line) else last_line
        say(f"{self.stage}: {last_line}\nwrote {self.path}, {log} and {picture}; next: "
            f"{self.following()}")
        return self.path
