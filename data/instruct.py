"""The instruct half of the embedded world: prompts, careless people's answers, and an exact gold.

One knowledge base feeds everything. An instruction is a wording with slots; its arguments become
`goals`; `say` voices a goal and `parts` checks the very same goals against the claims that
`read` finds in an answer, so the generator and the judge cannot drift apart.
"""
import re
from functools import lru_cache

SPLITS = ("id", "broad", "sequential")

# --- what is true ---------------------------------------------------------------------------------
KB = """animal: size colour place can says young
dog middle-sized brown on_a_farm swim,dig woof puppy | cat small black on_a_farm climb meow kitten
cow large brown on_a_farm give_milk moo calf | pig middle-sized pink on_a_farm dig oink piglet
sheep middle-sized white on_a_farm give_milk baa lamb
goat middle-sized grey on_a_farm give_milk,climb baa kid
horse large black on_a_farm carry_a_rider neigh foal
donkey large grey on_a_farm carry_a_rider - foal | hen small brown on_a_farm lay_eggs cluck chick
duck small white in_the_pond swim,fly,lay_eggs quack duckling
goose small grey in_the_pond swim,fly,lay_eggs - gosling
frog tiny green in_the_pond swim,lay_eggs croak tadpole
bee tiny yellow in_the_garden fly,lay_eggs buzz -
snail tiny brown in_the_garden climb,lay_eggs - -
mouse tiny grey in_the_garden dig,climb squeak pup | rabbit small white in_the_garden dig - -
owl small brown in_the_forest fly,lay_eggs hoot chick
bear large brown in_the_forest climb,swim growl cub | fox small red in_the_forest dig - cub
squirrel small red in_the_forest climb - - | lion large yellow in_the_zoo - roar cub
elephant huge grey in_the_zoo carry_a_rider - calf
penguin small black in_the_zoo swim,lay_eggs - chick | shark large grey in_the_sea swim - pup
whale huge blue in_the_sea swim - calf | crab tiny red in_the_sea swim,lay_eggs - -
fruit: size colour taste place
apple small red sweet in_the_garden | pear small green sweet in_the_garden
cherry tiny red sweet in_the_garden | plum tiny purple sweet in_the_garden
banana small yellow sweet in_the_kitchen | lemon small yellow sour in_the_kitchen
lime tiny green sour in_the_kitchen | grape tiny purple sweet in_the_kitchen
melon middle-sized green sweet in_the_kitchen
vegetable: size colour taste place
carrot small orange sweet in_the_garden | pea tiny green sweet in_the_garden
cabbage middle-sized green bitter in_the_garden | potato small brown plain in_the_kitchen
onion small white bitter in_the_kitchen | pumpkin large orange plain in_the_garden
snack: size colour taste place
cake middle-sized brown sweet in_the_kitchen | biscuit tiny brown sweet in_the_kitchen
egg tiny white plain in_the_kitchen | pie middle-sized yellow sweet in_the_kitchen
sausage small pink salty in_the_kitchen | pancake small yellow plain in_the_kitchen
tool: size material place use user
hammer small metal in_the_workshop hitting_nails carpenter
saw small metal in_the_workshop cutting_wood carpenter
ladder large wood in_the_workshop reaching_the_roof painter
brush small wood in_the_workshop painting_walls painter
spade middle-sized metal in_the_garden digging_holes gardener
bucket middle-sized metal in_the_garden carrying_water gardener
broom middle-sized wood in_the_kitchen sweeping_floors cook
knife small metal in_the_kitchen cutting_bread cook
spoon tiny metal in_the_kitchen stirring_soup cook | pan small metal in_the_kitchen frying_eggs cook
needle tiny metal in_the_workshop mending_clothes tailor
pen tiny plastic in_the_office writing_letters teacher
ruler small plastic in_the_office drawing_lines teacher
clock small plastic in_the_office telling_the_time teacher
piece of furniture: size material place use
chair middle-sized wood in_the_kitchen sitting_down | table large wood in_the_kitchen eating_dinner
bed large wood in_the_bedroom sleeping | desk large wood in_the_office writing_letters
sofa large leather in_the_bedroom sitting_down | shelf middle-sized wood in_the_office storing_books
lamp small metal in_the_bedroom reading_at_night
piece of clothing: size material place use
hat small wool in_the_bedroom keeping_warm | scarf small wool in_the_bedroom keeping_warm
glove tiny wool in_the_bedroom keeping_warm | sock tiny wool in_the_bedroom keeping_warm
boot small leather in_the_garden walking_in_mud
coat middle-sized leather in_the_bedroom keeping_warm
apron small cotton in_the_kitchen keeping_clean | shirt small cotton in_the_bedroom looking_smart
vehicle: size material place use user
car large metal in_the_street going_to_work teacher
bus huge metal in_the_street going_to_school driver
bike middle-sized metal in_the_street going_to_school -
truck huge metal in_the_street moving_furniture driver
tractor large metal on_a_farm pulling_a_plough farmer
boat large wood in_the_sea catching_fish sailor | ship huge metal in_the_sea crossing_the_sea sailor
sledge middle-sized wood in_the_forest playing_in_snow -
instrument: size material place use user
drum middle-sized leather in_the_theatre keeping_time musician
piano large wood in_the_theatre playing_music musician
violin small wood in_the_theatre playing_music musician
trumpet small metal in_the_theatre waking_people_up musician"""
SIZES = "tiny small middle-sized large huge".split()
IRREGULAR = {"sheep": "sheep", "goose": "geese", "mouse": "mice", "knife": "knives",
        "scarf": "scarves",
             "shelf": "shelves", "bus": "buses", "fox": "foxes", "cherry": "cherries",
                     "calf": "calves",
             "brush": "brushes", "potato": "potatoes", "piece of furniture": "pieces of furniture",
             "piece of clothing": "pieces of clothing", "puppy": "puppies"}
PEOPLE = "carpenter painter gardener cook tailor teacher driver farmer sailor musician".split()
VERBS = {w.split("/")[0]: w.split("/")[1] for w in (
    "sell/sold buy/bought find/found lose/lost hide/hid break/broke bring/brought steal/stole "
    "draw/drew hold/held keep/kept throw/threw choose/chose forget/forgot wash/washed "
    "clean/cleaned paint/painted carry/carried push/pushed drop/dropped move/moved "
    "follow/followed shake/shook lift/lifted eat/ate").split()}
THIRD = {v: v[:-1] + "ies" if v.endswith("ry") else v + "es" if v.endswith("sh") else v + "s"
         for v in VERBS}
OPPOSITE = dict(w.split("/") for w in (
    "hot/cold old/new clean/dirty heavy/light wet/dry loud/quiet happy/sad fast/slow cheap/dear "
    "hard/soft full/empty tall/short rich/poor strong/weak kind/cruel thick/thin").split())
OPPOSITE |= {v: k for k, v in OPPOSITE.items()}
NUMBERS = {"two": 2, "three": 3, "four": 4}


def plural(w): return IRREGULAR.get(w, w + "s")
def an(w): return ("an " if w[0] in "aeiou" else "a ") + w


FACTS = {}  # thing -> relation -> the true values
for line in KB.split("\n"):
    if ":" in line:
        kind, columns = line.split(":")[0], line.split(":")[1].split()
        kinds = (kind, "food", "thing") if kind in ("fruit", "vegetable", "snack") else (kind,
                "thing")
        continue
    for row in line.split("|"):
        name, *values = row.split()
        FACTS[name] = {"kind": kinds} | {c: tuple(v.replace("_", " ").split(",")) for c, v in
                                         zip(columns, values) if v != "-"}
