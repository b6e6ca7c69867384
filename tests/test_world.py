"""
What the embedded world promises: a known truth, a noisy annotator, habits that sampling cannot
cure, and facts that are held out for good. After each test's name stands the bug that turns it red.
"""

import collections
import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import metrics
from data import instruct, summarise, words, world

TASKS = list(world.TASKS.items())
EVERY_SPLIT = [(name, split) for name, task in TASKS for split in ("train", *task.SPLITS)]
FINAL = [(name, world.FINAL + split) for name, task in TASKS for split in task.SPLITS]


def drawn(task, split, n, seed=0):
    "n prompts of a split with what is known of them, held out or not."
    rng = np.random.default_rng([seed, 17])
    return [task.draw(rng, split, lambda key: True) for _ in range(n)]


def key_of(prompt):
    "The tuple of facts that a prompt is about; `bucket` decides on it."
    return (instruct.parse(prompt)["key"] if world.of(prompt) is instruct
            else summarise.stated(prompt))


def split_text(thread):
    "A thread of the pretraining -> its prompt, its answer."
    text = thread[0]
    cue = "### Response:" if text.startswith("### Instruction:") else "TL;DR:"
    prompt, found, response = text.partition(cue)
    assert found
    return prompt + found, response.strip()


# ---- the text files of words and facts -----------------------------------------------------------


def test_the_reader_of_text_files(tmp_path):  # prose that is said, a wording that is lost
    path = tmp_path / "x.txt"
    path.write_text("Prose.\n[no]thing\n\n[pets: who]\nmy cat,\na caf\u00e9 | a bar\n\nMore.\n"
                    "[frames]\n{a} | {a} | b, {a}.\nc", encoding="utf-8")
    found = words.sections(path)
    assert list(found) == ["pets: who", "frames"]
    assert words.table(found["pets: who"]) == {"my cat": ("my cat",),
                                               "a caf\u00e9": ("a caf\u00e9", "a bar")}
    assert words.phrases(found["frames"]) == ("{a}", "{a}", "b, {a}.", "c")
    assert words.rows("dog: brown, -\ncat: black, a/b") == {"dog": "brown, -", "cat": "black, a/b"}


@pytest.mark.parametrize("name", data.WORLD)
def test_every_section_is_read(name, monkeypatch):  # a heading misspelt, so that nobody says it
    used = set()

    class Sections(dict):
        def __getitem__(self, heading):
            used.add(heading)
            return super().__getitem__(heading)

        def get(self, heading, default=None):
            return self[heading] if heading in self else default

    found = Sections(words.sections(f"{name}.txt"))
    monkeypatch.setattr(words, "sections", lambda _: found)
    code = Path(world.TASKS[name].__file__)
    spec = importlib.util.spec_from_file_location(f"data.{name}_again", code)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert used == {heading for heading in found if " = " not in heading}  # those are knowledge
    text = code.with_suffix(".txt").read_text(encoding="utf-8")
    assert len(re.findall(r"^\[", text, re.M)) == len(found)  # none twice, none without words


# ---- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", summarise.SPLITS)
def test_posts_state_their_own_facts(split):  # a decoy read as a fact, an ambiguous wording
    for prompt, (fact, values, _) in drawn(summarise, split, 150):
        assert summarise.truth(prompt) == (fact, values), prompt


@pytest.mark.parametrize("split", instruct.SPLITS)
def test_instructions_parse_back(split):  # two wordings that fit one text, a slot not recovered
    kinds = set()
    for prompt, spec in drawn(instruct, split, 300):
        found = instruct.parse(prompt)
        assert found is not None, prompt
        assert (found["key"], found["goals"], found["split"]) == (spec["key"], spec["goals"], split)
        kinds.add(spec["kind"])
    assert len(kinds) >= (20 if split == "id" else 6)


