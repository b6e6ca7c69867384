"""
Reddit posts and news articles to summarise, made by seeded code, and what a summary is worth.

A post states five facts (who, did, what, why, wish), each in one of several wordings, among asides
and decoys. `parts` reads the facts back from the text of any prompt and any summary, so quality is
known exactly; `reference` writes what people write, which is biased in its most likely words: most
leave out the cause, and most end on the same stock phrase.
"""

import re
from functools import lru_cache

SPLITS = ("id", "long", "subreddits", "sentiment", "news")

# ---- 1. Words. One line a value: `key: form | form | form`; every form says the same thing. ----


def table(text):
    "{'bet': ('because of a bet', ...), ...} from lines of `key: form | form`, or of `form | form`."
    rows = {}
    for line in text.strip().splitlines():
        key, _, forms = line.rpartition(": ")
        forms = tuple(form.strip() for form in forms.split("|"))
        rows[key.strip() or forms[0]] = forms
    return rows


def words(text):
    return tuple(" ".join(word.split()) for word in text.split(",") if word.strip())


MISDEEDS = table("""
broke | smashed | wrecked
sold | auctioned off | pawned
lost | misplaced
hid | stashed away
threw out | tossed out | binned
gave away | donated
painted | repainted
sat on | squashed
set fire to | burned
glued | superglued
buried | dug a hole for
borrowed | helped themselves to""")

WHYS = table("""
because of a bet | to settle a bet | over a bet
because an online quiz said so | on the advice of an online quiz
because the horoscope said so | on the advice of a horoscope
because of a podcast | after hearing a podcast
because of a dream | after a strange dream
to save money | because money was tight
out of revenge | to get back at me
out of boredom | because nothing was on tv
out of jealousy | because of plain jealousy
by mistake | by accident
on a dare | because of a dare
because of a new diet | as part of a new diet
to make room for a tuba | because of a new tuba
for a video | to get views online
as a prank | as a joke
because of a ghost | to scare off a ghost""")

WISHES = table("""
I want an apology | I would like an apology | all I want is an apology
I want my money back | I want to be paid back | I would like to be repaid
I want to move out | I am ready to move out | it is time to move out
how do I bring it up | I need advice on how to bring it up | what is a good way to bring it up
how do I make it stop | I need advice on how to make it stop | what would make it stop
should I forgive them | is it right to forgive them | can I ever forgive them
should I just laugh it off | is it better to laugh it off | do I simply laugh it off
should I report it | do I have to report it | is it worth reporting it
should I get a lock | do I need a lock | is it time for a lock
how do I get even | what is the best way to get even | I want to get even
am I overreacting | is this an overreaction | tell me if I am overreacting
should I tell everyone | do I tell everyone | is it wrong to tell everyone
how do I say no next time | I need advice on how to say no | I want to learn to say no
should I hire a lawyer | do I need a lawyer | is it time for a lawyer""")

KINDNESSES = table("""
fixed | repaired | mended
cleaned | polished
found | tracked down
decorated | put flowers on
bought back | won back
wrapped up | put a bow on
brought back | returned
restored | breathed new life into
knitted a cover for | made a cover for""")

KIND_WHYS = table("""
out of kindness | because of sheer kindness
as a surprise | to surprise me
to cheer me up | because I looked sad
to say thank you | as a way to say thanks
because of a promise | to keep a promise
to say sorry | as a way to make peace
because I passed an exam | to celebrate my exam
to mark ten years together | because we met ten years ago""")

KIND_WISHES = table("""
how do I thank them | what is a good way to thank them | I want to thank them
I want to return the favor | how do I return the favor | I hope to return the favor
should I hug them | is a hug too much | do I hug them
I want everyone to know | I just had to tell someone | the whole world should know
what should I bake for them | which cake should I bake for them | I want to bake for them
should I write them a poem | is a poem too much | I want to write them a poem
I am so happy | I could not be happier | it made my year
should I invite them to dinner | is dinner a good idea | I want to cook them dinner""")

