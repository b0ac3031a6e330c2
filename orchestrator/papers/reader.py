"""A program of its own: a PDF to one JSON line a page. Runs inside the sandbox, since a PDF can attack what reads it.

    python reader.py PAPER MAX_PAGES

Each line: {"page", "width", "height", "pieces": [[left, bottom, right, top, text], ...]} in points, origin below left;
or {"error": kind, "detail"}. Imports nothing of ours. Only one page is in memory at a time.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MAX_PIECES = 4_000  # of a page; a dense page of a journal has some 300
MAX_CHARS = 60_000  # of a page; more is no page that anyone has set
MAX_PIECE_CHARS = 1_000
ERRORS = {2: "missing", 3: "broken", 4: "encrypted", 5: "encrypted"}  # PDFium's codes: file, format, password, security


def main(argv: list[str]) -> None:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(argv[1])
        say(pages=len(document))
        for number in range(min(len(document), int(argv[2]))):
            say(**page(document, number))
    except pypdfium2.PdfiumError as error:
        say(error=ERRORS.get(error.err_code or 0, "broken"), detail=str(error)[:200])


def page(document: Any, number: int) -> dict[str, Any]:
    """A page's pieces of text; one that can't be read, or that no one can have meant, has none and says so."""
    import pypdfium2

    found = {"page": number + 1, "width": 0.0, "height": 0.0, "pieces": []}
    try:
        opened = document[number]
        width, height = opened.get_size()
        text = opened.get_textpage()
        if text.count_chars() > MAX_CHARS or text.count_rects() > MAX_PIECES:
            return {**found, "skipped": "more text than a page can hold"}
        found |= {"width": width, "height": height, "pieces": pieces(text)}
        text.close()
        opened.close()
    except pypdfium2.PdfiumError as error:
        return {**found, "skipped": str(error)[:200]}
    return found


def pieces(text: Any) -> list[list[Any]]:
    boxes = [text.get_rect(index) for index in range(text.count_rects())]
    found = [[*(round(value, 1) for value in box), text.get_text_bounded(*box)[:MAX_PIECE_CHARS]] for box in boxes]
    return [piece for piece in found if piece[4].strip()]


def say(**content: Any) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    main(sys.argv)
