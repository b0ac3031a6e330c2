"""A race: contenders in processes of their own take turns, so that a machine's other work hits all of them alike.

As many live side by side as fit the memory, the base always among them; the others follow in further heats.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TURN_S = 0.2  # a turn is as many steps as take about this long
PAUSE_S = 0.05  # lets the threads of the one before stop spinning
QUIET_SHARE = 0.1  # of one processor is what others may use in a quiet turn
MOST_EXTRA = 2  # times the rounds, to find quiet turns in

Tell = Callable[[str], None]
Launch = Callable[[str, list[str]], list[str]]


@dataclass(frozen=True)
class Sample:
    """One turn: seconds of one step. others: processors that were busy with something else meanwhile."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    others: float

    @property
    def is_quiet(self) -> bool:
        return self.others <= QUIET_SHARE


@dataclass
class Seen:
    """What a contender did, beside the base's turns of the same heat; `error` says why it did nothing."""

    samples: list[Sample] = field(default_factory=list)
    base: list[Sample] = field(default_factory=list)
    first_s: float = 0.0
    error: str = ""


def race(
    model: str, names: Sequence[str], how: Sequence[str], rounds: int, tell: Tell, launch: Launch | None = None
) -> dict[str, Seen]:
    """Everyone's turns; the first of `names` is the base. how: batch, threads and train or forward, as arguments.

    launch: makes a contender's argv from name and usual argv, where it is not started as it is.
    """
    seen, waiting = {name: Seen() for name in names}, list(names[1:])
    while waiting or not seen[names[0]].samples:
        with ExitStack() as stack:
            heat = _heat(model, [names[0], *waiting], how, seen, stack, tell, launch or _as_it_is)
            waiting = waiting[len(heat.started) - 1 :]
            if seen[names[0]].error:
                break
            _take_turns(heat.running, names[0], rounds, seen, tell)
    return seen


@dataclass
class _Heat:
    started: list[str] = field(default_factory=list)
    running: dict[str, _Side] = field(default_factory=dict)


def _as_it_is(name: str, argv: list[str]) -> list[str]:
    return argv


def _heat(
    model: str, names: Sequence[str], how: Sequence[str], seen: dict[str, Seen], stack: ExitStack, tell: Tell,
    launch: Launch,
) -> _Heat:  # fmt: skip
    """Start contenders in their order while the memory lasts: the base and at least one more are tried."""
    heat, largest = _Heat(), 0.0
    for name in names:
        free = _free_mib()
        if len(heat.started) >= 2 and free is not None and free < 1.5 * largest:
            break
        tell(f"starting {name}")
        heat.started.append(name)
        argv = [sys.executable, "-m", "mlcore.contender", model, name, *how]
        side = stack.enter_context(_Side(launch(name, argv)))
        ready = side.answer()
        seen[name].error = ready.get("error", "")
        if not seen[name].error:
            seen[name].first_s = seen[name].first_s or ready["first_s"]
            side.step_s, heat.running[name] = ready["step_s"], side
            largest = max(largest, ready["peak_mib"])
    return heat


def _take_turns(running: dict[str, _Side], base: str, rounds: int, seen: dict[str, Seen], tell: Tell) -> None:
    """Rounds until each has been seen `rounds` times undisturbed, or till patience ends."""
    taken: dict[str, list[Sample]] = {name: [] for name in running}
    for number in range(rounds * (1 + MOST_EXTRA)):
        if number >= rounds and all(sum(s.is_quiet for s in samples) >= rounds for samples in taken.values()):
            break
        tell(f"round {number + 1} of {rounds}: {len(running)} contenders")
        for name, side in list(running.items()):
            sample = side.turn()
            if sample is None:
                seen[name].error = side.end()
                del running[name]
            else:
                taken[name].append(sample)
            time.sleep(PAUSE_S)
    for name, samples in taken.items():
        seen[name].samples += samples
        seen[name].base += taken[base]


class _Side:
    """A contender's process."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.step_s = TURN_S

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def turn(self) -> Sample | None:
        """Some steps; None when the process is no more."""
        before, wall = busy_s(), time.perf_counter()
        try:
            assert self.process.stdin
            self.process.stdin.write(f"{max(1, round(TURN_S / self.step_s))}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self.answer()
        if "error" in answer:
            return None
        busy, wall = busy_s() - before, time.perf_counter() - wall
        own = answer["cpu_s"] * max(1, round(TURN_S / self.step_s))
        return Sample(**answer, others=max(0.0, busy - own) / wall)

    def answer(self) -> dict[str, Any]:
        """The next line; {"error"} at the end."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self.end()}
        return answer

    def end(self) -> str:
        """How it ended."""
        code = self.process.wait()
        return f"killed by signal {-code} (out of memory?)" if code < 0 else f"ended with exit code {code}"


def _free_mib() -> float | None:
    """Memory that could be had, None where the system does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        return None


def busy_s() -> float:
    """Seconds that the processors together have been busy since the start; 0 where the system does not say."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return 0.0
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
