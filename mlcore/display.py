"""What a person sees of a run: one line that moves on a terminal, plain lines elsewhere, nothing when quiet.

Everything here goes to stderr: stdout is for data. On a surrogate every line says so.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

PLAIN_EVERY_S = 10.0
REDRAW_EVERY_S = 0.1
SLOW_S = 1.0
SAY_EVERY_S = 3.0
WIDE = 100  # columns
SURROGATE_LABEL = "[SURROGATE digits, not MNIST] "
SHORT_LABEL = "[SURROGATE] "  # leaves the moving line room on 80 columns


@dataclass(frozen=True)
class View:
    """One moment of a run. `error_pct` is of the training images of the epoch so far; `left_s` to the very end."""

    epoch: int
    epochs: int
    step: int
    total_steps: int
    loss: float
    error_pct: float
    images_per_s: float
    left_s: float

    def line(self) -> str:
        """The progress line, without the bar: with a label it fills 80 columns, and what is cut first comes last."""
        return (
            f"epoch {self.epoch}/{self.epochs} loss {self.loss:.4f} train error {self.error_pct:.2f} % "
            f"{duration(self.left_s)} left {self.images_per_s:,.0f} img/s"
        )


class Display(Protocol):
    """Where a run's progress goes."""

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def show(self, view: View) -> None: ...
    def close(self) -> None: ...


class Quiet:
    """Warnings only."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream, self.label = stream or sys.stderr, ""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        print(f"{self.label}warning: {text}", file=self.stream, flush=True)

    def show(self, view: View) -> None:
        pass

    def close(self) -> None:
        pass


class Plain(Quiet):
    """A line for what happens, and for progress one every ten seconds."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self.clock, self.last = clock, clock()

    def say(self, text: str) -> None:
        print(f"{self.label}{text}", file=self.stream, flush=True)

    def show(self, view: View) -> None:
        if self.clock() - self.last >= PLAIN_EVERY_S:
            self.last = self.clock()
            self.say(f"step {view.step}/{view.total_steps}  {view.line()}")


class Live(Quiet):
    """A line that is drawn over, with a bar where there is room; rich is loaded here only."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.clock, self.last = clock, 0.0
        self.console = Console(file=self.stream, highlight=False)
        text = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(bar_width=20), text) if self.console.width >= WIDE else (text,)
        self.progress = Progress(*columns, console=self.console, transient=True, auto_refresh=False)
        self.task: Any = None

    def say(self, text: str) -> None:
        self.console.print(f"{self.label}{text}", markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def show(self, view: View) -> None:
        if self.clock() - self.last < REDRAW_EVERY_S and view.step < view.total_steps:
            return
        self.last = self.clock()
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task("", total=view.total_steps)
        text = f"{SHORT_LABEL if self.label else ''}{view.line()}"
        self.progress.update(self.task, completed=view.step, total=view.total_steps, description=text, refresh=True)

    def close(self) -> None:
        self.progress.stop()


def choose(quiet: bool, surrogate: bool = False, stream: TextIO | None = None) -> Display:
    """The display for this stream: live on a terminal, else plain; labelled when the digits are drawn."""
    stream = stream or sys.stderr
    display = Quiet(stream) if quiet else Live(stream) if stream.isatty() else Plain(stream)
    display.label = SURROGATE_LABEL if surrogate else ""
    return display


def now_and_then(
    say: Callable[[str], None],
    after_s: float = SLOW_S,
    every_s: float = SAY_EVERY_S,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[str], None]:
    """`say` for something that happens often: silent for `after_s`, then one text every `every_s`."""
    due = clock() + after_s

    def tell(text: str) -> None:
        nonlocal due
        if clock() >= due:
            due = clock() + every_s
            say(text)

    return tell


@contextlib.contextmanager
def passing_line(quiet: bool, surrogate: bool = False, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """A line that each text replaces and that leaves nothing behind: on a terminal only, and unless quiet."""
    stream = stream or sys.stderr
    erase = "\r\x1b[2K" if stream.isatty() and not quiet else ""
    label = SHORT_LABEL if surrogate else ""

    def show(text: str) -> None:
        if erase:
            print(f"{erase}{label}{text}", end="", file=stream, flush=True)

    try:
        yield show
    finally:
        print(erase, end="", file=stream, flush=True)


@contextlib.contextmanager
def telling(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Progress on stderr: one line that moves on a terminal, else a line now and then."""
    with passing_line(quiet) as show:
        yield show if sys.stderr.isatty() or quiet else now_and_then(_say)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3:07 min, 2:05 h."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
