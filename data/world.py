"""
The embedded world: two tasks in the paper's shape, with no download and with a known truth.

A controlled experiment rather than a mock. Prompts and references are made by seeded code
(`summarise`, `instruct`), so the gold score of any answer is known; the "people" who compare
answers see it only through noise (`prefers`, as in Gao et al. 2023, arXiv:2210.10760, and
AlpacaFarm), and no model sees it at all. What a reward model learns, and where optimising it goes
wrong, can therefore be watched.

One tuple of facts in ten is held out, by hash: training text never states it, test splits use
nothing else.
"""

import hashlib
import math

import numpy as np

from . import instruct, summarise

TASKS = {"summarise": summarise, "instruct": instruct}
SPLITS = {name: task.SPLITS for name, task in TASKS.items()}  # of the tests; "id" comes first
SIZES = {"train": 9_600, "validation": 500}  # examples; test splits have 1,000 each
ANNOTATOR = 0.5  # gold points at which an annotator is right with odds e : 1


def held_out(key):
    return int(hashlib.sha256(repr(tuple(key)).encode()).hexdigest(), 16) % 10 == 0


def leaks(text):
    "Whether a text states a held-out tuple of facts."
    key = summarise.stated(text)
    return key is not None and held_out(key)


def of(prompt):
    "The task that a prompt belongs to."
    return instruct if prompt.startswith("### Instruction:") else summarise


def parts(prompt, response):
    "The gold score of a response by parts, {name: points}; any text will do, none raises."
    return of(prompt).parts(prompt, response)


def gold(prompt, response):
    "The quality of a response: a perfect one has about 4 points, a typical reference about 2."
    return sum(parts(prompt, response).values())


def answered(rng, task, split, held, careless=False):
    "A prompt of this split and a reference to it."
    while True:
        prompt, spec = task.draw(rng, split, lambda key: held_out(key) == held)
        response = task.reference(rng, spec, careless)
        if held or not leaks(response):  # a slip of the pen may have made a held-out tuple
            return prompt, response


def examples(task, split, n=None, seed=0):
    "Yields (prompt, response, {}): train and validation are ID; the same seed, the same examples."
    held = split not in SIZES
    rng = np.random.default_rng([seed, *f"{task} {split}".encode()])
    for _ in range(n or SIZES.get(split, 1_000)):
        yield *answered(rng, TASKS[task], split if held else "id", held), {}


# What the base model reads: every kind of post, article and instruction, answered carelessly.
WEB = {(summarise, "id"): 0.22, (summarise, "long"): 0.08, (summarise, "subreddits"): 0.1,
       (summarise, "sentiment"): 0.08, (summarise, "news"): 0.1,
       (instruct, "id"): 0.22, (instruct, "broad"): 0.12, (instruct, "sequential"): 0.08}


def pretraining(n, seed=0):
    """Yields n threads as the web has them: (a prompt and a careless answer, mostly a comment).

    Comments say what is true, as readers do; a reward model that starts from a network which has
    read them need not find out from a few thousand comparisons what being true is. They say nothing
    of taste: whether a cause is missed or a stock phrase disliked.
    """
    rng = np.random.default_rng([seed, 99])
    kinds, shares = list(WEB), np.array(list(WEB.values()))
    for which in rng.choice(len(kinds), size=n, p=shares / shares.sum()):
        task = kinds[which][0]
        prompt, response = answered(rng, *kinds[which], held=False, careless=True)
        u = rng.random()
        comment = task.quiz(rng, prompt) if u < 0.5 else task.comment(rng, prompt, response)
        yield (f"{prompt} {response}", f" {comment}")[:2 if u < 0.7 else 1]


def prefers(rng, prompt, a, b):
    "Whether an annotator, who errs more the closer the two are, prefers a to b (Bradley-Terry)."
    margin = gold(prompt, a) - gold(prompt, b)
    return rng.random() < 1 / (1 + math.exp(-margin / ANNOTATOR))


def two_versions(rng, prompt, response):
    """A reference beside an edit of it: every other time one with a fact changed, because to know
    a true answer from a false one is what takes most comparisons to learn."""
    edits = variants(rng, prompt, response)
    wrong = [text for text, done in edits if done == "wrong"]
    others = [text for text, _ in edits] or [response]
    return response, str(rng.choice(wrong if wrong and rng.random() < 0.5 else others))


def variants(rng, prompt, response):
    "Edits of a response, [(text, what was done)]."
    return of(prompt).variants(rng, prompt, response)


def relation(prompt):
    "The fact relation for NLI diversity of answers to this prompt: +1 contradicts, -1 entails."
    return of(prompt).relation
