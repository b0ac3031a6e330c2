"""Before the gate measures a target: does the recipe load, fit the dataset, and learn? Says what comes next."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

MIN_SEEDS = 3
WITHOUT_TRAINING = ("parameters", "failed_tests", "images_per_s")
PHOTOGRAPHS = ("imagenette", "ilsvrc2012")  # large, and not fetched: a machine may well be without them
DEFAULT_DATASET = "mnist"  # what mlcore takes when a recipe names none
EPILOG = """\
example:
  python preflight.py --recipe mlcore/recipes/lenet5_mnist.toml --seeds 3 --dataset mnist --target lenet5-test-error
exit codes: 0 ready to be measured; 1 not ready, with the reasons; 127 mlcore isn't on PATH
"""


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    if args.metric in WITHOUT_TRAINING or args.dataset in PHOTOGRAPHS:
        return nothing_to_check(args)
    recipe, problems = read_recipe(args.recipe)
    problems += check_recipe(recipe, args.dataset) if recipe else []
    problems += [f"{args.seeds} seeds; a mean with a spread needs at least {MIN_SEEDS}"] * (args.seeds < MIN_SEEDS)
    if not problems and (code := learning_checks(args.recipe)):
        if code == 127:
            print("preflight: mlcore is not on PATH; install the project first", file=sys.stderr)
            return code
        problems.append(f"mlcore check {args.recipe} failed (exit {code}); see above which check")
    for line in [f"preflight: {problem}" for problem in problems] or plan(args):
        print(line, file=sys.stderr)
    print(json.dumps({"target": args.target, "ready": not problems, "problems": problems, "steps": plan(args)}))
    return int(bool(problems))


def nothing_to_check(args: argparse.Namespace) -> int:
    """For what needs no training, or photographs, which the gate may find missing: it says so in its verdict."""
    print(f"preflight: {args.target} needs no learning check here", file=sys.stderr)
    print(json.dumps({"target": args.target, "ready": True, "problems": [], "steps": []}))
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preflight.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", type=Path, required=True, help="the target's recipe")
    parser.add_argument("--seeds", type=int, required=True, help="how many seeds the target asks for")
    parser.add_argument("--metric", default="test_error_pct", help="what the target measures")
    parser.add_argument("--dataset", required=True, help="the target's dataset, e.g. mnist")
    parser.add_argument("--target", required=True, help="the target's id")
    return parser


def read_recipe(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), []
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        return {}, [f"{path}: can't be read as a recipe ({error})"]


def check_recipe(recipe: dict[str, Any], dataset: str) -> list[str]:
    """What would make the measurement mean something else than the target does."""
    data = recipe.get("data", {})
    found = []
    named = data.get("dataset", DEFAULT_DATASET)
    if named != dataset:
        found.append(f"data.dataset is {named!r}, the target's is {dataset!r}; use the same")
    if data.get("shuffle_labels"):
        found.append("data.shuffle_labels is on: that is a control, not the target; take it out")
    for key in ("validation", "limit"):
        if data.get(key):
            found.append(f"data.{key} = {data[key]} keeps training images from the measurement; set it to 0")
    return found


def learning_checks(recipe: Path) -> int:
    """`mlcore check`, its stdout sent to our stderr. Returns its exit code, 127 when there is no mlcore."""
    try:
        return subprocess.run(["mlcore", "check", str(recipe)], stdout=sys.stderr, check=False).returncode
    except FileNotFoundError:
        return 127


def plan(args: argparse.Namespace) -> list[str]:
    return [
        f"the gate takes {args.recipe} from the frozen commit, and {args.target} from the protected base",
        f"it picks {args.seeds} seeds that nobody knew before the commit, and trains each on {args.dataset}",
        "the training's sandbox has no network and no test labels; it hands over predictions",
        "another process scores them; all seeds are reported, and the verdict is written into the plan",
    ]


if __name__ == "__main__":
    sys.exit(main())
