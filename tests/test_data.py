"""Text and token ids: what the models are fed is what the records say."""

import base64
import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex
import torch
from tiktoken.load import load_tiktoken_bpe

import data
from data import __main__ as look
from data import bpe, files

ROOT = Path(__file__).parent.parent
CORPUS = [
    "the cat sat on the mat, the rat ate the cat's hat\n\n",
    "TITLE: my boss\nPOST: I told my boss that I quit and now I do not know.\nTL;DR: I quit",
    "aaaa aaaaa bababab ababab 1234 12345 !!?? naïve café",
]
UNICODE = [
    "", " ", "\n\n \t", "naïve Ærø ß", "日本語のテキスト", "👩‍👩‍👧 🏳️‍🌈", "مرحبا بالعالم",
    "a\u0301\u0000\x7f", "\U0010ffff\ufeff\u2028", "<|endoftext|> quoted",
    "don't we'll I'M", "x" * 5000,
    "".join(map(chr, range(0x3000))),
]


BLANKS = ["a" + blank * 1_100_000 + "b" for blank in (" ", "\t\n", "\u3000")]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A small vocabulary on disk."""
    path = tmp_path_factory.mktemp("bpe") / "small.bpe"
    bpe.save(path, bpe.train(CORPUS, 320))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return data.Tokenizer(path)


def write(path, rows):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)
    return path


# ---- the BPE trainer


def naive(texts, vocab_size):
    """The definition: recount everything after every merge."""
    words = Counter(w for text in texts for w in regex.findall(bpe.PATTERN, text))
    words = [([bytes([b]) for b in w.encode()], n) for w, n in words.items()]
    ranks = {bytes([b]): b for b in range(256)}
    while len(ranks) < vocab_size - 1:
        counts = Counter()
        for word, n in words:
            for pair in zip(word, word[1:]):
                counts[pair] += n
        a, b = min(counts, key=lambda pair: (-counts[pair], pair))
        for word, _ in words:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i : i + 2] = [a + b]
                i += 1
        ranks[a + b] = len(ranks)
    return ranks


def test_trainer_equals_the_definition():
    assert bpe.train(CORPUS, 330) == naive(CORPUS, 330)
    rng = random.Random(0)
    for _ in range(20):  # few letters and short texts: many ties and overlaps
        texts = [" ".join("".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(30))]
        assert bpe.train(texts, 290) == naive(texts, 290)


@pytest.mark.parametrize("text", [
    *CORPUS, *UNICODE[:-1], "snake_case __x__ a_1 _'s 'sup I'd've\t\n x"])
def test_words_are_cut_as_by_tiktoken(text):  # an underscore in a word, a blank lost, 's cut off
    words = bpe.WORDS.findall(text)
    assert words == regex.findall(bpe.PATTERN, text) and "".join(words) == text


def test_vocabulary_has_the_size_asked_for_and_starts_with_the_bytes():
    ranks = bpe.train(CORPUS, 300)
    assert sorted(ranks.values()) == list(range(299))
    assert all(ranks[bytes([b])] == b for b in range(256))
    assert bpe.train(CORPUS, 257) == {bytes([b]): b for b in range(256)}


def test_merges_worked_by_hand():
    # " ab" x2, "ab" x1: (a, b) 3 times, ( , a) twice; then ( , ab) twice.
    ranks = bpe.train(["ab ab ab"], 259)
    assert ranks[b"ab"] == 256 and ranks[b" ab"] == 257


@pytest.mark.parametrize("size, words", [(256, "at least 257"), (400, "yields only")])
def test_impossible_vocabulary_sizes_are_refused(size, words):
    with pytest.raises(ValueError, match=words):
        bpe.train(["abab"], size)


def test_tiktoken_reads_the_file(path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert load_tiktoken_bpe(str(path)) == bpe.load(path)


@pytest.mark.parametrize("edit, words", [
    (lambda lines: lines[:100] + [b"no"] + lines[100:], "line 101"),
    (lambda lines: lines[:100] + [b"@@@ 100"] + lines[100:], "line 101"),
    (lambda lines: lines[:-2] + lines[-1:], "without gaps"),
    (lambda lines: [base64.b64encode(b"zzz") + b" 0"] + lines[1:], "single bytes"),
])
def test_broken_vocabulary_files_are_refused(path, tmp_path, edit, words):
    broken = tmp_path / "broken.bpe"
    broken.write_bytes(b"\n".join(edit(path.read_bytes().splitlines())))
    with pytest.raises(ValueError, match=words):
        data.Tokenizer(broken)


def test_bpe_command_reads_every_kind_of_file(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "the cat", "response": "sat on the mat", "id": 3}])
    write(tmp_path / "b.jsonl.gz", [{"chosen": "the rat", "rejected": "the hat", "post": None}])
    (tmp_path / "c.txt").write_text("the\n\nbat\n" + BLANKS[0])
    paths = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl.gz", "c.txt")]
    found = [text for name in paths for text in bpe.read(name)]
    assert found == ["the cat", "sat on the mat", "the rat", "the hat", "the\n\nbat\n" + BLANKS[0]]
    command = [sys.executable, "-m", "data.bpe", *paths, "--vocab", "262", "--out"]
    done = subprocess.run([*command, str(tmp_path / "out.bpe")], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0 and "RuntimeWarning" not in done.stderr
    assert done.stdout.startswith("262 tokens, ") and done.stdout.count("\n") == 1
    assert bpe.load(tmp_path / "out.bpe") == bpe.train(found, 262)


# ---- the tokeniser


def test_any_text_round_trips(tokenizer):
    for text in UNICODE + CORPUS + BLANKS:  # of a million, tiktoken panics
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(" " * 99_999 + "a b")[:9] == tokenizer.encode(" " * 9)
    assert tokenizer.decode(tokenizer.encode("lone \ud800 half")) == "lone \ufffd half"


def test_ids_are_laid_out_as_documented(tokenizer):
    assert (tokenizer.vocab_size, tokenizer.eos, tokenizer.pad) == (320, 319, 320)
    assert tokenizer.bos is None
    assert tokenizer.eos not in tokenizer.encode("quoting <|endoftext|> is no end")
    ids = tokenizer.encode("a cat")
    assert tokenizer.decode([tokenizer.pad, *ids, tokenizer.eos, tokenizer.pad]) == "a cat"
    assert tokenizer.decode(torch.tensor(ids)) == "a cat"


def test_fingerprint_tells_vocabularies_apart(path, tokenizer, tmp_path):
    swapped = bpe.load(path)
    a, b = list(swapped)[-2:]
    swapped[a], swapped[b] = swapped[b], swapped[a]
    bpe.save(tmp_path / "swapped.bpe", swapped)
    assert data.Tokenizer(path).fingerprint == tokenizer.fingerprint
    assert len(tokenizer.fingerprint) == 16
    assert data.Tokenizer(tmp_path / "swapped.bpe").fingerprint != tokenizer.fingerprint


def test_a_checkpoint_record_makes_the_same_tokeniser(path, tokenizer):
    again = data.Tokenizer.of(data.Tokenizer(path, 30, 9).record)
    assert again.fingerprint == tokenizer.fingerprint
    long = "the cat sat on the mat " * 20
    assert (len(again.prompt(long)), len(again.response(long))) == (30, 9)
    with pytest.raises(ValueError, match="has changed"):
        data.Tokenizer.of({**tokenizer.record, "fingerprint": "0" * 16})


def test_missing_vocabulary_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m data.bpe"):
        data.Tokenizer(tmp_path / "none.bpe")


# ---- templates


PROMPT = "TITLE: my boss\nPOST: " + "I told my boss that I quit. " * 20 + "\nTL;DR:"


def test_short_prompts_are_left_alone(tokenizer):
    ids = data.encode_prompt(tokenizer, PROMPT, 10_000)
    assert ids == tokenizer.encode(PROMPT)
    assert data.encode_prompt(tokenizer, PROMPT, len(ids)) == ids
    assert data.encode_prompt(tokenizer, PROMPT + " \n", 10_000) == ids


@pytest.mark.parametrize("bos", [None, 7])
def test_cue_survives_truncation(path, bos):
    tokenizer = data.Tokenizer(path)
    tokenizer.bos = bos
    cue = tokenizer.encode("\nTL;DR:")
    start = [] if bos is None else [bos]
    for room in (len(cue) + len(start), 20, 60):
        ids = data.encode_prompt(tokenizer, PROMPT, room)
        assert len(ids) == room and ids[-len(cue) :] == cue and ids[: len(start)] == start
        head = tokenizer.encode(PROMPT)[: room - len(cue) - len(start)]
        assert ids[len(start) : -len(cue)] == head  # the tail of the post is what went
    blank = data.encode_prompt(tokenizer, PROMPT.replace("\nTL;DR:", "\n\n### Response:"), 60)
    assert tokenizer.decode(blank[len(start):]).endswith("\n\n### Response:")
    one_line = "I told my boss that I quit. " * 20
    assert data.encode_prompt(tokenizer, one_line, 9) == (start + tokenizer.encode(one_line))[:9]


@pytest.mark.parametrize("asks, answers, end", [
    ("Human:", "Assistant:", "\n\n"), ("User:", "Bot:", "\n"), ("Q:", "A:", "\n\n"),
    ("### Instruction:\n", "### Response:\n", "\n\n"), ("**User:**", "**Assistant:**", "\n"),
    ("USER:", "ASSISTANT:", " "), ("[INST]", "[/INST]", " "),
    ("<|user|>\n", "<|assistant|>\n", "</s>\n"),
    ("<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
    ("<|start_header_id|>user<|end_header_id|>\n\n",
     "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    ("<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>\n")])
def test_dialogues_lose_their_oldest_turns(tokenizer, asks, answers, end):
    # the last question, which stands before the last line as the end of a post does
    encode = lambda text: tokenizer.encode(text.rstrip())
    turns = [part for n in range(9) for part in (f"{asks} the cat {n}?\nit sat{end}",
                                                 f"{answers} rat {n}.\n\nA mat{end}")]
    turns += [f"{asks} told my boss\nI quit?{end}", answers]
    whole, last, cue = "a mat" + end + "".join(turns), "".join(turns[-2:]), encode(end + answers)
    for room in range(len(cue), len(encode(whole)), 7):
        ids = data.encode_prompt(tokenizer, whole, room)
        fit = ["".join(turns[n:]) for n in range(len(turns) - 1)
               if len(encode("".join(turns[n:]))) <= room]
        assert len(ids) <= room and (not fit or ids == encode(fit[0]))
        if not fit:  # the last question loses its end
            kept = tokenizer.decode(ids[:-len(tokenizer.encode(answers.rstrip()))])
            assert last.startswith(kept.rstrip()[:len(asks) + 9]), kept
            assert tokenizer.decode(ids).endswith(answers.rstrip())
    blank = data.encode_prompt(tokenizer, "\n\n" + "".join(turns), len(encode(last)) + 9)
    assert tokenizer.decode(blank) == "\n\n" + last.rstrip()  # as hh's begin
    once = "a mat\n" + asks + " the cat?" * 99 + end + answers  # no answer yet: cut as a post
    assert tokenizer.decode(data.encode_prompt(tokenizer, once, 60)).startswith("a mat")


def test_cut_prompts_are_counted(path, capsys):
    tokenizer = data.Tokenizer(path, 20)
    assert tokenizer.prompts(["a cat", PROMPT, PROMPT + "\nTL;DR:"])[1] == tokenizer.prompt(PROMPT)
    assert tokenizer.prompts(["a cat"]) and tokenizer.prompts([PROMPT])
    said = capsys.readouterr()
    assert not said.out and [line.partition(" were")[0] for line in said.err.splitlines()] == [
        "2 of 3 prompts", "1 of 1 prompts"]


def test_cut_responses_are_counted(path, capsys):  # one that just fits, or each time it is asked
    tokenizer = data.Tokenizer(path, 20)
    text = "the cat sat on the mat"
    ids = tokenizer.encode(" " + text)
    tokenizer.response_tokens = len(ids)
    texts = [text, tokenizer.decode(ids[:-1]), "", text + " and on the mat"]
    assert tokenizer.response(texts[1]) == [*ids[:-1], tokenizer.eos]
    assert tokenizer.responses(texts) == [tokenizer.response(x) for x in texts]
    said = capsys.readouterr()
    assert not said.out and said.err == (
        f"2 of 4 responses were cut to --response-tokens {tokenizer.response_tokens}\n")


def test_empty_prompts_are_refused(tokenizer):
    for prompt in ("", " \n "):
        with pytest.raises(ValueError, match="empty"):
            data.encode_prompt(tokenizer, prompt, 10)
    with pytest.raises(ValueError, match="at least 1"):
        data.encode_prompt(tokenizer, "a", 0)


def test_eos_survives_truncation(tokenizer):
    whole = tokenizer.encode(" the cat sat on the mat")
    encode = lambda text, room: data.encode_response(tokenizer, text, room)
    assert encode("the cat sat on the mat", 100) == [*whole, tokenizer.eos]
    assert encode("  the cat sat on the mat\n", 100) == [*whole, tokenizer.eos]
    assert encode("the cat sat on the mat", len(whole)) == [*whole[:-1], tokenizer.eos]
    assert encode("the cat", 1) == [tokenizer.eos]
    assert encode("", 5) == encode(" \n", 5) == [tokenizer.eos]
    with pytest.raises(ValueError, match="room for EOS"):
        encode("a", 0)


def test_masks_decode_to_the_response(tokenizer):
    pairs = [("a cat", "sat on the mat"), ("the rat ate the hat", "no"), ("x", "")]
    prompts = [data.encode_prompt(tokenizer, p, 50) for p, _ in pairs]
    responses = [data.encode_response(tokenizer, r, 50) for _, r in pairs]
    ids, positions, is_response = data.join(prompts, responses, tokenizer.pad)
    longest = max(map(len, responses))
    assert ids.shape == (3, max(len(p) + len(r) for p, r in zip(prompts, responses)))
    assert positions.shape == is_response.shape == (3, longest)
    gathered = ids.gather(1, positions)  # (B, R); also proves that padding is safe to gather
    for b, (_, r) in enumerate(pairs):
        assert gathered[b][is_response[b]].tolist() == responses[b]
        assert tokenizer.decode(gathered[b][is_response[b]]).strip() == r
        assert ids[b, : len(prompts[b])].tolist() == prompts[b]
        assert (ids[b, len(prompts[b]) + len(responses[b]) :] == tokenizer.pad).all()
    assert not (gathered == tokenizer.pad).any()
    with pytest.raises(ValueError, match="at least one token"):
        data.join([[]], [[1]], 9)


@pytest.mark.parametrize("batch_size, together, rows", [(1, 1, 7), (3, 2, 5), (128, 16, 4)])
def test_responses_to_one_prompt_share_a_row(batch_size, together, rows):  # one lost, or elsewhere
    prompts = [[1], [1], [2, 2], [1], [1], [1], [3]]
    responses = [[5], [6, 6], [7], [8, 8, 8], [5], [9], [4, 4]]
    seen, count = {}, 0
    for places, ids, segment, (row, column) in data.shared_rows(prompts, responses, 0, batch_size,
                                                                together):
        count += len(ids)
        assert len(places) <= max(batch_size, together)
        assert segment.max() <= together and ((ids == 0) == (segment < 0)).all()
        for i, b, end in zip(places, row, column, strict=True):
            assert ids[b][segment[b] == 0].tolist() == prompts[i]
            assert ids[b][segment[b] == segment[b, end]].tolist() == responses[i]
            assert i not in seen
            seen[i] = True
    assert sorted(seen) == list(range(7)) and count == rows


def test_where_the_tokens_of_shared_rows_are_predicted():  # from the end of another response
    _, segment, _ = data.join_groups([[1, 2, 3], [4]], [[[5, 6], [7], [8, 9]], [[5]]], 0)
    found = data.predicted_at(segment)
    assert found[0, 1:].tolist() == [0, 1, 2, 3, 2, 2, 6] and found[1, 1] == 0


def test_pad_right_by_hand():
    assert data.pad_right([[1, 2], [], [3]], 9).tolist() == [[1, 2], [9, 9], [3, 9]]
    assert data.pad_right([], 9).shape == (0, 0)
    assert data.pad_right([[]], 9).dtype == torch.long


# ---- batches


@pytest.mark.parametrize("n", [0, 1, 7, 8, 1000])
def test_batches_cover_each_index_once(n):
    rng = random.Random(n)
    lengths = [rng.randint(1, 300) for _ in range(n)]
    for generator in (None, torch.Generator().manual_seed(1)):
        cut = data.batches(lengths, 8, generator)
        assert sorted(i for batch in cut for i in batch) == list(range(n))
        assert all(1 <= len(batch) <= 8 for batch in cut)
        assert len(cut) == -(-n // 8)


def test_batches_are_random_repeatable_and_waste_little():
    rng = random.Random(0)
    lengths = [rng.randint(1, 300) for _ in range(1000)]
    one, same, other = (
        data.batches(lengths, 8, torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert one == same != other
    assert set(map(tuple, one)) != set(map(tuple, other))  # not just in another order
    padded = sum(8 * max(lengths[i] for i in batch) for batch in one)
    assert padded < 1.1 * sum(lengths)  # unsorted batches of 8 would waste over 70 %
    first = [max(lengths[i] for i in batch) for batch in one]
    assert first != sorted(first)
    plain = [lengths[i] for batch in data.batches(lengths, 8) for i in batch]
    assert plain == sorted(lengths)


def test_epochs_go_on_in_new_orders():
    lengths = list(range(20))
    stream = data.epochs(lengths, 8, seed=0)
    first, second = ([next(stream), next(stream)] for _ in range(2))  # 20 // 8 whole batches each
    assert first != second
    for epoch in (first, second):
        assert [len(batch) for batch in epoch] == [8, 8]
        assert len({i for batch in epoch for i in batch}) == 16
    again = data.epochs(lengths, 8, seed=0)
    assert [next(again) for _ in range(4)] == first + second
    assert next(data.epochs(lengths[:3], 8, seed=0)) == [0, 1, 2]  # fewer rows than a batch


# ---- records


def test_folder_of_splits(tmp_path):
    rows = [{"prompt": f"p{i}", "response": f"r{i}", "site": i} for i in range(30)]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "odd.jsonl.gz", [{"prompt": "p", "reference": "", "id": None}])
    write(tmp_path / "text.jsonl", [{"text": "raw"}])
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "by": "x"}
    write(tmp_path / "comparisons.train.jsonl.gz", [pair])
    found = data.load(tmp_path, "train")
    assert found == [data.Example(f"p{i}", f"r{i}", {"site": i}) for i in range(30)]
    assert data.load(str(tmp_path), "odd") == [data.Example("p", "", {"id": None})]
    expected = [data.Comparison("p", "a", "b", {"by": "x"})]
    assert data.comparisons(tmp_path, "train") == expected
    some = data.load(tmp_path, "train", n=5, seed=3)
    assert len(some) == 5 and all(e in found for e in some)
    assert some == data.load(tmp_path, "train", 5, 3) != data.load(tmp_path, "train", 5, 4)
    assert data.load(tmp_path, "train", n=99) == found
    raw = data.texts(tmp_path)
    assert sorted(raw) == sorted([("raw",)] + [(f"p{i} r{i}",) for i in range(30)])
    assert data.texts(tmp_path, 4, seed=1) == data.texts(tmp_path, seed=1)[:4]
    with pytest.raises(ValueError, match="no split 'test': choose from odd, train$"):
        data.load(tmp_path, "test")
    with pytest.raises(ValueError, match="no split 'odd': choose from train$"):
        data.comparisons(tmp_path, "odd")


def test_one_file_is_split_by_its_prompts(tmp_path):
    rows = [{"prompt": f"prompt {i // 2}", "response": str(i)} for i in range(4000)]
    path = write(tmp_path / "all.jsonl", rows)
    parts = {split: data.load(path, split) for split in ("train", "validation", "test")}
    everything = sorted(int(e.response) for part in parts.values() for e in part)
    assert everything == list(range(4000))
    prompts = [{e.prompt for e in part} for part in parts.values()]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert 130 < len(parts["validation"]) < 270 and 130 < len(parts["test"]) < 270
    backwards = write(tmp_path / "backwards.jsonl", rows[::-1])
    assert {e.response for e in data.load(backwards, "test")} == {e.response for e in parts["test"]}
    with pytest.raises(ValueError, match="choose from train, validation, test"):
        data.load(path, "dev")


GOOD = b'{"prompt": "p", "response": "r"}\n'


@pytest.mark.parametrize("line, words", [
    (b'{"prompt": "p", "resp', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'["p", "r"]', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"prompt": "p"}', 'no "response"'),
    (b'{"response": "r"}', 'no "prompt"'),
    (b'{"prompt": "p", "response": 3}', '"response" is not text but 3'),
    (b'{"prompt": null, "response": "r"}', '"prompt" is not text'),
    (b'{"prompt": " ", "response": "r"}', "the prompt is empty"),
    (b'{"prompt": "caf\xe9", "response": "r"}', "not UTF-8"),
])
def test_bad_rows_are_named(tmp_path, line, words):
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(ValueError, match=words) as error:
        data.load(tmp_path, "train")
    assert f"{path}, line 3: " in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("row, words", [
    ({"prompt": "p", "chosen": "a"}, 'no "rejected"'),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "empty"),
])
def test_bad_comparisons_are_named(tmp_path, row, words):
    write(tmp_path / "comparisons.train.jsonl", [row])
    with pytest.raises(ValueError, match=words) as error:
        data.comparisons(tmp_path, "train")
    assert "line 1: " in str(error.value)


def test_comparisons_of_equal_texts(tmp_path, capsys):  # a run refused for one of thousands, or
    # trained on what says nothing
    row = {"prompt": "p", "chosen": "a", "rejected": "a "}
    write(tmp_path / "comparisons.train.jsonl", [row, row | {"rejected": "b"}])
    assert data.comparisons(tmp_path, "train") == [data.Comparison("p", "a", "b")]
    said = capsys.readouterr().err
    assert "1 of 2 comparisons prefer nothing" in said and "line 1)" in said
    with pytest.raises(ValueError, match="line 7: .*equal"):
        data.comparison(row, "line 7")


CSV = b"prompt,response\n"


@pytest.mark.parametrize("content, words", [
    (CSV + b"p,r\np,r, so\n", "line 3: 3 cells"), (CSV + b"p,r\np\n", "line 3: 1 cells"),
    (CSV + b"p,r,\n" * 3, "line 2: 3 cells"), (CSV + b'"a\n\nb",r\np,r,x\n', "line 5: 3 cells"),
    (CSV + b'p,r\np,"r\np,r\n', "line 3: not CSV"), (CSV + b'"p" said,r\n', "line 2: not CSV"),
    (b"prompt,response,response\np,r,r\n", "line 1: .*a name of its own"),
    (CSV + "p,ré\n".encode("latin-1"), "line 2: not UTF-8"),
    (CSV.decode().encode("utf-16"), "line 1: not UTF-8"),
    (CSV + b"p," + b"x" * files.LONGEST, "line 2: more text"),
    (CSV + b'p,"' + (b"x" * 999 + b"\n") * (files.LONGEST // 999), "line 2: not CSV .field larger"),
])
def test_bad_csv_is_named(tmp_path, content, words):  # columns shifted in silence, an empty answer,
    # a sentence without the file, a traceback
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        data.load(tmp_path, "train")
    assert f"{tmp_path / 'train.csv'}, line" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [
    b",prompt,response\n0,p,r\n1,p,r\n", CSV[:-1] + b",\np,r,\np,r,\n",
    b"\xef\xbb\xbf\r\n" + CSV + b"\r\np,r\r\n\np,r"])
def test_csv_of_other_programs(tmp_path, content):  # pandas' index, a comma at every end, a mark
    folder = tmp_path / "data [v2]"  # taken for a pattern
    folder.mkdir()
    (folder / "train.csv").write_bytes(content)
    assert data.load(folder, "train") == [data.Example("p", "r")] * 2
    (folder / "train.csv").write_bytes(CSV + b"p," + b"x" * 200_000)  # more than csv's own limit
    assert len(data.load(folder, "train")[0].response) == 200_000


def test_what_lies_beside_the_files(tmp_path):  # a shifted split of macOS's, an editor's or mine
    for name in ("train.jsonl", "test.jsonl", "other.v2.csv", "._other.jsonl", ".test.jsonl",
                 "~$test.csv", "test (1).jsonl", "Copy of test.jsonl", "test.jsonl~",
                 "#test.jsonl#", ".#test.jsonl", "test.jsonl.bak", "Thumbs.db", ".DS_Store",
                 "._comparisons.test.jsonl"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7" if "_" in name else GOOD)
    assert tuple(data.tables(tmp_path)) == ("other.v2", "test", "train")
    assert data.test_splits(tmp_path) == ("test", "other.v2")
    assert data.tables(tmp_path, pairs=True) == {}
    (tmp_path / "test.csv").write_bytes(CSV)
    with pytest.raises(ValueError, match="test.csv and .*test.jsonl are one split"):
        data.load(tmp_path, "train")


def test_nothing_to_read_is_an_error(tmp_path, capsys):  # a stage that waits for a row for ever
    for name in ("train.jsonl", "test.jsonl.gz", "other.csv", "comparisons.train.jsonl"):
        write(tmp_path / name, [])
    (tmp_path / "head.csv").write_bytes(CSV)
    for name in ("train", "test", "other", "head"):
        with pytest.raises(ValueError, match=f"{name}.* no examples for .*: add some"):
            data.load(tmp_path, name)
    with pytest.raises(ValueError, match="no comparisons"):
        data.comparisons(tmp_path, "train")
    for read in (data.prompts, data.texts, look.main):
        with pytest.raises((ValueError, SystemExit)) as error:
            read([str(tmp_path)] if read == look.main else tmp_path)
        assert "no examples" in f"{error.value}{capsys.readouterr().err}"
    write(tmp_path / "text.jsonl", [{"text": "raw"}])
    (tmp_path / "train.jsonl").unlink()
    assert data.texts(tmp_path) == [("raw",)]


def test_broken_gzip_is_named(tmp_path):
    rows = [{"prompt": str(random.Random(i).random()), "response": "r"} for i in range(3000)]
    path = write(tmp_path / "train.jsonl.gz", rows)
    whole = path.read_bytes()
    damaged = whole[:1000] + bytes(64) + whole[1064:]
    for content in (whole[:-500], b"plain text", damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train.jsonl.gz, .*broken gzip|not JSON|not UTF-8"):
            data.load(tmp_path, "train")


def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 2)
    assert data.load(tmp_path, "train") == [data.Example("p", "r")] * 2


def test_other_sources_are_refused(tmp_path):
    for name in (tmp_path / "x.txt", "somewhere"):
        with pytest.raises(ValueError, match="no dataset .*(somewhere|x.txt): give summ"):
            data.load(name, "train")
    for name in ("none.jsonl", "none.csv"):
        with pytest.raises(FileNotFoundError):
            data.load(tmp_path / name, "train")
    with pytest.raises(ValueError, match="holds no"):
        data.load(tmp_path, "train")
    with pytest.raises(ValueError, match="reward.py collects them"):
        data.comparisons("summarise", "train")


def test_run_folders(tmp_path):
    assert data.run_folder("summarise") == Path("out/summarise")
    assert data.run_folder("instruct", 2, tmp_path) == tmp_path / "instruct" / "seed-2"
    assert data.run_folder(str(tmp_path / "posts.train.jsonl.gz")) == Path("out/posts.train")
    assert data.run_folder("someone/set", 1) == Path("out/someone--set/seed-1")


def test_looking_at_data(tmp_path, capsys):
    rows = [{"prompt": f"p{i}\nTL;DR:", "response": "r"} for i in range(9)]
    write(tmp_path / "train.jsonl", rows)
    look.main([str(tmp_path), "-n", "2"])
    shown = capsys.readouterr().out
    assert shown.count("TL;DR: r") == 2 and "2 of 2" in shown
    for argv in (["--split", "x"], ["-n", "0"], ["--spl", "train"]):
        with pytest.raises(SystemExit) as stop:
            look.main([str(tmp_path), *argv])
        captured = capsys.readouterr()
        assert stop.value.code == 2 and captured.out == ""
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
