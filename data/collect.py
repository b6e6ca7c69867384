"""
Comparisons to learn from and to test with, and how well a reward function knows the truth.

On the embedded world they are collected: references beside edits of them, and samples of the SFT
policy beside each other, each pair shown once to a noisy annotator. On other data they are read, or
of samples alone, which a language model labels (judge.py).

Everything here is text. What a network does is passed in: `sample(prompts, temperature, n, seed)`
-> a list over prompts of lists of n texts, and `score(prompts, texts)` -> (N,) numbers.
"""

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
import metrics
from data import files

# flags of reward.py that decide which comparisons are learned from, beside seed and data
SAME = ("steps", "batch", "comparisons", "sampled", "temperature", "eval_size", "annotator")
PEOPLE = ("world", "reference")  # annotators who are no language model
EDITS, SAMPLES = 3, 4  # of each prompt, to collect comparisons of
SEEN = 100  # answers that a panel is shown: a share is then known to a tenth


def comparisons(config, run, sample):
    """Training and validation comparisons of a run of reward.py: read, or collected and kept, for
    readers and --resume. ValueError if there are none of either."""
    if config.comparisons or config.data not in data.WORLD and config.annotator == "world":
        source = config.comparisons or config.data
        found = data.comparisons(source, "train"), data.comparisons(source, "validation")
    else:
        found = collected(config, run, sample)
    found = [different(run.tokenizer, rows) for rows in found]
    if not all(found):
        raise ValueError(f"{config.comparisons or config.data} has {len(found[0])} comparisons to "
                         f"train on and {len(found[1])} to validate with: both need some")
    run.reads("data", [(r.prompt, r.chosen, r.rejected) for rows in found for r in rows])
    texts = {text for rows in found for r in rows for text in (r.chosen, r.rejected)}
    run.tokenizer.prompts({r.prompt for r in found[0]})  # says how many are cut
    run.tokenizer.responses(texts)
    if "validation" not in data.tables(config.data):  # else the policy answers that, as SFT does
        run.shown = of_each_prompt(found[1])[:4]
    return found


def different(tokenizer, rows):
    "Comparisons of texts that differ in what a model sees of them: from others it learns nothing."
    ids = functools.lru_cache(tokenizer.response)
    kept = [row for row in rows if ids(row.chosen) != ids(row.rejected)]
    if len(kept) < len(rows):
        print(f"{len(rows) - len(kept)} of {len(rows)} comparisons are equal once they are cut to "
              f"{tokenizer.response_tokens} tokens, and left out")
    return kept


def collected(config, run, sample):
    "Comparisons that are made for this run, or were before it was interrupted."
    run.lock()
    path = run.folder / "comparisons.jsonl"
    if not (path.exists() and (run.saved or config.implicit and of_reward(config, run))):
        judge = None
        if config.annotator not in PEOPLE:  # made first: a missing key costs nobody a collection
            from data.judge import llm

            judge = llm(config.annotator, Path(config.out) / "judge.jsonl")
        sizes = {"train": config.steps * config.batch, "validation": -(-config.eval_size // 3)}
        rows = [row for split, size in sizes.items()
                for row in collect(config, sample, split, size, judge)]
        files.write_rows(path, [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected,
                                **r.meta} for r in rows])
    rows = [data.comparison(*row) for row in files.read_rows(path)]
    return tuple([r for r in rows if r.meta["split"] == split] for split in ("train", "validation"))


def of_reward(config, run):
    "Whether the comparisons in the folder are those of a reward model that started as this run."
    path = run.folder / "reward.json"
    made = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"config": {}}
    return all(made["config"].get(name) == getattr(config, name) for name in (*SAME, "seed")) and (
        made["parents"]["init"] == run.parents["init"])


