"""What is shown: a moving line on a terminal, calm lines elsewhere, little when quiet."""

import io
import json
from pathlib import Path

import pytest

from mlcore.display import Live, Plain, Quiet, View, choose, duration, now_and_then, passing_line
from mlcore.monitor import Monitor

VIEW = View(epoch=2, epochs=3, step=40, total_steps=96, loss=0.1234, error_pct=4.5, images_per_s=12345.6, left_s=75)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_has_epoch_loss_error_speed_and_the_time_left() -> None:
    assert VIEW.line() == "epoch 2/3 loss 0.1234 train error 4.50 % 1:15 min left 12,346 img/s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07 min"), (7500, "2:05 h"), (-1, "0 s")]
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_progress_is_one_line_every_ten_seconds() -> None:
    stream, now = io.StringIO(), [0.0]
    display = Plain(stream, lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        display.show(VIEW)
    assert stream.getvalue().splitlines() == [f"step 40/96  {VIEW.line()}"] * 2


def test_what_is_slow_is_told_and_what_is_quick_is_not() -> None:
    said: list[str] = []
    now = [0.0]
    tell = now_and_then(said.append, after_s=1, every_s=3, clock=lambda: now[0])
    for tenth in range(60):
        now[0] = tenth / 10
        tell(f"at {now[0]}")
    assert said == ["at 1.0", "at 4.0"]


@pytest.mark.parametrize(
    ("stream", "quiet", "written"),
    [
        (Terminal(), False, "\r\x1b[2K[SURROGATE] one\r\x1b[2K[SURROGATE] two\r\x1b[2K"),
        (Terminal(), True, ""),
        (io.StringIO(), False, ""),
    ],
)
def test_a_passing_line_is_for_terminals_and_leaves_nothing(stream: io.StringIO, quiet: bool, written: str) -> None:
    with passing_line(quiet, True, stream) as show:
        show("one")
        show("two")
    assert stream.getvalue() == written


def test_quiet_shows_warnings_only() -> None:
    stream = io.StringIO()
    display = Quiet(stream)
    display.say("hello")
    display.show(VIEW)
    display.warn("careful")
    assert stream.getvalue() == "warning: careful\n"


def test_a_terminal_gets_a_line_that_is_drawn_over() -> None:
    stream = Terminal()
    display = choose(quiet=False, surrogate=True, stream=stream)
    assert isinstance(display, Live)
    display.show(VIEW)
    display.say("epoch done")
    display.close()
    assert f"[SURROGATE] {VIEW.line()}" in stream.getvalue()
    assert "[SURROGATE digits, not MNIST] epoch done" in stream.getvalue()


def test_elsewhere_it_is_plain_and_labelled() -> None:
    stream = io.StringIO()
    display = choose(quiet=False, surrogate=True, stream=stream)
    display.say("epoch done")
    assert stream.getvalue() == "[SURROGATE digits, not MNIST] epoch done\n"


def test_a_resumed_monitor_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n{"kind": "step", "step": 101}\n{"kind": "st')
    monitor = Monitor(path, None, ({"kind": "step", "step": 1},), 50)
    monitor.add({"kind": "step", "step": 101})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 101]
