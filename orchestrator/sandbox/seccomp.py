"""The system-call filter that bubblewrap loads: what a training run never needs and an escape often does.

Everything is allowed but the calls below. Namespaces, mounts and capabilities are what contains a command; this
narrows the kernel that it can reach. Calls by another architecture's table kill the process.
"""

from __future__ import annotations

import errno
import os
import tempfile
from functools import lru_cache
from typing import Any

from orchestrator.errors import SandboxUnavailable

# fmt: off
DENIED = (
    # other processes, and their memory
    "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise",
    # namespaces and mounts
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "name_to_handle_at", "open_by_handle_at",
    # keys, tracing, programs in the kernel
    "keyctl", "add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "fanotify_init", "lookup_dcookie",
    # the machine itself
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "swapon", "swapoff",
    "acct", "quotactl", "syslog", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname",
    "setdomainname", "iopl", "ioperm", "modify_ldt", "vhangup", "nfsservctl", "uselib", "ustat", "sysfs", "_sysctl",
)
# fmt: on
# answered as if the kernel were older, so that a library falls back to what the filter can see
ABSENT = ("clone3", "io_uring_setup", "io_uring_enter", "io_uring_register")
CLONE_NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
TERMINAL_INJECTION = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: would type into the person's terminal
SOCKET_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink. vsock (40) would reach a virtual machine's host
LOW_32 = 0xFFFFFFFF


@lru_cache(maxsize=1)
def filter_program() -> bytes:
    """The compiled filter (BPF). Raises SandboxUnavailable if libseccomp is missing."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise SandboxUnavailable(f"no system-call filter ({error}); type: apt-get install libseccomp2") from error
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    for call, number, arguments in _denials(pyseccomp):
        # a name that this architecture doesn't know resolves to less than zero, and needs no rule
        if pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, call) >= 0:
            rules.add_rule(pyseccomp.ERRNO(number), call, *arguments)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return file.read()


def open_filter() -> int:
    """A file descriptor at the program's start: one per launch, which reads it to the end. The caller closes it."""
    fd = os.memfd_create("seccomp")
    os.write(fd, filter_program())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _denials(pyseccomp: Any) -> list[tuple[str, int, list[Any]]]:
    """(call, errno it answers, conditions on its arguments)."""
    arg, equal, above, masked = pyseccomp.Arg, pyseccomp.EQ, pyseccomp.GT, pyseccomp.MASKED_EQ
    families = [arg(0, equal, family) for family in range(max(SOCKET_FAMILIES)) if family not in SOCKET_FAMILIES]
    families.append(arg(0, above, max(SOCKET_FAMILIES)))
    return [
        *((call, errno.EPERM, []) for call in DENIED),
        *((call, errno.ENOSYS, []) for call in ABSENT),
        *(("clone", errno.EPERM, [arg(0, masked, flag, flag)]) for flag in CLONE_NEW),
        *(("ioctl", errno.EPERM, [arg(1, masked, LOW_32, request)]) for request in TERMINAL_INJECTION),
        *(("socket", errno.EAFNOSUPPORT, [family]) for family in families),
    ]