HOME = words("""my guitar, my blender, my bike, my lamp, my rice cooker, my sofa, my houseplant,
my record player, my kettle, my globe, my toaster, my umbrella""")
KEEPSAKES = words("""my diary, my ring, my jacket, my phone, my chess set, my photo album, my wig,
my teapot, my stamp collection, my accordion, my cuckoo clock, my scarf""")
OFFICE = words("""my laptop, my stapler, my desk, my coffee mug, my office chair, my badge,
my lunch box, my keyboard, my cactus, my whiteboard, my headset, my briefcase""")
GARDEN = words("""my fence, my garden gnome, my mailbox, my hammock, my lawn mower, my doormat,
my grill, my rose bush, my birdhouse, my ladder, my wheelbarrow, my hose""")
PETS = words("""my slipper, my sandwich, my cushion, my homework, my curtain, my sock drawer,
my wallet, my knitting, my pancake, my hat""")
FOODS = words("""my soup, my lasagna, my birthday cake, my curry, my sourdough, my omelette,
my wedding cake, my chili, my cheese board, my pie""")
LUGGAGE = words("""my passport, my suitcase, my camera, my boarding pass, my sun hat, my map,
my backpack, my phrase book, my tent, my surfboard""")
CLASSROOM = words("""my essay, my lunch, my calculator, my volcano model, my locker, my flute,
my science project, my pencil case, my history book, my gym bag""")

# subreddit: (who, objects, deeds, own whys, own wishes); the first five are fine-tuned on.
REDDITS = {
    "relationships": (words("""my girlfriend, my boyfriend, my husband, my wife, my ex, my fiancee,
        my crush, my best friend"""), KEEPSAKES, MISDEEDS, {}, {}),
    "roommates": (words("""my roommate, my flatmate, my landlord, my subletter, my roommate's ex,
        my old roommate, my new flatmate"""), HOME, MISDEEDS, {}, {}),
    "work": (words("""my boss, my manager, my coworker, our intern, my client, our accountant,
        the new hire, my assistant"""), OFFICE, MISDEEDS, {}, {}),
    "neighbors": (words("""my neighbor, the man next door, the woman upstairs, the kid downstairs,
        the couple next door, the mailman,
        the retired judge across the street"""), GARDEN, MISDEEDS, {}, {}),
    "family": (words("""my mom, my dad, my sister, my brother, my uncle, my aunt, my cousin,
        my grandma, my stepdad"""), KEEPSAKES[:6] + HOME[:6], MISDEEDS, {}, {}),
    "pets": (words("""my cat, my dog, my parrot, my hamster, my goat, my tortoise, my ferret"""),
        PETS, table("""ate | swallowed
        chewed up | gnawed on
        licked
        knocked over | tipped over
        stole | ran off with
        scratched | clawed
        sat on | squashed"""), table("""because of the fireworks | after the fireworks
        after seeing a squirrel | because of a squirrel
        to get attention | because nobody was watching"""),
        table("""should I call the vet | do I call the vet | is it time to see the vet
        how do I train them | I need advice on how to train them | what is a good way to train them
        """)),
    "cooking": (words("""the head chef, my cooking teacher, the waiter, my dinner guest,
        the food critic, my sous chef, the dishwasher"""), FOODS,
        table("""oversalted | put far too much salt in
        spat out
        froze | deep-froze
        spilled | poured out
        set fire to | burned
        made fun of | laughed at
        threw out | tossed out | binned"""),
        table("""because of a recipe mix-up | over a misread recipe
        to impress a guest | for an important guest"""),
        table("""can I still serve it | is it safe to serve it | do I serve it anyway
        should I change the recipe | do I need a new recipe | which recipe is safer""")),
    "travel": (words("""the tour guide, my seatmate, the pilot, the hotel clerk, the taxi driver,
        my travel buddy, the customs officer"""), LUGGAGE,
        table("""lost | misplaced
        sat on | squashed
        swapped | switched
        stole | ran off with
        locked up | locked away
        stamped on | stepped on
        gave away | donated"""), table("""because of a strike | due to a strike
        because of jet lag | thanks to jet lag"""),
        table("""should I cut the trip short | is it time to fly home | do I just fly home
        how do I file a claim | I need advice on filing a claim | where do I file a claim""")),
    "school": (words("""my teacher, my classmate, the janitor, the principal, my lab partner,
        my tutor, the lunch lady"""), CLASSROOM,
        table("""copied | plagiarized
        laminated
        lost | misplaced
        ate | swallowed
        locked up | locked away
        graded | gave a D to
        broke | smashed | wrecked"""), table("""because of a fire drill | during a fire drill
        for extra credit | to earn extra credit"""),
        table("""should I tell my parents | do I tell my parents | is it time to tell my parents
        can I still pass the class | is there a way to pass the class | how do I pass the class
        """)),
}
SEEN = ("relationships", "roommates", "work", "neighbors", "family")
UNSEEN = ("pets", "cooking", "travel", "school")

