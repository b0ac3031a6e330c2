"""Downloads of MNIST's files: the mirrors in turn, each answer verified before it is used."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from mlcore.data.dataset import OFFICIAL_SHA256
from mlcore.data.idx import read_idx
from mlcore.errors import ChecksumMismatch, DataError, DatasetMissing

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT_S = 30
# what an exception is called to a person, by its class or the nearest of its bases that is named here
FAILURES = {
    "ChecksumMismatch": "other bytes than the published ones",
    "DataError": "not an IDX file",
    "Timeout": "timed out",
    "TimeoutError": "timed out",
    "ProxyError": "no way through the proxy",
    "SSLError": "no trusted connection",
    "ConnectionError": "no connection",
}

Say = Callable[[str], None]
Download = Callable[[str, Path], None]


def fetch_url(url: str, path: Path) -> None:
    """Download `url` to `path` with pooch; raises OSError (requests' errors are) when it can't be had."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_S, progressbar=False)
    pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=downloader)


@dataclass(frozen=True)
class Source:
    """Where downloads come from and what they must be: sha256 of decompressed bytes by file name without .gz."""

    mirrors: tuple[str, ...] = MIRRORS
    official: Mapping[str, str] = field(default_factory=lambda: OFFICIAL_SHA256)
    download: Download = fetch_url


def download_one(path: Path, digest: str, say: Say, source: Source) -> None:
    """Try the mirrors in turn for `path`, which takes its place only after its decompressed bytes were verified.

    Raises DatasetMissing with a few words for each mirror.
    """
    failures = []
    for mirror in source.mirrors:
        url = mirror + path.name
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
            part = Path(scratch) / path.name
            try:
                source.download(url, part)
                _verify(part, url, digest)
                part.replace(path)
                say(f"fetched {url}")
                return
            except (DataError, OSError) as error:
                failures.append(f"{urlsplit(url).hostname or mirror}: {_failure(error)}")
    raise DatasetMissing(f"no mirror gave {path.name} ({', '.join(failures)})")


def _failure(error: Exception) -> str:
    """A failed download in a few words: the HTTP status, the system's reason, or what FAILURES calls it."""
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return f"HTTP {status}"
    known = (FAILURES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in FAILURES)
    return next(known, None) or getattr(error, "strerror", None) or type(error).__name__


def _verify(path: Path, url: str, digest: str) -> None:
    got = read_idx(path).sha256
    if got != digest:
        raise ChecksumMismatch(f"decompressed sha256 is {got}, not {digest}", place=str(url), fix="not used")
