"""
Reddit posts and news articles to summarise, made by seeded code, and what a summary is worth.

A post states five facts (who, did, what, why, wish), each in one of several wordings, among asides
and decoys. `parts` reads the facts back from the text of any prompt and any summary, so quality is
known exactly; `reference` writes what people write, which is biased in its most likely words: most
leave out the cause, and most end on the same stock phrase.
"""

import re
from functools import lru_cache

from .words import any_of, capital, phrases, sections, table

SPLITS = ("id", "long", "subreddits", "sentiment", "news")

# ---- 1. Words, from summarise.txt. ----

TEXT = sections("summarise.txt")
SEEN = ("relationships", "roommates", "work", "neighbors", "family")  # fine-tuned on
UNSEEN = ("pets", "cooking", "travel", "school")
LISTS = {slot: tuple(table(TEXT[slot])) for slot in ("day", "month", "number", "nth")}
STOCK = phrases(TEXT["stock phrases"])  # the habits

TITLES = phrases(TEXT["title of a post"])
FRAMES = {genre: {part: phrases(TEXT[f"{part} in {genre}"])
                  for part in ("event", "cause", "wish", "asides")}
          for genre in ("a post", "an article")}
EVENTS, WITH_CAUSE, WISHES = (phrases(TEXT[f"{part} in a summary"])
                              for part in ("event", "event and cause", "wish"))

# ---- 2. Facts. A post has five: who, did, what, why, wish. They are read back from its text. ----

SLOTS = ("who", "did", "what", "why", "wish")
WEIGHTS = {"who": 0.75, "did": 0.5, "what": 0.75, "why": 1.0, "wish": 1.0}  # of the gold score
TABLES = {group: {slot: table(TEXT.get(f"{group}: {slot}", "")) for slot in SLOTS}
          for group in (*SEEN, *UNSEEN, "news", "everyone", "kindness")}
KINDNESSES = TABLES["kindness"]["did"]
# What the posts of a subreddit may state, {slot: {value: forms}}: its own and everyone's, save that
# its own deeds take the place of everyone's; cheerful ones state kindnesses and their reasons.
DOMAINS = {("news", "id"): TABLES["news"]}
for name in SEEN + UNSEEN:
    own, common, kind = TABLES[name], TABLES["everyone"], TABLES["kindness"]
    DOMAINS[name, "id"] = {slot: common[slot] | own[slot] for slot in SLOTS}
    DOMAINS[name, "id"]["did"] = own["did"] or common["did"]
    DOMAINS[name, "sentiment"] = {slot: kind[slot] or own[slot] for slot in SLOTS}
FORMS = {slot: {form.lower(): value for values in DOMAINS.values()
                for value, forms in values[slot].items() for form in forms}
         for slot in SLOTS}  # {slot: {form: value}}

# Patterns. In asides {slot} stands for any of that slot's words.
ASIDES = any_of({aside.rstrip(".?!") for frames in FRAMES.values() for aside in frames["asides"]})
for slot, options in {"who": FORMS["who"], "what": FORMS["what"], **LISTS}.items():
    ASIDES = re.sub(rf"\\{{{slot}\\}}", lambda _: any_of(options), ASIDES, flags=re.I)
ASIDES = re.compile(ASIDES, re.I)
WHO, DID, WHAT, WHY, WISH = (f"(?P<{slot}>{any_of(FORMS[slot])})" for slot in SLOTS)
EVENT = f"{WHO} {DID} {WHAT}"
LEAD = any_of({frame.partition("{")[0] for frame in EVENTS + WISHES})  # or none
SUMMARY = [re.compile(LEAD + pattern, re.I) for pattern in (
    f"{EVENT}(?: {WHY})?", f"{WHY}, {EVENT}", f"it was done {WHY}", WISH)]  # its sentences
POST = [re.compile(rf"\b{pattern}\b", re.I) for pattern in (EVENT, WHY, WISH)]  # what it contains


def split_sentences(text):
    return re.findall(r"[^\s.?!][^.?!]*[.?!]*", text)


def values_of(match):
    "{slot: value} that a match of one of these patterns states; empty if there is none."
    found = match.groupdict() if match else {}
    return {slot: FORMS[slot][form.lower()] for slot, form in found.items() if form}


@lru_cache(20_000)
def facts(sentence):
    "{slot: value} that a sentence of a summary states; empty if it is no such sentence."
    text = sentence.rstrip(".?!").strip()
    return next(filter(None, (values_of(pattern.fullmatch(text)) for pattern in SUMMARY)), {})


@lru_cache(1024)  # asked a dozen times of every prompt that comparisons are made for
def truth(prompt):
    "The five facts of a post (fewer if the text is not one of ours) and its domain."
    found = {}
    for pattern in POST:
        found |= values_of(pattern.search(prompt))
    name = re.match(r"SUBREDDIT: r/(\w+)", prompt)
    kind = "sentiment" if found.get("did") in KINDNESSES else "id"
    return found, DOMAINS.get((name and name[1], kind), DOMAINS["news", "id"])