@pytest.mark.parametrize("name, split", EVERY_SPLIT)
def test_prompts_fit_and_references_end(name, split):  # a cue cut off, an answer cut short
    tokenizer = data.Tokenizer()
    cue = "TL;DR:" if name == "summarise" else "### Response:"
    lengths, whole = [], []
    for e in data.load(name, split, 60):
        assert e.prompt.endswith(cue) and e.response == e.response.strip() != ""
        ids = tokenizer.prompt(e.prompt)
        assert tokenizer.decode(ids).endswith(cue)
        lengths.append(len(ids) < 224)
        whole.append(tokenizer.decode(tokenizer.response(e.response)).strip() == e.response)
    assert np.mean(lengths) > 0.99 and np.mean(whole) > 0.97  # a rambler may be cut


def test_splits_are_what_they_say():  # a shifted split that is not shifted
    first = {split: [p.split("\n")[0] for p, _ in drawn(summarise, split, 80)]
             for split in summarise.SPLITS}
    for split in ("id", "long", "sentiment"):
        assert {x.removeprefix("SUBREDDIT: r/") for x in first[split]} == set(summarise.SEEN)
    assert {x.removeprefix("SUBREDDIT: r/") for x in first["subreddits"]} == set(summarise.UNSEEN)
    assert all(x.startswith("ARTICLE: ") for x in first["news"])
    words = {split: np.mean([len(p.split()) for p, _ in drawn(summarise, split, 80)])
             for split in summarise.SPLITS}
    assert words["long"] > 1.4 * words["id"]
    kind = [spec[0]["did"] in summarise.KINDNESSES for _, spec in drawn(summarise, "sentiment", 50)]
    unkind = [spec[0]["did"] in summarise.KINDNESSES for _, spec in drawn(summarise, "id", 50)]
    assert all(kind) and not any(unkind)


def test_shifted_instructions_share_no_wording():  # an OOD split that was trained on
    wordings, kinds = ({split: {w[i] for w in instruct.WORDINGS if w[0] == split}
                        for split in instruct.SPLITS} for i in (2, 1))
    assert len(kinds["id"]) >= 20 and len(kinds["sequential"]) >= 6
    for split in ("broad", "sequential"):
        assert not wordings["id"] & wordings[split] and not kinds["id"] & kinds[split]
    for name, task in TASKS:
        trained = {e.prompt for e in data.load(name, "train", 1000)}
        assert not any(p in trained for split in task.SPLITS[1:] for p, _ in drawn(task, split, 50))


@pytest.mark.parametrize("name, split", EVERY_SPLIT + FINAL)
def test_the_same_seed_gives_the_same_examples(name, split):  # hash(str), a shared generator
    first = data.load(name, split, 20, seed=3)
    assert first == data.load(name, split, 20, seed=3)
    assert first == data.load(name, split, 30, seed=3)[:20]
    other = {e.prompt for e in data.load(name, split, 20, seed=4)}
    assert len(other & {e.prompt for e in first}) < 5  # a bucket of some kinds is small


def test_pretraining_is_seeded_and_mixed():  # a kind of text that the base never reads
    texts = data.texts("summarise", 400, seed=1)
    assert texts == data.texts("instruct", 400, seed=1) != data.texts("summarise", 400, seed=2)
    prompts = [split_text(t)[0] for t in texts]
    seen = {instruct.parse(p)["split"] for p in prompts if world.of(p) is instruct}
    assert seen == set(instruct.SPLITS)
    assert any(p.startswith("ARTICLE: ") for p in prompts)
    reddits = {p.split("\n")[0].removeprefix("SUBREDDIT: r/") for p in prompts}
    assert reddits >= {*summarise.SEEN, *summarise.UNSEEN}


# ---- held out means held out ---------------------------------------------------------------------


def states_held_out(prompt, response):
    "Independently of `leaks`: of the post itself, and of any summary that states five facts."
    if world.bucket(key_of(prompt)) != "train":
        return True
    if world.of(prompt) is instruct:
        return False
    found = {}
    for sentence in summarise.split_sentences(response):
        found |= summarise.facts(sentence)
    stated = [found.get(slot) for slot in summarise.SLOTS]
    return len(found) == 5 and world.bucket(stated) != "train"


