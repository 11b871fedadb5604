"""Server-sent events that have a name."""

from pydantic import BaseModel


class NamedEvent(BaseModel):
    """Its `type` is also the event's name."""

    type: str
