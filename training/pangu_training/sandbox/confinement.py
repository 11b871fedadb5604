"""A process confines itself, for good, before it runs what it does not trust. Standard library only.

Layers, each of which stops most of what the others stop: resource limits, an unprivileged user (when
started as root), no_new_privs, Landlock (files it may read; nothing it may write), seccomp (`syscalls.py`).
"""

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Mapping
from typing import Any

from pangu_training.sandbox import syscalls

UNPRIVILEGED_ID = 65534
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_FOLDER, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
_CAP_DAC_READ_SEARCH = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where it has none or it is switched off."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    return max(int(version), 0)


def confine(settings: Mapping[str, Any]) -> None:
    """Confine this process as `execution.py` says in `settings`.

    Raises:
        OSError: a layer could not be put in force; nothing untrusted may run.
    """
    os.chdir("/")
    _limit(settings["cpu_seconds"], settings["memory_bytes"])
    rules = _landlock_rules(settings["read"]) if settings["landlock"] else None
    _drop_privileges(os.__file__)
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != settings["parent"]:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before it was watched
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if rules is not None:
        _check(_libc.syscall(_LANDLOCK_RESTRICT, rules, 0))
        os.close(rules)
    if settings["seccomp"]:
        _filter_calls()


def _limit(cpu_seconds: int, memory_bytes: int) -> None:
    # Soft = hard: the kernel kills at once, and no handler can put it off. The parent ends a process at its
    # CPU seconds; the kernel's clock for RLIMIT_CPU counts in ticks and can run ahead, so it comes second.
    for limit, value in (
        (resource.RLIMIT_CPU, 2 * cpu_seconds + 5),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),  # also without seccomp: no process, no thread
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _landlock_rules(readable: list[str]) -> int:
    """A ruleset that handles everything this kernel can and allows reading below the paths."""
    abi = landlock_abi()
    files = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    network = 0b11 if abi >= 4 else 0  # bind and connect TCP
    scoped = 0b11 if abi >= 6 else 0  # abstract sockets and signals of others
    attributes = struct.pack("=QQQ", files, network, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = _check(_libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0))
    wanted = [(path, _READ_FILE | _READ_FOLDER) for path in readable]
    wanted += [("/dev/null", _READ_FILE | _WRITE_FILE)]
    for path, access in wanted:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not os.path.isdir(path):
            access &= ~_READ_FOLDER
        rule = struct.pack("=Qi", access, descriptor)
        _check(_libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0))
        os.close(descriptor)
    return rules


def _drop_privileges(needed_file: str) -> None:
    """Become an unprivileged user when this is root, and give up all capabilities.

    One exception: when the interpreter lies in a folder closed to others (/root), reading past folder
    permissions stays, and Landlock is what limits it to the interpreter's own files.
    """
    if os.geteuid() == 0:
        _check(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
        try:
            os.setgroups([])
            os.setresgid(*[UNPRIVILEGED_ID] * 3)
            os.setresuid(*[UNPRIVILEGED_ID] * 3)
        except OSError:
            pass  # a container that took root's right to change users; the capabilities go below
    keep = 0 if os.access(needed_file, os.R_OK) else _CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", 0x20080522, 0)
    data = struct.pack("=6I", keep, keep, 0, 0, 0, 0)  # effective, permitted, inheritable, and the high words
    _check(_libc.capset(header, data))


def _filter_calls() -> None:
    code = syscalls.filter_program(os.getpid())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"confinement: {os.strerror(number)}")
    return result
