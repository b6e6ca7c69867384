"""
Files of rows: JSON lines, CSV and Parquet, read row by row so that a bad one can be named.

And files that are written whole or not at all: whoever looks while a run goes on, or after it was
killed, finds the old file or the new one. And that what takes long is seen to go on.
"""

import csv
import gzip
import json
import os
import re
import sys
import threading
import time
import zlib
from pathlib import Path

from tqdm import tqdm

FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
LONGEST = 2**24  # bytes of a line or a cell: what was written to fill a memory is not read into it
PATIENCE = 3  # seconds that a phase may be silent
HEAVY = 200e6  # bytes of a file that is not read or written in a moment


def progress(items, what, unit="batch"):
    """Yields `items`, of which there is a number. From the third second on a bar on stderr says how
    far that has come, also while the first of them still takes its time; before, nothing does."""
    bar = tqdm(items, what, unit=unit, delay=PATIENCE, leave=False)

    def show():
        bar.last_print_t = time.time()  # by which it knows that there is something to wipe out
        bar.refresh()
    timer = threading.Timer(PATIENCE, show)
    timer.daemon = True
    timer.start()
    try:
        yield from bar
    finally:
        timer.cancel()


def announce(doing, path, size):
    "Says on stderr, before it is done, that a file of `size` bytes is read or written, if heavy."
    if size > HEAVY:
        tqdm.write(f"{doing} {path}, {size / 1e6:,.0f} MB", file=sys.stderr)


def stem(path):
    "The name of a file or folder without the endings in FORMATS."
    name = path.name.removesuffix(".gz")
    return name.removesuffix(next((f for f in FORMATS if name.endswith(f)), ""))


def splits(folder, prefix):
    """The files of a folder, `prefix` being "" or "comparisons." -> dict from split to Path. A
    split's name is one word: copies ("test (1).jsonl") and what systems and editors leave beside a
    file ("._test.jsonl", "~$test.csv") are none. ValueError for two files of one split."""
    found = {}
    for path in sorted(folder.iterdir()):
        name = stem(path)
        if (path.name.endswith(FORMATS) and re.fullmatch(r"[\w-][\w.-]*", name)
                and name.startswith("comparisons.") == bool(prefix)):
            other = found.setdefault(name.removeprefix(prefix), path)
            if other != path:
                raise ValueError(f"{other} and {path} are one split: keep one of them")
    return found


def read_rows(path, unfinished=False):
    """Yields (object, "file, line n") for each line of JSON, plain or .gz; ValueError names what is
    wrong. Rows of CSV and Parquet files, and of an array in a .json file, likewise. With
    `unfinished`, a last line without its newline is no row: a kill has cut it short."""
    path = Path(path)
    if path.suffix == ".csv":
        yield from csv_rows(path)
    elif path.suffix == ".parquet" or path.suffix == ".json" and path.read_bytes()[:1] == b"[":
        for number, row in enumerate(foreign(path, lambda: whole(path)), 1):
            yield row, f"{path}, row {number}"
    else:
        for line, place in lines(path):
            if unfinished and not line.endswith("\n") or not line.strip():
                continue  # a blank line, as at the end of many files, is no row
            try:
                row = json.loads(line.strip())
            except (ValueError, RecursionError):
                raise ValueError(f"{place}: not JSON") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place}: not a JSON object")
            yield row, place


def lines(path):
    "Yields (text with its newline, its place) for each line of a file, plain or .gz."
    number, unpacked, size = 0, 0, path.stat().st_size
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
            for number, line in enumerate(iter(lambda: f.readline(LONGEST + 1), b""), 1):
                place = f"{path}, line {number}"
                unpacked += len(line)
                if len(line) > LONGEST or unpacked > max(LONGEST, 200 * size):
                    raise ValueError(f"{place}: more text than any data has: lines of at most "
                                     f"{LONGEST:,} bytes, packed to no less than a 200th")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise ValueError(f"{place}: not UTF-8: save the file as that") from None
                yield text, place
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, after line {number}: broken gzip ({error})") from None


def csv_rows(path):
    """Every cell is text: "007" is no number, "NA" not missing. A column without a name, as pandas
    writes its index, is left out; in a row of other length than the first, cells are shifted."""
    csv.field_size_limit(LONGEST)
    reader, names, begin = csv.reader((line for line, _ in lines(path)), strict=True), None, 1
    try:
        for cells in filter(None, reader):  # a blank line is no row
            place, begin, names = f"{path}, line {begin}", reader.line_num + 1, names or cells
            row = {name: cell for name, cell in zip(names, cells) if name}
            if len(cells) != len(names) or len(row) < len([*filter(None, names)]):
                raise ValueError(f"{place}: {len(cells)} cells for the columns {', '.join(names)}: "
                                 f"each needs one and a name of its own; quote texts with commas")
            if cells is not names:
                yield row, place
    except csv.Error as error:
        raise ValueError(f"{path}, line {begin}: not CSV ({error})") from None


def whole(path):
    if path.suffix == ".json":
        return [*map(dict, json.loads(path.read_bytes()))]
    from pyarrow import parquet  # which `datasets` brings along

    with open(path, "rb") as file:
        return parquet.ParquetFile(file).read().to_pylist()


def foreign(source, read, remedy=""):
    "read(), by a package of others; whatever goes wrong is one sentence about the `source`."
    try:
        return read()
    except ImportError:
        raise ModuleNotFoundError(f"{source} needs a package that is not installed: pip install "
                                  f"datasets, or give JSON lines instead") from None
    except Exception as error:  # of the network, the hub, the cache, a parser: no common class
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise OSError(f"cannot read {source} ({reason}){remedy}") from error


def string(row, place, key):
    "The text under `key` of a row; ValueError says where and what is wrong with it."
    if key not in row:
        raise ValueError(f'{place}: no "{key}"')
    if not isinstance(row[key], str):
        raise ValueError(f'{place}: "{key}" is not text but {row[key]!r:.40}')
    if key == "prompt" and not row[key].strip():
        raise ValueError(f"{place}: the prompt is empty")
    return row[key]


def read_log(path):
    "The rows of JSON lines that this project wrote -> list of dicts, without one cut by a kill."
    return [row for row, _ in read_rows(path, unfinished=True)]


def write_rows(path, rows):
    "Write a list of dicts as JSON lines: all of them, or none."
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_file(path, content):
    """Write text, bytes, or whatever content(file) writes, beside `path`, then rename. Lone
    surrogates, which no file can hold, become "?". OSError names the file without room for it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode("utf-8", "replace")
    temporary = path.with_name(f".{path.name}.tmp")  # always that: the next run's, after a kill
    try:
        with open(temporary, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(f"{path} could not be written ({str(error).splitlines()[0]}); an older file "
                      f"of that name is still whole") from error
    finally:
        temporary.unlink(missing_ok=True)
