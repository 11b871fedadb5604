"""The fields that say what form an answer must have: OpenAI's, vLLM's and llama.cpp's names for the same things."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pangu_server.errors import RequestError
from pangu_server.grammar.wanted import Kind, Wanted
from pangu_server.protocol.lists import Listed

Schema = dict[str, Any] | bool | str  # a JSON schema, or its text
NO_WHITESPACE = ""


class JsonSchema(BaseModel):
    """OpenAI's `json_schema`. Its `strict` makes no difference: every schema is kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    schema_: Schema | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    """OpenAI's `response_format`; also llama.cpp's, with `schema` right here."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema")

    def schema_of(self) -> Schema | None:
        """The JSON schema that it asks for.

        Raises:
            RequestError: it asks for one, and has none.
        """
        if self.type == "text":
            return None
        named = self.schema_ if self.json_schema is None else self.json_schema.schema_
        if named is None and self.type == "json_schema":
            raise RequestError("response_format: json_schema needs its schema", param="response_format")
        return {"type": "object"} if named is None else named


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`: one of five kinds."""

    model_config = ConfigDict(extra="allow", strict=True)

    json_: Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Listed[str] | None = None
    grammar: str | None = Field(default=None, description="GBNF, or llguidance's Lark")
    json_object: bool | None = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None

    def check(self) -> None:
        """Raise `RequestError` for a part that would change the answer in a way we cannot."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, False):
                raise RequestError(f"structured_outputs: {name} is not supported", param="structured_outputs")


class StructuredFields(BaseModel):
    """Mixed into every request that generates. At most one of the fields is given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(default=None, description="vLLM's older name, as the next ones")
    guided_regex: str | None = None
    guided_choice: Listed[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    grammar: str | None = Field(default=None, description="llama.cpp's: GBNF, or llguidance's Lark")
    json_schema: Schema | None = Field(default=None, description="llama.cpp's")

    def wanted(self) -> Wanted | None:
        """The grammar of the answer; None: any text.

        Raises:
            RequestError: more than one is given, or it cannot go with another field.
        """
        found = self._found()
        if not found:
            return None
        if len(found) > 1:
            names = ", ".join(wanted.param for wanted in found)
            raise RequestError(
                f"{names}: only one form can be kept: leave the others out", param=found[1].param
            )
        [wanted] = found
        if wanted.kind == "choice" and not wanted.value:
            raise RequestError(f"{wanted.param}: give at least one choice", param=wanted.param)
        for name in ("ignore_eos", "min_tokens"):  # the grammar says where an answer ends
            if getattr(self, name, None):
                raise RequestError(f"{name} cannot go with {wanted.param}: leave it out", param=name)
        return wanted

    def _found(self) -> list[Wanted]:
        """All that is asked for. An empty text is llama.cpp's way to ask for nothing."""
        outputs = self.structured_outputs or StructuredOutputs()
        outputs.check()
        whitespace = NO_WHITESPACE if outputs.disable_any_whitespace else outputs.whitespace_pattern
        formatted = self.response_format.schema_of() if self.response_format else None
        any_object = {"type": "object"} if outputs.json_object else None
        asked: list[tuple[str, Kind, Any]] = [
            ("response_format", "json_schema", formatted),
            ("structured_outputs", "json_schema", outputs.json_),
            ("structured_outputs", "json_schema", any_object),
            ("structured_outputs", "regex", outputs.regex),
            ("structured_outputs", "choice", outputs.choice),
            ("structured_outputs", "grammar", outputs.grammar),
            ("guided_json", "json_schema", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
            ("json_schema", "json_schema", self.json_schema),
            ("grammar", "grammar", self.grammar),
        ]
        if whitespace is None:
            whitespace = self.guided_whitespace_pattern
        return [
            Wanted(kind=kind, value=value, param=param, whitespace=whitespace)
            for param, kind, value in asked
            if value is not None and value != ""
        ]
