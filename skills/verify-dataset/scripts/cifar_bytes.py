"""Find and read CIFAR-10's binary batches: records of a label and 3x32x32 bytes, packed or not, bounds checked first.

Where agents work the test labels are withheld: each is 255. The pixels of the test batch have a checksum of their own.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from idx_bytes import DataProblem, default_roots

Bytes = npt.NDArray[np.uint8]
MAX_RAW_BYTES = 64 << 20  # a batch has 31 MB
RECORD_BYTES = 1 + 3 * 32 * 32
CLASSES = 10
WITHHELD = 255
INSIDE = "cifar-10-batches-bin"
TEST, TEST_PIXELS = "test_batch", "test_batch-pixels"
# sha256 of the unpacked batches, and of the test batch's pixels alone
OFFICIAL = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    TEST_PIXELS: "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
}
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def find_cifar10(data: Path | None) -> Path:
    """The folder of the batches. Raises DataProblem with the fix."""
    roots = [data] if data else default_roots()
    for folder in (place for root in roots for place in (root / "cifar10", root)):
        if find_batch(folder, TEST):
            return folder
    looked = ", ".join(str(root) for root in roots)
    raise DataProblem(
        f"no cifar10 batches under {looked}; pass --data DIR, set MLCORE_DATA, or run `mlcore fetch cifar10`"
    )


def find_batch(folder: Path, name: str) -> Path | None:
    places = (place / f"{name}.bin{end}" for place in (folder, folder / INSIDE) for end in ("", ".gz", ".xz"))
    return next((path for path in places if path.is_file()), None)


def read_cifar10(folder: Path) -> tuple[Bytes, Bytes, Bytes, dict[str, Any]]:
    """Training images [N, 3, 32, 32] and labels [N], test images, and what the card says of each file."""
    images, labels, files = [], [], {}
    for name in (*OFFICIAL, TEST):
        if name != TEST_PIXELS:
            raw = read_raw(folder, name)
            records = parse_batch(raw, f"{folder / name}")
            if name == TEST:
                raw = records[:, 1:].tobytes()
            files[TEST_PIXELS if name == TEST else name] = describe(raw, TEST_PIXELS if name == TEST else name)
            images.append(records[:, 1:].reshape(-1, 3, 32, 32))
            labels.append(records[:, 0])
    return np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], files


def read_raw(folder: Path, name: str) -> bytes:
    path = find_batch(folder, name)
    if path is None:
        raise DataProblem(f"{folder / name}.bin: missing (packed or not); run `mlcore fetch cifar10`")
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as stream:
            raw: bytes = stream.read(MAX_RAW_BYTES + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataProblem(f"{path}: can't be read ({error}); fetch it again") from error
    if len(raw) > MAX_RAW_BYTES:
        raise DataProblem(f"{path}: unpacks to more than {MAX_RAW_BYTES} bytes; not a CIFAR batch")
    return raw


def parse_batch(raw: bytes, name: str) -> Bytes:
    """uint8 [N, 3073], the label first. Raises DataProblem."""
    if not raw or len(raw) % RECORD_BYTES:
        raise DataProblem(f"{name}: {len(raw)} bytes are not one or more records of {RECORD_BYTES}; fetch it again")
    return np.frombuffer(raw, np.uint8).reshape(-1, RECORD_BYTES)


def describe(raw: bytes, name: str) -> dict[str, Any]:
    digest = hashlib.sha256(raw).hexdigest()
    return {"raw_sha256": digest, "raw_bytes": len(raw), "official": digest == OFFICIAL[name]}
