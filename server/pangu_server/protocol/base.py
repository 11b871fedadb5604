"""What the endpoints that generate have in common: sampling fields, usage, errors.

A request carries the fields we act on. Unknown fields are ignored and named in a response header; fields that
would change the answer in a way we cannot are refused unless their value is neutral.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field

from pangu_server.backends.seam import SamplingOptions
from pangu_server.engine import Engine
from pangu_server.errors import ModelNotFound, RequestError, ServerError
from pangu_server.fim import SourceFile
from pangu_server.generation import Generation, GenerationOptions, Prompt
from pangu_server.protocol.fields import Integer as Integer
from pangu_server.protocol.fields import TokenFields, answer_room
from pangu_server.protocol.lists import Listed
from pangu_server.protocol.structured import StructuredFields

GREEDY_BELOW = 1e-5  # a temperature this low is an argmax; dividing by it would overflow
SEEDS = 2**64
RANDOM_SEED = -1  # clients' word for none


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`, and vLLM's `continuous_usage_stats`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(default=None, description="A usage in every chunk")


class TextPart(BaseModel):
    """A part of a content. Only text is understood."""

    type: Literal["text"]
    text: str


def text_of(content: str | Sequence[TextPart]) -> str:
    """A content as one text."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Prediction(BaseModel):
    """OpenAI's `prediction`: what the answer is likely to hold, such as the file that is to be changed."""

    type: Literal["content"]
    content: str | Listed[TextPart]


class GenerationRequest(TokenFields, StructuredFields):
    """Fields of every endpoint that generates. Null is the default."""

    # Field -> its neutral values, which change nothing. Any other value is a 400.
    refused: ClassVar[dict[str, tuple[Any, ...]]] = {}
    instead: ClassVar[dict[str, str]] = {}  # what to do without such a field
    silent: ClassVar[tuple[str, ...]] = ("user",)  # says who asks, not what

    model: str | None = Field(default=None, description="Empty: the model that is served")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Integer | None = Field(default=None, ge=-1, description="0 and -1: all tokens")
    min_p: float | None = Field(default=None, ge=0, le=1)
    n: Integer | None = Field(default=None, ge=1)
    seed: Integer | None = Field(default=None, description="The same seed draws the same tokens; -1: none")
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    logit_bias: dict[str, float] | None = Field(default=None, description="Token id -> -100 to 100")
    min_tokens: Integer | None = Field(default=None, ge=0)
    ignore_eos: bool | None = None
    prediction: Prediction | None = Field(
        default=None,
        description="A text that the answer is likely to hold. Never changes it, but can speed it up",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    parse_special: bool | None = Field(
        default=None,
        description="Whether names of special tokens in the text become those tokens. Default: in a plain "
        "prompt yes (editors write FIM tokens there), around a hole and in chat messages no",
    )

    def options(
        self,
        engine: Engine,
        *,
        max_tokens: int,  # below 0: what the context has room for
        best_of: int | None = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        default_temperature: float = 1.0,
        decode_seconds: float = float("inf"),
    ) -> GenerationOptions:
        """The request's options with OpenAI's defaults.

        Raises:
            RequestError: a value out of bounds, or a field whose value cannot be honoured.
            ModelNotFound: the request names another model.
        """
        self._check(engine)
        n = self.n or 1
        best_of = best_of or n
        if best_of < n:
            raise RequestError(f"best_of={best_of} is less than n={n}", param="best_of")
        if best_of > n and self.stream:
            raise RequestError("best_of above n cannot be streamed: the best is known last", param="best_of")
        if best_of > n and logprobs is None:
            logprobs = 0  # what the choice is made by
        if max(logprobs or 0, prompt_logprobs or 0) > engine.limits.max_logprobs:
            raise RequestError(f"logprobs: at most {engine.limits.max_logprobs}", param="logprobs")
        temperature = default_temperature if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else self.top_p
        if temperature < GREEDY_BELOW or top_p == 0:  # a nucleus of nothing but the best token
            temperature, top_p = 0.0, 1.0
        sampling = SamplingOptions(
            max_tokens=engine.context_length if max_tokens < 0 else max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=temperature,
            top_p=top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            seed=None if self.seed in (None, RANDOM_SEED) else self.seed % SEEDS,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=self._logit_bias(engine.vocabulary_size),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            prediction=self._prediction(engine),
            adapter=self.model if self.model in engine.adapters else None,
        )
        return GenerationOptions(
            sampling=sampling,
            n=n,
            best_of=best_of,
            fit=max_tokens < 0 or engine.limits.clamp_max_tokens,
            text=self.text_options(engine),
            stop_token_ids=self._stop_token_ids(engine),
            ignore_eos=bool(self.ignore_eos),
            stream=bool(self.stream),
            decode_seconds=decode_seconds,
        )

    def around_hole(
        self,
        engine: Engine,
        prefix: str | list[int],
        suffix: str,
        max_tokens: int,
        *,
        param: str,
        files: Sequence[SourceFile] = (),
    ) -> list[int]:
        """The ids that ask for the hole between `prefix` and `suffix`, cut to what `max_tokens` leaves room for.

        `max_tokens` below 0, or one that `--clamp-max-tokens` may lower, takes half of the context at most.

        Raises:
            RequestError: the model has no FIM tokens, or `prefix` is not a text; names the field `param`.
            ContextLengthExceeded: there is no room around the hole.
        """
        if engine.fim is None:
            raise RequestError(
                f"{param}: this model has no fill-in-the-middle tokens; send the code before the cursor as a "
                "plain prompt",
                param=param,
            )
        if not isinstance(prefix, str):
            raise RequestError(f"{param} needs a prompt that is text", param=param)
        room = engine.context_length - answer_room(engine, max_tokens)
        if self.truncate_prompt_tokens is not None:
            room = len(self.cut_prompt(range(room), engine, max_tokens))
        return engine.fim.prompt(
            prefix,
            suffix,
            room,
            files=files,
            parse_special=bool(self.parse_special),
            add_special=self.add_special_tokens is not False,
            line="\n" in self._stops(engine),
        )

    def ignored_fields(self) -> list[str]:
        """Names of the request's fields that mean nothing here."""
        return sorted(name for name in self.model_extra or {} if name not in {*self.refused, *self.silent})

    def _check(self, engine: Engine) -> None:
        engine.encoder.check_unicode(self.model or "", "model")  # the answer says it back
        if self.model and not engine.answers_to(self.model):
            names = ", ".join((*engine.model_names, *engine.adapters))
            raise ModelNotFound(
                f"The model {self.model!r} does not exist; this server has {names}", param="model"
            )
        usage = self.stream_options is not None and self.stream_options.include_usage
        if usage and not self.stream:
            raise RequestError("stream_options needs stream=true", param="stream_options")
        for name, neutral in self.refused.items():
            if (self.model_extra or {}).get(name, neutral[0]) not in neutral:
                instead = self.instead.get(name, "leave it out")
                raise RequestError(f"{name} is not supported by this server: {instead}", param=name)

    def _prediction(self, engine: Engine) -> tuple[int, ...]:
        if self.prediction is None:
            return ()
        text = text_of(self.prediction.content)
        return tuple(engine.encoder.text(text, parse_special=bool(self.parse_special), param="prediction"))

    def _logit_bias(self, vocabulary_size: int) -> tuple[tuple[int, float], ...]:
        pairs = []
        for key, bias in (self.logit_bias or {}).items():
            if bias == 0:
                continue
            if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary_size):
                raise RequestError(
                    f"logit_bias: {key!r} is not a token id; the vocabulary has 0 to {vocabulary_size - 1}",
                    param="logit_bias",
                )
            if not -100 <= bias <= 100:
                raise RequestError("logit_bias: values go from -100 to 100", param="logit_bias")
            pairs.append((int(key), bias))
        return tuple(pairs)


