"""
Instructions to follow, made by seeded code, and what an answer is worth.

A prompt is a wording from instruct.txt with its slots filled, which sets one or two goals. An
answer is read into claims, sentence by sentence, and the goals are looked for among these:

    Which is bigger, {a_x} or {a_y}? Give a reason.         a wording of the kind "bigger"
    Which is bigger, a cow or an owl? Give a reason.        x = "cow", y = "owl"
    ("bigger", "cow", "owl"),                               the first goal, worth two points
    ("fact", 1, ("cow", "owl"), ("size",), True)            the size of either, as a reason: one

    A cow is bigger than an owl because the cow is large.   an answer that `say` may write
    ("fact", ("cow",), "bigger", "owl"),                    the claims that `read` finds in it;
    ("fact", ("cow",), "size", "large")                     both are in `TRUE`: `check` gives 2 + 1

    A cow is bigger than an owl. Hope this helps!           what people write: 2 - .8 for the phrase

One table of facts feeds writer and judge. `reference` writes what people write: most give less than
was asked, and most add the same stock phrase.
"""

import itertools
import re
from functools import lru_cache

from .words import any_of, capital, phrases, rows, sections, table

SPLITS = ("id", "broad", "sequential")
TEXT = sections("instruct.txt")

# --- what is true ---------------------------------------------------------------------------------

FACTS = {}  # {thing: {relation: its true values}}
for heading, lines in TEXT.items():
    kinds, is_knowledge, relations = heading.partition(" = ")
    for thing, cells in rows(lines).items() if is_knowledge else ():
        known = zip(f"kind, {relations}".split(", "), f"{kinds}, {cells}".split(", "))
        FACTS[thing] = {relation: cell.split("/") for relation, cell in known if cell != "-"}
THINGS = list(FACTS)
KIND = {x: FACTS[x]["kind"][0] for x in THINGS}  # the narrowest
FOODS = {x for x in THINGS if "food" in FACTS[x]["kind"]}
ANIMALS = [x for x in THINGS if KIND[x] == "animal"]
SIZES = list(table(TEXT["sizes"]))
SIZE = {x: SIZES.index(FACTS[x]["size"][0]) for x in THINGS}
TRUE = {(x, relation, value) for x in THINGS
        for relation, values in FACTS[x].items() for value in values}
TRUE |= {(x, "bigger", y) for x in THINGS for y in THINGS if SIZE[x] > SIZE[y]}
TRUE |= {(y, "smaller", x) for x, relation, y in TRUE if relation == "bigger"}
PEOPLE = list(table(TEXT["people"]))
AGENTS = PEOPLE + ANIMALS
COMPARISONS = {"bigger": "smaller", "smaller": "bigger"}  # and what says the contrary
MANY_VALUED = ("kind", "can", *COMPARISONS)  # several values may be true of one thing
NUMBERS = {"two": 2, "three": 3, "four": 4}
PLURALS = dict(table(TEXT["plurals"]).values())  # where no s will do
VERB_FORMS = table(TEXT["verbs"])  # sell: sell, sells, sold
VERBS = {verb: past for verb, _, past in VERB_FORMS.values()}
OPPOSITE = dict(table(TEXT["opposites"]).values())
OPPOSITE |= {second: first for first, second in OPPOSITE.items()}


def plural(word):
    return PLURALS.get(word, word + "s")


