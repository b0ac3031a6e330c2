"""A workflow that dies ends what drives it, instead of being waited for."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.engine import DATABASE, Died, Engine


async def broken(task: str) -> str:
    raise ValueError(f"{task} is broken")


def test_a_workflow_that_dies_ends_the_run_with_its_words_and_so_does_one_that_died_before(tmp_path: Path) -> None:
    async def wait_for_it() -> None:
        await engine.spawn("task", "r-1/a", "a")
        await asyncio.Event().wait()

    for _ in ("begun", "resumed"):
        with Engine(tmp_path / DATABASE, {"task": broken}) as engine, pytest.raises(Died) as died:
            asyncio.run(asyncio.wait_for(engine.drive(wait_for_it()), 60))
        assert "`r-1/a` broke off and can't go on: " in str(died.value)
        assert "a is broken" in str(died.value)
