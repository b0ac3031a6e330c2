"""Path globs, as `writes` uses them: `*` and `?` stay within a name, `**` crosses folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

ANY = "\x01"


def matches(path: str, globs: Iterable[str]) -> bool:
    """Whether a path relative to the repository's root falls under one of the globs. A plain path is itself."""
    return any(compiled(glob).fullmatch(path) for glob in globs)


def narrows(glob: str, globs: Iterable[str]) -> bool:
    """Whether every path under `glob` falls under one of `globs`; says no where it can't be sure.

    A glob's wildcards are read as characters that no one types; a `*` as one that only a `*` covers, since what it
    stands for may be long, or nothing.
    """
    if "**" in glob:
        return any(glob == wider or (wider.endswith("/**") and glob.startswith(wider[:-2])) for wider in globs)
    return matches(glob.replace("*", ANY).replace("?", "\x02"), globs)


@lru_cache(maxsize=4096)
def compiled(glob: str) -> re.Pattern[str]:
    """A glob as a pattern for `fullmatch`."""
    out = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob):
        out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": f"[^/{ANY}]"}.get(part) or re.escape(part)
    return re.compile(out, re.DOTALL)
