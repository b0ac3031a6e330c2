"""The learning checks pass on a sound loader and catch each bug that is planted in one."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from mlcore import config
from mlcore.check import _files_bytes, _loader, check_overfit, check_round_trip, run_checks
from mlcore.data.loader import Batch, Loader, Part
from mlcore.data.windows import Windows
from mlcore.lanes.plan import LanePlan
from mlcore.session import assemble, use_threads
from tests.mlcore.drawn import small_cifar, surrogate, tiny

RECIPE = tiny("train.batch=32", "optimiser.rate=0.1")
Spoil = Callable[[Loader, Batch], Batch]


class Spoiled(Loader):
    """A loader whose every batch passes through a bug."""

    def __init__(self, sound: Loader, spoil: Spoil) -> None:
        super().__init__(sound.part, sound.batch, sound.normaliser, sound.rng, sound.cut)
        self.spoil = spoil

    def take(self, index: "np.typing.NDArray[np.int64]", windows: Windows | None = None) -> Batch:
        return self.spoil(self, super().take(index, windows))


def blanked(loader: Loader, batch: Batch) -> Batch:
    images = batch.images.copy()
    images[8:] = loader.normaliser.table[0, 0]
    return replace(batch, images=images)


def zeroed(loader: Loader, batch: Batch) -> Batch:
    images = batch.images.copy()
    images[8:] = 0
    return replace(batch, images=images)


def shifted(loader: Loader, batch: Batch) -> Batch:
    return replace(batch, labels=np.roll(batch.labels, 1))


def renamed(loader: Loader, batch: Batch) -> Batch:
    return replace(batch, labels=(batch.labels + 1) % 10)


def strangers(loader: Loader, batch: Batch) -> Batch:
    other = np.random.default_rng(0).permutation(len(loader.part.labels))
    return replace(batch, labels=loader.part.labels[other][batch.index].astype(np.int64))


def twice_normalised(loader: Loader, batch: Batch) -> Batch:
    scale = loader.normaliser
    return replace(batch, images=((batch.images - scale.mean) / scale.deviation).astype(np.float32))


def not_normalised(loader: Loader, batch: Batch) -> Batch:
    return replace(batch, images=(loader.part.images[batch.index] / 255).astype(np.float32))


def transposed(loader: Loader, batch: Batch) -> Batch:
    return replace(batch, images=np.ascontiguousarray(batch.images.transpose(0, 1, 3, 2)))


def rolled(loader: Loader, batch: Batch) -> Batch:
    return replace(batch, images=np.roll(batch.images, 1, axis=3))


def first_again(loader: Loader, batch: Batch) -> Batch:
    index = np.repeat(batch.index[:1], len(batch.index))
    return Loader.take(loader, index)


def misshapen(loader: Loader, batch: Batch) -> Batch:
    return replace(batch, images=batch.images[:, 0])


BUGS: dict[Spoil, str] = {
    blanked: "of them blank",
    zeroed: "images differ",
    shifted: "labels differ",
    renamed: "labels differ",
    strangers: "labels differ",
    twice_normalised: "images differ",
    not_normalised: "images differ",
    transposed: "images differ",
    rolled: "images differ",
    first_again: "not seen exactly once",
    misshapen: "misshapen batches",
}


@functools.cache
def sound_loader() -> Loader:
    use_threads(1)
    return _loader(assemble(RECIPE, surrogate()))


def round_trip(loader: Loader) -> tuple[bool, str]:
    check = check_round_trip(loader, surrogate().train_images, surrogate().train_labels, RECIPE)
    return check.passed, check.saw


def test_a_sound_loader_passes_the_round_trip() -> None:
    assert round_trip(sound_loader()) == (True, "600 of 600 images, all equal")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_the_round_trip_catches_the_planted_bug(bug: Spoil) -> None:
    passed, saw = round_trip(Spoiled(sound_loader(), bug))
    assert not passed
    assert BUGS[bug] in saw


def test_blanks_in_the_files_themselves_are_not_held_against_the_loader() -> None:
    images = surrogate().train_images.copy()
    images[:5] = 0
    part = Part(images, surrogate().train_labels, np.arange(len(images)))
    loader = Loader(part, 32, sound_loader().normaliser, sound_loader().rng)
    assert check_round_trip(loader, images, surrogate().train_labels, RECIPE).passed


AUGMENTED = tiny("train.batch=32", "data={dataset='cifar10',normalise='image',crop=24,flip=true}")


def unmirrored(loader: Loader, batch: Batch) -> Batch:
    assert batch.windows is not None
    mirrored = batch.windows[:, 2] == 1
    images = batch.images.copy()
    images[mirrored] = images[mirrored][..., ::-1]
    return replace(batch, images=images)


def beside(loader: Loader, batch: Batch) -> Batch:
    assert batch.windows is not None
    return replace(batch, windows=np.minimum(np.add(batch.windows, [1, 0, 0]), [8, 8, 1]).astype(np.int32))


@pytest.mark.parametrize(("bug", "passes"), [(None, True), (unmirrored, False), (beside, False), (shifted, False)])
def test_augmented_batches_are_held_against_the_files_bytes_too(bug: Spoil | None, passes: bool) -> None:
    use_threads(1)
    sound = _loader(assemble(AUGMENTED, small_cifar()))
    images, labels = _files_bytes(small_cifar())
    check = check_round_trip(Spoiled(sound, bug) if bug else sound, images, labels, AUGMENTED)
    assert check.passed == passes, check.saw


def test_a_loader_that_forgets_the_last_batch_is_caught() -> None:
    class Forgetful(Loader):
        def batches(self, start: int, stop: int) -> Iterator[Batch]:
            return super().batches(start, max(stop - 1, start))

    sound = sound_loader()
    passed, saw = round_trip(Forgetful(sound.part, sound.batch, sound.normaliser, sound.rng))
    assert not passed
    assert "not seen exactly once" in saw


@functools.cache
def verdicts(bug: Spoil | None, *overrides: str) -> dict[str, bool]:
    """Each check's verdict on a larger drawn set, with a bug in every loader."""
    use_threads(1)
    recipe = tiny("train.batch=32", "optimiser.rate=0.1", *overrides)
    checks = run_checks(
        recipe, surrogate(6000, 10), (lambda loader: Spoiled(loader, bug)) if bug else lambda loader: loader
    )
    return {check.name: check.passed for check in checks}