THINGS = list(FACTS)
ANIMALS = [x for x in THINGS if FACTS[x]["kind"][0] == "animal"]
KINDS = list(dict.fromkeys(k for f in FACTS.values() for k in f["kind"]))
AGENTS = PEOPLE + ANIMALS
WORD_FACTS = {"opposite": OPPOSITE, "past tense": VERBS, "plural": {x: plural(x) for x in THINGS},
              "young": {x: f["young"][0] for x, f in FACTS.items() if "young" in f}}


def size(x): return SIZES.index(FACTS[x]["size"][0])


def true(x, rel, value):
    if rel in ("bigger", "smaller"):
        return (size(x) > size(value)) if rel == "bigger" else size(x) < size(value)
    return value in FACTS[x].get(rel, ())


# Every fact is a subject and a verb phrase; "s", "p", "i" are a frog, frogs, and the frog speaking.
VP_OF = {  # relation -> (singular, plural); the value goes in the gap
    "kind": ("is {a}", "are {p}"), "colour": ("is {}", "are {}"), "size": ("is {}", "are {}"),
    "material": ("is made of {}", "are made of {}"), "place": ("is found {}", "are found {}"),
    "can": ("can {}", "can {}"), "use": ("is used for {}", "are used for {}"),
    "user": ("is used by {a}", "are used by {p}"), "says": ("says {}", "say {}"),
    "taste": ("tastes {}", "taste {}"), "bigger": ("is bigger than {a}", "are bigger than {p}"),
    "smaller": ("is smaller than {a}", "are smaller than {p}")}


def vp(rel, value, number="s"):
    text = VP_OF[rel][number == "p"].format(value, a=an(value), p=plural(value))
    return re.sub(r"^(say|taste)s", r"\1", re.sub("^is ", "am ", text)) if number == "i" else text


VALUES = {r: list(dict.fromkeys(v for f in FACTS.values() for v in f.get(r, ()))) for r in VP_OF}
VALUES["bigger"] = VALUES["smaller"] = THINGS
PHRASES = {(vp(r, v, k), k): (r, v) for r in VP_OF for v in VALUES[r] for k in "spi"}
NOUN_PHRASES = {f(x): (x, k) for x in THINGS
                for f, k in ((an, "s"), ("the {}".format, "s"), (plural, "p"))}
NOUN_PHRASES |= {p: ("it", k) for p, k in (("it", "s"), ("they", "p"), ("i", "i"))}

# --- reading: sentence -> the claims it makes, or None where it is not English as spoken here -----
LEADS = ("", "", "how about ", "I would say ", "you could pick ", "for example, ", "let us say ",
         "from small to large: ")
CLOSING = "Hope this helps!"
OPENINGS = ("Sure!", "Good question!", "Of course, happy to help!")
CLOSINGS = ("I think that is right.", "Let me know if you need more.")
RAMBLES = ("That is all my grandmother ever told me about it.",
        "People have argued about this for years.",
           "I could go on, and at parties I usually do.",
                   "There is a lot to say here, but who has the time.",
           "My neighbour says so too, and he owns a very big book.")
FILLER = {CLOSING, *OPENINGS, *CLOSINGS, *RAMBLES}
TIMES = "today|again|at night|after lunch|before breakfast"


def either(words): return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


NOUN, ADJ = either(THINGS + PEOPLE), f"(?:{either(OPPOSITE)} )?"
PLACE = f"(?: {either(VALUES['place'])})?"
NP = f"(?:an?|the) {ADJ}{NOUN}"
TAIL = f"{PLACE}(?: ({TIMES}))?"
FORMS = [(form, re.compile(pattern)) for form, pattern in (  # named groups: agent, verb, object
    ("past", f"the {ADJ}{either(AGENTS)} {either(VERBS.values())} {NP}(?: and {NP})?{TAIL}"),
    ("past", f"there was {NP}(?: and {NP})?{TAIL}"), ("past", f"{NP} was next to {NP}{TAIL}"),
    ("past", f"nobody {either(VERBS.values())} {NP}(?: and {NP})?{TAIL}"),
    ("question", f"does the {ADJ}{either(AGENTS)} {either(VERBS)} {NP}{TAIL}"),
    ("request", f"(?:could|would) you please {either(VERBS)} {NP}{TAIL}"),
    ("request", f"please {either(VERBS)} {NP}{TAIL}"),
    ("title", f'"(?:{NP} and {NP}|how {NP} met {NP}|{NP} for {NP}|{NP} who loved {NP})"'),
    ("thanks", f"(?:thank you|many thanks|a thousand thanks) for {NP}"),
    ("advert", f"(?:buy|come and see|do not miss) {NP}(?: today| now)?"))]
BASE = {w: b for b in VERBS for w in (b, VERBS[b], THIRD[b])}
WORD_CLAIM = re.compile(r"(?:the (opposite|plural|past tense) of '(\S+)' (?:is|would be) '(\S+)'|"
                        r"(?:the|a) young (\S+) is (?:called|known as) an? (\S+))")
CLAUSE = re.compile(r"(.+?) (is|are|am|can|says?|tastes?) (both |all )?(.+)")
BAD_ARTICLE = re.compile(r"\b(a [aeiou]|an [^aeiou])")


def join(words): return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def read_list(text):
    names = re.split(", | and ", text)
    return names if all(w in NOUN_PHRASES for w in names) and join(names) == text else None


def read_clause(text):
    """A clause's claims: ("fact", subjects, relation, value), ("items", names), ("odd", name)."""
    for lead in LEADS:
        lead = lead[:1].lower() + lead[1:]
        if text.startswith(lead) and (names := read_list(text[len(lead):])):
            return [("items", tuple(NOUN_PHRASES[w][0] for w in names))]
    if m := WORD_CLAIM.fullmatch(text):
        return [("word", m[1] or "young", m[2] or m[4], m[3] or m[5])]
    if (m := CLAUSE.fullmatch(text)) and ((names := read_list(m[1])) or m[1] == "the others"):
        if m[1] == "the others":
            subjects, number = ("others",), "p"
        else:
            subjects, numbers = zip(*(NOUN_PHRASES[w] for w in names))
            number = "p" if len(names) > 1 else numbers[0]
        if m[2] + " " + m[4] == "is the odd one out":
            return [("odd", subjects[0])]
        phrases = [m[4]] if (f"{m[2]} {m[4]}", number) in PHRASES else m[4].split(" and ")
        phrases = [f"{m[2]} {phrases[0]}", *phrases[1:]]
        if all((p, number) in PHRASES for p in phrases) and not (m[3]
                and m[2] not in ("are", "can")):
            return [("fact", subjects, *PHRASES[p, number]) for p in phrases]
    for form, pattern in FORMS:
        if m := pattern.fullmatch(text):
            words = tuple(g for g in m.groups() if g)
            verb = next((BASE[w] for w in words if w in BASE and w not in FACTS), None)
            return [("story", form, verb, words)]
    return None


@lru_cache(100_000)
def read(sentence):
    if sentence in FILLER:
        return ()
    if sentence in ("What am I?", "True.", "False."):
        return (("fixed", sentence),)
    body = sentence[1:-1] if sentence[:1].isalpha() else sentence.rstrip(".")
    if not (sentence[:1].isupper() and sentence[-1] in ".!?") and not sentence.startswith('"'):
        return None
    if sentence[:1].isalpha():
        body = sentence[:1].lower() + body
    else:
        body = body[:2].lower() + body[2:].lower()
    if BAD_ARTICLE.search(body):
        return None
    claims = []
    for text in re.split(", but |,? because ", body):
        if (found := read_clause(text)) is None:
            return None
        claims += found
    return tuple(claims)


