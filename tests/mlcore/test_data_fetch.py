"""Where a dataset is found, and that nothing passes for MNIST that isn't."""

import functools
import http.server
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlcore.data.fetch import Places, copy_to, find
from mlcore.data.idx import read_idx, write_idx
from mlcore.data.mirrors import fetch_url
from mlcore.data.mnist import (
    MARK,
    OFFICIAL_SHA256,
    SOURCE,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    file_in,
    read_mnist,
)
from mlcore.errors import DataError, DatasetMissing, IdxWrongCount
from tests.mlcore.drawn import real_mnist, surrogate, surrogate_folder


def nowhere(tmp_path: Path) -> Places:
    return Places(None, None, tmp_path / "cache")


def as_mnist(folder: Path) -> Path:
    """The drawn files without their mark, in a folder that claims to be MNIST."""
    shutil.copytree(surrogate_folder(), folder, ignore=shutil.ignore_patterns(MARK))
    return folder


@functools.cache
def pretended() -> dict[str, str]:
    """Checksums that make the drawn files official."""
    return {stem: read_idx(surrogate_folder() / f"{stem}.gz").sha256 for stem in OFFICIAL_SHA256}


def from_drawn_files(url: str, path: Path) -> None:
    """A mirror that works."""
    shutil.copy(surrogate_folder() / url.rpartition("/")[2], path)


def test_the_folder_or_the_one_above_it_may_be_named(tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "data" / "mnist")
    for named in (folder, folder.parent):
        assert find("mnist", Places(named, None, tmp_path)).path == folder


def test_a_named_folder_without_the_data_is_an_error_not_a_reason_to_look_elsewhere(tmp_path: Path) -> None:
    as_mnist(tmp_path / "cache" / "mnist")
    with pytest.raises(DatasetMissing, match="--data"):
        find("mnist", Places(tmp_path, None, tmp_path / "cache"))


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("a file")], ids=["absent", "file"])
@pytest.mark.parametrize(
    ("flag", "variable", "by", "fix"),
    [
        (True, False, "named by --data,", "leave --data away"),
        (False, True, "named by MLCORE_DATA,", "unset MLCORE_DATA"),
        (True, True, "named by --data and MLCORE_DATA,", "unset MLCORE_DATA"),
    ],
)
def test_a_folder_that_is_none_is_an_error_that_says_who_named_it(
    tmp_path: Path, make: Callable[[Path], object], flag: bool, variable: bool, by: str, fix: str
) -> None:
    as_mnist(tmp_path / "cache" / "mnist")
    nope = tmp_path / "nope"
    make(nope)
    with pytest.raises(DatasetMissing) as caught:
        find("mnist", Places(nope if flag else None, nope if variable else None, tmp_path / "cache"))
    assert str(caught.value).startswith(f"{nope}: {by}")
    assert fix in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_sound_flag_overrules_a_wrong_environment(tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "mnist")
    assert find("mnist", Places(folder, tmp_path / "nope", tmp_path / "cache")).path == folder


def test_an_environment_without_the_data_is_named_in_a_warning_and_passed_over(tmp_path: Path) -> None:
    as_mnist(tmp_path / "cache" / "mnist")
    (tmp_path / "env").mkdir()
    said: list[str] = []
    source = replace(SOURCE, official=pretended())
    dataset = find("mnist", Places(None, tmp_path / "env", tmp_path / "cache"), say=said.append, source=source)
    assert dataset.path == tmp_path / "cache" / "mnist"
    assert [line for line in said if line.startswith(f"warning: {tmp_path / 'env'}: named by MLCORE_DATA, holds no")]


def test_the_environment_is_looked_into_before_the_cache(tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "env" / "mnist")
    as_mnist(tmp_path / "cache" / "mnist")
    assert find("mnist", Places(None, tmp_path / "env", tmp_path / "cache")).path == folder


def test_places_come_from_flag_and_environment() -> None:
    places = Places.of(Path("d"), {"HOME": "/h", "MLCORE_DATA": "/e"})
    assert places == Places(Path("d"), Path("/e"), Path("/h/.cache/mlcore"))
    assert Places.of(None, {"HOME": "/h", "XDG_CACHE_HOME": "/x"}).cache == Path("/x/mlcore")
    assert Places.of(None, {"HOME": "/h", "MLCORE_CACHE": "/c"}).cache == Path("/c")


