"""A PDF's text in reading order, page by page: columns one after the other, hyphens at line ends mended.

Legend: a piece is a run of text with its box in points, origin below left; a line is pieces side by side, tab-separated
where a gap is wide (cells of a table).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.errors import PaperError, Problem
from orchestrator.sandbox.base import Command, Completed, Limits, Mount, Sandbox

MAX_FILE_BYTES = 200 << 20
MAX_PAGES = 1_000
READ_S = 180.0
MEMORY_BYTES = 2 << 30
OUTPUT_BYTES = 96 << 20
INSIDE = Path("/paper")
FEW_CHARS = 25  # a page with less text than this is a picture of a page
GUTTER = (0.35, 0.65)  # where between the page's edges the space between two columns may be
WIDE_GAP = 1.0  # in heights of a line: what separates two cells
HYPHENS = "\x02\xad\ufffe\u2010-"  # at a line's end; the first three are PDFium's and Unicode's marks for a broken word
LIGATURES = {"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "ﬃ": "ffi", "ﬄ": "ffl"}
FIXES = {
    "encrypted": ("is encrypted", "take the password off: qpdf --decrypt --password=... IN.pdf OUT.pdf"),
    "broken": ("is no PDF that can be read", "fetch it again, or mend it: qpdf IN.pdf OUT.pdf"),
    "missing": ("can't be opened", "check the path"),
    "scan": ("has no text, only pictures of pages", "give it a text layer: ocrmypdf IN.pdf OUT.pdf"),
    "slow": (
        "took too long or too much memory to read",
        "cut out the pages that matter: qpdf IN.pdf --pages . 1-20 -- OUT.pdf",
    ),
}


@dataclass(frozen=True)
class Piece:
    left: float
    bottom: float
    right: float
    top: float
    text: str

    @property
    def height(self) -> float:
        return max(self.top - self.bottom, 1.0)


@dataclass(frozen=True)
class Page:
    """`lines` in reading order; cells of a table are tab-separated within a line."""

    number: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return flowing(self.lines)


@dataclass(frozen=True)
class Paper:
    name: str
    pages: tuple[Page, ...]
    unread: tuple[int, ...]  # pages without text, or that could not be read
    count: int  # pages that the file has


def read(path: Path, sandbox: Sandbox) -> Paper:
    """The paper's text. Raises PaperError, with the fix, for what can't be read: encrypted, broken, scanned, huge."""
    if not path.is_file():
        raise _refused(path, "missing", "no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise _refused(path, "slow", f"it has over {MAX_FILE_BYTES >> 20} MB")
    done = _run(path, sandbox)
    records = list(_records(done.stdout))
    for record in records:
        if "error" in record:
            raise _refused(path, str(record["error"]), str(record.get("detail", "")))
    if done.timed_out or done.truncated or done.exit_code != 0:
        said = done.stderr.strip().splitlines()
        raise _refused(path, "slow", said[-1][:200] if said else f"the reader ended with {done.exit_code}")
    pages = [page for record in records if "page" in record and (page := _page(record))]
    read_well = tuple(page for page in pages if sum(map(len, page.lines)) >= FEW_CHARS)
    if not read_well:
        raise _refused(path, "scan", f"{len(pages)} pages")
    numbers = {page.number for page in read_well}
    unread = tuple(page.number for page in pages if page.number not in numbers)
    count = next((record["pages"] for record in records if isinstance(record.get("pages"), int)), len(pages))
    return Paper(path.name, read_well, unread, count)


def ordered(pieces: Iterable[Piece], width: float) -> list[str]:
    """Lines in reading order: what goes across both columns stands between what is above and below it."""
    found = sorted(pieces, key=lambda piece: (-piece.top, piece.left))
    gutter = _gutter(found, width)
    if gutter is None:
        return list(_lines(found))
    lines, band = [], list[Piece]()
    for piece in found:
        if piece.left < gutter < piece.right:
            lines += [*_columns(band, gutter), piece.text]
            band = []
        else:
            band.append(piece)
    return lines + _columns(band, gutter)


def flowing(lines: Iterable[str]) -> str:
    """Lines as running text: words that were broken at a line's end are whole again."""
    text = ""
    for line in lines:
        if text and text[-1] in HYPHENS and line[:1].islower():
            word = re.split(r"[\s\t]", text)[-1][:-1]
            text = (text if "-" in word and text[-1] == "-" else text[:-1]) + line
        else:
            text = f"{text} {line}" if text else line
    return re.sub(r"[ \t]+", " ", text)


