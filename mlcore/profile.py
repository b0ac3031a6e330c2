"""Where a training step's time goes: per layer and direction, on the engine that training would use.

Each moment belongs to the innermost thing that runs: a stage or layer, and inside of it the work on its weights.
Rates are of the least there is to do: multiplications of the layer, and each array that is read or written once.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlcore import autograd, models, ops
from mlcore.engines import planned
from mlcore.kernels import conv, gemm, panels, plane_local, plane_weights, planes, winograd
from mlcore.kernels.peak import measured_peaks
from mlcore.kernels.precision import PRECISIONS
from mlcore.lanes.plan import LanePlan
from mlcore.layers import Residual, Sequential
from mlcore.optim import Optimiser
from mlcore.planned.plan import Plan
from mlcore.profile_lanes import FORWARD, INPUT, UPDATE, WEIGHTS, Key, seconds_by_part
from mlcore.rng import Rng
from mlcore.tensor import Tensor
from mlcore.warm import Wanted

DIRECTIONS = (FORWARD, INPUT, WEIGHTS, UPDATE)
REST = "(input, loss)"
BYTES = 4  # of the weights that are moved, their gradients and what the optimiser remembers, in any precision
MOVED = {"sgd": 5, "adam": 7}  # arrays of an update: weights and what is remembered of them in and out, gradients in
NOTHING_S = 5e-6  # what a call costs that has nothing to do

# What is done for the gradients of weights, wherever it is called: a linear layer on a plan makes them in its update.
FOR_WEIGHTS = (
    (plane_weights, "weight_gradient"),
    (winograd, "weight_gradient"),
    (plane_local, "weight_gradient"),
    (planes, "relu_and_bias_gradient"),
    (panels, "update"),
    (conv, "conv2d_grad_weight"),
    (gemm, "linear_grad_weight"),
)

ENGINES: dict[type, str] = {Plan: "planes", LanePlan: "lanes", type(None): "the tape"}


class Clock:
    """Seconds by key; an inner key's time is not the outer one's."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[Key, float] = defaultdict(float)
        self.clock, self.since, self.open = clock, clock(), [(REST, FORWARD)]

    @contextlib.contextmanager
    def at(self, layer: str | None, direction: str) -> Iterator[None]:
        """Inside, time belongs to this direction of this layer; None: of the layer around."""
        self._charge()
        self.open.append((layer or self.open[-1][0], direction))
        try:
            yield
        finally:
            self._charge()
            self.open.pop()

    def take(self) -> dict[Key, float]:
        """What was counted since the last time."""
        self._charge()
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    def _charge(self) -> None:
        now = self.clock()
        self.seconds[self.open[-1]] += now - self.since
        self.since = now


def profile(wanted: Wanted, threads: int, steps: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Medians over `steps` steps after two that warm up, as a document."""
    tell("measuring the machine's peak")
    peaks = measured_peaks(threads)
    model = models.build(wanted.model, wanted.options, Rng(1), wanted.input_shape, wanted.classes)
    optimiser = wanted.optimiser_of(model)
    engine = planned(model, optimiser, wanted.batch, wanted.input_shape, wanted.precision)
    batch = _batch(wanted)
    if isinstance(engine, LanePlan):
        names, (seen, whole) = list(model.layers), _in_lanes(engine, batch, steps, tell)
    else:
        seen, names = _by_clock(model, optimiser, engine, batch, steps, tell)
        whole = [sum(one.values()) for one in seen]
    medians = {key: statistics.median(one.get(key, 0.0) for one in seen) for key in seen[-1]}
    return {
        "schema": "mlcore.profile/1",
        "model": wanted.model,
        "batch": wanted.batch,
        "threads": threads,
        "engine": ENGINES[type(engine)],
        "peak_gflops": peaks,
        "step_ms": 1e3 * statistics.median(whole),
        "rows": _rows(medians, _least(model, names, wanted), peaks.get(wanted.precision)),
    }


def _by_clock(
    model: Sequential, optimiser: Optimiser, engine: Plan | None, batch: Any, steps: int, tell: Callable[[str], None]
) -> tuple[list[dict[Key, float]], list[str]]:
    """Seconds of each step's parts, after two steps that warm up, and the names of the parts."""
    clock = Clock()
    with _watched(clock):
        step, names = _plan(engine, clock) if engine else _tape(model, optimiser, clock)
        seen = []
        for number in range(steps + 2):
            tell(f"step {number + 1} of {steps + 2}")
            clock.take()
            step(number)(*batch)
            seen.append(clock.take())
    return seen[2:], names


def _in_lanes(
    plan: LanePlan, batch: Any, steps: int, tell: Callable[[str], None]
) -> tuple[list[dict[Key, float]], list[float]]:
    """Seconds of the parts, each run by itself, and of whole steps, in which they run group by group."""
    (images, labels), seen, whole = batch, [], []
    for number in range(steps + 2):
        tell(f"step {number + 1} of {steps + 2}")
        began = time.perf_counter()
        plan.step(images, labels, 0.0, Rng(number))
        whole.append(time.perf_counter() - began)
        seen.append(seconds_by_part(plan, images, labels, (REST, FORWARD)))
    return seen[2:], whole[2:]


def _batch(wanted: Wanted) -> tuple[Any, Any]:
    images = Rng(1).child("images").generator().standard_normal((wanted.batch, *wanted.input_shape), np.float32)
    return images, np.arange(wanted.batch) % wanted.classes


@contextlib.contextmanager
def _watched(clock: Clock) -> Iterator[None]:
    """Inside, work for the gradients of weights is timed apart, and the tape's rules by their layers."""
    before = [(module, name, getattr(module, name)) for module, name in FOR_WEIGHTS]
    rules = dict(autograd.RULES)

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with clock.at(None, WEIGHTS):
                return function(*arguments)

        return call

    def timed_rule(rule: autograd.Rule) -> autograd.Rule:
        def call(node: autograd.Node, grad: Any) -> autograd.Gradients:
            with clock.at(node.layer or REST, INPUT if node.layer else FORWARD):
                return rule(node, grad)

        return call

    try:
        for module, name, function in before:
            setattr(module, name, timed(function))
        autograd.RULES.update({op: timed_rule(rule) for op, rule in rules.items()})
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
        autograd.RULES.update(rules)


class _TimedStage:
    """A stage of a plan whose ways are timed; all else is the stage's own."""

    def __init__(self, stage: Any, clock: Clock) -> None:
        self.stage, self.clock = stage, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)

    def forward(self, *arguments: Any) -> None:
        with self.clock.at(self.stage.name, FORWARD):
            self.stage.forward(*arguments)

    def backward(self, *arguments: Any) -> None:
        has_input = getattr(self.stage, "x_grad", self) is not None
        with self.clock.at(self.stage.name, INPUT if has_input else WEIGHTS):
            self.stage.backward(*arguments)

    def update(self, *arguments: Any) -> None:
        with self.clock.at(self.stage.name, UPDATE):
            self.stage.update(*arguments)


