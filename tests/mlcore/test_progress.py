"""Validation errors decide over the rate, the end and the weights that are kept."""

from __future__ import annotations

import pytest

from mlcore.progress import Progress
from mlcore.schedule import Plateau


def course(errors: list[float], plateau: Plateau | None = None, stop_after: int = 0) -> list[Progress]:
    """After each of these errors, one a step."""
    found, now = [], Progress()
    for step, error in enumerate(errors, start=1):
        now = now.seen(error, step, plateau, stop_after)
        found.append(now)
    return found


def test_the_rate_drops_after_as_many_stalled_evaluations_as_the_patience() -> None:
    seen = course([9, 8, 8, 8.5, 7, 7, 7, 7], Plateau(patience=2))
    assert [now.drops for now in seen] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_change_smaller_than_wanted_counts_as_stalling() -> None:
    errors = [9.0, 8.9, 8.8, 8.7, 8.4]
    assert [now.drops for now in course(errors, Plateau(patience=3, change=0.5))] == [0, 0, 0, 1, 1]
    assert course(errors, Plateau(patience=3, change=0.5))[-1].stalled == 0
    assert course(errors, Plateau(patience=3))[-1].drops == 0


def test_after_its_drops_a_plateau_ends_training() -> None:
    seen = course([5] * 8, Plateau(patience=2, drops=2))
    assert [now.drops for now in seen] == [0, 0, 1, 1, 2, 2, 2, 2]
    assert [now.stopped for now in seen] == ["", "", "", "", "", "", "plateau", "plateau"]


def test_early_stopping_waits_for_so_many_evaluations_without_a_better_one() -> None:
    seen = course([5, 6, 4.9, 5, 4.9, 7], stop_after=3)
    assert [now.stopped for now in seen] == ["", "", "", "", "", "stop_after"]
    assert course([5, 6, 7, 8])[-1].stopped == ""


def test_the_best_is_the_first_of_equals() -> None:
    now = course([5, 4, 4, 6])[-1]
    assert (now.best_pct, now.best_step, now.waited) == (4, 2, 2)
    assert now.is_best(2)
    assert not now.is_best(3)


def test_it_goes_on_from_its_json_as_if_nothing_had_been() -> None:
    plateau, errors = Plateau(patience=2, change=0.1), [5.0, 4.95, 4.2, 4.15, 4.3, 4.4, 4.1]
    whole = course(errors, plateau, 4)
    for cut in range(len(errors)):
        now = Progress.model_validate_json((whole[cut - 1] if cut else Progress()).model_dump_json())
        for step in range(cut, len(errors)):
            now = now.seen(errors[step], step + 1, plateau, 4)
        assert now == whole[-1]


@pytest.mark.parametrize("drops", [0, 1])
def test_no_drop_at_all_is_a_patience_for_the_end(drops: int) -> None:
    assert [now.stopped for now in course([5, 5], Plateau(patience=1, drops=drops))] == ["", "" if drops else "plateau"]
