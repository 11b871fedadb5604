"""How an artifact is served: the flags of `pangu-serve`."""

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pangu_convert.artifact import Format
from pangu_convert.infilling import FimOrder
from pangu_server.backends.seam import Device, Draft, EngineChoice
from pangu_server.limits import Limits, byte_size, seconds
from pangu_server.logs import LogFormat
from pangu_training.stage.options import argument, counted, nested, option, whole_number


def origin(text: str) -> str:
    """An argument's type: what browsers send in Origin. With a path or a slash at the end it would never match."""
    if not re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^/\s]+", text):
        raise ArgumentTypeError(f"{text!r} is not an origin, such as https://editor.example:8443")
    return text


def named_folder(text: str) -> tuple[str, Path]:
    """An argument's type: a name and a folder."""
    name, given, folder = text.partition("=")
    if not (name.strip() and given and folder):
        raise ArgumentTypeError(f"{text!r} is not NAME=FOLDER")
    return name, Path(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How to serve an artifact."""

    artifact: Path = argument(
        "folder that pangu-convert wrote; or a model to make one of, once, in the cache: a catalogue name of "
        "pangu-convert import, a checkpoint folder, a GGUF file, a hub id (OWNER/NAME), a quantized folder of others"
    )
    format: Literal["auto", Format] = option(
        "what to make of a model that is not an artifact; auto: ctranslate2, which is int8, where its architecture has "
        "it and there is no GPU, else transformers, which is unquantized",
        "auto",
    )
    revision: str | None = option("branch, tag or commit of a hub id (default: main)", None)
    host: str = option("address to listen on", "127.0.0.1")
    port: int = option("0 takes a free one", 8000, type=whole_number(0, 65535))
    uds: Path | None = option("listen on this Unix socket, not on a port", None, metavar="PATH")
    ssl_certfile: Path | None = option("certificate chain, PEM: answer https", None, metavar="FILE")
    ssl_keyfile: Path | None = option(
        "its key, if the certificate's file does not hold it", None, metavar="FILE"
    )
    device: Device = option("what to compute on", "auto")
    engine: EngineChoice = option("what computes; auto: what measures best here", "auto")
    threads: int | None = counted(
        "compute threads (default: the cores that we may use, less one)", None, metavar=None
    )
    max_batch: int = counted("completions generated together at most", 16, metavar=None)
    cache_bytes: int | None = option(
        "for attention keys and values, such as 2GB or 512MiB (default: what is left of the GPU, or a share of "
        "the memory)",
        None,
        flag="--cache-memory",
        type=byte_size,
        metavar="SIZE",
    )
    draft: Draft = option("guess tokens from the prompt and verify several in one step", "prompt")
    graphs: bool = option("capture decode steps as CUDA graphs", True)
    fim_order: Literal["auto", FimOrder] = option(
        "how the code around a gap is written to the model; auto is what its family does best", "auto"
    )
    served_model_name: tuple[str, ...] = option("more model ids to answer to", (), metavar="NAME")
    lora: tuple[tuple[str, Path], ...] = option(
        "LoRA adapters of the model, which requests choose by NAME as `model`; on the torch engine",
        (),
        type=named_folder,
        metavar="NAME=FOLDER",
    )
    skip_verify: bool = option("do not check the artifact's hashes before loading", False)
    api_key_file: Path | None = option("API keys, one a line; also $PANGU_API_KEYS, by commas", None)
    cors_origin: tuple[str, ...] = option(
        "origins whose pages may call, or *", (), type=origin, metavar="ORIGIN"
    )
    limits: Limits = nested(Limits)
    log_format: LogFormat = option("lines on stderr: text, or a JSON object each", "text")
    log_requests: bool = option("a line for each request when it has ended", False)
    drain_seconds: float = option("how long running requests may take after SIGTERM", 60, type=seconds)
