"""TensorBoard's copy of a run's metrics, record by record: a full disk costs the copy, not the run.

tensorboardX's own writer hands records to a thread; when that dies of a full disk, training waits for it for ever.
"""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from mlcore.files import append


class Events:
    """Appends to an event file in `folder`; events of a step from `start` on, of an earlier sitting, are taken back."""

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._append(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def add(self, tag: str, value: float, step: int) -> None:
        """One number; an OSError leaves no part of it in the file."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        self._append(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))

    def _append(self, event: Any) -> None:
        append(self.path, _record(event.SerializeToString()))


def _record(data: bytes) -> bytes:
    """As TFRecord has it: length, its checksum, the data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