def clean(text: str) -> str:
    """Printable text of the basic plane, on one line; what a paper's text holds goes into files and terminals."""
    for ligature, letters in LIGATURES.items():
        text = text.replace(ligature, letters)
    kept = (char if char.isprintable() and char <= "\uffff" else " " if char.isspace() else "" for char in text)
    return re.sub(r" {2,}", " ", "".join(kept)).strip()


def _run(path: Path, sandbox: Sandbox) -> Completed:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / "paper.pdf")
        shutil.copyfile(Path(__file__).with_name("reader.py"), Path(folder) / "reader.py")
        argv = (sys.executable, "-P", str(INSIDE / "reader.py"), str(INSIDE / "paper.pdf"), str(MAX_PAGES))
        limits = Limits(wall_s=READ_S, cpu_s=int(READ_S), memory_bytes=MEMORY_BYTES, output_bytes=OUTPUT_BYTES)
        return sandbox.run(Command(argv, cwd=INSIDE, mounts=(Mount(Path(folder), INSIDE),), limits=limits))


def _records(stdout: str) -> Iterator[dict[str, Any]]:
    for line in stdout.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _page(record: dict[str, Any]) -> Page | None:
    """What the reader said of a page, taken with care: it ran beside the paper."""
    try:
        pieces = [
            Piece(float(left), float(bottom), float(right), float(top), _kept(str(text)))
            for left, bottom, right, top, text in record["pieces"]
        ]
        return Page(int(record["page"]), tuple(ordered(pieces, float(record["width"]))))
    except (TypeError, ValueError, KeyError, IndexError):
        return None


def _kept(text: str) -> str:
    """Cleaned, but for a mark at the end that says that the word goes on in the next line."""
    mark = text.rstrip()[-1:]
    return clean(text) + ("\xad" if mark in HYPHENS[:3] and mark else "")


def _refused(path: Path, kind: str, detail: str) -> PaperError:
    what, fix = FIXES.get(kind, FIXES["broken"])
    return PaperError([Problem(str(path), 0, f"{what} ({detail})", fix)])


def _gutter(pieces: list[Piece], width: float) -> float | None:
    """Where the space between two columns is; None when the text is set in one, or is a table."""
    best: tuple[int, float] | None = None
    for step in range(41):
        x = width * (GUTTER[0] + (GUTTER[1] - GUTTER[0]) * step / 40)
        crossing = sum(piece.left < x < piece.right for piece in pieces)
        left, right = [p for p in pieces if p.right <= x], [p for p in pieces if p.left >= x]
        if crossing <= 0.15 * len(pieces) and _is_column(left, pieces, width) and _is_column(right, pieces, width):
            best = min(best or (crossing, x), (crossing, x))
    return best[1] if best else None


def _is_column(side: list[Piece], pieces: list[Piece], width: float) -> bool:
    """A fair part of the page, and mostly long lines: cells of a table are short."""
    return len(side) >= max(3, 0.2 * len(pieces)) and median(p.right - p.left for p in side) >= 0.2 * width


def _columns(band: list[Piece], gutter: float) -> list[str]:
    left, right = [p for p in band if p.right <= gutter], [p for p in band if p.right > gutter]
    return [*_lines(left), *_lines(right)]


def _lines(pieces: list[Piece]) -> Iterator[str]:
    """Pieces that share most of their height are one line, from left to right."""
    row: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: -(piece.top + piece.bottom)):
        if row and min(row[0].top, piece.top) - max(row[0].bottom, piece.bottom) < 0.5 * min(
            row[0].height, piece.height
        ):
            yield _line(row)
            row = []
        row.append(piece)
    if row:
        yield _line(row)


def _line(row: list[Piece]) -> str:
    row = sorted(row, key=lambda piece: piece.left)
    text = row[0].text
    for before, piece in pairwise(row):
        gap = piece.left - before.right
        text += ("\t" if gap > WIDE_GAP * piece.height else " " if gap > 0.1 * piece.height else "") + piece.text
    return text