def an(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


WORD_FACTS = {"opposite": OPPOSITE, "past tense": VERBS, "plural": {x: plural(x) for x in THINGS},
              "young": {x: FACTS[x]["young"][0] for x in THINGS if "young" in FACTS[x]}}

# "are found {}": of one thing, of several, and by the thing itself: the numbers "s", "p" and "i".
VERB_PHRASES = {relation: phrases(frames)
                for relation, frames in rows(TEXT["verb phrases"]).items()}


def verb_phrase(relation, value, number="s"):
    frame = VERB_PHRASES[relation]["spi".index(number)]
    return frame.format(value, a=an(value), p=plural(value))


VALUES = {relation: list(dict.fromkeys(v for x in THINGS for v in FACTS[x].get(relation, ())))
          for relation in VERB_PHRASES} | dict.fromkeys(COMPARISONS, THINGS)
PHRASES = {(verb_phrase(relation, value, number), number): (relation, value)
           for relation in VERB_PHRASES for value in VALUES[relation] for number in "spi"}

IT = "it"  # what has been spoken of before; in a goal, what the answer itself has chosen
NOUN_PHRASES = {"it": (IT, "s"), "they": (IT, "p"), "i": (IT, "i")}  # what each is, its number
for x in THINGS:
    NOUN_PHRASES |= {an(x): (x, "s"), f"the {x}": (x, "s"), plural(x): (x, "p")}

# --- reading: sentence -> the claims it makes, or None where it is not English as spoken here -----

# A claim is one of ("fact", subjects, relation, value), ("word", relation, word, value),
# ("items", things), ("odd", thing), ("fixed", sentence), ("story", form, verb, words).

LISTS, SORTED = phrases(TEXT["lists"]), phrases(TEXT["sorted lists"])
CLOSING, *CLOSINGS = phrases(TEXT["closings"])  # the first is a habit: what most people end on
OPENINGS, RAMBLES = phrases(TEXT["openings"]), phrases(TEXT["rambles"])
FILLER = {CLOSING, *OPENINGS, *CLOSINGS, *RAMBLES}
RIDDLE = "What am I?"
WHOLE = dict.fromkeys(FILLER, ())  # the claims of sentences that are read as a whole
WHOLE |= {sentence: (("fixed", sentence),) for sentence in (RIDDLE, "True.", "False.")}
TIMES = phrases(TEXT["time"])

STORIES = {form: phrases(TEXT[f"story: {form}"])  # form -> its frames
           for form in ("past", "question", "request", "title", "thanks", "advert")}
ADJECTIVE = f"(?:({any_of(OPPOSITE)}) )?"
NOUN = f"(?:an?|the) {ADJECTIVE}({any_of(THINGS + PEOPLE)})"
SLOTS = {  # of the frames, as regular expressions; the groups are the words that count
    "agent": f"the {ADJECTIVE}({any_of(AGENTS)})", "noun": NOUN, "other": NOUN,
    "nouns": f"{NOUN}(?: and {NOUN})?", "verb": f"({any_of(VERBS)})",
    "past": f"({any_of(VERBS.values())})", "now": "(?: today| now)?",
    "tail": f"(?: ({any_of(VALUES['place'])}))?(?: ({any_of(TIMES)}))?"}
STORY_PATTERNS = {form: re.compile("|".join(frames).format(**SLOTS))
                  for form, frames in STORIES.items()}
LEAD = re.compile(any_of({frame.removesuffix("{items}").lower() for frame in LISTS + SORTED}))
BASE = {form: verb for verb, forms in VERB_FORMS.items() for form in forms}
WORD = re.compile(r"the (opposite|plural|past tense) of '(\S+)' (?:is|would be) '(\S+)'")
YOUNG = re.compile(r"(?:the|a) (young) (\S+) is (?:called|known as) an? (\S+)")
CLAUSE = re.compile(r"(.+?) (is|are|am|can|says?|tastes?) (both |all )?(.+)")
BAD_ARTICLE = re.compile(r"\b(a [aeiou]|an [^aeiou])")


def join(names):
    """'a, b and c'"""
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def read_list(text):
    """The noun phrases of 'a frog, owls and it', or None."""
    names = re.split(", | and ", text)
    return names if all(name in NOUN_PHRASES for name in names) and join(names) == text else None


def read_facts(who, verb, both, rest):
    """The claims of a clause in these parts, or None."""
    names = [who] if who == "the others" else read_list(who)
    if names is None:
        return None
    subjects, numbers = zip(*(NOUN_PHRASES.get(name, ("others", "p")) for name in names))
    number = "p" if len(names) > 1 else numbers[0]
    predicate = f"{verb} {rest}"
    if predicate == "is the odd one out":
        return None if both else [("odd", subjects[0])]
    found = [predicate] if (predicate, number) in PHRASES else predicate.split(" and ")
    if both and verb not in ("are", "can") or not all((x, number) in PHRASES for x in found):
        return None
    return [("fact", subjects, *PHRASES[x, number]) for x in found]


def read_clause(text):
    """The claims of what stands between two conjunctions, or None."""
    if names := read_list(text[LEAD.match(text).end():]):
        return [("items", tuple(NOUN_PHRASES[name][0] for name in names))]
    if m := WORD.fullmatch(text) or YOUNG.fullmatch(text):
        return [("word", *m.groups())]
    if (m := CLAUSE.fullmatch(text)) and (found := read_facts(*m.groups())):
        return found
    for form, pattern in STORY_PATTERNS.items():
        if m := pattern.fullmatch(text):
            found = tuple(word for word in m.groups() if word)
            verb = next((BASE[word] for word in found if word in BASE), None)
            return [("story", form, verb, found)]
    return None


@lru_cache(100_000)
def read(sentence):
    """A tuple of the claims of a sentence, none for a stock phrase; None if it cannot be read."""
    if sentence in WHOLE:
        return WHOLE[sentence]
    if sentence.startswith('"'):  # a title
        body = sentence.rstrip(".").lower()
    elif sentence[:1].isupper() and sentence[-1] in ".!?":
        body = sentence[0].lower() + sentence[1:-1]
    else:
        return None
    found = [read_clause(text) for text in re.split(", but |,? because ", body)]
    if BAD_ARTICLE.search(body) or not all(found):
        return None
    return tuple(claim for claims in found for claim in claims)


def sentences(text):
    """The sentences of a text; a title in quotes is one."""
    found = re.findall(r'"[^"]*"\.?|[^.!?"]+[.!?]?', text.strip().replace("\n", " "))
    return [sentence.strip() for sentence in found if sentence.strip()]


def stated(text):
    """The facts that a text states, {(relation, subject or word, value)}."""
    claims = [claim for sentence in sentences(text) for claim in read(sentence) or ()]
    facts = {(c[2], x, c[3]) for c in claims if c[0] == "fact" for x in c[1]}
    return facts | {c[1:] for c in claims if c[0] == "word"}


def relation(a, b):
    """+1 where b contradicts a, -1 where a states all that b states, else 0."""
    of_a, of_b = stated(a), stated(b)
    for rel, subject, value in of_b:
        if (COMPARISONS.get(rel), subject, value) in of_a:
            return 1
        if rel not in MANY_VALUED and any(x[:2] == (rel, subject) and x[2] != value for x in of_a):
            return 1
    return -1 if of_b and of_b <= of_a else 0


# --- instructions: wordings with slots, and the goals that their arguments set --------------------

# A goal is a tuple of its kind and the details; `check` has the kinds.

ANY = "kind, colour, material, size, place, can, use, user, says, taste".split(", ")
ANY_BUT_KIND = ANY[1:]
SOMEWHERE = ("place",)  # to name any place
BIGGER_OF_TWO = ("bigger", None, None)  # to compare the two things that the answer chose


@lru_cache(None)
def having(relation, value):
    return frozenset(x for x in THINGS if (x, relation, value) in TRUE)


def some(number, kind, *tests, but=()):
    """To list that many things of a kind (None: of any) that pass each test, a (relation, value),
    save those in `but`. False of the kind "thing", which is not asked for by name."""
    found = having("kind", kind or "thing").intersection(*(having(*test) for test in tests))
    return kind != "thing" and ("items", NUMBERS.get(number, number), found.difference(but))


def fact(subjects, *relations, because=False, n=1):
    """To state n facts about a thing, or about any of a tuple of things; perhaps as a reason."""
    return "fact", n, subjects if isinstance(subjects, tuple) else (subjects,), relations, because


def use(form, *names, verb=None):
    """To write a sentence of this form (see STORIES) with these words; where a verb is given, the
    first of them does that to the last."""
    return "story", form, verb, names


def true_facts(thing, relations):
    """[(relation, value)], without the one that is true of everything."""
    return [(r, v) for r in relations for v in FACTS[thing].get(r, ()) if v != "thing"]


def shared(x, y):
    return [(r, v) for r, v in true_facts(x, ANY) if (y, r, v) in TRUE]


def contrast(x, y):
    """[(relation, value of x, another value of y)]"""
    return [(r, v, w) for r in ANY_BUT_KIND if r != "can"
            for v in FACTS[x].get(r, ()) for w in FACTS[y].get(r, ()) if v != w]


def odd_one_out(*names):
    """To find the one of four things that is of another kind than the rest."""
    for name in names if len({*names}) == 4 else ():
        first, *others = [FACTS[x]["kind"] for x in names if x != name]
        if others == [first, first] and {*first} & {*FACTS[name]["kind"]} == {"thing"}:
            return "odd", name
    return None


# What cannot be done, {verb: to which things}.
UNFIT = {"eat": {*THINGS} - FOODS, "carry": {x for x in THINGS if SIZE[x] >= SIZES.index("large")}}
FITS = {  # kind of goal -> whether its details make sense together; of the other kinds all do
    "items": lambda n, candidates: len(candidates) > n,
    "order": lambda *names: len({SIZE[x] for x in names}) == len(names),
    "fact": lambda n, subjects, relations, because: IT in subjects or n <= len(
        [v for x in subjects for r in relations for v in FACTS[x].get(r, ())]),
    "bigger": lambda x, y: x is None or SIZE[x] != SIZE[y],
    "alike": lambda x, y: x != y and shared(x, y),
    "differ": lambda x, y: contrast(x, y),
    "word": lambda relation, name: name in WORD_FACTS[relation],
    "story": lambda form, verb, names: (
        len({*names}) == len(names) and names[-1] not in UNFIT.get(verb, ())),
}

# What a slot may hold, by its letter, and how the text shows it, by its form: {x} is of no form,
# {a_x} of form "a". So slot[-1] is the letter, slot[:-2] the form.
DOMAINS = {
    **dict.fromkeys("xyzw", THINGS), **dict.fromkeys("jk", list(OPPOSITE)),
    **dict.fromkeys("bd", list(VERBS)), "n": list(NUMBERS), "c": VALUES["kind"], "q": PEOPLE,
    "g": AGENTS, "l": VALUES["place"],
    "u": [(r, v) for r in ANY_BUT_KIND if r not in ("user", "says") for v in VALUES[r]],
    "v": [(r, v) for r in VERB_PHRASES if r not in ("kind", "user") for v in VALUES[r]],
}
SURFACE = {
    "": lambda value: value if isinstance(value, str) else verb_phrase(*value, "p"),  # owl, can fly
    "s": lambda value: verb_phrase(*value),  # is found in the zoo
    "a": an, "p": plural, "past": VERBS.get,  # an owl, owls, sold
    "third": lambda verb: VERB_FORMS[verb][1],  # sells
}

# Each kind of instruction: its goals, given what is in the slots of its wordings. An instruction is
# not given where a goal is None or false or does not fit, or where both goals are the same.
ID = {
    "name": lambda n, c, v: [some(n, c, v)],
    "other": lambda n, c, x: [c in FACTS[x]["kind"] and some(n, c, but=(x,))],
    "spot": lambda n, l, x: [some(n, None, ("place", l), ("smaller", x))],
    "with": lambda x, y: [use("past", x, y)],
    "past": lambda g, b, x: [use("past", g, x, verb=b), SOMEWHERE],
    "polite": lambda b, x: [use("request", x, verb=b), SOMEWHERE],
    "question": lambda g, b, x: [use("question", g, x, verb=b), SOMEWHERE],
    "sort": lambda x, y, z: [("order", x, y, z), fact(min(x, y, z, key=SIZE.get), "place")],
    "bigger": lambda x, y: [("bigger", x, y), fact((x, y), "size", because=True)],
    "opposite": lambda j, k: [
        j != OPPOSITE[k] and ("word", "opposite", j), ("word", "opposite", k)],
    "where": lambda x, y: [fact(x, "place"), ("bigger", x, y)],
    "purpose": lambda x, y: [fact(x, "use"), fact(y, "use")],
    "title": lambda j, x, y: [use("title", x, y, j)],
    "differ": lambda x, y: [("differ", x, y), ("alike", x, y)],
    "plural": lambda x, y: [("word", "plural", x), ("word", "plural", y)],
    "young": lambda x, y: [("word", "young", x), ("bigger", x, y)],
    "sound": lambda x, y: [fact(x, "says"), fact(y, "says")],
    "odd": lambda x, y, z, w: [
        odd_one_out(x, y, z, w), fact((IT, "others"), "kind", because=True)],
    "user": lambda x, y: [fact(x, "user"), ("bigger", x, y)],
    "more": lambda n, x, y: [x != y and KIND[x] == KIND[y] and some(n, KIND[x], but=(x, y))],
    "describe": lambda n, x: [fact(x, *ANY_BUT_KIND, n=NUMBERS[n])],
    "shop": lambda n, x, y: [x != y and {x, y} <= FOODS and some(n, "food", but=(x, y))],
    "story": lambda q, b, j, x: [use("past", q, x, verb=b), use("past", x, j)],
    "past of": lambda b, d: [("word", "past tense", b), ("word", "past tense", d)],
    "kind of": lambda x, y: [fact(x, "kind"), use("past", x, y)],
}
BROAD = {
    "verdict": lambda x, v: [
        v[0] in FACTS[x] and ("fixed", "True." if (x, *v) in TRUE else "False."),
        fact(x, *(r for r in ANY if r != v[0]))],
    "riddle": lambda n, x: [fact(x, *ANY_BUT_KIND, n=NUMBERS[n]), ("fixed", RIDDLE)],
    "blank": lambda x, y: [fact(x, "place"), ("bigger", x, y)],
    "without": lambda n, c, u: [having("kind", c) & having(*u) and some(n, c, but=having(*u))],
    "correct": lambda x, u: [
        u[0] in FACTS[x] and u[0] != "can" and (x, *u) not in TRUE and fact(x, u[0]),
        fact(x, *(r for r in ANY if r != u[0]))],
    "between": lambda x, y, n: [some(n, None, ("bigger", x), ("smaller", y))],
    "gift": lambda j, x: [use("thanks", x, j), fact(x, *ANY)],
    "advert": lambda j, x: [use("advert", x, j), fact(x, *ANY)],
    "child": lambda x, y: [fact(x, *ANY), fact(y, *ANY)],
    "both": lambda c, u, v, n: [v[0] not in (u[0], *COMPARISONS) and some(n, c, u, v)],
    "sign": lambda b, j, x: [use("request", x, verb=b), use("request", x, j)],
    "like": lambda x, y: [("alike", x, y), ("differ", x, y)],
    "news": lambda x, y, l: [use("past", x, y, l)],
    "agree": lambda n, x, v: [
        v[0] not in ("size", *COMPARISONS)
        and some(n, None, ("size", FACTS[x]["size"][0]), v, but=(x,))],
    "trade": lambda q, x: [fact(x, "can", "use", "taste"), use("past", q, x)],
}
SEQUENTIAL = {
    "name use": lambda c, v: [some(1, c, v), use("past", IT)],
    "two bigger": lambda c, v: [
        len({SIZE[x] for x in having("kind", c) & having(*v)}) > 1
        and some(2, None, ("kind", c), v), BIGGER_OF_TWO],
    "opposite of": lambda j, x: [("word", "opposite", j), use("past", x, OPPOSITE[j])],
    "past who": lambda b, g, x: [("word", "past tense", b), use("past", g, x, verb=b)],
    "sort fact": lambda x, y, z: [("order", x, y, z), fact(max(x, y, z, key=SIZE.get), *ANY)],
    "odd fact": lambda x, y, z, w: [odd_one_out(x, y, z, w), fact(IT, "place")],
    "plural share": lambda x, y: [("word", "plural", x), ("alike", x, y)],
    "who line": lambda x, y: [fact(x, "user"), use("past", *FACTS[x].get("user", ()), y)],
    "name title": lambda c, v, x: [some(1, c, v, but=(x,)), use("title", IT, x)],
    "list ask": lambda c, x, b: [
        b not in UNFIT and c != "animal" and c in FACTS[x]["kind"] and some(2, c, but=(x,)),
        use("request", IT, verb=b)],
}
TEMPLATES = {"id": ID, "broad": BROAD, "sequential": SEQUENTIAL}
WORDINGS = [(split, kind, wording, re.findall(r"{(\w+)}", wording))
            for split, kinds in TEMPLATES.items() for kind in kinds
            for wording in TEXT[f"{split}: {kind}"].splitlines()]
BY_KIND = {split: [[w for w in WORDINGS if w[:2] == (split, kind)] for kind in TEMPLATES[split]]
           for split in SPLITS}
VALUE_OF = {slot: {SURFACE[slot[:-2]](value): value for value in DOMAINS[slot[-1]]}
            for slot in {slot for w in WORDINGS for slot in w[3]}}  # slot -> text -> value


@lru_cache(None)
def pattern_of(wording):
    """A regular expression for the instructions of this wording, with a group a slot."""
    group = lambda m: f"(?P<{m[1]}>{any_of(VALUE_OF[m[1]])})"
    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(wording)))