def sentences(text): return re.findall(r'"[^"]*"\.?|[^.!?"]+[.!?]?',
        text.strip().replace("\n", " ")) if text else []
def clean(text): return [s.strip() for s in sentences(text) if s.strip()]


def relation(a, b):
    """+1 where b contradicts a, -1 where a states all that b states, else 0."""
    def facts(text):
        return {(c[2], x, c[3]) if c[0] == "fact" else c[1:] for s in clean(text) for c in read(s)
                or ()
                if c[0] in ("fact", "word") for x in (c[1] if c[0] == "fact" else (c[2],))}
    known, said = facts(a), facts(b)
    many = ("kind", "can", "bigger", "smaller")  # these may have several values at once
    if any(k[:2] == s[:2] and k[2] != s[2] and k[0] not in many for k in known for s in said):
        return 1
    if any(k == ({"bigger": "smaller", "smaller": "bigger"}.get(s[0]), s[1], s[2]) for k in known
            for s in said):
        return 1
    return -1 if said and said <= known else 0


# --- instructions: wordings with slots, and the goals that their arguments set --------------------
# A slot is `letter` or `form_letter`: a_x "an owl", p_x "owls", s_v "can fly", third_b "sells".
DOMAINS = {**dict.fromkeys("xyzw", THINGS), "n": list(NUMBERS), "c": KINDS, "q": PEOPLE,
        "g": AGENTS,
           "b": list(VERBS), **dict.fromkeys("jk", OPPOSITE), "d": list(VERBS),
                   "l": VALUES["place"],
           "v": [(r, v) for r in VP_OF if r not in ("kind", "user") for v in VALUES[r]],
           "u": [(r, v) for r in ("colour", "material", "size", "place", "can", "use", "taste")
                   for v in VALUES[r]]}
SURFACE = {"": lambda w: w if isinstance(w, str) else vp(*w, "p"), "a": an, "p": plural,
        "s": lambda w: vp(*w),
           "third": THIRD.get, "past": VERBS.get}


@lru_cache(None)
def having(rel, value): return frozenset(x for x in THINGS if true(x, rel, value))


def all_of(c, *tests, but=()):
    """Things of a kind that pass each (relation, value)."""
    return having("kind", c).intersection(*(having(*t) for t in tests)).difference(but)


def some(n, ok): return ("items", NUMBERS.get(n, n), ok) if len(ok) > NUMBERS.get(n, n) else None
def fact(x, *rels, because=False, n=1):
    subjects = x if isinstance(x, tuple) else (x,)
    found = sum(len(FACTS[s].get(r, ())) for s in subjects if s in FACTS for r in rels)
    known = {*subjects} & {*FACTS}  # else it is chosen by the answer
    return ("fact", subjects, rels, because, n) if found >= n or not known else None
def use(form, *words): return ("use", form, words)
def tell(form, agent, verb, x): return ("tell", form, verb, tuple(w for w in (agent, x) if w))
def word(rel, w): return ("word", rel, w) if w in WORD_FACTS[rel] else None
def odd(xs, o): return ("odd", o) if len({*xs,
        o}) == 4 and len({FACTS[x]["kind"][0] for x in xs}) == 1 \
    and FACTS[o]["kind"][0] != FACTS[xs[0]]["kind"][0] and not (
    "food" in FACTS[o]["kind"] and "food" in FACTS[xs[0]]["kind"]) else None
def bigger(x, y): return ("bigger", x, y) if x != y and (x is None
        or abs(size(x) - size(y)) > 0) else None
def edible(b, x): return (b != "eat" or "food" in FACTS[x]["kind"]) and (b != "carry"
        or size(x) < 3)
DOES = ("can", "use", "taste")
ALL = ("kind", "colour", "material", "size", "place", "can", "use", "user", "says", "taste")
IT = "it"  # in a goal: whatever the answer chose in its first step

