"""Training: the loop, and what surrounds it so that nothing is lost: metrics, checkpoints, signals, bad numbers."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mlcore.checkpoint import Arrays, Checkpoint, Row, State, save
from mlcore.data.loader import Batch
from mlcore.data.views import Stream
from mlcore.display import Display, View
from mlcore.engines import Engine, engine_for
from mlcore.errors import CheckpointError, Interrupted, NotFinite, RecipeError
from mlcore.evaluate import Evaluation, evaluate_by
from mlcore.finite import all_finite, find_non_finite
from mlcore.monitor import LOG_EVERY, Monitor
from mlcore.parallel import Team
from mlcore.progress import Progress
from mlcore.rank_engine import team_engine
from mlcore.runs import Run
from mlcore.schedule import Plateau
from mlcore.session import Session, load_weights
from mlcore.snapshots import Snapshots
from mlcore.stop import Stop


@dataclass(frozen=True)
class Step:
    """One optimiser step: its number (0-based), the batch's mean loss, how many images, how many were wrong."""

    number: int
    loss: float
    images: int
    wrong: int
    rate: float


def fit(
    session: Session, start: int, engine: Engine | None = None, drops: Callable[[], int] = lambda: 0
) -> Iterator[Step]:
    """The loop: a step per batch, from `start` to the recipe's end. drops: plateaus met so far, asked at every step."""
    engine = engine or engine_for(session)
    for number, batch in enumerate(session.loader.batches(start, session.total_steps), start):
        loss, logits = engine.step(batch, number)
        if not (np.isfinite(loss) and engine.is_finite()):
            raise _where_not_finite(session, batch, number)
        rate = session.rate(number, drops())
        engine.move(rate)
        wrong = int(np.count_nonzero(logits.argmax(axis=1) != batch.labels))
        yield Step(number, loss, len(batch.labels), wrong, rate)


