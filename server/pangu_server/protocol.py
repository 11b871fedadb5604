"""The wire: OpenAI's completion requests and responses. The only place that uses pydantic.

A request carries the fields we act on. Unknown fields are ignored and named in a response header; fields
of OpenAI's that are not supported yet pass with their neutral value and are refused with any other.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pangu_server.engine import CompletionOptions, FinishReason
from pangu_server.errors import ModelNotFound, RequestError, ServerError

MAX_STOPS = 16  # editors send up to 13
DEFAULT_MAX_TOKENS = 16  # OpenAI's

# Field -> its neutral values, which change nothing. Any other value is a 400.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
IGNORED_IN_SILENCE = ("user",)  # says who asks, not what


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """Body of `POST /v1/completions`."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    prompt: str | list[int] | list[str] | list[list[int]] = Field(
        description="One prompt: text, or token ids. A list must hold just one."
    )
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def single_prompt(self) -> str | list[int]:
        """The prompt; `RequestError` when there are several or none."""
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return prompt
        if len(prompt) != 1:
            raise RequestError(
                f"prompt is a list of {len(prompt)}; this server takes one prompt a request", param="prompt"
            )
        return prompt[0]  # type: ignore[return-value]

    def options(self) -> CompletionOptions:
        """The request's options with OpenAI's defaults.

        Raises:
            RequestError: a value out of bounds, or a field whose value cannot be honoured.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stops) > MAX_STOPS or "" in stops:
            raise RequestError(f"stop takes up to {MAX_STOPS} strings, none of them empty", param="stop")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream=true", param="stream_options")
        temperature = 1.0 if self.temperature is None else self.temperature
        if self.seed is not None and temperature > 0:
            raise RequestError(
                "seed is not supported with a temperature above 0; temperature 0 repeats itself without one",
                param="seed",
            )
        extra = self.model_extra or {}
        for name, neutral in UNSUPPORTED.items():
            if name in extra and extra[name] not in neutral:
                raise RequestError(f"{name}={extra[name]!r} is not supported by this server", param=name)
        return CompletionOptions(
            max_tokens=DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            temperature=temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stops,
        )

    def ignored_fields(self) -> list[str]:
        """Names of the request's fields that mean nothing here."""
        known = {*UNSUPPORTED, *IGNORED_IN_SILENCE}
        return sorted(name for name in self.model_extra or {} if name not in known)

    def check_model(self, names: tuple[str, ...]) -> None:
        """Raise `ModelNotFound` unless the request names a served model, or none."""
        if self.model is not None and self.model not in names:
            raise ModelNotFound(
                f"The model {self.model!r} does not exist; this server has {', '.join(names)}", param="model"
            )


class Choice(BaseModel):
    """One completion, or a piece of one."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None


class Usage(BaseModel):
    """Token counts. An end-of-text token counts: it was generated."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """Response of `POST /v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ModelCard(BaseModel):
    """A row of `GET /v1/models`: OpenAI's fields, then what is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pangu-coder2"
    max_model_len: int
    backend: str | None
    device: str | None
    quantization: str
    compute_type: str | None = Field(description="What runs, which can differ from what was asked for")
    kernel: str | None = Field(description="What multiplies quantized matrices, where there is a choice")
    weight_bytes: int
    architecture: str
    source: str
    scores: dict[str, Any]


class ModelList(BaseModel):
    """Response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


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
