"""Downloads of a dataset's files: the mirrors in turn, each answer verified before it is used."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlcore.errors import ChecksumMismatch, DataError, DatasetMissing

TIMEOUT_S = 30
# what an exception is called to a person, by its class or the nearest of its bases that is named here
FAILURES = {
    "ChecksumMismatch": "other bytes than the published ones",
    "CifarMalformed": "not the archive",
    "DataError": "not an IDX file",
    "Timeout": "timed out",
    "TimeoutError": "timed out",
    "ProxyError": "no way through the proxy",
    "SSLError": "no trusted connection",
    "ConnectionError": "no connection",
}

Say = Callable[[str], None]
Download = Callable[[str, Path], None]
Check = Callable[[Path, str], None]  # a file and where it came from; DataError when it is not the published one


def fetch_url(url: str, path: Path) -> None:
    """Download `url` to `path` with pooch; raises OSError (requests' errors are) when it can't be had."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_S, progressbar=False)
    pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=downloader)


@dataclass(frozen=True)
class Source:
    """Where downloads come from and what they must be: sha256 of decompressed bytes by file name without .gz."""

    mirrors: tuple[str, ...]
    official: Mapping[str, str]
    download: Download = fetch_url


def download_one(path: Path, check: Check, say: Say, source: Source) -> None:
    """Try the mirrors in turn for `path`, which takes its place only after `check` has held.

    Raises DatasetMissing with a few words for each mirror.
    """
    failures = []
    for mirror in source.mirrors:
        url = mirror + path.name
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as scratch:
            part = Path(scratch) / path.name
            try:
                source.download(url, part)
                check(part, url)
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


def check_sha256(got: str, digest: str, place: str) -> None:
    """ChecksumMismatch unless they are equal."""
    if got != digest:
        raise ChecksumMismatch(f"decompressed sha256 is {got}, not {digest}", place=place, fix="not used")