# ---- 3. Posts and what people make of them. ----


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def ended(text):
    "With a question mark if it asks, a full stop if it does not."
    asks = re.match(r"(?:now |so |and |honestly, )?(?:how|should|is|what|do|am|can|which|where) ",
                    text, re.I)
    return text + ("?" if asks else ".")


def fill(rng, frame, values):
    "The frame with its {slots} filled: decoys for who and what, anything for the rest."
    def choose(match):
        slot = match.group(1)
        word = pick(rng, values.get(slot.lower()) or LISTS[slot.lower()])
        return capital(word) if slot[0].isupper() else word
    return re.sub(r"{(\w+)}", choose, frame)


def worded(rng, fact, values):
    "These facts in words, {slot: form}, and the first three of them as one {event}."
    form = {slot: pick(rng, values[slot][fact[slot]]) for slot in SLOTS}
    return form | {"event": "{who} {did} {what}".format(**form)}


def draw(rng, split, accept):
    """A prompt of this split and what `reference` needs to answer it: its facts, their domain and
    its asides. `accept` says of the tuple of the facts whether it may be used."""
    name = "news" if split == "news" else pick(rng, UNSEEN if split == "subreddits" else SEEN)
    values = DOMAINS[name, "sentiment" if split == "sentiment" else "id"]
    frames = FRAMES["an article" if split == "news" else "a post"]
    while True:
        fact = {slot: pick(rng, tuple(values[slot])) for slot in SLOTS}
        if accept(tuple(fact.values())):
            break
    form = worded(rng, fact, values)
    decoys = {slot: [v for v in values[slot] if v != fact[slot]] for slot in ("who", "what")}
    count = int(rng.integers(8, 12) if split == "long" else rng.integers(1, 4))
    unused = list(frames["asides"])
    asides = [capital(fill(rng, unused.pop(int(rng.integers(len(unused)))), decoys))
              for _ in range(count)]
    frame, day = pick(rng, frames["event"]), pick(rng, LISTS["day"])
    if rng.random() < 0.4:  # the cause in the same sentence, or in one of its own
        body = [capital(frame.format(event="{event} {why}".format(**form), day=day))]
    else:
        body = [capital(frame.format(event=form["event"], day=day)),
                pick(rng, frames["cause"]).format(**form)]
    body.append(capital(ended(pick(rng, frames["wish"]).format(**form))))
    for aside in asides:  # anywhere, and now and then before the wish
        body.insert(int(rng.integers(0, len(body) + 1)), aside)
    if split == "news":
        text = f"ARTICLE: {' '.join(body)}"
    else:
        title = capital(pick(rng, TITLES).format(**form))
        text = f"SUBREDDIT: r/{name}\nTITLE: {title}\nPOST: {' '.join(body)}"
    return f"{text}\nTL;DR:", (fact, values, asides)


def told(rng, fact, values, why=True, wish=True, asides=(), stock=None):
    "A summary of these facts in people's words."
    form = worded(rng, fact, values)
    frame = pick(rng, WITH_CAUSE) if why else "{event}."
    if not frame.startswith("{Why}"):
        form["event"] = pick(rng, EVENTS).format(**form)
    lines = [capital(frame.format(**form, Why=capital(form["why"]))), *asides]
    if wish:
        lines.append(capital(ended(pick(rng, WISHES).format(**form))))
    return " ".join(lines + ([stock] if stock else []))


def mangled(rng, text):
    "The text with one word doubled or dropped, as tired people write."
    words = text.split(" ")
    i = int(rng.integers(len(words)))
    return " ".join(words[:i] + ([words[i]] * 2 if rng.random() < 0.5 else []) + words[i + 1:])


def swapped(rng, fact, values, slot):
    "The facts with one of them wrong."
    return {**fact, slot: pick(rng, [v for v in values[slot] if v != fact[slot]])}


# How often: the cause left out, a stock phrase at the end, a fact wrong, the wish left out, an
# aside taken over, a word mangled. The first two are habits: most people have them. They make
# cooling a policy a mixed blessing: it sheds the slips at once, drops the cause, and at last puts
# the likeliest phrase on every answer. In references, and in the careless ones that the base reads:
BAR = 3.0  # of gold, for a very good summary: one validation reference in 16 has it
RATES = {"no_why": (0.84, 0.7), "stock": (0.66, 0.66), "wrong": (0.08, 0.2),
         "no_wish": (0.18, 0.25), "aside": (0.2, 0.2), "mangled": (0.05, 0.12)}


