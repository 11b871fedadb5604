"""Lists in a body: validation ends at the first entry that is wrong, however many there are."""

from typing import Annotated, TypeVar

from pydantic import FailFast


class First(FailFast):
    """pydantic's own cannot be hashed, as the members of a union are."""

    __hash__ = object.__hash__


T = TypeVar("T")
Listed = Annotated[list[T], First()]
