"""The prose that a plan's section has around its tasks, as whoever works there is told it."""

from __future__ import annotations

import pytest

from orchestrator import sections
from tests.orchestrator.helpers import FRONT, plan

TEXT = f"""---
{FRONT}---
# A plan

Why all of it is done.

## First

What the first is for.
It has two lines.

- [ ] `a` Do the first
  - skill: tune
  - writes: r.toml

  More of the task.
- [ ] `b` Do the second
  - skill: tune
  - targets: t1
  - writes: r.toml

What holds for both:

```
## no heading
- [ ] `z` no task
```

## Second

<!-- odyssey:result -->
| t1 | 0.01 % |
<!-- /odyssey:result -->

Its own words.

- [ ] `c` Do the third
  - skill: tune
  - writes: r.toml

## Second

Others of the same name.
"""
PLAN = plan(TEXT)
FIRST = """What the first is for.
It has two lines.

What holds for both:

```
## no heading
- [ ] `z` no task
```"""


@pytest.mark.parametrize(("task", "words"), [("a", FIRST), ("b", FIRST), ("c", "Its own words.")])
def test_a_sections_prose_is_what_stands_around_its_tasks_and_nobody_measured(task: str, words: str) -> None:
    assert sections.prose(PLAN, PLAN.task(task)) == words


def test_a_long_section_is_cut_at_a_line_and_says_where_the_rest_stands() -> None:
    long = plan(TEXT.replace("It has two lines.", "It has many lines.\n" * 500))
    head, _, notice = sections.prose(long, long.task("a")).rpartition("\n\n")
    assert len(head) <= sections.MOST_CHARS
    assert set(head.splitlines()[1:]) == {"It has many lines."}
    assert notice == "[... cut here; the rest stands in plans/p.md]"
