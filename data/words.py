"""
The words and facts of the embedded world's tasks stand in text files, which this reads.

A section is a [heading] on a line of its own and the lines below it, up to an empty one. All else
in such a file is for people.
"""

import re
from pathlib import Path


def sections(name):
    "{heading: its lines, as one text} of a file beside this one."
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return {heading: lines.strip()
            for heading, lines in re.findall(r"^\[(.+)\]\n((?:.+\n?)*)", text, re.M)}


def table(text):
    "{value: its wordings, itself the first}: commas and line ends part values, bars wordings."
    found = [tuple(map(str.strip, value.split("|"))) for value in re.split(r"[,\n]", text)]
    return {wordings[0]: wordings for wordings in found if wordings[0]}


def phrases(text):
    "A tuple of what bars and line ends part; what stands twice in the text stands twice in it."
    return tuple(map(str.strip, re.split(r"[|\n]", text)))


def rows(text):
    "{'dog': 'brown, on a farm'} from lines of the form `dog: brown, on a farm`."
    return dict(line.split(": ") for line in text.splitlines())


def any_of(options):
    "A regular expression for any of these strings, the longest first."
    ordered = sorted(options, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered))})"


def capital(text):
    "The text with a capital letter, behind the quotation mark if there is one."
    i = 1 if text.startswith('"') else 0
    return text[:i] + text[i:i + 1].upper() + text[i + 1:]
