"""The drawn digits: MNIST's shapes and habits, the same for the same seed."""

import numpy as np

from mlcore.data.surrogate import draw_digits
from mlcore.rng import Rng
from tests.mlcore.drawn import surrogate


def test_the_same_seed_draws_the_same_digits_and_another_seed_others() -> None:
    first, again, other = (draw_digits(50, Rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_every_digit_is_drawn_about_equally_often_and_no_image_twice() -> None:
    dataset = surrogate()
    counts = np.bincount(dataset.train_labels, minlength=10)
    assert counts.min() > 30
    assert len({image.tobytes() for image in dataset.train_images}) == len(dataset.train_images)
    train = {image.tobytes() for image in dataset.train_images}
    assert not train & {image.tobytes() for image in dataset.test_images}


def test_digits_are_centred_by_mass_inside_the_frame_with_soft_rims() -> None:
    images = surrogate().train_images[:, 0].astype(float)
    mass = images.sum(axis=(1, 2))
    grid = np.arange(28)
    off_x = np.abs((images.sum(axis=1) @ grid) / mass - 13.5)
    off_y = np.abs((images.sum(axis=2) @ grid) / mass - 13.5)
    assert max(off_x.mean(), off_y.mean()) < 1.0
    assert max(off_x.max(), off_y.max()) < 4.0
    assert 0.05 < images.mean() / 255 < 0.25
    soft = (images > 0) & (images < 255)
    assert soft.any(axis=(1, 2)).all()


def test_a_nearest_neighbour_finds_them_learnable_but_not_trivial() -> None:
    dataset = surrogate(3000, 500)
    train = dataset.train_images.reshape(3000, -1).astype(np.float32)
    test = dataset.test_images.reshape(500, -1).astype(np.float32)
    distance = (train**2).sum(1) - 2 * test @ train.T
    assert dataset.test_labels is not None
    error = np.mean(dataset.train_labels[distance.argmin(axis=1)] != dataset.test_labels)
    assert 0.02 < error < 0.5
