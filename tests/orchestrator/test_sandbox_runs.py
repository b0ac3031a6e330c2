"""How commands run: results, limits, output, and that nothing outlives its orchestrator."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sandbox.base import Command, Limits, Mount, Sandbox
from orchestrator.sandbox.bubblewrap import BubblewrapSandbox
from orchestrator.sandbox.output import Capture
from orchestrator.sandbox.process import stop_all
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from tests.orchestrator.sandbox_helpers import python, real_sandbox, shell, writable

TIERS = ("bubblewrap", "none")


def sandbox_of(tier: str) -> Sandbox:
    return real_sandbox() if tier == "bubblewrap" else UnsandboxedSandbox()


@pytest.mark.parametrize("tier", TIERS)
def test_a_result_has_the_exit_code_and_both_streams(tier: str) -> None:
    done = shell("echo out; echo err >&2; exit 7", sandbox=sandbox_of(tier))
    assert (done.exit_code, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert not done.timed_out
    assert not done.truncated


@pytest.mark.parametrize("tier", TIERS)
def test_a_signal_is_a_negative_exit_code(tier: str) -> None:
    assert shell("kill -SEGV $$", sandbox=sandbox_of(tier)).exit_code == -signal.SIGSEGV


@pytest.mark.parametrize("tier", TIERS)
def test_an_unknown_command_gives_127(tier: str) -> None:
    done = sandbox_of(tier).run(Command(("no-such-command",), Path("/")))
    assert done.exit_code == 127
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("tier", TIERS)
def test_stdin_arrives_whole(tier: str) -> None:
    command = Command(("wc", "-c"), Path("/"), stdin=b"x" * 3_000_000)
    assert sandbox_of(tier).run(command).stdout.strip() == "3000000"


@pytest.mark.parametrize("tier", TIERS)
def test_the_wall_clock_ends_the_whole_tree(tier: str) -> None:
    mark = f"77.{random.randrange(10**9):09d}"
    done = shell(f"sleep {mark} & sleep {mark}", limits=Limits(wall_s=0.4), sandbox=sandbox_of(tier))
    assert done.timed_out
    assert done.exit_code == -signal.SIGKILL
    assert done.wall_s < 70
    assert alive(mark, within_s=30) == []


def test_a_daemon_is_dead_when_the_command_is_over() -> None:
    mark = f"77.{random.randrange(10**9):09d}"
    done = shell(f"setsid sleep {mark} >/dev/null 2>&1 & sleep 0.1; echo over")
    assert done.stdout == "over\n"
    assert alive(mark, within_s=0) == []


def test_cpu_time_and_memory_of_descendants_are_counted() -> None:
    child = "x = bytearray(120_000_000)\nfor i in range(8_000_000): pass"
    done = python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    assert 0.1 < done.cpu_s < 30
    assert done.peak_memory_bytes is not None
    assert 120_000_000 < done.peak_memory_bytes < 400_000_000


@pytest.mark.parametrize("tier", TIERS)
def test_cpu_seconds_are_limited(tier: str) -> None:
    done = shell("while :; do :; done", limits=Limits(wall_s=300, cpu_s=1), sandbox=sandbox_of(tier))
    assert done.exit_code < 0
    assert not done.timed_out
    assert done.cpu_s < 5


def test_memory_is_limited() -> None:
    done = python("x = bytearray(800 << 20); print(len(x))", limits=Limits(wall_s=60, memory_bytes=300 << 20))
    assert done.exit_code != 0
    assert not done.stdout


@pytest.mark.parametrize("tier", TIERS)
def test_the_size_of_a_file_is_limited(tier: str, tmp_path: Path) -> None:
    limits = Limits(wall_s=60, file_bytes=100_000)
    done = shell("head -c 300000 /dev/zero >big", writable(tmp_path), limits=limits, sandbox=sandbox_of(tier))
    assert done.exit_code != 0
    assert (tmp_path / "big").stat().st_size <= 100_000


def test_temporary_folders_are_bounded() -> None:
    done = shell("df -k /tmp /dev/shm | tail -n +2 | while read a size b; do echo $size; done")
    assert [int(size) for size in done.stdout.split()] == [512 * 1024, 512 * 1024]


def test_the_number_of_processes_is_limited() -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 0.3 & done; wait; echo all"
    assert shell(script).stdout == "all\n"
    done = shell(script, limits=Limits(wall_s=60, processes=6))
    if done.stdout == "all\n":
        pytest.skip("no writable control group here, and root is exempt from RLIMIT_NPROC")
    assert "fork" in done.stderr


def test_threads_and_shared_memory_work_inside() -> None:
    source = (
        "import multiprocessing as mp, threading\n"
        "def main():\n"
        "    thread = threading.Thread(target=print, args=(1,)); thread.start(); thread.join()\n"
        "    with mp.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-4, 5]))\n"
        "    print(mp.Value('i', 9).value)\n"
        "main()"
    )
    done = python(source)
    assert done.stdout.endswith("[4, 5]\n9\n"), done.stderr


def test_numba_runs_on_several_threads_inside(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import numba, numpy as np\n"
        "@numba.njit(parallel=True, cache=True)\n"
        "def total(x):\n    s = 0.0\n    for i in numba.prange(x.size): s += x[i]\n    return s\n"
        "print(total(np.ones(1000)), numba.threading_layer())\n"
    )
    mount, env = writable(tmp_path), {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_NUM_THREADS": "2"}
    done = real_sandbox().run(
        Command((sys.executable, str(program)), tmp_path, (mount,), env, limits=Limits(wall_s=120))
    )
    assert done.stdout.startswith("1000.0 "), done.stderr
    assert list((tmp_path / "cache").rglob("*.nbi"))


@pytest.mark.parametrize("tier", TIERS)
def test_output_is_streamed_as_it_comes(tier: str, tmp_path: Path) -> None:
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        (tmp_path / "go").touch()

    script = "echo one; until test -e go; do sleep 0.02; done; echo two >&2"
    command = Command(("/bin/sh", "-c", script), tmp_path, (writable(tmp_path),), limits=Limits(wall_s=60))
    assert not sandbox_of(tier).run(command, hear).timed_out, "nothing was heard before its end"
    assert heard == ["one\n", "two\n"]


def test_a_flood_of_output_keeps_head_and_tail() -> None:
    done = shell("echo first; yes | head -c 5000000; echo last", limits=Limits(wall_s=60, output_bytes=1000))
    assert done.truncated
    assert done.stdout.startswith("first\n")
    assert done.stdout.endswith("last\n")
    assert "bytes left out" in done.stdout
    assert len(done.stdout) < 1100


@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(0, 60))
def test_a_capture_keeps_what_fits_and_counts_the_rest(chunks: list[bytes], budget: int) -> None:
    capture, heard = Capture(budget, None), []
    listening = Capture(budget, heard.append)
    for chunk in chunks:
        capture.take(chunk)
        listening.take(chunk)
    listening.take(b"", final=True)
    whole = b"".join(chunks)
    assert "".join(heard) == whole.decode("utf-8", "replace")
    assert capture.truncated == (len(whole) > budget)
    if len(whole) <= budget:
        assert capture.text() == whole.decode("utf-8", "replace")
    else:
        assert f"[... {len(whole) - budget} bytes left out ...]" in capture.text()


def test_an_error_of_the_listener_ends_the_tree_first() -> None:
    mark = f"77.{random.randrange(10**9):09d}"

    def fail(text: str) -> None:
        raise RuntimeError(text)

    command = Command(("/bin/sh", "-c", f"echo heard; sleep {mark}"), Path("/"))
    with pytest.raises(RuntimeError, match="heard"):
        real_sandbox().run(command, fail)
    assert alive(mark, within_s=30) == []


def test_a_limit_shorter_than_the_launch_still_holds() -> None:
    for wall_s in (0.0, 0.001, 0.003, 0.006, 0.01):
        mark = f"77.{random.randrange(10**9):09d}"
        done = shell(f"sleep {mark}", limits=Limits(wall_s=wall_s))
        assert done.timed_out
        assert done.wall_s < 70
        assert alive(mark, within_s=0) == []


def test_no_dead_process_is_left_unburied() -> None:
    program = """
