"""Long lists: what is read ends at its first mistake; what is written is made one entry after the other."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import FailFast, PlainSerializer


class First(FailFast):
    """pydantic's own cannot be hashed, as the members of a union are."""

    __hash__ = object.__hash__


T = TypeVar("T")
Listed = Annotated[list[T], First()]


def made_when_written(kind: Any) -> PlainSerializer:
    """For a list whose entries are functions that make a `kind`: only one is in memory at a time, and between two the
    interpreter can go on with another thread."""
    return PlainSerializer(_made, return_type=kind)


def _made(make: Callable[[], Any]) -> Any:
    return make()
