"""Batches: the right bytes, each once, in an order that depends on the seed alone."""

import hashlib
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcore.data.images import Normaliser
from mlcore.data.loader import Batch, Loader, Part, shuffled, split
from mlcore.rng import Rng

IMAGES = np.random.default_rng(0).integers(0, 256, (53, 1, 28, 28)).astype(np.uint8)
LABELS = (np.arange(53) % 10).astype(np.uint8)


def loader(batch: int = 8, seed: int = 1) -> Loader:
    part = Part(IMAGES, LABELS, np.arange(len(LABELS)))
    return Loader(part, batch, Normaliser.of(IMAGES), Rng(seed))


def indices(batches: Iterator[Batch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.index]


def test_normalising_makes_mean_zero_and_deviation_one_and_undoes_to_the_byte() -> None:
    normaliser = Normaliser.of(IMAGES)
    x_NCHW = normaliser.apply(IMAGES)
    assert x_NCHW.shape == (53, 1, 28, 28)
    assert x_NCHW.dtype == np.float32
    assert abs(float(x_NCHW.mean(dtype=np.float64))) < 1e-5
    assert abs(float(x_NCHW.std(dtype=np.float64)) - 1) < 1e-5
    assert np.array_equal(normaliser.undo(x_NCHW), IMAGES)


def test_blank_images_normalise_without_dividing_by_zero() -> None:
    blank = np.zeros((2, 1, 28, 28), np.uint8)
    assert np.isfinite(Normaliser.of(blank).apply(blank)).all()


@given(st.integers(1, 60), st.integers(0, 5))
@settings(max_examples=30, deadline=None, database=None)
def test_every_epoch_shows_every_image_once_with_its_own_label(batch: int, epoch: int) -> None:
    made = loader(batch)
    steps = made.steps_per_epoch
    batches = list(made.batches(epoch * steps, (epoch + 1) * steps))
    assert sorted(indices(iter(batches))) == list(range(53))
    for one in batches:
        assert np.array_equal(made.normaliser.undo(one.images), IMAGES[one.index])
        assert np.array_equal(one.labels, LABELS[one.index])


def test_epochs_and_seeds_differ_in_order() -> None:
    first, second, other = (indices(made.batches(*span)) for made, span in (
        (loader(), (0, 7)), (loader(), (7, 14)), (loader(seed=2), (0, 7)),
    ))  # fmt: skip
    assert len({tuple(first), tuple(second), tuple(other)}) == 3


@given(st.integers(0, 20))
@settings(max_examples=21, deadline=None, database=None)
def test_a_loader_started_at_a_step_goes_on_as_if_it_had_come_there(start: int) -> None:
    whole = list(loader().batches(0, 21))
    for expected, got in zip(whole[start:], loader().batches(start, 21), strict=True):
        assert np.array_equal(expected.index, got.index)
        assert np.array_equal(expected.images, got.images)


def test_the_split_is_disjoint_complete_and_decided_by_the_seed() -> None:
    part, held = split(IMAGES, LABELS, validation=13, limit=0, rng=Rng(3))
    assert sorted([*part.index, *held.index]) == list(range(53))
    assert len(held) == 13
    again, _ = split(IMAGES, LABELS, 13, 0, Rng(3))
    other, _ = split(IMAGES, LABELS, 13, 0, Rng(4))
    assert np.array_equal(part.index, again.index)
    assert not np.array_equal(part.index, other.index)
    assert len(split(IMAGES, LABELS, 13, 20, Rng(3))[0]) == 20


def test_shuffled_labels_are_the_parts_own_and_leave_the_rest_alone() -> None:
    part, held = split(IMAGES, LABELS, validation=13, limit=0, rng=Rng(3))
    mixed = shuffled(part, Rng(3))
    assert sorted(mixed.labels[part.index]) == sorted(LABELS[part.index])
    assert not np.array_equal(mixed.labels[part.index], LABELS[part.index])
    assert np.array_equal(mixed.labels[held.index], LABELS[held.index])


def test_mnists_batches_are_the_same_bits_as_they_ever_were() -> None:
    """The digest was taken when datasets had but one shape, [N,28,28]."""
    digest = hashlib.sha256()
    for batch in loader().batches(3, 17):
        for array in (batch.images, batch.labels, batch.index):
            digest.update(array.tobytes())
    assert digest.hexdigest() == "55cf6bd06170a86aac77fe8c56add03c988d2bdf688a0595e29b62adce9a711f"
