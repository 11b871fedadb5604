"""Which isolation this machine can give, and what a confined process may read."""

import functools
import importlib.util
import logging
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from pangu_training.sandbox import syscalls
from pangu_training.sandbox.confinement import UNPRIVILEGED_ID, landlock_abi
from pangu_training.stage.errors import PanguError

# What every process of the sandbox reads before it confines itself: the folder that holds `pangu_training`.
SOURCES = Path(__file__).parents[2]
INTERPRETER = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
_SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")


class SandboxError(PanguError):
    """Programs cannot be confined here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """The isolation in force. `name` belongs into every report."""

    name: str
    landlock: bool = False
    bubblewrap: str = ""  # its path, when it is used

    def command(self, module: str, readable: list[str]) -> list[str]:
        """What starts `module` of this package in a process of its own."""
        start = (
            f"import sys; sys.path.insert(0, {str(SOURCES)!r}); from pangu_training.sandbox import {module}; "
            f"del sys.path[0]; {module}.main()"
        )
        # No user's or site's packages, no program's folder on the path.
        python = [INTERPRETER, "-s", "-S", "-P", "-c", start]
        if not self.bubblewrap:
            return python
        isolated = ["--unshare-user", "--unshare-all", "--die-with-parent", "--as-pid-1"]
        isolated += ["--uid", str(UNPRIVILEGED_ID), "--gid", str(UNPRIVILEGED_ID)]
        for path in (*readable, INTERPRETER, str(SOURCES / "pangu_training")):
            isolated += ["--ro-bind-try", path, path]
        return [
            self.bubblewrap,
            *isolated,
            "--dev-bind",
            "/dev/null",
            "/dev/null",
            "--remount-ro",
            "/",
            *python,
        ]


@functools.cache
def tier(*, unsafe: bool = False) -> Tier:
    """The strongest isolation there is: Landlock with seccomp, else bubblewrap, else none if `unsafe`.

    Raises:
        SandboxError: there is none, and `unsafe` was not asked for.
    """
    abi = landlock_abi() if syscalls.supported() else 0
    return choose_tier(abi, shutil.which("bwrap"), unsafe=unsafe)


def choose_tier(landlock: int, bubblewrap: str | None, *, unsafe: bool) -> Tier:
    """`tier` of a machine with this Landlock version, 0 for none, and this bubblewrap."""
    if landlock:
        return Tier(name=f"landlock+seccomp (ABI {landlock})", landlock=True)
    if bubblewrap:
        return Tier(name="bubblewrap" + ("+seccomp" if syscalls.supported() else ""), bubblewrap=bubblewrap)
    if not unsafe:
        raise SandboxError(
            "untrusted programs cannot be confined here: a kernel of 5.13 or later with Landlock on x86-64 or "
            "aarch64, or bubblewrap, is needed (or say that you accept the risk)"
        )
    logging.getLogger(__name__).warning(
        "UNSAFE: programs run with resource limits only; they can read your files"
    )
    return Tier(name="UNSAFE (resource limits only)")


@functools.cache
def readable_paths(packages: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The paths to read, the interpreter's libraries and `packages`; and where each package begins.

    Raises:
        SandboxError: a package is not installed.
    """
    # Nothing below sys.prefix: in a virtual environment that would be every installed package.
    readable = [sysconfig.get_path("stdlib"), f"{sys.base_prefix}/lib", *_SHARED_LIBRARIES]
    origins: dict[str, str] = {}
    for name in packages:
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            raise SandboxError(
                f"the package {name}, which programs may import, is not installed: pip install {name}"
            )
        origins[name] = found.origin
        place = Path(found.origin)
        place = place.parent if found.submodule_search_locations else place
        readable += [str(place), str(place.with_name(f"{name}.libs"))]
    return readable, origins
