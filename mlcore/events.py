"""TensorBoard's copy of a run's metrics, record by record: a full disk costs the copy, not the run.

tensorboardX, which writes the same, hands records to a thread, and training waits for ever for one that died of a full
disk; importing it imports PyTorch where there is one, a second or two in the middle of a run. The few fields that are
needed here are written out as protocol buffers have them.

Sources: TensorFlow's event.proto and summary.proto for the numbers of the fields, TFRecord for the frame.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from mlcore.files import append

VERSION = "brain.Event:2"
START = 1  # SessionLog.START: events of this step and later ones, of an earlier sitting, are taken back
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types
CASTAGNOLI = 0x82F63B78


class Events:
    """Appends to an event file in `folder`; events of a step from `start` on, of an earlier sitting, are taken back."""

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._append(0, _text(3, VERSION.encode()))
        self._append(start, _text(7, _number(1, START)))

    def add(self, tag: str, value: float, step: int) -> None:
        """One number; an OSError leaves no part of it in the file."""
        scalar = _text(1, tag.encode()) + _key(2, FLOAT) + struct.pack("<f", value)
        self._append(step, _text(5, _text(1, scalar)))

    def _append(self, step: int, what: bytes) -> None:
        now = _key(1, DOUBLE) + struct.pack("<d", time.time())
        append(self.path, record(now + _number(2, step) + what))


def record(data: bytes) -> bytes:
    """As TFRecord has it: length, its checksum, the data, their checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _number(field: int, value: int) -> bytes:
    return _key(field, VARINT) + bytes(_varint(value))


def _text(field: int, content: bytes) -> bytes:
    """A string, or a message in a message."""
    return _key(field, BYTES) + bytes(_varint(len(content))) + content


def _varint(value: int) -> Iterator[int]:
    """Seven bits a byte, the lowest first; a byte that others follow has its eighth bit set."""
    while value > 0x7F:
        yield value & 0x7F | 0x80
        value >>= 7
    yield value


def _checksum(data: bytes) -> bytes:
    """CRC-32C (Castagnoli), masked as TFRecord wants it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ CASTAGNOLI * (byte & 1)
    return byte


_TABLE = [_remainder(byte) for byte in range(256)]
