"""`pangu-convert import`: a checkpoint folder from a catalogue name, a GGUF file, a folder or a hub id.

A GGUF file comes out de-quantized in bfloat16, and `import.json` says so: converting it again quantizes a
second time, and no figure of its "unquantized" form is one of the original model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.architectures import require_supported
from pangu_convert.catalogue import DEFAULT_MODEL, MODELS
from pangu_convert.download import DownloadError, cache_folder, fetch
from pangu_convert.gguf_import import import_gguf
from pangu_convert.weights import DTYPES, check_weights, with_rope_theta, write_model
from pangu_training.stage.checkpoint import CONFIG, TEXT_FILES, read_checkpoint, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import library_versions, sha256_of
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory, require_free_space, write_file

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to make a checkpoint folder of."""

    source: str = argument(
        f"{', '.join(MODELS)}; a GGUF file; a Hugging Face folder; or a hub id", DEFAULT_MODEL
    )
    output: Path = option("the checkpoint folder to make")
    dtype: str | None = option(
        "type of the weights (default: bfloat16 for GGUF, else as they are)", None, choices=DTYPES
    )
    force: bool = option("replace the output folder", False)


def import_checkpoint(options: ImportOptions) -> None:
    """Import `options.source` into `options.output`."""
    source, output = options.source, options.output
    with new_directory(output, force=options.force) as folder:
        if source in MODELS:
            file = MODELS[source]
            path = fetch(file, cache_folder())
            origin = {"source": source, "licence": file.licence, "cite": file.cite, "sha256": file.sha256}
            _import_file(path, folder, origin, options.dtype)
        elif Path(source).is_file():
            _import_file(Path(source), folder, {"source": Path(source).name}, options.dtype)
        elif Path(source).is_dir():
            import_folder(Path(source), folder, {"source": Path(source).resolve().name}, options.dtype)
        elif HUB_ID.fullmatch(source):
            import_folder(fetch_hub_model(source), folder, {"source": source}, options.dtype)
        else:
            raise CheckpointError(
                f"{source!r} is neither a file, a folder, a hub id (owner/name) nor one of {', '.join(MODELS)}"
            )
    checkpoint = read_checkpoint(output)
    print(f"{output}: {checkpoint.architecture}, {checkpoint.dtype}, {checkpoint.weight_bytes / 1e9:.2f} GB")


def _import_file(path: Path, folder: Path, origin: Mapping[str, Any], dtype: str | None) -> None:
    found = import_gguf(path, folder, dtype or "bfloat16")
    _complete_config(folder)
    _write_origin(folder, {**origin, **found})


def import_folder(path: Path, folder: Path, origin: Mapping[str, Any], dtype: str | None) -> None:
    """Take over the Hugging Face folder at `path`; weights are linked unless `dtype` differs."""
    checkpoint = read_checkpoint(path)
    require_supported(checkpoint)
    check_weights(checkpoint)
    require_free_space(folder, 0 if dtype in (None, checkpoint.dtype) else 2 * checkpoint.weight_bytes)
    write_model(checkpoint, folder, dtype)
    _complete_config(folder)
    hashes = {file.name: sha256_of(file) for file in checkpoint.weight_files}
    _write_origin(folder, {**(checkpoint.provenance or {}), **origin, "weights_sha256": hashes})


def fetch_hub_model(repository: str) -> Path:
    """Download the safetensors and tokenizer of a hub model into the cache folder; resumes."""
    import httpx2
    from huggingface_hub import snapshot_download

    target = cache_folder() / "hub" / repository.replace("/", "--")
    try:
        snapshot_download(
            repository, local_dir=target, allow_patterns=[CONFIG, "*.safetensors*", *TEXT_FILES]
        )
    except (httpx2.HTTPError, OSError) as error:
        raise DownloadError(
            f"{repository} could not be fetched from the hub ({str(error).splitlines()[0]}): check the name and "
            "the network, or give a local folder"
        ) from None
    return target


def _complete_config(folder: Path) -> None:
    """Write what loaders older than transformers 5 look for, so that they do not take a default in silence."""
    config = read_json(folder / CONFIG)
    if (complete := with_rope_theta(config)) != config:
        _write_json(folder / CONFIG, complete)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and read_json(tokenizer).get("tokenizer_class") == "TokenizersBackend":
        _write_json(tokenizer, {**read_json(tokenizer), "tokenizer_class": "PreTrainedTokenizerFast"})


def _write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    _write_json(folder / "import.json", {**origin, "library_versions": library_versions()})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())
