"""The system calls that a confined process may make, as a seccomp filter. All others fail with EPERM.

An allow-list of what one thread of Python needs to compute, to import and to talk over pipes it was given.
It can start no process or thread, make no socket or other kernel object, change no file and touch no other
process. A call that a later kernel brings is refused as well.
"""

import errno
import os
import struct

# name: (x86-64, aarch64); None where the architecture has no such call
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # pipes and files that are open
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "close": (3, 57), "lseek": (8, 62), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "eventfd2": (290, 19),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    # opening and looking: Landlock says what
    "open": (2, None), "openat": (257, 56), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17),
    # memory
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "madvise": (28, 233), "msync": (26, 227), "mincore": (27, 232),
    # its own signals, timers and clocks
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132), "pause": (34, None), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "restart_syscall": (219, 128),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    # itself and the machine
    "futex": (202, 98), "sched_yield": (24, 124), "set_robust_list": (273, 99), "rseq": (334, 293),
    "exit": (60, 93), "exit_group": (231, 94), "getrandom": (318, 278), "uname": (63, 160),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158),
    "getrlimit": (97, 163), "getrusage": (98, 165), "times": (100, 153), "sysinfo": (99, 179),
    "sched_getaffinity": (204, 123), "getcpu": (309, 168),
}  # fmt: skip
# Allowed only for some values of one argument: (x86-64, aarch64), the argument's place, the values.
# Not among fcntl's: F_SETOWN, by which a pipe would signal another process. `None` stands for its own id:
# kill reaches nobody else, prlimit64 no other process's limits.
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
_CONDITIONAL: tuple[tuple[tuple[int, int], int, tuple[int | None, ...]], ...] = (
    ((72, 25), 1, _FCNTL),
    ((62, 129), 0, (None,)),  # kill
    ((234, 131), 0, (None,)),  # tgkill
    ((302, 261), 0, (0, None)),  # prlimit64
)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # its column above, its AUDIT_ARCH

_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF: LD|W|ABS, JMP|JEQ|K, RET|K
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


def supported() -> bool:
    """Whether the calls' numbers are known for this machine."""
    return os.uname().machine in _MACHINES


def filter_program(process_id: int) -> bytes:
    """The filter as an array of `struct sock_filter`, for the process `process_id`."""
    column, architecture = _MACHINES[os.uname().machine]
    code = [_step(_LOAD, 4), _step(_IF_EQUAL, architecture, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [_step(_IF_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    for pair, argument, values in _CONDITIONAL:
        block = [_step(_LOAD, 16 + 8 * argument)]  # its low 32 bits: all that the kernel looks at
        for value in values:
            block += [_step(_IF_EQUAL, process_id if value is None else value, 0, 1), _step(_RETURN, _ALLOW)]
        block.append(_step(_RETURN, _REFUSE))
        code += [_step(_IF_EQUAL, pair[column], 0, len(block)), *block]
    code.append(_step(_RETURN, _REFUSE))
    return b"".join(code)


def _step(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, operand)