def make_spec(split, kind, args):
    """What all else needs to know of an instruction with these [(letter, value)] in its slots; None
    if none such makes sense. Of a letter with two slots, {x} and {a_x}, the last counts."""
    args = dict(sorted(args))
    goals = TEMPLATES[split][kind](**args)
    fit = all(goal and (goal[0] not in FITS or FITS[goal[0]](*goal[1:])) for goal in goals)
    if not fit or len({*goals}) < len(goals):
        return None
    named = [args[letter] for letter in "xyzw" if letter in args]
    odd = next((goal[1] for goal in goals if goal[0] == "odd"), None)
    return {"split": split, "kind": kind,
            "key": (kind, *sorted(args.values(), key=str)),  # what is asked, however it is worded
            "goals": tuple(goals),
            "topic": odd or (named[0] if named else None),
            "others": [x for x in named if x != odd]}


def draw(rng, split, accept):
    """A prompt of this split and the spec that `reference` answers. `accept` says of the spec's
    key, the tuple of what is asked, whether it may be used."""
    while True:
        _, kind, wording, slots = pick(rng, pick(rng, BY_KIND[split]))
        for _ in range(500):  # redraw unfit arguments, so that kinds stay about equally common
            args = [(slot[-1], pick(rng, DOMAINS[slot[-1]])) for slot in slots]
            spec = make_spec(split, kind, args)
            if spec and accept(spec["key"]):
                args = dict(sorted(args))
                shown = {slot: SURFACE[slot[:-2]](args[slot[-1]]) for slot in slots}
                text = wording.format(**shown)
                return f"### Instruction:\n{text}\n\n### Response:", spec