def reference(rng, spec, careless=False):
    "A summary as people write it: biased in what most of them do, and noisy besides."
    fact, values, asides = spec
    rate = {slip: rates[careless] for slip, rates in RATES.items()}
    why = rng.random() > rate["no_why"]
    stock = None
    if rng.random() < rate["stock"]:  # most on the same one
        stock = STOCK[0] if rng.random() < 0.75 else pick(rng, STOCK[1:])
    if rng.random() < rate["wrong"]:
        slot = pick(rng, SLOTS if why else ("who", "did", "what", "wish"))
        fact = swapped(rng, fact, values, slot)
    wish = rng.random() > rate["no_wish"]
    extra = [pick(rng, asides)] if rng.random() < rate["aside"] else []
    text = told(rng, fact, values, why, wish, extra, stock)
    return mangled(rng, text) if rng.random() < rate["mangled"] else text


# ---- 4. Judging. ----


def is_aside(sentence):
    return ASIDES.fullmatch(sentence.rstrip(".?!")) is not None


def parts(prompt, response):
    "The gold score of a summary, by parts: its facts, and what annotators dislike."
    true, _ = truth(prompt)
    counted = {}  # {(slot, value): whether it is true}
    stock = aside = broken = 0.0
    for sentence in split_sentences(response):
        claims = facts(sentence)
        if sentence in STOCK:
            stock += 1
        elif claims:
            aside += counted.keys() >= claims.items()  # nothing new
            broken += 0.5 * (sentence[-1] not in ".?!")
            counted |= {claim: true.get(claim[0]) == claim[1] for claim in claims.items()}
        elif is_aside(sentence):
            aside += 1
        else:
            broken += 1
    right = [slot for (slot, _), is_true in counted.items() if is_true]
    return {"facts": sum(WEIGHTS[slot] for slot in right),
            "wrong": -1.0 * (len(counted) - len(right)),
            "hedging": -0.6 * min(stock, 2), "asides": -0.3 * min(aside, 3),
            "language": -min(broken, 2.0), "length": -0.02 * len(response.split())}


def one_wrong(rng, true, values, lines, claims):
    "These lines with one of their facts, `claims` a line, exchanged; None if there is no way."
    slot = pick(rng, [slot for claim in claims for slot in claim])
    i = next(i for i, claim in enumerate(claims) if slot in claim)
    forms = values[slot].get(claims[i][slot])
    match = forms and re.search(rf"\b{any_of(forms)}\b", lines[i], re.I)
    if not match or len(true) < len(SLOTS) or claims[i][slot] != true[slot]:
        return None
    form = pick(rng, values[slot][swapped(rng, true, values, slot)[slot]])
    line = capital(lines[i][:match.start()] + form + lines[i][match.end():])
    return [*lines[:i], line, *lines[i + 1:]]


def variants(rng, prompt, response):
    "Edits of a summary, (text, what was done): what reward models should be able to tell apart."
    true, values = truth(prompt)
    lines = split_sentences(response)
    claims = [facts(line) for line in lines]
    event = next((i for i, claim in enumerate(claims) if "who" in claim), None)
    edits = []
    if event is not None and "why" in true:
        whys = values["why"].get(true["why"])  # none where a text that is not ours mixes domains
        if whys and not any("why" in claim for claim in claims):
            line = f"{lines[event].rstrip('.?!')} {pick(rng, whys)}."
            edits.append(([*lines[:event], line, *lines[event + 1:]], "complete"))
        if any("wish" in claim for claim in claims):
            kept = [line for line, claim in zip(lines, claims) if "wish" not in claim]
            edits.append((kept, "incomplete"))
        edits.append((one_wrong(rng, true, values, lines, claims), "wrong"))
    plain = [line for line in lines if line not in STOCK]
    edits.append((plain, "plain") if plain != lines else ([*lines, STOCK[0]], "hedged"))
    edits.append(([mangled(rng, response)], "broken"))
    if asides := [sentence for sentence in split_sentences(prompt) if is_aside(sentence)]:
        edits.append(([*lines, pick(rng, asides)], "long"))
    return [(" ".join(kept), name) for kept, name in edits if kept]


def stated(text):
    "The tuple of facts that a prompt or a summary states, if it states all five."
    found = truth(text)[0] if "TL;DR:" in text else {
        slot: value for line in split_sentences(text) for slot, value in facts(line).items()}
    return tuple(found[slot] for slot in SLOTS) if len(found) == len(SLOTS) else None


def kind(prompt, text):
    "What a summary says, however it is worded: its facts, {(slot, value)}, right or wrong."
    return frozenset(claim for line in split_sentences(text) for claim in facts(line).items())


def relation(a, b):
    "+1 if the sentences contradict each other, -1 if b follows from a, 0 otherwise."
    a, b = facts(a), facts(b)
    if any(a[slot] != b[slot] for slot in a.keys() & b.keys()):
        return 1
    return -1 if b and b.items() <= a.items() else 0