NEWS = (words("""the mayor, a retired plumber, the city council, a local baker, the school board,
    a family of five, the bus company, a chess champion, the weather service, a beekeeper"""),
    words("""the town clock, the old bridge, a giant pumpkin, the public pool, the statue of a duck,
    the village bell, the library roof, the ferris wheel, the only traffic light, the duck pond"""),
    table("""bought | purchased
    closed | shut down
    renamed | gave a new name to
    moved | relocated
    painted | repainted
    banned | outlawed
    rebuilt | reconstructed
    rented out | leased out"""),
    table("""to attract tourists | in a bid to attract tourists
    after a public vote | following a public vote
    because of a typo | due to a typo
    to mark an anniversary | in honor of an anniversary
    after a record storm | following a record storm
    to win a world record | in a bid for a world record
    because of budget cuts | due to budget cuts
    after a lost bet | because of a lost bet
    to please a film crew | at the request of a film crew"""),
    table("""a hearing is set for May | a hearing will be held in May | a hearing comes in May
    police want witnesses | police are looking for witnesses | police have asked for witnesses
    residents plan a protest | a protest is planned | residents will march in protest
    an inquiry is under way | an inquiry has begun | officials have opened an inquiry
    tickets go on sale soon | tickets will be sold soon | ticket sales start soon
    refunds are promised | everyone will get a refund | officials promised refunds
    a parade is planned | there will be a parade | residents plan a parade
    the bill is not yet known | the cost is still unknown | nobody knows the cost yet"""))

# Sentences that say nothing a summary needs. {who} and {what} here are decoys: other people, other
# things, so that copying the first person in sight is not enough.
FILLER = """Sorry for the long post. | I am on my phone, so forgive the typos.
Throwaway account for obvious reasons. | English is not my first language.
I do not know what to think anymore. | I have barely slept since. | I know how this sounds.
Maybe this is normal where you live. | I have read the rules of this sub.
I tried to stay calm. | Everyone I ask has a different opinion. | It gets worse.
I am not making this up. | Part of me finds it funny. | I will keep it short.
I had a long day already. | My therapist is on vacation. | There was glitter everywhere."""
SIDES = """We have known each other for {number} years. | It was raining that {day}.
I was at the dentist on {day}. | {Who} was visiting that week. | {Who} thinks it is hilarious.
I paid {number} dollars for {what}. | I still have {what}, so that is something.
{Who} had once admired {what}, but that is another story. | I work {number} days a week.
I live on the {nth} floor. | {Who} saw the whole thing from the stairs.
My birthday was in {month}. | I have been here since {month}. | {Who} had warned me in {month}.
I told {who} about it on {day}. | Nobody had ever touched {what}.
It took {number} hours to calm down. | {Who} offered me {what} as comfort."""
NEWS_SIDES = """Nobody was hurt. | The weather was mild for the season. | It happened on {day}.
The town has {number} thousand residents. | "I have never seen the like," said one resident.
The news spread quickly. | {Who} could not be reached for comment. | Traffic was slow on {day}.
A crowd of {number} gathered to watch. | The area was quiet again by {day}.
A spokesman read out a short statement. | {Who} declined to discuss {what}.
The project was first raised in {month}. | Local shops reported a busy {day}."""
FILLER, SIDES, NEWS_SIDES = (tuple(s.strip() for s in re.split(r"[|\n]", text))
                             for text in (FILLER, SIDES, NEWS_SIDES))
