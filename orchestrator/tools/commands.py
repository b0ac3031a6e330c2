"""Which commands an agent may run: patterns of a skill, matched word by word against the beginning of argv.

A pattern is words as a shell would split them: `mlcore check *`, `python skills/verify-dataset/scripts/*`, `pytest`.
A word stands for itself; `*` alone for any word; `*` and `?` within a word for part of one name, never across a `/`.
Words of argv after the pattern's last are free. A word with `..` in it matches no wildcard.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from orchestrator.errors import ToolRefused
from orchestrator.globs import matches


def check_allowed(argv: Sequence[str], patterns: Sequence[str]) -> None:
    """Raises ToolRefused with the allowed patterns if none of them fits."""
    if not any(fits(argv, pattern) for pattern in patterns):
        allowed = "; ".join(patterns) or "none"
        raise ToolRefused(f"{shlex.join(argv)[:200]}: this skill may not run that. Allowed beginnings: {allowed}")


def fits(argv: Sequence[str], pattern: str) -> bool:
    """Whether argv begins with the pattern's words."""
    words = shlex.split(pattern)
    if not words or len(argv) < len(words):
        return False
    return all(_word_fits(word, wanted) for word, wanted in zip(argv, words, strict=False))


def _word_fits(word: str, wanted: str) -> bool:
    if word == wanted or wanted == "*":
        return True
    return not {"..", ".", ""} & set(word.split("/")) and "**" not in wanted and matches(word, [wanted])
