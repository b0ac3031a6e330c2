"""Bring a recipe within reach of a target, judged on a validation split of the training set only.

First the recipe is trained as it stands. If its validation error is within value and margin, nothing is changed. If
not, a few knobs are searched by successive halving, and the winner's values are edited into the recipe in place if it
beats the recipe over the same seeds. Every trial is journaled under runs/tune-ID/: run the same command again after a
crash, and finished trials are not repeated. The test set is never looked at.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also under python -P
from halving import OutOfTime, beats, champion
from recipe_edit import RecipeProblem, look_up, read_recipe, set_values, write_text
from search_space import Knobs, candidates, chosen, read_space
from trials import Journal, Trainer, TrainingFailed, Trial, hide_test_labels, say

SCHEMA = "odyssey/search-1"
NOTE = (
    "Validation errors of trainings that the agent's own command started, taken from their result.json. They guided a "
    "choice of knobs. They were not measured by the gate and are no evidence for or against the target."
)
# direction -> how far an error is from being good enough; zero or less is within
MISSED_BY: dict[str, Callable[[float, float, float], float]] = {
    "at_most": lambda error, value, margin: error - (value + margin),
    "at_least": lambda error, value, margin: (value - margin) - error,
    "equal": lambda error, value, margin: abs(error - value) - margin,
}
# what a search makes small -> a trial's score. A training loss has no target: the best rate is searched in any case
SCORES: dict[str, Callable[[Trial], float]] = {"error": lambda trial: trial.error, "loss": lambda trial: trial.loss}
METRIC = "test_error_pct"  # what a validation error, which is of the first guess, can be held against
SLACK = 1e-9  # 0.95 + 0.05 is not 1.0 in binary
FINAL_SEEDS = 2
QUESTION = (
    "dataset",
    "value",
    "margin",
    "direction",
    "validation",
    "trials",
    "seed",
    "by",
    "epochs",
    "least_epochs",
)  # what makes a search that search
EPILOG = """\
example:
  python tune.py mlcore/recipes/lenet5_mnist.toml --value 0.95 --margin 0.05 --log plans/mnist/search.json
a space (JSON) names knobs and where they may stand:
  {"optimiser.rate": {"times": [0.3, 3]}, "optimiser.momentum": {"range": [0.8, 0.95]},
   "optimiser.weight_decay": {"log": [1e-5, 1e-3]}, "train.batch": {"choice": [32, 64, 128]}}