import os
from pathlib import Path
from orchestrator.sandbox.base import Command, Limits
from orchestrator.sandbox.bubblewrap import BubblewrapSandbox, find_bwrap
def fail(text): raise RuntimeError(text)
sandbox = BubblewrapSandbox(find_bwrap())
sandbox.run(Command(("true",), Path("/")))
sandbox.run(Command(("sleep", "9"), Path("/"), limits=Limits(wall_s=0.1)))
try: sandbox.run(Command(("sh", "-c", "echo x; sleep 9"), Path("/")), fail)
except RuntimeError: pass
try: print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError: print("none")
"""
    real_sandbox()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "none\n"


def test_many_threads_run_commands_side_by_side(tmp_path: Path) -> None:
    sandbox = real_sandbox()

    def run(number: int) -> str:
        own = tmp_path / str(number)
        own.mkdir()
        return sandbox.run(Command(("sh", "-c", f"echo {number} >f; cat f"), own, (writable(own),))).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(24))) == [f"{number}\n" for number in range(24)]


def test_stop_all_ends_commands_of_every_thread() -> None:
    mark = f"77.{random.randrange(10**9):09d}"
    command = Command(("sleep", mark), Path("/"), limits=Limits(wall_s=60))
    # in a process of its own: this one may run other tests' commands
    program = f"""
