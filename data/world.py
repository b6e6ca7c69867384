"""
The embedded world: two tasks in the paper's shape, with no download and with a known truth.

A controlled experiment rather than a mock. Prompts and references are made by seeded code
(`summarise`, `instruct`), so the gold score of any answer is known; the "people" who compare
answers see it only through noise (`prefers`, as in Gao et al. 2023, arXiv:2210.10760, and
AlpacaFarm), and no model sees it at all. What a reward model learns, and where optimising it goes
wrong, can therefore be watched.

What a prompt is about, a tuple of facts, decides by its hash what the prompt is for: `bucket`.
Training text states no tuple of another bucket.
"""

import hashlib
import math

import numpy as np

from . import instruct, summarise

TASKS = {"summarise": summarise, "instruct": instruct}
SPLITS = {name: task.SPLITS for name, task in TASKS.items()}  # of the tests; "id" comes first
SIZES = {"train": 9_600, "validation": 500}  # examples; test splits have 1,000 each
FINAL = "final-"  # before a test split's name: prompts to look at once, when all is chosen
ANNOTATOR = 0.5  # gold points at which an annotator is right with odds e : 1


def bucket(key):
    "What prompts about a tuple of facts are for: one in twenty for each thing but training."
    number = int(hashlib.sha256(repr(tuple(key)).encode()).hexdigest(), 16) % 20
    return ("test", "final", "validation", "train")[min(number, 3)]


def leaks(text):
    "Whether a text states a tuple of facts that is not for training."
    key = summarise.stated(text)
    return key is not None and bucket(key) != "train"


def of(prompt):
    "The task that a prompt belongs to."
    return instruct if prompt.startswith("### Instruction:") else summarise


def parts(prompt, response):
    "The gold score of a response by parts, {name: points}; any text will do, none raises."
    return of(prompt).parts(prompt, response)


def kind(prompt, text):
    """What a text says, however it is worded, hashable: texts of one kind are the same to a person
    who reads for content. What cannot be read says nothing."""
    return of(prompt).kind(prompt, text)


def bar(prompt):
    "The gold score of a very good answer to a prompt like this."
    return of(prompt).BAR


def gold(prompt, response):
    "The quality of a response. A perfect one has 3.7 points, or 3 on instruct; people's, 1.9 or 1."
    return sum(parts(prompt, response).values())


def answered(rng, task, split, use="train", careless=False, replies=1):
    "A prompt of this split and bucket, and references to it."
    while True:
        prompt, spec = task.draw(rng, split, lambda key: bucket(key) == use)
        responses = [task.reference(rng, spec, careless) for _ in range(replies)]
        if use != "train" or not any(map(leaks, responses)):  # a slip of the pen may leak
            return prompt, *responses


def examples(task, split, n=None, seed=0):
    """Yields (prompt, response, {}), all prompts different but of train; train and validation are
    ID; the same seed, the same examples. ValueError where there are no n different prompts."""
    use = split if split in SIZES else "final" if split.startswith(FINAL) else "test"
    shift = "id" if use == split else split.removeprefix(FINAL)
    rng, seen = np.random.default_rng([seed, *f"{task} {split}".encode()]), set()
    for _ in range(n or SIZES.get(split, 1_000)):
        for _ in range(1_000):
            prompt, response = answered(rng, TASKS[task], shift, use)
            if use == "train" or prompt not in seen:
                break
        else:
            raise ValueError(f"{task} has no more than {len(seen)} different prompts of {split}")
        seen.add(prompt)
        yield prompt, response, {}


# What the base model reads: every kind of post, article and instruction, answered carelessly.
WEB = {(summarise, "id"): 0.16, (summarise, "long"): 0.06, (summarise, "subreddits"): 0.09,
       (summarise, "sentiment"): 0.06, (summarise, "news"): 0.08,
       (instruct, "id"): 0.29, (instruct, "broad"): 0.15, (instruct, "sequential"): 0.11}
REPLIES = 3  # answers in one thread


def pretraining(n, seed=0):
    """Yields n threads as the web has them, each a tuple of messages: a prompt with a careless
    answer, other people's answers, and below instructions now and then a quiz about the things.

    Several answers to one prompt show that what they share is what it says: a network learns to
    copy facts from a third of the tokens that it takes with one answer a thread.
    """
    rng = np.random.default_rng([seed, 99])
    kinds, shares = list(WEB), np.array(list(WEB.values()))
    for which in rng.choice(len(kinds), size=n, p=shares / shares.sum()):
        task, split = kinds[which]
        prompt, *answers = answered(rng, task, split, careless=True, replies=REPLIES)
        thread = [f"{prompt} {answers[0]}", *(f" {answer}" for answer in answers[1:])]
        if task is instruct and rng.random() < 0.6:
            thread.append(f" {instruct.quiz(rng, prompt)}")
        yield tuple(thread)


def prefers(rng, prompt, a, b):
    "Whether an annotator, who errs more the closer the two are, prefers a to b (Bradley-Terry)."
    margin = gold(prompt, a) - gold(prompt, b)
    return rng.random() < 1 / (1 + math.exp(-margin / ANNOTATOR))


def edits(rng, prompt, response, n=3):
    """Up to n different edits of a reference, [(reference, edit)], most with one fact changed.

    To know a true answer from a false one takes a reward model thousands of such pairs, to know
    taste takes it hundreds. On summaries, where it has a whole post to check them against, they are
    edits of the reference's facts alone: its other slips would drown the one that counts.
    """
    if of(prompt) is summarise:
        stating = filter(summarise.facts, summarise.split_sentences(response))
        response = " ".join(stating) or response
    wrong, others = {}, []
    for _ in range(2 * n):  # each time another fact of the answer
        found = of(prompt).variants(rng, prompt, response)
        wrong |= {text: None for text, done in found if done == "wrong"}
        others = [text for text, done in found if done != "wrong"]
    chosen = list(wrong)[:n]
    if others and rng.random() < 0.5:
        chosen[n - 1:] = [str(rng.choice(others))]
    return [(response, text) for text in chosen]