def _plan(engine: Plan, clock: Clock) -> tuple[Callable[[int], Callable[..., Any]], list[str]]:
    """The steps of a plan, and the layers that its stages are named after."""
    engine.stages = [_TimedStage(stage, clock) for stage in engine.stages]
    return lambda number: lambda x, labels: engine.step(x, labels, 0.0, Rng(number)), [s.name for s in engine.stages]


class _TimedLayer:
    """A layer of the tape whose way forward is timed."""

    def __init__(self, name: str, layer: Any, clock: Clock) -> None:
        self.name, self.layer, self.clock = name, layer, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def __call__(self, *arguments: Any) -> Any:
        with self.clock.at(self.name, FORWARD):
            return self.layer(*arguments)


def _tape(
    model: Sequential, optimiser: Optimiser, clock: Clock
) -> tuple[Callable[[int], Callable[..., Any]], list[str]]:
    """The steps of the tape, and the names of the layers."""
    layers: list[Any] = [(name, _TimedLayer(name, layer, clock)) for name, layer in model.layers.items()]
    timed = Sequential(layers)

    def step(number: int, x: Any, labels: Any) -> None:
        optimiser.zero_grad()
        ops.cross_entropy(timed(Tensor(x), Rng(number)), labels).backward()
        with clock.at("(optimiser)", UPDATE):
            optimiser.step(0.0)

    return lambda number: lambda x, labels: step(number, x, labels), list(model.layers)


def _least(model: Sequential, names: Sequence[str], wanted: Wanted) -> dict[Key, tuple[float, float]]:
    """(flops, bytes) that each direction of a part takes at least; a part reaches to where the next one begins."""
    shapes = {name: (layer, got) for name, layer, got, _ in model.trace(wanted.input_shape)}
    known = [name for name in names if name in shapes]  # inside of a residual block, and through it: times only
    outputs = [shapes[name][1] for name in known[1:]] + [(wanted.classes,)]
    least: dict[Key, tuple[float, float]] = {}
    kept = np.dtype(PRECISIONS[wanted.precision].dtype).itemsize
    for name, out_shape in zip(known, outputs, strict=True):
        layer, in_shape = shapes[name]
        flops = 2.0 * layer.macs(in_shape) * wanted.batch
        weights = sum(tensor.data.size for tensor in layer.parameters().values())
        images = (math.prod(in_shape) + math.prod(out_shape)) * wanted.batch
        is_first = not any(flops for flops, _ in least.values())  # nobody wants the gradient of the images
        for direction in (FORWARD, INPUT, WEIGHTS):
            useless = isinstance(layer, Residual) or (direction == INPUT and is_first)
            size = kept * images + (BYTES if direction == WEIGHTS else kept) * weights
            least[name, direction] = (0.0, 0.0) if useless else (flops, size)
        least[name, UPDATE] = 0.0, BYTES * MOVED[wanted.optimiser] * weights
    every = sum(tensor.data.size for tensor in model.parameters().values())
    return least | {("(optimiser)", UPDATE): (0.0, BYTES * MOVED[wanted.optimiser] * every)}


def _rows(medians: dict[Key, float], least: dict[Key, tuple[float, float]], peak: float | None) -> list[dict[str, Any]]:
    """In the order of the network, directions below one another. peak: None where the processor has none to measure."""
    total, rows = sum(medians.values()), []
    layers = dict.fromkeys(name for name, _ in (*least, *medians))
    for layer in layers:
        for direction in DIRECTIONS:
            seconds = medians.get((layer, direction), 0.0)
            flops, size = least.get((layer, direction), (0.0, 0.0))
            if seconds > (0 if size else NOTHING_S):
                rows.append(
                    {
                        "layer": layer,
                        "direction": direction,
                        "ms": 1e3 * seconds,
                        "share_pct": 100 * seconds / total,
                        "gflops": flops / seconds / 1e9,
                        "gbytes_per_s": size / seconds / 1e9,
                        "peak_pct": 100 * flops / seconds / 1e9 / peak if peak else None,
                    }
                )
    return rows