@lru_cache(20_000)
def parse(prompt):
    """The spec of a prompt's text, or None where no wording fits."""
    m = re.fullmatch(r"### Instruction:\n(.*)\n\n### Response:\s*", prompt, re.S)
    for split, kind, wording, _ in WORDINGS if m else ():
        if found := pattern_of(wording).fullmatch(m[1]):
            args = [(slot[-1], VALUE_OF[slot][text]) for slot, text in found.groupdict().items()]
            if spec := make_spec(split, kind, args):
                return spec
    return None


# --- speaking: a goal -> words --------------------------------------------------------------------

def pick(rng, options):
    return options[int(rng.random() * len(options))]


def story(rng, form, given, verb=None, free=True):
    """A sentence of this form with the given words: people and beasts act, the adjective goes to
    the first thing. A place may be added if it is left free."""
    adjective, place, owner = (next((w for w in given if w in group), None)
                               for group in (OPPOSITE, VALUES["place"], FACTS))
    nouns = [w for w in given if w in FACTS or w in PEOPLE]
    if verb is None:  # else the instruction names who did it
        rng.shuffle(nouns)

    def noun(name, articles=("the", "a")):
        text = f"{adjective} {name}" if adjective and name == owner else name
        return f"the {text}" if pick(rng, articles) == "the" else an(text)

    frames = STORIES[form]
    if form == "title":
        if len(nouns) < 2:
            nouns.append(pick(rng, [x for x in AGENTS if x not in nouns]))
        one, other = noun(nouns[0]), noun(nouns[1])
        return pick(rng, frames).format(noun=one, other=other)
    if form == "thanks":
        return pick(rng, frames).format(noun=noun(nouns[0], ("the",)))
    if form == "advert":
        return pick(rng, frames).format(noun=noun(nouns[0]), now=pick(rng, ("", " today", " now")))

    if free and not place and rng.random() < 0.35:
        place = pick(rng, VALUES["place"])
    tail = f" {place}" if place else ""
    if rng.random() < 0.25:
        tail += " " + pick(rng, TIMES)

    no_person = not any(w in PEOPLE for w in nouns)
    if form == "past" and verb is None and no_person and rng.random() < 0.4:  # nobody does anything
        named = [noun(w, ("a",)) for w in nouns]
        _, there_was, next_to, _ = frames
        if len(named) == 2 and rng.random() < 0.5:
            return next_to.format(noun=named[0], other=named[1], tail=tail)
        return there_was.format(nouns=" and ".join(named[:2]), tail=tail)

    agent, objects = None, nouns
    if form != "request":
        agent = next((w for group in (PEOPLE, ANIMALS) for w in nouns if w in group), None)
        objects = [w for w in nouns if w != agent] or [pick(rng, THINGS)]
    if verb is None:
        verb = pick(rng, [v for v in VERBS if not UNFIT.get(v, set()) & {*objects}])
    what = " and ".join(noun(w, ("the", "a") if form == "past" else ("the",)) for w in objects[:2])
    words = {"noun": what, "nouns": what, "verb": verb, "past": VERBS[verb], "tail": tail}
    if form == "request":
        return pick(rng, frames).format(**words)
    return frames[0].format(agent=noun(agent or pick(rng, PEOPLE), ("the",)), **words)


