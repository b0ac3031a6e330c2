"""No sandbox at all, for who typed the flag: tier "none", stamped on every receipt.

The environment is still cleared and the limits still hold, but the command sees the whole machine and the network as
the person does. Mounts become what they can: a path beneath a mount's target is rewritten to its source in cwd, argv
and the environment; `writable` binds nobody.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from orchestrator.sandbox.base import Command, Completed, Limits, Mount, OnOutput
from orchestrator.sandbox.bubblewrap import base_env
from orchestrator.sandbox.limits import control_group, rlimit_argv, util_linux
from orchestrator.sandbox.process import Launch, supervise


@dataclass(frozen=True)
class UnsandboxedSandbox:
    """Tier "none". What the command started and left behind is killed with it, unless it left the process group."""

    tier: str = field(default="none", init=False)

    def run(self, command: Command, on_output: OnOutput | None = None) -> Completed:
        group = control_group(command.limits)
        mounts = _deepest_first(command.mounts)
        env = {name: _rewritten(value, mounts) for name, value in {**base_env(), **command.env}.items()}
        argv = [_rewritten(word, mounts) for word in command.argv]
        dying = (util_linux("setpriv"), "--pdeathsig", "KILL", "--")
        launch = Launch(
            argv=[*group.join_argv(), *dying, *_rlimits(command.limits), *argv],
            env=env,
            cwd=_rewritten(str(command.cwd), mounts),
            stdin=command.stdin,
            wall_s=command.limits.wall_s,
            more=command.more,
            output_bytes=command.limits.output_bytes,
        )
        try:
            with ExitStack() as links:
                for mount in mounts:
                    _link_nested(mount, mounts, links)
                ended = supervise(launch, on_output)
            return Completed(
                exit_code=ended.returncode,
                stdout=ended.stdout.text(),
                stderr=ended.stderr.text(),
                truncated=ended.stdout.truncated or ended.stderr.truncated,
                timed_out=ended.timed_out,
                wall_s=ended.wall_s,
                cpu_s=ended.cpu_s,
                peak_memory_bytes=group.peak_memory_bytes() or ended.max_rss_bytes,
            )
        finally:
            group.remove()


def _rlimits(limits: Limits) -> list[str]:
    # outside a namespace of its own the number counts all that the person runs
    return rlimit_argv(replace(limits, processes=None))


def _deepest_first(mounts: Sequence[Mount]) -> list[Mount]:
    return sorted(mounts, key=lambda mount: -len(mount.target.parts))


def _rewritten(word: str, mounts: Sequence[Mount]) -> str:
    """`word` with the paths in it taken to the host's side: alone, in a list (`a:b`), or after a `=`."""
    if not mounts:
        return word
    sources = {str(mount.target): str(mount.source) for mount in reversed(mounts)}
    targets = "|".join(re.escape(str(mount.target)) for mount in mounts)
    return re.sub(rf"(?<![^:=,])(?:{targets})(?=$|[/:,])", lambda match: sources[match[0]], word)


def _link_nested(mount: Mount, mounts: Sequence[Mount], links: ExitStack) -> None:
    """A mount inside another one's folder becomes a symbolic link there, for as long as the command runs."""
    for outer in mounts:
        if outer is mount or not mount.target.is_relative_to(outer.target) or outer.target == mount.target:
            continue
        place = outer.source / mount.target.relative_to(outer.target)
        if not outer.writable or place.exists() or place.is_symlink():
            return
        with suppress(OSError):
            place.symlink_to(mount.source)
            links.callback(place.unlink, missing_ok=True)
        return
