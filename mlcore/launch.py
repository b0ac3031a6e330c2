"""A run from its beginning to its result: new, resumed or continued; every end leaves its files in order."""

import contextlib
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from mlcore import result as results
from mlcore import runs
from mlcore.checkpoint import Arrays, Checkpoint, Row, State, newest, save
from mlcore.config import Recipe
from mlcore.data import cifar, mnist
from mlcore.display import Display, now_and_then
from mlcore.engines import demand_engine
from mlcore.errors import CheckpointError, DataError, Interrupted, MlcoreError
from mlcore.evaluate import Evaluation
from mlcore.files import write_array, write_json
from mlcore.monitor import Monitor, Unwritten
from mlcore.parallel import Team
from mlcore.session import AnyDataset, Session, assemble, load_weights, network_input, use_threads
from mlcore.snapshots import of_training_images
from mlcore.stop import Halted, Stop
from mlcore.train import Trainer, demand_validation
from mlcore.warm import Wanted, warm

WITHHELD = {mnist.TEST_LABELS, cifar.TEST}  # files that a run can do without

Errors: TypeAlias = tuple[float | None, float | None]  # top-1 and top-5, percent


@dataclass(frozen=True)
class Order:
    """What was asked for on the command line, beyond the recipe."""

    overrides: tuple[str, ...] = ()
    data_dir: Path | None = None
    pictures: bool = True
    team: Team = field(default_factory=Team)


def started(recipe: Recipe, dataset: AnyDataset, out: Path | None, go_on: bool, display: Display) -> runs.Run:
    """The folder to train in. With `go_on`, `out` may hold a run; another recipe's or data's is replaced.

    MlcoreError when another process trains there.
    """
    run = runs.Run(out) if out else None
    if not (run and go_on and run.recipe.exists()):
        return runs.create(recipe, out, datetime.now())
    with run.locked():
        if _same(run, recipe, dataset, display):
            return run
        display.warn(f"{run.path}: held a run of another recipe or other data; it is replaced")
        run.clear()
        return runs.create(recipe, out, datetime.now())