def test_files_that_are_not_the_official_ones_are_called_unverified(tmp_path: Path) -> None:
    dataset = read_mnist(as_mnist(tmp_path / "mnist"))
    assert dataset.name == "mnist-unverified"
    assert not dataset.surrogate
    assert TRAIN_IMAGES in dataset.warnings[0]


def test_files_with_the_official_checksums_are_mnist_with_or_without_test_labels(tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "mnist")
    assert read_mnist(folder, pretended()).name == "mnist"
    (folder / f"{TEST_LABELS}.gz").unlink()
    dataset = read_mnist(folder, pretended())
    assert dataset.name == "mnist"
    assert dataset.test_labels is None
    assert TEST_LABELS not in dataset.sha256


def test_a_single_changed_label_is_no_longer_mnist(tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "mnist")
    labels = surrogate().train_labels.copy()
    labels[0] = (labels[0] + 1) % 10
    write_idx(folder / f"{TRAIN_LABELS}.gz", labels)
    assert read_mnist(folder, pretended()).name == "mnist-unverified"


def test_a_drawn_folder_is_a_surrogate_by_its_mark_or_by_its_name(tmp_path: Path) -> None:
    shutil.copytree(surrogate_folder(), tmp_path / "mnist")
    as_mnist(tmp_path / "mnist-surrogate")
    assert read_mnist(tmp_path / "mnist").surrogate
    assert read_mnist(tmp_path / "mnist-surrogate", pretended()).surrogate


def test_a_surrogate_is_refused_where_only_mnist_will_do(tmp_path: Path) -> None:
    shutil.copytree(surrogate_folder(), tmp_path / "mnist")
    with pytest.raises(DatasetMissing, match="surrogate"):
        find("mnist", Places(tmp_path, None, tmp_path), allow_surrogate=False)


@pytest.mark.parametrize("stem", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES])
def test_a_folder_that_lacks_a_file_is_none(stem: str, tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "mnist")
    (folder / f"{stem}.gz").unlink()
    with pytest.raises(DatasetMissing, match=stem):
        read_mnist(folder)


def test_counts_that_differ_and_labels_beyond_nine_are_errors(tmp_path: Path) -> None:
    folder = as_mnist(tmp_path / "mnist")
    write_idx(folder / f"{TRAIN_LABELS}.gz", np.zeros(599, np.uint8))
    with pytest.raises(IdxWrongCount, match="599 labels"):
        read_mnist(folder)
    write_idx(folder / f"{TRAIN_LABELS}.gz", np.full(600, 10, np.uint8))
    with pytest.raises(DataError, match="not a digit"):
        read_mnist(folder)
    write_idx(folder / f"{TRAIN_IMAGES}.gz", np.zeros((600, 28, 27), np.uint8))
    with pytest.raises(IdxWrongCount, match="28x28"):
        read_mnist(folder)


def test_a_download_is_kept_in_the_cache_and_used_from_there(tmp_path: Path) -> None:
    said: list[str] = []
    source = replace(SOURCE, official=pretended(), download=from_drawn_files)
    dataset = find("mnist", nowhere(tmp_path), say=said.append, source=source)
    assert dataset.name == "mnist"
    assert len([line for line in said if line.startswith("fetched")]) == 4
    offline = replace(SOURCE, official=pretended(), download=lambda url, path: pytest.fail("asked the mirror again"))
    assert find("mnist", nowhere(tmp_path), source=offline).name == "mnist"


def test_a_mirror_that_sends_other_bytes_is_passed_over(tmp_path: Path) -> None:
    asked: list[str] = []

    def download(url: str, path: Path) -> None:
        asked.append(url)
        if url.startswith("bad/"):
            write_idx(path, np.zeros(3, np.uint8))
        else:
            from_drawn_files(url, path)

    source = replace(SOURCE, mirrors=("bad/", "good/"), official=pretended(), download=download)
    assert find("mnist", nowhere(tmp_path), say=asked.append, source=source).name == "mnist"
    assert {url.partition("/")[0] for url in asked if url.endswith(".gz") and " " not in url} == {"bad", "good"}
    assert not [path for path in (tmp_path / "cache" / "mnist").iterdir() if path.name.startswith(".")]


