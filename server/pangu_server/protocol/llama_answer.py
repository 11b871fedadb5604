"""How llama.cpp's own endpoints answer, and what they tell of the server: `/props` and `/slots`."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel

from pangu_server.backends.seam import SamplingOptions
from pangu_server.completion import Completion, Delta, FinishReason, Token
from pangu_server.encoding import Encoder
from pangu_server.engine import Engine
from pangu_server.generation import Generation
from pangu_server.pieces import written
from pangu_server.protocol.base import Usage
from pangu_server.protocol.lists import made_when_written
from pangu_server.protocol.llama import DEFAULT_TEMPERATURE


class OtherToken(BaseModel):
    """A token that could have been here."""

    id: int
    token: str
    bytes: list[int]
    logprob: float


class TokenProbability(OtherToken):
    """A token that is here."""

    top_logprobs: list[OtherToken]

    @classmethod
    def of(cls, token: Token, encoder: Encoder) -> "TokenProbability":
        """llama.cpp's form of `token`."""

        def told(token_id: int, logprob: float) -> dict[str, Any]:
            raw = encoder.pieces.of(token_id, first=token.first)
            return {"id": token_id, "token": written(raw), "bytes": list(raw), "logprob": logprob}

        assert token.logprobs is not None  # only a prompt's first token has none
        top = [OtherToken(**told(*pair)) for pair in token.logprobs.top]
        return cls(**told(token.id, token.logprobs.logprob), top_logprobs=top)


class GenerationSettings(BaseModel):
    """How an answer is drawn, by llama.cpp's names."""

    n_ctx: int
    n_predict: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int = Field(description="-1: none")
    presence_penalty: float
    frequency_penalty: float
    repeat_penalty: float
    min_tokens: int
    n_probs: int

    @classmethod
    def of(cls, sampling: SamplingOptions, n_ctx: int) -> "GenerationSettings":
        """Those of `sampling` in a context of `n_ctx` tokens."""
        return cls(
            n_ctx=n_ctx,
            n_predict=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=-1 if sampling.seed is None else sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            repeat_penalty=sampling.repetition_penalty,
            min_tokens=sampling.min_tokens,
            n_probs=sampling.logprobs or 0,
        )


class LlamaResponse(BaseModel):
    """Response of `POST /completion` and `/infill`, and each event of their streams."""

    index: int = 0
    content: str
    stop: bool
    stop_type: Literal["none", "eos", "limit", "word"]
    stopping_word: str = Field(default="", description="The stop string that was found")
    model: str
    tokens_predicted: int
    tokens_evaluated: int = Field(description="Of the prompt, those from the cache included")
    tokens_cached: int = Field(description="Of the prompt, those that were in the cache")
    truncated: bool = False
    timings: dict[str, float] | None = None
    tokens: list[int] | None = Field(
        default=None, exclude_if=lambda ids: ids is None, description="Generated, with `return_tokens`"
    )
    completion_probabilities: (
        list[Annotated[TokenProbability, made_when_written(TokenProbability)]] | None
    ) = Field(default=None, exclude_if=lambda tokens: tokens is None, description="With `n_probs`")
    generation_settings: GenerationSettings | None = Field(
        default=None, exclude_if=lambda settings: settings is None, description="In an answer's last piece"
    )


class LlamaResponses(RootModel[list[LlamaResponse]]):
    """Several answers, where `n` asks for them."""


class LlamaForm:
    """Writes deltas as llama.cpp does. Its streams have no `[DONE]`: the last event says `stop`."""

    def __init__(
        self,
        model: str,
        engine: Engine,
        generation: Generation,
        *,
        token_ids: bool = False,
        logprobs: bool = False,
    ) -> None:
        self._model, self._engine, self._generation = model, engine, generation
        self._token_ids, self._logprobs = token_ids, logprobs

    def body(self, deltas: Sequence[Delta], usage: Usage | None) -> LlamaResponse | LlamaResponses:
        """A whole answer; a list of them where there are several."""
        answers = [self._answer(delta) for delta in deltas]
        return answers[0] if len(answers) == 1 else LlamaResponses(answers)

    def chunk(self, deltas: Sequence[Delta], usage: Usage | None) -> LlamaResponse:
        """An event."""
        [delta] = deltas
        return self._answer(delta)

    def _answer(self, delta: Delta) -> LlamaResponse:
        completion = self._generation.completions[delta.index]
        ended = delta.finish_reason is not None
        settings = GenerationSettings.of(completion.sampling, self._engine.context_length) if ended else None
        answer = LlamaResponse(
            index=delta.index,
            content=delta.text,
            stop=ended,
            stop_type=_stop_type(completion, delta.finish_reason),
            stopping_word=completion.stopping_word if ended else "",
            model=self._model,
            tokens_predicted=completion.completion_tokens,
            # An engine without a cache for prompts does not read one that nothing is asked of.
            tokens_evaluated=len(completion.prompt_ids) if completion.ticket.read else 0,
            tokens_cached=completion.ticket.cached_tokens,
            timings=_timings(completion) if ended else None,
            tokens=list(delta.token_ids) if self._token_ids else None,
            generation_settings=settings,
        )
        if self._logprobs:
            made: list[Any] = [
                partial(TokenProbability.of, one, self._engine.encoder) for one in delta.tokens
            ]
            answer.completion_probabilities = made
        return answer


def _stop_type(
    completion: Completion, reason: FinishReason | None
) -> Literal["none", "eos", "limit", "word"]:
    if reason is None:
        return "none"
    if reason == "length":
        return "limit"
    return "word" if completion.stopping_word else "eos"


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


class Slot(BaseModel):
    """A row of `GET /slots`: room for one completion. Nothing of anybody's prompt."""

    id: int
    n_ctx: int
    is_processing: bool

    @classmethod
    def all(cls, engine: Engine) -> "list[Slot]":
        """As many as the engine generates together. Those that run come first: it does not tell which is which."""
        assert engine.backend is not None
        running = engine.load_count.running
        return [
            cls(id=place, n_ctx=engine.context_length, is_processing=place < running)
            for place in range(engine.backend.info.max_batch)
        ]


class DefaultSettings(Slot):
    """What a request gets that says nothing."""

    params: GenerationSettings


class Modalities(BaseModel):
    """What the model reads besides text."""

    vision: bool = False
    audio: bool = False


class Props(BaseModel):
    """Response of `GET /props`."""

    default_generation_settings: DefaultSettings
    total_slots: int
    model_alias: str
    model_path: str = Field(description="The model's name: where it lies is not told")
    chat_template: str = Field(description="Empty: it has none")
    modalities: Modalities = Field(default_factory=Modalities)
    build_info: str

    @classmethod
    def of(cls, engine: Engine, version: str) -> "Props":
        """Those of an engine that is ready."""
        slots = Slot.all(engine)
        sampling = SamplingOptions(max_tokens=-1, temperature=DEFAULT_TEMPERATURE)
        params = GenerationSettings.of(sampling, engine.context_length)
        return cls(
            default_generation_settings=DefaultSettings(**slots[0].model_dump(), params=params),
            total_slots=len(slots),
            model_alias=engine.model_names[0],
            model_path=engine.model_names[0],
            chat_template=engine.chat.source if engine.chat is not None else "",
            build_info=f"pangu-coder2-{version}",
        )