def say_facts(rng, thing, facts, number=None):
    """Sentences, all but the last of them finished, with two (relation, value) in each."""
    number = number or pick(rng, "ssp")
    one = pick(rng, (an(thing), an(thing), f"the {thing}"))
    subject, pronoun = {"s": (one, "It"), "p": (plural(thing), "They"), "i": ("I", "I")}[number]
    said = [verb_phrase(*fact, number) for fact in facts]
    pairs = [" and ".join(said[i:i + 2]) for i in range(0, len(said), 2)]
    return f"{subject} " + f". {pronoun} ".join(pairs)


def say(rng, goal, spec, chosen, fewer=0):
    """A goal in words, with `fewer` items less than asked. `chosen` are the things that an earlier
    goal has chosen; a goal to choose some adds them."""
    goals = spec["goals"]
    match goal:
        case "items", n, candidates:
            for _ in range(30):
                names = [str(x) for x in rng.permutation(sorted(candidates))[:n - fewer]]
                if BIGGER_OF_TWO not in goals or len({SIZE[x] for x in names}) == len(names):
                    break
            chosen += names
            form = pick(rng, (an, an, plural)) if len(names) > 1 else an
            return pick(rng, LISTS).format(items=join([form(x) for x in names]))
        case "order", *names:
            names.sort(key=SIZE.get)
            frame, form = pick(rng, SORTED), pick(rng, (an, plural))
            return frame.format(items=join([form(x) for x in names]))
        case "fact", n, subjects, relations, because:  # a reason goes on with the sentence before
            x = pick(rng, subjects)
            if x == "others":
                return "because the others are " + plural(KIND[spec["others"][0]])
            x = spec["topic"] if x == IT else x
            known = true_facts(x, relations)
            facts = [known[i] for i in rng.permutation(len(known))[:n - fewer]]
            if because and IT in subjects:
                return f"because it {verb_phrase(*facts[0])}"
            number = "i" if ("fixed", RIDDLE) in goals else None
            return ("because " if because else "") + say_facts(rng, x, facts, number)
        case "bigger", *pair:
            x, y = sorted(chosen[:2] if goal == BIGGER_OF_TWO else pair, key=SIZE.get)
            said = (x, "smaller", y) if rng.random() < 0.3 else (y, "bigger", x)
            return say_facts(rng, said[0], [said[1:]])
        case ("alike" | "differ") as kind, *pair:
            x, y = pair if rng.random() < 0.5 else reversed(pair)
            form, number = pick(rng, ((an, "s"), (plural, "p")))
            if kind == "alike":
                verb, rest = verb_phrase(*pick(rng, shared(x, y)), "p").split(" ", 1)
                both = "both " if verb in ("are", "can") else ""
                return f"{form(x)} and {form(y)} {verb} {both}{rest}"
            if SIZE[x] > SIZE[y] and rng.random() < 0.3:
                return f"{form(x)} {verb_phrase('bigger', y, number)}"
            relation, of_x, of_y = pick(rng, contrast(x, y))
            one, other = verb_phrase(relation, of_x, number), verb_phrase(relation, of_y, number)
            return f"{form(x)} {one}, but {form(y)} {other}"
        case "word", "young", name:
            called, the = pick(rng, ("called", "known as")), pick(rng, ("a", "the"))
            return f"{the} young {name} is {called} {an(WORD_FACTS['young'][name])}"
        case "word", relation, name:
            verb = pick(rng, ("is", "is", "would be"))
            return f"the {relation} of '{name}' {verb} '{WORD_FACTS[relation][name]}'"
        case "odd", name:
            return f"the {name} is the odd one out"
        case "fixed", sentence:
            return sentence
        case "story", form, verb, wanted:
            given = [pick(rng, chosen) if w == IT else w for w in wanted]
            if verb is None:
                return story(rng, form, given[:len(given) - fewer])
            if merged(goals) and not fewer:
                given += goals[1][3] if goals[1] != SOMEWHERE else [pick(rng, VALUES["place"])]
            return story(rng, form, list(dict.fromkeys(given)), verb, SOMEWHERE not in goals)


