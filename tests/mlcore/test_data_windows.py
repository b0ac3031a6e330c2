"""What is seen of an image: windows drawn by seed, cut and normalised as the slow twin does it, and views averaged."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlcore import config
from mlcore.config import Data
from mlcore.data.feeds import evaluated, in_memory
from mlcore.data.images import WAYS, Normaliser
from mlcore.data.kinds import names
from mlcore.data.loader import Loader
from mlcore.data.windows import Cut
from mlcore.errors import RecipeError
from mlcore.evaluate import evaluate_by
from mlcore.kernels import crop, reference
from mlcore.rng import Rng
from tests.mlcore.drawn import coloured, small_cifar, tiny
from tests.mlcore.helpers import Array, odd_shapes

AUGMENTED = Data(dataset="cifar10", normalise="image", crop=24, flip=True, views="ten")


def loader(data: Data = AUGMENTED, seed: int = 1, batch: int = 32) -> Loader:
    made = in_memory(data, batch, small_cifar(), Rng(seed)).train
    assert isinstance(made, Loader)
    return made


@st.composite
def cuts(draw: Callable[..., Any]) -> tuple[Array, Array, Array, tuple[int, int]]:
    """Images, which of them, their windows, and the windows' size."""
    count, channels, height, width = (draw(st.integers(1, most)) for most in (5, 4, 19, 37))
    size = draw(st.integers(1, height)), draw(st.integers(1, width))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    batch = draw(st.integers(1, 7))
    windows = generator.integers(0, (height - size[0] + 1, width - size[1] + 1, 2), (batch, 3), dtype=np.int32)
    images = generator.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return images, generator.integers(0, count, batch), windows, size


@given(cuts())
@odd_shapes
def test_cutting_by_a_table_equals_its_slow_twin_to_the_bit(case: tuple[Any, ...]) -> None:
    table = np.random.default_rng(1).standard_normal((case[0].shape[1], 256)).astype(np.float32)
    assert np.array_equal(crop.crop_by_table(*case, table), reference.crop_by_table(*case, table))


@given(cuts())
@odd_shapes
def test_cutting_less_the_mean_equals_its_slow_twin_to_the_bit(case: tuple[Any, ...]) -> None:
    generator, (_, channels, height, width) = np.random.default_rng(1), case[0].shape
    scale = generator.standard_normal(channels).astype(np.float32)
    mean = generator.standard_normal((channels, height, width)).astype(np.float32)
    got, want = (twin.crop_minus_mean(*case, scale, mean) for twin in (crop, reference))
    assert np.array_equal(got, want)


@pytest.mark.parametrize("window", [(0, 2, 0), (2, 0, 0), (-1, 0, 0)])
def test_a_window_beyond_the_image_is_never_read(window: tuple[int, int, int]) -> None:
    images, table = np.zeros((1, 1, 4, 4), np.uint8), np.zeros((1, 256), np.float32)
    with pytest.raises(AssertionError):
        crop.crop_by_table(images, np.zeros(1, np.int64), np.array([window], np.int32), (3, 3), table)


@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_normalising_does_what_it_says_and_undoes_to_the_byte(way: str) -> None:
    images = coloured(50, 3)[0]
    normaliser = Normaliser.of(images, way)
    x = normaliser.apply(images)
    axes = {"scalar": (0, 1, 2, 3), "channel": (0, 2, 3), "image": 0}[way]
    assert np.abs(x.mean(axis=axes, dtype=np.float64)).max() < 1e-4
    if way == "image":
        assert x == pytest.approx(images - images.mean(axis=0), abs=1e-4)
    else:
        assert x.std(axis=axes, dtype=np.float64) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(normaliser.undo(x), images)
    low, high = normaliser.bounds
    assert low - 1e-3 <= x.min() <= x.max() <= high + 1e-3


def test_the_mean_image_is_exact_over_many_bright_images() -> None:
    images = np.full((600, 1, 2, 2), 255, np.uint8)
    assert np.array_equal(Normaliser.of(images, "image").mean * 255, np.full((1, 2, 2), 255.0))


def test_training_sees_windows_of_the_files_bytes_in_every_place_and_both_ways() -> None:
    made = loader()
    seen = []
    for batch in made.batches(0, 3 * made.steps_per_epoch):
        assert batch.windows is not None
        want = reference.crop(small_cifar().train_images, batch.index, batch.windows, (24, 24))
        assert np.array_equal(made.normaliser.undo(batch.images, batch.windows), want)
        seen.append(batch.windows)
    windows = np.concatenate(seen)
    assert [sorted(set(column)) for column in windows.T] == [[*range(9)], [*range(9)], [0, 1]]


