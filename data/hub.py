"""
Public datasets by name: those of the paper, and any other on the Hugging Face hub; CSV and Parquet.

    python -m data tldr --split cnn -n 5         # fetched once; the hub is asked for changes
    python -m data tldr=copies --split cnn -n 5  # from copies/cnn_dailymail/3.0.0/test-*.parquet

    name                what it is trained on                        test splits, ID first
    tldr                Reddit posts with their authors' TL;DRs      test, cnn (CNN/DailyMail)
    tldr-SUBREDDIT      posts of relationships, AskReddit, ...       test, cnn, ood_test: all others
    tldr-length         posts of at most 245 words                   test, cnn, ood_test: the longer
    tldr-sentiment      the gloomier half of the posts               test, cnn, ood_test: the rest
    tldr-10, tldr-50    10 % or 50 % of the posts                    test, cnn
    alpaca, alpaca-sim  AlpacaFarm; people's or simulated choices    test, alpaca_eval, sequential
    hh                  Anthropic's helpful and harmless dialogues   test
    owner/name[:config] any set of the hub with one of the shapes    test, and others it may have

Any name may be followed by `=FOLDER`, which holds the hub's own files, each set in a folder of its
name, as `hf download UCL-DARK/openai-tldr-filtered --repo-type dataset --local-dir
FOLDER/openai-tldr-filtered` makes it (FILES, below, says which files, and which `--revision`). Rows
are known by their columns (EXAMPLES and COMPARISONS). Where a set has no validation or test split,
one training prompt in twenty is. A response is the columns' reference, or what people chose.

The sets, columns, templates and splits are those of Kirk et al. 2024 (arXiv:2310.06452) and of
their code (facebookresearch/rlfh-gen-div, dataset/summarisation_formatting.py), with these
differences: 10 % is a part of 50 %, and no post is in it twice (they draw with replacement); their
sentiment classifier is not published, so without its index files a word list takes its place.
"""

import csv
import functools
import pickletools
import random
import re
import statistics
import struct
import sys
from pathlib import Path

import data

SUBREDDITS = ("relationships", "AskReddit", "relationship_advice", "tifu", "dating_advice")
STRUCTURED = ("length", "sentiment", *SUBREDDITS)
PERCENT = {"10": 10, "50": 50}
NAMES = ("tldr", *(f"tldr-{x}" for x in (*PERCENT, *STRUCTURED)), "alpaca", "alpaca-sim", "hh")
HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
LENGTH = 245  # words of a post, the longest in distribution
CUT = ("validation", "test")  # made from the training rows where a set has none

POSTS, PAIRS = "UCL-DARK/openai-tldr-filtered", "UCL-DARK/openai-tldr-summarisation-preferences"
FARM = "tatsu-lab/alpaca_farm"
CONVERTED = "@refs%2Fconvert%2Fparquet"  # the branch where the hub keeps its own conversion
FARM_ROWS = f"{FARM}{CONVERTED}/alpaca_instructions"
ALPACA = {"train": f"{FARM_ROWS}/sft/*.parquet", "validation": f"{FARM_ROWS}/val/*.parquet",
          "unlabeled": f"{FARM_ROWS}/unlabeled/*.parquet",
          "test": "UCL-DARK/alpaca-farm-id-test/data/*.parquet",
          "alpaca_eval": "tatsu-lab/alpaca_eval/alpaca_eval.json",
          "sequential": "UCL-DARK/sequential-instructions/data/*.parquet"}
HH = {split: f"Anthropic/hh-rlhf/h*/{split}.jsonl.gz" for split in ("train", "test")}
FILES = {  # of examples; of comparisons
    False: {"tldr": {"train": f"{POSTS}/train.jsonl", "validation": f"{POSTS}/valid.jsonl",
                     "test": f"{POSTS}/test.jsonl",
                     "cnn": "abisee/cnn_dailymail/3.0.0/test-*.parquet"},
            "alpaca": ALPACA, "alpaca-sim": ALPACA, "hh": HH},
    True: {"tldr": {**{split: f"{PAIRS}/data/{split}-*.json"
                       for split in ("train", "validation", "test")},
                    "cnn": f"openai/summarize_from_feedback{CONVERTED}/comparisons/"
                           "validation/*.parquet"},
           "alpaca": {"train": f"{FARM}/alpaca_human_preference.json"},
           "alpaca-sim": {"train": f"{FARM}/alpaca_noisy_multi_preference.json"}, "hh": HH}}