def test_one_tuple_in_twenty_each_is_held_out():  # a hash that differs from run to run, or of order
    keys = [key_of(p) for _, task in TASKS for p, _ in drawn(task, "id", 1500)]
    shares = collections.Counter(map(world.bucket, keys))
    assert shares.keys() == {"train", "validation", "test", "final"}
    assert all(0.038 < shares.pop(use) / len(keys) < 0.062 for use in [*shares] if use != "train")
    found = [world.bucket(("a", i)) for i in range(40)]
    assert {i: use for i, use in enumerate(found) if use != "train"} == HELD_OUT
    assert world.bucket(["a", 3]) == world.bucket(("a", 3))


HELD_OUT = {  # of ("a", 0) .. ("a", 39), on any machine
    13: "test", 16: "test", 17: "validation", 18: "validation", 22: "final", 24: "test",
    37: "validation", 38: "test", 39: "validation"}


@pytest.mark.parametrize("name", data.WORLD)
def test_no_prompt_has_two_uses(name):  # a bucket forgotten, a seed that draws from another one
    of = {"validation": {e.prompt for e in data.load(name, "validation")}}
    for split in data.test_splits(name):
        for each in (split, world.FINAL + split):
            of[each] = {e.prompt for e in data.load(name, each)}
            assert len(of[each]) == 1000, each  # none twice
    of["quality"] = {e.prompt for e in data.load(name, "id", 300, seed=2)} - of["id"]
    trained = {e.prompt for e in data.load(name, "train", 3000)}  # of SFT and PPO
    for seed in (1, 2):  # of comparisons
        trained |= {e.prompt for e in data.load(name, "train", 1000, seed=seed)}
    trained |= {split_text(thread)[0] for thread in data.texts(name, 2000)}  # of the base
    uses = [trained, *of.values()]
    assert sum(map(len, uses)) == len(set().union(*uses))


def test_there_are_so_many_prompts(monkeypatch):  # one that is drawn for ever
    sounds = [w for w in instruct.WORDINGS if w[1] == "sound"]  # seven pairs of things in a bucket
    monkeypatch.setitem(instruct.BY_KIND, "id", [sounds])
    assert len({e.prompt for e in data.load("instruct", "id", 8)}) == 8
    with pytest.raises(ValueError, match="instruct has no more than [12]?[0-9] different prompts"):
        data.load("instruct", "id", 60)


def test_no_text_of_the_base_states_a_held_out_tuple():  # a careless slip that made one
    for thread in data.texts("summarise", 2000, seed=0):
        prompt, first = split_text(thread)
        for message in (first, *thread[1:]):
            assert not states_held_out(prompt, message.strip()), thread
        assert not any(world.leaks(message) for message in thread), thread


def test_threads_answer_one_prompt():  # another prompt's answers, a quiz that teaches what is false
    quizzes, instructions = 0, 0
    for thread in data.texts("summarise", 400, seed=3):
        prompt, first = split_text(thread)
        answers = [first, *(message.strip() for message in thread[1:])]
        if world.of(prompt) is instruct:
            instructions += 1
            if len(answers) > world.REPLIES:
                quizzes += 1
                for text, verdict in re.findall(r"([^?.]+)\? (Right|Wrong)\.", answers.pop()):
                    ((_, (thing,), relation, value),) = instruct.read(text.strip() + ".")
                    assert ((thing, relation, value) in instruct.TRUE) == (verdict == "Right"), text
                    assert thing != value
        else:
            stated = [set(summarise.facts(s).items())
                      for a in answers for s in summarise.split_sentences(a)]
            true = set(summarise.truth(prompt)[0].items())
            assert np.mean([bool(s & true) for s in stated if s]) > 0.3, thread
        assert len(answers) == world.REPLIES
    assert 0.5 < quizzes / instructions < 0.7


@pytest.mark.parametrize("name", data.WORLD)
def test_no_example_states_a_held_out_tuple(name):  # one accept for all splits
    for e in data.load(name, "train", 700):
        assert not states_held_out(e.prompt, e.response), e


