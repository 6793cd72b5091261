"""Holds the prose of a page against sentences that are written from data."""

import re

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COUNTS = (*WORDS[2:], "sixteen", "hundred", "thousand", "twice", "half", "third", "sixth", "tenth", "thirtieth")
FIGURE = re.compile(rf"\d(?:[\d.,]*\d)?|\b(?:{'|'.join(COUNTS)})s?\b", re.IGNORECASE)
BLOCKS = re.compile(r"^```.*?^```$|^\|.*?$|^!\[.*?\)$|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
NAMES = re.compile(r"`[^`]*`|CIFAR-10|ResNet-\d+|\bF1\b|\b\d+ layers|\b(?:plain|residual) \d+\b|95% interval")


def find_prose(text):
    """Return a page's text without tables, code blocks, pictures and targets of links, in one line."""
    return " ".join(BLOCKS.sub(" ", text).split())


def find_problems(prose, sentences, others):
    """Return which sentences are missing from the prose, and which figures are neither in these nor in ``others``."""
    problems = [f"missing: {sentence}" for sentence in (*sentences, *others) if sentence not in prose]
    for sentence in sorted((*sentences, *others), key=len, reverse=True):
        prose = prose.replace(sentence, " … ")
    prose = NAMES.sub("…", prose)
    return problems + [
        f"not from the data: {prose[max(0, figure.start() - 40) : figure.end() + 20]!r}"
        for figure in FIGURE.finditer(prose)
    ]


def change_each_digit(prose):
    """Yield the prose with one digit changed, for each digit that is not part of a name."""
    names = {position for name in NAMES.finditer(prose) for position in range(*name.span())}
    for position, letter in enumerate(prose):
        if letter.isdigit() and position not in names:
            yield f"{prose[:position]}{(int(letter) + 1) % 10}{prose[position + 1 :]}"
