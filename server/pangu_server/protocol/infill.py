"""llama.cpp's `/infill`, which llama.vim and llama.vscode speak: the code around the cursor, and a time budget."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

from pangu_server.completion import Completion, Delta
from pangu_server.engine import Engine
from pangu_server.fim import SourceFile
from pangu_server.generation import Generation, GenerationOptions, Prompt
from pangu_server.protocol.base import GenerationRequest, Integer, Usage
from pangu_server.protocol.lists import Listed

DEFAULT_PREDICT = 128  # llama.cpp's default has no bound; this is what its editors send
DEFAULT_TEMPERATURE = 0.8  # llama.cpp's


class InfillFile(BaseModel):
    """A snippet of another file."""

    text: str
    filename: str | None = None


class InfillRequest(GenerationRequest):
    """Body of `POST /infill`. `prompt` is what is typed after `input_prefix`, on the cursor's line."""

    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: Listed[InfillFile] | None = None
    prompt: str | None = None
    n_predict: Integer | None = Field(default=None, ge=-1, description="-1: what the context has room for")
    t_max_predict_ms: float | None = Field(
        default=None, description="After this time the next line end is the last"
    )

    def generation(self, engine: Engine) -> tuple[Prompt, GenerationOptions]:
        """The prompt around the hole and how to fill it.

        Raises:
            RequestError: the model has no FIM tokens, or see `GenerationRequest.options`.
        """
        max_tokens = DEFAULT_PREDICT if self.n_predict is None else self.n_predict
        ids = self.around_hole(
            engine,
            (self.input_prefix or "") + (self.prompt or ""),
            self.input_suffix or "",
            max_tokens,
            param="input_prefix",
            files=[SourceFile(file.filename or "", file.text) for file in self.input_extra or []],
        )
        milliseconds = self.t_max_predict_ms or 0
        options = self.options(
            engine,
            max_tokens=max_tokens,
            default_temperature=DEFAULT_TEMPERATURE,
            decode_seconds=milliseconds / 1000 if milliseconds > 0 else float("inf"),
        )
        return Prompt(ids), options


class InfillResponse(BaseModel):
    """Response of `POST /infill`, and each event of its stream."""

    index: int = 0
    content: str
    stop: bool
    stop_type: Literal["none", "eos", "limit"]
    model: str
    tokens_predicted: int
    tokens_evaluated: int = Field(description="Of the prompt, those from the cache included")
    tokens_cached: int = Field(description="Of the prompt, those that were in the cache")
    truncated: bool = False
    timings: dict[str, float] | None = None
    tokens: list[int] | None = Field(
        default=None, exclude_if=lambda ids: ids is None, description="Generated, with `return_token_ids`"
    )


class InfillResponses(RootModel[list[InfillResponse]]):
    """Several answers, where `n` asks for them."""


class InfillForm:
    """Writes deltas as llama.cpp does. Its streams have no `[DONE]`: the last event says `stop`."""

    def __init__(self, model: str, generation: Generation, *, token_ids: bool) -> None:
        self._model, self._generation, self._token_ids = model, generation, token_ids

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> InfillResponse | InfillResponses:
        """A whole answer; a list of them where there are several."""
        answers = [self._answer(delta) for delta in deltas]
        return answers[0] if len(answers) == 1 else InfillResponses(answers)

    def chunk(self, deltas: Sequence[Delta], usage: Usage | None) -> InfillResponse:
        """An event."""
        [delta] = deltas
        return self._answer(delta)

    def _answer(self, delta: Delta) -> InfillResponse:
        completion = self._generation.completions[delta.index]
        ended = delta.finish_reason is not None
        return InfillResponse(
            index=delta.index,
            content=delta.text,
            stop=ended,
            stop_type="none" if not ended else "eos" if delta.finish_reason == "stop" else "limit",
            model=self._model,
            tokens_predicted=completion.completion_tokens,
            # An engine without a cache for prompts does not read one that nothing is asked of.
            tokens_evaluated=len(completion.prompt_ids) if completion.ticket.read else 0,
            tokens_cached=completion.ticket.cached_tokens,
            timings=_timings(completion) if ended else None,
            tokens=list(delta.token_ids) if self._token_ids else None,
        )


def _timings(completion: Completion) -> dict[str, Any]:
    """llama.cpp's names. The prompt's time goes from leaving the queue to the first token; what comes from the cache
    is not of its `prompt_n`."""
    timings, ticket = completion.timings, completion.ticket
    prompt_ms = 1000 * (timings.prefill_seconds or 0.0)
    predicted_ms = 1000 * (timings.decode_seconds or 0.0)
    cached, predicted = ticket.cached_tokens, completion.completion_tokens
    prompt = len(completion.prompt_ids) - cached if ticket.read else 0
    drafted = ticket.drafted
    return {
        "cache_n": cached,
        "prompt_n": prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_second": 1000 * prompt / prompt_ms if prompt_ms else 0.0,
        "predicted_n": predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_second": 1000 * (predicted - 1) / predicted_ms if predicted_ms else 0.0,
        **({"draft_n": drafted, "draft_n_accepted": ticket.accepted} if drafted else {}),
    }