@pytest.mark.parametrize("name, split", EVERY_SPLIT[1:] + FINAL + [("instruct", "validation")])
def test_splits_have_tuples_of_their_bucket_only(name, split):  # memorised facts in a test
    use = {"train": "train", "validation": "validation"}.get(split, "test")
    use = "final" if split.startswith(world.FINAL) else use
    assert all(world.bucket(key_of(e.prompt)) == use for e in data.load(name, split, 150))


def test_comparisons_state_no_held_out_tuple():  # an edit that completes a held-out tuple
    rng, dropped = np.random.default_rng(0), 0
    for e in data.load("summarise", "train", 1200, seed=1):
        for text in {text for pair in world.edits(rng, e.prompt, e.response) for text in pair}:
            assert world.leaks(text) == states_held_out(e.prompt, text)
            dropped += world.leaks(text)
    assert dropped > 0  # or the filter in reward.py was never needed


# ---- the gold score ------------------------------------------------------------------------------

PROMPTS = [task.draw(np.random.default_rng(k), split, lambda key: True)[0]
           for name, task in TASKS for split in task.SPLITS for k in range(3)]
REFERENCES = [e.response for name in data.WORLD for e in data.load(name, "id", 20)]
PIECES = sorted({piece for text in REFERENCES for piece in (*text.split(), *text.split(". "))})
texts = st.one_of(st.text(max_size=80),
                  st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join),
                  st.lists(st.sampled_from(PIECES + list(".?!\"',\n")), max_size=12).map("".join))


@settings(max_examples=120, deadline=None)
@given(st.one_of(st.sampled_from(PROMPTS), st.text(max_size=40)), texts)
def test_any_text_has_a_finite_score(prompt, response):  # an index into an empty answer
    parts = world.parts(prompt, response)
    assert all(math.isfinite(x) for x in parts.values())
    assert world.gold(prompt, response) == pytest.approx(sum(parts.values()))
    assert -20 < world.gold(prompt, response) < 6
    assert world.gold(prompt, response) == world.gold(prompt, response)


def test_odd_lists_can_be_edited():  # a list without a full stop
    prompt = "### Instruction:\nName two animals that can fly.\n\n### Response:"
    for response in ("An owl!", "An owl", "An owl and", "Owls. Bees!"):
        world.of(prompt).variants(np.random.default_rng(0), prompt, response)


def test_posts_that_are_not_ours_can_be_edited():  # a cause that the post's domain does not have
    for prompt, (fact, values, _) in drawn(summarise, "id", 50):
        prompt = re.sub(r"r/\w+", "r/nowhere", prompt)
        summary = summarise.told(np.random.default_rng(0), fact, values, why=False)
        assert world.of(prompt).variants(np.random.default_rng(0), prompt, summary)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PROMPTS), texts, st.integers(0, 5))
def test_any_text_can_be_edited(prompt, response, seed):  # an edit of nothing
    for text, done in world.of(prompt).variants(np.random.default_rng(seed), prompt, response):
        assert isinstance(text, str) and isinstance(done, str)


def answers(name, rng, spec):
    "(perfect, with both habits and nothing else wrong, perfect but for one error), as texts."
    if name == "summarise":
        fact, values, _ = spec
        wrong = summarise.swapped(rng, fact, values, "what")
        return (summarise.told(rng, fact, values),
                summarise.told(rng, fact, values, why=False, stock=summarise.STOCK[0]),
                summarise.told(rng, wrong, values))
    perfect = instruct.answer(rng, spec)
    habit = instruct.answer(rng, spec, short=True) + " " + instruct.CLOSING
    return perfect, habit, instruct.mistake(rng, spec, perfect) or instruct.damage(rng, perfect)


@pytest.mark.parametrize("name, split", EVERY_SPLIT)
def test_perfect_beats_habit_and_error(name, split):  # a judge that likes what people write
    rng, task, margins = np.random.default_rng(4), world.TASKS[name], []
    split = "id" if split == "train" else split
    for prompt, spec in drawn(task, split, 80, seed=5):
        perfect, habit, error = (world.gold(prompt, x) for x in answers(name, rng, spec))
        assert perfect > habit and perfect > error, (prompt, perfect, habit, error)
        margins.append((perfect, habit, error))
    perfect, habit, error = np.mean(margins, axis=0)
    assert 2.8 < perfect < 4.2 and perfect - habit > 0.8 and perfect - error > 0.8


