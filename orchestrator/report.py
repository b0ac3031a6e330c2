"""What people read: the result block of a plan, the as-built notes, a pull request's body, the report of a run.

Every number here comes from a receipt; nothing an agent said is among them. An agent's words are quoted, and marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from orchestrator.house import Run
from orchestrator.records import Change, Judgement, Plan, Receipt, Target, Task, Verdict
from orchestrator.verdicts import half_width_pct, name_of, recipe_of

MOVED = (
    "Moved by a pixel: the same test images, each moved by the gate; beside the verdict, to tell learning from memory."
)
EXPECTED = {"changed-labels": "no copied labels expected"}
SIGNS = {"reproduced": "reproduced", "not reproduced": "**not reproduced**"}


def results(targets: Iterable[Target], verdicts: dict[str, Verdict], receipts: Iterable[Receipt]) -> str:
    """The verdict table, then every seed and control with its receipt."""
    lines = ["| target | published | asked | measured | verdict |", "|---|---|---|---|---|"]
    by_id = {receipt.id: receipt for receipt in receipts}
    chosen = [(target, verdicts[target.id]) for target in targets if target.id in verdicts]
    lines += [
        _row(target, verdict, [by_id[each] for each in verdict.receipts if each in by_id]) for target, verdict in chosen
    ]
    for target, verdict in chosen:
        of = f" Dataset: {verdict.dataset}." if verdict.dataset else ""
        lines += ["", f"`{target.id}`: {_cell(verdict.reason)}.{of} Commit `{verdict.commit[:12]}`.", ""]
        own = [by_id[receipt] for receipt in verdict.receipts if receipt in by_id]
        lines += ["| run | value | error | moved by a pixel | time | receipt |", "|---|---|---|---|---|---|"]
        lines += [_trial(target, receipt) for receipt in own]
    machines = sorted({receipt.machine for receipt in by_id.values() if receipt.machine})
    tiers = sorted({receipt.sandbox for receipt in by_id.values() if receipt.sandbox})
    where = f"Measured by the harness on {'; '.join(machines)}; sandbox: {', '.join(tiers)}."
    return "\n".join([*lines, "", MOVED, where])


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
    if verdict.outcome == "not measured":
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
    cells = (f"{name}{expected}{failed}", value, error, moved, f"{receipt.wall_s:.0f} s", f"`{receipt.id[:12]}`")
    return f"| {' | '.join(cells)} |"


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
        ("Risk", "\n".join([f"**{judgement.risk.level}**", *(f"- {reason}" for reason in judgement.risk.reasons)])),
        (
            "Review",
            "Findings of language models that read the change, the nearest level first:\n\n" * bool(judgement.review)
            + _quoted(judgement),
        ),
        ("Tier", f"{change.tier}, attempt {change.attempt}. The router: {run.ledger.why_tier(run.id, task.id)}"),
        ("Cost", _cost(run, task)),
        ("Receipts", f"{len(receipts)}, signed; the chain's head is `{head}`. `orchestrate report {run.id} --verify`"),
        (
            "What the agent says",
            "Unverified, quoted:\n\n" + "\n".join(f"> {line}" for line in words.splitlines() or ["(nothing)"]),
        ),
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
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