--by loss makes the training loss small, for a claim about how fast a network learns its training set.
exit codes: 0 done (`outcome` in the JSON on stdout says what came of it); 2 recipe, space or data can't be used;
127 mlcore isn't on PATH; else mlcore's own (130, 143 interrupted: run the same command again and it goes on)
"""


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    signal.signal(signal.SIGTERM, stop)
    try:
        log = tune(args)
    except RecipeProblem as problem:
        say(str(problem))
        return 2
    except TrainingFailed as failure:
        say(str(failure))
        return failure.code if failure.code > 0 else 128 - failure.code
    except KeyboardInterrupt:
        return 130
    print(as_json(log), end="")
    say(f"{log['outcome']}; log in {args.log}")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tune.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("recipe", type=Path, help="the recipe's file; edited in place if something better is found")
    add("--value", type=number, required=True, help="the target's error in %%")
    add("--margin", type=number, default=0.0, help="the target's margin in points (default: 0)")
    add("--direction", choices=sorted(MISSED_BY), default="at_most", help="default: at_most")
    add("--metric", default=METRIC, help=f"the target's metric; any other needs --by loss (default: {METRIC})")
    add("--dataset", default="mnist", help="the target's dataset; on any other nothing is searched (default: mnist)")
    add("--log", type=Path, required=True, help="where the search log goes, e.g. plans/mnist/search.json")
    add("--data", type=Path, help="folder that holds the dataset (default: MLCORE_DATA, else mlcore finds it)")
    add("--validation", type=whole, default=5000, help="training images set aside to judge by (default: 5000)")
    add("--minutes", type=positive, default=10.0, help="budget of the trials, kept across restarts (default: 10)")
    add("--trials", type=whole, default=9, help="candidates of the first rung (default: 9)")
    add("--space", help="knobs as JSON (default: rate, momentum, weight decay, batch)")
    add("--knobs", help="of the default knobs only these, joined by `+`, e.g. optimiser.rate")
    add("--by", choices=sorted(SCORES), default="error", help="what is made small: validation error, or training loss")
    add("--epochs", type=whole, help="train for so many at most while searching (default: the recipe's own)")
    add(
        "--least-epochs",
        type=whole,
        default=1,
        help="train no candidate for fewer, where early ranks mislead (default: 1)",
    )
    add("--clock", choices=["wall", "cpu"], default="wall", help="what --minutes are of (default: wall)")
    add("--seed", type=int, default=1, help="of the candidates and of their trainings (default: 1)")
    add("--runs", type=Path, default=Path("runs"), help="scratch folder (default: runs)")
    return parser


def number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


def positive(text: str) -> float:
    if (value := number(text)) <= 0:
        raise ValueError
    return value


def whole(text: str) -> int:
    return int(positive(str(int(text))))


def stop(signum: int, frame: object) -> NoReturn:
    raise SystemExit(128 + signum)


def tune(args: argparse.Namespace) -> dict[str, Any]:
    """Search, write the log, then edit the recipe. Returns the log."""
    if args.by == "error" and args.metric != METRIC:
        what = f"`{args.metric}` can't be held against a validation error of the first guess"
        raise RecipeProblem(f"{what}; put the recipe's {METRIC} target first in the plan, or search --by loss")
    text, recipe = read_recipe(args.recipe)
    space = chosen(read_space(args.space), args.knobs)
    question = {"recipe": str(args.recipe), **{key: getattr(args, key) for key in QUESTION}, "space": space}
    log = finished_before(args.runs, question, text)
    if log is None:
        folder = args.runs / f"tune-{sha256(json.dumps(question, sort_keys=True) + text)[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        trainer = make_trainer(args, folder)
        contenders = candidates(space, recipe, args.trials, args.seed)
        for knobs in contenders:
            set_values(text, knobs)  # what couldn't be written back isn't worth trying
        outcome, adopted = search(args, recipe, contenders, trainer)
        edited = set_values(text, adopted)
        log = make_log(question, text, edited, outcome, adopted, trainer.journal)
        write_json(folder / "done.json", {"question": question, "log": log})
        write_json(args.log, log)
        if adopted:
            write_text(args.recipe, edited)
    else:
        write_json(args.log, log)
    return log


def make_trainer(args: argparse.Namespace, folder: Path) -> Trainer:
    given = os.environ.get("MLCORE_DATA")
    root = args.data or (Path(given) if given else None)
    data = hide_test_labels(root, folder)
    journal = Journal(folder / "journal.jsonl")
    return Trainer(args.recipe, folder, data, args.validation, args.minutes * 60, journal, args.clock)


def search(
    args: argparse.Namespace, recipe: Mapping[str, Any], contenders: list[Knobs], trainer: Trainer
) -> tuple[str, Knobs]:
    """Returns the outcome in words, and the knobs to change (none, mostly)."""
    epochs = look_up(recipe, "train.epochs")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise RecipeProblem(f"{args.recipe}: needs `epochs` of at least 1 under [train]")
    epochs = min(epochs, args.epochs or epochs)

    def missed_by(knobs: Knobs, length: int, seed: int, reserve_epochs: int = 0) -> float:
        score = SCORES[args.by](trainer.train(knobs, length, seed, reserve_epochs))
        aimed = args.by == "error" and math.isfinite(score)
        return MISSED_BY[args.direction](score, args.value, args.margin) if aimed else score

    if missed_by({}, epochs, args.seed) <= SLACK and args.by == "error":
        return "within reach as it stands; nothing to change", {}
    found = trainer.train({}, epochs, args.seed).data
    if found not in (args.dataset, "unknown"):
        return f"not searched: the data are {found}, not {args.dataset}", {}
    try:
        reserved = functools.partial(missed_by, reserve_epochs=epochs)
        best = champion(reserved, contenders, epochs, args.seed, args.least_epochs)
        if best is None:
            return "searched; no candidate could be trained, the recipe stays", {}
        if beats(missed_by, best, epochs, [args.seed + k for k in range(FINAL_SEEDS)]):
            return "searched; a better setting was adopted", best
    except OutOfTime:
        return "searched; time ran out before a candidate was trained at full length, the recipe stays", {}
    return "searched; nothing better was found, the recipe stays", {}


def finished_before(runs: Path, question: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    """The log of a search for the same that was killed after it had edited the recipe: not to be searched again."""
    for path in sorted(runs.glob("tune-*/done.json")):
        done = json.loads(path.read_bytes())
        if (
            done["question"] == question
            and done["log"]["adopted"]
            and done["log"]["recipe_sha256_after"] == sha256(text)
        ):
            return dict(done["log"])
    return None


def make_log(
    question: Mapping[str, Any], text: str, edited: str, outcome: str, adopted: Knobs, journal: Journal
) -> dict[str, Any]:
    """The log holds no times and no machine: what it lists can be recomputed."""
    shown = ("knobs", "epochs", "seed", "status", "data", "validation_error_pct", "train_loss")
    trials = [{key: asdict(trial)[key] for key in shown} for trial in journal.trials.values()]
    return {
        "schema": SCHEMA,
        "note": NOTE,
        "outcome": outcome,
        "adopted": adopted,
        **question,
        "recipe_sha256_before": sha256(text),
        "recipe_sha256_after": sha256(edited),
        "tried": trials,
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, as_json(document))


def as_json(document: Mapping[str, Any]) -> str:
    """One line a key, and one a trial: easy on the eye, and a diff shows which trial changed."""
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "tried"]
    if "tried" in document:
        trials = ",\n    ".join(json.dumps(trial) for trial in document["tried"])
        lines.append(f'"tried": [\n    {trials}\n  ]')
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
