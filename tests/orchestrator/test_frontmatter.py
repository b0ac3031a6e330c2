"""The front matter of plans, agents and skills: every refusal has a line and a fix, and none takes long."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.frontmatter import MAX_BYTES, parse, read_text
from tests.orchestrator.fuzz import malformed
from tests.orchestrator.helpers import PLAN


def found(text: str) -> list[str]:
    return [str(problem) for problem in parse("f.md", text)[1]]


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("a: 1\nb: *x", "f.md:3: YAML: aliases are not allowed; write the value out; mend the front matter"),
        ("a: !!int ''", "f.md:2: YAML: tags are not allowed; write the value plainly; mend the front matter"),
        ("a: !!bool maybe", "f.md:2: YAML: tags are not allowed; write the value plainly; mend the front matter"),
        ("a: !!timestamp x", "f.md:2: YAML: tags are not allowed; write the value plainly; mend the front matter"),
        ("a: " + "[" * 40, "f.md:2: YAML: nested deeper than 20 levels; mend the front matter"),
        ("a: 2020-13-45", "f.md:1: YAML: month must be in 1..12; mend the front matter"),
        ("a: b: c", "f.md:2: YAML: mapping values are not allowed here; mend the front matter"),
        ("a: 1\nb: \x01", "f.md:3: YAML: "),
        ("a: 1\na: 2", "f.md:3: key `a` stands twice; keep one"),
        ("a:\n  - {b: 1, b: 2}", "f.md:3: key `b` stands twice; keep one"),
        ("1: a", "f.md:2: key `1` is not text; quote it"),
        ("<<: {a: 1}", "f.md:2: key `<<` is not text; quote it"),
        ("just words", "f.md:1: front matter must be `key: value` lines; mend the front matter"),
        ("", "f.md:1: front matter must be `key: value` lines; mend the front matter"),
        ("a: 1\n" * 14000, "f.md:1: front matter is larger than 65536 characters; move prose below it"),
    ],
)
def test_each_refusal_names_its_line_and_the_fix(front: str, expected: str) -> None:
    assert found(f"---\n{front}\n---\nbody\n")[0].startswith(expected)


@pytest.mark.parametrize("text", ["", "words\n", "---\na: 1\n", "\n---\na: 1\n---\n"])
def test_a_file_without_front_matter_says_how_to_begin_it(text: str) -> None:
    assert found(text) == ["f.md:1: has no front matter; begin the file with YAML between two `---` lines"]


def test_a_value_is_found_on_its_line_and_a_missing_one_on_its_parents() -> None:
    document, problems = parse("f.md", "---\na: 1\nlist:\n  - {b: 2}\n  - c: 3\n    d: 4\n---\nbody")
    assert problems == []
    assert [document.line("list", 0, "b"), document.line("list", 1, "d"), document.line("list", 1, "e")] == [4, 6, 5]
    assert document.line("nowhere") == 1
    assert (document.body, document.body_line) == ("body", 8)


@pytest.mark.parametrize(
    "front",
    [
        "a: " + "[" * 60000,
        "a: " + "{a: " * 15000,
        "a: 1" + ":1" * 32000,
        "a: " + "&a " * 20000,
        "? " * 30000,
        "a: '" + "x\n\n" * 20000,
        "- " * 32000,
    ],
    ids=["lists", "mappings", "base-60", "anchors", "keys", "open-quote", "items"],
)
def test_what_makes_yaml_slow_is_refused_within_two_seconds(front: str) -> None:
    started = time.process_time()
    parse("f.md", f"---\n{front}\n---\n")
    assert time.process_time() - started < 2


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "large.md").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "latin.md").write_bytes(b"one\ntwo \xe9\n")
    said = {name: [str(p) for p in read_text(tmp_path, name)[1]] for name in ("none.md", "large.md", "latin.md", ".")}
    assert said["none.md"] == ["none.md: can't be read (No such file or directory); check the path"]
    assert said["large.md"] == [f"large.md: is larger than {MAX_BYTES} bytes; split it"]
    assert said["latin.md"] == ["latin.md:2: is not UTF-8 text; save it as UTF-8"]
    assert said["."] == [".: can't be read (Is a directory); check the path"]
    assert read_text(tmp_path, "a\0b")[1]
    assert read_text(tmp_path, "a" * 300)[1]


@settings(max_examples=2000, deadline=None)
@given(malformed(PLAN) | st.text().map(lambda text: f"---\n{text}\n---\n"))
def test_any_text_gives_a_document_and_problems_within_its_lines(text: str) -> None:
    document, problems = parse("f.md", text)
    assert all(isinstance(key, str) for key in document.data)
    assert all(1 <= problem.line <= text.count("\n") + 2 for problem in problems)
    assert document.body in text
