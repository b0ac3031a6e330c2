"""A recipe trained and evaluated by PyTorch, as a process of its own: the other side of `runrace`.

    python -m mlcore.peer_run RECIPE FOLDER THREADS contiguous|channels_last [KEY=VALUE]...

The same files, first weights, batches, crops, steps, rates and decay as mlcore's, all images normalised in memory
beforehand, no workers, and no look at the loss on the way. It prints one JSON line: {"test_error_pct", "setup_s",
"setup_cpu_s"}. The set-up is what a script written for PyTorch alone would not do: importing mlcore, and making its
network to copy from.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVALUATED = 1000  # images at a time


@dataclass(frozen=True)
class Data:
    """A split in memory: images float32 [N,C,H,W] normalised, labels int64 [N], both torch tensors."""

    images: Any
    labels: Any


def run(source: str, folder: Path, threads: int, last: bool, overrides: Sequence[str]) -> dict[str, float]:
    """Train and evaluate; last: with channels_last."""
    torch = importlib.import_module("torch")
    began = time.perf_counter(), time.process_time()
    from mlcore import config
    from mlcore.data.feeds import seen_shape
    from mlcore.data.kinds import kind_of
    from mlcore.data.loader import Loader, split
    from mlcore.data.windows import Cut
    from mlcore.peers import peer_of
    from mlcore.rng import Rng
    from mlcore.session import build_model

    torch.set_num_threads(threads)
    recipe = config.load(source, overrides)
    model = build_model(recipe)
    net = peer_of(model)
    setup = time.perf_counter() - began[0], time.process_time() - began[1]

    dataset, rng = kind_of(recipe.data.dataset).read_folder(folder), Rng(recipe.seed)
    train, test, scale = _in_memory(torch, dataset)
    part, _ = split(dataset.train_images, dataset.train_labels, recipe.data.validation, recipe.data.limit, rng)
    cut = Cut(dataset.image_shape[1:], seen_shape(recipe.data, dataset.image_shape)[1:], recipe.data.flip)
    loader = Loader(part, recipe.train.batch, scale, rng.child("loader"), cut if cut.is_random else None)
    if last:
        net = net.to(memory_format=torch.channels_last)
    _train(torch, net, list(model.parameters()), train, loader, recipe)
    centre = torch.from_numpy(cut.views("centre")).expand(len(test.labels), 3)
    test = Data(_seen(torch, test.images, centre, cut.size), test.labels)
    return {"test_error_pct": _error_pct(torch, net, test), "setup_s": setup[0], "setup_cpu_s": setup[1]}


def _in_memory(torch: Any, dataset: Any) -> tuple[Data, Data, Any]:
    """Both splits, normalised by the mean and the deviation of the training images' bytes / 255, and those two."""
    from mlcore.data.images import Normaliser

    images = torch.from_numpy(dataset.train_images).float().div_(255)
    deviation, mean = (value.item() for value in torch.std_mean(images, correction=0))
    test = torch.from_numpy(dataset.test_images).float().div_(255)
    splits = [
        Data(pixels.sub_(mean).div_(deviation), torch.from_numpy(labels).long())
        for pixels, labels in ((images, dataset.train_labels), (test, dataset.test_labels))
    ]
    return splits[0], splits[1], Normaliser.scalar(mean, deviation)


def _train(torch: Any, net: Any, names: Sequence[str], data: Data, loader: Any, recipe: Any) -> None:
    """SGD by the recipe, each parameter at its own pace; names: the model's own, in the net's order."""
    from mlcore import schedule
    from mlcore.paces import paces_of
    from mlcore.peers import grouped

    factor = schedule.build(recipe.schedule.name, recipe.schedule.options)
    total = recipe.train.epochs * loader.steps_per_epoch
    total = total if recipe.train.steps is None else min(total, recipe.train.steps)
    named = dict(zip(names, net.parameters(), strict=True))
    groups = grouped(named, paces_of(recipe.optimiser, named))
    optimiser = torch.optim.SGD(groups, recipe.optimiser.rate, recipe.optimiser.momentum, fused=True)
    for step in range(total):
        if step % loader.steps_per_epoch == 0:
            order = torch.from_numpy(loader.order(step // loader.steps_per_epoch))
            windows = loader.windows(step // loader.steps_per_epoch)
        first = step % loader.steps_per_epoch * loader.batch
        chosen = order[first : first + loader.batch]
        for group in optimiser.param_groups:
            place = schedule.Place(step, total, step // loader.steps_per_epoch)
            group["lr"] = recipe.optimiser.rate * factor(place) * group["pace"]
        optimiser.zero_grad(set_to_none=True)
        images = data.images[chosen]
        if windows is not None:
            images = _seen(torch, images, torch.from_numpy(windows)[chosen], loader.cut.size)
        torch.nn.functional.cross_entropy(net(images), data.labels[chosen]).backward()
        optimiser.step()


def _seen(torch: Any, images: Any, windows: Any, size: tuple[int, int]) -> Any:
    """What lies in the windows [B,3] of images [B,C,H,W], of `size`, mirrored if they say so."""
    top, left, mirrored = windows.long().T
    places = images.unfold(2, size[0], 1).unfold(3, size[1], 1)
    seen = places[torch.arange(len(images)), :, top, left]
    return torch.where(mirrored[:, None, None, None] > 0, seen.flip(3), seen) if mirrored.any() else seen


def _error_pct(torch: Any, net: Any, data: Data) -> float:
    net.eval()
    with torch.inference_mode():
        parts = zip(data.images.split(EVALUATED), data.labels.split(EVALUATED), strict=True)
        wrong = sum(int((net(images).argmax(1) != labels).sum()) for images, labels in parts)
    return 100 * wrong / len(data.labels)


if __name__ == "__main__":
    found = run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "channels_last", sys.argv[5:])
    print(json.dumps(found))
