"""A run's metrics: metrics.jsonl is the truth, TensorBoard's events a copy for looking at.

Rows: {"kind": "step", step, epoch, loss, rate} every LOG_EVERY steps, {"kind": "epoch", ...} after each epoch.
"""

import json
from pathlib import Path

from mlcore.checkpoint import Row
from mlcore.events import Events
from mlcore.files import append, write_bytes

LOG_EVERY = 100
TAGS = {
    "loss": "step/loss",
    "rate": "step/rate",
    "train_loss": "train/loss",
    "train_error_pct": "train/error_pct",
    "validation_loss": "validation/loss",
    "validation_error_pct": "validation/error_pct",
    "validation_top5_error_pct": "validation/top5_error_pct",
    "images_per_s": "speed/images_per_s",
}


class Monitor:
    """Appends rows to a run's files; made with the rows of a checkpoint it first takes back what came after.

    No file ever ends in half a row. What a full disk kept out of metrics.jsonl is written when there is room again;
    TensorBoard's copy ends then.
    """

    def __init__(self, metrics: Path, events: Path | None, rows: tuple[Row, ...] = (), step: int = 0) -> None:
        self.metrics, self.events, self.rows, self.start = metrics, events, list(rows), step
        self._writer: Events | None = None
        self._behind = False
        self._rewrite()

    def add(self, row: Row) -> None:
        """Append one row, handed to the system: a killed process loses none that it reported.

        Raises OSError when a file can't be written.
        """
        self.rows.append(row)
        self._to_metrics(row)
        self._to_tensorboard(row)

    def catch_up(self) -> None:
        """Write what is missing, if anything is; OSError when that can't be done now either."""
        if self._behind:
            self._rewrite()

    def _to_metrics(self, row: Row) -> None:
        self.catch_up() if self._behind else self._append(row)

    def _append(self, row: Row) -> None:
        self._behind = True
        append(self.metrics, f"{json.dumps(row, allow_nan=False)}\n".encode())
        self._behind = False

    def _rewrite(self) -> None:
        write_bytes(self.metrics, "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in self.rows).encode())
        self._behind = False

    def _to_tensorboard(self, row: Row) -> None:
        if self.events is None:
            return
        folder, self.events = self.events, None  # and again only if nothing goes wrong
        self._writer = self._writer or Events(folder, self.start)
        for key, tag in TAGS.items():
            if isinstance(value := row.get(key), (int, float)):
                self._writer.add(tag, value, int(row["step"] or 0))
        self.events = folder


class Unwritten(Monitor):
    """Of a process that does not lead: the rows are the leader's to write."""

    def __init__(self) -> None:
        self._behind = False

    def add(self, row: Row) -> None:
        """Nothing is kept."""