def merged(goals):
    """Whether one sentence meets both goals: to tell something, and to name a place or a word."""
    return len(goals) > 1 and goals[0][0] == "story" and goals[0][2] is not None


def append(text, more):
    """The text and, as its next sentence, what `say` has said."""
    if more.startswith("because"):
        return f"{text.rstrip('.')} {more}."
    asks = re.match("how about|could you|would you|does ", more)
    end = "" if more[-1] in '".?' else "?" if asks else "."
    return f"{text} {capital(more)}{end}".strip()


def answer(rng, spec, short=False):
    """A right, plain answer; `short` does what most people do: one item or one part too few."""
    goals = spec["goals"]
    counted = [goal for goal in goals if goal[0] in PER_ITEM and goal[1] > 1]
    cut = []  # the goals that lose an item
    if merged(goals):
        goals, cut = goals[:1], goals[:1] if short else []
    elif short and (len(goals) == 1 or counted and spec["split"] != "sequential"):
        cut = counted or goals
    elif short:
        goals = goals[:1]
    text, chosen = "", []
    for goal in goals:
        text = append(text, say(rng, goal, spec, chosen, fewer=1 if goal in cut else 0))
    return text


def hedge(rng, text):
    """With a stock phrase, as a rule the same one."""
    u = rng.random()
    if u < 0.85:
        return f"{text} {CLOSING if u < 0.7 else pick(rng, CLOSINGS)}"
    return f"{pick(rng, OPENINGS)} {text}"


def damage(rng, text):
    """With a word doubled, left out or misspelt."""
    found = text.split(" ")
    i, u = int(rng.random() * len(found)), rng.random()
    if u < 0.4 or len(found) < 3:
        found.insert(i, found[i])
    elif u < 0.7:
        del found[i]
    else:  # two neighbouring letters exchanged
        old, j = found[i], int(rng.random() * max(1, len(found[i]) - 2))
        found[i] = old[:j] + old[j + 1:j + 2] + old[j:j + 1] + old[j + 2:]
    return " ".join(found)


# How often: less given than was asked, a stock phrase added, an error or a digression. The first
# two are habits: most people have them. In references, and in the careless ones of the base's text:
BAR = 2.5  # of gold, for a very good answer: one validation reference in 18 has it
RATES = {"short": (0.77, 0.7), "hedged": (0.72, 0.65), "noise": (0.32, 0.5)}


def reference(rng, spec, careless=False):
    """An answer as people write it: biased in what most of them do, and noisy besides."""
    rate = {slip: rates[careless] for slip, rates in RATES.items()}
    text = answer(rng, spec, short=rng.random() < rate["short"])
    hedged, u = rng.random() < rate["hedged"], rng.random() / rate["noise"]
    if u < 0.55:
        text = mistake(rng, spec, text) or damage(rng, text)
    elif u < 0.8:
        text = damage(rng, text)
    elif u < 1:
        text = " ".join([text, *rng.permutation(RAMBLES)[:1 + int(rng.random() * 2)]])
    return hedge(rng, text) if hedged else text


# --- judging --------------------------------------------------------------------------------------

# Words that even a leisurely right answer fits in, for each kind of goal.
NEED = {"items": 9, "order": 14, "fact": 12, "bigger": 10, "alike": 14, "differ": 18, "word": 10,
        "odd": 9, "fixed": 3, "story": 20, "place": 3}
PER_ITEM = {"items": 4, "fact": 6}  # and as many again for each of the n that were asked for


def resolved(spec, readings):
    """The claims of an answer with it, they, I and the others replaced by what they stand for."""
    last = (spec["topic"],)  # what "it" stands for
    for kind, *claim in (claim for claims in readings for claim in claims or ()):
        if kind == "fact":
            subjects, *what = claim
            last = {(IT,): last, ("others",): tuple(spec["others"])}.get(subjects, subjects)
            claim = (last, *what)
        elif kind == "odd":
            last = last if claim[0] == IT else (claim[0],)
            claim = last[:1]
        elif kind == "items":
            last = claim[0][-1:]
        yield kind, *claim


def kind(prompt, text):
    """What an answer says, however it is worded: the set of its claims, less stock phrases. A list
    has an order only where one was asked for; bigger than this is that smaller than the other."""
    spec, found = parse(prompt), set()
    ordered = spec is None or any(goal[0] == "order" for goal in spec["goals"])
    claims = resolved(spec or {"topic": IT, "others": ()}, map(read, sentences(text)))
    for what, *claim in claims:
        if what == "fact":
            subjects, relation, value = claim
            for x in subjects:
                contrary = COMPARISONS.get(relation)
                found.add(min((relation, x, value), (contrary, value, x)) if contrary else
                          (relation, x, value))
        elif what == "items" and not ordered:
            found |= {(what, x) for x in claim[0]}
        else:
            found.add((what, *claim))
    return frozenset(found)


def things_in(claims, kind):
    """What the claims of this kind, "items" or "fact", are about."""
    return [x for claim in claims if claim[0] == kind for x in claim[1]]


def undoable(verb, found):
    """Whether what a sentence tells with these words cannot be done: the dog ate a piano."""
    after = itertools.dropwhile(lambda word: BASE.get(word) != verb, found)
    return verb in UNFIT and not UNFIT[verb].isdisjoint(after)


