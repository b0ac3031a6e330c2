"""Pull requests without a server: branches in Odyssey's bare repository, records in the ledger.

Pull requests of a run are stacked: each builds on the one below. Merging is what a person does, and the only moment at
which Odyssey touches the user's branches.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

from orchestrator.errors import ForgeError, GitError
from orchestrator.ledger import Ledger
from orchestrator.records import PullRequest
from orchestrator.workspace import Repository, find_checkout, git, own_config


class LocalForge:
    def __init__(self, ledger: Ledger, repository: Repository, root: Path) -> None:
        self._ledger = ledger
        self._repository = repository
        self._root = root

    def open(self, draft: PullRequest) -> PullRequest:
        known = self._ledger.pull_of(draft.run, draft.task) or draft
        self._repository.set_branch(known.head, known.commit)  # first: without its branch it couldn't be merged
        return self._ledger.add_pull(
            lambda number: draft.model_copy(update={"number": number, "created_at": self._ledger.time()}),
            draft.run,
            draft.task,
        )

    def all(self) -> list[PullRequest]:
        return self._ledger.pulls()

    def show(self, number: int) -> PullRequest:
        return self._ledger.pull(number)

    def diff(self, number: int) -> str:
        pull = self.show(number)
        return self._repository.diff(pull.base_commit, pull.commit)

    def approve(self, number: int, by: str) -> PullRequest:
        pull = self._open(number)
        if by == pull.author:
            fix = "who approves has a name of their own; `git config user.name NAME` sets it"
            raise ForgeError(f"`{by}` wrote pull request {number}: an author's approval does not count; {fix}")
        return self._ledger.set_pull(number, status="approved", approved_by=by)

    def close(self, number: int) -> PullRequest:
        self._open(number)
        return self._ledger.set_pull(number, status="closed")

    def reopen(self, number: int) -> PullRequest:
        pull = self.show(number)
        if pull.status == "merged":
            raise ForgeError(_over(pull))
        if pull.status != "closed":
            raise ForgeError(f"pull request {number} is {pull.status}; `orchestrate pr merge {number}` takes it")
        return self._ledger.set_pull(number, status="open", approved_by="")

    def merge(self, number: int, by: str) -> PullRequest:
        """Bring it, and whatever open ones it is stacked on, into the base branch. Raises ForgeError with the fix."""
        pull = self._open(number)
        for each in self._below(pull):
            if each.status == "closed":
                raise ForgeError(
                    f"pull request {number} is stacked on {each.number}, which was closed; `orchestrate pr reopen "
                    f"{each.number}` opens it again, or take {number} alone by hand: "
                    f"{self._by_hand(pull, f'cherry-pick {pull.base_commit[:12]}..FETCH_HEAD')}"
                )
            if each.guarded and each.status != "approved":
                raise ForgeError(
                    f"pull request {each.number} changes what guards the system: "
                    f"read it, then `orchestrate pr approve {each.number}`"
                )
        self._merge_commit(pull)
        for each in self._below(pull):
            merged = self._ledger.set_pull(each.number, status="merged", approved_by=each.approved_by or by)
        return merged

    def _open(self, number: int) -> PullRequest:
        pull = self.show(number)
        if pull.status not in ("open", "approved"):
            raise ForgeError(_over(pull))
        return pull

    def _below(self, pull: PullRequest) -> list[PullRequest]:
        """What merging this one brings in, from the bottom of the stack up to itself."""
        stack = [pull]
        while stack[0].below is not None:
            lower = self.show(stack[0].below)
            if lower.status == "merged":
                break
            stack.insert(0, lower)
        return stack

    def _merge_commit(self, pull: PullRequest) -> None:
        checkout = find_checkout(self._root)
        message = f"Merge pull request {pull.number}: {pull.title}"
        if (self._root / git(self._root, "rev-parse", "--git-path", "MERGE_HEAD")).exists():
            raise ForgeError(
                "a merge is under way here; finish it (`git commit`) or give it up (`git merge --abort`) first"
            )
        if pull.base and not self._has_branch(pull.base):
            raise ForgeError(
                f"pull request {pull.number} is for {pull.base}, which is no branch any more; `git switch -c "
                f"{pull.base}` makes one where you stand, or merge it by hand: "
                f"{self._by_hand(pull, 'merge FETCH_HEAD')}"
            )
        if not checkout.branch or pull.base not in ("", checkout.branch):
            raise ForgeError(
                f"pull request {pull.number} is for {pull.base or 'a branch'}, and {checkout.branch or 'no branch'} is "
                f"checked out; run `git switch {pull.base or 'BRANCH'}` first"
            )
        git(self._root, "fetch", "--quiet", "--no-tags", "--", str(self._repository.folder), f"refs/heads/{pull.head}")
        try:
            git(
                self._root, "merge", "--quiet", "--no-ff", "--no-edit", "-m", message, pull.commit, env=self._identity()
            )
        except GitError as error:
            self._undo()
            raise ForgeError(f"pull request {pull.number} can't be merged: {_advice(str(error), pull)}") from error

    def _has_branch(self, name: str) -> bool:
        try:
            git(self._root, "rev-parse", "--verify", "--quiet", f"refs/heads/{name}")
        except GitError:
            return False
        return True

    def _by_hand(self, pull: PullRequest, then: str) -> str:
        """What a person types to take it without us; git takes the path from the root, wherever they stand."""
        folder = self._repository.folder
        place = folder.relative_to(self._root) if folder.is_relative_to(self._root) else folder
        return f"`git fetch {shlex.quote(str(place))} {pull.head}`, then `git {then}`"

    def _undo(self) -> None:
        with contextlib.suppress(GitError):  # when git refused before it began, there is none to undo
            git(self._root, "merge", "--abort")

    def _identity(self) -> dict[str, str]:
        """The person's own name, which our clean environment would hide, for the merge commit."""
        found = {}
        for role in ("AUTHOR", "COMMITTER"):
            for field in ("name", "email"):
                found[f"GIT_{role}_{field.upper()}"] = person(self._root, field, role)
        return found


def _over(pull: PullRequest) -> str:
    if pull.status == "closed":
        return f"pull request {pull.number} is already closed; `orchestrate pr reopen {pull.number}` opens it again"
    fix = "`git log --merges` names its merge, and `git revert -m 1 COMMIT` takes it back"
    return f"pull request {pull.number} is already merged; {fix}"


def _advice(words: str, pull: PullRequest) -> str:
    """What git said, and what a person can type now; the commit was fetched, so that its short name is enough."""
    if "would be overwritten" in words:
        return f"files of yours are in the way; commit them, or `git stash -u`, first. Git says: {words}"
    by_hand = f"git merge {pull.commit[:12]}"
    return f"it conflicts with what the branch has now; `{by_hand}` merges it by hand. Git says: {words}"


def person(root: Path, field: str = "name", role: str = "AUTHOR") -> str:
    """Who is at the keyboard, as git knows them."""
    user = os.environ.get("USER") or f"uid-{os.getuid()}"
    known = os.environ.get(f"GIT_{role}_{field.upper()}") or own_config(root, "--get", f"user.{field}")
    return known or (user if field == "name" else f"{user}@localhost")
