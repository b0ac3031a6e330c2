"""Run mlcore's learning checks on a recipe and, if they pass, train it; a killed training goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  python train.py mlcore/recipes/lenet5_mnist.toml --out runs/first
  python train.py mlcore/recipes/lenet5_mnist.toml train.epochs=1 data.limit=2000 --out runs/short
exit codes: 0 trained; 5 a learning check failed, nothing was trained; 127 mlcore isn't on PATH; else mlcore train's own
(2 recipe or data can't be used, 4 the loss is not finite, 130 or 143 interrupted: run the same command again)
"""


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    data = ["--data", str(args.data)] if args.data else []
    if not args.no_check and (code := call(["mlcore", "check", args.recipe, *data])):
        print(f"train: the learning checks of {args.recipe} failed (exit {code}); not trained", file=sys.stderr)
        return code
    train = ["mlcore", "train", args.recipe, *args.overrides, *data]
    code = call([*train, "--out", str(args.out), "--continue"])
    print(json.dumps(describe(args.out, code), indent=2))
    return code


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a recipe file, or the name of one that mlcore ships")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="recipe overrides, e.g. train.epochs=1")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder, e.g. runs/first")
    parser.add_argument("--data", type=Path, help="folder that holds the dataset (default: MLCORE_DATA)")
    parser.add_argument("--no-check", action="store_true", help="train without the learning checks")
    return parser


def call(command: list[str]) -> int:
    """Runs a command with its stdout sent to our stderr: our stdout is one JSON document. Returns its exit code."""
    try:
        return subprocess.run(command, stdout=sys.stderr, check=False).returncode
    except FileNotFoundError:
        print(f"train: {command[0]} is not on PATH; install the project first", file=sys.stderr)
        return 127


def describe(out: Path, code: int) -> dict[str, Any]:
    """Where the run is and what is in it. Names only: error rates are for the gate to measure."""
    result = out / "result.json"
    status = "not finished"
    if result.is_file():
        status = json.loads(result.read_text()).get("status", status)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return {"run": str(out), "exit_code": code, "status": status, "files": files}


if __name__ == "__main__":
    sys.exit(main())
