"""`pangu-convert import`: a checkpoint folder from a catalogue name, a GGUF file, a folder or a hub id.

A LoRA adapter, as a folder or hub id, is merged into its base.
A GGUF file comes out de-quantized in bfloat16, and `import.json` says so: converting it again quantizes a
second time, and no figure of its "unquantized" form is one of the original model.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.adapter_import import merge_adapter
from pangu_convert.catalogue import DEFAULT_MODEL, MODELS
from pangu_convert.conversion import whole_checkpoint
from pangu_convert.download import cache_folder, fetch
from pangu_convert.gguf_import import import_gguf
from pangu_convert.hub import HUB_SOURCE, fetch_hub_model
from pangu_convert.weights import DTYPES, with_rope_theta, write_model
from pangu_training.stage.adapter import Adapter, is_adapter, read_adapter
from pangu_training.stage.checkpoint import CONFIG, IMPORTED, read_checkpoint, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hashes, hash_files, library_versions
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory, require_free_space, write_json
from pangu_training.stage.paths import require_apart


def local_source(source: str) -> Path | None:
    """Where `source` is on this machine, if it is not the name of a model of the catalogue."""
    return None if source in MODELS else Path(source)


def may_be_adapter(source: str) -> bool:
    """Whether `source` is a folder, or of the hub and no file there."""
    on_hub = HUB_SOURCE.fullmatch(source)
    return Path(source).is_dir() or not (
        source in MODELS or Path(source).is_file() or (on_hub is not None and on_hub[2])
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to make a checkpoint folder of."""

    source: str = argument(
        f"{', '.join(MODELS)}; a GGUF file; a Hugging Face folder; a hub id, OWNER/NAME; or a GGUF file of the hub, "
        "OWNER/NAME/FILE.gguf",
        DEFAULT_MODEL,
        reads=local_source,
    )
    output: Path = option("the checkpoint folder to make", writes="folder")
    dtype: str | None = option(
        "type of the weights (default: bfloat16 for GGUF, else as they are)", None, choices=DTYPES
    )
    revision: str | None = option("branch, tag or commit of a hub id (default: main)", None)
    base: str | None = option(
        "of a LoRA adapter: its base, a name, file, folder or hub id as above (default: what the adapter names)",
        None,
        reads=local_source,
    )
    force: bool = option("replace the output folder", False)


def import_checkpoint(options: ImportOptions) -> None:
    """Import `options.source` into `options.output`."""
    source, output = options.source, options.output
    if options.revision and (source in MODELS or Path(source).exists()):
        raise CheckpointError(f"--revision is of a hub id, which {source} is not: leave it out")
    if options.base and not may_be_adapter(source):
        raise CheckpointError(f"--base is of a LoRA adapter, which {source} is not: leave it out")
    with new_directory(output, force=options.force) as folder:
        path, origin = _located(source, options.revision)
        if path.is_file():
            _import_file(path, folder, origin, options.dtype)
        else:
            import_folder(path, folder, origin, options.dtype, options.base, output)
    checkpoint = read_checkpoint(output)
    print(f"{output}: {checkpoint.architecture}, {checkpoint.dtype}, {checkpoint.weight_bytes / 1e9:.2f} GB")


def _located(source: str, revision: str | None) -> tuple[Path, Mapping[str, Any]]:
    """The GGUF file or folder that `source` names, fetched if need be, and where it comes from."""
    if source in MODELS:
        file = MODELS[source]
        origin = {"source": source, "licence": file.licence, "cite": file.cite, "sha256": file.sha256}
        return fetch(file, cache_folder()), origin
    path = Path(source)
    if path.is_file():
        return path, {"source": path.name}
    if path.is_dir():
        return path, {"source": path.resolve().name}
    if HUB_SOURCE.fullmatch(source):
        model = fetch_hub_model(source, revision)
        return model.path, model.origin
    raise CheckpointError(
        f"{source!r} is neither a file, a folder, a hub id (OWNER/NAME) nor one of {', '.join(MODELS)}"
    )


def _import_file(path: Path, folder: Path, origin: Mapping[str, Any], dtype: str | None) -> None:
    found = import_gguf(path, folder, dtype or "bfloat16")
    _complete_config(folder)
    _write_origin(folder, {**origin, **found})


def import_folder(
    path: Path,
    folder: Path,
    origin: Mapping[str, Any],
    dtype: str | None,
    base: str | None,
    output: Path,
) -> None:
    """Take over the Hugging Face folder at `path`; weights are linked unless `dtype` differs.

    An adapter is merged into `base` (None: the one that it names), which must not be what `output` replaces.
    """
    if is_adapter(path):
        _import_adapter(read_adapter(path), folder, origin, dtype, base, output)
        return
    if base:
        raise CheckpointError(f"--base is of a LoRA adapter, and {path} is a model: leave it out")
    checkpoint = whole_checkpoint(path)
    hashes = checkpoint_hashes(checkpoint)  # first: it refuses numbers that are not finite
    require_free_space(folder, 0 if dtype in (None, checkpoint.dtype) else 2 * checkpoint.weight_bytes)
    write_model(checkpoint, folder, dtype)
    _complete_config(folder)
    weights = {file.name: hashes[file.name] for file in checkpoint.weight_files}
    linked = {name: weights[name] for name in weights if (folder / name).samefile(path / name)}
    # What it was imported from, or trained with, stays.
    _write_origin(folder, {**origin, **(checkpoint.provenance or {}), "weights_sha256": weights}, linked)


def _import_adapter(
    adapter: Adapter,
    folder: Path,
    origin: Mapping[str, Any],
    dtype: str | None,
    base: str | None,
    output: Path,
) -> None:
    name = base or adapter.base
    if not name:
        raise CheckpointError(f"{adapter.path} does not name its base: give it with --base")
    with tempfile.TemporaryDirectory(dir=folder) as made:  # for a base that has to be imported first
        try:
            path, base_origin = _located(name, None if base else adapter.base_revision)
        except CheckpointError:
            raise CheckpointError(
                f"the base {name!r} of {adapter.path} is not here (no folder, file, hub id or name of a model): "
                "give it with --base"
            ) from None
        if path.is_file():
            _import_file(path, Path(made), base_origin, None)
            path = Path(made)
        known = None if Path(name).is_dir() else base_origin  # a folder's name alone says nothing
        require_apart(output, [path])
        found = merge_adapter(adapter, read_checkpoint(path), known, folder, dtype)
    _complete_config(folder)
    _write_origin(folder, {**origin, **found})


def _complete_config(folder: Path) -> None:
    """Write what loaders older than transformers 5 look for, so that they do not take a default in silence."""
    config = read_json(folder / CONFIG)
    if (complete := with_rope_theta(config)) != config:
        write_json(folder / CONFIG, complete)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and read_json(tokenizer).get("tokenizer_class") == "TokenizersBackend":
        write_json(tokenizer, {**read_json(tokenizer), "tokenizer_class": "PreTrainedTokenizerFast"})


def _write_origin(folder: Path, origin: Mapping[str, Any], known: Mapping[str, str] | None = None) -> None:
    """Say where the checkpoint came from, and which files it has; the hashes of some are `known`."""
    known = known or {}
    names = sorted(file.name for file in folder.iterdir() if file.name not in known)
    files = {**known, **hash_files(folder, names, "hashing the checkpoint")}
    write_json(folder / IMPORTED, {**origin, "files": files, "library_versions": library_versions()})
