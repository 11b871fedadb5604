"""What every conversion of a checkpoint into an artifact shares: checks before, tokenizer and manifest after."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.architectures import require_supported
from pangu_convert.artifact import Artifact, Format, Source, read_artifact, seal
from pangu_convert.inspection import summary
from pangu_convert.weights import check_weights
from pangu_training.stage.checkpoint import Checkpoint, read_checkpoint
from pangu_training.stage.identity import checkpoint_hash
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory

BYTES_PER_PARAMETER = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the part of a conversion that knows its format has written."""

    weight_files: tuple[str, ...]
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOptions:
    """What every conversion needs."""

    checkpoint: Path = argument("the checkpoint folder (config.json, *.safetensors, …)")
    output: Path = option("the artifact folder to make", writes="folder")
    name: str | None = option("model id that the server answers to (default: from the checkpoint)", None)
    force: bool = option("replace the output folder", False)


def convert(
    options: ConversionOptions,
    *,
    format: Format,
    quantization: str,
    dtype: Callable[[Checkpoint], str],
    bytes_per_weight: float,
    write: Callable[[Checkpoint, Path], Written],
) -> Artifact:
    """Read the checkpoint, let `write` put its weights into a new folder, add the rest and the manifest.

    `bytes_per_weight` is for the check of the free disk.

    Raises:
        CheckpointError, OutputError: see `read_checkpoint`, `new_directory`.
    """
    checkpoint = read_checkpoint(options.checkpoint)
    require_supported(checkpoint)
    check_weights(checkpoint)
    source_name = str((checkpoint.provenance or {}).get("source") or checkpoint.path.resolve().name)
    source_name = source_name.rsplit("/", 1)[-1]
    parameters = checkpoint.weight_bytes / BYTES_PER_PARAMETER.get(checkpoint.dtype, 2)
    needed_bytes = int(parameters * bytes_per_weight)
    source = Source(name=source_name, sha256=checkpoint_hash(checkpoint), provenance=checkpoint.provenance)
    with new_directory(options.output, force=options.force, needed_bytes=needed_bytes) as folder:
        written = write(checkpoint, folder)
        for file in checkpoint.text_files:
            shutil.copyfile(file, folder / file.name)
        seal(
            folder,
            name=options.name or (source_name if quantization == "none" else f"{source_name}-{quantization}"),
            format=format,
            architecture=checkpoint.architecture,
            quantization=quantization,
            dtype=dtype(checkpoint),
            weight_files=written.weight_files,
            context_length=checkpoint.context_length,
            end_token_ids=checkpoint.end_token_ids,
            source=source,
            calibration=written.calibration,
        )
    return read_artifact(options.output)


def report(artifact: Artifact) -> None:
    """Say in one line what was made."""
    print(f"{artifact.path}: {summary(artifact)}")
