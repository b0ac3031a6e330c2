"""What people read: the result block of a plan, the as-built notes, a pull request's body, the report of a run.

Every number here comes from a receipt; nothing an agent said is among them. An agent's words are quoted, and marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from orchestrator.house import Run
from orchestrator.prompts import quoted
from orchestrator.records import Change, Judgement, Plan, Receipt, Target, Task, Verdict
from orchestrator.terminal import one_line, printable
from orchestrator.verdicts import half_width_pct, name_of, recipe_of

MOVED = (
    "Moved by a pixel: the same test images, each moved by the gate; beside the verdict, to tell learning from memory."
)
EXPECTED = {"changed-labels": "no copied labels expected"}
SIGNS = {"reproduced": "reproduced", "not reproduced": "**not reproduced**"}


@dataclass(frozen=True)
class Part:
    """What a result block says of one target: its row in the table of verdicts, and its own text further down."""

    row: str
    text: str


def results(
    targets: Iterable[Target],
    verdicts: Mapping[str, Verdict],
    receipts: Iterable[Receipt],
    before: Mapping[str, Part] = MappingProxyType({}),
) -> str:
    """The verdict table, then every seed and control with its receipt. before: parts that stand as they are."""
    by_id = {receipt.id: receipt for receipt in receipts}
    made = {target.id: _part(target, verdicts[target.id], by_id) for target in targets if target.id in verdicts}
    found = {**before, **made}
    chosen = [found[target.id] for target in targets if target.id in found]
    head = ("| target | published | asked | measured | verdict |", "|---|---|---|---|---|")
    table = "\n".join([*head, *(part.row for part in chosen)])
    return "\n\n".join([table, *(part.text for part in chosen), MOVED])


def parts(block: str, targets: Iterable[str]) -> dict[str, Part]:
    """What a block of results says of each of these targets; nothing of one that is not in it."""
    lines = block.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith(("`", MOVED))]
    found = {}
    for target in targets:
        rows = [line for line in lines if line.startswith(f"| `{target}` |")]
        start = next((at for at in starts if lines[at].startswith(f"`{target}`: ")), None)
        if rows and start is not None:
            end = next((at for at in starts if at > start), len(lines))
            found[target] = Part(rows[0], "\n".join(lines[start:end]).strip())
    return found


def _part(target: Target, verdict: Verdict, receipts: Mapping[str, Receipt]) -> Part:
    own = [receipts[receipt] for receipt in verdict.receipts if receipt in receipts]
    of = f" Dataset: {verdict.dataset}." if verdict.dataset else ""
    machines = sorted({receipt.machine for receipt in own if receipt.machine})
    sandboxes = sorted({receipt.sandbox for receipt in own if receipt.sandbox})
    where = f" Measured by the harness on {'; '.join(machines)}; sandbox: {', '.join(sandboxes)}." if machines else ""
    lines = (
        f"`{target.id}`: {_cell(verdict.reason)}.{of} Commit `{verdict.commit[:12]}`.{where}",
        "",
        "| run | value | error | moved by a pixel | time | receipt |",
        "|---|---|---|---|---|---|",
        *(_trial(target, receipt) for receipt in own),
    )
    return Part(_row(target, verdict, own), "\n".join(lines))


def _row(target: Target, verdict: Verdict, receipts: list[Receipt]) -> str:
    published = f"{target.shown(target.value)} ({target.source})"
    outcome = SIGNS.get(verdict.outcome, verdict.outcome)
    measured = _measured(target, verdict, receipts)
    return f"| `{target.id}` | {published} | {target.limit} | {measured} | {outcome} |"


def _measured(target: Target, verdict: Verdict, receipts: list[Receipt]) -> str:
    if verdict.mean is None:
        return "-"
    spread = f" ± {verdict.spread:.2f}" if verdict.spread is not None else ""
    over = f" over {len(verdict.values)} seeds" * (target.quantity.kind == "training")
    shown = f"{target.shown(verdict.mean)}{spread}{over}"
    if verdict.outcome in ("not measured", "did not finish"):
        return f"(does not count: {shown})"
    if target.compare:
        return f"{shown} (95 % interval {_interval(target, verdict)})"
    images = next((int(receipt.values["count"]) for receipt in receipts if receipt.values.get("count")), 0)
    binomial = images and target.quantity.unit == " %"
    return f"{shown} (binomial ± {half_width_pct(verdict.mean, images):.2f})" if binomial else shown


def _interval(target: Target, verdict: Verdict) -> str:
    if verdict.low is None or verdict.high is None:
        return "-"
    return f"{target.shown(verdict.low)} to {target.shown(verdict.high)}"


def _trial(target: Target, receipt: Receipt) -> str:
    error, moved = (
        f"{receipt.values[key]:.2f} %" if key in receipt.values else "-"
        for key in ("test_error_pct", "gate_split_error_pct")
    )
    name = name_of(receipt)
    if target.against:
        name = f"{name} of {PurePosixPath(recipe_of(receipt, target)).stem}"
    own = target.quantity.of(receipt.values, target.level)
    value = "-" if own is None or receipt.kind == "control" else _plain(target).shown(own)
    expected = f" ({EXPECTED.get(name_of(receipt), 'chance expected')})" if receipt.kind == "control" else ""
    failed = "" if receipt.passed else " **failed**"
    cells = (f"{name}{expected}{failed}", value, error, moved, _time(receipt), f"`{receipt.id[:12]}`")
    return f"| {' | '.join(cells)} |"


def _time(receipt: Receipt) -> str:
    """Of a training that was interrupted, a receipt has the time of its last sitting only."""
    whole = "test_error_pct" not in receipt.values or "train_wall_s" in receipt.values or receipt.kind == "control"
    return f"{receipt.wall_s:.0f} s" if whole else f"{receipt.wall_s:.0f} s since it was resumed"


def _plain(target: Target) -> Target:
    """The target without its comparison, to show what one recipe gave."""
    return target.model_copy(update={"against": "", "compare": ""})


def cached(prompts: Mapping[str, float]) -> str:
    """The measured share of what was sent that a cache gave, which costs a part of the price."""
    share = f"{100 * prompts['cached_share']:.1f} %"
    return f"{prompts['cache_read']} of {prompts['tokens']} prompt tokens came from the cache ({share})"


def as_built(run: Run, task: Task, change: Change, judgement: Judgement) -> str:
    """One line of facts: who, which tier, which try, what changed, how long, why that tier came first."""
    who = run.assignments[task.id].agent
    spent = run.ledger.spent(run.id, task.id)
    files = ", ".join(f"`{f.path}` (+{f.added} -{f.removed})" for f in change.files) or "no files but this plan"
    cost = f"${spent['usd']:.2f}, {spent['seconds'] / 60:.1f} min"
    first_tier = run.ledger.why_tier(run.id, task.id).partition(", then ")[0]
    return (
        f"- `{task.id}`: {judgement.outcome}; {who}, tier {change.tier}, attempt {change.attempt}, {cost}, "
        f"risk {judgement.risk.level}; {files}; {len(judgement.receipts)} receipts; router: {first_tier}"
    )


def status_line(change: Change, judgement: Judgement) -> str:
    return f"{judgement.outcome} ({change.tier}, attempt {change.attempt})"


def title(task: Task, judgement: Judgement) -> str:
    verdicts = ", ".join(f"{each.target} {each.outcome}" for each in judgement.verdicts)
    outcome = verdicts or ("" if judgement.outcome == "accepted" else judgement.feedback)
    return f"{task.title}: {outcome}" if outcome else task.title


def body(run: Run, task: Task, change: Change, judgement: Judgement, words: str, head: str) -> str:
    """A pull request's body: what, why, evidence, verdict, risk, review, cost, receipts; the agent's own words last."""
    receipts = [receipt for receipt in run.ledger.receipts(run.id, task.id) if receipt.id in judgement.receipts]
    parts = [
        ("What", _what(task, change, run.plan)),
        ("Why", f"Task `{task.id}` of [{run.plan.title}]({run.plan.path}), section {task.section}."),
        ("Evidence", _evidence(receipts)),
        ("Verdict", _verdict(run, task, judgement, receipts)),
        (
            "Risk",
            "\n".join([f"**{judgement.risk.level}**", *(f"- {_cell(reason)}" for reason in judgement.risk.reasons)]),
        ),
        (
            "Review",
            "Findings of language models that read the change, the nearest level first:\n\n" * bool(judgement.review)
            + _quoted(judgement),
        ),
        ("Tier", f"{change.tier}, attempt {change.attempt}. The router: {run.ledger.why_tier(run.id, task.id)}"),
        ("Cost", _cost(run, task)),
        ("Receipts", f"{len(receipts)}, signed; the chain's head is `{head}`. `orchestrate report {run.id} --verify`"),
        ("What the agent says", f"Unverified, quoted:\n\n{quoted(printable(words))}"),
    ]
    return "\n\n".join(f"## {heading}\n\n{text}" for heading, text in parts if text)


def _cost(run: Run, task: Task) -> str:
    spent, prompts = run.ledger.spent(run.id, task.id), run.ledger.prompts(run.id, task.id)
    line = f"${spent['usd']:.2f}, {spent['tokens']} tokens, {spent['seconds'] / 60:.1f} minutes of commands."
    return f"{line} {cached(prompts)}." if prompts else line


def _quoted(judgement: Judgement) -> str:
    return "\n".join(f"> - {_cell(line)}" for line in judgement.review)


def _what(task: Task, change: Change, plan: Plan) -> str:
    files = [f"- `{f.path}`: {f.status}, +{f.added} -{f.removed}" for f in change.files]
    record = f"- `{plan.path}`: the harness's record of this task (tick, status, as-built note, results)"
    return "\n".join([task.title, "", *files, record])


def _evidence(receipts: list[Receipt]) -> str:
    lines = ["| check | passed | what the harness saw | receipt |", "|---|---|---|---|"]
    for each in receipts:
        lines.append(f"| {each.kind} | {'yes' if each.passed else '**no**'} | {_cell(each.what)} | `{each.id[:12]}` |")
    return "\n".join(lines)


def _verdict(run: Run, task: Task, judgement: Judgement, receipts: list[Receipt]) -> str:
    verdicts = {verdict.target: verdict for verdict in judgement.verdicts}
    return results(run.plan.targets_of(task), verdicts, receipts) if verdicts else ""


def _cell(text: str) -> str:
    """Text that may quote what an agent's code printed: on one line, and never a new cell or the end of a block."""
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")
