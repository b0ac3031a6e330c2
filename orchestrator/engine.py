"""Durable execution behind one small interface: workflows whose steps are journaled, so that a killed run goes on.

The library is DBOS on SQLite. What it must be told, each learned from a failure: an executor id of its own for every
process, a constant application version, JSON instead of pickle, and that work left PENDING by a dead process is ours
to take over (the caller holds the repository's lock, so nobody else is at it).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError

Json = Any
Workflow = Callable[..., Coroutine[Any, Any, Json]]

# A journal is read by position and name of its steps. Whoever adds, drops, renames or moves a step, or changes what one
# returns, raises this: unfinished runs of before are then left to the version that began them. A test names all steps.
APPLICATION_VERSION = "odyssey-8"
POLL_S, SELDOM_S = 0.05, 1.0  # between looks at the journal: while something is due, and in a training's hours
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 64 * 1024  # as malloc.h numbers it
DATABASE = "workflows.db"  # a run's journal
PAGES_KB = 256  # of the journal, kept in memory by one connection


class _Connection(sqlite3.Connection):
    """One of the journal's, of which DBOS keeps up to twenty: each would fill 2 MB of pages as the journal grows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.execute(f"PRAGMA cache_size = -{PAGES_KB}")


class Paused(Exception):
    """The run was stopped where it is, on purpose; `resume` goes on from there.

    code: with which to exit. task: the one that is paused, where the others went on.
    """

    def __init__(self, reason: str, code: int = 5, task: str = "") -> None:
        self.code, self.task = code, task
        super().__init__(reason)


def check_version(database: Path, run: str, plan: str) -> None:
    """Raises InputError when another version left work in this journal: DBOS would never begin it, and say nothing."""
    sql = "SELECT application_version FROM workflow_status WHERE status IN ('PENDING', 'ENQUEUED')"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'workflow_status'").fetchone()
        left = {version for (version,) in connection.execute(sql)} if there else set()
    if others := sorted(left - {APPLICATION_VERSION, None}):
        what = f"was begun by {', '.join(others)}, and this is {APPLICATION_VERSION}, which can't take up its work"
        fix = f"start a new run with `orchestrate run {plan}`, or resume with the version that began it"
        raise InputError(f"run `{run}` {what}; {fix}")


class Died(Exception):
    """A workflow ended by an exception of its own, a defect: its journal is closed, so `resume` only tells it again."""


