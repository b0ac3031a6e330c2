"""Malformed files for parsers: text of no kind, and good files with a few pieces cut, doubled or planted."""

from __future__ import annotations

from hypothesis import strategies as st

PLANTED = [
    "---\n",
    "\n",
    "\t",
    "  - ",
    "- [ ] `x` t\n",
    "`",
    ":",
    "{",
    "}",
    "[" * 30,
    "]",
    "&a ",
    "*a",
    "!!int ''",
    "!!python/object:os.system ",
    "<<: {a: 1}\n",
    "? ",
    "|\n",
    "'",
    '"',
    "\\ud800",
    '"\\ud800"',
    "\0",
    "\x85",
    "\ufeff",
    "\u2028",
    "2020-13-45",
    "0x" + "f" * 30,
    "1:2:3",
    ".nan",
    ".inf",
    "1e999",
    "9" * 5000,
    "../",
    "/etc/passwd",
    "~",
    "{{ x",
    "{% for %}",
    "[[step]]\n",
    "level: -1\n",
    "skill: ''\n",
    "needs: a, a\n",
    "```\n",
    "<!-- odyssey:result -->\n",
    "%YAML 9\n",
    "=",
    "a" * 300,
    "é",
    "🦎",
]


def mutated(text: str) -> st.SearchStrategy[str]:
    """`text` with one to four pieces replaced by something planted, or by another piece of it."""
    place = st.integers(0, len(text))
    piece = st.sampled_from(PLANTED) | st.tuples(place, st.integers(0, 60)).map(lambda at: text[at[0] : at[0] + at[1]])
    change = st.tuples(place, st.integers(0, 40), piece)
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: _apply(text, changes))


def malformed(*texts: str) -> st.SearchStrategy[str]:
    """One in four of no kind; the rest nearly one of `texts`."""
    fragments = st.lists(st.sampled_from(PLANTED) | st.text(max_size=8), max_size=12).map("".join)
    front = fragments.map(lambda text: f"---\n{text}\n---\n{text}")
    return st.one_of(fragments | front, *(mutated(text) for text in texts for _ in range(3)))


def _apply(text: str, changes: list[tuple[int, int, str]]) -> str:
    for at, cut, piece in changes:
        text = text[:at] + piece + text[at + cut :]
    return text
