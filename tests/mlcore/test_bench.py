"""The race between ways to run a training step."""

from __future__ import annotations

import pytest

from mlcore.bench import bench
from mlcore.errors import RecipeError
from mlcore.tables import bench_table
from tests.mlcore.helpers import needs_compiler


@needs_compiler
def test_a_race_gives_every_contender_its_row_in_turns() -> None:
    document = bench("mlp", ["mlcore tape"], batch=8, threads=1, rounds=3)
    rows = {row["contender"]: row for row in document["rows"]}
    assert list(rows) == ["mlcore", "mlcore tape"]
    assert [row["steps"] for row in rows.values()] == [3, 3]
    assert rows["mlcore"]["ratio"] == 1
    assert rows["mlcore tape"]["ratio"] == pytest.approx(rows["mlcore tape"]["wall_ms"] / rows["mlcore"]["wall_ms"])
    assert document["peak_gflops"] > 1
    assert all(0 < row["share_pct"] < 120 for row in rows.values())
    title, head, *lines = bench_table(document).splitlines()
    assert "mlp, batch 8, 1 threads" in title
    assert "% of peak" in head
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("model", "against", "said"),
    [("lenet", [], "known: alexnet"), ("lenet5", ["tensorflow"], "known: mlcore, mlcore tape, torch")],
)
def test_an_unknown_name_is_refused_with_what_is_known(model: str, against: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        bench(model, against, 1, 1, 1)