TEMPLATES = {
    "id": {
        "name": (
         "Name {n} {p_c} that {v}.|List {n} {p_c} that {v}.|Can you give me {n} {p_c} that "
         "{v}?",
         lambda n, c, v: [c != "thing" and some(n, all_of(c, v))]),
        "other": (
         "Name {n} {p_c} other than {a_x}.|Apart from {a_x}, what are {n} {p_c}?|Give {n} "
         "{p_c}, but not {a_x}.",
         lambda n, c, x: [c in FACTS[x]["kind"] and c != "thing" and some(n, all_of(c,
             but=(x,)))]),
        "spot": (
         "What {n} things are found {l} and are smaller than {a_x}?|List {n} things that are "
         "found {l} and are smaller than {a_x}.",
         lambda n, l, x: [some(n, all_of("thing", ("place", l), ("smaller", x)))]),
        "with": (
         "Write a sentence with {a_x} and {a_y}.|Use the words '{x}' and '{y}' in one "
         "sentence.|Make up a sentence about {a_x} and {a_y}.",
         lambda x, y: [x != y and use("past", x, y)]),
        "past": (
         "Put this in the past tense and say where it happened: The {g} {third_b} the {x}.|"
         "Rewrite in the past tense, and add a place: The {g} {third_b} the {x}.",
         lambda g, b, x: [g != x and edible(b, x) and tell("past", g, b, x), ("place",)]),
        "polite": (
         "Make this a polite request and say where: {b} the {x}.|Ask me politely, naming a "
         "place: {b} the {x}.",
         lambda b, x: [edible(b, x) and tell("request", None, b, x), ("place",)]),
        "question": (
         "Turn this into a question, and add a place: The {g} {third_b} the {x}.|Ask whether "
         "this is so, and name a place: The {g} {third_b} the {x}.",
         lambda g, b, x: [g != x and edible(b, x) and tell("question", g, b, x), ("place",)]),
        "sort": (
         "Sort these from small to large and say where the smallest is found: {x}, {y}, {z}.|"
         "Order by size, and tell me where to find the smallest: {x}, {y}, {z}.",
         lambda x, y, z: [len({size(x), size(y), size(z)}) == 3 and ("order", tuple(sorted((x, y,
             z), key=size))), fact(min((x, y, z), key=size), "place")]),
        "bigger": (
         "Which is bigger, {a_x} or {a_y}? Give a reason.|Is {a_x} bigger than {a_y}? Say why "
         "or why not.|Of {a_x} and {a_y}, which is the bigger one, and why?",
         lambda x, y: [bigger(x, y), fact((x, y), "size", because=True)]),
        "opposite": (
         "What are the opposites of '{j}' and '{k}'?|Give the opposite of '{j}' and the "
         "opposite of '{k}'.",
         lambda j, k: [j not in (k, OPPOSITE[k]) and word("opposite", j), word("opposite", k)]),
        "where": (
         "Where do you find {a_x}, and is it bigger than {a_y}?|Tell me where {p_x} are found "
         "and how they compare with {a_y} in size.",
         lambda x, y: [fact(x, "place"), bigger(x, y)]),
        "purpose": (
         "What is {a_x} used for, and what is {a_y} used for?|What do people do with {p_x}, "
         "and what with {p_y}?",
         lambda x, y: [x != y and fact(x, "use"), fact(y, "use")]),
        "title": (
         "Give a title for a story about {a_j} {x} and {a_y}.|What would you call a tale of "
         "{a_j} {x} and {a_y}?",
         lambda j, x, y: [x != y and use("title", x, y, j)]),
        "differ": (
         "Name one difference between {a_x} and {a_y}, and one thing they share.|How do {p_x} "
         "and {p_y} differ, and how are they alike?",
         lambda x, y: [x != y and contrast(x, y) and ("differ", x, y), shared(x, y) and ("alike",
             x, y)]),
        "plural": (
         "What are the plurals of '{x}' and '{y}'?|Give the plural of '{x}', and also of "
         "'{y}'.",
         lambda x, y: [x != y and word("plural", x), word("plural", y)]),
        "young": (
         "What is a young {x} called, and which is bigger, {a_x} or {a_y}?|Give the name of a "
         "young {x}, and tell me whether {a_x} is bigger than {a_y}.",
         lambda x, y: [word("young", x), bigger(x, y)]),
        "sound": (
         "What does {a_x} say, and what does {a_y} say?|Tell me the sounds of {a_x} and {a_y}.",
         lambda x, y: [x != y and fact(x, "says"), fact(y, "says")]),
        "odd": (
         "Which is the odd one out, and why: {x}, {y}, {z} or {w}?|Find the one that does not "
         "belong and give a reason: {x}, {y}, {z}, {w}.",
         lambda x, y, z, w: [stranger(x, y, z, w), fact(("it", "others"), "kind", because=True)]),
        "user": (
         "Who uses {a_x}, and is it bigger than {a_y}?|Which person needs {a_x}? Compare its "
         "size with {a_y} too.",
         lambda x, y: [fact(x, "user"), bigger(x, y)]),
        "more": (
         "Continue this list with {n} more: {x}, {y}.|Add {n} of the same kind: {x}, {y}.",
         lambda n, x, y: [x != y and FACTS[x]["kind"][0] == FACTS[y]["kind"][0] and some(n,
             all_of(FACTS[x]["kind"][0], but=(x, y)))]),
        "describe": (
         "Describe {a_x} in {n} short facts.|Tell me {n} things about {p_x}.|What are {n} "
         "facts about {a_x}?",
         lambda n, x: [fact(x, *ALL[1:], n=NUMBERS[n])]),
        "shop": (
         "Make a shopping list of {n} foods to go with {a_x} and {a_y}.|I have {a_x} and "
         "{a_y}. Which {n} other foods should I buy?",
         lambda n, x, y: [x != y and "food" in FACTS[x]["kind"] and "food" in FACTS[y]["kind"]
             and some(n, all_of("food", but=(x, y)))]),
        "story": (
         "Write the first line of a story in which {a_q} {past_b} {a_j} {x}.|Begin a story: "
         "{a_q} {past_b} {a_j} {x}.",
         lambda q, b, j, x: [edible(b, x) and tell("past", q, b, x), use("past", x, j)]),
        "past of": (
         "What are the past tenses of '{b}' and '{d}'?|Give the past tense of '{b}' and that "
         "of '{d}'.",
         lambda b, d: [b != d and word("past tense", b), word("past tense", d)]),
        "kind of": (
         "What kind of thing is {a_x}? Use it with {a_y} in a sentence.|Is {a_x} a food, an "
         "animal or what? Add a sentence with {a_y}.",
         lambda x, y: [fact(x, "kind"), x != y and use("past", x, y)]),
    },
    "broad": {
        "verdict": (
         "True or false: {a_x} {s_v}. Add one fact of your own.|My uncle claims that {a_x} "
         "{s_v}. Say true or false and teach him a fact.",
         lambda x, v: [v[0] not in ("bigger", "smaller") and v[0] in FACTS[x] and ("fixed",
             "True." if true(x, *v) else "False."), fact(x, *(r for r in ALL if r != v[0]))]),
        "riddle": (
         "Make me a riddle of {n} hints about {a_x}.|Let us play a guessing game. In {n} "
         "hints, be {a_x}.",
         lambda n, x: [fact(x, *ALL[1:], n=NUMBERS[n]), ("fixed", "What am I?")]),
        "blank": (
         "Fill in the blank and add a comparison with {a_y}: {a_x} is found ...|Finish it, "
         "then compare it with {a_y}: if you look for {a_x}, go ...",
         lambda x, y: [fact(x, "place"), bigger(x, y)]),
        "without": (
         "I want {n} {p_c}, but none that {u}.|Which {n} {p_c} could I bring to a party where "
         "nobody likes things that {u}?",
         lambda n, c, u: [c != "thing" and all_of(c, u) and some(n, all_of(c) - all_of("thing",
             u))]),
        "correct": (
         "Correct my homework and add a fact: {a_x} {s_u}.|A parrot told me that {a_x} {s_u}. "
         "Set it right and add a fact.",
         lambda x, u: [u[0] in FACTS[x] and u[0] not in ("can", "kind") and not true(x, *u) and
             fact(x, u[0]), fact(x, *(r for r in ALL if r != u[0]))]),
        "between": (
         "I need something bigger than {a_x} but smaller than {a_y}. Suggest {n} things.|My "
         "box is too big for {a_x} and too small for {a_y}. What {n} things might be in it?",
         lambda x, y, n: [some(n, all_of("thing", ("bigger", x), ("smaller", y)))]),
        "gift": (
         "Thank an aunt for {a_j} {x} and praise it.|Your friend sent you {a_j} {x}. Thank "
         "him and say something true about it.",
         lambda j, x: [use("thanks", x, j), fact(x, *ALL)]),
        "advert": (
         "Advertise {a_j} {x} and mention a fact.|You run a shop. Sell me {a_j} {x}, with one "
         "fact about it.",
         lambda j, x: [use("advert", x, j), fact(x, *ALL)]),
        "child": (
         "Explain to a small child what {a_x} is, and what {a_y} is.|A visitor from the moon "
         "asks about {p_x} and {p_y}. Help.",
         lambda x, y: [x != y and fact(x, *ALL), fact(y, *ALL)]),
        "both": (
         "I am thinking of {a_c} that {s_u} and also {s_v}. Guess {n}.|Quiz: find {n} {p_c}, "
         "each of which {s_u} and {s_v}.",
         lambda c, u, v, n: [u[0] != v[0] and v[0] not in ("bigger", "smaller") and c != "thing"
             and some(n, all_of(c, u, v))]),
        "sign": (
         "Write a sign that asks visitors to {b} the {j} {x}, please.|Write a note asking the "
         "family to {b} the {j} {x}.",
         lambda b, j, x: [edible(b, x) and tell("request", None, b, x), use("request", x, j)]),
        "like": (
         "In what way is {a_x} like {a_y}? Name a contrast as well.|A poet compares {a_x} to "
         "{a_y}. Defend him, then object.",
         lambda x, y: [x != y and shared(x, y) and ("alike", x, y), contrast(x, y) and ("differ",
             x, y)]),
        "news": (
         "Write a news line: what happened to {a_x} and {a_y} {l}?|What would the paper say "
         "about {a_x} and {a_y} {l}?",
         lambda x, y, l: [x != y and use("past", x, y, l)]),
        "agree": (
         "Find {n} things that are like {a_x} in size and also {v}.|As big as {a_x}, and they "
         "{v}: what are {n} of those?",
         lambda n, x, v: [v[0] not in ("size", "bigger", "smaller") and some( n, all_of("thing",
             ("size", FACTS[x]["size"][0]), v, but=(x,)))]),
        "trade": (
         "I am {a_q} and I own {a_x}. What is it good for, and what happened to me?|Talk to "
         "{a_q} about {a_x}: its use, and a bit of gossip.",
         lambda q, x: [fact(x, *DOES), use("past", q, x)]),
    },
    "sequential": {
        "name use": (
         "Name {a_c} that {s_v}, then write a sentence with it.|First pick {a_c} that {s_v}. "
         "Next, put it in a sentence.",
         lambda c, v: [c != "thing" and some(1, all_of(c, v)), use("past", IT)]),
        "two bigger": (
         "List two {p_c} that {v}, then say which one is bigger.|Pick two {p_c} that {v} and, "
         "after that, tell me which of them is bigger.",
         lambda c, v: [ len({size(x) for x in all_of(c, v)}) > 1 and some(2, all_of(c, v)),
             ("bigger", None, None)]),
        "opposite of": (
         "Take the opposite of '{j}' and use it in a sentence about {a_x}.|Work out the "
         "opposite of '{j}', then write about {a_x} with it.",
         lambda j, x: [word("opposite", j), use("past", x, OPPOSITE[j])]),
        "past who": (
         "Find the past tense of '{b}', then use it to say what {a_g} did to {a_x}.|First "
         "give the past tense of '{b}', then tell what {a_g} did to {a_x}.",
         lambda b, g, x: [ word("past tense", b), g != x and edible(b, x) and tell("past", g, b,
             x)]),
        "sort fact": (
         "Put {a_x}, {a_y} and {a_z} in order from small to large, then give a fact about the "
         "last.|First order by size, then tell a fact about the last: {a_x}, {a_y}, {a_z}.",
         lambda x, y, z: [ len({size(x), size(y), size(z)}) == 3 and ("order", tuple(sorted((x,
             y, z), key=size))), fact(max((x, y, z), key=size), *ALL)]),
        "odd fact": (
         "Find the odd one out of {x}, {y}, {z} and {w}, then say where it is found.|Which of "
         "{x}, {y}, {z}, {w} does not fit? Now say where that one is found.",
         lambda x, y, z, w: [ stranger(x, y, z, w), fact("it", "place")]),
        "plural share": (
         "Give the plural of '{x}', then say one thing that they share with {p_y}.|First "
         "write the plural of '{x}', then name one thing they have in common with {p_y}.",
         lambda x, y: [ word("plural", x), x != y and shared(x, y) and ("alike", x, y)]),
        "who line": (
         "Work out who uses {a_x}, then write a sentence with that person and {a_y}.|Who uses "
         "{a_x}? Now put that person in a sentence with {a_y}.",
         lambda x, y: [fact(x, "user"), use("past", *FACTS[x].get("user", ()), y)]),
        "name title": (
         "Choose {a_c} that {s_v}, then give a title for a story about it and {a_x}.|First "
         "choose {a_c} that {s_v}, then make up a book title with it and {a_x}.",
         lambda c, v, x: [ c != "thing" and some(1, all_of(c, v, but=(x,))), use("title", IT, x)]),
        "list ask": (
         "Name two {p_c} other than {a_x}, then ask me politely to {b} one of them.|Think of "
         "two {p_c}, not {a_x}. Then ask me politely to {b} one.",
         lambda c, x, b: [ b != "eat" and c in FACTS[x]["kind"] and c not in ("thing", "animal")
             and some(2, all_of(c, but=(x,))), ("tell", "request", b, (IT,))]),
    },
}


