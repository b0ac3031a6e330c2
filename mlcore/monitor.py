"""A run's metrics: metrics.jsonl is the truth, TensorBoard's events a copy for looking at.

Rows: {"kind": "step", step, epoch, loss, rate} every LOG_EVERY steps, {"kind": "epoch", ...} after each epoch.
"""

import json
from pathlib import Path
from typing import Any

from mlcore.checkpoint import Row
from mlcore.files import write_bytes

LOG_EVERY = 100
TAGS = {
    "loss": "step/loss",
    "rate": "step/rate",
    "train_loss": "train/loss",
    "train_error_pct": "train/error_pct",
    "validation_loss": "validation/loss",
    "validation_error_pct": "validation/error_pct",
    "images_per_s": "speed/images_per_s",
}


class Monitor:
    """Appends rows to a run's files; made with the rows of a checkpoint it first takes back what came after."""

    def __init__(self, metrics: Path, events: Path | None, rows: tuple[Row, ...] = (), step: int = 0) -> None:
        self.metrics, self.events, self.rows, self.start = metrics, events, list(rows), step
        self._writer: Any = None
        write_bytes(metrics, "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def add(self, row: Row) -> None:
        """Append one row, flushed to the system: a killed process loses none that it reported."""
        with self.metrics.open("a") as stream:
            stream.write(f"{json.dumps(row, allow_nan=False)}\n")
        self.rows.append(row)
        self._to_tensorboard(row)

    def close(self) -> None:
        """End the event file."""
        if self._writer is not None:
            self._writer.close()

    def _to_tensorboard(self, row: Row) -> None:
        if self.events is None:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self.events), purge_step=self.start)
        for key, tag in TAGS.items():
            if isinstance(value := row.get(key), (int, float)):
                self._writer.add_scalar(tag, value, row["step"])