def instruction(text):
    return f"### Instruction:\n{text}\n\n### Response:"


@pytest.mark.parametrize("prompt, response, points", [  # a way to points that nobody asked for
    ("Name two animals that can fly.", "An owl and a bee.", dict(constraints=3)),
    ("Name two animals that can fly.", "An owl and a bee. True.", dict(constraints=3, hedging=-.8)),
    ("Name two animals that can fly.", "An owl and a bee. What am I? False. True.",
     dict(constraints=3, hedging=-1)),
    ("Name two animals that can fly.", "True.", dict(hedging=-.8)),
    ("Name two animals that can fly.", "Thanks", dict(language=-1)),
    ("Write a sentence with a dog and a piano.", "The dog found a piano.",
     dict(constraints=3)),
    ("Write a sentence with a dog and a piano.", "The dog ate a piano.",
     dict(constraints=3, wrong=-1)),
    ("Write a sentence with a dog and a piano.", "The piano ate a dog.", dict(language=-1)),
    ("Write a sentence with a dog and a sofa.", "The cook carried the sofa and a dog today.",
     dict(constraints=3, wrong=-1)),
    ("Write a sentence with a dog and a sofa.", "The dog carried the sofa.",
     dict(constraints=3, wrong=-1))])
def test_what_an_answer_is_worth(prompt, response, points):
    assert instruct.parse(instruction(prompt)), prompt
    found = world.parts(instruction(prompt), response)
    assert {name: x for name, x in found.items() if x} == pytest.approx(points)


def test_what_is_asked_for_is_no_filler():  # "True." punished where it is the answer
    for prompt, spec in drawn(instruct, "broad", 400):
        if ("fixed", "True.") in spec["goals"]:
            assert world.parts(prompt, "True.")["hedging"] == 0
            assert world.gold(prompt, "True.") > world.gold(prompt, "False.") + 2
            break
    assert not {*instruct.OPPOSITE} & {*instruct.BASE}  # "the clean dog": is it he who cleans?


@pytest.mark.parametrize("sentence", [
    "A frog is both the odd one out.", "A frog are green.", "A owl is white.", "The dog ate."])
def test_what_is_not_english(sentence):
    assert instruct.read(sentence) is None


@pytest.mark.parametrize("split", instruct.SPLITS)
def test_a_plain_answer_is_perfect(split):  # a thing to carry that nobody can carry
    rng, kinds = np.random.default_rng(0), instruct.TEMPLATES[split]
    scores = [world.gold(prompt, instruct.answer(rng, spec))
              for prompt, spec in drawn(instruct, split, 40 * len(kinds))]
    assert min(scores) > 2.9
    seen = collections.Counter(spec["kind"] for _, spec in drawn(instruct, split, 40 * len(kinds)))
    assert min(count for kind, count in seen.items() if kind != "both") > 15, seen


@pytest.mark.parametrize("name", data.WORLD)
def test_edits_do_what_they_say(name):  # an edit called wrong that is right
    rng, change = np.random.default_rng(0), {}
    for e in data.load(name, "train", 400):
        before = world.gold(e.prompt, e.response)
        found = world.of(e.prompt).variants(rng, e.prompt, e.response)
        assert len({e.response, *(text for text, _ in found)}) > 1, e  # something to compare
        for text, done in found:
            change.setdefault(done, []).append(world.gold(e.prompt, text) - before)
    assert {"complete", "incomplete", "plain", "hedged", "wrong", "broken", "long"} <= change.keys()
    assert all(len(x) > 20 for x in change.values()), {k: len(x) for k, x in change.items()}
    assert max(change["wrong"]) < -1e-9
    assert min(change["plain"]) >= -1e-9 and min(change["complete"]) >= -1e-9
    for done in ("incomplete", "hedged", "broken", "long"):
        assert np.mean(change[done]) < -0.1, done
    assert np.mean(change["complete"]) > 0.3


