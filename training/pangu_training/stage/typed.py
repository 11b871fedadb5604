"""JSON values as dataclasses: each value is what its field's annotation says, or is refused by name."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


def typed(kind: type[Made], value: Any, name: str = "it") -> Made:
    """`value` as a `kind`: a JSON type, a dataclass, or a list, mapping, literal or union of them.

    Raises:
        ValueError: it is none, or a field is missing or one too many; `name` is what the message calls it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    made: Any = value
    if kind is Any:
        good = True
    elif origin in (Union, types.UnionType):  # X | None
        [other] = [one for one in arguments if one is not type(None)]
        made, good = (None if value is None else typed(other, value, name)), True
    elif origin is Literal:
        good = isinstance(value, str) and value in arguments
    elif origin is tuple:
        good = isinstance(value, list | tuple)
        made = tuple(typed(arguments[0], one, f"an entry of {name}") for one in value) if good else ()
    elif origin is Mapping:
        good = isinstance(value, dict)
        made = (
            {key: typed(arguments[1], one, f"{name}[{key!r}]") for key, one in value.items()} if good else {}
        )
    elif dataclasses.is_dataclass(kind):
        good = isinstance(value, dict)
        made = _dataclass(kind, value, name) if good else None
    else:
        good = type(value) is kind
    if not good:
        words = (
            " or ".join(map(repr, arguments)) if origin is Literal else getattr(kind, "__name__", str(kind))
        )
        raise ValueError(f"{name} is {str(value)[:60]!r} and should be a {words}")
    return cast(Made, made)


def _dataclass(kind: type[Any], value: Mapping[str, Any], name: str) -> Any:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := value.keys() - fields.keys():
        raise ValueError(f"{name} has an unknown key, {min(unknown)[:60]!r}")
    missing = {
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    } - value.keys()
    if missing:
        raise ValueError(f"{name} has no {min(missing)}")
    return kind(**{key: typed(hints[key], one, key) for key, one in value.items()})
