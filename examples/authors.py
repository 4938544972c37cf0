"""Makes a small set of texts with classes: which of two authors wrote a passage of sixteen words?

    python examples/authors.py tinyshakespeare.txt war-and-peace authors

writes authors/train.jsonl, valid.jsonl and test.jsonl from tiny Shakespeare and from a folder with War and Peace in
train.txt, valid.txt and test.txt, for `--data text:authors`. The parts of a text do not overlap: of tiny Shakespeare,
the first 90 % are for training, the next 5 % for validation, the last 5 % for tests. Lines, capitals, punctuation and
the names of speakers would give the answer away, so they are left out. Both authors have as many passages.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

WORDS = 16
PARTS = {"train": 0.9, "valid": 0.05, "test": 0.05}
SPEAKER = re.compile(r"^[A-Z][A-Za-z' ]*:$", re.MULTILINE)
HEADING = re.compile(r"^(BOOK|CHAPTER|FIRST EPILOGUE|SECOND EPILOGUE).*$", re.MULTILINE)
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


def passages(text: str) -> list[str]:
    """Runs of `WORDS` words, one after the other."""
    plain = HEADING.sub("", SPEAKER.sub("", text)).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").lower()
    words = WORD.findall(plain)
    return [" ".join(words[start : start + WORDS]) for start in range(0, len(words) - WORDS + 1, WORDS)]


def divided(text: str) -> dict[str, str]:
    """The parts of a text, from its beginning."""
    ends = [round(len(text) * share) for share in (0.9, 0.95, 1.0)]
    return {part: text[start:end] for part, start, end in zip(PARTS, [0, *ends], ends, strict=False)}


def main() -> None:
    """Reads the arguments and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shakespeare", type=Path)
    parser.add_argument("tolstoy", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    shakespeare = divided(arguments.shakespeare.read_text(encoding="utf-8"))
    arguments.folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for part in PARTS:
        tolstoy = (arguments.tolstoy / f"{part}.txt").read_text(encoding="utf-8")
        of_author = {"Shakespeare": passages(shakespeare[part]), "Tolstoy": passages(tolstoy)}
        fewest = min(map(len, of_author.values()))
        rows = [
            {"text": passage, "label": author}
            for author, own in of_author.items()
            for passage in draw.sample(own, fewest)
        ]
        draw.shuffle(rows)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.folder / f"{part}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{part}: {fewest} passages of each author")


if __name__ == "__main__":
    main()
