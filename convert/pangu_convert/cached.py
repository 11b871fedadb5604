"""From whatever names a model to its artifact in the cache: imported, adopted or converted once, and found again.

    $PANGU_HOME/checkpoints/KEY       what was imported
               /artifacts/KEY-FORMAT  what is served

KEY is a catalogue name, a hub id with its commit, or the name of a folder or file with a hash of where it lies and of
the sizes and times of what is read there: another content is another key. A folder appears when it is whole, as every
verb's does.
"""

import glob
import hashlib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, get_args

from pangu_convert import convert
from pangu_convert.adopt import AdoptOptions, adopted_artifact
from pangu_convert.architectures import ARCHITECTURES
from pangu_convert.artifact import ArtifactError, Format, read_artifact
from pangu_convert.catalogue import MODELS
from pangu_convert.download import cache_folder
from pangu_convert.gguf_file import PART_NAME
from pangu_convert.hub import HUB_SOURCE, WANTED, WANTED_OF_ADAPTERS, commit_of, fetch_hub_model
from pangu_convert.model_bin import MODEL_BIN
from pangu_training.stage.adapter import is_adapter
from pangu_training.stage.checkpoint import CONFIG, IMPORTED, QUANTIZE_CONFIGS, Checkpoint, read_json
from pangu_training.stage.errors import NotCarriedOver
from pangu_training.stage.identity import MANIFEST

ADOPTED = "adopted"
DIGITS = 12  # of a hash in a folder's name


def cached_artifact(
    source: str, *, revision: str | None, format: Literal["auto", Format], on_gpu: Callable[[], bool]
) -> Path:
    """The artifact of `source`: a folder, GGUF file, hub id or catalogue name. Says on stdout what is done.

    The format auto is int8 by CTranslate2 where the architecture has it, but not `on_gpu`; else the unquantized model.
    What is quantized already is adopted.

    Raises:
        PanguError: nothing has this name; or as the verbs do.
        ModuleNotFoundError: the libraries of the extra `convert` are not installed.
    """
    place, key, revision = _found(source, revision)
    checkpoint, artifacts = cache_folder() / "checkpoints" / key, cache_folder() / "artifacts"
    for made in (ADOPTED, *get_args(Format)) if format == "auto" else (format,):
        output = artifacts / f"{key}-{made}"
        if (output / MANIFEST).is_file() and (
            format != "auto"
            or made in (ADOPTED, _format(read_artifact(output).manifest.architecture, on_gpu))
        ):
            print(f"{source}: found in the cache, {output}", flush=True)
            return output
    if place is None and source not in MODELS:
        place = fetch_hub_model(source, revision).path
        if (place / MANIFEST).is_file():  # what `push` uploaded
            return place
    if place is not None and _is_quantized(place):
        if format != "auto":
            raise ArtifactError(f"{source} is quantized already, and served as it is: leave --format out")
        output = artifacts / f"{key}-{ADOPTED}"
        print(f"{source}: adopting it as {output}", flush=True)
        adopted_artifact(AdoptOptions(source=source, revision=revision, output=output))
        return output
    if place is not None and place.is_dir() and revision is None and not is_adapter(place):
        if not (place / CONFIG).is_file():
            raise ArtifactError(f"{source} is not an artifact, nor a checkpoint: it has no {CONFIG}")
        checkpoint = place
    elif not (checkpoint / IMPORTED).is_file():
        from pangu_convert.importer import ImportOptions, import_checkpoint

        print(f"{source}: importing it as {checkpoint}", flush=True)
        import_checkpoint(ImportOptions(source=source, revision=revision, output=checkpoint))
    described = Checkpoint(path=checkpoint, config=read_json(checkpoint / CONFIG), weight_files=())
    to = _format(described.architecture, on_gpu) if format == "auto" else format
    try:
        return _converted(source, checkpoint, artifacts / f"{key}-{to}", to)
    except NotCarriedOver as error:
        if format != "auto":
            raise
        print(f"{source}: not int8, since {error}", flush=True)
        return _converted(source, checkpoint, artifacts / f"{key}-transformers", "transformers")


def _converted(source: str, checkpoint: Path, output: Path, to: Format) -> Path:
    if (output / MANIFEST).is_file():
        print(f"{source}: found in the cache, {output}", flush=True)
    else:
        print(f"{source}: converting it to {to} as {output}", flush=True)
        convert(checkpoint, output, to=to)
    return output


def _found(source: str, revision: str | None) -> tuple[Path | None, str, str | None]:
    """Where `source` lies, if it is here and no catalogue name; its key; and of a hub id the commit."""
    if source in MODELS or Path(source).exists():
        if revision:
            raise ArtifactError(f"--revision is of a hub id, which {source} is not: leave it out")
        return (None, source, None) if source in MODELS else (Path(source), _local_key(Path(source)), None)
    if not HUB_SOURCE.fullmatch(source):
        raise ArtifactError(
            f"{source!r} is neither an artifact, a folder, a file, a hub id (OWNER/NAME) nor one of {', '.join(MODELS)}"
        )
    print(f"{source}: no file or folder here; asking the hub", flush=True)
    commit = commit_of(source, revision)
    return None, f"{source.replace('/', '--')}-{commit[:DIGITS]}", commit


def _local_key(path: Path) -> str:
    """The name of a folder or GGUF file, with a hash that changes with its files."""
    if path.is_dir():
        files = [
            file
            for file in path.iterdir()
            if file.is_file() and any(fnmatch(file.name, form) for form in (*WANTED, *WANTED_OF_ADAPTERS))
        ]
    else:
        part = PART_NAME.fullmatch(path.name)
        files = [*path.parent.glob(f"{glob.escape(part[1])}-*.gguf")] if part else [path]
    stats = {str(file.resolve()): file.stat() for file in sorted(files)}
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    digest = hashlib.sha256(repr((str(path.resolve()), seen)).encode()).hexdigest()
    return f"{path.resolve().name}-{digest[:DIGITS]}"


def _is_quantized(place: Path) -> bool:
    """Whether it is a folder that `adopt` takes. What another method has quantized is refused when it is read."""
    if not place.is_dir():
        return False
    if (place / MODEL_BIN).is_file():
        return True
    if not (place / CONFIG).is_file():
        return False
    found = Checkpoint(path=place, config=read_json(place / CONFIG), weight_files=()).quantization
    return found is not None and found["quant_method"] in QUANTIZE_CONFIGS.values()


def _format(architecture: str, on_gpu: Callable[[], bool]) -> Literal["ctranslate2", "transformers"]:
    int8 = "ctranslate2" in ARCHITECTURES.get(architecture, ())
    return "ctranslate2" if int8 and not on_gpu() else "transformers"