def collect(config, sample, split, count, judge=None):
    """Comparisons that the world's annotator, or a judge as in judge.py, makes for `count` prompts:
    a reference with each of up to EDITS edits (world only), then SAMPLES samples with each other.
    Of the annotator "reference", who likes what people write, a reference with one sample (as in
    self-play, Chen et al. 2024, arXiv:2401.01335) and with the next prompt's reference: what
    answers another question is no good, however well it reads."""
    from data import world

    rng, embedded = np.random.default_rng([config.seed, *split.encode()]), config.data in data.WORLD
    examples = data.load(config.data, split, count, seed=1 + config.seed)  # not those of the SFT
    people = config.annotator == "reference"
    edited = round((1 - config.sampled) * count) if embedded and not people else 0
    rows = []
    for i in tqdm(range(0, count, 256), f"collect {split}", unit="block"):
        first, last = examples[i:min(i + 256, edited)], examples[max(i, edited):i + 256]
        shown = [(e, "edits", world.edits(rng, e.prompt, e.response, EDITS)) for e in first]
        answers = sample([e.prompt for e in last], config.temperature, 1 if people else SAMPLES,
                         seed=config.seed * 1_000_003 + i) if last else []
        others = [e.response for e in (examples[1:] + examples[:1])[max(i, edited):i + 256]]
        shown += [(e, "samples", [(e.response.strip(), x.strip()) for x in (*texts, other)]
                   if people else list(itertools.combinations(texts, 2)))
                  for e, texts, other in zip(last, answers, others)]
        for e, of, pairs in shown:
            for a, b in pairs:
                if a == b or embedded and split == "train" and (world.leaks(a) or world.leaks(b)):
                    continue  # equal texts teach nothing, and held-out facts stay held out
                if not (people or judge or world.prefers(rng, e.prompt, a, b)):
                    a, b = b, a
                rows.append(data.Comparison(e.prompt, a, b, {"of": of, "split": split}))
    return rows if judge is None else labelled(judge, rows)


def labelled(judge, rows):
    "Comparisons as a judge decides them, in both orders; its ties teach nothing and are left out."
    from data.judge import both_orders

    values, _, _ = both_orders(judge, [(r.prompt, r.chosen, r.rejected) for r in rows])
    print(f"{values.count(0.5)} of {len(rows)} comparisons are ties and left out")
    return [r if value else replace(r, chosen=r.rejected, rejected=r.chosen)
            for r, value in zip(rows, values) if value != 0.5]


def of_each_prompt(rows):
    "The first comparison of each prompt."
    first = {}
    for row in rows:
        first.setdefault(row.prompt, row)
    return [*first.values()]


def parts(group, most=data.TOGETHER):
    """Comparisons of one prompt -> lists of them that are of at most so many answers each, so that
    no step is much longer, nor needs more memory, than others. An answer may stand in several."""
    number, found = {}, {}  # of an answer; comparisons of the answers in two blocks
    for row in group:
        a, b = sorted(number.setdefault(text, len(number)) // (most // 2)
                      for text in (row.chosen, row.rejected))
        found.setdefault((a, b) if a < b else (0, max(b, 1)), []).append(row)
    return [*found.values()]


def stream(config, rows):
    """Yields each step's comparisons, a list over `batch` prompts of lists. (A prompt with more
    answers than share a row counts as several prompts: see `parts`.)

    Edits come before samples: kinds keep the order in which `collect` has written them. Whether an
    answer is true is the harder lesson: mixed with the noise of annotators who compare two middling
    samples it is not learned in so few steps, and what comes after does not undo it."""
    kinds = {}
    for row in rows:
        prompts = kinds.setdefault(str(row.meta.get("of")), {})
        prompts.setdefault(row.prompt, []).append(row)
    kinds = [[part for group in prompts.values() for part in parts(group)]
             for prompts in kinds.values()]
    total, seen, taken = sum(map(len, kinds)), 0, 0
    for groups in kinds:
        seen += len(groups)
        before, taken = taken, round(config.steps * seen / total)  # in proportion to its prompts
        lengths = [len(g[0].prompt) + sum(map(len, {text for row in g for text in
                                                    (row.chosen, row.rejected)})) for g in groups]
        batches = data.epochs(lengths, config.batch, config.seed)
        for index in itertools.islice(batches, taken - before):
            yield [groups[i] for i in index]


def accuracy(score, rows):
    """Share of (prompt, better, worse) whose texts a `score` orders so; its ties count half.
    ValueError if there are none, or a score is not a number."""
    if not rows:
        raise ValueError("there are no comparisons to measure scores on")
    scores = score([prompt for prompt, _, _ in rows for _ in range(2)],  # read once for both
                   [text for _, *pair in rows for text in pair])
    return float(metrics.win_rate(scores[::2], scores[1::2]).mean())


def length(prompts, texts):
    "The score of whoever always takes the longer one: words."
    return [len(metrics.words(text)) for text in texts]


def accuracies(score, rows):
    "The accuracy on `rows`, beside that of the length."
    return {"pairs": len(rows), "gold": accuracy(score, rows), "length": accuracy(length, rows)}


