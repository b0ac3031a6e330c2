"""The networks by name, their options, and what the summary says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlcore import init
from mlcore.errors import RecipeError, ShapeError
from mlcore.layers import Dropout, Linear, LocalResponseNorm, Sequential
from mlcore.models import INPUTS, MODELS, build
from mlcore.models.cuda_convnet import DEVIATIONS
from mlcore.ops import cross_entropy
from mlcore.optim import SGD
from mlcore.rng import Rng
from mlcore.summary import summarise
from mlcore.tensor import Tensor
from tests.mlcore.helpers import Array, needs_compiler, normal

# name -> parameters: C1 156, C3 2,416, C5 48,120, F6 10,164, output 850
LENET5_PARAMETERS = 156 + 2_416 + 48_120 + 10_164 + 850


def test_lenet5_has_61706_parameters() -> None:
    rows = {row.layer: row.parameters for row in summarise(build("lenet5", {}, Rng(0)), (1, 28, 28)).rows}
    assert {k: v for k, v in rows.items() if v} == {
        "C1": 156,
        "C3": 2_416,
        "C5": 48_120,
        "F6": 10_164,
        "output": 850,
    }
    assert sum(rows.values()) == LENET5_PARAMETERS == 61_706


def test_lenet5_has_the_papers_maps() -> None:
    rows = {row.layer: row.output_shape for row in summarise(build("lenet5", {}, Rng(0)), (1, 28, 28)).rows}
    wanted = {"C1": (6, 28, 28), "S2": (6, 14, 14), "C3": (16, 10, 10), "S4": (16, 5, 5), "C5": (120,), "F6": (84,)}
    assert {name: rows[name] for name in wanted} == wanted


def test_the_summary_counts_multiplications_and_memory() -> None:
    summary = summarise(build("lenet5", {}, Rng(0)), (1, 28, 28), batch=64)
    rows = {row.layer: row for row in summary.rows}
    assert rows["C1"].macs == 28 * 28 * 6 * 25
    assert rows["C3"].macs == 10 * 10 * 16 * 6 * 25
    assert summary.macs == 416_520
    assert rows["C1"].activation_bytes == 64 * 6 * 28 * 28 * 4
    assert summary.activation_bytes == sum(row.activation_bytes for row in summary.rows)


def test_the_mlp_has_the_layers_asked_for() -> None:
    model = build("mlp", {"hidden": [30, 20, 10], "dropout": 0.5}, Rng(0))
    shapes = [row.output_shape for row in summarise(model, (1, 28, 28)).rows if row.kind == "Linear"]
    assert shapes == [(30,), (20,), (10,), (10,)]
    assert sum(row.kind == "Dropout" for row in summarise(model, (1, 28, 28)).rows) == 3


def test_the_mlp_of_the_paper_has_266610_parameters() -> None:
    assert summarise(build("mlp", {}, Rng(0)), (1, 28, 28)).parameters == 266_610


# Krizhevsky et al. 2012, fig. 2 and sec. 3.5; ReLU behind each layer with weights but the last (3.1), normalisation
# behind the first two (3.3), overlapping pooling behind those and the fifth (3.4), dropout on the two hidden ones (4.2)
ALEXNET = [
    *(
        ("Conv2d", (96, 55, 55)),
        ("ReLU", (96, 55, 55)),
        ("LocalResponseNorm", (96, 55, 55)),
        ("MaxPool2d", (96, 27, 27)),
    ),
    *(("Conv2d", (256, 27, 27)), ("ReLU", (256, 27, 27)), ("LocalResponseNorm", (256, 27, 27))),
    ("MaxPool2d", (256, 13, 13)),
    *[("Conv2d", (384, 13, 13)), ("ReLU", (384, 13, 13))] * 2,
    *(("Conv2d", (256, 13, 13)), ("ReLU", (256, 13, 13)), ("MaxPool2d", (256, 6, 6)), ("Flatten", (9216,))),
    *[("Linear", (4096,)), ("ReLU", (4096,)), ("Dropout", (4096,))] * 2,
    ("Linear", (1000,)),
]


@needs_compiler
def test_alexnet_has_exactly_the_papers_60965224_parameters() -> None:
    model = build("alexnet", {}, Rng(0))
    summary = summarise(model, (3, 227, 227), batch=128)
    parameters = {row.layer: row.parameters for row in summary.rows if row.parameters}
    assert list(parameters.values()) == [34_944, 307_456, 885_120, 663_936, 442_624, 37_752_832, 16_781_312, 4_097_000]
    assert summary.parameters == 60_965_224
    assert summary.macs == 724_406_816
    assert [(row.kind, row.output_shape) for row in summary.rows] == ALEXNET
    assert [layer.probability for layer in model.layers.values() if isinstance(layer, Dropout)] == [0.5, 0.5]
    biases = {name: float(tensor.data[0]) for name, tensor in model.parameters().items() if name.endswith("bias")}
    assert [name for name, value in biases.items() if value == 1.0] == [
        "conv2.bias", "conv4.bias", "conv5.bias", "fc6.bias", "fc7.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(("alpha", "factor"), [("paper", 1e-4), ("divided", 2e-5)])
def test_alexnet_knows_both_meanings_of_alpha(alpha: str, factor: float) -> None:
    model = build("alexnet", {"alpha": alpha, "hidden": 8}, Rng(0), (3, 67, 67), 4)
    norms = [layer for layer in model.layers.values() if isinstance(layer, LocalResponseNorm)]
    assert [(norm.size, norm.k, norm.beta) for norm in norms] == [(5, 2.0, 0.75)] * 2
    assert [norm.factor for norm in norms] == pytest.approx([factor] * 2)


def test_the_small_alexnet_has_the_large_ones_layers_on_64_pixels() -> None:
    summary = summarise(build("alexnet_small", {}, Rng(0)), *INPUTS["alexnet_small"])
    large = build("alexnet", {"hidden": 8}, Rng(0))
    assert [row.layer for row in summary.rows] == list(large.layers)
    maps = {row.layer: row.output_shape for row in summary.rows}
    wanted = {"conv1": (48, 31, 31), "pool1": (48, 15, 15), "pool2": (128, 7, 7), "pool5": (128, 3, 3), "fc8": (200,)}
    assert {name: maps[name] for name in wanted} == wanted
    assert summary.parameters == 3_648 + 76_928 + 221_376 + 166_080 + 110_720 + 1_180_672 + 1_049_600 + 205_000
    for classes in (10, 1000):
        assert build("alexnet_small", {"hidden": 8}, Rng(0), (3, 64, 64), classes).output_shape((3, 64, 64)) == (
            classes,
        )


CONVS_64 = (3 * 25 * 64 + 64) + (64 * 25 * 64 + 64)


@pytest.mark.parametrize(
    ("net", "parameters", "kinds"),
    [
        ("18pct", 2_432 + 25_632 + 51_264 + 10_250, {"MapResponseNorm": 2, "AvgPool2d": 2, "MaxPool2d": 1}),
        (
            "13pct",
            CONVS_64 + 64 * 32 * (64 * 9 + 1) + 64 * 32 * (32 * 9 + 1) + 20_490,
            {"LocallyConnected2d": 2, "MaxPool2d": 2},
        ),
        (
            "11pct",
            CONVS_64 + 64 * 64 * (64 * 9 + 1) + 64 * 32 * (64 * 9 + 1) + 20_490,
            {"LocallyConnected2d": 2, "LocalResponseNorm": 2, "MaxPool2d": 2},
        ),
    ],
)
def test_the_cifar_networks_have_their_layers_and_parameters(net: str, parameters: int, kinds: dict[str, int]) -> None:
    summary = summarise(build("cuda_convnet", {"net": net}, Rng(0)), (3, 32, 32))
    assert summary.parameters == parameters
    seen = [row.kind for row in summary.rows]
    assert {kind: seen.count(kind) for kind in kinds} == kinds


@pytest.mark.parametrize(("net", "norms"), [("11pct", 2), ("18pct", 2), ("13pct", 0), ("80s", 0)])
def test_a_cifar_network_without_normalisation_lacks_that_and_nothing_else(net: str, norms: int) -> None:
    whole, without = (build("cuda_convnet", {"net": net, "norm": norm}, Rng(0)) for norm in (True, False))
    rest = [(row.layer, row.output_shape) for row in summarise(whole, (3, 32, 32)).rows if "Norm" not in row.kind]
    assert [(row.layer, row.output_shape) for row in summarise(without, (3, 32, 32)).rows] == rest
    assert len(whole.layers) - len(without.layers) == norms
    for name, tensor in whole.parameters().items():
        np.testing.assert_array_equal(tensor.data, without.parameters()[name].data)


@pytest.mark.parametrize("net", DEVIATIONS)
def test_the_cifar_networks_begin_as_published(net: str) -> None:
    parameters = build("cuda_convnet", {"net": net, "weights": "published"}, Rng(0)).parameters()
    assert {f"{layer}.weight" for layer in DEVIATIONS[net]} == {name for name in parameters if name.endswith("weight")}
    for layer, deviation in DEVIATIONS[net].items():
        assert float(parameters[f"{layer}.weight"].data.std()) == pytest.approx(deviation, rel=0.1)
        assert not parameters[f"{layer}.bias"].data.any()


def test_the_11_percent_network_takes_crops_of_24_pixels() -> None:
    model = build("cuda_convnet", {"net": "11pct"}, Rng(0), (3, 24, 24))
    assert model(Tensor(normal((2, 3, 24, 24)))).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mnist_cnn", 320 + 18_496 + 1_179_776 + 1_290),
        ("cuda_convnet", 2_432 + 25_632 + 51_264 + 65_600 + 650),
        ("fig1", 89_578),
    ],
)
def test_the_small_networks_have_their_parameters(name: str, parameters: int) -> None:
    assert summarise(build(name, {}, Rng(0)), INPUTS[name][0]).parameters == parameters


def test_the_small_residual_network_is_the_papers_with_projections() -> None:
    summary = summarise(build("resnet_small", {}, Rng(0)), (3, 32, 32))
    first, stages, output = 432 + 32, [4_672, 13_952 + 576, 55_552 + 2_176], 650
    assert summary.parameters == first + sum(stages) + output == 78_042
    maps = {row.layer: row.output_shape for row in summary.rows if row.kind == "Residual"}
    assert list(maps.values()) == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert summarise(build("resnet_small", {"n": 3}, Rng(0)), (3, 32, 32)).parameters == 272_474


def test_the_summary_looks_into_layers_of_layers_and_counts_nothing_twice() -> None:
    model = build("resnet_small", {}, Rng(0))
    rows = {row.layer: row for row in summarise(model, (3, 32, 32)).rows}
    assert rows["stage2_block1.body.conv1"].parameters == 16 * 32 * 9
    assert rows["stage2_block1.shortcut.projection"].macs == 16 * 32 * 16 * 16
    assert (rows["stage2_block1"].parameters, rows["stage2_block1"].macs) == (0, 0)
    assert sum(row.macs for row in rows.values()) == model.macs((3, 32, 32))


@needs_compiler
@pytest.mark.parametrize("name", ["lenet5", "mlp"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_model_learns_a_batch_by_heart(name: str, activation: str) -> None:
    model = build(name, {"activation": activation}, Rng(3))
    optimiser = SGD(model.parameters(), momentum=0.9)
    x, labels = Tensor(normal((16, 1, 28, 28))), np.arange(16) % 10
    losses = []
    for step in range(40):
        optimiser.zero_grad()
        loss = cross_entropy(model(x, Rng(0).child(step)), labels)
        loss.backward()
        optimiser.step(0.02)
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    options = {"hidden": 8} if name.startswith("alexnet") else {}
    one, same, other = (build(name, options, Rng(seed)).parameters() for seed in (1, 1, 2))
    assert all((one[k].data == same[k].data).all() for k in one)
    assert any((one[k].data != other[k].data).any() for k in one)


def test_average_pooling_and_tanh_are_lenet5_options() -> None:
    model = build("lenet5", {"pool": "avg", "activation": "tanh"}, Rng(0))
    kinds = {row.layer: row.kind for row in summarise(model, (1, 28, 28)).rows}
    assert (kinds["S2"], kinds["C1_act"]) == ("AvgPool2d", "Tanh")


def test_an_image_too_small_for_lenet5_is_refused_by_layer() -> None:
    with pytest.raises(ShapeError, match="layer 'C3'"):
        build("lenet5", {}, Rng(0), (1, 8, 8))


def test_fig_1s_networks_differ_in_their_activation_only() -> None:
    relu, tanh = (summarise(build("fig1", {"activation": name}, Rng(0)), (3, 32, 32)).rows for name in ("relu", "tanh"))
    assert [row.kind for row in relu].count("ReLU") == [row.kind for row in tanh].count("Tanh") == 3
    shapes, others = ([(row.layer, row.output_shape, row.parameters) for row in rows] for rows in (relu, tanh))
    assert shapes == others


def test_fig_1s_weights_all_begin_as_wide_as_asked() -> None:
    model = build("fig1", {"weights": "normal:0.01"}, Rng(0), (3, 32, 32))
    widths = {name: float(np.std(value.data)) for name, value in model.parameters().items() if value.data.ndim > 1}
    assert len(widths) == 4
    assert list(widths.values()) == pytest.approx([0.01] * 4, rel=0.05)


def test_other_images_and_classes_fit_lenet5() -> None:
    model = build("lenet5", {}, Rng(0), (3, 32, 32), 7)
    assert model(Tensor(normal((2, 3, 32, 32)))).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet", {}, "unknown model 'lenet'; did you mean 'lenet5'"),
        ("lenet5", {"activaton": "relu"}, "did you mean 'activation'? known: activation, pool"),
        ("lenet5", {"activation": "rleu"}, "did you mean 'relu'"),
        ("lenet5", {"pool": 3}, "known: max, avg"),
        ("mlp", {"hidden": 300}, "write it in brackets"),
        ("mlp", {"hidden": [300, "x"]}, "model.options.hidden[1]"),
        ("mlp", {"hidden": [0]}, "at least 1"),
        ("mlp", {"dropout": "half"}, "write a number"),
        ("mlp", {"dropout": 1.5}, "[0, 1)"),
        ("mlp", {"dropout": True}, "write a number"),
        ("cuda_convnet", {"net": "11"}, "did you mean '11pct'"),
        ("cuda_convnet", {"weights": "normal:wide"}, "'wide' is no standard deviation; write for example normal:0.01"),
        ("cuda_convnet", {"weights": "publishd"}, "unknown initialiser 'publishd'"),
        ("resnet_small", {"n": 0}, "give at least 1"),
    ],
)
def test_a_bad_option_is_refused_with_what_is_known(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        build(name, options, Rng(0))
    assert message in str(caught.value)


def test_weights_drawn_in_pieces_and_side_by_side_are_the_weights_of_their_streams() -> None:
    def make() -> list[Array]:
        return [Linear(1100, outputs, Rng(3).child(outputs)).weight.data for outputs in (1000, 7)]

    with init.together():
        many = make()
        assert not many[0].any()
    for weight, outputs, alone in zip(many, (1000, 7), make(), strict=True):
        stream = Rng(3).child(outputs, "weight").generator()
        size, next_stream = outputs * 1100, np.random.Generator(stream.bit_generator.jumped())  # type: ignore[attr-defined]
        flat = [init.he((init.STREAM,), 1100, outputs, each) for each in (stream, next_stream)]
        want = np.concatenate(flat)[:size].astype(np.float32).reshape(outputs, 1100)
        assert np.array_equal(weight, want)
        assert np.array_equal(alone, want)


def test_a_network_that_is_not_really_wanted_is_blank() -> None:
    with init.together(really=False):
        model = build("mlp", {}, Rng(1))
    assert not any(tensor.data.any() for tensor in model.parameters().values())


@pytest.mark.parametrize("name", ["alexnet", "alexnet_small"])
def test_alexnet_drops_what_its_two_hidden_layers_give(name: str) -> None:
    """Sec. 4.2, and the author's own files: behind each of the two, and nothing of the last pooling."""
    side = 227 if name == "alexnet" else 64
    with init.together(really=False):
        model = build(name, {"hidden": 16}, Rng(1), (3, side, side), 10)
    hidden = ["fc6", "fc6_act", "fc6_drop", "fc7", "fc7_act", "fc7_drop"]
    assert list(model.layers)[-9:] == ["pool5", "flatten", *hidden, "fc8"]


def test_alexnet_without_a_part_has_the_same_maps_and_parameters() -> None:
    def built(**options: Any) -> Sequential:
        return build("alexnet_small", {"hidden": 16, **options}, Rng(1), (3, 64, 64), 10)

    def sizes(model: Sequential) -> dict[str, tuple[int, ...]]:
        return {name: out for name, _, _, out in model.unfolded("", (3, 64, 64)) if not name.startswith("norm")}

    whole, bare, apart = built(), built(norm=False), built(pool="apart")
    assert [name for name in whole.layers if name not in bare.layers] == ["norm1", "norm2"]
    assert sizes(bare) == sizes(whole)
    assert {name: p.shape for name, p in bare.parameters().items()} == {
        name: p.shape for name, p in whole.parameters().items()
    }
    assert sizes(apart) == sizes(whole)
    assert {name: p.shape for name, p in apart.parameters().items()} == {
        name: p.shape for name, p in whole.parameters().items()
    }
    assert (apart.layers["pool1"].size, apart.layers["pool1"].stride) == (2, 2)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="pool"):
        built(pool="none")
