"""What can go wrong in mlcore, each with the exit code that the command gives.

    MlcoreError
    ├── RecipeError            2    a recipe, an override or an option says something impossible
    │   └── ShapeError         2    a layer can't take the shape it was given
    ├── DataError              2    a dataset is not what it should be
    │   ├── IdxBadMagic        2    the first four bytes are not an IDX header
    │   ├── IdxTruncated       2    the file ends before its header says so
    │   ├── IdxWrongCount      2    images and labels differ in number, or bytes follow the last item
    │   ├── IdxOversize        2    the header declares more than the file or the limit allows
    │   ├── CifarMalformed     2    a file of CIFAR's is cut, damaged, or has labels that are none
    │   ├── DatasetMissing     2    not in the given folder, not in the cache, not to be downloaded
    │   └── ChecksumMismatch   2    the bytes are not the published ones
    ├── CheckpointError        2    no checkpoint can be used
    ├── NotFinite              4    a NaN or an infinity: which step, which layer, what
    ├── GroupFailed            the first failing run's    of several seeds side by side some did not finish
    ├── CheckFailed            5    a learning or gradient check did not hold
    ├── RankLost               6    of several processes that train together, one failed or did not answer
    └── Interrupted            128 + signal    stopped by SIGINT (130) or SIGTERM (143)

A message reads `place: what; fix`. Every error survives pickling (multiprocessing) and `as_json` (reports).
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any


class MlcoreError(Exception):
    """The root: `what` happened, `place` (file:line, layer, key) where, `fix` what to do about it."""

    exit_code = 1

    def __init__(self, what: str, *, place: str = "", fix: str = "") -> None:
        self.what, self.place, self.fix = what, place, fix
        prefix = f"{place}: " if place else ""
        suffix = f"; {fix}" if fix else ""
        super().__init__(f"{prefix}{what}{suffix}")

    def fields(self) -> dict[str, Any]:
        """The keyword arguments that would build this error again."""
        return {"what": self.what, "place": self.place, "fix": self.fix}

    def at(self, place: str) -> MlcoreError:
        """The same error, with a place in front of the one it has."""
        joined = f"{place}: {self.place}" if self.place else place
        return type(self)(**{**self.fields(), "place": joined})

    def as_json(self) -> dict[str, Any]:
        """A document for logs and `--json`."""
        return {
            "error": type(self).__name__,
            "message": str(self),
            "exit_code": self.exit_code,
            **self.fields(),
        }

    def __reduce__(self) -> tuple[Callable[..., MlcoreError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.fields())


class RecipeError(MlcoreError):
    exit_code = 2


class ShapeError(RecipeError):
    """A layer or an op can't take the shape it was given."""


class DataError(MlcoreError):
    exit_code = 2


class IdxBadMagic(DataError):
    """The file does not begin as an IDX file does."""


class IdxTruncated(DataError):
    """The file ends before its header says so."""


class IdxWrongCount(DataError):
    """Counts that should be equal are not."""


class IdxOversize(DataError):
    """The header declares more bytes than the file or the limit allows."""


class CifarMalformed(DataError):
    """The file is not records of a label and 3,072 bytes, or can't be unpacked to them."""


class DatasetMissing(DataError):
    """No copy of the dataset can be had."""


class ChecksumMismatch(DataError):
    """The bytes are not the published ones."""


class CheckpointError(MlcoreError):
    exit_code = 2


class CheckFailed(MlcoreError):
    exit_code = 5


class GroupFailed(MlcoreError):
    """Of several seeds side by side some failed; `code`: the exit code of the first of them."""

    def __init__(self, what: str, *, code: int, place: str = "", fix: str = "") -> None:
        self.code = code
        super().__init__(what, place=place, fix=fix or "look into its folder; --resume tries it again")

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self.code

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "code": self.code}


class NotFinite(MlcoreError):
    """A NaN or an infinity. `layer` is the first layer that had one, `step` the optimiser's step."""

    exit_code = 4

    def __init__(self, what: str, *, step: int, layer: str, place: str = "", fix: str = "") -> None:
        self.step, self.layer = step, layer
        super().__init__(
            what,
            place=place or f"step {step}, layer '{layer}'",
            fix=fix or "lower optimiser.rate or look at the data of this step",
        )

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "step": self.step, "layer": self.layer}


class RankLost(MlcoreError):
    """Another process of those that train together failed, hangs or is somewhere else."""

    exit_code = 6


class Interrupted(MlcoreError):
    """A signal ended the run, after its checkpoint was written."""

    def __init__(self, what: str, *, signal_number: int = signal.SIGINT, place: str = "", fix: str = "") -> None:
        self.signal_number = int(signal_number)
        super().__init__(what, place=place, fix=fix)

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return 128 + self.signal_number

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "signal_number": self.signal_number}


def _rebuild(kind: type[MlcoreError], fields: dict[str, Any]) -> MlcoreError:
    return kind(**fields)
