"""What every conversion of a checkpoint into an artifact shares: checks before, tokenizer and manifest after."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.architectures import require_supported
from pangu_convert.artifact import Artifact, Format, Source, read_artifact, seal
from pangu_convert.chat_template import template_fault
from pangu_convert.inspection import summary
from pangu_training.stage.checkpoint import CONFIG, TOKENIZER, Checkpoint, read_checkpoint
from pangu_training.stage.identity import checkpoint_hash
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory
from pangu_training.stage.tensors import FLOATING


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the part of a conversion that knows its format has written."""

    weight_files: tuple[str, ...]
    calibration: Mapping[str, Any] | None = None
    context_length: int | None = None  # where the format has less than the checkpoint


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
    quantization: Callable[[Checkpoint], str],
    dtype: Callable[[Checkpoint], str],
    bytes_per_weight: float,
    write: Callable[[Checkpoint, Path], Written],
) -> Artifact:
    """Read the checkpoint, let `write` put its weights into a new folder, add the rest and the manifest.

    `bytes_per_weight` is for the check of the free disk.

    Raises:
        CheckpointError, OutputError: see `whole_checkpoint`, `new_directory`.
    """
    checkpoint = whole_checkpoint(options.checkpoint, format)
    quantized = quantization(checkpoint)
    source_name = checkpoint.name.rsplit("/", 1)[-1]
    needed_bytes = int(checkpoint.num_elements * bytes_per_weight)
    with new_directory(options.output, force=options.force, needed_bytes=needed_bytes) as folder:
        sha256 = checkpoint_hash(checkpoint)  # first: it refuses numbers that are not finite
        written = write(checkpoint, folder)
        for file in checkpoint.text_files:
            shutil.copyfile(file, folder / file.name)
        seal(
            folder,
            name=options.name or (source_name if quantized == "none" else f"{source_name}-{quantized}"),
            format=format,
            architecture=checkpoint.architecture,
            quantization=quantized,
            dtype=dtype(checkpoint),
            weight_files=written.weight_files,
            context_length=written.context_length or checkpoint.context_length,
            end_token_ids=checkpoint.end_token_ids,
            source=Source(name=source_name, sha256=sha256, provenance=checkpoint.provenance),
            calibration=written.calibration,
        )
    return read_artifact(options.output)


def whole_checkpoint(path: Path, format: Format | None = None) -> Checkpoint:
    """Read the checkpoint folder at `path`, to make an artifact of `format`; what may surprise its user goes to stderr.

    Raises:
        CheckpointError: see `read_checkpoint`, `require_whole`.
    """
    checkpoint = read_checkpoint(path)
    require_whole(checkpoint, format)
    print_cautions(checkpoint)
    return checkpoint


def require_whole(checkpoint: Checkpoint, format: Format | None = None) -> None:
    """Look at all of a checkpoint but its numbers, which are looked at where they are read.

    Raises:
        CheckpointError: it is of an architecture that is not supported, or not in this format; it is not the model
            that its config describes; or its context length or end tokens make no sense.
    """
    from pangu_training.stage.architecture import located
    from pangu_training.stage.vocabulary import require_usable

    require_supported(checkpoint, format)
    _ = checkpoint.context_length, checkpoint.end_token_ids
    located(checkpoint)
    require_usable(checkpoint.path / TOKENIZER)


def print_cautions(checkpoint: Checkpoint) -> None:
    """Say on stderr what a user may not expect of a checkpoint."""
    for caution in cautions(checkpoint):
        print(f"caution: {caution}", file=sys.stderr)


def cautions(checkpoint: Checkpoint) -> Iterator[str]:
    """What a user may not expect of a checkpoint, a sentence each."""
    from pangu_training.stage.vocabulary import tokens_beyond

    types = {FLOATING[tensor.dtype] for tensor in checkpoint.tensors.values() if tensor.dtype in FLOATING}
    if len(types) > 1:
        yield f"the weights are of several types ({', '.join(sorted(types))}): most are {checkpoint.dtype}"
    if checkpoint.config_dtype not in (None, checkpoint.dtype):
        yield (
            f"the weights are {checkpoint.dtype}, not {checkpoint.config_dtype} as {checkpoint.path / CONFIG} says: "
            "they are taken as they are"
        )
    if beyond := tokens_beyond(checkpoint):
        yield (
            f"the tokenizer has {len(beyond)} tokens more than the model's {checkpoint.vocabulary_size}, the first is "
            f"{beyond[0]!r}: a prompt that holds one of them will be refused"
        )
    if fault := template_fault(checkpoint.path):
        yield (
            f"the chat template cannot be used ({fault}): chats will be refused and completions served; repair it and "
            "convert again, or remove it"
        )


def report(artifact: Artifact) -> None:
    """Say in one line what was made."""
    print(f"{artifact.path}: {summary(artifact)}")
