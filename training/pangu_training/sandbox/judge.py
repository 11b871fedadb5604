"""The judge's process: runs the tests, calls the candidate by proxy, tells the parent what came out.

It is confined like the candidate, as tests may be written by a model too. To the parent goes a line for
every assert that was reached, `+` it held, `-` it did not, `!` the candidate raised, and a JSON line last.
"""

import ast
import builtins
import json
import os
import sys
from types import ModuleType
from typing import Any

from pangu_training.sandbox.candidate import Packages, describe
from pangu_training.sandbox.confinement import confine
from pangu_training.sandbox.wire import Channel, WireError, decode, encode


class Gone(BaseException):
    """The candidate's process is not there any more, or does not answer in the protocol."""


class RaisedError(Exception):
    """The candidate raised something of its own."""


_EXCEPTIONS = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception)
}


class Proxy:
    """Stands for the candidate's function: arguments go out as copies, the result comes back as data."""

    def __init__(self, channel: Channel, namespace: dict[str, Any], records: list[str]) -> None:
        self._channel, self._namespace, self._records = channel, namespace, frozenset(records)
        self.called = False
        self.raised: BaseException | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.called = True
        try:
            self._channel.send(encode((arguments, named), self._records))
            answer = self._channel.receive()
            if isinstance(answer, dict) and "result" in answer:
                return decode(answer["result"], self._record)
            name, text = answer["raised"]
        except (EOFError, BrokenPipeError):
            raise Gone("the program ended its process") from None
        except (WireError, KeyError, TypeError, ValueError) as error:
            raise Gone(f"the program sent {error}") from None
        try:
            self.raised = _EXCEPTIONS.get(name, RaisedError)(text)
        except TypeError:  # one that takes more arguments
            self.raised = RaisedError(text)
        raise self.raised

    def _record(self, name: str) -> Any:
        if name not in self._records:
            raise ValueError(name)
        return self._namespace[name]


class Tally:
    """Counts the asserts as they are reached."""

    def __init__(self, proxy: Proxy, source: str, verdict: int) -> None:
        self._proxy, self._source, self._verdict = proxy, source, verdict
        self.reason = ""

    def __call__(self, error: BaseException | None, line: int) -> None:
        mark = "+" if error is None else "!" if error is self._proxy.raised else "-"
        os.write(self._verdict, f"{mark}\n".encode())
        if error is not None and not self.reason:
            statement = self._source.splitlines()[line - 1].strip()
            what = "" if isinstance(error, AssertionError) else f" ({describe(error)})"
            self.reason = f"{statement[:200]}{what}"


class CountAsserts(ast.NodeTransformer):
    """`assert x` becomes `try: assert x`, with the outcome told to `__tally__`; the next one runs anyway."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Wrap one assert."""
        self.count += 1
        line = node.lineno
        text = f"try: pass\nexcept Exception as __error__: __tally__(__error__, {line})\nelse: __tally__(None, {line})"
        wrapped = ast.parse(text).body[0]
        assert isinstance(wrapped, ast.Try)
        wrapped.body = [node]
        for part in ast.walk(wrapped):
            ast.copy_location(part, node)
        return wrapped


def main() -> None:
    """Run the check of the settings on stdin."""
    settings = json.load(sys.stdin)
    verdict = settings["verdict"]
    os.dup2(1, 0)
    try:
        confine(settings)
    except OSError as error:
        ending = {"ended": "unconfined", "reason": str(error)}
    else:
        ending = _judge(settings, verdict)
    os.write(verdict, json.dumps(ending).encode() + b"\n")


def _judge(settings: dict[str, Any], verdict: int) -> dict[str, Any]:
    channel = Channel(settings["read_end"], settings["write_end"])
    module = sys.modules["checks"] = ModuleType("checks")
    namespace = vars(module)
    proxy = Proxy(channel, namespace, settings["records"])
    test, asserts = settings["test"], CountAsserts()
    tally = namespace["__tally__"] = Tally(proxy, test, verdict)
    sys.meta_path.append(Packages(settings["packages"]))
    try:
        exec(compile(settings["definitions"], "<definitions>", "exec", dont_inherit=True), namespace)
        tree = asserts.visit(ast.parse(test))
        exec(compile(tree, "<test>", "exec", dont_inherit=True), namespace)
        check = namespace["check"]
    except BaseException as error:
        return {"ended": "broken", "reason": describe(error)}
    os.write(verdict, f"{asserts.count}\n".encode())
    try:
        for state in ("compiled", "loaded"):
            message = channel.receive()
            if state not in message:
                ((ended, reason),) = message.items()
                # "unconfined" and "syntax" come before the program runs, or not at all
                allowed = ("unconfined", "syntax") if state == "compiled" else ("error",)
                return {"ended": ended if ended in allowed else "error", "reason": str(reason)[:200]}
    except (EOFError, WireError, AttributeError, TypeError, ValueError):
        return {"ended": "gone", "reason": "the program ended its process"}
    try:
        check(proxy)
    except Gone as gone:
        return {"ended": "gone", "reason": tally.reason or str(gone)}
    except BaseException as error:
        if not proxy.called:
            return {"ended": "broken", "reason": describe(error)}
        os.write(verdict, b"!\n" if error is proxy.raised else b"-\n")
        return {"ended": "cut", "reason": tally.reason or describe(error)}
    return {"ended": "whole", "reason": tally.reason}