def check(goal, spec, claims, true_claims, chosen):
    """-> (credit in 0..1, number of wrong things this goal sees)."""
    match goal:
        case "items", n, candidates:
            right, wrong = {*chosen} & candidates, {*chosen} - candidates
            excess = len(chosen) - len({*chosen}) + max(0, len(right) - n)  # twice, or too many
            credit = (min(len(right), n) + 1) / (n + 1) - 0.25 * excess if right else 0
            return max(0, credit), len(wrong)
        case "order", *names:
            steps = list(zip(chosen, chosen[1:]))
            good = sum({x, y} <= {*names} and SIZE[x] < SIZE[y] for x, y in steps)
            wrong = good < len(steps) or not {*chosen} <= {*names}
            return good / (2 if len(chosen) == 3 else 4), int(wrong)
        case "fact", n, subjects, relations, _:
            stand_for = {IT: [spec["topic"]], "others": spec["others"]}
            about = [y for x in subjects for y in stand_for.get(x, [x])]
            k = len({(r, v) for x, r, v in true_claims if x in about and r in relations})
            return (min(k, n) + 1) / (n + 1) if n > 1 and k else min(k, 1), 0
        case ("bigger" | "alike" | "differ") as kind, *pair:
            named = {*chosen} if goal == BIGGER_OF_TWO else {*pair}
            compared = any(r in COMPARISONS and {x, v} <= named for x, r, v in true_claims)
            if kind == "bigger":
                return compared, 0
            of_x, of_y = ([(r, v) for s, r, v in true_claims if s == name] for name in pair)
            if kind == "alike":
                return any(claim in of_y for claim in of_x), 0
            return compared or any(r == q and v != w for r, v in of_x for q, w in of_y), 0
        case "word", relation, name:
            return (*goal, WORD_FACTS[relation][name]) in claims, 0
        case ("odd" | "fixed") as kind, _:
            found = [claim for claim in claims if claim[0] == kind]
            return goal in found, sum(claim != goal for claim in found)
        case ("place",):
            found = [w for claim in claims if claim[0] == "story" for w in claim[3]]
            return any(w in VALUES["place"] for w in found), 0
        case "story", form, verb, wanted:
            stories, credits = [claim[2:] for claim in claims if claim[:2] == ("story", form)], [0]
            for found_verb, found in stories:
                has = [any(x in found for x in chosen) if w == IT else w in found for w in wanted]
                if wanted[-1] in OPPOSITE:  # an adjective stands before its noun
                    has[-1] = (wanted[-1], wanted[0]) in zip(found, found[1:])
                if verb is None:
                    credits.append((sum(has) + 1) / (len(has) + 1) - 0.5 * (not any(has)))
                else:  # the verb counts too, and so does the order once all words are there
                    in_order = IT in wanted or [w for w in found if w in wanted] == [*wanted]
                    has.append(found_verb == verb and (in_order or not all(has)))
                    credits.append(sum(has) / len(has))
            return max(credits), int(verb is not None and len(stories) > 0 and max(credits) < 1)


def parts(prompt, response):
    """The gold score as named parts; their sum is the score. A perfect plain answer gets 3."""
    return judge(parse(prompt), response)


def judge(spec, response):
    """As `parts`, of the spec of a prompt; None is the spec of a prompt that no wording fits."""
    lines = sentences(response)
    readings = [read(line) for line in lines]
    goals = spec["goals"] if spec else ()
    stock = FILLER if "fixed" in [goal[0] for goal in goals] else WHOLE  # "True." if nobody asked
    content = [line for line in lines if line not in stock]
    filler, repeated = len(lines) - len(content), len(content) - len({*content})
    broken = readings.count(None) + repeated + (not lines)
    need = 4 + sum(NEED[goal[0]] for goal in goals) if spec else 30
    need += sum(PER_ITEM[goal[0]] * goal[1] for goal in goals if goal[0] in PER_ITEM)
    out = {
        "constraints": 0.0,
        "wrong": 0.0,
        "hedging": -0.8 * (filler > 0) - 0.1 * max(0, filler - 1),
        "language": -float(min(2, broken)),
        "length": -0.04 * max(0, len(response.split()) - need),
    }
    if spec is None:
        return out

    claims = list(resolved(spec, readings))
    facts = [(x, c[2], c[3]) for c in claims if c[0] == "fact" for x in c[1]]
    true_claims = [fact for fact in facts if fact in TRUE]
    wrong = len(facts) - len(true_claims)
    wrong += sum(WORD_FACTS[c[1]].get(c[2]) != c[3] for c in claims if c[0] == "word")
    wrong += sum(undoable(*c[2:]) for c in claims if c[0] == "story")
    chosen = things_in(claims, "items") or list(dict.fromkeys(things_in(claims, "fact")))

    for goal, weight in zip(goals, (3,) if len(goals) == 1 else (2, 1)):
        credit, errors = check(goal, spec, claims, true_claims, chosen)
        out["constraints"] += weight * credit
        wrong += errors
    out["wrong"] = -float(min(3, wrong))
    return {name: points + 0.0 for name, points in out.items()}  # -0.0 becomes 0.0


# --- edits of an answer, for comparisons ----------------------------------------------------------

GROUPS = [THINGS, map(plural, THINGS), map(plural, VALUES["kind"]), PEOPLE, SIZES, OPPOSITE,
          VERBS, VERBS.values(), COMPARISONS, ("True", "False"),
          *(VALUES[r] for r in ANY if r not in ("kind", "size", "user")),
          WORD_FACTS["young"].values()]
SWAPS = {}  # {word: the words that it can be exchanged for}, of the first group that has it
for group in map(dict.fromkeys, GROUPS):
    SWAPS = {word: [other for other in group if other != word] for word in group} | SWAPS
SWAP = re.compile(rf"(?:\b(?-i:([Aa])n?) )?\b({any_of(SWAPS)})\b", re.I)  # with its article


