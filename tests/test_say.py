"""
What models say: `python -m data say`, at a terminal (a pseudo-terminal, whose child is a copy of
this process), through a pipe, and with what people type by mistake. The models are small and random
and know no language. After each test's name stands the mistake that turns it red.
"""

import codecs
import contextlib
import io
import os
import re
import select
import signal
import struct
import sys
import time

import pytest
import torch

import data
import model as m
import reward
from data import __main__ as commands
from data import bpe, checkpoint, networks, records, say, summarise, weights

pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))  # not on Windows
SIZE = dict(layers=2, heads=2, kv_heads=2, channels=32, hidden=48)
PROMPT = "### Instruction:\nName two tools.\n\n### Response:"


def tokenizer(name="world", prompt_tokens=40, response_tokens=20):
    return data.Tokenizer(name, prompt_tokens, response_tokens)


def network(cls=m.Transformer, seed=0, like=None, **more):
    "Random, of many letters and of 100 ids that end a text, the tokeniser's own among them."
    torch.manual_seed(seed)
    like = like or tokenizer()
    ends = (like.eos, *range(20, 119))
    return cls(m.ModelConfig(vocab_size=like.vocab_size, context=64, eos=ends, **SIZE, **more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "out/instruct/sft.pt, no-kl/ppo.pt and reward.pt; other.pt, of a tokeniser and data of its own."
    folder = tmp_path_factory.mktemp("say")
    bpe.save(folder / "my.bpe", bpe.train(["a cat and a hat"] * 9, 265))
    own = tokenizer(folder / "my.bpe")
    for seed, (name, of, like, name_of_data) in enumerate((
            ("out/instruct/sft", m.Transformer, tokenizer(), "instruct"),
            ("out/instruct/no-kl/ppo", m.Transformer, tokenizer(), "instruct"),
            ("out/instruct/reward", m.ScalarModel, tokenizer(), "instruct"),
            ("other", m.Transformer, own, "my"))):
        checkpoint.save(folder / f"{name}.pt", "reward" if "reward" in name else "policy",
                        network(of, seed, like), like.record,
                        {"config": {"data": name_of_data}, "finished": True})
    return folder


@pytest.fixture
def at(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def asked(path, prompts, temperature=1.0, n=1, seed=0):
    "What m.generate gives: texts, ids and whether they ended, prompt by prompt."
    policy, record = checkpoint.load(path, "policy")
    own = data.Tokenizer.of(record["tokenizer"])
    ids = m.generate(policy, [own.prompt(p) for p in prompts], own.response_tokens, temperature, n,
                     seed)
    return [(say.shown(own.decode(r).strip()), r, r[-1] in policy.config.eos) for r in ids]


def lines_of(name, answers, width):
    "An answer as it is printed, but for scores."
    indent = "\n" + " " * (width + 2)
    return [f"{name:>{width}}  {text.replace(chr(10), indent)}" + "  [no EOS]" * (not ended) + "\n"
            for text, _, ended in answers]


def said(capsys, *argv):
    capsys.readouterr()
    commands.main(["say", *map(str, argv)])
    return capsys.readouterr()


SFT, PPO, REWARD = (f"out/instruct/{name}.pt" for name in ("sft", "no-kl/ppo", "reward"))


# ---- token by token ------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, dict(positions="learned", norm="layer", bias=True)])
def test_one_by_one_they_are_the_tokens_of_generate(changes):
    # a place that is one behind, an EOS that does not end, a random number too many
    policy, prompts, ended = network(**changes), [[5, 6, 7, 8, 9], [300]], set()
    rounded = networks.to_device(network(**changes).requires_grad_(False), "cpu", torch.bfloat16)
    for model, temperature in ((policy, 1.0), (policy, 0.7), (policy, 0), (rounded, 1.0)):
        expected = m.generate(model, prompts, 20, temperature, num_samples=6, seed=3)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            found = [list(say.sampled(model, prompt, 20, temperature, generator))
                     for prompt in prompts for _ in range(6)]
        assert found == expected
        ended |= {response[-1] in policy.config.eos for response in found}
    assert ended == {True, False}


def written(ids, own, monkeypatch):
    "What is printed of ids, in parts."
    parts = []
    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", lambda text, **more: parts.append(text))
        assert say.write(iter(ids), own, "\n  ") == (list(ids), own.decode(ids).strip())
    return parts


def test_letters_are_printed_whole(monkeypatch):  # each token decoded by itself, a tail forgotten
    own = tokenizer()
    for text in ("é 😀 日本 ж\nb ", "a\ufffdb", "a\ufffd\n\ufffd", "\u3000x", " "):
        ids = own.encode(" " + text)
        parts = written(ids, own, monkeypatch)
        assert "".join(parts) == text.strip().replace("\n", "\n  ")
        assert all("\ufffd" not in part for part in parts) or "\ufffd" in text
        cut = "".join(written(ids[:-1], own, monkeypatch))  # perhaps within a letter
        assert cut == own.decode(ids[:-1]).strip().replace("\n", "\n  ")
    parts = written(own.encode(" 😀"), own, monkeypatch)
    assert len(parts) > 3 and [part for part in parts if part] == ["😀"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, 300, (12,), generator=generator).tolist()  # most of them bytes
        whole = say.shown(own.decode(ids).strip()).replace("\n", "\n  ")
        assert "".join(written(ids, own, monkeypatch)) == whole


def test_nothing_drives_the_terminal(monkeypatch, at, capsys):  # a screen that a model clears
    own = tokenizer()
    bad = "a\x1b[2J\x07\x9b1A\r\x7f\u202eb\té\u00a0\n"
    assert say.shown(bad) == "a\\x1b[2J\\x07\\x9b1A\\r\\x7f\\u202eb\\té\u00a0\n"
    assert "".join(written(own.encode(bad), own, monkeypatch)) == say.shown(bad).strip()
    (at / "bad").mkdir(exist_ok=True)
    data.files.write_rows(at / "bad/validation.jsonl", [{"prompt": bad + "?", "response": "x"}])
    assert say.shown(bad) in said(capsys, SFT, "--data", "bad").out


# ---- what is asked, and what stands behind the answers -------------------------------------------


def test_several_checkpoints_answer_below_each_other(at, capsys):  # one that answers for all
    found = said(capsys, SFT, PPO, "--prompt", PROMPT, "-n", 3, "--seed", 5, "--temperature", 0.8)
    expected = [line for name, path in (("sft", SFT), ("no-kl/ppo", PPO))
                for line in lines_of(name, asked(path, [PROMPT], 0.8, 3, 5), 9)]
    assert found.out == "".join(expected) and found.out.count("no-kl/ppo  ") == 3


def test_prompts_of_a_split_with_their_scores(at, capsys, monkeypatch):
    # the gold score of another prompt, a proxy with a second EOS, a split's prompts at random
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(say, "gold", {"instruct": lambda *texts: hash(texts) % 99}.get)
    found = said(capsys, SFT, "--data", "instruct", "--split", "broad", "-n", 2, "--reward", REWARD)
    prompts = [e.prompt for e in data.load("instruct", "broad", 2)]
    judge = reward.scorer(checkpoint.load(REWARD, "reward")[0], tokenizer().pad)
    expected = ""
    for prompt, (text, ids, ended), line in zip(prompts, asked(SFT, prompts), lines_of(
            "sft", asked(SFT, prompts), 3)):
        notes = [] if ended else ["no EOS"]
        notes += [f"gold {hash((prompt, text)) % 99:.2f}",
                  f"proxy {judge([tokenizer().prompt(prompt)], [ids])[0]:.2f}"]
        line = line.removesuffix("\n").removesuffix("  [no EOS]")
        expected += f"{'-' * 40}\n{prompt}\n{line}  [{', '.join(notes)}]\n"
    assert found.out == expected and not found.err


def test_a_line_is_asked_as_the_models_data_would(at, capsys, monkeypatch):
    # a prompt sign in a file, an answer to an empty line, instructions that look like no training
    lines = ["Name two tools.", "", " \t ", "Name a fruit.\n"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    found = said(capsys, SFT, "other.pt")
    whole = [PROMPT, PROMPT.replace("two tools", "a fruit")]
    pairs = zip(lines_of("out/instruct/sft", asked(SFT, whole), 16),
                lines_of("other", asked("other.pt", [lines[0], lines[3]]), 16))
    assert found.out == "".join(line for pair in pairs for line in pair)
    assert found.err == ("asked, with the prompt for {}: '### Instruction:\\n{}\\n\\n### Response:'"
                         "\n")


def test_templates_are_those_of_the_data():  # a cue that no model has seen
    as_read = lambda **row: records.record({**row, "summary": "s", "output": "o"}, "", False).prompt
    post = as_read(subreddit="relationships", title="Is this normal?", post="x\ny")
    assert say.asked("x\ny", say.TEMPLATES["tldr"]) == post
    assert say.asked("x", say.TEMPLATES["alpaca"]) == as_read(instruction="x")
    dialogue = records.record({"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": ""}, "", False)
    assert say.asked("x", say.TEMPLATES["hh"]) == dialogue.prompt
    for example in data.load("instruct", "validation", 20):
        text = re.search(r":\n(.*)\n\n", example.prompt, re.S)[1]
        assert say.asked(text, say.TEMPLATES["instruct"]) == example.prompt
        assert say.asked(example.prompt + " ", say.TEMPLATES["instruct"]) == example.prompt + " "
    for example in data.load("summarise", "validation", 20):
        text = re.search(r"POST: (.*)\n", example.prompt, re.S)[1]
        again = say.asked(text, say.TEMPLATES["summarise"])
        assert summarise.truth(again)[0] == summarise.truth(example.prompt)[0]
    assert say.asked("{x} {}", "{}") == "{x} {}" and say.asked(" ", say.TEMPLATES["hh"]) == " "


def test_a_long_prompt_is_cut_and_that_is_said(at, capsys):  # a row that is no row of training
    long = PROMPT.replace("two", "two " * 60)
    found = said(capsys, SFT, "--prompt", long, "-n", 1)
    assert found.out == lines_of("sft", asked(SFT, [long]), 3)[0]
    assert found.err.endswith("1 of 1 prompts were cut to --prompt-tokens 40\n")


def test_a_pretrained_folder_answers(at, capsys):  # a prompt for which its context has no room
    pytest.importorskip("safetensors"), pytest.importorskip("tokenizers")
    weights.write(network(), tokenizer(), at / "hub")
    found = said(capsys, "hub", "--prompt", "cat " * 50, "-n", 2)
    policy, own = checkpoint.load_pretrained("hub", prompt_tokens=16)
    ids = m.generate(policy, [own.prompt("cat " * 50)], 48, num_samples=2)
    texts = [say.shown(own.decode(r).strip()).replace("\n", "\n     ") for r in ids]
    assert [line.startswith(f"hub  {text}") for line, text in zip(
        re.split(r"(?m)^(?=hub)", found.out)[1:], texts)] == [True, True]
    assert "cut to --prompt-tokens 16" in found.err and "asked" not in found.err


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv, words", [
    ([REWARD, "--prompt", "x"], f"error: {REWARD} is a reward, not a policy"),
    ([SFT, "other.pt", "--reward", REWARD, "--prompt", "x"], "made with another tokenizer"),
    ([SFT, "--reward", PPO, "--prompt", "x"], f"{PPO} is a policy, not a reward"),
    ([SFT, "a prompt"], "error: a prompt does not exist"),
    ([SFT, "--prompt", "x", "--data", "instruct"], "error: give --prompt, or --data"),
    ([SFT, "--split", "id"], "error: give --prompt, or --data"),
    ([SFT, "--prompt", " \n"], "error: the prompt is empty"),
    ([SFT, "--data", "instruct", "--split", "none"], "has no split 'none': choose from"),
    ([SFT, "--prompt", "x", "-n", "0"], "error: -n 0 is impossible"),
    ([SFT, "--prompt", "x", "--temperature", "-1"], "error: --temperature -1.0 is impossible"),
    ([SFT, "--prompt", "x", "--temperature", "nan"], "error: --temperature nan is impossible"),
    ([SFT, "--prompt", "x", "--seed", "-1"], "error: --seed -1 is impossible"),
    ([], "error: the following arguments are required: checkpoint")])
def test_mistakes_are_one_sentence(argv, words, at, mistake, monkeypatch):
    # a reward model that scores the ids of others, a temperature below nothing
    monkeypatch.setattr(say, "TEMPLATES", {})  # whose use is said on stderr
    assert words in mistake(commands.main, ["say", *argv])


def test_bytes_that_are_no_letters(at, capsys, monkeypatch):  # a traceback of a decoder
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with contextlib.redirect_stdout(console):
        commands.main(["say", "other.pt"])
    console.flush()
    (answer,) = lines_of("other", asked("other.pt", ["caf\ufffd"]), 5)
    assert console.buffer.getvalue().decode() == answer.encode("ascii", "replace").decode()


# ---- at a terminal -------------------------------------------------------------------------------


class Terminal:
    "A command in a process of its own, at a terminal of 40 columns; each token takes a while."

    def __init__(self, *argv, encoding="utf-8", seconds=0.0):
        self.seen, self.letters = "", codecs.getincrementaldecoder("utf-8")()
        self.pid, self.screen = pty.fork()
        if self.pid:
            fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
            return
        code = 3  # of what should not be
        try:  # the copy of this process, which pytest is not to hear of
            os.environ["TERM"] = "dumb"
            sys.modules.pop("readline", None)  # without which the arrow keys bring nothing back
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)
            sys.stdin, sys.stdout, sys.stderr = (
                open(number, mode, encoding=encoding, closefd=False, buffering=1)
                for number, mode in enumerate("rww"))
            choose = m.choose
            m.choose = lambda *args: time.sleep(seconds) or choose(*args)
            commands.main(["say", *argv])
            code = 0 if "readline" in sys.modules else 4
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.stdout.flush()
            os._exit(code)

    def type(self, text):
        os.write(self.screen, text.encode())

    def until(self, text):
        "What comes up to a text, which must come."
        end = time.monotonic() + 60
        while text not in self.seen and select.select([self.screen], [], [], 60)[0]:
            try:
                came = self.letters.decode(os.read(self.screen, 4096))  # half a letter, too
                self.seen += came.replace("\r\n", "\n")
            except OSError:  # how a terminal's end is told on Linux
                break
            assert time.monotonic() < end, self.seen
        before, found, self.seen = self.seen.partition(text)
        assert found, before
        return before

    def left(self, key=""):
        """The exit code, and what else came. A key is typed again after seconds of silence: Python
        hears a Ctrl-C between the prompt and the reading of a line only with the next one."""
        with contextlib.suppress(OSError):
            while True:
                if key and not select.select([self.screen], [], [], 5)[0]:
                    self.type(key)
                elif part := os.read(self.screen, 4096):
                    self.seen += part.decode().replace("\r\n", "\n")
                else:
                    break
        os.close(self.screen)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), self.seen


