"""`python -m prunecli.cli.reference FOLDER`: rewrites the generated parts of all pages in the folder."""

from __future__ import annotations

import sys
from pathlib import Path

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.cli.reference.blocks import filled


def main(folder: Path) -> None:
    """Rewrites pages that are not up to date."""
    for page in sorted(folder.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if filled(text) != text:
            write_text_atomically(page, filled(text), replace=True)
            print(f"wrote {page}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