OFFLINE = ("Without a network, write NAME=FOLDER, where FOLDER holds the hub's own files, each set "
           "in a folder of its name; or give a folder with train.jsonl, validation.jsonl, "
           "test.jsonl, comparisons.train.jsonl and comparisons.validation.jsonl")


# ---- one row: its prompt in the paper's template, and the answers --------------------------------


def reddit(row, at):
    text = functools.partial(data.string, row, at)
    return (f"SUBREDDIT: r/{text('subreddit')}\nTITLE: {text('title')}\nPOST: {text('post')}\n"
            f"TL;DR:")


def news(row, at):
    return f"ARTICLE: {data.string(row, at, 'article')}\nTL;DR:"


def instruction(row, at):
    "Alpaca's prompt; a missing or empty input leaves its part out."
    given = data.string(row, at, "input") if row.get("input") is not None else ""
    context = ", paired with an input that provides further context" if given else ""
    given = f"### Input:\n{given}\n\n" if given else ""
    return (f"Below is an instruction that describes a task{context}. Write a response that "
            f"appropriately completes the request.\n\n### Instruction:\n"
            f"{data.string(row, at, 'instruction')}\n\n{given}### Response:")


def plain(row, at):
    return data.string(row, at, "prompt")


def answered(prompt, *answers):
    "A reader of rows: (row, where it stands) -> (prompt, *answers)."
    return lambda row, at: (prompt(row, at), *(data.string(row, at, key) for key in answers))


def last_turn(row, at, key):
    "A dialogue -> everything up to its last answer, and that answer."
    before, cue, answer = data.string(row, at, key).rpartition("\n\nAssistant:")
    if not cue:
        raise ValueError(f'{at}: "{key}" has no turn of the Assistant')
    return before + cue, answer


def dialogues(row, at):
    (prompt, chosen), (other, rejected) = (last_turn(row, at, k) for k in ("chosen", "rejected"))
    return (prompt, chosen, rejected) if prompt == other else None


def summaries(row, at):
    "A row of OpenAI's comparisons: of Reddit posts, or of articles, which have no post."
    info, shown = row["info"] or {}, row["summaries"] or ()
    if len(shown) != 2 or row["choice"] not in (0, 1):
        raise ValueError(f"{at}: {len(shown)} summaries and choice {row['choice']!r}, not two "
                         f"and 0 or 1")
    a, b = (data.string(summary, at, "text") for summary in shown)
    prompt = (reddit if info.get("post") is not None else news)(info, at)
    return (prompt, b, a) if row["choice"] else (prompt, a, b)


def outputs(row, at):
    "A row of AlpacaFarm's comparisons; any preference but 1 and 2 is a tie."
    prompt, a, b = answered(instruction, "output_1", "output_2")(row, at)
    return {1: (prompt, a, b), 2: (prompt, b, a)}.get(row["preference"])


EXAMPLES = {
    ("prompt", "response"): answered(plain, "response"),
    ("prompt", "reference"): answered(plain, "reference"),
    ("prompt", "completion"): answered(plain, "completion"),
    ("subreddit", "title", "post", "summary"): answered(reddit, "summary"),
    ("article", "highlights"): answered(news, "highlights"),
    ("instruction", "output"): answered(instruction, "output"),
    ("prompt", "chosen"): answered(plain, "chosen"),
    ("chosen", "rejected"): functools.partial(last_turn, key="chosen")}
COMPARISONS = {
    ("prompt", "chosen", "rejected"): answered(plain, "chosen", "rejected"),
    ("chosen", "rejected"): dialogues,
    ("info", "summaries", "choice"): summaries,
    ("instruction", "output_1", "output_2", "preference"): outputs}


def shape(columns, pairs, source):
    "The columns by which the rows of a table are known, and their reader."
    shapes = COMPARISONS if pairs else EXAMPLES
    lacking = {wanted: [c for c in wanted if c not in columns] for wanted in shapes}
    best = min(shapes, key=lambda w: (len(lacking[w]), len(lacking[w]) - len(w)))
    if lacking[best]:
        names = ", ".join(f'"{c}"' for c in lacking[best])
        raise ValueError(f"{source} has no column {names}: found {', '.join(columns)}; needed for "
                         f"{'a comparison' if pairs else 'an example'}: "
                         f"{'; or '.join(', '.join(wanted) for wanted in shapes)}")
    return best, shapes[best]