def refuses(url: str, path: Path) -> None:
    raise ConnectionError("no network")


def test_without_network_the_surrogate_stands_in_only_where_allowed(tmp_path: Path) -> None:
    shutil.copytree(surrogate_folder(), tmp_path / "cache" / "mnist-surrogate")
    said: list[str] = []
    source = replace(SOURCE, download=refuses)
    dataset = find("mnist", nowhere(tmp_path), say=said.append, source=source)
    assert dataset.surrogate
    assert any("not measured on MNIST" in line for line in said)


def test_a_failed_download_is_told_once_with_a_few_words_for_each_mirror(tmp_path: Path) -> None:
    def download(url: str, path: Path) -> None:
        if "slow" in url:
            raise TimeoutError("HTTPSConnectionPool(host='slow', port=443): " + "x" * 500)
        if "odd" in url:
            path.write_bytes(b"<html>log in first</html>")
        else:
            refuses(url, path)

    said: list[str] = []
    source = replace(
        SOURCE, mirrors=("https://a.org/mnist/", "https://slow.org/", "https://odd.org/"), download=download
    )
    with pytest.raises(DatasetMissing) as caught:
        find("mnist", nowhere(tmp_path), allow_surrogate=False, say=said.append, source=source)
    wanted = f"no mirror gave {TRAIN_IMAGES}.gz (a.org: no connection, slow.org: timed out, odd.org: not an IDX file)"
    assert caught.value.what == f"MNIST can't be had: {wanted}"
    assert not any("can't be had" in line for line in said)
    shutil.copytree(surrogate_folder(), tmp_path / "cache" / "mnist-surrogate")
    find("mnist", nowhere(tmp_path), say=said.append, source=source)
    assert [line for line in said if "can't be had" in line] == [f"warning: MNIST can't be had: {wanted}"]


def test_a_damaged_cache_is_fetched_again(tmp_path: Path) -> None:
    source = replace(SOURCE, official=pretended(), download=from_drawn_files)
    folder = find("mnist", nowhere(tmp_path), source=source).path
    (folder / f"{TRAIN_LABELS}.gz").write_bytes(b"torn")
    assert find("mnist", nowhere(tmp_path), source=source).name == "mnist"
    write_idx(folder / f"{TRAIN_LABELS}.gz", np.zeros(600, np.uint8))
    assert find("mnist", nowhere(tmp_path), source=source).name == "mnist"


def test_an_unwritable_cache_is_a_documented_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError):
        find("mnist", nowhere(tmp_path), source=replace(SOURCE, download=refuses))


def test_fetch_url_downloads_over_http(tmp_path: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(surrogate_folder()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        name = f"{TEST_LABELS}.gz"
        fetch_url(f"http://127.0.0.1:{server.server_port}/{name}", tmp_path / name)
        with pytest.raises(OSError, match="404"):
            fetch_url(f"http://127.0.0.1:{server.server_port}/none.gz", tmp_path / "none.gz")
        absent = replace(SOURCE, mirrors=(f"http://127.0.0.1:{server.server_port}/none/",))
        with pytest.raises(DatasetMissing, match=r"\(127\.0\.0\.1: HTTP 404\)"):
            find("mnist", nowhere(tmp_path), allow_surrogate=False, source=absent)
        server.shutdown()
    assert (tmp_path / name).read_bytes() == (surrogate_folder() / name).read_bytes()


def test_a_copy_is_what_it_was_copied_from(tmp_path: Path) -> None:
    copy = read_mnist(copy_to(surrogate(), tmp_path / "out"))
    assert copy.sha256 == surrogate().sha256
    assert copy.surrogate


@pytest.mark.skipif(real_mnist() is None, reason="MLCORE_DATA names no folder with mnist/")
def test_the_real_files_are_recognised_as_mnist() -> None:
    dataset = find("mnist", Places(real_mnist(), None, Path("unused")), allow_surrogate=False)
    assert dataset.name == "mnist"
    assert np.bincount(dataset.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert dataset.train_images.shape == (60_000, 1, 28, 28)
    assert file_in(dataset.path, TRAIN_IMAGES) is not None