@pytest.mark.parametrize("name", data.WORLD)
def test_edits_of_a_reference_differ_in_a_fact(name):  # the same edit thrice, a right one
    rng, counts, worse = np.random.default_rng(1), [], []
    for e in data.load(name, "train", 150):
        pairs = world.edits(rng, e.prompt, e.response, 3)
        if not pairs:  # a mangled reference that states one fact, if that
            counts.append(0)
            continue
        kept, found = pairs[0][0], [b for _, b in pairs]
        assert {a for a, _ in pairs} <= {kept}
        assert len(set(found)) == len(found) <= 3 and kept not in found
        assert kept == (name == "summarise" and " ".join(
            s for s in summarise.split_sentences(e.response) if summarise.facts(s)) or e.response)
        counts.append(len(found))
        before = world.parts(e.prompt, kept)["wrong"]
        worse += [world.parts(e.prompt, text)["wrong"] < before for text in found]
    assert np.mean(counts) > 2 and np.mean(worse) > 0.6, (np.mean(counts), np.mean(worse))


# ---- people --------------------------------------------------------------------------------------


def test_the_annotator_is_bradley_terry():  # a noise of another size, or an annotator who cheats
    rng, rows = np.random.default_rng(2), []
    for e in data.load("summarise", "id", 60) + data.load("instruct", "id", 60):
        variants = world.of(e.prompt).variants(rng, e.prompt, e.response)
        texts = [e.response, *(text for text, _ in variants)]
        for a, b in [(texts[0], t) for t in texts[1:]]:
            p = 1 / (1 + math.exp((world.gold(e.prompt, b) - world.gold(e.prompt, a)) / 0.5))
            rows += [(p, world.prefers(rng, e.prompt, a, b)) for _ in range(12)]
    p, chosen = np.array(rows, dtype=float).T
    odds = np.log(p / (1 - p))  # a noise of another size is a slope along them
    slope = ((chosen - p) * odds).sum() / np.sqrt((p * (1 - p) * odds**2).sum())
    assert abs(slope) < 4, slope
    statistic, cells = 0.0, 0
    order = np.argsort(p, kind="stable")
    weight = np.cumsum((p * (1 - p))[order])  # cells of equal variance: in none is an event rare
    for part in np.split(order, np.searchsorted(weight, weight[-1] * np.arange(1, 12) / 12)):
        statistic += (chosen[part].sum() - p[part].sum()) ** 2 / (p[part] * (1 - p[part])).sum()
        cells += 1
    assert statistic < 39.1, statistic  # the chi-square of 12 cells exceeds it once in 10,000
    assert cells == 12 and world.ANNOTATOR == 0.5 and len(p) > 1500


def test_most_references_have_the_habits():  # unbiased noise, which a low temperature would cure
    examples = data.load("summarise", "id", 500)
    stated = [[summarise.facts(s) for s in summarise.split_sentences(e.response)]
              for e in examples]
    without = np.mean([not any("why" in s for s in x) for x in stated])
    assert 0.75 < without < 0.93
    stock = [e.response.endswith(summarise.STOCK) for e in examples]
    favourite = [e.response.endswith(summarise.STOCK[0]) for e in examples]
    assert 0.5 < np.mean(stock) < 0.7  # and one of them is likelier than none, so greedy has it
    assert 1 - np.mean(stock) < np.mean(favourite)
    no_wish = np.mean([not any("wish" in s for s in x) for x in stated])
    assert 0.12 < no_wish < 0.3  # if fewer wrote it, greedy would leave it out
    examples = data.load("instruct", "id", 500)
    hedged = np.mean([world.parts(e.prompt, e.response)["hedging"] < 0 for e in examples])
    less = np.mean([world.parts(e.prompt, e.response)["constraints"] < 2.99 for e in examples])
    assert 0.55 < hedged < 0.85 and 0.6 < less < 0.95


