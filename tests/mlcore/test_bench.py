"""The race between ways to run a step, and the pages made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore import benchset
from mlcore.bench import Order, bench, contenders
from mlcore.contender import Task, network_for, torch_step
from mlcore.errors import DataError, RecipeError
from mlcore.parallel import join
from mlcore.race import Sample, Seen, race
from mlcore.tables import bench_table
from tests.mlcore.helpers import needs_compiler


def _silent(text: str) -> None:
    pass


@needs_compiler
def test_a_race_gives_every_contender_its_row_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.race.TURN_S", 0.01)
    document = bench(Order("mlp", ["mlcore tape", "mlcore bf16"], batch=8, threads=1, rounds=3), _silent)
    rows = {row["contender"]: row for row in document["rows"]}
    assert {"mlcore", "mlcore tape"} <= set(rows) <= {"mlcore", "mlcore tape", "mlcore bf16"}
    assert ("mlcore bf16" in rows) != ("mlcore bf16" in document["left_out"])
    assert all(row["turns"] >= 3 for row in rows.values())
    assert rows["mlcore"]["ratio"] == 1
    assert document["peak_gflops"]["fp32"] > 1
    for row in rows.values():  # of what the machine was seen to do, as far as it can do that at all
        peak = document["peak_gflops"].get(row["precision"])
        assert 0 < row["share_pct"] < 120 if peak else row["share_pct"] is None
    title, head, *lines = bench_table(document).splitlines()
    assert "mlp, whole training step, batch 8, 1 threads" in title
    assert "% of peak" in head
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("model", "against", "said"),
    [("lenet", [], "known: alexnet"), ("lenet5", ["tensorflow"], "known: torch, torch-bf16, mlcore, mlcore bf16")],
)
def test_an_unknown_name_is_refused_with_what_is_known(model: str, against: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        bench(Order(model, against, 1, 1, 1), _silent)


def test_torch_stands_for_all_its_modes_of_a_precision() -> None:
    modes = ["torch", "torch channels_last", "torch compiled", "torch compiled channels_last"]
    assert sorted(contenders(Order("lenet5", ["torch"]))) == ["mlcore", *modes]
    every = contenders(Order("cuda_convnet", ["torch", "torch-bf16"]))
    assert len(every) == len(set(every))
    normed = contenders(Order("alexnet", ["torch-bf16"]))
    assert len(normed) == 1 + 1 + 8
    assert "torch bf16 compiled channels_last without LRN" in normed


def test_a_contender_that_cannot_start_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.race._Side.__init__", _scripted)
    seen = race("any", ["mlcore", "broken", "dying"], [], 2, _silent)
    assert len(seen["mlcore"].samples) >= 2
    assert seen["broken"].error == "ImportError: no torch"
    assert not seen["broken"].samples
    assert seen["dying"].error == "ended with exit code 3"


def test_contenders_race_in_heats_when_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.race._Side.__init__", _scripted)
    monkeypatch.setattr("mlcore.race._free_mib", lambda: 1.0)
    told: list[str] = []
    seen = race("any", ["mlcore", "a", "b"], [], 1, told.append)
    assert [text for text in told if text.startswith("starting")] == [
        "starting mlcore", "starting a", "starting mlcore", "starting b",
    ]  # fmt: skip
    assert len(seen["mlcore"].samples) == len(seen["a"].base) + len(seen["b"].base)


def _scripted(self: Any, argv: list[str]) -> None:
    """A side that plays its part without any network."""
    import subprocess
    import sys

    name = argv[4]
    part = {"broken": '{"error": "ImportError: no torch"}'}.get(name, '{"first_s": 1, "step_s": 1, "peak_mib": 9}')
    turn = "sys.exit(3)" if name == "dying" else 'print(\'{"wall_s": 1, "cpu_s": 0, "peak_mib": 9}\', flush=True)'
    code = f"import sys\nprint('{part}', flush=True)\nfor line in sys.stdin: {turn}"
    self.process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self.step_s = 1.0


def test_medians_are_of_quiet_turns_where_there_are_enough() -> None:
    from mlcore.bench import _median

    quiet, disturbed = Sample(1.0, 1.0, 1.0, 0.0), Sample(9.0, 9.0, 1.0, 1.0)
    assert _median([quiet] * 3 + [disturbed] * 5, "wall_s") == 1
    assert _median([quiet] * 2 + [disturbed] * 5, "wall_s") == 9
    assert Seen().samples == []


def test_a_set_goes_on_where_it_was_and_renews_the_page_between_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "contender": "mlcore", "precision": "fp32", "lrn": True, "turns": 3, "quiet": 3, "wall_ms": 1.0, "cpu_ms": 2.0,
        "images_per_s": 3.0, "peak_mib": 4.0, "first_s": 5.0, "ratio": 1.0, "share_pct": 80.0, "best": False,
    }  # fmt: skip
    torch = {**row, "contender": "torch compiled", "ratio": 2.5, "best": True}
    raced: list[str] = []

    def fake(order: Order, tell: Any) -> dict[str, Any]:
        raced.append(order.model)
        how = {"model": order.model, "batch": order.batch, "threads": 2, "forward": order.forward}
        return {**how, "peak_gflops": {"fp32": 100.0}, "rows": [row, torch], "left_out": {}}

    monkeypatch.setattr(benchset, "bench", fake)
    folder, given = tmp_path / "races", Order("", (), 7)
    folder.mkdir()
    (folder / "alexnet.json").write_text(json.dumps(fake(Order("alexnet", ()), None)))
    document = benchset.run_set(folder, given, _silent)
    assert raced.count("alexnet") == 3  # the one above, in bf16, and its evaluation
    path = tmp_path / "page.md"
    path.write_text(f"before {benchset.BEGIN} old {benchset.END} after")
    benchset.write_page(path, benchset.page(document))
    text = path.read_text()
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "old" not in text
    assert "| torch compiled * | 1.0 |" in text
    assert "- mlcore is 2.50 times as fast as the best of its kind: torch compiled" in text
    with pytest.raises(DataError, match="no page"):
        benchset.write_page(tmp_path / "none.md", "")


@pytest.mark.parametrize("bf16", [False, True])
def test_pytorch_fuses_its_updates_as_mlcore_does(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    made: list[Any] = []

    class Noted(torch.optim.SGD):  # type: ignore[misc]  # its base is known only once PyTorch is imported
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(torch.optim, "SGD", Noted)
    network, _, images, labels = network_for("mlp", 4)
    before = [tensor.data.copy() for tensor in network.parameters().values()]
    task = Task(network, images, labels, torch.get_num_threads(), False, join())
    torch_step(task, bf16=bf16, compiled=False, last=False, lrn=True)(0)
    (group,) = made[0].param_groups
    assert group["fused"]
    for old, new in zip(before, group["params"], strict=True):
        assert new.dtype == torch.float32
        assert (new.detach().numpy() != old).any()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of one program only")
def test_a_contenders_memory_is_its_own_and_not_of_the_process_that_started_it() -> None:
    large = np.ones(700 << 20, np.uint8)
    told = subprocess.run(
        [sys.executable, "-c", "from mlcore import contender; print(contender._peak_mib())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 10 < float(told.stdout) < large.size / 2**20
