"""Weight files: checked, then linked as they are or cast to another type, shard by shard."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_training.stage.checkpoint import CONFIG, SHARD_INDEX, WEIGHTS, Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import tensors_by_file
from pangu_training.stage.output import link_or_copy, write_json
from pangu_training.stage.tensors import COMPUTED, FLOATING

DTYPES = ("bfloat16", "float16", "float32")


@contextlib.contextmanager
def open_weights(file: Path) -> Iterator[Any]:
    """Open a safetensors file for torch; a damaged one is a `CheckpointError`."""
    from safetensors import SafetensorError, safe_open

    try:
        weights: Any = safe_open(file, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({error}): download or export it again"
        ) from None
    with weights:
        yield weights


def write_model(checkpoint: Checkpoint, folder: Path, dtype: str | None) -> None:
    """Put `config.json`, weights and text files of `checkpoint` into `folder`.

    `dtype` None keeps the weights: they are hard-linked where the file system allows. Otherwise each
    floating-point tensor of another type is cast; peak memory is one shard in both types.

    Raises:
        CheckpointError: a number does not fit into `dtype`.
    """
    tensors = tensors_by_file(checkpoint)
    for file in checkpoint.weight_files:
        types = {FLOATING.get(tensor.dtype, dtype) for tensor in tensors.get(file.name, ())}
        if dtype is None or types <= {dtype}:
            link_or_copy(file, folder / file.name)
        else:
            _cast(file, folder / file.name, dtype)
    write_other_files(checkpoint, folder, dtype or checkpoint.dtype)


def write_other_files(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    """Put all that belongs to a model but its weights into `folder`; `config.json` says that these are `dtype`."""
    for text in _other_files(checkpoint):
        shutil.copyfile(text, folder / text.name)
    _write_config(checkpoint, folder, dtype)


def link_model(checkpoint: Checkpoint, folder: Path) -> None:
    """Put symbolic links to the files that are the model into `folder`: a library finds these and no others.

    `config.json` is the checkpoint's with the type that the weights have.
    """
    for file in (*checkpoint.weight_files, *_other_files(checkpoint)):
        (folder / file.name).symlink_to(file.resolve())
    _write_config(checkpoint, folder, checkpoint.dtype)


def _other_files(checkpoint: Checkpoint) -> list[Path]:
    """All that belongs to a model but weights and config."""
    # Next to a whole file an index is not part of the model, and may be another's.
    sharded = checkpoint.path / WEIGHTS not in checkpoint.weight_files
    return [*checkpoint.text_files, *([checkpoint.path / SHARD_INDEX] if sharded else [])]


def _write_config(checkpoint: Checkpoint, folder: Path, dtype: str) -> None:
    config: dict[str, Any] = {**checkpoint.config, "dtype": dtype}
    config.pop("torch_dtype", None)
    write_json(folder / CONFIG, config)


def with_rope_theta(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with `rope_theta` at its top level too.

    Loaders older than transformers 5 look only there, and take 10000 without a word. `rope_parameters` decides, as it
    does for transformers 5.
    """
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    return dict(config) if theta is None else {"rope_theta": theta, **config} | {"rope_theta": theta}


def _cast(source: Path, target: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file

    from pangu_training.stage.finite import all_finite

    torch_dtype = getattr(torch, dtype)
    with open_weights(source) as weights:
        tensors = {}
        for name in tqdm(weights.keys(), desc=f"casting {source.name} to {dtype}", delay=1):
            tensor = weights.get_tensor(name)
            tensors[name] = cast = tensor.to(torch_dtype) if tensor.is_floating_point() else tensor
            if cast.is_floating_point() and not COMPUTED.search(name) and not all_finite(cast):
                raise CheckpointError(
                    f"{name} in {source} holds NaN or infinity, or a number too large for {dtype}: choose another "
                    "--dtype"
                )
        save_file(tensors, target, metadata=weights.metadata())
