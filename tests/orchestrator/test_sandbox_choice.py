"""Choosing a sandbox: tested before it is trusted, and never silently none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.errors import SandboxUnavailable
from orchestrator.sandbox.base import Command, Completed, Limits, Mount, OnOutput
from orchestrator.sandbox.bubblewrap import BubblewrapSandbox, diagnosis, find_bwrap
from orchestrator.sandbox.limits import ControlGroup, control_group, rlimit_argv
from orchestrator.sandbox.probes import choose_sandbox, self_test
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from tests.orchestrator.sandbox_helpers import real_sandbox


def test_no_bubblewrap_stops_with_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SandboxUnavailable, match="type: apt-get install bubblewrap") as caught:
        choose_sandbox()
    assert caught.value.exit_code == 4


def test_only_the_flag_gives_no_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert choose_sandbox(unsafe=True).tier == "none"


def test_the_chosen_sandbox_is_bubblewrap() -> None:
    real_sandbox()
    assert choose_sandbox().tier == "bubblewrap"


def test_a_leaking_sandbox_is_refused_with_what_leaked() -> None:
    with pytest.raises(SandboxUnavailable, match="Nothing was run") as caught:
        self_test(UnsandboxedSandbox())
    assert "loopback network answers" in str(caught.value)
    assert "a file that is not mounted can be read" in str(caught.value)


@dataclass(frozen=True)
class Answering:
    """A sandbox whose commands print one thing."""

    stdout: str
    tier: str = "bubblewrap"

    def run(self, command: Command, on_output: OnOutput | None = None) -> Completed:
        return Completed(1, self.stdout, "ld.so: broken", False, False, 0.0, 0.0, None)


def test_a_sandbox_in_which_python_does_not_run_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match=r"doesn't run in the sandbox \(exit 1\): ld.so: broken"):
        self_test(Answering(""))


def test_one_leak_among_stopped_tries_is_enough() -> None:
    with pytest.raises(SandboxUnavailable, match="a host process can be signalled"):
        self_test(Answering(json.dumps({"tcp": None, "process": "init"})))


def bwrap_that(tmp_path: Path, script: str) -> BubblewrapSandbox:
    program = tmp_path / "bwrap"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo bubblewrap 0.8.0; exit; }}\n{script}\n')
    program.chmod(0o755)
    return BubblewrapSandbox(find_bwrap(str(tmp_path)))


def test_namespaces_off_is_told_in_bubblewraps_words_with_a_fix(tmp_path: Path) -> None:
    sandbox = bwrap_that(tmp_path, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    with pytest.raises(SandboxUnavailable, match=r"No permissions to create new namespace; .*(type|start it with): "):
        self_test(sandbox)


@pytest.mark.parametrize("forbidding", ["0", "1"])
def test_the_switch_that_is_off_is_named(tmp_path: Path, forbidding: str) -> None:
    switch = tmp_path / "switch"
    switch.write_text(f"{forbidding}\n")
    told = diagnosis("bwrap: setting up uid map: Permission denied\n", [(str(switch), "0", "sysctl -w x=1")])
    assert ("type: sysctl -w x=1" in told) == (forbidding == "0")


def test_a_missing_mount_is_not_blamed_on_the_machine() -> None:
    gone = Path("/no/such/data")
    with pytest.raises(SandboxUnavailable, match="Can't find source path /no/such/data") as caught:
        real_sandbox().run(Command(("true",), Path("/"), (Mount(gone, gone),)))
    assert "type:" not in str(caught.value)


def test_a_bubblewrap_too_old_to_clear_the_environment_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\necho bubblewrap 0.4.1\n")
    program.chmod(0o755)
    with pytest.raises(SandboxUnavailable, match=r"bubblewrap 0\.4\.1 is older than 0.5"):
        BubblewrapSandbox(program).run(Command(("true",), Path("/")))


def test_an_older_bubblewrap_gets_no_option_that_it_does_not_know(tmp_path: Path) -> None:
    program = tmp_path / "bwrap"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo bubblewrap 0.6.1; exit; }\necho "$@" >&2; exit 1\n')
    program.chmod(0o755)
    with pytest.raises(SandboxUnavailable) as caught:
        BubblewrapSandbox(program).run(Command(("true",), Path("/")))
    assert "--tmpfs /tmp" in str(caught.value)
    assert "--size" not in str(caught.value)
    assert "--disable-userns" not in str(caught.value)


def test_limits_become_rlimits() -> None:
    words = rlimit_argv(Limits(cpu_s=5, memory_bytes=1 << 20, file_bytes=7, processes=3))
    assert {"--cpu=5", "--data=1048576", "--fsize=7", "--nproc=5", "--core=0"} <= set(words)
    assert words[-1] == "--"


def test_no_limits_need_no_control_group() -> None:
    assert control_group(Limits()) == ControlGroup((), None)


def test_a_control_group_is_gone_after_its_command() -> None:
    group = control_group(Limits(memory_bytes=1 << 30))
    if not group.folders:
        pytest.skip("no writable control group here")
    assert all(folder.is_dir() for folder in group.folders)
    group.remove()
    assert not any(folder.exists() for folder in group.folders)
