"""Fields that say where an answer ends, which tokens its text shows, and how a prompt is cut. vLLM's names."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pangu_server.engine import Engine
from pangu_server.errors import RequestError
from pangu_server.protocol.lists import Listed
from pangu_server.text import TextOptions


def _integral(value: Any) -> Any:
    """JSON has no integers of its own: editors in Lua and JavaScript may write 56.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


MOST_STOP_CHARACTERS = 1000  # each token's text is compared with the beginnings of all stop strings
Integer = Annotated[int, BeforeValidator(_integral)]


class TokenFields(BaseModel):
    """Of every endpoint that generates. Null is the default."""

    model_config = ConfigDict(extra="allow", strict=True)

    stop: str | Listed[str] | None = Field(default=None, description="Names of special tokens count as text")
    stop_token_ids: Listed[Integer] | None = Field(
        default=None, description="These tokens end the answer too"
    )
    include_stop_str_in_output: bool | None = Field(
        default=None, description="The text ends with what stopped it, not before"
    )
    skip_special_tokens: bool | None = Field(
        default=None, description="Whether the text leaves special tokens out. Default: yes"
    )
    return_token_ids: bool | None = Field(
        default=None, description="Also report the ids of the prompt and of the tokens generated"
    )
    add_special_tokens: bool | None = Field(
        default=None,
        description="Whether what the tokenizer puts before every text goes before the prompt. Default: yes, but "
        "not in chat, whose template writes it",
    )
    truncate_prompt_tokens: Integer | None = Field(
        default=None,
        ge=-1,
        description="Keep that many tokens of the prompt, the last ones; -1: as many as the context has room for",
    )

    def text_options(self, engine: Engine) -> TextOptions:
        """What of the answer's tokens becomes its text.

        Raises:
            RequestError: too many stop strings.
        """
        return TextOptions(
            stop=self._stops(engine),
            include_stop=bool(self.include_stop_str_in_output),
            skip_special=self.skip_special_tokens is not False,
        )

    def cut_prompt(self, ids: Sequence[int], engine: Engine, max_tokens: int) -> list[int]:
        """What `truncate_prompt_tokens` keeps of `ids`; `max_tokens` below 0: half of the context is the answer's.

        Raises:
            RequestError: it keeps nothing.
        """
        kept = self.truncate_prompt_tokens
        if kept is None:
            return list(ids)
        if kept == 0:
            raise RequestError(
                "truncate_prompt_tokens: 0 leaves no prompt; -1 keeps what fits",
                param="truncate_prompt_tokens",
            )
        if kept < 0:
            kept = max(1, engine.context_length - answer_room(engine, max_tokens))
        return list(ids[-kept:])

    def _stops(self, engine: Engine) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        stops = list(dict.fromkeys(stop for stop in stops if stop))  # an empty one would stop nothing
        _check_count(stops, engine, "stop")
        if max(map(len, stops), default=0) > MOST_STOP_CHARACTERS:
            raise RequestError(
                f"stop: a stop string has up to {MOST_STOP_CHARACTERS} characters: shorten it", param="stop"
            )
        return tuple(stops)

    def _stop_token_ids(self, engine: Engine) -> tuple[int, ...]:
        ids = tuple(dict.fromkeys(self.stop_token_ids or ()))
        _check_count(ids, engine, "stop_token_ids")
        check_ids(ids, engine, "stop_token_ids")
        return ids


def answer_room(engine: Engine, max_tokens: int) -> int:
    """Tokens of the context that the answer needs, where a prompt is to be cut: at most half if it may be shorter."""
    half = engine.context_length // 2
    if max_tokens < 0:
        return half
    return min(max_tokens, half) if engine.limits.clamp_max_tokens else max_tokens


def check_ids(ids: Iterable[int], engine: Engine, param: str) -> None:
    """Raise `RequestError` for an id that the model does not have."""
    for token_id in ids:
        if not 0 <= token_id < engine.vocabulary_size:
            raise RequestError(
                f"{param}: {token_id} is not a token id; the vocabulary has 0 to {engine.vocabulary_size - 1}",
                param=param,
            )


def _check_count(values: Sequence[object], engine: Engine, param: str) -> None:
    most = engine.limits.max_stop_strings
    if len(values) > most:
        raise RequestError(f"{param}: {len(values)} are given, this server takes {most}", param=param)
