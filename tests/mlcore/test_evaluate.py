"""Evaluation: every image once, in order, with the errors counted right."""

import numpy as np
import pytest

from mlcore.data.images import Normaliser
from mlcore.data.views import BATCH, InMemory
from mlcore.errors import NotFinite
from mlcore.evaluate import confusion, error_pct, evaluate, likeliest, top5_error_pct
from mlcore.layers import Layer
from mlcore.rng import Rng
from mlcore.tensor import Tensor


class Brightest(Layer):
    """Says the number in the first pixel, by logits that peak there."""

    def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
        assert rng is None, "evaluation has no randomness"
        digits = np.rint(x.data[:, 0, 0, 0] * 255).astype(int)
        return Tensor(np.eye(10, dtype=np.float32)[digits])


AS_IS = Normaliser.scalar(0.0, 1.0)


def shown(digits: list[int], labels: "np.typing.NDArray[np.uint8] | None" = None) -> InMemory:
    return InMemory(images(digits), labels, AS_IS)


def images(digits: list[int]) -> "np.typing.NDArray[np.uint8]":
    made = np.zeros((len(digits), 1, 28, 28), np.uint8)
    made[:, 0, 0, 0] = digits
    return made


def test_predictions_keep_the_order_over_batches() -> None:
    digits = [i % 10 for i in range(2 * BATCH + 7)]
    seen = evaluate(Brightest(), shown(digits))
    assert seen.predictions.tolist() == digits
    assert seen.loss is seen.error_pct is None


def test_the_error_counts_what_is_wrong_and_the_loss_is_the_mean_over_images() -> None:
    labels = np.array([1, 2, 3, 4], np.uint8)
    seen = evaluate(Brightest(), shown([1, 2, 3, 0], labels))
    assert seen.error_pct == 25.0
    right, wrong = np.log(np.e + 9) - 1, np.log(np.e + 9)
    assert seen.loss == pytest.approx((3 * right + wrong) / 4, rel=1e-5)


def test_logits_that_are_no_numbers_are_an_error_not_a_prediction() -> None:
    class Broken(Brightest):
        def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
            return Tensor(super().__call__(x, rng).data * np.float32(np.nan))

    with pytest.raises(NotFinite, match="step 12"):
        evaluate(Broken(), shown([1]), step=12)


def test_the_confusion_matrix_has_truth_in_rows() -> None:
    counts = confusion(np.array([1, 1, 7]), np.array([1, 7, 7], np.uint8))
    assert counts[7, 1] == 1
    assert counts[1, 1] == counts[7, 7] == 1
    assert counts.sum() == 3
    assert error_pct(np.array([1, 1, 7]), np.array([1, 7, 7])) == pytest.approx(100 / 3)


def test_five_guesses_begin_with_the_first_and_fall() -> None:
    logits = np.random.default_rng(1).standard_normal((50, 30)).astype(np.float32)
    guesses = likeliest(logits)
    assert guesses.shape == (50, 5)
    assert (guesses[:, 0] == logits.argmax(axis=1)).all()
    for row, five in zip(logits, guesses, strict=True):
        assert list(five) == sorted(range(30), key=lambda c: (-row[c], c))[:5]


def test_of_equal_logits_the_first_classes_are_guessed() -> None:
    assert likeliest(np.zeros((1, 12), np.float32)).tolist() == [[0, 1, 2, 3, 4]]


def test_the_top_5_error_counts_images_without_their_label_among_five() -> None:
    guesses = np.array([[1, 2, 3, 4, 5], [6, 7, 8, 9, 0], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    assert top5_error_pct(guesses, np.array([5, 1, 0, 1], np.uint8)) == 50.0


def test_many_classes_have_a_top_5_and_ten_have_none() -> None:
    class Wide(Brightest):
        def __call__(self, x: Tensor, rng: Rng | None = None) -> Tensor:
            digits = np.rint(x.data[:, 0, 0, 0] * 255).astype(int)
            return Tensor(np.eye(12, dtype=np.float32)[digits])

    labels = np.array([2, 11, 3], np.uint8)
    seen = evaluate(Wide(), shown([1, 2, 3], labels))
    assert seen.top5 is not None
    assert seen.top5.tolist() == [[1, 0, 2, 3, 4], [2, 0, 1, 3, 4], [3, 0, 1, 2, 4]]
    assert seen.error_pct == seen.top5_error_pct * 2 == pytest.approx(200 / 3)  # type: ignore[operator]
    assert evaluate(Wide(), shown([1])).top5_error_pct is None
    assert evaluate(Brightest(), shown([1], labels[:1])).top5 is None