import threading, time
from pathlib import Path
from orchestrator.sandbox.base import Command, Limits
from orchestrator.sandbox.process import _live, stop_all
from orchestrator.sandbox.bubblewrap import BubblewrapSandbox, find_bwrap
sandbox = BubblewrapSandbox(find_bwrap())
command = Command({command.argv!r}, Path("/"), limits=Limits(wall_s=60))
done = []
threads = [threading.Thread(target=lambda: done.append(sandbox.run(command).exit_code)) for _ in range(3)]
for thread in threads: thread.start()
while len(_live) < 3: time.sleep(0.01)
print(stop_all())
for thread in threads: thread.join(60)
print(done)
"""
    real_sandbox()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "3\n[-9, -9, -9]\n"
    assert alive(mark, within_s=30) == []
    assert stop_all() == 0


ORCHESTRATOR = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a script started the tests in the background
from orchestrator.sandbox.base import Command, Limits
from orchestrator.sandbox.bubblewrap import BubblewrapSandbox, find_bwrap
sandbox = BubblewrapSandbox(find_bwrap())
print("up", flush=True)
script = f"(setsid sleep {sys.argv[1]} >/dev/null 2>&1 &) ; sleep {sys.argv[1]}"
sandbox.run(Command(("sh", "-c", script), Path("/"), limits=Limits(wall_s=60)))
"""


def orchestrate(mark: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", ORCHESTRATOR, mark], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


@pytest.mark.parametrize("after_s", [0.0, 0.004, 0.008, 0.012, 0.016, 0.022, 0.03, 0.6])
def test_kill_9_of_the_orchestrator_leaves_no_survivor(after_s: float) -> None:
    real_sandbox()
    mark = f"44.{random.randrange(10**9):09d}"
    with orchestrate(mark) as process:
        time.sleep(after_s)
        process.kill()
    assert alive(mark, within_s=30) == []


def test_ctrl_c_leaves_no_survivor() -> None:
    real_sandbox()
    mark = f"44.{random.randrange(10**9):09d}"
    with orchestrate(mark) as process:
        deadline = time.monotonic() + 120
        while not any("setsid" not in line and line.startswith("sleep") for line in alive(mark, 0)):
            assert time.monotonic() < deadline, "it never ran"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) != 0  # the command would take 44
    assert alive(mark, within_s=30) == []


def test_results_say_which_tier_they_come_from() -> None:
    assert UnsandboxedSandbox().tier == "none"
    assert BubblewrapSandbox(Path("/usr/bin/bwrap")).tier == "bubblewrap"


def test_without_a_sandbox_mounts_are_honoured_by_rewriting_paths(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_text("content")
    (tmp_path / "work").mkdir()
    mounts = (
        Mount(tmp_path / "work", Path("/repo"), writable=True),
        Mount(tmp_path / "data", Path("/repo/data")),
    )
    script = 'pwd; cat data/file; echo; echo "$LIST"; echo "$1"; echo "$2"'
    argv = ("/bin/sh", "-c", script, "sh", "/repo/data/file", "--out=/repo/x")
    done = UnsandboxedSandbox().run(Command(argv, Path("/repo"), mounts, {"LIST": "/repo:/repo/data:/repository"}))
    assert done.stdout.splitlines() == [
        str(tmp_path / "work"),
        "content",
        f"{tmp_path}/work:{tmp_path}/data:/repository",
        f"{tmp_path}/data/file",
        f"--out={tmp_path}/work/x",
    ]
    assert list((tmp_path / "work").iterdir()) == []


def test_without_a_sandbox_the_environment_is_still_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", "do not tell")
    assert "SECRET_KEY" not in shell("env", sandbox=UnsandboxedSandbox()).stdout


def alive(mark: str, within_s: float) -> list[str]:
    """Command lines of processes that carry the mark; waits up to `within_s` for them to go."""
    deadline = time.monotonic() + within_s
    while (found := _carrying(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _carrying(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(threading.get_native_id()):
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
            if mark in line and "orchestrator.sandbox" not in line:
                found.append(line)
    return found