def test_a_session(at):
    # a Ctrl-C that ends it or is not heard, a history without what was typed, a sign on Ctrl-D's
    prompts = [PROMPT, PROMPT, PROMPT.replace("Name two tools.", "Is it \x1b[2J?")]
    seed = next(s for s in range(99) if not any(asked(SFT, prompts, seed=s)[2][2:]))  # a long one
    expected = lines_of("sft", asked(SFT, prompts, seed=seed), 3)
    terminal = Terminal(SFT, "--seed", str(seed), seconds=0.02)
    assert "### Instruction" in terminal.until("Ctrl-D leaves.\n> ")
    terminal.type("Name two tools.\n")
    terminal.until("Name two tools.\n")  # perhaps drawn anew by readline
    assert terminal.until("\n> ") + "\n" == expected[0]
    terminal.type(" \n\x10\x10\n")  # nothing, then two lines up, as with the arrow key
    terminal.until("Name two tools.\n")
    assert terminal.until("\n> ") + "\n" == expected[1]
    terminal.type("Is it \x16\x1b[2J?\n")  # ^V: an escape as such
    terminal.until(expected[2][:9])
    terminal.type("\x03")
    rest = terminal.until("\n> ").replace("^C", "")
    assert expected[2][9:].startswith(rest) and len(rest) < len(expected[2]) - 30
    terminal.type("Name two tools.\n")
    terminal.until("sft  "), terminal.until("\n> ")
    terminal.type("\x04")
    assert terminal.left() == (0, "\n")


def test_a_poor_terminal(at):  # a letter that it lacks ends it, Ctrl-C at the line is a traceback
    terminal = Terminal("other.pt", encoding="ascii")
    terminal.until("> ")
    terminal.type("caf\u00e9\n")
    terminal.until("other  ")
    terminal.until("\n> ")
    terminal.type("\x03")
    code, rest = terminal.left("\x03")
    assert code == 130 and rest.replace("^C", "") == "\n"