def shared(x, y):
    return [(r, v) for r in ALL for v in FACTS[x].get(r, ()) if true(y, r, v) and v != "thing"]


def contrast(x, y):
    return [(r, v, w) for r in ALL[1:] if r != "can" for v in FACTS[x].get(r, ())
            for w in FACTS[y].get(r, ()) if v != w]


def stranger(*xs):
    return next((g for o in xs if (g := odd([x for x in xs if x != o], o))), None)


def compile_wordings():
    """Every wording as a regex, with the way back from a slot's surface to its argument."""
    for split, kinds in TEMPLATES.items():
        for kind, (wordings, goals) in kinds.items():
            for wording in wordings.split("|"):
                slots = re.findall(r"{(\w+)}", wording)
                body = re.sub(r"\\{(\w+)\\}",
                        lambda m: f"(?P<{m[1]}>{'an? ' * m[1].startswith('a_')}"
                              f"{'.+?' if m[1][-1] in 'cluv' else '[a-z-]+'})", re.escape(wording))
                yield split, kind, wording, slots, re.compile(body), goals


BACK = {(f, letter): {str(surface(w)): w for w in words} for letter, words in DOMAINS.items()
        for f, surface in SURFACE.items() if letter in "uv" and f in ("", "s")
                or letter not in "uv" and f != "s"}
DRAW = {letter: list(words) for letter, words in DOMAINS.items()}
WORDINGS = list(compile_wordings())
KINDS_OF = {s: [[w for w in WORDINGS if w[:2] == (s, k)] for k in TEMPLATES[s]] for s in SPLITS}


def slot(name): return tuple(name.split("_")) if "_" in name else ("", name)


@lru_cache(100_000)
def make_spec(split, kind, arguments):
    """arguments: ((letter, value), ...) -> the record that all else reads, or None if unfit."""
    args = dict(arguments)
    goals = TEMPLATES[split][kind][1](**args)
    if not all(goals):
        return None
    things = [args[k] for k in "xyzw" if k in args]
    stranger_ = next((g[1] for g in goals if g[0] == "odd"), None)
    return {"split": split, "kind": kind, "key": (kind, *sorted(args.values(), key=str)),
            "goals": tuple(goals),
            "topic": stranger_ or (things[0] if things else None),
                    "others": [x for x in things if x != stranger_]}


def draw(rng, split, accept):
    """A prompt of this split and the record that `reference` answers; `accept` says of its key, the
    tuple of what is asked, whether it may be used."""
    while True:
        _, kind, wording, slots, _, _ = pick(rng, pick(rng, KINDS_OF[split]))
        for _ in range(60):  # redraw unfit arguments, so that kinds stay about equally common
            args = tuple(sorted((k := slot(s)[1], pick(rng, DRAW[k])) for s in slots))
            spec = make_spec.__wrapped__(split, kind, args)
            if spec and accept(spec["key"]):
                values = dict(args)
                text = re.sub(r"{(\w+)}", lambda m: SURFACE[slot(m[1])[0]](values[slot(m[1])[1]]),
                              wording)
                return f"### Instruction:\n{text}\n\n### Response:", spec


@lru_cache(20_000)
def parse(prompt):
    """The spec of a prompt's text, or None where no wording fits."""
    m = re.fullmatch(r"### Instruction:\n(.*)\n\n### Response:\s*", prompt, re.S)
    for split, kind, _, slots, pattern, _ in WORDINGS if m else ():
        if found := pattern.fullmatch(m[1]):
            args = [(slot(s)[1], BACK[slot(s)].get(found[s])) for s in slots]
            if all(v for _, v in args) and (spec := make_spec(split, kind, tuple(sorted(args)))):
                return spec
    return None


# --- speaking: a goal -> words --------------------------------------------------------------------
def pick(rng, options): return options[int(rng.random() * len(options))]
def capital(text):
    i = text.startswith('"')
    return text[:i] + text[i:i + 1].upper() + text[i + 1:]