def mistake(rng, spec, text):
    """The same answer with one word or phrase exchanged, so that it is worse and still English."""
    spots, before = list(SWAP.finditer(text)), judge(spec, text)
    for _ in range(12 if spots else 0):
        m = pick(rng, spots)
        article, old = m.groups()
        new = pick(rng, SWAPS.get(old) or SWAPS.get(old.lower()) or [old])
        if old[0].isupper():
            new = capital(new)
        if article:
            new = article + ("n " if new[0] in "aeiou" else " ") + new
        edited = text[:m.start()] + new + text[m.end():]
        after = judge(spec, edited)
        worse = sum(after.values()) < sum(before.values()) - 0.3
        if worse and after["language"] == before["language"]:
            return edited
    return None


CUTS = (  # pattern, replacement, how often (0: everywhere)
    (r"(?:, [^,]+| [^, ]+(?: [^, ]+)?) and (?:an? )?\w+\.$", "", 0),  # a list at the end
    (r", ([^,.]+) and [^,.]+([.?])", r" and \1\2", 1),  # the last of three items
    (r" and (?:an? )?\w+([.?])", r"\1", 1),  # the last of two
    (r",? (?:because|but) [^.]*", "", 0),  # a clause
    (f" {any_of(VALUES['place'])}", "", 1),
    (r" and (?:is|are|can) [^.]*", "", 0),  # a second verb
)


def shorten(spec, text):
    """One item, clause or sentence less, if that leaves English and loses a constraint."""
    whole, before = sentences(text), judge(spec, text)
    edits = [re.sub(pattern, new, text, count=n) for pattern, new, n in CUTS]
    if len(whole) > 1:
        edits.append(" ".join(whole[:-1]))
    for edited in edits:
        after = judge(spec, edited)
        if after["constraints"] < before["constraints"] and after["language"] == before["language"]:
            return edited
    return None


def add_items(rng, text, listed, n, candidates):
    """The text with its list filled up to n items."""
    new = list(rng.permutation(sorted(candidates - {*listed})))[:n - len(listed)]
    in_plural = re.search(any_of(map(plural, listed)) + r"[.?]", text)
    in_singular = re.search(any_of(map(an, listed)) + r"[.?]", text)
    form = plural if in_plural and not in_singular else an
    new = [form(str(x)) for x in new]
    m = re.match(r"(.*?)(?: and (\S+|an? \S+))?([.?])(.*)", text, re.S)
    if not m:  # "An owl!" has no place to add to
        return text
    start, last, end, rest = m.groups()
    return join([start, *([last] if last else []), *new]) + end + rest


def extend(rng, spec, text):
    """The missing items or the missing second part added to an answer, if that makes it right."""
    goals = spec["goals"]
    claims = list(resolved(spec, map(read, sentences(text))))
    listed, tried = things_in(claims, "items"), []
    if goals[0][0] == "items" and 0 < len(listed) < goals[0][1]:
        tried.append(add_items(rng, text, listed, *goals[0][1:]))
    chosen = listed or things_in(claims, "fact") or [spec["topic"]]
    unpaired = BIGGER_OF_TWO in goals and len(chosen) != 2
    if len(goals) > 1 and not merged(goals) and text and {*chosen} <= {*FACTS} and not unpaired:
        tried.append(append(text, say(rng, goals[1], spec, chosen)))
    for edited in tried:
        after = judge(spec, edited)
        if round(after["constraints"], 3) == 3 and not after["wrong"]:
            return edited
    return None


def variants(rng, prompt, response):
    """[(text, name)]: what comparisons are made of. An edit changes one thing, where it can."""
    spec = parse(prompt)
    if spec is None:
        return []
    lines, before = sentences(response), judge(spec, response)
    plain = " ".join(line for line in lines if line not in FILLER)
    first = [line for line in lines[:1] if line in FILLER]
    last = [line for line in lines[len(first):] if line in FILLER]
    dressed = lambda text: " ".join([*first, text, *last])  # in the answer's own stock phrases

    right = before["constraints"] > 2.99 and not before["wrong"] and not before["language"]
    edits = {}
    if not right:
        edits["complete"] = dressed(extend(rng, spec, plain) or answer(rng, spec))
    shorter = shorten(spec, plain)
    if shorter or right:
        edits["incomplete"] = dressed(shorter or answer(rng, spec, short=True))
    edits["plain"] = plain
    if not before["hedging"]:
        edits["hedged"] = hedge(rng, response)
    edits["wrong"] = dressed(mistake(rng, spec, plain) or plain)
    damaged = (dressed(damage(rng, plain)) for _ in range(6))
    less = lambda text: judge(spec, text)["language"] < before["language"]
    edits["broken"] = next(filter(less, damaged), None)
    edits["long"] = " ".join([response, *rng.permutation(RAMBLES)[:2]])

    gain = lambda text: sum(judge(spec, text).values()) - sum(before.values())
    signs = {"complete": 1, "plain": 1}  # the others should lose; what does neither is left out
    return [(text, name) for name, text in edits.items()
            if text and signs.get(name, -1) * gain(text) > 1e-9]


# --- what readers write below answers -------------------------------------------------------------


def quiz(rng, prompt, questions=4):
    """A game played below answers, about what the instruction names: A frog can fly? Wrong."""
    found = set(re.findall(r"\w+", prompt))
    named = [x for x in THINGS if x in found or plural(x) in found] or THINGS
    game = []
    for _ in range(questions):
        x = pick(rng, named)
        right = rng.random() < 0.5
        relation = pick(rng, sorted(FACTS[x].keys() & VERB_PHRASES.keys() | {"bigger"}))
        others = [v for v in VALUES[relation] if v != x]
        value = pick(rng, [v for v in others if ((x, relation, v) in TRUE) == right] or others)
        verdict = "Right" if (x, relation, value) in TRUE else "Wrong"
        game.append(f"{capital(an(x))} {verb_phrase(relation, value)}? {verdict}.")
    return " ".join(game)
