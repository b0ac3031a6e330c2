"""Every error that Odyssey raises on purpose, and the exit code that each gives.

OrchestratorError          1   a defect, or something nobody planned for
├── InputError             2   a plan, agent, skill, setting or argument is wrong; carries every Problem found
│   └── PaperError         2   a paper can't be read: encrypted, scanned, broken, too large
├── NotFound               2   no such run, task or pull request
├── NothingToDo            0   every task of the plan is ticked
├── ForgeError             2   a pull request or an issue can't be read or changed as asked
├── SandboxUnavailable     4   nothing may run, because nothing would contain it
├── BudgetExhausted        5   paused: resume with a larger budget
│   └── NoRoom             -   waited out: calls under way may turn out to need less than their maxima
├── CallFailed             6   a language model gave no reply (providers/base.py); paused where trying again may help
├── Busy                  75   another orchestrator works on this repository
├── GitError               1   git refused; carries its words
└── ToolRefused            -   told to the agent as a tool result, never raised to a person

Exit codes that are not errors: 0 every task accepted and every measured target reproduced; 3 the run is over, but a
target was missed or not measured, or a task failed or is blocked; 128 and a signal's number: interrupted, resumable.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_CODES = {
    0: "every task accepted, every measured target reproduced",
    1: "a defect in Odyssey",
    2: "a plan, agent, skill, setting or argument is wrong",
    3: "the run is over: a target missed or not measured, or a task failed or blocked",
    4: "no sandbox, so nothing was run",
    5: "a budget is used up; paused, resumable",
    6: "no language model answers; paused, resumable",
    75: "another orchestrator works on this repository",
    130: "interrupted by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP; resumable",
}


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong in one place, and how to mend it. `line` counts from 1; 0 is the whole file."""

    path: str
    line: int
    what: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.what}" + (f"; {self.fix}" if self.fix else "")


class OrchestratorError(Exception):
    """The root. `args` hold all it knows, so that it survives pickling and JSON."""

    exit_code = 1


class InputError(OrchestratorError):
    """What a person wrote can't be used. `problems` lists all of it, in order of place."""

    exit_code = 2

    def __init__(self, problems: list[Problem] | str) -> None:
        self.problems = [Problem("", 0, problems)] if isinstance(problems, str) else sorted(problems)
        super().__init__(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem).removeprefix(": ") for problem in self.problems)


class PaperError(InputError):
    """A PDF that gives no text; the fix is a command that a person can type."""


class NotFound(OrchestratorError):
    exit_code = 2


class NothingToDo(OrchestratorError):
    exit_code = 0


class ForgeError(OrchestratorError):
    exit_code = 2


class SandboxUnavailable(OrchestratorError):
    exit_code = 4


class BudgetExhausted(OrchestratorError):
    """`task`: the one whose own budget it is; "" for the run's."""

    exit_code = 5

    def __init__(self, words: str, task: str = "") -> None:
        self.task = task
        super().__init__(words, task)

    def __str__(self) -> str:
        return str(self.args[0])


class NoRoom(BudgetExhausted):
    """It would fit, were it not for the maxima of calls that this process has under way."""


class Busy(OrchestratorError):
    exit_code = 75


class GitError(OrchestratorError):
    exit_code = 1


class ToolRefused(OrchestratorError):
    """A tool call that the agent may not make; the text tells the agent why and what it may do instead."""