def story(rng, form, words, verb=None, free=True):
    """A sentence of this form with these words: people and beasts act, adjectives go to things."""
    words = [w for w in words if w]
    adj = next((w for w in words if w in OPPOSITE), "")
    place = next((w for w in words if w in VALUES["place"]), "")
    nouns = [w for w in words if w in FACTS or w in PEOPLE]
    owner = next((w for w in nouns if w in FACTS), None)
    if verb is None:  # otherwise the instruction has said who did it
        rng.shuffle(nouns)
    agent = next((w for w in nouns if w in PEOPLE),
            None) or next((w for w in nouns if w in ANIMALS and (
        len(nouns) > 1 or verb is None)), None)
    objects = [w for w in nouns if w != agent] if form in ("past", "question") else nouns

    def noun(w, articles=("the", "a")):
        text = f"{adj} {w}" if adj and w == owner else w
        return f"the {text}" if pick(rng, articles) == "the" else an(text)
    if form == "title":
        if len(nouns) < 2:
            nouns.append(pick(rng, [x for x in AGENTS if x not in nouns]))
        a, b = map(noun, nouns[:2])
        return pick(rng, (f'"{a} and {b}"', f'"how {a} met {b}"', f'"{a} for {b}"',
                f'"{a} who loved {b}"'))
    if form == "thanks":
        return pick(rng, ("thank you for ", "many thanks for ",
                "a thousand thanks for ")) + noun(nouns[0], ("the",))
    if form == "advert":
        return pick(rng, ("buy ", "come and see ", "do not miss ")) + noun(nouns[0]) + pick(rng,
                ("", " today", " now"))
    if free and not place and rng.random() < .35:
        place = pick(rng, VALUES["place"])
    tail = (" " + place if place else "") + (" " + pick(rng, TIMES.split("|"))
            if rng.random() < .25 else "")
    if verb is None and form == "past" and not any(w in PEOPLE
            for w in nouns) and rng.random() < .4:
        a = [noun(w, ("a",)) for w in nouns]
        if len(a) == 2 and rng.random() < .5:
            return f"{a[0]} was next to {a[1]}{tail}"
        if a:
            return f"there was {' and '.join(a[:2])}{tail}"
    objects = objects or [pick(rng, THINGS)]
    def usable(v): return all(edible(v, x) for x in objects)
    verb = verb or pick(rng, [v for v in VERBS if usable(v)])
    object_ = " and ".join(noun(w, ("the",) if form in ("question", "request") else ("the", "a"))
            for w in objects[:2])
    if form == "request":
        return pick(rng, ("could you please ", "would you please ",
                "please ")) + f"{verb} {object_}{tail}"
    agent = agent or pick(rng, PEOPLE)
    if form == "question":
        return f"does {noun(agent, ('the',))} {verb} {object_}{tail}"
    return f"{noun(agent, ('the',))} {VERBS[verb]} {object_}{tail}"


def say_fact(rng, x, pairs, number=None):
    number = number or pick(rng, "ssp")
    np_ = {"s": pick(rng, (an(x), an(x), "the " + x)), "p": plural(x), "i": "I"}[number]
    first = f"{np_} {' and '.join(vp(*p, number) for p in pairs[:2])}"
    pronoun = {"s": "it", "p": "they", "i": "I"}[number]
    rest = [f"{pronoun} {' and '.join(vp(*p, number) for p in pairs[i:i + 2])}"
            for i in range(2, len(pairs), 2)]
    return ". ".join([first, *map(capital, rest)])


def say_list(rng, names):
    form = pick(rng, (an, an, plural)) if len(names) > 1 else an
    return pick(rng, LEADS[:-1]) + join([form(x) for x in names])


def true_facts(x, rels): return [(r, v) for r in rels for v in FACTS[x].get(r, ()) if v != "thing"]


def say(rng, goal, spec, state, fewer=0):
    """One goal in words; `state` remembers what was chosen, for the goals that build on it."""
    kind, *g = goal
    if kind == "items":
        n, ok = g
        for _ in range(30):
            names = [str(w) for w in rng.permutation(sorted(ok))[:n - fewer]]
            differ = len({*map(size, names)}) == len(names)
            if differ or ("bigger", None, None) not in spec["goals"]:
                break
        state["it"] = names
        return say_list(rng, names)
    if kind == "order":
        return pick(rng, ("", "", "from small to large: ")) + join(list(map(pick(rng,
                (an, plural)), g[0])))
    if kind == "fact":
        subjects, rels, because, n = g
        x = pick(rng, subjects)
        if x == "others":
            return "+ because the others are " + plural(FACTS[spec["others"][0]]["kind"][0])
        x = spec["topic"] if x == IT else x
        options = true_facts(x, rels)
        pairs = [options[i] for i in rng.permutation(len(options))[:n - fewer]]
        if because:
            return "+ because " + (f"it {vp(*pairs[0])}" if subjects[0] == IT
                    else say_fact(rng, x, pairs))
        return say_fact(rng, x, pairs, "i" if ("fixed", "What am I?") in spec["goals"] else None)
    if kind == "bigger":
        x, y = sorted(state["it"][:2] if g[0] is None else g, key=size)
        if rng.random() < .3:
            return say_fact(rng, x, [("smaller", y)])
        return say_fact(rng, y, [("bigger", x)])
    if kind in ("alike", "differ"):
        x, y = g if rng.random() < .5 else g[::-1]
        f, number = pick(rng, ((an, "s"), (plural, "p")))
        if kind == "alike":
            r, v = pick(rng, shared(x, y))
            verb, rest = vp(r, v, "p").split(" ", 1)
            both = "both " if verb in ("are", "can") else ""
            return f"{f(x)} and {f(y)} {verb} {both}{rest}"
        options = contrast(x, y)
        if not options or size(x) > size(y) and rng.random() < .3:
            x, y = sorted((x, y), key=size)[::-1]
            return f"{f(x)} {vp('bigger', y, number)}"
        r, v, w = pick(rng, options)
        return f"{f(x)} {vp(r, v, number)}, but {f(y)} {vp(r, w, number)}"
    if kind == "word":
        rel, w = g
        v = WORD_FACTS[rel][w]
        if rel == "young":
            called = pick(rng, ("called", "known as"))
            return f"{pick(rng, ('a', 'the'))} young {w} is {called} {an(v)}"
        return f"the {rel} of '{w}' {pick(rng, ('is', 'is', 'would be'))} '{v}'"
    if kind == "odd":
        return f"the {g[0]} is the odd one out"
    if kind == "fixed":
        return g[0]
    words = [pick(rng, state["it"]) if w == IT else w for w in g[-1]]
    if kind == "use":
        return story(rng, g[0], words[:len(words) - fewer])
    if merged(spec["goals"]) and not fewer:  # the second goal is part of the same sentence
        words += spec["goals"][1][2] if spec["goals"][1][0] == "use" else [pick(rng,
                VALUES["place"])]
    return story(rng, g[0], list(dict.fromkeys(words)), g[1], free=("place",) not in spec["goals"])


def merged(goals): return goals[0][0] == "tell" and len(goals) > 1


def answer(rng, spec, short=False):
    """A right, plain answer; `short` does what most people do: one item or one part too few."""
    goals, state = spec["goals"], {}
    counted = [g for g in goals if g[0] == "items" and g[1] > 1 or g[0] == "fact" and g[4] > 1]
    fewer = short and spec["split"] != "sequential" and bool(counted) or short and len(goals) == 1
    out = []
    for goal in goals[:1] if merged(goals) or short and not fewer else goals:
        text = say(rng, goal, spec, state, int(short if merged(goals) else fewer
                and goal in (counted or goals)))
        if text.startswith("+"):
            out[-1] += text[1:]
        else:
            out.append(text)
    return " ".join(finish(t) for t in out)


