"""A change's risk from its diff, by rules. A model may raise it, never lower it; what is unknown goes to a person.

The rules read like the table that they are: the first glob that matches a file decides for it, the highest over all
files decides for the change.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.globs import matches
from orchestrator.records import RISK_LEVELS, Change, Risk, RiskLevel

# What guards the system: never merged without a person, whatever wrote it.
GUARDED = (
    ".ci/**",
    ".github/**",
    "Makefile",
    "pyproject.toml",
    "orchestrator/**",
    "agents/**",
    "skills/**",
    "tests/**",
    "**/conftest.py",
    "**/.gitattributes",
    "**/.gitmodules",
)
LEVELS: tuple[tuple[RiskLevel, tuple[str, ...], str], ...] = (
    ("high", GUARDED, "guards the system"),
    ("high", ("mlcore/kernels/**", "mlcore/autograd.py", "mlcore/ops.py", "mlcore/optim.py"), "core algorithm"),
    ("high", ("mlcore/data/**", "mlcore/evaluate.py", "mlcore/train.py"), "what a measurement passes through"),
    ("low", ("mlcore/recipes/*.toml",), "recipe"),
    ("medium", ("mlcore/**",), "library code"),
    ("low", ("plans/**/*.md", "docs/**/*.md", "*.md"), "prose"),
    ("low", tuple(f"plans/**/*.{end}" for end in ("json", "jsonl", "csv", "png", "svg")), "evidence"),
)
UNKNOWN: tuple[RiskLevel, str] = ("high", "no rule knows this path")  # so a person merges it
LARGE_LINES = 400  # reviewers stop reading carefully at about this size


def assess(change: Change, floor: RiskLevel) -> Risk:
    """The risk and its reasons, one a file, highest first. `floor` is the skill's own."""
    reasons = [(floor, f"{floor}: floor of the skill")]
    for file in change.files:
        level, why = _of_path(file.path)
        reasons.append((level, f"{level}: {file.path} ({why})"))
    if change.lines > LARGE_LINES:
        reasons.append(("medium", f"medium: {change.lines} changed lines, over {LARGE_LINES}"))
    reasons.sort(key=lambda item: -RISK_LEVELS.index(item[0]))
    guarded = any(matches(file.path, GUARDED) or _of_path(file.path) == UNKNOWN for file in change.files)
    return Risk(level=reasons[0][0], guarded=guarded, reasons=tuple(text for _, text in reasons))


def expected(writes: Iterable[str], floor: RiskLevel) -> RiskLevel:
    """What a change of all that a task may write would be, its globs read as paths: to plan by, not to judge."""
    return max((floor, *(_of_path(path)[0] for path in writes)), key=RISK_LEVELS.index)


def _of_path(path: str) -> tuple[RiskLevel, str]:
    for level, globs, why in LEVELS:
        if matches(path, globs):
            return level, why
    return UNKNOWN
