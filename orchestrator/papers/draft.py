"""A draft plan from a paper's candidates, and a person's decisions on them: confirm or reject, one line each.

    candidates:                              targets:
      - {id: ..., value: 0.95, page: 7, ...}  ->  - {id: ..., value: 0.95, margin: 0.05, ..., source: "p. 7: ..."}

A candidate stands on one line of the front matter, so that a decision is a small diff. Until all are decided the plan
does not lint, hence does not run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InputError, NotFound, Problem
from orchestrator.frontmatter import did_you_mean, parse, validate
from orchestrator.papers.pages import Paper, clean
from orchestrator.planfile import Front, stands
from orchestrator.records import Candidate, Direction, Target

IN_A_DRAFT = 40  # more than anyone reads; the rest is in the JSON document
ERRORS, RIGHTS = ("error", "misclassif"), ("accuracy", "recognition")
TEMPLATE = """---
title: {title}
paper: {{title: {title}, where: {where}}}
candidates:  # UNCONFIRMED: found by a program, read by nobody. Margins are yours to set, before anything runs.
{lines}
budget: {{minutes: 60}}
---
# {heading}

**A draft.** {count} of its numbers were found in {name} by a program and stand unconfirmed in the front matter; none of
them counts. Read the page that each one names, then take it or leave it:

    orchestrate plan {path} --confirm ID --margin M --recipe mlcore/recipes/NAME.toml
    orchestrate plan {path} --reject ID        (--reject all: every one that is left)

When none is left, `orchestrate lint {path}` says what else is missing. Then write here, in your own words, what the
paper claims and how close is close enough.

## Reading
- [ ] `study` Write down what the paper leaves open: data, preprocessing, initial weights, stopping
  - skill: write-report
  - writes: {path}
"""


@dataclass(frozen=True)
class Decision:
    """What a person adds to a candidate to make it a target. `dataset` is needed where the paper's text named none."""

    margin: float
    recipe: str
    seeds: int = 3
    dataset: str = ""
    direction: Direction = Direction.at_most


def draft(paper: Paper, sha256: str, candidates: tuple[Candidate, ...], path: str) -> str:
    """The plan's text. The title is the first line of the first page, for a person to mend."""
    heading = clean(paper.pages[0].lines[0])[:150] or paper.name
    shown = candidates[:IN_A_DRAFT]
    text = TEMPLATE.format(
        title=_quoted(heading),
        where=_quoted(f"{clean(paper.name)[:100]}, {paper.count} pages, sha256 {sha256}"),
        lines="\n".join(f"  - {_flow(each)}" for each in shown),
        heading=heading.replace("<!--", "&lt;!--"),
        count=len(shown),
        name=clean(paper.name),
        path=path,
    )
    return text if shown else text.replace("\ncandidates:", "\n# no number found; candidates:", 1)


def confirm(text: str, path: str, name: str, decision: Decision, root: Path) -> str:
    """The plan with candidate `name` as a target, and the tasks that measure it, and write its recipe if there is none.

    Raises InputError, with the fix, where a target can't be made of it.
    """
    candidate, text = _taken(text, path, name)
    target = _target(path, candidate, decision)
    return _with_target(text, target).rstrip("\n") + "\n\n" + _tasks(path, target, candidate, root)


def reject(text: str, path: str, name: str) -> str:
    """The plan without candidate `name`."""
    return _taken(text, path, name)[1]


def undecided(text: str, path: str) -> list[str]:
    """The candidates that nobody has decided on."""
    document, _ = parse(path, text)
    front, _ = validate(document, Front, document.data)
    return [each.id for each in front.candidates] if front else []