# ---- which rows belong to a split ----------------------------------------------------------------

GLOOMY = set("""afraid alone angry anxious argument awful bad blame bored broke broken cheated crazy
    cried cry dead death depressed died divorce fight hate horrible hurt ignored jealous lie lied
    lonely lost mad mean miserable miss nervous pain panic poor problem problems sad scared sick
    sorry stupid suck sucks terrible tired ugly upset worried worse worst wrong""".split())
HAPPY = set("""amazing awesome beautiful best better calm care cool cute enjoy enjoyed excited fine
    free friend friends fun funny glad good great happy healthy help hope interesting kind laugh
    laughed like love loved lucky nice perfect pleased proud relaxed safe smart smile success sweet
    thank thanks trust well win wonderful""".split())


def mood(post):
    "Share of happy words less share of gloomy ones, from -1 to 1; 0 for a post without words."
    words = re.findall(r"[a-z]+", post.lower())
    return sum((w in HAPPY) - (w in GLOOMY) for w in words) / max(len(words), 1)


@functools.cache
def median_mood(folder):
    "Of the posts to train on, for examples and comparisons alike: a post is always on one side."
    table, source = open_stored(FILES[False]["tldr"]["train"], folder)
    return statistics.median(mood(data.string(row, source, "post")) for row in table)


def published(path):
    """The authors' sentiment index file -> {split: set of row numbers in distribution}.

    It is a dict of lists or int64 arrays as numpy pickles it. To unpickle a file may run any code,
    so its opcodes are only read here, and none is executed. ValueError for another kind of file.
    """
    content, found = Path(path).read_bytes(), {}
    try:
        start = 10 + struct.unpack("<H", content[8:10])[0]  # Format version 1.0, numpy.lib.format
        for opcode, value, _ in pickletools.genops(content[start:]):
            if "UNICODE" in opcode.name and value in ("train", "validation", "test"):
                array, listed = found[value] = [], []
            elif found and "BYTES" in opcode.name and len(value) % 8 == 0:
                array += struct.unpack(f"<{len(value) // 8}q", value)
            elif found and opcode.name in ("BININT", "BININT1", "BININT2"):
                listed.append(value)  # all of a list; of an array only its shape and such
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path} is not one of the authors' index files: {error}") from None
    return {split: set(array or listed) for split, (array, listed) in found.items()}