def finish(text):
    if text[-1] in '".?':
        return capital(text)
    return capital(text) + ("?" if re.match("how about|could you|would you|does ", text) else ".")


def hedge(rng, text):
    u = rng.random()
    if u < .85:
        return text + " " + (CLOSING if u < .7 else pick(rng, CLOSINGS))
    return pick(rng, OPENINGS) + " " + text


def damage(rng, text):
    words = text.split(" ")
    i, u = int(rng.random() * len(words)), rng.random()
    if u < .4 or len(words) < 3:
        words.insert(i, words[i])
    elif u < .7:
        del words[i]
    else:
        w, j = words[i], int(rng.random() * max(1, len(words[i]) - 2))
        words[i] = w[:j] + w[j + 1:j + 2] + w[j:j + 1] + w[j + 2:]
    return " ".join(words)


HABITS, NOISE = (.77, .72), .32  # fewer or less than asked; a stock phrase. And errors of all kinds
CARELESS_HABITS, CARELESS_NOISE = (.5, .5), .45


def reference(rng, spec, careless=False):
    habits, noise = (CARELESS_HABITS, CARELESS_NOISE) if careless else (HABITS, NOISE)
    text = answer(rng, spec, short=rng.random() < habits[0])
    hedged, u = rng.random() < habits[1], rng.random() / noise
    if u < .55:
        text = mistake(rng, spec, text) or damage(rng, text)
    elif u < .8:
        text = damage(rng, text)
    elif u < 1:
        text = " ".join([text, *rng.permutation(RAMBLES)[:1 + int(rng.random() * 2)]])
    return hedge(rng, text) if hedged else text


# --- judging --------------------------------------------------------------------------------------
# words that even a leisurely right answer fits in
NEED = {"items": 9, "order": 14, "fact": 12, "bigger": 10, "alike": 14, "differ": 18, "word": 10,
        "odd": 9,
        "fixed": 3, "use": 20, "tell": 20, "place": 3}


def claims_of(spec, said):
    """The claims of an answer with it, they, I and the others replaced by what they stand for."""
    last = (spec["topic"],)
    for claims in said:
        for c in claims or ():
            if c[0] == "fact":
                subjects = {("others",): tuple(spec["others"]), ("it",): last}.get(c[1], c[1])
                c = ("fact", subjects, c[2], c[3])
                last = subjects
            elif c[0] in ("odd", "items"):
                last = c[1][-1:] if c[0] == "items" else (c[1],) if c[1] != "it" else last
                c = ("odd", *last[:1]) if c[0] == "odd" else c
            yield c


def check(goal, spec, claims, facts, chosen):
    """-> (credit in 0..1, number of wrong things this goal sees)."""
    kind, *g = goal
    stories = [c for c in claims if c[0] == "story"]
    if kind == "items":
        n, ok = g
        right = {x for x in chosen if x in ok}
        wrong = len({*chosen} - right)
        excess = max(0, len(chosen) - len(right) - wrong) + max(0, len(right) - n)
        return max(0, (min(len(right), n) + 1) / (n + 1) - .25 * excess) if right else 0, wrong
    if kind == "order":
        pairs = list(zip(chosen, chosen[1:]))
        good = sum(size(a) < size(b) for a, b in pairs if a in g[0] and b in g[0])
        return good / 2 if len(chosen) == 3 else good / 4, int(good < len(pairs)
                or not {*chosen} <= {*g[0]})
    if kind == "fact":
        subjects, rels, _, n = g
        if subjects == (IT,):
            subjects = (spec["topic"],)
        subjects = [*subjects, spec["topic"]] if IT in subjects else subjects
        subjects = [*subjects, *spec["others"]] if "others" in subjects else subjects
        k = len({(r, v) for x, r, v, t in facts if t and r in rels and x in subjects})
        return ((min(k, n) + 1) / (n + 1) if n > 1 and k else min(k, 1)), 0
    if kind == "bigger":
        pair = set(chosen) if g[0] is None else {*g}
        return any(t and r in ("bigger", "smaller") and {x, v} <= pair for x, r, v, t in facts), 0
    if kind == "alike":
        x, y = ({(r, v) for s, r, v, t in facts if t and s == name} for name in g)
        return bool(x & y), 0
    if kind == "differ":
        x, y = ({(r, v) for s, r, v, t in facts if t and s == name} for name in g)
        size_ = any(r in ("bigger", "smaller") and {s, v} == {*g} for s, r, v, t in facts if t)
        return size_ or any(r == q and v != w for r, v in x for q, w in y), 0
    if kind == "word":
        said = [c for c in claims if c[0] == "word" and c[1:3] == tuple(g)]
        return any(WORD_FACTS[g[0]][g[1]] == c[3] for c in said), 0
    if kind == "odd":
        said = [c[-1] for c in claims if c[0] == "odd"]
        return g[0] in said, sum(x != g[0] for x in said)
    if kind == "fixed":
        said = [c[1] for c in claims if c[0] == "fixed"]
        return g[0] in said, sum(x != g[0] for x in said)
    if kind == "place":
        return any(w in VALUES["place"] for c in stories for w in c[3]), 0
    best, wrong = 0, 0
    for c in stories:
        has = [any(x in c[3] for x in chosen) if w == IT else w in c[3] for w in g[-1]]
        if g[-1][-1] in OPPOSITE:  # the adjective stands before the thing it was asked for
            has[-1] = (g[-1][-1], g[-1][0]) in zip(c[3], c[3][1:])
        if kind == "tell":
            has.append(c[2] == g[1] and (not all(has)
                    or [w for w in c[3] if w in g[-1]] == [*g[-1]] or IT in g[-1]))
            wrong = max(wrong, int(c[1] == g[0] and not all(has)))
        if c[1] == g[0]:
            best = max(best, sum(has) / len(has) if kind == "tell"
                    else (sum(has) + 1) / (len(has) + 1) - .5 * (not any(has)))
    return max(best, 0), wrong if best < 1 else 0


def parts(prompt, response):
    """The gold score as named parts; their sum is the score. A perfect plain answer gets 3."""
    return judge(parse(prompt), response)


def judge(spec, response):
    said = clean(response)
    read_ = [read(s) for s in said]
    rows = [s for s in said if s not in FILLER]
    filler = len(said) - len(rows)
    broken = read_.count(None) + len(rows) - len({*rows}) + (not said)
    out = {"constraints": 0., "wrong": 0., "hedging": -.8 * (filler > 0) - .1 * max(0, filler - 1),
           "language": -float(min(2, broken)), "length": 0.}
    need = 30 if spec is None else 4 + sum(
        NEED[g[0]] + (4 * g[1] if g[0] == "items" else 6 * g[4] if g[0] == "fact" else 0)
                for g in spec["goals"])
    out["length"] = -.04 * max(0, len(response.split()) - need)
    if spec is None:
        return out
    claims = list(claims_of(spec, read_))
    facts = [(x, c[2], c[3], x in FACTS and true(x, c[2], c[3])) for c in claims if c[0] == "fact"
            for x in c[1]]
    wrong = sum(not f[3] for f in facts)
    wrong += sum(WORD_FACTS[c[1]].get(c[2]) != c[3] for c in claims if c[0] == "word")
    chosen = [x for c in claims if c[0] == "items"
            for x in c[1]] or list(dict.fromkeys(f[0] for f in facts))
    weights = (3,) if len(spec["goals"]) == 1 else (2, 1)
    for goal, weight in zip(spec["goals"], weights):
        credit, errors = check(goal, spec, claims, facts, chosen)
        out["constraints"] += weight * credit
        wrong += errors
    out["wrong"] = -float(min(3, wrong))
    return {k: v + 0. for k, v in out.items()}


