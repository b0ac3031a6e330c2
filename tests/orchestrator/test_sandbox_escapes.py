"""What a hostile command tries, and doesn't get."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
from pathlib import Path

import pytest

from orchestrator.sandbox import canaries
from orchestrator.sandbox.base import Command, Limits, Mount
from orchestrator.sandbox.probes import escapes
from orchestrator.sandbox.seccomp import ABSENT, DENIED, SOCKET_FAMILIES
from orchestrator.sandbox.unsafe import UnsandboxedSandbox
from tests.orchestrator.sandbox_helpers import python, real_sandbox, shell, writable


def test_no_canary_is_reached_from_inside() -> None:
    assert escapes(real_sandbox()) == {}


def test_every_canary_is_reached_without_a_sandbox() -> None:
    """So that "stopped" above means the sandbox, not a canary that nobody could reach."""
    only_root = set() if os.getuid() == 0 else {"kernel"}
    assert escapes(UnsandboxedSandbox()).keys() == canaries.TRIES.keys() - only_root


# Each prints ESCAPED where it succeeds, and does no harm if it does: what matters on the host is opened, not written.
# (One that wrote found the hole that user 65534, root outside, had into /proc/sys.) The folder that it may write is
# its working directory.
ATTEMPTS = {
    "the internet": "import socket; socket.create_connection(('1.1.1.1', 53), 1)",
    "names": "import socket; socket.getaddrinfo('example.com', 80)",
    "raw sockets": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    "packets": "import socket; socket.socket(17, socket.SOCK_RAW)",
    "the virtual machine's host": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "passwords": "open('/etc/shadow').read()",
    "users": "open('/etc/passwd').read()",
    "the person's home": "assert [n for n in os.listdir('/root') if n != '.pyenv'] + os.listdir('/home')",
    "git's folder": "open('.git/hooks/pre-commit', 'w')",
    "git's folder by renaming": "os.rename('.git', 'git')",
    "programs": "open('/usr/bin/evil', 'w')",
    "our own interpreter": "open(os.path.join(sys.prefix, 'evil'), 'w')",
    "the root": "open('/evil', 'w')",
    "a writable root": "import subprocess; subprocess.run(['mount', '-o', 'remount,rw', '/'], check=True)",
    "another user": "os.setuid(0)",
    "group 0": "os.setgroups([0])",
    "a device": "os.mknod('device', 0o060600, os.makedev(254, 0))",
    "disks": "assert [n for n in os.listdir('/dev') if n[:2] in ('sd', 'vd', 'nv', 'me', 'km')]",
    "kernel memory": "open('/dev/mem', 'rb')",
    "the kernel's log": "open('/dev/kmsg')",
    "the program for core dumps": "os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)",
    "the program for modules": "os.open('/proc/sys/kernel/modprobe', os.O_WRONLY)",
    "the kernel's panic button": "os.open('/proc/sysrq-trigger', os.O_WRONLY)",
    "memory types": "os.open('/proc/mtrr', os.O_WRONLY)",
    "more namespaces": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "more namespaces by a fork": "import ctypes; assert ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0) >= 0",
    "chroot": "os.chroot('.')",
    "the first process": "os.kill(1, 9); import time; time.sleep(.2); os.kill(1, 0); assert os.getppid() == 0",
    "its environment": "assert b'=' in open('/proc/1/environ', 'rb').read().replace(b'PWD=', b'')",
    "other processes": "assert [n for n in os.listdir('/proc') if n.isdigit() and int(n) not in (1, os.getpid())]",
    "the host's shared memory": "assert os.listdir('/dev/shm')",
    # what is mounted may itself lie under /tmp: the worktree, and the interpreter of a checkout there
    "the host's temporary files": "seen = f'{os.getcwd()}/{sys.prefix}/{sys.base_prefix}'.split('/'); "
    "assert [n for n in os.listdir('/tmp') if n not in seen]",
    "the host's name": f"assert os.uname().nodename == {socket.gethostname()!r}",
    "the terminal": "open('/dev/tty')",
    "typing into the terminal": "import fcntl; fcntl.ioctl(0, 0x5412, b'x')",
    "privileges by a program": "assert 'NoNewPrivs:\\t0' in open('/proc/self/status').read()",
    "capabilities": "assert int([l for l in open('/proc/self/status') if l.startswith('CapBnd')][0].split()[1], 16)",
    "a second name for a file outside": "os.link('/usr/bin/env', 'env')",
    "cgroups": "os.mkdir('/sys/fs/cgroup/evil')",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_is_stopped(name: str, tmp_path: Path) -> None:
    (tmp_path / ".git" / "hooks").mkdir(parents=True)
    source = f"import os, sys\n{ATTEMPTS[name]}\nprint('ESCAPED')"
    done = python(source, writable(tmp_path), Mount(tmp_path / ".git", tmp_path / ".git"))
    assert "ESCAPED" not in done.stdout
    assert done.exit_code != 0
    assert "Traceback" in done.stderr, "it has to fail by what it tries, not because it never ran"


@pytest.mark.parametrize(
    "source",
    [
        "open('file', 'w').write('x')",
        "os.fdopen(os.memfd_create('m'), 'w').write('x')",
        "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.sendto(b'x', s.getsockname())",
        "a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'",
        "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())",
    ],
)
def test_what_a_training_run_needs_is_allowed(source: str, tmp_path: Path) -> None:
    done = python(f"import os, socket\n{source}\nprint('fine')", writable(tmp_path))
    assert done.stdout == "fine\n", done.stderr


def test_every_filtered_call_answers_with_the_filters_error() -> None:
    """All arguments are -1: a call that reached the kernel would complain about those instead."""
    pyseccomp = pytest.importorskip("pyseccomp")
    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name) for name in (*DENIED, *ABSENT)}
    known = {name: number for name, number in numbers.items() if number >= 0}
    source = (
        "import ctypes, json\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def answer(number):\n    ctypes.set_errno(0)\n    libc.syscall(number, *[ctypes.c_long(-1)] * 6)\n"
        f"    return ctypes.get_errno()\nprint(json.dumps({{n: answer(k) for n, k in {known!r}.items()}}))"
    )
    answers = json.loads(python(source).stdout)
    assert answers == {name: errno.ENOSYS if name in ABSENT else errno.EPERM for name in known}


def test_only_the_named_socket_families_exist() -> None:
    source = (
        "import errno, json, socket\ndef family(n):\n    try:\n        socket.socket(n, socket.SOCK_DGRAM).close()\n"
        f"    except OSError as e:\n        return e.errno != {errno.EAFNOSUPPORT}\n    return True\n"
        "print(json.dumps([n for n in range(60) if family(n)]))"
    )
    assert set(json.loads(python(source).stdout)) == set(SOCKET_FAMILIES)


def test_the_environment_inside_is_only_what_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", secret := secrets.token_hex(8))
    done = python("import os, json; print(json.dumps(dict(os.environ)))", env={"GIVEN": "1"})
    inside = json.loads(done.stdout)
    assert inside["GIVEN"] == "1"
    assert secret not in done.stdout
    assert inside.keys() <= {"GIVEN", "PATH", "HOME", "TMPDIR", "USER", "LOGNAME", "LANG", "PWD", "LC_CTYPE"}


def test_a_given_environment_cannot_disturb_the_launch() -> None:
    hostile = {"_filter": "2", "IFS": "/", "LD_PRELOAD": "/nowhere.so", "ENV": "/tmp/x", "PS4": "$(id)", "n": "3"}
    done = real_sandbox().run(Command(("env",), Path("/"), env=hostile, limits=Limits(wall_s=20)))
    assert done.exit_code == 0
    assert "n=3" in done.stdout.splitlines()


def test_nothing_in_proc_can_be_opened_for_writing() -> None:
    source = (
        "import os\nfor at, folders, names in os.walk('/proc'):\n    for name in names:\n"
        "        path = os.path.join(at, name)\n"
        "        if not os.path.islink(path) and os.access(path, os.W_OK): print(path)"
    )
    done = python(source)
    assert (done.exit_code, done.stdout) == (0, "")


def test_a_link_planted_in_the_worktree_leads_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("token")
    inside = tmp_path / "work"
    inside.mkdir()
    done = shell(f"ln -s {secret} link; cat link; echo x >link", writable(inside))
    assert "token" not in done.stdout
    assert secret.read_text() == "token"


def test_a_read_only_mount_stays_so_inside_a_writable_one(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("same")
    # given deepest first: the order must not matter
    done = shell("echo x >free; echo x >kept/file", Mount(tmp_path / "kept", tmp_path / "kept"), writable(tmp_path))
    assert done.exit_code != 0
    shell("echo x >free; rm -r kept; mv kept gone", writable(tmp_path), Mount(tmp_path / "kept", tmp_path / "kept"))
    assert (tmp_path / "kept" / "file").read_text() == "same"
    assert (tmp_path / "free").read_text() == "x\n"


def test_files_made_inside_belong_to_who_runs_us(tmp_path: Path) -> None:
    shell("echo x >file; mkdir folder; echo y >folder/file", writable(tmp_path))
    assert {path.stat().st_uid for path in tmp_path.rglob("*")} == {os.getuid()}
    assert (tmp_path / "folder" / "file").read_text() == "y\n"


def test_argv_of_a_command_is_never_read_as_the_sandbox_options() -> None:
    for argv in (("--bind", "/", "/host"), ("--", "id"), ("--version",)):
        done = real_sandbox().run(Command(argv, Path("/"), limits=Limits(wall_s=20)))
        assert done.exit_code != 0
        assert "bubblewrap" not in done.stdout


def test_the_running_interpreter_works_inside_with_its_packages() -> None:
    done = python("import sys, pydantic; print(sys.prefix)")
    assert done.stdout == f"{sys.prefix}\n", done.stderr