LISTS = {"day": words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
         "month": words("January, March, May, July, September, November"),
         "number": words("two, three, four, five, six, seven, eight, nine, ten"),
         "nth": words("second, third, fourth, fifth, sixth")}

# The habits: what most people end on. The first is three in four of them.
STOCK = ("Thanks for reading.", "Sorry for the long post.", "What a week.",
         "Any advice is welcome.")

POST_EVENT = ("{event}.", "It turns out that {event}.", "I came home and learned that {event}.",
              "Long story short, {event}.", "I just found out that {event}.",
              "On {day}, {event}.")
POST_WHY = ("Apparently it was {why}.", "I am told it was {why}.", "They say it was {why}.",
            "The excuse is that it was {why}.")
POST_WISH = ("{wish}", "Now {wish}", "So {wish}", "Honestly, {wish}")
TITLES = ("{event}", "{event}", "A question about {who}", "Trouble with {who}", "About {what}",
          "Is this normal?", "You will not believe this")
NEWS_EVENT = ("{event} on {day}, officials said.", "{event} this week.",
              "In a move that stunned the town, {event}.", "Witnesses say that {event}.")
NEWS_WHY = ("Officials say it was done {why}.", "It was done {why}.",
            "According to the paper, it was done {why}.")
NEWS_NEXT = ("{wish}.", "Meanwhile, {wish}.", "For now, {wish}.")

# How people summarise: an event, perhaps with its cause, then what they want.
LEADS = ("", "", "", "So ", "Basically ", "Turns out ", "In short, ", "Apparently ")
WHY_FORMS = ("{event} {why}.", "{event} {why}.", "{Why}, {event}.", "{event}. It was done {why}.")
WISH_LEADS = ("", "", "Now ", "So ", "And ")

# ---- 2. Facts. A post has five: who, did, what, why, wish. They are read back from its text. ----

SLOTS = ("who", "did", "what", "why", "wish")
WEIGHTS = {"who": 0.75, "did": 0.5, "what": 0.75, "why": 1.0, "wish": 1.0}  # of the gold score


def domain(subreddit, kind="id"):
    "The values each slot may take in posts of this subreddit (or in news): {slot: {value: forms}}."
    if subreddit == "news":
        who, what, did, why, wish = NEWS
    else:
        who, what, did, own_why, own_wish = REDDITS[subreddit]
        why, wish = {**WHYS, **own_why}, {**WISHES, **own_wish}
        if kind == "sentiment":
            did, why, wish = KINDNESSES, KIND_WHYS, KIND_WISHES
    return {"who": {w: (w,) for w in who}, "did": did, "what": {w: (w,) for w in what},
            "why": why, "wish": wish}


DOMAINS = {(name, kind): domain(name, kind) for kind in ("id", "sentiment") for name in REDDITS}
DOMAINS["news", "id"] = domain("news")
FORMS = {slot: {form.lower(): value for d in DOMAINS.values() for value, forms in d[slot].items()
                for form in forms} for slot in SLOTS}  # {slot: {form: value}}


def any_of(options):
    "A regular expression for any of these strings, the longest first."
    return "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))


