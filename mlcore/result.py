"""result.json: what a run says about itself, in a versioned schema (RESULT.md explains every field)."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

SCHEMA = "mlcore.result/1"
NOT_MNIST = "not measured on MNIST"
PACKAGES = ("odyssey", "numpy", "numba", "llvmlite", "safetensors")

Status: TypeAlias = Literal["finished", "interrupted", "failed"]


class Record(BaseModel):
    """Frozen and closed; NaN and infinity can't be written as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RecipeRef(Record):
    name: str
    sha256: str
    overrides: tuple[str, ...]


class Code(Record):
    """`commit` and `dirty` are null where git or the repository is absent."""

    commit: str | None
    dirty: bool | None
    packages: dict[str, str]
    python: str


class DataRef(Record):
    name: str
    surrogate: bool
    sha256: dict[str, str]


class Machine(Record):
    cpu: str
    cores: int
    threads: int
    ranks: int
    os: str


class Failure(Record):
    error: str
    message: str
    exit_code: int
    step: int | None = None
    layer: str | None = None


class Result(Record):
    """The document; field by field in RESULT.md."""

    schema_name: str
    status: Status
    verdict: str | None
    recipe: RecipeRef
    code: Code
    data: DataRef
    seed: int
    machine: Machine
    wall_s: float
    cpu_s: float
    train_wall_s: float
    images_per_s: float | None
    epochs: float
    steps: int
    total_steps: int
    parameters: int
    weights_sha256: str
    train_loss: float | None
    validation_error_pct: float | None
    test_loss: float | None
    test_error_pct: float | None
    failure: Failure | None
    warnings: tuple[str, ...]
    validation_top5_error_pct: float | None = None
    test_top5_error_pct: float | None = None
    best_validation_error_pct: float | None = None
    best_step: int | None = None
    tested_step: int | None = None
    rate_drops: int = 0
    stopped_early: Literal["plateau", "stop_after", "stop_at_pct"] | None = None

    def document(self) -> dict[str, Any]:
        """As plain JSON, the schema's name first and under the key "schema"."""
        fields = self.model_dump(mode="json")
        return {"schema": fields.pop("schema_name"), **fields}


def code() -> Code:
    """The commit this package was run from, if it is a tracked part of a checkout, and the versions it stands on."""
    commit, dirty = _checkout(Path(__file__).resolve())
    packages = {name: version for name in PACKAGES if (version := _version(name))}
    return Code(commit=commit, dirty=dirty, packages=packages, python=platform.python_version())


def machine(threads: int, ranks: int = 1) -> Machine:
    """This machine, by what Linux tells without rights."""
    system = f"{platform.system()} {platform.release()}"
    return Machine(cpu=_cpu(), cores=usable_cores(), threads=threads, ranks=ranks, os=system)


def usable_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def weights_sha256(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """One digest over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _checkout(file: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout that tracks `file`; an installed copy inside someone's repository has none."""
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None, None
    commit = _git(file.parent, "rev-parse", "HEAD")
    status = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else status != ""


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers, or None; it writes nothing and starts no helper of the repository's choosing."""
    program = shutil.which("git")
    if program is None:
        return None
    quiet = {"GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C", "PATH": os.environ.get("PATH", "")}
    command = [program, "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
