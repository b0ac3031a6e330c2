"""Globs against an oracle that walks path and pattern name by name."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.globs import matches, narrows

NAMES = st.text("ab", min_size=1, max_size=3)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
PATTERN_NAMES = st.text("ab*?", min_size=1, max_size=4).filter(lambda name: "**" not in name)
GLOBS = st.lists(PATTERN_NAMES | st.just("**"), min_size=1, max_size=4).map("/".join)


def oracle(names: list[str], wanted: list[str]) -> bool:
    """`**` in the last place is one name or more; elsewhere any number of folders, none included."""
    if not wanted:
        return not names
    if wanted == ["**"]:
        return bool(names)
    if wanted[0] == "**":
        return any(oracle(names[skipped:], wanted[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and oracle(names[1:], wanted[1:])


@settings(max_examples=500, deadline=None)
@given(PATHS, GLOBS)
def test_matching_agrees_with_a_walk_name_by_name(path: str, glob: str) -> None:
    assert matches(path, [glob]) == oracle(path.split("/"), glob.split("/")), (path, glob)


@settings(max_examples=500, deadline=None)
@given(GLOBS, st.lists(GLOBS, max_size=3), PATHS)
def test_what_narrows_never_lets_a_path_through_that_the_wider_globs_refuse(
    glob: str, wider: list[str], path: str
) -> None:
    if narrows(glob, wider) and matches(path, [glob]):
        assert matches(path, wider), (path, glob, wider)


@pytest.mark.parametrize(
    ("glob", "wider"),
    [
        ("a/b.toml", "a/*.toml"),
        ("a/*.toml", "a/*.toml"),
        ("a/b*.toml", "a/*.toml"),
        ("a/?.toml", "a/*.toml"),
        ("a/b/**", "a/**"),
        ("a/*/c", "a/**"),
        ("a.toml", "a.toml"),
    ],
)
def test_a_glob_narrows_one_that_is_as_wide_or_wider(glob: str, wider: str) -> None:
    assert narrows(glob, [wider])


@pytest.mark.parametrize(
    ("glob", "wider"),
    [
        ("a*", "a?"),
        ("a*", "a?*"),
        ("*", "??*"),
        ("a/*", "a/*.toml"),
        ("a/**", "a/*"),
        ("**", "a/**"),
        ("b/c", "a/**"),
        ("a/*/b", "a/*"),
    ],
)
def test_a_glob_does_not_narrow_one_that_leaves_something_out(glob: str, wider: str) -> None:
    assert not narrows(glob, [wider])


def test_a_star_stays_within_a_name_and_newlines_are_characters() -> None:
    assert not matches("a/b/c.md", ["a/*.md"])
    assert matches("a/b\nc.md", ["a/*.md"])
    assert not matches("a/c.md\n", ["a/*.md"])
    assert not matches("xa/c.md", ["a/*.md"])