@pytest.mark.parametrize("start", [3, 10, 13])
def test_a_loader_started_in_mid_epoch_gives_the_same_bits(start: int) -> None:
    whole = list(loader().batches(0, 15))
    for expected, got in zip(whole[start:], loader().batches(start, 15), strict=True):
        assert got.images.tobytes() == expected.images.tobytes()
        assert np.array_equal(got.index, expected.index)


def test_an_images_window_depends_on_seed_epoch_and_image_not_on_the_batch() -> None:
    small, large = (
        {
            (step // made.steps_per_epoch, int(index)): tuple(window)
            for step, batch in enumerate(made.batches(0, 2 * made.steps_per_epoch))
            for index, window in zip(batch.index, batch.windows, strict=True)  # type: ignore[arg-type]
        }
        for made in (loader(batch=7), loader(batch=64))
    )
    assert small == large
    epochs = [[small[epoch, index] for index in range(300)] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert loader(seed=2).windows(0) is not None
    assert [tuple(window) for window in loader(seed=2).windows(0)] != epochs[0]  # type: ignore[union-attr]


def test_without_crop_and_flip_images_are_whole_and_the_same_in_each_epoch() -> None:
    made = loader(Data(dataset="cifar10"))
    assert made.cut is None
    assert next(made.batches(0, 1)).images.shape == (32, 3, 32, 32)
    mirrored = loader(Data(dataset="cifar10", flip=True))
    assert mirrored.cut == Cut((32, 32), (32, 32), True)


def test_the_centre_is_evaluated_and_ten_views_are_corners_centre_and_their_mirror_images() -> None:
    images, labels = coloured(3, 9)
    normaliser = Normaliser.of(images, "image")
    (centre,) = evaluated(AUGMENTED.model_copy(update={"views": "centre"}), images, labels, normaliser).pieces()
    (ten,) = evaluated(AUGMENTED, images, labels, normaliser).pieces()
    whole = normaliser.apply(images)
    assert np.array_equal(centre[:, 0], whole[:, :, 4:28, 4:28])
    places = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    for view, (top, left) in enumerate(places):
        part = whole[:, :, top : top + 24, left : left + 24]
        assert np.array_equal(ten[:, view], part)
        assert np.array_equal(ten[:, view + 5], part[..., ::-1])


def test_several_views_average_their_softmax_as_by_hand() -> None:
    images, labels = coloured(130, 9)
    weights = Rng(4).generator().standard_normal((3 * 24 * 24, 10)) * 0.002
    normaliser = Normaliser.of(images, "image")

    def logits_of(x: Array) -> Array:
        return np.asarray((x.reshape(len(x), -1) @ weights).astype(np.float32))

    seen = evaluate_by(logits_of, evaluated(AUGMENTED, images, labels, normaliser))
    chances = np.zeros((130, 10))
    for top, left in [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]:
        part = normaliser.apply(images)[:, :, top : top + 24, left : left + 24]
        for view in (part, part[..., ::-1]):
            powers = np.exp(logits_of(view).astype(np.float64))
            chances += powers / powers.sum(axis=1, keepdims=True) / 10
    assert np.array_equal(seen.predictions, chances.argmax(axis=1))
    assert seen.loss == pytest.approx(-np.log(chances[np.arange(130), labels]).mean(), rel=1e-5)
    assert not np.array_equal(seen.predictions, logits_of(normaliser.apply(images)[:, :, 4:28, 4:28]).argmax(axis=1))


def test_what_can_not_be_cut_is_refused_with_its_key() -> None:
    with pytest.raises(RecipeError, match=r"data\.crop: 33 pixels do not fit into images of 32x32"):
        loader(Data(dataset="cifar10", crop=33))
    with pytest.raises(RecipeError, match="ten views need a crop"):
        tiny("data.views=ten")


def test_a_recipe_can_name_every_dataset_that_is_known() -> None:
    assert [tiny(f"data.dataset={name}").data.dataset for name in names()] == names()
    known = config.Data.model_fields["dataset"].annotation.__args__  # type: ignore[union-attr]
    assert set(known) == {*names(), "shards"}  # photographs are found by their folders, not by a name
