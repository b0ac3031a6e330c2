"""What is said to language models: Jinja2 templates in Markdown. A word that a template misses is an error."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(name: str, words: Mapping[str, Any]) -> str:
    return _templates().get_template(name).render(words).strip() + "\n"


@lru_cache(maxsize=1)
def _templates() -> Environment:
    folder = Path(__file__).parent
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