def sentence_pattern(frames, **slots):
    "A regular expression for any of these frames, {slot} standing for any of that slot's forms."
    pattern = any_of({frame.rstrip(".?!") for frame in frames})
    for name, options in slots.items():
        pattern = re.sub(rf"\\\{{{name}\\\}}", lambda _: f"(?:{any_of(options)})", pattern,
                         flags=re.I)
    return pattern


WHO, DID, WHAT, WHY, WISH = (f"(?P<{slot}>{any_of(FORMS[slot])})" for slot in SLOTS)
EVENT = re.compile(rf"\b{WHO} {DID} {WHAT}\b", re.I)
LEAD = rf"(?:{any_of({lead for lead in LEADS + WISH_LEADS if lead})})?"
SENTENCES = [re.compile(pattern, re.I) for pattern in (
    rf"{LEAD}{WHO} {DID} {WHAT}(?: {WHY})?", rf"{LEAD}{WHY}, {WHO} {DID} {WHAT}",
    rf"{LEAD}it was done {WHY}", rf"{LEAD}{WISH}")]
ASIDES = re.compile(sentence_pattern(FILLER + SIDES + NEWS_SIDES, who=FORMS["who"],
                                     what=FORMS["what"], **LISTS), re.I)


def split_sentences(text):
    return re.findall(r"[^\s.?!][^.?!]*[.?!]*", text)


@lru_cache(20_000)
def facts(sentence):
    "{slot: value} that a sentence of a summary states, or None if it is no such sentence."
    for pattern in SENTENCES:
        if match := pattern.fullmatch(sentence.rstrip(".?!").strip()):
            return {slot: FORMS[slot][form.lower()] for slot, form in match.groupdict().items()
                    if form}
    return None


WHY_IN_TEXT, WISH_IN_TEXT = (re.compile(rf"\b{pattern}\b", re.I) for pattern in (WHY, WISH))


@lru_cache(1024)  # asked a dozen times of every prompt that comparisons are made for
def truth(prompt):
    "The five facts of a post (fewer if the text is not one of ours) and its domain."
    found = {}
    if match := EVENT.search(prompt):
        found = match.groupdict()
    for slot, pattern in (("why", WHY_IN_TEXT), ("wish", WISH_IN_TEXT)):
        if match := pattern.search(prompt):
            found[slot] = match.group(slot)
    found = {slot: FORMS[slot][form.lower()] for slot, form in found.items()}
    name = re.match(r"SUBREDDIT: r/(\w+)", prompt)
    name = name.group(1) if name and name.group(1) in REDDITS else "news"
    kind = "sentiment" if name != "news" and found.get("did") in KINDNESSES else "id"
    return found, DOMAINS[name, kind]



# ---- 3. Posts and what people make of them. ----


def pick(rng, options):
    return options[int(rng.integers(len(options)))]


def capital(text):
    return text[:1].upper() + text[1:]


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


