"""plan.md <-> Plan: read with every error in one go, written back as work is done.

The front matter holds what a verdict depends on (targets, budget); the body is prose for people, and in it the tasks:

    ## Section
    - [ ] `task-id` What is to be done
      - skill: tune-recipe
      - writes: mlcore/recipes/lenet5_mnist.toml
      - needs: data
      - budget: usd=0.50, tokens=20000, minutes=10

What the harness writes back stands in the task's `status:` and `agent:` lines, in its tick, and between markers
(`<!-- odyssey:result -->` ... `<!-- /odyssey:result -->`); nothing else of the file is ever touched.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from orchestrator.errors import InputError, Problem
from orchestrator.frontmatter import Document, did_you_mean, parse, read_text, unknown_key, validate
from orchestrator.planlines import KEY_LINE, TASK_KEYS, TASK_LINE, marked, misread
from orchestrator.records import TIERS, Budget, Candidate, Paper, Plan, Record, Target, Task, TaskBudget

TASK_ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,63}$")
NEXT_TASK = re.compile(r"\n- \[[ xX]\] ")
BUDGET_KEYS = ("usd", "tokens", "minutes")
BUDGET_FIX = "write as in `budget: usd=0.50, tokens=20000, minutes=10`"
BLOCKS = ("result", "tree", "as-built")
MARKER = re.compile(r"<!--\s*(?:/\s*)?odyssey\b[^<>]*-->")
MAX_NAMED = 20  # names that one message lists


class Front(Record):
    """The front matter. Closed: a mistyped key would otherwise silently drop a target or a limit."""

    title: str = Field(min_length=1, max_length=200)
    paper: Paper | None = None
    targets: tuple[Target, ...] = ()
    candidates: tuple[Candidate, ...] = ()  # of a draft: numbers from a paper that nobody has confirmed
    budget: Budget = Budget()


@dataclass
class _Raw:
    """A task as it stands in the text, before its values are understood."""

    line: int
    id: str
    title: str
    section: str
    done: bool
    keys: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def text(self, key: str) -> str | None:
        values = self.keys.get(key)
        return values[0][1] if values else None

    def words(self, key: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in (self.text(key) or "").split(",") if word.strip())

    def line_of(self, key: str) -> int:
        return self.keys[key][0][0] if key in self.keys else self.line


@dataclass(frozen=True)
class Located:
    """A task by its place in the text, whatever else is wrong with it."""

    id: str
    title: str
    section: str
    done: bool
    line: int


def located(text: str) -> list[Located]:
    """Every task's place, in order; for those who edit the text around it."""
    return [Located(raw.id, raw.title, raw.section, raw.done, raw.line) for raw in _tasks(parse("", text)[0])]


def load(root: Path, path: str) -> Plan:
    """The plan at `root/path`. Raises InputError with every problem found."""
    text, problems = read_text(root, path)
    if not problems:
        plan, problems = read(path, text)
        if plan is not None and not problems:
            return plan
    raise InputError(problems)


def begun(root: Path, path: str) -> Plan:
    """The plan of a run of before: what only a later version refuses is borne, if all of its tasks can be read."""
    text, problems = read_text(root, path)
    plan, problems = (None, problems) if problems else read_begun(path, text)
    if plan is None:
        raise InputError(problems)
    return plan


def read_begun(path: str, text: str) -> tuple[Plan | None, list[Problem]]:
    """As `begun`, of a text; the problems where it can't be had."""
    plan, problems = read(path, text)
    whole = plan is not None and len(plan.tasks) == len(located(text))
    return (plan, []) if whole else (None, problems)


def read(path: str, text: str) -> tuple[Plan | None, list[Problem]]:
    """A Plan from text; None when the front matter can't be used. All problems, wherever they are."""
    document, problems = parse(path, text)
    front, complaints = validate(document, Front, document.data)
    problems += complaints
    raws = list(_tasks(document))
    problems += misread(path, document.body.split("\n"), document.body_line)
    problems += _check_structure(path, raws)
    tasks = [task for raw in raws if (task := _task(path, raw, problems)) is not None]
    if front is None:
        return None, problems
    problems += _check_targets(document, front, raws)
    problems += _check_budgets(document, front, tasks)
    problems += _unconfirmed(document, front)
    plan = Plan(
        path=path,
        title=front.title,
        paper=front.paper,
        targets=front.targets,
        budget=front.budget,
        tasks=tuple(tasks),
        text=text,
    )
    return plan, problems


