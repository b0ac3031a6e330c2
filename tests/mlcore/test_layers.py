"""Layers and their initial weights."""

from __future__ import annotations

import numpy as np
import pytest

from mlcore import layers
from mlcore.errors import RecipeError, ShapeError
from mlcore.init import INITIALISERS, initialiser
from mlcore.layers import (
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    LocallyConnected2d,
    LocalResponseNorm,
    MapResponseNorm,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
    Tanh,
    convert,
)
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from tests.mlcore.helpers import assert_close, normal

RNG = Rng(1)

EVERY_LAYER = {
    "Linear": (Linear(12, 5, RNG), (12,)),
    "Conv2d": (Conv2d(4, 6, 3, RNG, stride=2, padding=1, groups=2), (4, 7, 9)),
    "LocallyConnected2d": (LocallyConnected2d((2, 7, 8), 3, 3, RNG, stride=2, padding=1), (2, 7, 8)),
    "MapResponseNorm": (MapResponseNorm(3, 1.0, 1e-2, 0.75), (5, 3, 4)),
    "MaxPool2d": (MaxPool2d(3, 2, 1), (2, 7, 8)),
    "AvgPool2d": (AvgPool2d(2), (2, 7, 8)),
    "GlobalAvgPool": (GlobalAvgPool(), (2, 7, 8)),
    "BatchNorm2d": (BatchNorm2d(5), (5, 3, 4)),
    "LocalResponseNorm": (LocalResponseNorm(3, 2.0, 1e-2, 0.75), (5, 3, 4)),
    "ReLU": (ReLU(), (3, 4)),
    "Tanh": (Tanh(), (3, 4)),
    "Dropout": (Dropout(0.5), (3, 4)),
    "Flatten": (Flatten(), (3, 4, 5)),
    "Residual": (Residual(Sequential([("a", Conv2d(3, 3, 3, RNG, padding=1))])), (3, 4, 5)),
    "Sequential": (Sequential([("a", Flatten()), ("b", Linear(12, 3, RNG))]), (3, 4)),
}


def test_the_table_above_has_every_layer() -> None:
    kinds = {k for k, v in vars(layers).items() if isinstance(v, type) and issubclass(v, layers.Layer)}
    assert set(EVERY_LAYER) == {name for name in kinds if name != "Layer" and not name.startswith("_")}


@pytest.mark.parametrize("name", EVERY_LAYER)
def test_the_announced_shape_is_the_shape_that_comes_out(name: str) -> None:
    layer, shape = EVERY_LAYER[name]
    assert layer(Tensor(normal((2, *shape))), Rng(3)).shape == (2, *layer.output_shape(shape))


def test_a_map_that_shrinks_to_nothing_is_an_error_when_the_model_is_built() -> None:
    with pytest.raises(ShapeError, match=r"layer 'S4'.*feature map of 0x0"):
        Sequential([("C1", Conv2d(1, 2, 3, RNG)), ("S2", MaxPool2d(2)), ("S4", MaxPool2d(4))], (1, 6, 6))


def test_a_shape_that_does_not_fit_names_layer_shape_and_wish() -> None:
    with pytest.raises(ShapeError) as caught:
        Sequential([("flatten", Flatten()), ("fc", Linear(100, 10, RNG))], (1, 9, 9))
    assert str(caught.value) == "layer 'fc': Linear got [81]; it wants [100]"


def test_a_forgotten_flatten_is_suggested() -> None:
    with pytest.raises(ShapeError, match="put a Flatten before it"):
        Sequential([("fc", Linear(81, 10, RNG))], (1, 9, 9))


def test_a_wrong_batch_names_the_layer_at_run_time() -> None:
    model = Sequential([("C1", Conv2d(1, 2, 3, RNG))])
    with pytest.raises(ShapeError, match="C1: conv2d got"):
        model(Tensor(normal((2, 3, 8, 8))))


def test_layers_of_one_name_are_refused() -> None:
    with pytest.raises(RecipeError, match="share a name"):
        Sequential([("a", ReLU()), ("a", ReLU())])


@pytest.mark.parametrize(("outputs", "groups"), [(6, 4), (5, 2), (6, 0)])
def test_groups_that_do_not_divide_are_refused(outputs: int, groups: int) -> None:
    with pytest.raises(ShapeError, match="groups"):
        Conv2d(4, outputs, 3, RNG, groups=groups)


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_an_impossible_dropout_is_refused(probability: float) -> None:
    with pytest.raises(RecipeError, match=r"\[0, 1\)"):
        Dropout(probability)