@dataclass
class Trainer:
    """Drives `fit` from a state to the end. `began`: (wall, CPU) clocks at the start of this sitting.

    `best`: weights and buffers of the lowest validation error so far, where the recipe keeps them. `snapshots`: where
    what the network says of the training images goes after each epoch.
    """

    session: Session
    run: Run
    state: State
    monitor: Monitor
    display: Display
    stop: Stop
    began: tuple[float, float]
    best: Arrays = field(default_factory=dict)
    team: Team = field(default_factory=Team)
    snapshots: Snapshots | None = None
    saved_at: float = field(default_factory=time.monotonic)
    told: set[str] = field(default_factory=set)  # kinds of faults

    def __post_init__(self) -> None:
        self.faults_before = dict(self.session.feeds.faults.counts)  # those that were left out before training

    @cached_property
    def engine(self) -> Engine:
        """What runs the steps."""
        return team_engine(self.team, self.session)

    def train(self) -> State:
        """Train to the end; raises Interrupted (checkpoint written) or NotFinite (the last one stays)."""
        first = self.state.step
        steps = () if self._is_over() else fit(self.session, first, self.engine, self._drops)
        start = clock = time.perf_counter()  # the engine stands
        for step in steps:
            self._count(step, time.perf_counter() - clock)
            self._log(step)
            pace = (time.perf_counter() - start) / (self.state.step - first)
            self.display.show(self._view(pace))
            ended = self._at_epoch_end()
            signal, overdue = self.team.agree(self.stop.signal, self._is_due())
            due = ended or signal or overdue
            if due:
                self.engine.give()
            if ended:
                self._close_epoch()
            if due:
                self.checkpoint()
            if self._is_over():
                break
            if signal:
                raise self._interrupted(signal)
            clock = time.perf_counter()
        return self.timed()

    def use_best(self) -> None:
        """Put the kept weights into the network, if there are any: what is evaluated from now on."""
        if self.best:
            load_weights(self.session.model, self.best)
            self.engine.take()

    def checkpoint(self) -> None:
        """Save now; a failure is told and training goes on, for the checkpoint before stays."""
        _demand_finite_weights(self.session, self.state.step)
        self.saved_at = time.monotonic()
        if self.team.leads:
            self._save()
        self.team.meet()

    def _save(self) -> None:
        try:
            best = {f"best/{name}": array for name, array in self.best.items()}
            save(self.run.checkpoints, Checkpoint(self.timed(), self.session.arrays() | best))
        except CheckpointError as error:
            self.warn(str(error))

    def evaluate(self, stream: Stream) -> Evaluation:
        """What the network says about images now."""
        return evaluate_by(self.engine.logits, stream, self.state.step)

    def validate(self) -> Evaluation | None:
        """What the network says on the validation part; None when there is none."""
        return self.evaluate(self.session.validation) if len(self.session.validation) else None

    def warn(self, text: str) -> None:
        """Tell now and in the result."""
        self.display.warn(text)
        if text not in self.state.warnings:
            self.state = self.state.model_copy(update={"warnings": (*self.state.warnings, text)})

    def timed(self) -> State:
        """The state with this sitting's wall and CPU seconds added."""
        wall, cpu = time.monotonic() - self.began[0], time.process_time() - self.began[1]
        times = {"wall_s": self.state.wall_s + wall, "cpu_s": self.state.cpu_s + cpu}
        return self.state.model_copy(update=times)

    def _update(self, **fields: object) -> None:
        self.state = self.state.model_copy(update=fields)

    def _count(self, step: Step, seconds: float) -> None:
        state = self.state
        self._update(
            step=step.number + 1,
            epoch_loss_sum=state.epoch_loss_sum + step.loss * step.images,
            epoch_wrong=state.epoch_wrong + step.wrong,
            epoch_images=state.epoch_images + step.images,
            images=state.images + step.images,
            train_wall_s=state.train_wall_s + seconds,
        )

    def _log(self, step: Step) -> None:
        if step.number % LOG_EVERY == 0:
            epoch = step.number // self.session.loader.steps_per_epoch + 1
            self._row({"kind": "step", "step": step.number + 1, "epoch": epoch, "loss": step.loss, "rate": step.rate})

    def _row(self, row: Row) -> None:
        self._update(rows=(*self.state.rows, row))
        self._write_metrics(lambda: self.monitor.add(row))

    def catch_up(self) -> None:
        """Write metrics that a full disk kept from being written, if there is room now."""
        self._write_metrics(self.monitor.catch_up)

    def _write_metrics(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self.warn(f"metrics can't be written: {error.strerror or error}")

    def _view(self, pace_s: float) -> View:
        state, per_epoch = self.state, self.session.loader.steps_per_epoch
        return View(
            epoch=(state.step - 1) // per_epoch + 1,
            epochs=-(-self.session.total_steps // per_epoch),
            step=state.step,
            total_steps=self.session.total_steps,
            loss=state.epoch_loss_sum / state.epoch_images,
            error_pct=100 * state.epoch_wrong / state.epoch_images,
            images_per_s=state.images / state.train_wall_s,
            left_s=pace_s * (self.session.total_steps - state.step),
        )

    def _at_epoch_end(self) -> bool:
        step = self.state.step
        return step % self.session.loader.steps_per_epoch == 0 or step == self.session.total_steps

    def _close_epoch(self) -> None:
        """The epoch's row, with the validation part's error when it is due; the sums begin anew."""
        state = self.state
        epoch = -(-state.step // self.session.loader.steps_per_epoch)
        train_error_pct = 100 * state.epoch_wrong / state.epoch_images
        row: Row = {
            "kind": "epoch",
            "step": state.step,
            "epoch": epoch,
            "train_loss": state.epoch_loss_sum / state.epoch_images,
            "train_error_pct": train_error_pct,
            "validation_loss": None,
            "validation_error_pct": None,
            "images_per_s": state.images / state.train_wall_s,
            "wall_s": self.timed().wall_s,
        }
        stop_at_pct = self.session.recipe.train.stop_at_pct
        self._update(progress=self.state.progress.trained(train_error_pct, stop_at_pct))
        if epoch % self.session.recipe.train.eval_every == 0 or self._is_over():
            row |= self._validated()
        self._row(row)
        self._update(epoch_loss_sum=0.0, epoch_wrong=0, epoch_images=0)
        self.display.say(_epoch_line(row, -(-self.session.total_steps // self.session.loader.steps_per_epoch)))
        self._tell_progress(state.progress)
        self._snapshot(epoch)
        self._tell_faults(epoch)

    def _validated(self) -> Row:
        """What the validation part adds to an epoch's row; rate, end and best weights follow from it."""
        seen = self.validate()
        if seen is None or seen.error_pct is None:
            return {}
        state, train, schedule = self.state, self.session.recipe.train, self.session.schedule
        plateau = schedule if isinstance(schedule, Plateau) else None
        progress = state.progress.seen(seen.error_pct, state.step, plateau, train.stop_after)
        self._update(progress=progress)
        if train.keep_best and progress.is_best(state.step):
            self.best = {name: tensor.data.copy() for name, tensor in self.session.model.state().items()}
        top5: Row = {} if seen.top5_error_pct is None else {"validation_top5_error_pct": seen.top5_error_pct}
        return {"validation_loss": seen.loss, "validation_error_pct": seen.error_pct, **top5}

    def _tell_progress(self, before: Progress) -> None:
        now = self.state.progress
        if now.drops > before.drops:
            rate = self.session.rate(self.state.step, now.drops)
            self.display.say(f"the validation error stalls: the rate drops to {rate:g} ({now.drops})")
        if now.stopped == "stop_at_pct":
            self.display.say("the training error is low enough: training ends")
        elif now.stopped:
            best = f"{now.best_pct:.2f} % at step {now.best_step}"
            self.display.say(f"the validation error stalls: training ends; the lowest was {best}")

    def _tell_faults(self, epoch: int) -> None:
        """What can't be read any more is told once, while there is time to mend it, and stays told after a kill."""
        faults = self.session.feeds.faults
        for kind, count in faults.counts.items():
            if count > self.faults_before.get(kind, 0) and kind not in self.told:
                self.told.add(kind)
                self.warn(f"since epoch {epoch}: {faults.line(kind)}")

    def _snapshot(self, epoch: int) -> None:
        """A snapshot that can't be written costs a warning: training is worth more."""
        if self.snapshots is None:
            return
        try:
            seen = self.evaluate(self.snapshots.images)
            if self.team.leads:
                self.snapshots.write(epoch, seen.predictions)
        except OSError as error:
            self.warn(f"the predictions after epoch {epoch} can't be written: {error.strerror or error}")

    def _is_over(self) -> bool:
        return self.state.step >= self.session.total_steps or bool(self.state.progress.stopped)

    def _drops(self) -> int:
        return self.state.progress.drops

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.session.recipe.train.checkpoint_every_s

    def _interrupted(self, number: int) -> Interrupted:
        return Interrupted(
            f"stopped after step {self.state.step} of {self.session.total_steps}",
            signal_number=number,
            fix=f"go on with `mlcore train --resume {self.run.path}`",
        )


def demand_validation(session: Session) -> None:
    """RecipeError for what needs validation errors where nothing is held out."""
    train = session.recipe.train
    needing = {
        'schedule.name = "plateau"': isinstance(session.schedule, Plateau),
        "train.stop_after": train.stop_after > 0,
        "train.keep_best": train.keep_best,
    }
    for key, needs in needing.items():
        if needs and not len(session.validation):
            raise RecipeError("needs images held out", place=key, fix="set data.validation, for example to 5000")


def _epoch_line(row: Row, epochs: int) -> str:
    validation = row["validation_error_pct"]
    shown = "" if validation is None else f"  validation error {validation:.2f} %"
    if (top5 := row.get("validation_top5_error_pct")) is not None:
        shown += f" (top-5 {top5:.2f} %)"
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['train_loss']:.4f}  "
        f"train error {row['train_error_pct']:.2f} %{shown}  {row['images_per_s']:,.0f} images/s"
    )


def _where_not_finite(session: Session, batch: Batch, number: int) -> NotFinite:
    """The error that names the first layer at fault for a NaN or an infinity."""
    rng = session.rng.child("step", number)
    found = find_non_finite(session.model, batch.images, batch.labels, rng) or "loss: not finite"
    return _not_finite(found, number)


def _demand_finite_weights(session: Session, step: int) -> None:
    for name, tensor in session.model.state().items():
        if not all_finite(tensor.data):
            raise _not_finite(f"layer '{name.rpartition('.')[0]}': weight {name} is not finite", step)


def _not_finite(found: str, step: int) -> NotFinite:
    match = re.match(r"layer '([^']*)': (.*)", found, re.DOTALL)
    layer, _, what = ("", "", "") if match else found.partition(": ")
    return NotFinite(match.group(2) if match else what, step=step, layer=match.group(1) if match else layer)