def within(name, split, pairs, table):
    "Which rows of a table a split keeps: a function of (row number, row, where it stands)."
    _, subset, folder = parse(name)
    if split == "cnn":
        return lambda i, row, at: not pairs or "cnndm" in data.string(row, at, "batch")
    if subset in PERCENT and split in ("train", "validation"):
        order = random.Random(0).sample(range(len(table)), len(table))
        chosen = set(order[:len(table) * PERCENT[subset] // 100])
        return lambda i, row, at: i in chosen
    if subset not in STRUCTURED or split.startswith("full_"):
        return lambda i, row, at: True
    field = lambda row, at, key: data.string(row["info"] or {} if pairs else row, at, key)
    index = Path(folder, f"{'rm_' if pairs else ''}sentiment_indices.npy")
    if subset == "length":
        inside = lambda i, row, at: len(field(row, at, "post").split(" ")) <= LENGTH
    elif subset in SUBREDDITS:
        inside = lambda i, row, at: field(row, at, "subreddit") == subset
    elif folder and index.exists():
        known = published(index).get(split.removeprefix("ood_"), set())
        if not known or min(known) < 0 or max(known) >= len(table):
            raise ValueError(f"{index} has {len(known)} row numbers for {split}, which do not fit "
                             f"its {len(table)} rows: it belongs to another version of the set")
        inside = lambda i, row, at: i in known
    else:
        inside = lambda i, row, at: mood(field(row, at, "post")) <= median_mood(folder)
    outside = split.startswith("ood_")
    return lambda i, row, at: inside(i, row, at) != outside


# ---- tables, and lists of records ----------------------------------------------------------------


def parse(name):
    """The set, the part of it and the folder that a name stands for: "tldr-10=copies" is ("tldr",
    "10", "copies")."""
    name, _, folder = str(name).partition("=")
    known, _, part = name.partition("-")
    return (known, part, folder) if name in NAMES and known == "tldr" else (name, "", folder)


def knows(name):
    "Whether a name is one of the above; a file or folder of one's own comes before the hub."
    first = str(name).partition("=")[0]
    return first in NAMES or (bool(HUB.fullmatch(first)) and not Path(name).exists()
                              and not first.endswith(data.FORMATS))


def load_dataset(source, remote, *args, **options):
    "datasets.load_dataset; whatever goes wrong in it is one sentence that names the source."
    try:
        import datasets
    except ImportError:
        raise ModuleNotFoundError(f"{source} needs a package that is not installed: pip install "
                                  f"datasets, or give JSON lines instead") from None
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # before 4.0 a set could bring a script
    if not remote:  # else reading a file on disk reports to the hub, and waits where there is none
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if "columns" in options:  # all of them text
        options["features"] = datasets.Features(
            dict.fromkeys(options.pop("columns"), datasets.Value("string")))
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # of the network, the hub, the cache, a parser: no common class
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise OSError(f"cannot {'get' if remote else 'read'} {source} ({reason})"
                      f"{f' from the hub. {OFFLINE}' if remote else ''}") from error


def open_file(path, source):
    "A CSV, Parquet or JSON file, or several by a pattern, on disk or on the hub -> its rows."
    options, suffix = {}, Path(path).suffix
    if suffix == ".csv":  # every cell is text: an answer of "007" is no number, "NA" not missing
        with open(path, encoding="utf-8-sig", newline="") as f:
            options = {"columns": next(csv.reader(f), []), "na_filter": False}
    kind = {".csv": "csv", ".parquet": "parquet"}.get(suffix, "json")
    return load_dataset(source, str(path).startswith("hf://"), kind, data_files=str(path),
                        split="train", **options)


def open_stored(location, folder):
    "A location in FILES, on the hub or below a folder -> its rows, and its name in messages."
    owner, name, path = location.split("/", 2)
    source = f"{name.partition('@')[0]}/{path}"
    if not folder:
        return open_file(f"hf://datasets/{location}", f"{owner}/{source}"), source
    if not any(Path(folder).glob(source)):
        raise FileNotFoundError(f"there is no {Path(folder, source)}. {OFFLINE}")
    return open_file(Path(folder, source), source), source


def open_set(name, folder):
    "Any set of the hub -> {split: rows}."
    path, _, config = name.partition(":")
    if folder:
        path = Path(folder, path.split("/")[1])
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}. {OFFLINE}")
    return load_dataset(name, not folder, str(path), config or None)


def stored(name, pairs):
    "{split: location in FILES}, or of any other set of the hub {split: rows}."
    known, _, folder = parse(name)
    return FILES[pairs].get(known) or open_set(known, folder)


def splits(name, pairs=False, tables=None):
    "Every split of a set of examples, or of comparisons -> tuple of names."
    tables = tables or stored(name, pairs)
    found = [*tables, *(s for s in CUT if "train" in tables and s not in tables)]
    if parse(name)[1] in STRUCTURED:
        found += ["ood_validation", "ood_test", "full_validation", "full_test"]
    return tuple(found)


def records(name, split, pairs=False):
    """The examples, or the comparisons, of a split -> list of data.Example or data.Comparison.

    ValueError names an unknown split, a missing column or a malformed row. Rows that say nothing
    are left out and counted on stderr: ties, equal answers, dialogues whose earlier turns differ.
    """
    tables, folder = stored(name, pairs), parse(name)[2]
    data.check_split(name, split, splits(name, pairs, tables))
    origin = split.removeprefix("ood_").removeprefix("full_")
    absent = [s for s in CUT if s not in tables]
    cut = absent and origin in ("train", *absent)
    table, source = tables["train" if cut else origin], f"{name} {split}"
    if isinstance(table, str):
        table, source = open_stored(table, folder)
    columns, reader = shape(table.column_names, pairs, source)
    keep, found, empty = within(name, split, pairs, table), [], []
    for i, row in enumerate(table):
        at = f"{source}, row {i + 1}"
        if not keep(i, row, at):
            continue
        prompt, *answers = reader(row, at) or ("", "", "")
        if cut and prompt and data.part(prompt, absent) != origin:
            continue
        if pairs and answers[0].strip() == answers[1].strip():
            empty.append(at)
            continue
        meta = {k: v for k, v in row.items() if k not in columns}
        found.append((data.Comparison if pairs else data.Example)(prompt, *answers, meta))
    if empty:
        print(f"{name} {split}: {len(empty)} of {len(empty) + len(found)} comparisons prefer "
              f"nothing and are left out (the first: {empty[0]})", file=sys.stderr)
    return found