def quality(score, sample, name, split, n, seed=0):
    """How well a `score` knows the world's truth on n prompts of a split -> {name: share}. On other
    data, how far it agrees with up to n stored comparisons: pairs, gold (their order) and length.

    gold: two samples of the policy, ordered as by gold score (equal ones left out); length: the
    same if the longer one is always taken; wrong_fact: a reference beside itself with one fact
    changed; permuted and wrong_fact_permuted: the same pairs, each under another pair's prompt.
    What is left above a half there is known without the prompt: taste, or, on instruct, the world.
    """
    if name not in data.WORLD:
        return accuracies(score, [(c.prompt, c.chosen, c.rejected)
                                 for c in data.comparisons(name, split, n)])
    from data import world

    examples = data.load(name, split, n, seed=2 + seed)
    gold, rng = data.gold(name), np.random.default_rng([seed, 5])
    kept, edits = [], []
    for e, (a, b) in zip(examples, sample([e.prompt for e in examples], 1.0, 2, seed)):
        margin = gold(e.prompt, a) - gold(e.prompt, b)
        if abs(margin) > 1e-9:
            kept.append((e.prompt, *((a, b) if margin > 0 else (b, a))))
        edits += [(e.prompt, e.response, text) for text, done in
                  world.of(e.prompt).variants(rng, e.prompt, e.response) if done == "wrong"]
    if not kept or not edits:
        return {}  # too few prompts to say anything
    permuted = lambda rows: [(other[0], *pair) for (_, *pair), other in
                             zip(rows, rows[1:] + rows[:1])]
    return {**accuracies(score, kept), "permuted": accuracy(score, permuted(kept)),
            "wrong_fact": accuracy(score, edits),
            "wrong_fact_permuted": accuracy(score, permuted(edits))}


def panel(score, sample, prompts, people, seed=0):
    """How a `score` rates what nobody would give for a person's answer -> {what: (mean score, share
    rated above that answer)}, ties half. Any data has it, and pairs that are ordered rightly do not
    imply it: samples differ in other ways than these."""
    prompts, people = prompts[:SEEN], people[:SEEN]
    rng, words = np.random.default_rng([seed, 9]), [text.split() for text in people]
    texts = {"the references": [*people], "of another prompt": [*people[1:], people[0]],
             "words shuffled": [" ".join(rng.permutation(w)) for w in words],
             "said twice": [f"{text} {text}" for text in people],
             "cut in half": [" ".join(w[:(len(w) + 1) // 2]) for w in words],
             "empty": [""] * len(people),
             "SFT's samples": [text for [text] in sample(prompts, 1.0, 1, seed=seed)]}
    scores = np.asarray(score([prompt for prompt in prompts for _ in texts],  # each is read once
                              [text for row in zip(*texts.values()) for text in row]))
    scores = dict(zip(texts, scores.reshape(-1, len(texts)).T))
    own = scores["the references"]
    return {what: (float(given.mean()), float(metrics.win_rate(given, own).mean()))
            for what, given in scores.items()}


def panel_lines(found):
    "A panel as text, with a warning where shuffled words win."
    lines = [f"  {what:18}{mean:7.2f}{share:9.2f}" for what, (mean, share) in found.items()]
    lines.insert(0, f"{'':20}{'score':>7}{'above':>9}   (share rated above the reference)")
    if found["words shuffled"][1] > 0.5:
        lines.append("mind: references score lower than their own words shuffled, and what is "
                     "scored so is what PPO will write")
    return "\n".join(lines)


def findings(config, accuracy, pairs, score_texts, sample, people):
    """What a reward model has learned, and, in the world, what it knows of the truth: sentences,
    and the `panel` of people's answers, (prompts, texts)."""
    said = (f"orders {accuracy:.3f} of {min(pairs, config.eval_size)} held-out comparisons as they "
            f"were labelled")
    found = config.data in data.WORLD and quality(
        score_texts, sample, config.data, "validation", config.eval_size, config.seed)
    shown = panel_lines(panel(score_texts, sample, *people, config.seed))
    truth = (
        "\nagainst the truth: orders {gold:.3f} of {pairs} pairs of samples as their gold score "
        "does (the longer\none: {length:.3f}), {wrong_fact:.3f} of pairs that differ in one fact "
        "({wrong_fact_permuted:.3f} under other prompts)").format(**found) if found else ""
    return f"{said}{truth}\n{shown}"