def test_a_layer_without_outputs_is_refused() -> None:
    with pytest.raises(ShapeError, match="nothing in it"):
        Linear(3, 0, RNG)


def test_parameters_have_dotted_names_in_forward_order() -> None:
    inner = Sequential([("fc", Linear(4, 3, RNG))])
    model = Sequential([("C1", Conv2d(1, 2, 3, RNG)), ("block", inner)])
    assert list(model.parameters()) == ["C1.weight", "C1.bias", "block.fc.weight", "block.fc.bias"]
    assert [tensor.name for tensor in model.parameters().values()] == list(model.parameters())


def _projected() -> Sequential:
    body = Sequential([("conv", Conv2d(2, 4, 3, RNG, stride=2, padding=1, biases=None)), ("norm", BatchNorm2d(4))])
    return Sequential([("block", Residual(body, Sequential([("conv", Conv2d(2, 4, 1, RNG, stride=2))])))])


def test_the_names_of_layers_in_layers_are_unique_and_dotted() -> None:
    model = _projected()
    assert list(model.parameters()) == [
        "block.body.conv.weight", "block.body.norm.weight", "block.body.norm.bias",
        "block.shortcut.conv.weight", "block.shortcut.conv.bias",
    ]  # fmt: skip
    assert list(model.buffers()) == ["block.body.norm.running_mean", "block.body.norm.running_variance"]
    assert [tensor.name for tensor in model.state().values()] == list(model.state())


def test_a_residual_is_body_plus_shortcut() -> None:
    x, body = Tensor(normal((2, 3, 4, 5))), Sequential([("conv", Conv2d(3, 3, 3, RNG, padding=1))])
    assert (Residual(body)(x).data == x.data + body(x).data).all()
    model = _projected()
    block = model.layers["block"]
    assert isinstance(block, Residual)
    x = Tensor(normal((2, 2, 6, 6)))
    assert (model(x).data == block.body(x).data + block.shortcut(x).data).all()


def test_an_error_inside_a_residual_names_the_layer_by_its_dotted_name() -> None:
    with pytest.raises(ShapeError, match=r"^layer 'block\.body\.conv': Conv2d got \[3, 8, 8\]"):
        _projected().output_shape((3, 8, 8))


def test_sides_of_a_residual_that_do_not_match_are_refused_when_the_model_is_built() -> None:
    wider = Residual(Sequential([("conv", Conv2d(2, 4, 3, RNG, padding=1))]))
    with pytest.raises(ShapeError, match=r"layer 'block': .*\[4, 8, 8\].*\[2, 8, 8\]; give a shortcut"):
        Sequential([("block", wider)], (2, 8, 8))


def test_a_residual_counts_the_multiplications_of_both_sides() -> None:
    assert _projected().macs((2, 6, 6)) == 4 * 9 * (2 * 9) + 4 * 9 * 2


def test_a_locally_connected_layer_with_equal_weights_everywhere_is_a_convolution() -> None:
    layer, conv, x = LocallyConnected2d((2, 6, 5), 3, 3, RNG), Conv2d(2, 3, 3, RNG), Tensor(normal((4, 2, 6, 5)))
    layer.weight.data[:] = conv.weight.data
    assert_close(layer(x).data, conv(x).data)
    assert layer.macs((2, 6, 5)) == conv.macs((2, 6, 5))


def test_a_place_of_a_locally_connected_layer_sees_its_own_weights_only() -> None:
    layer, x = LocallyConnected2d((1, 4, 4), 2, 3, RNG), Tensor(normal((1, 1, 4, 4)))
    before = layer(x).data
    layer.weight.data[1, 0] += 1
    assert ((layer(x).data != before)[0] == [[[False, False], [True, False]]] * 2).all()


def test_a_locally_connected_layer_takes_the_map_it_was_made_for_only() -> None:
    with pytest.raises(ShapeError, match=r"made for \[2, 7, 8\]"):
        EVERY_LAYER["LocallyConnected2d"][0].output_shape((2, 8, 8))


def test_response_normalisation_within_maps_keeps_maps_apart() -> None:
    x = np.zeros((1, 2, 5, 5), np.float32)
    x[0, 0, 2, 2], x[0, 0, 2, 3], x[0, 1, 2, 2] = 3, 1, 1
    out = MapResponseNorm(3, 1.0, 9.0, 1.0)(Tensor(x)).data
    assert out[0, 0, 2, 2:4] == pytest.approx([3 / 11, 1 / 11])
    assert out[0, 1, 2, 2] == pytest.approx(1 / 2)


