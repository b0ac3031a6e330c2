"""What agents and their commands wrote, made safe for a person's terminal. What is kept of it stays as it was."""

from __future__ import annotations


def printable(text: str) -> str:
    """Control characters (but for line ends and tabs), invisible ones and halves of characters spelt out: `\\x1b`."""
    return "".join(char if char.isprintable() or char in "\n\t" else _spelt(char) for char in text)


def one_line(text: str) -> str:
    """The same on one line, words one blank apart."""
    return printable(" ".join(text.split()))


def _spelt(char: str) -> str:
    return char.encode("unicode_escape").decode()