def inside(path: str) -> bool:
    """Whether a path or glob stays in the repository: relative, no `..`, not in .git or the state folder."""
    parts = PurePosixPath(path).parts
    return (
        bool(parts)
        and not path.startswith(("/", "~", "-"))
        and ".." not in parts
        and "\\" not in path
        and "\0" not in path
        and parts[0].lower() != ".odyssey"
        and ".git" not in path.lower().split("/")
    )


def stands(root: Path, path: str) -> bool:
    """Whether there is such a file or folder; a name that no file system takes is none."""
    try:
        return (root / path).exists()
    except OSError:
        return False


# Writing back


def tick(text: str, task_id: str, status: str, agent: str, done: bool) -> str:
    """The plan's text with one task's box, `status:` and `agent:` lines set. Nothing else changes."""
    begin, end = _span(text, task_id)
    lines = text[begin:end].split("\n")
    raw = next(_read_tasks(lines, 1))
    stale = {line - 1 for key in ("status", "agent") for line, _ in raw.keys.get(key, [])}
    last = max([raw.line, *(line for values in raw.keys.values() for line, _ in values)])
    first = f"- [{'x' if done else ' '}]" + lines[0][5:]
    kept = [line for number, line in enumerate(lines[1:last], 1) if number not in stale]
    written = [f"  - agent: {agent}", f"  - status: {status}"]
    return text[:begin] + "\n".join([first, *kept, *written, *lines[last:]]) + text[end:]


def _span(text: str, task_id: str) -> tuple[int, int]:
    """Where a task begins, and where the next one or the text's end does; nothing else of a long plan is read.

    Its line may also stand in a fence, as an example: only then is the plan read from its beginning.
    """
    found = [begin for mark in " xX" for begin in _places(text, f"\n- [{mark}] `{task_id}`")]
    fenced = "```" in text or "~~~" in text
    begin = found[0] + 1 if len(found) == 1 and not fenced else _begin(text, task_id)
    after = NEXT_TASK.search(text, begin)
    return begin, after.start() if after else len(text)


def _places(text: str, words: str) -> Iterator[int]:
    at = text.find(words)
    while at >= 0:
        yield at
        at = text.find(words, at + 1)


def _begin(text: str, task_id: str) -> int:
    raw = next(raw for raw in _tasks(parse("", text)[0]) if raw.id == task_id)
    return sum(len(line) + 1 for line in text.split("\n")[: raw.line - 1])


def written_back(text: str) -> dict[str, object]:
    """What only the harness writes: each task's tick, agent and status, the blocks, and where they begin and end."""
    tasks = [(raw.id, raw.done, raw.text("agent"), raw.text("status")) for raw in _tasks(parse("", text)[0])]
    return {"tasks": tasks, "markers": MARKER.findall(text), **{name: block(text, name) for name in BLOCKS}}


def set_block(text: str, name: str, body: str) -> str:
    """The plan's text with the block between the markers of `name` replaced, or added at the end."""
    assert name in BLOCKS, name
    opening, closing = f"<!-- odyssey:{name} -->", f"<!-- /odyssey:{name} -->"
    body = MARKER.sub(lambda mark: mark[0].replace("<", "&lt;"), body.strip())  # what it quotes must not end it
    block = f"{opening}\n{body}\n{closing}"
    begin = text.find(opening)
    if begin < 0:
        heading = {"result": "Result", "tree": "Who does what", "as-built": "As built"}[name]
        return f"{text.rstrip()}\n\n## {heading}\n\n{block}\n"
    if text.startswith(block, begin):  # a long plan is not copied for nothing
        return text
    end = text.find(closing, begin)
    after = begin + len(opening) if end < 0 else end + len(closing)
    return text[:begin] + block + text[after:]


def block(text: str, name: str) -> str:
    """What stands between the markers of `name`; empty when there are none."""
    _, mark, rest = text.partition(f"<!-- odyssey:{name} -->")
    inner, end, _ = rest.partition(f"<!-- /odyssey:{name} -->")
    return inner.strip() if mark and end else ""


# Reading, in the order in which it happens


def _tasks(document: Document) -> Iterator[_Raw]:
    return _read_tasks(document.body.split("\n"), document.body_line)


def _read_tasks(lines: list[str], first: int) -> Iterator[_Raw]:
    section, task = "", None
    for number, line, counts in marked(lines, first):
        if not counts:
            continue
        if line.startswith("#"):
            section = line.lstrip("#").strip()
        if match := TASK_LINE.match(line):
            if task:
                yield task
            task = _Raw(number, match["id"] or "", match["title"].strip(), section, match["tick"] != " ")
        elif task and (match := KEY_LINE.match(line)):
            task.keys.setdefault(match["key"], []).append((number, (match["value"] or "").strip()))
        elif task and line.strip() and not line.startswith("  "):
            yield task
            task = None
    if task:
        yield task


