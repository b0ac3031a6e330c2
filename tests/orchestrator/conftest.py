"""Fixtures of the orchestrator's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.orchestrator.forks import Forks, forks


@pytest.fixture(scope="module")
def warm() -> Iterator[Forks]:
    """A process that runs `orchestrate` in forks."""
    with forks() as made:
        yield made