def test_batch_normalisation_normalises_each_channel_in_training() -> None:
    out = BatchNorm2d(3)(Tensor(normal((8, 3, 5, 4)) * 7 + 3), Rng(0)).data
    assert out.mean(axis=(0, 2, 3)) == pytest.approx(0, abs=1e-6)
    assert out.std(axis=(0, 2, 3)) == pytest.approx(1, abs=1e-6)


def test_training_moves_the_running_statistics_a_tenth_of_the_way_and_evaluation_uses_them() -> None:
    layer, x = BatchNorm2d(3), normal((8, 3, 5, 4)) * 7 + 3
    layer(Tensor(x), Rng(0))
    mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3), ddof=1)
    assert layer.running_mean.data == pytest.approx(0.1 * mean, rel=1e-5)
    assert layer.running_variance.data == pytest.approx(0.9 + 0.1 * variance, rel=1e-5)
    kept = layer.running_mean.data.copy()
    once = layer(Tensor(x[:1])).data
    assert (layer.running_mean.data == kept).all()
    assert (once[0] == layer(Tensor(x)).data[0]).all()


def test_one_value_per_channel_has_no_variance_to_train_with() -> None:
    with pytest.raises(ShapeError, match="at least two values"):
        BatchNorm2d(3)(Tensor(normal((1, 3, 1, 1))), Rng(0))


@pytest.mark.parametrize(("epsilon", "momentum"), [(0.0, 0.1), (1e-5, 1.5), (float("nan"), 0.1)])
def test_an_impossible_batch_normalisation_is_refused(epsilon: float, momentum: float) -> None:
    with pytest.raises(RecipeError, match="epsilon above 0"):
        BatchNorm2d(3, epsilon, momentum)


def test_a_convolution_without_biases_has_weights_only() -> None:
    layer, x = Conv2d(2, 3, 3, RNG, biases=None), Tensor(normal((2, 2, 5, 5)))
    assert list(layer.parameters()) == ["weight"]
    other = Conv2d(2, 3, 3, RNG)
    assert (layer(x).data == other(x).data).all()


def test_dropout_is_the_identity_in_evaluation() -> None:
    x = Tensor(normal((4, 50)))
    model = Sequential([("drop", Dropout(0.5))])
    assert (model(x).data == x.data).all()
    assert (model(x, Rng(1)).data != x.data).any()


def test_two_dropouts_of_one_step_draw_different_masks() -> None:
    x = Tensor(np.ones((1, 400), np.float32))
    once = Sequential([("a", Dropout(0.5))])(x, Rng(1)).data
    twice = Sequential([("a", Dropout(0.5)), ("b", Dropout(0.5))])(x, Rng(1)).data
    assert 0.15 < (twice > 0).mean() < 0.35
    assert not (twice[once == 0]).any()


def test_a_model_converts_to_float64() -> None:
    model = Sequential([("fc", Linear(4, 3, RNG))])
    convert(model, np.float64)
    assert model(Tensor(normal((2, 4), np.float64))).dtype == np.float64


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("he", np.sqrt(2 / 50)),
        ("glorot", np.sqrt(2 / 250)),
        ("lecun", 2.4 / 50 / np.sqrt(3)),
        ("uniform", 1 / np.sqrt(150)),
        ("normal", 0.01),
        ("zeros", 0),
    ],
)
def test_an_initialiser_has_its_papers_spread(name: str, deviation: float) -> None:
    values = INITIALISERS[name]((200, 50), 50, 200, np.random.default_rng(0))
    assert values.mean() == pytest.approx(0, abs=4 * deviation / 100)
    assert values.std() == pytest.approx(deviation, rel=0.03)


def test_ones_are_ones() -> None:
    assert (INITIALISERS["ones"]((3,), 1, 1, np.random.default_rng(0)) == 1).all()


def test_an_unknown_initialiser_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'glorot'"):
        initialiser("glorott")


def test_a_weight_depends_on_its_own_name_only() -> None:
    alone = Linear(4, 3, RNG.child("fc"))
    Conv2d(1, 2, 3, RNG.child("C1"))
    assert (Linear(4, 3, RNG.child("fc")).weight.data == alone.weight.data).all()
    assert (Linear(4, 3, RNG.child("other")).weight.data != alone.weight.data).any()
