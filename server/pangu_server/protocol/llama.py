"""llama.cpp's own endpoints: `/completion` and `/infill`, which llama.vim, llama.vscode and Continue speak."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from pangu_server.encoding import Encoder
from pangu_server.engine import Engine
from pangu_server.errors import RequestError
from pangu_server.fim import SourceFile
from pangu_server.generation import GenerationOptions, Prompt
from pangu_server.protocol.base import GenerationRequest, Integer
from pangu_server.protocol.lists import Listed

DEFAULT_INFILL = 128  # tokens; llama.cpp's default has no bound; this is what its editors send
DEFAULT_TEMPERATURE = 0.8  # llama.cpp's
NEVER = -100.0  # added to a token's logit

Pieces = Listed[int | str]  # one prompt: token ids, and texts between them


def _by_token(value: Any) -> Any:
    """llama.cpp also takes pairs of a token id and its bias; false: never that token."""
    if not isinstance(value, list):
        return value
    try:
        return {str(token_id): NEVER if bias is False else bias for token_id, bias in value}
    except (TypeError, ValueError):  # not pairs
        return value


class LlamaRequest(GenerationRequest):
    """What both endpoints take."""

    n_predict: Integer | None = Field(default=None, ge=-1, description="-1: what the context has room for")
    t_max_predict_ms: float | None = Field(
        default=None, description="After this time the next line end is the last"
    )
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_by_token)] = Field(
        default=None, description="Token id -> -100 to 100, or a list of pairs"
    )
    return_tokens: bool | None = Field(default=None, description="The same as return_token_ids")

    def llama_options(
        self, engine: Engine, max_tokens: int, logprobs: int | None = None
    ) -> GenerationOptions:
        """See `GenerationRequest.options`."""
        milliseconds = self.t_max_predict_ms or 0
        return self.options(
            engine,
            max_tokens=max_tokens,
            logprobs=logprobs,
            default_temperature=DEFAULT_TEMPERATURE,
            decode_seconds=milliseconds / 1000 if milliseconds > 0 else float("inf"),
        )


class LlamaCompletionRequest(LlamaRequest):
    """Body of `POST /completion`."""

    prompt: str | Listed[int] | Pieces | Listed[str | Listed[int] | Pieces] = Field(
        description="Text, token ids, or both in a row; or a list of such prompts"
    )
    n_probs: Integer | None = Field(
        default=None, ge=0, description="Alternatives to report for each token; 0: nothing is reported"
    )

    def generation(self, engine: Engine) -> tuple[list[Prompt], GenerationOptions]:
        """The prompts, and how to go on.

        Raises:
            RequestError: no prompt, no valid one, or see `GenerationRequest.options`.
        """
        max_tokens = -1 if self.n_predict is None else self.n_predict
        prompts = [
            Prompt(self.cut_prompt(self._ids(prompt, engine.encoder), engine, max_tokens))
            for prompt in self._listed()
        ]
        return prompts, self.llama_options(engine, max_tokens, self.n_probs or None)

    def _listed(self) -> list[Any]:
        """The prompts. A list with a number in it is one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise RequestError("prompt is an empty list: give at least one", param="prompt")
        one = any(isinstance(part, int) for part in self.prompt)
        return [self.prompt] if one else list(self.prompt)

    def _ids(self, prompt: str | list[int | str], encoder: Encoder) -> list[int]:
        parse_special = self.parse_special is not False
        add_special = self.add_special_tokens is not False
        if isinstance(prompt, str) or not any(isinstance(part, str) for part in prompt):
            return encoder.prompt(prompt, parse_special=parse_special, add_special=add_special)  # type: ignore[arg-type]
        ids = list(encoder.start_ids) if add_special and isinstance(prompt[0], str) else []
        for place, part in enumerate(prompt):
            if isinstance(part, str):
                ids += encoder.text(part, parse_special=parse_special, begins=place == 0)
            else:
                ids.append(part)
        return encoder.prompt(ids)


class InfillFile(BaseModel):
    """A snippet of another file."""

    text: str
    filename: str | None = None


class InfillRequest(LlamaRequest):
    """Body of `POST /infill`. `prompt` is what is typed after `input_prefix`, on the cursor's line."""

    input_prefix: str | None = None
    input_suffix: str | None = None
    input_extra: Listed[InfillFile] | None = None
    prompt: str | None = None

    def generation(self, engine: Engine) -> tuple[Prompt, GenerationOptions]:
        """The prompt around the hole and how to fill it.

        Raises:
            RequestError: the model has no FIM tokens, or see `GenerationRequest.options`.
        """
        max_tokens = DEFAULT_INFILL if self.n_predict is None else self.n_predict
        ids = self.around_hole(
            engine,
            (self.input_prefix or "") + (self.prompt or ""),
            self.input_suffix or "",
            max_tokens,
            param="input_prefix",
            files=[SourceFile(file.filename or "", file.text) for file in self.input_extra or []],
        )
        return Prompt(ids), self.llama_options(engine, max_tokens)
