"""What is said to language models: Jinja2 templates in Markdown. A word that a template misses is an error.

What others wrote or printed stands in them `quoted` or `fenced`, so that none of it can pass for the harness's words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(name: str, words: Mapping[str, Any]) -> str:
    return _templates().get_template(name).render(words).strip() + "\n"


def quoted(text: str) -> str:
    """Each line behind a `>`."""
    return "\n".join(f"> {line}" if line else ">" for line in text.splitlines() or ["(nothing)"])


def fenced(text: str, language: str = "") -> str:
    """Between fences that are longer than any in the text."""
    fence = "`" * max(4, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


@lru_cache(maxsize=1)
def _templates() -> Environment:
    folder = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"quoted": quoted, "fenced": fenced}
    return made
