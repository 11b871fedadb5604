"""What is served, tokens for text and back, version."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pangu_server.engine import Engine
from pangu_server.protocol.lists import Listed


class ModelCard(BaseModel):
    """A row of `GET /v1/models`: OpenAI's fields, then what is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pangu-coder2"
    max_model_len: int
    backend: str | None
    engine: str | None = Field(description="What computes: torch, or CTranslate2's library")
    device: str | None
    quantization: str
    compute_type: str | None = Field(description="What runs, which can differ from what was asked for")
    kernel: str | None = Field(description="What multiplies quantized matrices, where there is a choice")
    weight_bytes: int
    architecture: str
    source: str
    source_commit: str | None = Field(description="Of the hub repository that the source was imported from")
    parent: str | None = Field(description="Of a LoRA adapter: the model that it is added to")
    sha256: str = Field(description="Of the artifact's files: two models of one name and size are told apart")
    fim: bool = Field(description="Whether it can fill in the middle")
    chat: bool = Field(description="Whether it has a chat template")
    scores: dict[str, Any]

    @classmethod
    def of(cls, engine: Engine, name: str) -> "ModelCard":
        """The card of the served model under one of its names."""
        manifest, info = engine.artifact.manifest, engine.backend.info if engine.backend else None
        return cls(
            id=name,
            created=int(datetime.fromisoformat(manifest.created_at).timestamp()),
            max_model_len=manifest.context_length,
            backend=info.name if info else None,
            engine=info.engine if info else None,
            device=info.device if info else None,
            quantization=manifest.quantization,
            compute_type=info.compute_type if info else None,
            kernel=info.kernel if info else None,
            weight_bytes=info.weight_bytes if info else manifest.weight_bytes,
            architecture=manifest.architecture,
            source=manifest.source.name,
            source_commit=_commit(manifest.source.provenance),
            parent=manifest.name if name in engine.adapters else None,
            sha256=manifest.sha256,
            fim=engine.fim is not None,
            chat=engine.chat is not None,
            scores=dict(manifest.scores),
        )


def _commit(provenance: Mapping[str, Any] | None) -> str | None:
    """What an import from the hub records."""
    commit = (provenance or {}).get("commit")
    return commit if isinstance(commit, str) else None


class ModelList(BaseModel):
    """Response of `GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeRequest(BaseModel):
    """Body of `POST /tokenize`: vLLM's `prompt` or llama.cpp's `content`."""

    model_config = ConfigDict(strict=True)

    prompt: str | None = None
    content: str | None = None
    add_special_tokens: bool | None = Field(default=None, description="What the tokenizer puts before a text")
    parse_special: bool | None = Field(default=None, description="Default: yes, as in a plain prompt")


class TokenizeResponse(BaseModel):
    """Response of `POST /tokenize`."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(BaseModel):
    """Body of `POST /detokenize`."""

    model_config = ConfigDict(strict=True)

    tokens: Listed[int]


class DetokenizeResponse(BaseModel):
    """Response of `POST /detokenize`, under vLLM's name and llama.cpp's."""

    prompt: str
    content: str


class Version(BaseModel):
    """Response of `GET /version`."""

    version: str


class Status(BaseModel):
    """Response of `GET /health` and `GET /ready`."""

    status: Literal["ok", "ready"]
