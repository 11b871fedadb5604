"""The candidate's process: confines itself, runs the program, answers the judge's calls."""

import json
import os
import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

from pangu_training.sandbox.confinement import confine
from pangu_training.sandbox.wire import Channel, WireError, decode, encode


class Packages:
    """Finds the packages that were named, and no other in the folders where they lie."""

    def __init__(self, origins: dict[str, str]) -> None:
        self._origins = origins

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Where `name` is loaded from, as the import system asks it."""
        return spec_from_file_location(name, self._origins[name]) if name in self._origins else None


def main() -> None:
    """Serve until the judge is done. The settings come on stdin; stdout and stderr lead nowhere."""
    settings = json.load(sys.stdin)
    os.dup2(1, 0)  # /dev/null
    channel = Channel(settings["read_end"], settings["write_end"])
    # Both answers are given before the program runs, so it cannot forge them.
    try:
        confine(settings)
    except OSError as error:
        channel.send({"unconfined": str(error)})
        return
    try:
        code = compile(settings["program"], "<program>", "exec", dont_inherit=True)
    except Exception as error:  # SyntaxError, null bytes, nesting too deep for the compiler
        channel.send({"syntax": describe(error)})
        return
    channel.send({"compiled": True})
    sys.meta_path.append(Packages(settings["packages"]))
    module = sys.modules["candidate"] = ModuleType("candidate")
    try:
        exec(code, vars(module))
        function = eval(settings["entry_point"], vars(module))
    except BaseException as error:  # SystemExit and all: whatever the program throws is its own fault
        channel.send({"error": describe(error)})
        return
    channel.send({"loaded": True})
    records = frozenset(settings["records"])
    while True:
        try:
            call = channel.receive()
        except EOFError:
            return
        arguments, named = decode(call, lambda name: vars(module)[name])
        try:
            channel.send(_answer(function, arguments, named, records))
        except WireError as error:  # too long
            channel.send({"raised": ["ValueError", f"returned {error}"]})


def _answer(function: Any, arguments: Any, named: Any, records: frozenset[str]) -> dict[str, Any]:
    try:
        return {"result": encode(function(*arguments, **named), records)}
    except BaseException as error:
        return {"raised": [type(error).__name__, describe(error).partition(": ")[2]]}


def describe(error: BaseException) -> str:
    """`ValueError: its message`, in at most 200 characters."""
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = type(error).__name__
    return text[:200]