# --- edits of an answer, for comparisons ----------------------------------------------------------
SWAPS = {}
for group in (THINGS, list(map(plural, THINGS)), [k for k in map(plural, KINDS)], PEOPLE, SIZES,
        list(OPPOSITE),
              list(VERBS), list(VERBS.values()), ["bigger", "smaller"], ["True", "False"],
              *(VALUES[r] for r in ("colour", "material", "place", "can", "use", "says", "taste",
                      "young")
                if r in VALUES), WORD_FACTS["young"].values()):
    for w in dict.fromkeys(group):
        SWAPS.setdefault(w, [v for v in dict.fromkeys(group) if v != w])
SWAP = re.compile(r"\b" + either(SWAPS) + r"\b", re.I)


def mistake(rng, spec, text):
    """The same answer with one word or phrase exchanged, so that it is worse and still English."""
    spots, before = list(SWAP.finditer(text)), judge(spec, text)
    for _ in range(12 if spots else 0):
        m = pick(rng, spots)
        new = pick(rng, SWAPS.get(m[0]) or SWAPS.get(m[0].lower()) or [m[0]])
        start = text[:m.start()]
        if m[0][:1].isupper():
            new = capital(new)
        if article := re.search(r"\b([Aa])n? $", start):
            start = start[:article.start()] + article[1] + ("n " if new[0] in "aeiou" else " ")
        after = judge(spec, edited := start + new + text[m.end():])
        worse = sum(after.values()) < sum(before.values()) - .3
        if worse and after["language"] == before["language"]:
            return edited
    return None


def strip(text): return " ".join(s for s in clean(text) if s not in FILLER)


def shorten(rng, spec, text):
    """One item, clause or sentence less, if that leaves English and loses a constraint."""
    whole, before = clean(text), judge(spec, text)
    cuts = [re.sub(r"(?:, [^,]+| [^, ]+(?: [^, ]+)?) and ((?:an? )?\w+)\.$", "", text)]
    cuts += [re.sub(r"(, [^,.]+) and [^,.]+([.?])", lambda m: " and" + m[1][1:] + m[2], text,
            count=1),
             re.sub(r" and (?:an? )?\w+([.?])", r"\1", text, count=1),
                     re.sub(r",? (?:because|but) [^.]*", "", text),
             re.sub(" " + either(VALUES["place"]), "", text, count=1),
                     re.sub(r" and (?:is|are|can) [^.]*", "", text)]
    cuts += [" ".join(whole[:-1])] if len(whole) > 1 else []
    for cut in cuts:
        after = judge(spec, cut)
        less = after["constraints"] < before["constraints"]
        if less and cut != text and after["language"] == before["language"]:
            return cut
    return None


def quiz(rng, prompt, questions=4):
    "A game played below answers, about what the instruction names: A frog can fly? Wrong."
    words = set(re.findall(r"\w+", prompt))
    named = [x for x in THINGS if x in words or plural(x) in words] or THINGS
    said = []
    for x in (pick(rng, named) for _ in range(questions)):
        right, rel = rng.random() < 0.5, pick(rng, sorted({*FACTS[x]} & {*VP_OF} | {"bigger"}))
        values = [v for v in VALUES[rel] if v != x and true(x, rel, v) == right] or [x]
        value = pick(rng, values)
        verdict = "Right" if true(x, rel, value) else "Wrong"
        said.append(f"{capital(an(x))} {vp(rel, value)}? {verdict}.")
    return " ".join(said)


def comment(rng, prompt, response):
    "What an attentive reader writes below an answer: whether it is true."
    found = parts(prompt, response)
    return "Wrong." if found["wrong"] else "What?" if found["language"] else "Right."


def variants(rng, prompt, response):
    """[(text, name)]: what comparisons are made of. An edit changes one thing, where it can."""
    spec = parse(prompt)
    if spec is None:
        return []
    plain, out, at = strip(response), [], judge(spec, response)
    def dress(text):  # the answer's own stock phrases back around an edited middle
        said = clean(response)
        first = [s for s in said[:1] if s in FILLER]
        return " ".join([*first, text, *(s for s in said[len(first):] if s in FILLER)])
    clean_ = not at["wrong"] and not at["language"]
    if at["constraints"] < 2.99 or not clean_:
        out.append((dress(extend(rng, spec, plain) or answer(rng, spec)), "complete"))
    less = shorten(rng, spec, plain)
    if less or clean_ and at["constraints"] > 2.99:
        out.append((dress(less or answer(rng, spec, short=True)), "incomplete"))
    out.append((plain, "plain"))
    if not at["hedging"]:
        out.append((hedge(rng, response), "hedged"))
    out.append((dress(mistake(rng, spec, plain) or plain), "wrong"))
    damaged = (dress(damage(rng, plain)) for _ in range(6))
    out.append((next((d for d in damaged if judge(spec, d)["language"] < at["language"]), ""),
            "broken"))
    out.append((" ".join([response, *(RAMBLES[i] for i in rng.permutation(len(RAMBLES))[:2])]),
            "long"))
    # an edit that does not do what its name says is dropped
    gold, up = sum(at.values()), ("complete", "plain")
    return [(t, name) for t, name in out if t and t != response
            and (sum(judge(spec, t).values()) > gold + 1e-9 if name in up
                    else sum(judge(spec, t).values()) < gold - 1e-9)]


def extend(rng, spec, text):
    """A missing item or a missing second part added to what is there."""
    said = list(claims_of(spec, map(read, clean(text))))
    listed = [x for c in said if c[0] == "items" for x in c[1]]
    first, tried = spec["goals"][0], []
    if first[0] == "items" and len(listed) < first[1] and listed:
        more = [x for x in rng.permutation(sorted(first[2] - {*listed}))
                if x not in listed][:first[1] - len(listed)]
        is_plural = re.search(either(map(plural, listed)) + r"[.?]", text) and not re.search(
            either(map(an, listed)) + r"[.?]", text)
        more = [plural(str(x)) if is_plural else an(str(x)) for x in more]
        m = re.match(r"(.*?)((?: and \S+| and an? \S+)?)([.?])(.*)", text, re.S)
        head = m[1] + (", " + m[2][5:] if m[2] and more else "")
        tried.append((", ".join([head, *more[:-1]]) + " and " + more[-1] if more
                else head) + m[3] + m[4])
    chosen = listed or [x for c in said if c[0] == "fact" for x in c[1]] or [spec["topic"]]
    if len(spec["goals"]) > 1 and not merged(spec["goals"]) and text and {*chosen} <= {*FACTS} \
            and not (("bigger", None, None) in spec["goals"] and len(chosen) != 2):
        more = say(rng, spec["goals"][1], spec, {"it": chosen})
        tried.append(text.rstrip(".") + more[1:] + "." if more[0] == "+"
                else text + " " + finish(more))
    return next((t for t in tried if round(judge(spec, t)["constraints"], 3) == 3
            and not judge(spec, t)["wrong"]), None)