def _check_structure(path: str, raws: list[_Raw]) -> list[Problem]:
    if not raws:
        return [Problem(path, 0, "has no task", "add `- [ ] `id` title` with its `skill:` and `writes:` lines")]
    problems, first = [], dict[str, int]()
    for raw in raws:
        if not TASK_ID.match(raw.id):
            problems.append(
                Problem(path, raw.line, f"task id `{raw.id}` is not usable", "write `- [ ] `short-id` title`")
            )
        elif raw.id in first:
            fix = f"first on line {first[raw.id]}; rename one"
            problems.append(Problem(path, raw.line, f"task id `{raw.id}` stands twice", fix))
        first.setdefault(raw.id, raw.line)
    known = f"tasks here: {', '.join([*first][:MAX_NAMED])}"
    for raw in raws:
        for need in raw.words("needs"):
            if need not in first:
                fix = did_you_mean(need, first) or known
                problems.append(Problem(path, raw.line_of("needs"), f"needs unknown task `{need}`", fix))
    return problems + _check_cycles(path, raws)


def _check_cycles(path: str, raws: list[_Raw]) -> list[Problem]:
    try:
        TopologicalSorter({raw.id: raw.words("needs") for raw in raws}).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]  # each task before the one that it needs
        line = next(raw.line_of("needs") for raw in raws if raw.id == cycle[0])
        return [Problem(path, line, f"tasks need each other: {' -> '.join(cycle)}", "take one `needs` away")]
    return []


def _task(path: str, raw: _Raw, problems: list[Problem]) -> Task | None:
    before = len(problems)
    problems += _check_keys(path, raw)
    options = {}
    for word in raw.words("options"):
        key, eq, value = word.partition("=")
        if not eq:
            problems.append(Problem(path, raw.line_of("options"), f"option `{word}` has no `=`", "write key=value"))
        options[key.strip()] = value.strip()
    for line, command in raw.keys.get("accept", []):
        try:
            shlex.split(command)
        except ValueError as error:
            problems.append(Problem(path, line, f"accept: {error}", "balance the quotes"))
    budget = _budget(path, raw, problems)
    tier = raw.text("tier")
    if len(problems) > before or not TASK_ID.match(raw.id):
        return None
    fields: dict[str, Any] = {"tier": tier} if tier else {}
    return Task(
        id=raw.id,
        title=raw.title,
        section=raw.section,
        skill=raw.text("skill") or "",
        writes=raw.words("writes"),
        needs=raw.words("needs"),
        targets=raw.words("targets"),
        accept=tuple(value for _, value in raw.keys.get("accept", [])),
        agent=(raw.text("agent") or "").split(" ")[0] or None,
        options=options,
        budget=budget,
        done=raw.done,
        line=raw.line,
        **fields,
    )


def _budget(path: str, raw: _Raw, problems: list[Problem]) -> TaskBudget | None:
    """A task's own budget: some of dollars, tokens and minutes; what it doesn't name is bound by the plan's alone."""
    if "budget" not in raw.keys:
        return None
    line, amounts = raw.line_of("budget"), dict[str, Any]()
    for word in raw.words("budget") or ("",):
        key, _, value = (part.strip() for part in word.partition("="))
        if key not in BUDGET_KEYS:
            fix = did_you_mean(key, BUDGET_KEYS) or BUDGET_FIX
            problems.append(Problem(path, line, f"budget `{word}` names none of {', '.join(BUDGET_KEYS)}", fix))
        elif key in amounts:
            problems.append(Problem(path, line, f"`{key}` stands twice in the budget of task `{raw.id}`", "keep one"))
        amounts[key] = value
    try:
        return TaskBudget(line=line, **{key: value for key, value in amounts.items() if key in BUDGET_KEYS})
    except ValidationError as error:
        for each in error.errors():
            what = f"budget `{each['loc'][0]}={each['input']}`: {each['msg'][0].lower()}{each['msg'][1:]}"
            problems.append(Problem(path, line, what, BUDGET_FIX))
    return None


