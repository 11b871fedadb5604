"""Options as frozen dataclasses that make their own flags: one place for a default, its flag and its words.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class RankOptions:
        problems: Path = argument("problems with tests, JSONL")
        output: Path = option("the ranked pairs", writes="file")              # no default: required
        partial: Literal["flat", "ratio"] = option("ratio: …", "flat")         # choices
        scores: tuple[float, ...] = option("of a program …", (-1, 1), nargs=2)
        limit: int | None = counted("the first N problems only", None)        # from 1 on
        force: bool = option("replace the output file", False)                # --force
        server: ServerOptions = nested(ServerOptions)                         # its fields are flags too

A field's annotation decides how its text is read: `int`, `float`, `str`, `Path`, `Literal`, `bool`, a `tuple` of one of
these, each also `| None`. `type=` reads it otherwise. Whoever calls a verb from Python makes its dataclass, or has
`options_of` make it of all names alike, those of nested fields too.
"""

import argparse
import dataclasses
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pangu_training.stage.errors import OptionError

PATHS = ("writes", "reads")  # settings of a field that are not its flag's: see `paths`
Options = TypeVar("Options")
Container = argparse.ArgumentParser | argparse._ArgumentGroup


def option(
    help: str,
    default: Any = MISSING,
    *,
    flag: str | None = None,
    group: str | None = None,
    exclusive: str | None = None,
    **settings: Any,
) -> Any:
    """A field that is a flag, by default `--its-name`; without a default it is required.

    `help` gets the default behind it, unless it says one itself. Fields of one `group` are listed together; of one
    `exclusive` only one may be given. `settings` go to `add_argument`, but for those of `paths`.
    """
    settings |= {"flag": flag, "group": group, "exclusive": exclusive, "help": help}
    return dataclasses.field(default=default, metadata=settings)


def argument(help: str, default: Any = MISSING, **settings: Any) -> Any:
    """A field that is a positional argument; with a default it may be left out."""
    return dataclasses.field(default=default, metadata={**settings, "help": help, "positional": True})


def counted(
    help: str, default: Any = MISSING, *, least: int = 1, metavar: str | None = "N", **settings: Any
) -> Any:
    """A field that is a whole number of at least `least`."""
    return option(help, default, type=whole_number(least), metavar=metavar, **settings)


def nested(cls: type[Any], *, group: str | None = None, **defaults: Any) -> Any:
    """A field that is a dataclass of options itself; `defaults` replace some of its own, `group` its fields' group."""
    return dataclasses.field(
        default_factory=lambda: options_of(cls, **defaults),
        metadata={"nested": cls, "defaults": defaults, "group": group},
    )


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument's type: an integer within bounds."""

    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            wanted = f"at least {least}" if most is None else f"{least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    number.__name__ = "int"  # argparse: "invalid int value"
    return number


def number_within(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An argument's type: a finite number within bounds."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not least <= value <= most:
            wanted = f"a number of {least:g} or more" if math.isinf(most) else f"{least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{text} is not {wanted}")
        return value

    number.__name__ = "float"
    return number


def add_options(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Declare the flags of `cls`."""
    _Flags(parser).add(cls, {}, None)


def options_of(cls: type[Options], **values: Any) -> Options:
    """`cls` with these values of its fields and of the fields nested in it; the others keep their defaults.

    Raises:
        TypeError: there is no such option, or one without a default is missing.
        OptionError: a value is not one of its choices. And what `cls` itself refuses.
    """
    options = _filled(cls, values)
    if values:
        raise TypeError(f"{cls.__name__} has no option {', '.join(values)}")
    return options


def _filled(cls: type[Options], values: dict[str, Any]) -> Options:
    """Takes what it uses out of `values`."""
    fields, hints = {}, get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if "nested" in field.metadata:
            for name, default in field.metadata["defaults"].items():
                values.setdefault(name, default)
            fields[field.name] = _filled(field.metadata["nested"], values)
        elif field.name in values:
            value = values.pop(field.name)
            value = fields[field.name] = tuple(value) if isinstance(value, list) else value
            choices = _choices(_kind(hints[field.name]), field.metadata)
            given = value if isinstance(value, tuple) else () if value is None else (value,)
            if choices and (wrong := [one for one in given if one not in choices]):
                raise OptionError(f"{field.name}: {wrong[0]!r} is none of {', '.join(map(str, choices))}")
    return cls(**fields)


class _Flags:
    """A parser that is filled from dataclasses."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._groups: dict[str, Container] = {}
        self._exclusive: dict[str, Container] = {}

    def add(self, cls: type[Any], defaults: dict[str, Any], group: str | None) -> None:
        """Declare the fields of `cls`, in order."""
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            settings = {**field.metadata, **({"group": group} if group else {})}
            if "nested" in settings:
                self.add(settings["nested"], settings["defaults"], settings["group"])
            else:
                self._add(field.name, hints[field.name], defaults.get(field.name, field.default), settings)

    def _add(self, name: str, hint: Any, default: Any, settings: dict[str, Any]) -> None:
        flag, positional = settings.pop("flag", None), settings.pop("positional", False)
        settings = {key: value for key, value in settings.items() if key not in PATHS}
        place = self._place(settings.pop("group", None), settings.pop("exclusive", None))
        settings = {**_reading(hint, default, settings), **settings}
        if default is not MISSING:
            settings["default"] = list(default) if isinstance(default, tuple) else default
            silent = default is False or default in (None, "", ()) or "(default: " in settings["help"]
            if not silent:
                text = " ".join(map(str, default)) if isinstance(default, tuple) else "%(default)s"
                settings["help"] = f"{settings['help']} (default: {text})".lstrip()
        if not positional:
            if default is MISSING:
                settings["required"] = True
            place.add_argument(flag or f"--{name.replace('_', '-')}", dest=name, **settings)
        else:
            if default is not MISSING:
                settings.setdefault("nargs", "?")
            place.add_argument(name, **settings)

    def _place(self, group: str | None, exclusive: str | None) -> Container:
        place: Container = self._parser
        if group is not None:
            # "title: description"
            title, _, description = group.partition(": ")
            if group not in self._groups:
                self._groups[group] = self._parser.add_argument_group(title, description or None)
            place = self._groups[group]
        if exclusive is not None:
            if exclusive not in self._exclusive:
                self._exclusive[exclusive] = place.add_mutually_exclusive_group()
            place = self._exclusive[exclusive]
        return place


def _reading(hint: Any, default: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What `add_argument` needs to read a field of this annotation."""
    kind, reading = _kind(hint), dict[str, Any]()
    if Ellipsis in get_args(_without_none(hint)) and settings.get("action") != "append":
        reading["nargs"] = "+"
    if "action" in settings and settings["action"] != "append":
        return reading
    if kind is bool:
        reading["action"] = argparse.BooleanOptionalAction if default is True else "store_true"
    elif get_origin(kind) is Literal:
        reading["choices"] = _choices(kind, settings)
        [reading["type"]] = {type(choice) for choice in get_args(kind)}
    elif kind in (int, float, Path) and "type" not in settings:
        reading["type"] = kind
    return reading


def _kind(hint: Any) -> Any:
    """What one value is: the annotation without `| None` and `tuple`."""
    hint = _without_none(hint)
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        [hint] = [kind for kind in get_args(hint) if kind is not types.NoneType]
    return hint


def _choices(kind: Any, settings: Mapping[str, Any]) -> Collection[Any]:
    """What a value may be; empty: anything."""
    literal = get_args(kind) if get_origin(kind) is Literal else ()
    choices: Collection[Any] = settings.get("choices", literal)
    return choices
