"""What is wrong with pictures and archives: each kind counted, with the first place where it was met."""

from __future__ import annotations

from dataclasses import dataclass, field

from mlcore.errors import DataError

DAMAGED = "damaged picture"
NO_PICTURE = "not a picture"
TOO_LARGE = "picture with too many pixels"
DUPLICATE = "second member of the same name"
UNSAFE = "member with an unsafe name"
IRREGULAR = "member that is no regular file"
NO_CLASS = "picture without a class"
NO_NUMBER = "class (.cls) that is no number from 0 up"
OUT_OF_RANGE = "class number (.cls) out of range"
STRANGE_CLASS = "picture of a class that the training split does not have"
EMPTY_CLASS = "class without a picture"
CUT_SHORT = "archive that is damaged or cut short"
CHANGED = "picture whose bytes changed since it was catalogued"


class PictureError(DataError):
    """A picture that can't be used; `kind` is one of this module's."""

    def __init__(self, what: str, *, kind: str = DAMAGED, place: str = "", fix: str = "") -> None:
        self.kind = kind
        super().__init__(what, place=place, fix=fix)

    def fields(self) -> dict[str, str]:
        return {**super().fields(), "kind": self.kind}


@dataclass
class Faults:
    """By kind: how many there are, and where the first is and why."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, place: str, count: int = 1) -> None:
        """Count a fault; `place` says where, and may say why."""
        self.counts[kind] = self.counts.get(kind, 0) + count
        self.first.setdefault(kind, place)

    def merge(self, other: Faults) -> None:
        """Count another's faults too."""
        for kind, count in other.counts.items():
            self.add(kind, other.first[kind], count)

    def demand_none(self) -> None:
        """Raise DataError for the first kind of fault, if there is any."""
        for kind in self.counts:
            raise DataError(
                self.line(kind), fix='repair the data, or set data.broken = "skip" (--broken skip) to leave it out'
            )

    def lines(self) -> tuple[str, ...]:
        """A warning per kind."""
        return tuple(f"left out: {self.line(kind)}" for kind in self.counts)

    def line(self, kind: str) -> str:
        """How often, what, where first."""
        return f"{self.counts[kind]} x {kind} (first: {self.first[kind]})"

    def document(self) -> dict[str, list[int | str]]:
        """As JSON: by kind the count and the first place."""
        return {kind: [count, self.first[kind]] for kind, count in self.counts.items()}

    @staticmethod
    def of(document: dict[str, list[int | str]]) -> Faults:
        """What `document` gave, read back."""
        faults = Faults()
        for kind, (count, place) in document.items():
            faults.add(kind, str(place), int(count))
        return faults