def test_all_checks_pass_on_a_sound_loader() -> None:
    got = verdicts(None)
    assert len(got) == 6
    assert all(got.values()), got


def test_the_files_are_decoded_anew_so_a_dataset_that_lies_about_them_is_caught() -> None:
    lying = replace(surrogate(), train_labels=np.roll(surrogate().train_labels, 1))
    use_threads(1)
    first = next(iter(run_checks(RECIPE, lying)))
    assert not first.passed
    assert "labels differ" in first.saw


@pytest.mark.parametrize("bug", [shifted, strangers, first_again], ids=lambda bug: bug.__name__)
def test_learning_itself_fails_on_bugs_that_cut_images_from_labels(bug: Spoil) -> None:
    assert not verdicts(bug)["real labels learn"]


def test_a_network_that_can_not_learn_is_caught_by_overfitting_and_learning() -> None:
    got = verdicts(None, "optimiser.rate=1e-9")
    assert not got["one batch overfitted"]
    assert not got["real labels learn"]
    assert got["batch round trip"]


def test_a_recipe_that_begins_slowly_is_given_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "optimiser.rate=0.0001"
    assert verdicts(None, slow)["real labels learn"]
    verdicts.cache_clear()
    monkeypatch.setattr("mlcore.check.PASSES", (1,))
    assert not verdicts(None, slow)["real labels learn"]
    verdicts.cache_clear()


def test_what_trains_the_recipe_is_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan in lanes that forgets to move the weights can't learn one batch, although the tape could."""
    use_threads(1)
    recipe = config.load("lenet5_mnist", ["optimiser.rate=0.02"])
    assert check_overfit(recipe, surrogate(), lambda loader: loader).passed
    monkeypatch.setattr(LanePlan, "update", lambda self, rate: None)
    assert not check_overfit(recipe, surrogate(), lambda loader: loader).passed


def test_labels_that_leak_into_images_are_caught_by_the_shuffled_control() -> None:
    """Shuffled labels must be chance; with the label painted into the held-out images too, they are not."""
    from mlcore.check import _short, check_shuffled

    images = surrogate(6000, 10).train_images.copy()
    images[:, 0, 0, :] = 0
    images[np.arange(len(images)), 0, 0, surrogate(6000, 10).train_labels] = 255
    leaking = replace(surrogate(6000, 10), train_images=images)

    class Unshuffled(Loader):
        def take(self, index: "np.typing.NDArray[np.int64]", windows: Windows | None = None) -> Batch:
            return replace(super().take(index, windows), labels=leaking.train_labels[index].astype(np.int64))

    check = check_shuffled(
        _short(RECIPE, leaking, shuffle=True),
        leaking,
        lambda sound: Unshuffled(sound.part, sound.batch, sound.normaliser, sound.rng),
    )
    assert not check.passed