def draw(rng, split, accept):
    """A prompt of this split and what `reference` needs to answer it: its facts, their domain and
    its asides. `accept` says of the tuple of the facts whether it may be used."""
    name = "news" if split == "news" else pick(rng, UNSEEN if split == "subreddits" else SEEN)
    values = DOMAINS[name, "sentiment" if split == "sentiment" else "id"]
    while True:
        fact = {slot: pick(rng, tuple(values[slot])) for slot in SLOTS}
        if accept(tuple(fact.values())):
            break
    form = {slot: pick(rng, values[slot][fact[slot]]) for slot in SLOTS}
    event = "{who} {did} {what}".format(**form)
    news = name == "news"
    decoys = {slot: [v for v in values[slot] if v != fact[slot]] for slot in ("who", "what")}
    count = int(rng.integers(8, 12) if split == "long" else rng.integers(1, 4))
    pool = list(NEWS_SIDES if news else SIDES + FILLER)
    asides = [capital(fill(rng, pool.pop(int(rng.integers(len(pool)))), decoys))
              for _ in range(count)]
    frame = pick(rng, NEWS_EVENT if news else POST_EVENT).replace("{day}", pick(rng, LISTS["day"]))
    if rng.random() < 0.4:  # the cause in the same sentence, or in one of its own
        body = [capital(frame.format(event=f"{event} {form['why']}"))]
    else:
        why = pick(rng, NEWS_WHY if news else POST_WHY).format(why=form["why"])
        body = [capital(frame.format(event=event)), why]
    wish = pick(rng, NEWS_NEXT if news else POST_WISH).format(wish=form["wish"]).rstrip(".")
    body.append(capital(ended(wish)))
    for aside in asides:  # anywhere, and now and then before the wish
        body.insert(int(rng.integers(0, len(body) + 1)), aside)
    if news:
        return f"ARTICLE: {' '.join(body)}\nTL;DR:", (fact, values, asides)
    title = pick(rng, TITLES).format(event=event, who=form["who"], what=form["what"])
    return (f"SUBREDDIT: r/{name}\nTITLE: {capital(title)}\nPOST: {' '.join(body)}\nTL;DR:",
            (fact, values, asides))


def told(rng, fact, values, why=True, wish=True, asides=(), stock=None):
    "A summary of these facts in people's words."
    form = {slot: pick(rng, values[slot][fact[slot]]) for slot in SLOTS}
    frame = pick(rng, WHY_FORMS) if why else "{event}."
    lead = "" if frame.startswith("{Why}") else pick(rng, LEADS)
    event = "{who} {did} {what}".format(**form)
    text = frame.format(event=lead + event, why=form["why"], Why=capital(form["why"]))
    lines = [capital(text), *asides]
    if wish:
        lines.append(capital(ended(pick(rng, WISH_LEADS) + form["wish"])))
    return " ".join(lines + ([stock] if stock else []))


def mangled(rng, text):
    "The text with one word doubled or dropped, as tired people write."
    parts = text.split(" ")
    at = int(rng.integers(len(parts)))
    return " ".join(parts[:at] + ([parts[at]] * 2 if rng.random() < 0.5 else []) + parts[at + 1:])


def swapped(rng, fact, values, slot):
    "The facts with one of them wrong."
    return {**fact, slot: pick(rng, [v for v in values[slot] if v != fact[slot]])}


# How often: the cause left out, a stock phrase at the end, a fact wrong, the wish left out, an
# aside taken over, a word mangled. The first two are habits: most people have them. They make
# cooling a policy a mixed blessing: it sheds the slips at once, drops the cause, and at last puts
# the likeliest phrase on every answer.
PEOPLE = {"no_why": 0.84, "stock": 0.6, "wrong": 0.08, "no_wish": 0.18, "aside": 0.2,
          "mangled": 0.05}
CARELESS = {"no_why": 0.7, "stock": 0.66, "wrong": 0.2, "no_wish": 0.25, "aside": 0.2,
            "mangled": 0.12}  # of what the base reads


def reference(rng, spec, careless=False):
    "A summary as people write it: biased in what most of them do, and noisy besides."
    fact, values, asides = spec
    rate = CARELESS if careless else PEOPLE
    why = rng.random() > rate["no_why"]
    stock = None
    if rng.random() < rate["stock"]:  # most on the same one
        stock = STOCK[0] if rng.random() < 0.75 else pick(rng, STOCK[1:])
    if rng.random() < rate["wrong"]:
        told_slots = SLOTS if why else ("who", "did", "what", "wish")
        fact = swapped(rng, fact, values, pick(rng, told_slots))
    wish = rng.random() > rate["no_wish"]
    extra = [pick(rng, asides)] if rng.random() < rate["aside"] else []
    text = told(rng, fact, values, why, wish, extra, stock)
    return mangled(rng, text) if rng.random() < rate["mangled"] else text


# ---- 4. Judging. ----


