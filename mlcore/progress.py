"""What the validation errors so far lead to: when the rate drops, when training ends, which weights were best.

Pure records, one per evaluation: a checkpoint holds the last, and training goes on from it to the bit.
"""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from mlcore.schedule import Plateau

Reason: TypeAlias = Literal["", "plateau", "stop_after", "stop_at_pct"]


class Progress(BaseModel):
    """After an evaluation. `best_pct`: the lowest validation error, at `best_step`; `waited`: evaluations since.

    `level_pct`: the error that a plateau is measured by; `stalled`: evaluations since it was undercut, or since the
    rate dropped. `stopped`: why training is to end before its steps are done; "" as long as it is not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    best_pct: float | None = None
    best_step: int | None = None
    waited: int = 0
    level_pct: float | None = None
    stalled: int = 0
    drops: int = 0
    stopped: Reason = ""

    def seen(self, error_pct: float, step: int, plateau: Plateau | None, stop_after: int) -> "Progress":
        """After one more evaluation. stop_after: evaluations without a better one that end training; 0: never."""
        after = self._compared(error_pct, step)
        after = after._levelled(error_pct, plateau) if plateau else after
        patience_ended = 0 < stop_after <= after.waited and not after.stopped
        return after.model_copy(update={"stopped": "stop_after"}) if patience_ended else after

    def trained(self, error_pct: float, stop_at_pct: float) -> "Progress":
        """After an epoch with this training error. stop_at_pct: the error that is low enough; 0: none is."""
        enough = stop_at_pct > 0 and error_pct <= stop_at_pct and not self.stopped
        return self.model_copy(update={"stopped": "stop_at_pct"}) if enough else self

    def is_best(self, step: int) -> bool:
        """Whether no evaluation was better than the one at `step`."""
        return self.best_step == step

    def _compared(self, error_pct: float, step: int) -> "Progress":
        if self.best_pct is None or error_pct < self.best_pct:
            return self.model_copy(update={"best_pct": error_pct, "best_step": step, "waited": 0})
        return self.model_copy(update={"waited": self.waited + 1})

    def _levelled(self, error_pct: float, plateau: Plateau) -> "Progress":
        if self.level_pct is None or error_pct < self.level_pct - plateau.change:
            return self.model_copy(update={"level_pct": error_pct, "stalled": 0})
        if self.stalled + 1 < plateau.patience:
            return self.model_copy(update={"stalled": self.stalled + 1})
        if self.drops < plateau.drops:
            return self.model_copy(update={"drops": self.drops + 1, "stalled": 0})
        return self.model_copy(update={"stopped": "plateau"})