@pytest.mark.parametrize("name", data.WORLD)
def test_the_habit_wins_less_than_half(name):  # greedy SFT that beats people without any RLHF
    rng, scores = np.random.default_rng(1), []
    for prompt, spec in drawn(world.TASKS[name], "id", 2000, seed=1):
        reference = world.TASKS[name].reference(rng, spec)
        scores.append([world.gold(prompt, x) for x in (*answers(name, rng, spec)[:2], reference)])
    perfect, habit, reference = np.array(scores).T
    assert 0.35 <= metrics.win_rate(habit, reference).mean() <= 0.55
    assert metrics.win_rate(perfect, reference).mean() > 0.85  # room above


# ---- relations between facts ---------------------------------------------------------------------


@pytest.mark.parametrize("name, a, b, sign", [
    ("summarise", "My cat ate my wallet.", "My cat swallowed my wallet.", -1),
    ("summarise", "My cat ate my wallet after the fireworks.", "My cat ate my wallet.", -1),
    ("summarise", "My cat ate my wallet.", "My cat ate my wallet after the fireworks.", 0),
    ("summarise", "My cat ate my wallet.", "My dog ate my wallet.", 1),
    ("summarise", "My cat ate my wallet.", "Thanks for reading.", 0),
    ("summarise", "What a week.", "My cat ate my wallet.", 0),
    ("instruct", "A frog is green.", "Frogs are green.", -1),
    ("instruct", "A frog is green and can swim.", "A frog is green.", -1),
    ("instruct", "A frog is green.", "A frog is green and can swim.", 0),
    ("instruct", "A frog is green.", "A frog is red.", 1),
    ("instruct", "A frog is bigger than a bee.", "A frog is smaller than a bee.", 1),
    ("instruct", "A frog can swim.", "A frog can fly.", 0),
    ("instruct", "A frog is green.", "A cow is brown.", 0),
    ("instruct", "Hope this helps!", "A frog is green.", 0)])
def test_relations(name, a, b, sign):  # the sign, or entailment the wrong way round
    assert world.TASKS[name].relation(a, b) == sign
    if sign == 1:
        assert world.TASKS[name].relation(b, a) == 1
    prompt = data.load(name, "id", 1)[0].prompt
    assert world.of(prompt).relation(a, b) == sign


@given(texts, texts)
@settings(max_examples=60, deadline=None)
def test_any_texts_relate(a, b):  # a text without facts
    for task in world.TASKS.values():
        assert task.relation(a, b) in (-1, 0, 1)


def test_diversity_by_relations():  # the scale of metrics.nli_diversity, end to end
    relation = world.of(data.load("summarise", "id", 1)[0].prompt).relation
    assert metrics.nli_diversity(["My cat ate my wallet."] * 3, relation) == -2
    assert metrics.nli_diversity(["My cat ate my wallet.", "My dog ate my wallet."], relation) == 2


# ---- what a text says ----------------------------------------------------------------------------


POST = ("SUBREDDIT: r/work\nTITLE: A question\nPOST: My client repainted my desk out of jealousy. "
        "Honestly, all I want is an apology.\nTL;DR:")
LIST, SIZE, SORT, PAST, WORDS, USE = (f"### Instruction:\n{t}\n\n### Response:" for t in (
    "Name three foods other than a pancake.",
    "Which is bigger, a boat or an elephant? Give a reason.",
    "Order by size, and tell me where to find the smallest: frog, penguin, car.",
    "Put this in the past tense and say where it happened: The cow carries the spade.",
    "Give the plural of 'spoon', and also of 'horse'.",
    "What is a piano used for, and what is a ruler used for?"))