class TokenIds:
    """What an answer tells of its prompts' ids when a request has `return_token_ids`: once for each choice."""

    def __init__(self, prompts: Sequence[Prompt], n: int) -> None:
        self._untold = {index: prompts[index // n].ids for index in range(n * len(prompts))}

    def of_prompt(self, index: int) -> list[int] | None:
        """The ids of the prompt of choice `index`; None when they have been told."""
        ids = self._untold.pop(index, None)
        return None if ids is None else list(ids)


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int = Field(
        description="Those that were not computed: their keys and values were in the cache"
    )


class CompletionTokensDetails(BaseModel):
    """What came of guessed tokens, from a `prediction` or the prompt; `completion_tokens` has no rejected ones."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(BaseModel):
    """Token counts. An end-of-text token counts: it was generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, exclude_if=lambda details: details is None
    )

    @classmethod
    def of(cls, generation: Generation) -> "Usage":
        """What a generation has used up to now."""
        prompt, completion = generation.prompt_tokens, generation.completion_tokens
        predicted = None
        if generation.options.sampling.prediction or generation.drafted_tokens:
            accepted = generation.accepted_tokens
            predicted = CompletionTokensDetails(
                accepted_prediction_tokens=accepted,
                rejected_prediction_tokens=generation.drafted_tokens - accepted,
            )
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=generation.cached_tokens),
            completion_tokens_details=predicted,
        )


class ErrorDetail(BaseModel):
    """OpenAI's error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Body of every response that is not a success."""

    error: ErrorDetail

    @classmethod
    def of(cls, error: ServerError) -> "ErrorResponse":
        """The body for `error`."""
        return cls(error=ErrorDetail(message=str(error), type=error.type, param=error.param, code=error.code))
