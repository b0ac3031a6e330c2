"""The knobs that a search may turn, and where they may stand.

A space is a JSON object of dotted recipe names: {"optimiser.rate": {"times": [0.3, 3]}}; each has one of
  choice [a, b, ...]   one of these
  range [low, high]    uniform; whole numbers when both ends are
  log [low, high]      log-uniform
  times [low, high]    log-uniform between these multiples of the recipe's own value
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from recipe_edit import RecipeProblem, Scalar, look_up, same

Knobs = dict[str, Scalar]
Space = dict[str, dict[str, list[Any]]]
DEFAULT_SPACE: Space = {
    "optimiser.rate": {"times": [0.25, 4.0]},
    "optimiser.momentum": {"choice": [0.8, 0.9, 0.95]},
    "optimiser.weight_decay": {"choice": [0.0, 1e-5, 1e-4, 5e-4]},
    "train.batch": {"choice": [32, 64, 128]},
}
RESERVED = ("seed", "data", "name")  # a search must not choose its data or its luck


def read_space(text: str | None) -> Space:
    """The space in a JSON text; the default one for None. Raises RecipeProblem naming the knob and the fix."""
    if text is None:
        return DEFAULT_SPACE
    try:
        space = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeProblem(f"--space: not JSON ({error})") from error
    if not isinstance(space, dict) or not space:
        raise RecipeProblem('--space: write an object, e.g. {"optimiser.rate": {"times": [0.3, 3]}}')
    for name, rule in space.items():
        check_rule(name, rule)
    return space


def chosen(space: Space, names: str | None) -> Space:
    """The part of the space that `a+b` names; all of it for None."""
    if names is None:
        return space
    wanted = names.split("+")
    if unknown := [name for name in wanted if name not in space]:
        raise RecipeProblem(f"--knobs: `{unknown[0]}` is none of {', '.join(space)}")
    return {name: space[name] for name in wanted}


def check_rule(name: str, rule: Any) -> None:
    if name.split(".")[0] in RESERVED or "epochs" in name:
        raise RecipeProblem(f"--space: `{name}` is not for a search to choose; take it out")
    if not isinstance(rule, dict) or len(rule) != 1 or not rule.keys() <= DRAW.keys():
        raise RecipeProblem(f"--space: `{name}` needs one of {', '.join(DRAW)}")
    (kind, values), *_ = rule.items()
    if kind == "choice":
        good = isinstance(values, list) and values and all(isinstance(v, Scalar) for v in values)
    else:
        good = isinstance(values, list) and len(values) == 2 and all(finite(v) for v in values)
        good = good and values[0] <= values[1] and (kind == "range" or values[0] > 0)
    if not good:
        raise RecipeProblem(f"--space: `{name}`: {kind} can't be {json.dumps(values)[:80]}; see tune.py --help")


def finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def candidates(space: Space, recipe: Mapping[str, Any], count: int, seed: int) -> list[Knobs]:
    """`count` settings that differ from each other and from the recipe, always the same for the same arguments.

    Each lists only the knobs that it turns away from the recipe. A small space may hold fewer than `count`. Each knob's
    places are cut into `count` equal parts, and the settings stand in one each: so that nine rates leave no wide gap.
    Source: McKay, Beckman and Conover 1979, "A comparison of three methods for selecting values of input variables".
    """
    parts = {name: random.Random(f"{seed}/{name}").sample(range(count), count) for name in space}
    found: list[Knobs] = []
    for index in range(20 * count):
        knobs = dict[str, Scalar | None]()
        for name, rule in space.items():
            place = random.Random(f"{seed}/{index}/{name}").random()
            place = (parts[name][index] + place) / count if index < count else place
            knobs[name] = draw(name, rule, recipe, place)
        turned = {k: v for k, v in knobs.items() if v is not None and not same(v, look_up(recipe, k))}
        if turned and turned not in found:
            found.append(turned)
        if len(found) == count:
            break
    return found


def draw(name: str, rule: Mapping[str, list[Any]], recipe: Mapping[str, Any], place: float) -> Scalar | None:
    """The value at a place in [0, 1); None when a multiple of the recipe's value is wanted and it has none."""
    (kind, values), *_ = rule.items()
    own = look_up(recipe, name)
    if kind == "times":
        if not finite(own) or own <= 0:
            return None
        values = [own * factor for factor in values]
    value = DRAW[kind](place, values)
    whole = kind == "times" and isinstance(own, int)
    return max(1, round(float(value))) if whole else value


def draw_choice(place: float, values: list[Any]) -> Scalar:
    return values[int(place * len(values))]


def draw_range(place: float, ends: list[Any]) -> Scalar:
    low, high = ends
    whole = isinstance(low, int) and isinstance(high, int)
    return low + int(place * (high - low + 1)) if whole else tidy(low + place * (high - low))


def draw_log(place: float, ends: list[Any]) -> Scalar:
    return tidy(ends[0] * (ends[1] / ends[0]) ** place)


def tidy(value: float) -> float:
    """Three significant digits: a recipe is read by people."""
    return float(f"{value:.3g}")


DRAW: dict[str, Callable[[float, list[Any]], Scalar]] = {
    "choice": draw_choice,
    "range": draw_range,
    "log": draw_log,
    "times": draw_log,
}