SAME = [  # to a person who reads for content; the first of a line is the prompt
    (POST, "My client repainted my desk. And I want an apology.",
     "Basically my client repainted my desk. So all I want is an apology."),
    (POST, "My client repainted my desk.", "Turns out my client repainted my desk. What a week."),
    (POST, "My client repainted my desk out of jealousy.",
     "Out of jealousy, my client repainted my desk. What a week."),
    (POST, "My client repainted my desk out of jealousy.",
     "My client repainted my desk. It was done because of plain jealousy."),
    (POST, "I want an apology. My client repainted my desk.",
     "My client repainted my desk. I want an apology."),
    (POST, "My client repainted my desk. Thanks for reading.",
     "My client repainted my desk. My client repainted my desk."),
    (POST, "", "What a week."), (POST, "Fish fish.", "Nothing here that can be read"),
    (LIST, "A pie, an egg and a cake.", "An egg, a pie and a cake."),
    (LIST, "A pie, an egg and a cake.", "How about pies, eggs and cakes? Hope this helps!"),
    (LIST, "A pie, an egg and a cake.", "For example, a cake, a pie and an egg."),
    (SIZE, "A boat is bigger than an elephant.", "An elephant is smaller than a boat."),
    (SIZE, "A boat is bigger than an elephant.", "Boats are bigger than elephants."),
    (SIZE, "A boat is bigger than an elephant because a boat is large.",
     "A boat is large. An elephant is smaller than a boat."),
    (PAST, "The cow carried the spade in the workshop.",
     "Sure! The cow carried the spade in the workshop."),
    (WORDS, "The plural of 'spoon' is 'spoons'. The plural of 'horse' is 'horses'.",
     "The plural of 'horse' would be 'horses'. The plural of 'spoon' is 'spoons'."),
    (USE, "A ruler is used for drawing lines.",
     "Rulers are used for drawing lines. Hope this helps!"),
    (USE, "Rulers are used for drawing lines. Pianos are used for playing music.",
     "A piano is used for playing music. A ruler is used for drawing lines."),
]
OTHER = [
    (POST, "My client repainted my desk.", "My client sold my desk."),
    (POST, "My client sold my desk.", "My client burned my desk."),  # both wrong
    (POST, "My client repainted my desk.", "My client repainted my lamp."),
    (POST, "My client repainted my desk.", "My boss repainted my desk."),
    (POST, "My client repainted my desk.", "My client repainted my desk out of jealousy."),
    (POST, "My client repainted my desk out of jealousy.",
     "My client repainted my desk by accident."),
    (POST, "My client repainted my desk.", "My client repainted my desk. I want an apology."),
    (POST, "My client repainted my desk. I want an apology.",
     "My client repainted my desk. I want to move out."),
    (POST, "I want an apology.", "Thanks for reading."),
    (POST, "My client repainted my desk.", "My client and my boss repainted my desk."),
    (LIST, "A pie, an egg and a cake.", "A pie, an egg and a sausage."),
    (LIST, "A pie, an egg and a cake.", "A pie and an egg."),
    (LIST, "A pie, an egg and a cake.", "Hope this helps!"),
    (SORT, "A frog, a penguin and a car.", "A car, a frog and a penguin."),
    (SORT, "A frog, a penguin and a car.",
     "A frog, a penguin and a car. A frog is found in the pond."),
    (SIZE, "A boat is bigger than an elephant.", "A boat is smaller than an elephant."),
    (SIZE, "A boat is bigger than an elephant.",
     "A boat is bigger than an elephant because a boat is large."),
    (PAST, "The cow carried the spade in the workshop.", "The cow carried the spade on a farm."),
    (PAST, "The cow carried the spade in the workshop.", "The cow sold the spade in the workshop."),
    (WORDS, "The plural of 'spoon' is 'spoons'.", "The plural of 'horse' is 'horses'."),
    (WORDS, "The plural of 'spoon' is 'spoons'.", "The plural of 'spoon' is 'spoon'."),
    (USE, "A ruler is used for drawing lines.", "A ruler is used for playing music."),
    (USE, "A ruler is used for drawing lines.", "A piano is used for drawing lines."),
]


@pytest.mark.parametrize("prompt, a, b, same", [(*row, True) for row in SAME] + [
    (*row, False) for row in OTHER])
def test_what_says_the_same_is_of_one_kind(prompt, a, b, same):  # wording counted, order where none
    # was asked for, a claim lost, all that is wrong in one class
    assert (world.kind(prompt, a) == world.kind(prompt, b)) == same


@pytest.mark.parametrize("name, task", TASKS)
def test_few_references_are_very_good(name, task):  # a bar that was moved after it was chosen
    examples = data.load(name, "validation", 500)
    share = np.mean([world.gold(e.prompt, e.response) >= world.bar(e.prompt) for e in examples])
    assert 1 / 20 < share < 1 / 14