def _taken(text: str, path: str, name: str) -> tuple[Candidate, str]:
    """The candidate, and the text without its line (and without the list, when it was the last)."""
    document, problems = parse(path, text)
    front, complaints = validate(document, Front, document.data)
    if front is None or problems:
        raise InputError(problems + complaints)
    known = [each.id for each in front.candidates]
    if name not in known:
        fix = did_you_mean(name, known) or f"candidates: {', '.join(known[:20]) or 'none is left'}"
        raise NotFound(f"{path} has no candidate `{name}`; {fix}")
    index = known.index(name)
    lines = text.split("\n")
    at = document.line("candidates", index) - 1
    if not lines[at].lstrip().startswith("- {") or not lines[at].rstrip().endswith("}"):
        fix = "put it back on one line, `- {id: ..., ...}`, or move it by hand"
        raise InputError([Problem(path, at + 1, f"candidate `{name}` is not on a line of its own", fix)])
    gone = {at} | ({document.line("candidates") - 1} if len(known) == 1 else set())
    return front.candidates[index], "\n".join(line for number, line in enumerate(lines) if number not in gone)


def _target(path: str, candidate: Candidate, decision: Decision) -> Target:
    dataset = decision.dataset or candidate.dataset
    if not dataset:
        raise InputError([Problem(path, 0, f"candidate `{candidate.id}` names no dataset", "add --dataset NAME")])
    value, words = _error_pct(path, candidate)
    source = f"{candidate.place or 'text'}, p. {candidate.page}: {words}"
    fields = {**decision.__dict__, "dataset": dataset, "value": value, "source": source[:500]}
    document, _ = parse(path, "---\n---\n")
    target, problems = validate(document, Target, {"id": candidate.id, "metric": "test_error_pct", **fields})
    if target is None:
        raise InputError([Problem(path, 0, problem.what, problem.fix) for problem in problems])
    return target


def _error_pct(path: str, candidate: Candidate) -> tuple[float, str]:
    """The value as the one metric that is measured here, and the words that say what became of it."""
    metric = candidate.metric.lower()
    if any(word in metric for word in RIGHTS) and 0 <= candidate.value <= 100:
        return round(100 - candidate.value, 6), f"100 - {candidate.value:g} (accuracy): {candidate.quote}"
    if any(word in metric for word in ERRORS) and not metric.startswith("word"):
        return candidate.value, candidate.quote
    what = f"candidate `{candidate.id}` is {candidate.metric or 'a bare number'}, and only error rates are measured"
    raise InputError(
        [
            Problem(
                path, 0, what, f"reject it, or write `metric: error rate` into its line if p. {candidate.page} says so"
            )
        ]
    )


def _with_target(text: str, target: Target) -> str:
    """Below the other targets, or as the first one above the candidates or the budget."""
    line = f"  - {_flow(target)}"
    lines = text.split("\n")
    document, _ = parse("", text)
    at = next((n for n, each in enumerate(lines) if each.rstrip() == "targets:"), None)
    if at is not None:
        return "\n".join([*lines[: at + 1], line, *lines[at + 1 :]])
    end = document.body_line - 2  # the closing `---`
    return "\n".join([*lines[:end], "targets:", line, *lines[end:]])


def _tasks(path: str, target: Target, candidate: Candidate, root: Path) -> str:
    lines = [f"## {clean(candidate.place) or 'Page ' + str(candidate.page)}"]
    needs = []
    if not stands(root, target.recipe):
        lines += [f"- [ ] `recipe-{target.id}` Write the recipe that the paper describes"[:200]]
        lines += ["  - skill: implement-change", f"  - writes: {target.recipe}"]
        needs = [f"  - needs: recipe-{target.id}"]
    lines += [f"- [ ] `measure-{target.id}` Measure what p. {candidate.page} claims", "  - skill: measure-reproduction"]
    return "\n".join([*lines, *needs, f"  - targets: {target.id}", f"  - writes: {path}"]) + "\n"


def _flow(record: Candidate | Target) -> str:
    """A record as YAML on one line. JSON's own quoting is YAML's too, for text of the basic plane."""
    fields = record.model_dump(mode="json", exclude_defaults=isinstance(record, Candidate))
    return "{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in fields.items()) + "}"


def _quoted(text: str) -> str:
    return json.dumps(text)
