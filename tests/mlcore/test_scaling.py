"""What several processes gain: the projection is the ring's arithmetic, and the command measures real ranks."""

import json
from pathlib import Path

import pytest

from mlcore import benchset, scaling
from mlcore.scaling import LATENCY_S, LINE_SHARE, Timeline, project, ring_s
from tests.mlcore.drawn import mlcore
from tests.mlcore.helpers import needs_compiler
from tests.mlcore.test_parallel import mpirun  # noqa: F401  a fixture

GIGABIT = 1e9 / 8 * LINE_SHARE  # bytes a second that data get


def test_a_ring_sends_nearly_twice_the_numbers() -> None:
    assert ring_s(10**9, 2, 8) == pytest.approx(10**9 / (8 * GIGABIT) + 2 * LATENCY_S)
    assert ring_s(10**9, 32, 8) == pytest.approx(2 * 31 / 32 * 10**9 / (8 * GIGABIT) + 62 * LATENCY_S)


def test_sums_that_end_before_the_way_back_cost_nothing() -> None:
    line = Timeline(ready_s=(1.0, 9.0), bytes=(int(GIGABIT), 0), step_s=10.0)
    seen = project(line, 128, 2, 1)
    assert seen.step_s == pytest.approx(10.0, abs=1e-3)
    assert seen.hidden_pct == pytest.approx(100, abs=0.1)
    assert seen.images_per_s == pytest.approx(25.6, rel=1e-3)


def test_a_step_waits_for_sums_that_come_too_late_and_pays_their_cycles() -> None:
    line = Timeline(ready_s=(8.0, 9.0), bytes=(int(2 * GIGABIT), int(GIGABIT)), step_s=10.0)
    seen = project(line, 128, 2, 1, cycles_s=0.5)
    assert seen.waiting_s == pytest.approx(2.0, abs=1e-3)  # 8 s + 2 s + 1 s, and the way back ends at 9 s
    assert seen.step_s == pytest.approx(12.5, abs=1e-3)
    assert seen.hidden_pct == pytest.approx(100 / 3, abs=0.1)
    assert seen.efficiency_pct == pytest.approx(80, abs=0.1)


@needs_compiler
def test_the_command_races_ranks_and_fills_the_page(mpirun: str, tmp_path: Path) -> None:  # noqa: F811
    page = tmp_path / "page.md"
    page.write_text(f"before {benchset.BEGIN}{benchset.END} after")
    how = ("lenet5", "--ranks", "2", "--rounds", "1", "--batch", "64", "--page", page, "--json", "--quiet")
    done = mlcore("bench", *how)
    assert done.returncode == 0, done.stderr
    (race,) = json.loads(done.stdout)["races"]
    assert [row["contender"] for row in race["rows"]] == ["mlcore", "mlcore ranks", "all-reduce"]
    assert all(row["wall_s"] > 0 for row in race["rows"])
    assert race["gradient_bytes"] >= 4 * 61_706
    assert len(race["projected"]) == len(scaling.GBITS) * len(scaling.MACHINES)
    assert "2 ranks, one thread each" in page.read_text()
