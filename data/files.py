"""
Files of rows: JSON lines, CSV and Parquet, read row by row so that a bad one can be named.

And files that are written whole or not at all: whoever looks while a run goes on, or after it was
killed, finds the old file or the new one.
"""

import csv
import gzip
import json
import os
import zlib
from pathlib import Path

FORMATS = (".jsonl", ".jsonl.gz", ".csv", ".parquet")
LONGEST = 2**24  # bytes of a line: what was written to fill a memory is not read into it


def stem(path):
    "The name of a file or folder without the endings in FORMATS."
    name = path.name.removesuffix(".gz")
    return name.removesuffix(next((f for f in FORMATS if name.endswith(f)), ""))


def splits(folder, prefix):
    """The files of a folder, `prefix` being "" or "comparisons." -> dict from split to Path."""
    found = {}
    for path in sorted(folder.iterdir()):
        belongs = path.name.startswith("comparisons.") == bool(prefix)
        if belongs and path.name.endswith(FORMATS):
            found[stem(path).removeprefix(prefix)] = path
    return found


def read_rows(path, unfinished=False):
    """
    Yields (object, "file, line n") for each line of JSON, plain or .gz; ValueError names what is
    wrong. Rows of CSV and Parquet files likewise. With `unfinished`, a last line without its
    newline is no row: a kill has cut it short.
    """
    path = Path(path)
    if path.suffix in (".csv", ".parquet"):
        for number, row in enumerate(open_table(path, path), 1):
            yield row, f"{path}, row {number}"
        return
    number, unpacked, size = 0, 0, path.stat().st_size
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
            for number, line in enumerate(iter(lambda: f.readline(LONGEST + 1), b""), 1):
                place = f"{path}, line {number}"
                unpacked += len(line)
                if len(line) > LONGEST or unpacked > max(LONGEST, 200 * size):
                    raise ValueError(f"{place}: more text than any data has: lines of at most "
                                     f"{LONGEST:,} bytes, packed to no less than a 200th")
                if unfinished and not line.endswith(b"\n"):
                    return
                try:
                    line = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    row = json.loads(line) if line else None
                except UnicodeDecodeError:
                    raise ValueError(f"{place}: not UTF-8") from None
                except (ValueError, RecursionError):
                    raise ValueError(f"{place}: not JSON") from None
                if line:  # a blank line, as at the end of many files, is no row
                    if not isinstance(row, dict):
                        raise ValueError(f"{place}: not a JSON object")
                    yield row, place
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}, after line {number}: broken gzip ({error})") from None


def string(row, place, key):
    """The text under `key` of a row; ValueError says where and what is wrong with it."""
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
    """
    Write text, bytes, or whatever content(file) writes, beside `path`, then rename. Lone
    surrogates, which no file can hold, become "?". OSError names the file that there was no room
    for.
    """
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


# ---- tables, by the package `datasets` -----------------------------------------------------------


def load_dataset(source, *args, remedy="", **options):
    """
    datasets.load_dataset; whatever goes wrong in it is one sentence that names the `source`, and,
    of what lies on the hub, the `remedy`.
    """
    try:
        import datasets
    except ImportError:
        raise ModuleNotFoundError(f"{source} needs a package that is not installed: pip install "
                                  f"datasets, or give JSON lines instead") from None
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # before 4.0 a set could bring a script
    if not remedy:  # else reading a file on disk reports to the hub, and waits where there is none
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if "columns" in options:  # all of them text
        options["features"] = datasets.Features(
            dict.fromkeys(options.pop("columns"), datasets.Value("string")))
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # of the network, the hub, the cache, a parser: no common class
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise OSError(f"cannot {'get' if remedy else 'read'} {source} ({reason})"
                      f"{f' from the hub. {remedy}' if remedy else ''}") from error


def open_table(path, source, remedy=""):
    "A CSV, Parquet or JSON file, or several by a pattern, on disk or on the hub -> its rows."
    options, suffix = {}, Path(path).suffix
    if suffix == ".csv":  # every cell is text: an answer of "007" is no number, "NA" not missing
        with open(path, encoding="utf-8-sig", newline="") as f:
            options = {"columns": next(csv.reader(f), []), "na_filter": False}
    kind = {".csv": "csv", ".parquet": "parquet"}.get(suffix, "json")
    return load_dataset(source, kind, data_files=str(path), split="train", remedy=remedy, **options)
