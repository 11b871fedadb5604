"""How every `pangu-*` command is put together, starts and ends: exit 0, or one line on stderr and exit 2 (130 for
Ctrl-C).

A verb is a function of one options object, which makes its own flags (`options.py`). Frameworks load inside it, after
the arguments are parsed, so that `--help` stays fast.
"""

import argparse
import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

from pangu_training.stage.errors import MissingExtra, PanguError
from pangu_training.stage.options import add_options, option, options_of, whole_number
from pangu_training.stage.paths import check_paths

MOST_CHARACTERS = 2000  # of an error
# transformers imports torchao where it is installed, and that logs its GPU files' absence, and more;
# accelerate takes a model with tied weights that is still empty for one whose weights are not tied
NOISY_LOGGERS = ("torchao", "torch.utils._pytree", "accelerate.utils.modeling")


Verb = Callable[[Any], int | None]  # takes its options, a dataclass of `stage.options`; returns the exit code
Verbs = Mapping[str, tuple[Verb, str]]  # name -> (function, help)


def parser_of(prog: str, description: str, verbs: Verbs) -> argparse.ArgumentParser:
    """The parser of a command with `verbs`. A verb's module says what it does."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (verb, help_text) in verbs.items():
        words = sys.modules[verb.__module__].__doc__
        add_verb(subparsers.add_parser(name, help=help_text, description=words), verb)
    return parser


def add_verb(parser: argparse.ArgumentParser, verb: Verb) -> None:
    """Declare the options that `verb` takes, and that it is what to run."""
    options = options_class(verb)
    add_options(parser, options)
    parser.set_defaults(call=(verb, options))


def options_class(verb: Callable[[Any], Any]) -> type[Any]:
    """The dataclass that `verb` takes: what its only parameter is annotated with."""
    hints = get_type_hints(verb)
    hints.pop("return", None)
    [options] = hints.values()
    return cast(type[Any], options)


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> tuple[Verb, Any]:
    """The verb that `argv` names, and its options; raises what these refuse."""
    values = vars(parser.parse_args(argv))
    verb, options = values.pop("call")
    return verb, options_of(options, **values)


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def free_memory_bytes() -> int:
    """What a new process can take of main memory, within a container's limit."""
    meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
    [kilobytes] = re.findall(r"^MemAvailable: +(\d+) kB$", meminfo, re.MULTILINE)
    sizes = [int(kilobytes) << 10]
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(sizes)


def usable_cores() -> int:
    """How many physical cores these CPUs are: two of them may share one."""
    return len({_core_of(cpu) for cpu in os.sched_getaffinity(0)})


def serving_threads() -> int:
    """A server's compute threads unless it is told: one a core, and a core is left to others.

    Threads wait for each other after every product. A neighbour that takes one core for a moment holds up all of them,
    and a machine on which somebody writes code is never idle.
    """
    return max(1, usable_cores() - 1)


def _core_of(cpu: int) -> str:
    """What the CPUs of one core have in common; the CPU's own number where the system does not tell."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return siblings.read_text(encoding="ascii")
    except OSError:
        return str(cpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How an artifact is served."""

    device: Literal["auto", "cpu", "cuda"] = option("", "auto", group="server")
    engine: Literal["auto", "torch", "ctranslate2"] = option("what computes", "auto", group="server")
    threads: int = option(
        "compute threads (default: the cores that we may use, less one)",
        serving_threads(),
        group="server",
        type=whole_number(1),
    )
    cache_memory: str | None = option(
        "of attention keys and values, such as 4GB", None, metavar="SIZE", group="server"
    )


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, *, extra: str) -> int:
    """Parse `argv`, call the verb, return the exit code. `extra` is what a command whose library is missing needs.

    `PANGU_DEBUG=1` in the environment lets the traceback of an error through.
    """
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        verb, options = parsed(parser, argv)
        check_paths(options)
        return verb(options) or 0
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    except (PanguError, OSError, ModuleNotFoundError) as error:
        # OSError comes from the machine, not from a bug: no space, no permission, no such file.
        # A missing module of pangu-coder2 itself is a bug: its traceback is wanted.
        own_module = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("pangu_")
        if os.environ.get("PANGU_DEBUG") or own_module:
            raise
        if isinstance(error, ModuleNotFoundError):
            error = MissingExtra(error, extra)
        print(f"{parser.prog}: error: {describe(error)}", file=sys.stderr)
        return 2


def describe(error: Exception) -> str:
    """One line for `error`, of characters that a terminal shows: files that anybody made are quoted in it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        text = f"{error.strerror}{where}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return (
        line
        if len(line) <= MOST_CHARACTERS
        else f"{line[: MOST_CHARACTERS // 2]} … {line[-MOST_CHARACTERS // 2 :]}"
    )
