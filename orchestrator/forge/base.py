"""Where pull requests live: the one interface that the local forge and GitHub share."""

from __future__ import annotations

from typing import Protocol

from orchestrator.records import PullRequest


class Forge(Protocol):
    def open(self, draft: PullRequest) -> PullRequest:
        """Open it, or give back the one that this task of this run already has. The draft's number is not used."""
        ...

    def all(self) -> list[PullRequest]: ...

    def show(self, number: int) -> PullRequest: ...

    def diff(self, number: int) -> str: ...

    def approve(self, number: int, by: str) -> PullRequest: ...

    def merge(self, number: int, by: str) -> PullRequest: ...

    def close(self, number: int) -> PullRequest: ...

    def reopen(self, number: int) -> PullRequest:
        """As it was when it was opened: an approval of before does not count."""
        ...
