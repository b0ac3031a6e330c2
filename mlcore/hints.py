"""What was meant: the known name that a mistyped one is most like."""

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is spelt most alike, else the first that begins with `name`."""
    begun = [one for one in known if name and one.startswith(name)]
    return next(iter(difflib.get_close_matches(name, known, n=1) + begun), None)


def nearest_key(dotted: str, keys: Sequence[str]) -> str | None:
    """The dotted key that was meant: the same word in another section, else its like in the same, or in another."""
    section, _, name = dotted.rpartition(".")
    elsewhere = {_word(key): key for key in reversed(keys)}  # of equal words the first key's counts
    if name in elsewhere:
        return elsewhere[name]
    if near := nearest(name, words_in(section, keys)):
        return f"{section}.{near}".strip(".")
    return elsewhere.get(nearest(name, list(elsewhere)) or "")


def words_in(section: str, keys: Sequence[str]) -> list[str]:
    """The last words of the keys directly in `section` ("" for the top)."""
    return [_word(key) for key in keys if key.rpartition(".")[0] == section]


def did_you_mean(near: str | None) -> str:
    """The question to put before a fix; empty when nothing is near."""
    return f"did you mean '{near}'? " if near else ""


def _word(key: str) -> str:
    return key.rpartition(".")[2]