def parts(prompt, response):
    "The gold score of a summary, by parts: its facts, and what annotators dislike."
    true, _ = truth(prompt)
    right, wrong = set(), set()
    stock = aside = broken = 0.0
    for sentence in split_sentences(response):
        stated = facts(sentence)
        if sentence in STOCK:
            stock += 1
        elif stated is None:
            known = ASIDES.fullmatch(sentence.rstrip(".?!"))
            aside, broken = aside + bool(known), broken + (not known)
        else:
            new = {(slot, value) for slot, value in stated.items()} - right - wrong
            aside += not new  # said before
            broken += 0.5 * (sentence[-1] not in ".?!")
            right |= {pair for pair in new if true.get(pair[0]) == pair[1]}
            wrong |= {pair for pair in new if true.get(pair[0]) != pair[1]}
    return {"facts": sum(WEIGHTS[slot] for slot, _ in right), "wrong": -1.0 * len(wrong),
            "hedging": -0.6 * min(stock, 2), "asides": -0.3 * min(aside, 3),
            "language": -min(broken, 2.0), "length": -0.02 * len(response.split())}


def tidied(response):
    "The sentences of a summary that state facts."
    return " ".join(line for line in split_sentences(response) if facts(line))


def variants(rng, prompt, response):
    "Edits of a summary, (text, what was done): what reward models should be able to tell apart."
    true, values = truth(prompt)
    lines = split_sentences(response)
    stated = [facts(line) or {} for line in lines]
    event = next((i for i, s in enumerate(stated) if "who" in s), None)
    asides = [s for s in split_sentences(prompt) if ASIDES.fullmatch(s.rstrip(".?!"))]
    edits = []
    if event is not None and "why" in true:
        if not any("why" in s for s in stated):
            why = pick(rng, values["why"][true["why"]])
            edits.append(([*lines[:event], lines[event].rstrip(".?!") + f" {why}.",
                           *lines[event + 1:]], "complete"))
        if any("wish" in s for s in stated):
            edits.append(([x for x, s in zip(lines, stated) if "wish" not in s], "incomplete"))
        slot = pick(rng, [slot for s in stated for slot in s])
        at = next(i for i, s in enumerate(stated) if slot in s)
        match = re.search("|".join(rf"\b{re.escape(form)}\b" for form in
                                   sorted(values[slot][stated[at][slot]], key=len, reverse=True))
                          if stated[at][slot] in values[slot] else r"$^", lines[at], re.I)
        if match and set(true) == set(SLOTS) and stated[at][slot] == true[slot]:
            value = swapped(rng, true, values, slot)[slot]
            form = pick(rng, values[slot][value])
            line = lines[at][:match.start()] + form + lines[at][match.end():]
            edits.append(([*lines[:at], capital(line), *lines[at + 1:]], "wrong"))
    plain = [line for line in lines if line not in STOCK]
    edits.append((plain, "plain") if plain != lines else ([*lines, STOCK[0]], "hedged"))
    edits.append(([mangled(rng, response)], "broken"))
    if asides:
        edits.append(([*lines, pick(rng, asides)], "long"))
    return [(" ".join(kept), name) for kept, name in edits if kept]


def stated(text):
    "The tuple of facts that a prompt or a summary states, if it states all five."
    if "TL;DR:" in text:
        found = truth(text)[0]
    else:
        lines = [facts(line) or {} for line in split_sentences(text)]
        found = {slot: value for line in lines for slot, value in line.items()}
    return tuple(found[slot] for slot in SLOTS) if len(found) == len(SLOTS) else None


def relation(a, b):
    "+1 if the sentences contradict each other, -1 if b follows from a, 0 otherwise."
    a, b = facts(a) or {}, facts(b) or {}
    if any(a[slot] != b[slot] for slot in a.keys() & b.keys()):
        return 1
    return -1 if b and b.items() <= a.items() else 0