def _check_budgets(document: Document, front: Front, tasks: list[Task]) -> Iterator[Problem]:
    """No task may be promised more than its plan has; and what is left out of the plan's is nothing, not no limit."""
    path, given = document.path, front.budget.model_fields_set & {"usd", "tokens"}
    if len(given) == 1 and (front.budget.usd or front.budget.tokens):  # a lone 0 forbids what it says
        (key,), (other,) = given, {"usd", "tokens"} - given
        what = f"the budget has `{key}` but no `{other}`"
        fix = f"add `{other}: ...`: without it there is none, and no paid call fits"
        yield Problem(path, document.line("budget"), what, fix)
    for task in tasks:
        for key in BUDGET_KEYS:
            own, whole = getattr(task.budget, key, None), getattr(front.budget, key)
            if task.budget and own is not None and own > whole:
                what = f"budget `{key}={own:g}` of task `{task.id}` is more than the plan's {whole:g}"
                yield Problem(path, task.budget.line, what, f"lower it, or raise `budget: {key}` in the front matter")


def _check_keys(path: str, raw: _Raw) -> Iterator[Problem]:
    if not raw.title:
        yield Problem(path, raw.line, f"task `{raw.id}` has no title", "say in one line what is to be done")
    for key, values in raw.keys.items():
        if key not in TASK_KEYS:
            yield Problem(path, values[0][0], f"unknown key `{key}` in task `{raw.id}`", unknown_key(key, TASK_KEYS))
        elif len(values) > 1 and key != "accept":
            yield Problem(path, values[1][0], f"`{key}` stands twice in task `{raw.id}`", "keep one")
    for key in ("skill", "writes"):
        if not raw.text(key):
            yield Problem(path, raw.line, f"task `{raw.id}` has no `{key}`", f"add a line `  - {key}: ...`")
    for written in raw.words("writes"):
        if not inside(written):
            fix = "use a path relative to the repository's root"
            yield Problem(path, raw.line_of("writes"), f"`{written}` is outside the repository", fix)
        if len(written.split()) > 1:
            fix = "put a comma between two paths, and no remark behind them"
            yield Problem(path, raw.line_of("writes"), f"`{written}` holds blanks", fix)
    tier = raw.text("tier")
    if tier and tier not in TIERS:
        yield Problem(path, raw.line_of("tier"), f"unknown tier `{tier}`", f"tiers: {', '.join(TIERS)}")


def _unconfirmed(document: Document, front: Front) -> Iterator[Problem]:
    """A draft is no plan: each number that a program found needs a person who has read its page."""
    for index, each in enumerate(front.candidates):
        decide = (f"orchestrate plan {document.path} --{what} {each.id}" for what in ("confirm", "reject"))
        fix = "read the page, then `{} --margin M --recipe R` or `{}`".format(*decide)
        what = f"candidate `{each.id}` (page {each.page}) is unconfirmed"
        yield Problem(document.path, document.line("candidates", index), what, fix)


def _check_targets(document: Document, front: Front, raws: list[_Raw]) -> list[Problem]:
    path, problems = document.path, []
    ids = set[str]()
    measured = {name for raw in raws for name in raw.words("targets")}
    for index, target in enumerate(front.targets):
        line = document.line("targets", index)
        if target.id in ids:
            problems.append(Problem(path, line, f"target id `{target.id}` stands twice", "rename one"))
        ids.add(target.id)
        for recipe in target.recipes:
            if not inside(recipe):
                fix = "use a path relative to the repository's root"
                problems.append(Problem(path, line, f"recipe `{recipe}` is outside the repository", fix))
        if target.id not in measured:
            fix = f"add `  - targets: {target.id}` to the task that measures it"
            problems.append(Problem(path, line, f"no task measures target `{target.id}`", fix))
    for raw in raws:
        for name in raw.words("targets"):
            if name not in ids:
                fix = did_you_mean(name, ids) or "add it to `targets:` in the front matter"
                problems.append(Problem(path, raw.line_of("targets"), f"missing target `{name}`", fix))
        asked = [target for target in front.targets if target.id in raw.words("targets")]
        problems += [Problem(path, raw.line_of("targets"), what, fix) for what, fix in _told_apart(asked)]
    return problems


def _told_apart(targets: Iterable[Target]) -> Iterator[tuple[str, str]]:
    """What the gate would take for one thing in a task's targets: it trains each recipe once, by its file's name."""
    datasets, names = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for target in targets:
        for recipe in target.recipes:
            datasets[recipe] |= {target.dataset} - {""}
            if recipe.endswith(".toml"):
                names[PurePosixPath(recipe).stem].add(recipe)
    for recipe, several in datasets.items():
        if len(several) > 1:
            yield f"recipe `{recipe}` is asked for on {' and '.join(sorted(several))}", "write a recipe for each"
    for several in names.values():
        if len(several) > 1:
            yield (
                f"recipes {' and '.join(sorted(several))} have the same name",
                "rename one, or use two tasks",
            )