def execute(
    run: runs.Run, recipe: Recipe, dataset: AnyDataset, display: Display, order: Order, stop: Stop
) -> dict[str, Any]:
    """Train what is left of the run and write its result; returns result.json's document.

    A finished run is left as it is. Raises Interrupted or NotFinite after the result was written with that status.
    """
    team = order.team
    with run.locked() if team.leads else contextlib.nullcontext():
        if team.told(lambda: "finished" if run.finished() else ""):
            display.say(f"{run.path}: finished already")
            return run.finished() or {}
        began = (time.monotonic(), time.process_time())
        demand_engine(recipe, team.size)
        threads = use_threads(team.threads(recipe.threads))
        session = assemble(recipe, dataset)
        demand_validation(session)
        # before compiling: what is stopped while it compiles can be resumed
        state, best = _shared_state(run, session, dataset, order, display)
        wanted = Wanted.of_recipe(recipe, *network_input(recipe))
        wanted = replace(wanted, batch=-(-wanted.batch // team.size))
        if recipe.engine is None:
            team.in_turn(lambda: warm(wanted, now_and_then(display.say)))
        trainer = Trainer(session, run, state, _monitor(run, state, order), display, stop, began, best, team)
        if recipe.train.snapshots:
            trainer.snapshots = of_training_images(run.path, session, dataset)
        return _Ending(trainer, dataset, order, threads).run_to_result()


def _same(run: runs.Run, recipe: Recipe, dataset: AnyDataset, display: Display) -> bool:
    """Whether the run in the folder is of this recipe and of these training and test images."""
    try:
        if run.load_recipe() != recipe:
            return False
        done = run.finished()
        found = None if done else newest(run.checkpoints, display.warn)
        known = done["data"]["sha256"] if done else found.state.data_sha256 if found else dataset.sha256
    except (MlcoreError, KeyError, TypeError) as error:
        display.warn(f"{run.path}: can't be gone on with: {error}")
        return False
    return _agree(known, dataset.sha256)


def _agree(known: dict[str, str], present: dict[str, str]) -> bool:
    """Equal, but that test labels may be withheld from one of them."""
    one_sided = known.keys() ^ present.keys()
    return one_sided <= WITHHELD and all(known[name] == present[name] for name in known.keys() & present.keys())


def _shared_state(
    run: runs.Run, session: Session, dataset: AnyDataset, order: Order, display: Display
) -> tuple[State, Arrays]:
    """The leader's state and kept weights, with the rest of its arrays in every rank's session."""
    team, best = order.team, Arrays()

    def read() -> str:
        nonlocal best
        state, best = _restored(run, session, dataset, order, display)
        return state.model_dump_json()

    state = State.model_validate_json(team.told(read))
    if state.step and team.size > 1:
        memory = session.optimiser.state()
        _copy_all(team, {name: tensor.data for name, tensor in session.model.state().items()})
        _copy_all(team, memory)
        session.optimiser.load_state(memory)
        if team.told(lambda: "kept" if best else ""):
            best = best or {name: tensor.data.copy() for name, tensor in session.model.state().items()}
            _copy_all(team, best)
    return _among(team, state, display), best


def _copy_all(team: Team, arrays: Arrays) -> None:
    for name in sorted(arrays):
        team.copy(arrays[name])


def _among(team: Team, state: State, display: Display) -> State:
    """The state of a run that goes on among so many ranks; other sums round otherwise, which is told."""
    if state.step == 0 or state.ranks == team.size:
        return state.model_copy(update={"ranks": team.size})
    text = f"{state.ranks} ranks until step {state.step}, {team.size} from here: no run in one piece has the same bits"
    display.warn(text)
    return state.model_copy(update={"ranks": team.size, "warnings": (*state.warnings, text)})


def _restored(
    run: runs.Run, session: Session, dataset: AnyDataset, order: Order, display: Display
) -> tuple[State, Arrays]:
    """The state to go on from and the best weights that are kept, the rest of its arrays loaded into the session.

    A first checkpoint is made when there is none; weights that recipe and seed give again are not in it.
    """
    found = newest(run.checkpoints, display.warn)
    if found is None:
        state = State(
            recipe_sha256=session.recipe.sha256,
            data_sha256=dataset.sha256,
            data_dir=str(order.data_dir.resolve()) if order.data_dir else None,
            step=0,
            overrides=order.overrides,
            warnings=dataset.warnings,
        )
        save(run.checkpoints, Checkpoint(state, session.measured() if session.total_steps else session.arrays()))
        return state, {}
    if found.state.recipe_sha256 != session.recipe.sha256 or not _agree(found.state.data_sha256, dataset.sha256):
        raise CheckpointError(
            "the checkpoints are of another recipe or other data", place=str(run.path), fix="choose another --out"
        )
    if found.state.step or found.weights:
        load_weights(session.model, found.group("model"))
        session.optimiser.load_state(found.group("optimiser"))
    display.say(f"going on after step {found.state.step} of {session.total_steps}")
    return found.state, found.group("best")


def _monitor(run: runs.Run, state: State, order: Order) -> Monitor:
    if not order.team.leads:
        return Unwritten()
    try:
        return Monitor(run.metrics, run.events if order.pictures else None, state.rows, state.step)
    except OSError as error:
        raise DataError(f"can't be written ({error.strerror})", place=str(run.path), fix="make room") from error


@dataclass
class _Ending:
    """What follows on training, however it ended: evaluation, predictions, pictures, result.json."""

    trainer: Trainer
    dataset: AnyDataset
    order: Order
    threads: int

    def run_to_result(self) -> dict[str, Any]:
        trainer = self.trainer
        try:
            trainer.stop.gentle = True
            state = trainer.train()
            return self._finish(state)
        except Halted as halted:
            raise self._noted("interrupted", _halted(halted, trainer)) from halted
        except Interrupted as error:
            raise self._noted("interrupted", error) from None
        except MlcoreError as error:
            raise self._noted("failed", error) from None
        finally:
            trainer.stop.gentle = False
            trainer.display.close()

    def _finish(self, state: State) -> dict[str, Any]:
        trainer, run = self.trainer, self.trainer.run
        trainer.catch_up()
        trainer.use_best()
        seen, held_out = trainer.evaluate(trainer.session.feeds.test), self._held_out(state)
        if not self.order.team.leads:
            return {}
        try:
            write_array(run.predictions, seen.predictions)
            if seen.top5 is not None:
                write_array(run.top5_predictions, seen.top5)
            if seen.centre is not None:
                write_array(run.centre_predictions, seen.centre)
            if self.order.pictures:
                self._draw(seen)
            document = self._result("finished", held_out, seen, None)
            write_json(run.result, document)
        except OSError as error:
            raise DataError(
                f"the result can't be written ({error.strerror or error})",
                place=str(run.path),
                fix="make room, then --resume",
            ) from error
        return document

    @property
    def _tested_step(self) -> int:
        """Whose weights are tested: the last step's, or the kept ones'."""
        progress = self.trainer.state.progress
        return self.trainer.state.step if progress.best_step is None or not self.trainer.best else progress.best_step

    def _held_out(self, state: State) -> Errors:
        """(error, top-5 error) on the validation part, by the weights that are tested."""
        epochs = [row for row in state.rows if row["kind"] == "epoch" and row["step"] == self._tested_step]
        if epochs:
            return _number(epochs[-1], "validation_error_pct"), _number(epochs[-1], "validation_top5_error_pct")
        seen = self.trainer.validate()
        return (seen.error_pct, seen.top5_error_pct) if seen else (None, None)

    def _draw(self, seen: Evaluation) -> None:
        """Pictures never cost a run its result."""
        from mlcore.pictures import draw_all

        try:
            draw_all(self.trainer.run, self.trainer.state.rows, self.dataset, seen.predictions)
        except Exception as error:
            self.trainer.warn(f"pictures can't be drawn: {type(error).__name__}: {error}")

    def _noted(self, status: results.Status, error: MlcoreError) -> MlcoreError:
        """The error, after result.json was written with it as far as the disk allows."""
        if not self.order.team.leads:
            return error
        failure = results.Failure(
            error=type(error).__name__,
            message=str(error),
            exit_code=error.exit_code,
            step=getattr(error, "step", None),
            layer=getattr(error, "layer", None),
        )
        try:
            write_json(self.trainer.run.result, self._result(status, (None, None), None, failure))
        except OSError as lost:
            self.trainer.warn(f"result.json can't be written: {lost.strerror or lost}")
        return error

    def _result(
        self,
        status: results.Status,
        held_out: Errors,
        seen: Evaluation | None,
        failure: results.Failure | None,
    ) -> dict[str, Any]:
        state, session, data = self.trainer.timed(), self.trainer.session, self.dataset
        recipe = session.recipe
        weights = {name: tensor.data for name, tensor in session.model.state().items()}
        return results.Result(
            schema_name=results.SCHEMA,
            status=status,
            verdict=results.NOT_MNIST if data.surrogate else None,
            recipe=results.RecipeRef(name=recipe.name, sha256=recipe.sha256, overrides=state.overrides),
            code=results.code(),
            data=results.DataRef(name=data.name, surrogate=data.surrogate, sha256=data.sha256),
            seed=recipe.seed,
            machine=results.machine(self.threads, self.order.team.size),
            wall_s=state.wall_s,
            cpu_s=state.cpu_s,
            train_wall_s=state.train_wall_s,
            images_per_s=state.images / state.train_wall_s if state.train_wall_s else None,
            epochs=state.step / session.loader.steps_per_epoch,
            steps=state.step,
            total_steps=session.total_steps,
            parameters=sum(tensor.data.size for tensor in session.model.parameters().values()),
            weights_sha256=results.weights_sha256(weights),
            train_loss=_last(state, "train_loss"),
            validation_error_pct=held_out[0],
            test_loss=seen.loss if seen else None,
            test_error_pct=seen.error_pct if seen else None,
            failure=failure,
            warnings=(*state.warnings, *session.feeds.faults.lines()),
            validation_top5_error_pct=held_out[1],
            test_top5_error_pct=seen.top5_error_pct if seen else None,
            best_validation_error_pct=state.progress.best_pct,
            best_step=state.progress.best_step,
            tested_step=self._tested_step if seen else None,
            rate_drops=state.progress.drops,
            stopped_early=state.progress.stopped or None,
        ).document()


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) else None


def _last(state: State, key: str) -> float | None:
    """The value of the newest epoch row that has one."""
    values = (row.get(key) for row in reversed(state.rows) if row["kind"] == "epoch")
    return next((float(value) for value in values if isinstance(value, (int, float))), None)


def _halted(halted: Halted, trainer: Trainer) -> Interrupted:
    return Interrupted(
        "stopped at once by a second signal",
        signal_number=halted.number,
        fix=f"go on from the last checkpoint with `mlcore train --resume {trainer.run.path}`",
    )
