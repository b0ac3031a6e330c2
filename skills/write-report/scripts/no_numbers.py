"""Check that the prose of a plan or report claims no measured number outside the blocks that the harness writes.

Looked at: running text. Left out: front matter, fenced and inline code, and what stands between `<!-- odyssey:NAME -->`
and `<!-- /odyssey:NAME -->`. A number looks measured when a unit of measurement follows it (`0.93 %`, `12.5 s`,
`15k images/s`) or when it is said to be an error, an accuracy or a loss. Published numbers are known from the front
matter: every number there, and each target's value plus or minus its margin.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

NUMBER = r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?"
UNITS = (
    r"%|per\s?cent\b|(?:percentage\s+)?points?\b|ms\b|s\b|sec(?:ond)?s?\b|min(?:ute)?s?\b|h\b|hours?\b"
    r"|k?\s?(?:images|img|samples|steps)\s?(?:/|per)\s?(?:s|sec|second)\b|(?:GFLOPS?|GB/s|MB/s|GiB/s)\b"
)
CLAIM = r"(?:error|accuracy|loss|mean|spread|top-[15]|reach(?:es|ed)|achiev(?:es|ed)|measured|scored)"
MEASURED = (
    re.compile(rf"(?P<number>{NUMBER})\s?k?\s?(?:{UNITS})", re.IGNORECASE),
    re.compile(rf"\b{CLAIM}\b[^.;:|\d]{{0,30}}?(?P<number>{NUMBER})", re.IGNORECASE),
    re.compile(r"(?P<number>(?<![\w.,-])0\.\d{2,}(?!\.?\d))"),  # a bare fraction: 0.9905
)
PLACE = re.compile(r"\b(?:line|step|sec\.|section|table|fig\.|figure|page|issue|version|C|S|F)\s*$", re.IGNORECASE)
OPENING, CLOSING = re.compile(r"<!--\s*odyssey:([\w-]+)\s*-->"), "<!-- /odyssey:{} -->"
EPILOG = """\
example:
  python no_numbers.py plans/mnist.md
exit codes: 0 no such number; 1 some were found (stdout lists them); 2 a file can't be read, or a block isn't closed
"""


class Unreadable(Exception):
    """A file that can't be checked; the text says why."""


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        found = [dict(path=str(path), **claim) for path in args.files for claim in claims(read(path), str(path))]
    except Unreadable as error:
        print(f"no_numbers: {error}", file=sys.stderr)
        return 2
    for each in found:
        fix = "reword it, or leave the number to the harness"
        print(f"{each['path']}:{each['line']}: `{each['text']}` looks measured; {fix}", file=sys.stderr)
    print(json.dumps({"checked": [str(path) for path in args.files], "claims": found}))
    return int(bool(found))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="no_numbers.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, help="Markdown files")
    return parser


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{path}: can't be read ({error})") from error


def claims(text: str, path: str) -> Iterator[dict[str, str | int]]:
    """Yields line and text of what looks measured, in order. Raises Unreadable for a block that isn't closed."""
    front, body = split_front_matter(text)
    allowed = published(front)
    for number, line in prose(body, front.count("\n") + 1, path):
        matches = [match for pattern in MEASURED for match in pattern.finditer(line)]
        widest: dict[int, re.Match[str]] = {}  # by where the number stands
        for match in sorted(matches, key=lambda match: len(match[0])):
            widest[match.start("number")] = match
        for at, match in sorted(widest.items()):
            if value(match["number"]) not in allowed and not PLACE.search(line[:at]):
                yield {"line": number, "text": match[0].strip()}


def split_front_matter(text: str) -> tuple[str, str]:
    match = re.match(r"---\n.*?\n---\n", text, re.DOTALL)
    return (match.group(), text[match.end() :]) if match else ("", text)


def published(front: str) -> set[Decimal]:
    """Numbers of the front matter, and the limits that follow from a target's value and margin."""
    numbers = {value(number) for number in re.findall(NUMBER, front)}
    for match in re.finditer(r"value:\s*([\d.]+)[\s,].*?margin:\s*([\d.]+)", front, re.DOTALL):
        middle, margin = value(match[1]), value(match[2])
        numbers |= {middle + margin, middle - margin}
    return numbers


def value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").strip(".")).normalize()


def prose(body: str, first_line: int, path: str) -> Iterator[tuple[int, str]]:
    """Yields the numbered lines that are running text; inline code becomes blanks."""
    fence, inside, opened = "", "", 0
    for number, line in enumerate(body.split("\n"), first_line):
        if inside:
            inside = "" if CLOSING.format(inside) in line else inside
        elif fence:
            fence = "" if line.strip().startswith(fence) else fence
        elif opening := OPENING.search(line):
            inside, opened = opening[1], number
        elif mark := re.match(r"\s*(```|~~~)", line):
            fence = mark[1]
        else:
            yield number, re.sub(r"`[^`]*`", lambda code: " " * len(code[0]), line)
    if inside:
        raise Unreadable(f"{path}:{opened}: block `{inside}` isn't closed; add {CLOSING.format(inside)}")


if __name__ == "__main__":
    sys.exit(main())