class Engine:
    """One process's share of the durable work. Use as a context manager; workflows are named functions."""

    def __init__(
        self,
        database: Path,
        workflows: dict[str, Workflow],
        on_hold: Callable[[str, str], None] | None = None,
        leave: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """leave: what is waited for before a run that pauses, or died, is left; no step begins meanwhile."""
        self._database = database
        self._workflows = workflows
        self._on_hold = on_hold
        self._leave = leave
        self._registered: dict[str, Workflow] = {}
        self._over: Future[Paused | Died] = Future()  # settled from any thread, even before `drive`
        self._watches: set[asyncio.Task[None]] = set()
        self._dbos: Any = None

    def __enter__(self) -> Engine:
        from dbos import DBOS, DBOSConfig

        _give_back()
        with sqlite3.connect(self._database) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # four times faster a step
        logging.getLogger("dbos").setLevel(logging.CRITICAL)
        config = DBOSConfig(
            name="odyssey",
            system_database_url=f"sqlite:///{self._database}",
            executor_id=f"{os.getpid()}-{os.urandom(4).hex()}",
            application_version=APPLICATION_VERSION,
            serializer=_serializer(),
            db_engine_kwargs={"connect_args": {"factory": _Connection}},
            notification_listener_polling_interval_sec=POLL_S,  # leaving waits for the last one
            log_level="CRITICAL",
            enable_otlp=False,
        )
        self._dbos = DBOS(config=config)
        self._look_every(POLL_S)
        self._registered = {name: DBOS.workflow(name=name)(_function(do)) for name, do in self._workflows.items()}
        DBOS.launch()
        return self

    def __exit__(self, *_: object) -> None:
        from dbos import DBOS

        DBOS.destroy(destroy_registry=True)

    def _look_every(self, seconds: float) -> None:
        """How often this process looks for resumed work: DBOS has no setting, and looks after a second at first."""
        with contextlib.suppress(AttributeError):  # a later DBOS: the second is waited for
            self._dbos._registry.get_internal_queue()._polling_interval_sec = seconds

    async def drive(self, main: Coroutine[Any, Any, Json]) -> Json:
        """Go on with every workflow that a dead process left, and run `main` beside them. Raises Paused or Died."""
        from dbos import DBOS

        over = asyncio.wrap_future(self._over)
        for status in await DBOS.list_workflows_async(status="PENDING"):
            await DBOS.resume_workflow_async(status.workflow_id)
        self._look_every(SELDOM_S)  # from the look on that finds these
        finished = asyncio.ensure_future(main)
        await asyncio.wait([finished, over], return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            if self._leave:
                await self._leave()
            finished.cancel()
            raise over.result()
        return await finished

    async def finish(self, name: str, workflow_id: str, *args: Json) -> Json:
        """What a workflow returns: started, gone on with, or given back if it is done."""
        from dbos import DBOS, SetWorkflowID

        with SetWorkflowID(workflow_id):
            handle = await DBOS.start_workflow_async(self._registered[name], *args)
        return await handle.get_result(polling_interval_sec=POLL_S)

    async def spawn(self, name: str, workflow_id: str, *args: Json) -> None:
        """Start a workflow; does nothing if it was started before. Its death is that of what `drive` runs."""
        from dbos import DBOS, SetWorkflowID

        with SetWorkflowID(workflow_id):
            handle = await DBOS.start_workflow_async(self._registered[name], *args)
        watch = asyncio.create_task(self._watch(workflow_id, handle))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _watch(self, workflow_id: str, handle: Any) -> None:
        try:
            await handle.get_result(polling_interval_sec=SELDOM_S)
        except Exception as error:
            died = Died(f"`{workflow_id}` broke off and can't go on: {type(error).__name__}: {error}")
            died.__cause__ = error
            self._end(died)

    async def step(self, name: str, do: Callable[[], Awaitable[Json]]) -> Json:
        """Run once and journal what it returns; after a crash give that back. A step cut off by a crash runs again.

        None begins once the run is being left.
        """
        from dbos import DBOS

        if self._over.done():
            await asyncio.Event().wait()

        async def call() -> Json:  # a lambda that returns a coroutine would be taken for a plain function
            return await do()

        return await DBOS.run_step_async({"name": name}, call)

    async def pause(self, reason: str, code: int = 5, task: str = "") -> Json:
        """Stop the run, or one task of it, from inside its workflow, which stays as after a crash. No return."""
        if task and self._on_hold:
            self._on_hold(task, reason)
        else:
            self._end(Paused(reason, code))
        await asyncio.Event().wait()

    def _end(self, why: Paused | Died) -> None:
        with contextlib.suppress(InvalidStateError):  # the first word counts
            self._over.set_result(why)


def _give_back() -> None:
    """Have glibc give large blocks back once they are freed, as it does at first and then unlearns.

    A long plan's text is written anew with every task; 7 MB of 120 stayed in the heap after a thousand of them.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def _function(do: Workflow) -> Workflow:
    """DBOS marks what it registers, and a bound method can't be marked."""

    async def call(*args: Json) -> Json:
        return await do(*args)

    return call


def _serializer() -> Any:
    """Journal entries as JSON: nothing is ever unpickled."""
    from dbos import Serializer

    class JsonSerializer(Serializer):
        def serialize(self, data: Any) -> str:
            return json.dumps(data, default=_as_json)

        def deserialize(cls, serialized_data: str) -> Any:
            return _from_json(json.loads(serialized_data))

        def name(self) -> str:
            return "odyssey_json"

    return JsonSerializer()


def _as_json(value: Any) -> Any:
    if isinstance(value, BaseException):
        return {"__error__": [type(value).__name__, str(value)]}
    if isinstance(value, (tuple, set)):
        return list(value)
    raise TypeError(f"{type(value).__name__} can't be journaled; return JSON from a step")


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"__error__"}:
        return RuntimeError(": ".join(value["__error__"]))
    return value
