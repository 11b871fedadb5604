"""The weights of a CTranslate2 artifact by transformers' names, int8 ones as they are.

There is no table of names. CTranslate2's own loader is run over a model without numbers, whose parameters know their
names, and fills its specification with them: what each variable of `model.bin` consists of, query, key and value of a
fused matrix one below the other. All else in the specification, the constants, must be in the file as it is.
"""

import gc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ctranslate2.specs.model_spec import LayerSpec

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_convert.checkpoint_variable import CheckpointVariable, WeightSource
from pangu_convert.ctranslate2_files import complete_llama3, insert_variables
from pangu_convert.ctranslate2_loaders import LOADERS, rope_type
from pangu_convert.model_bin import MODEL_BIN, BinVariable, ModelBin, read_model_bin
from pangu_server.backends.torch.ctranslate2_config import HEAD, model_config
from pangu_server.backends.torch.parameters import Value, Weights, matched
from pangu_server.backends.torch.placing import build
from pangu_server.backends.torch.quantized import Quantized
from pangu_training.stage.tensors import StoredTensor

SCALE = "_scale"


def open_ctranslate2(artifact: Artifact, device: str) -> Weights:
    """The weights in `model.bin`; as `open_weights`."""
    model_bin = read_model_bin(artifact.path / MODEL_BIN)
    config = model_config(artifact, model_bin)
    try:
        specified = specification(config, artifact.manifest.architecture)
    except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise ArtifactError(
            f"{model_bin.path} does not describe a model ({error}): convert the checkpoint again"
        ) from error
    require_understood(model_bin, specified)
    readers = dict(_readers(model_bin, specified, device, tied=config.tie_word_embeddings))
    return matched(artifact, config, readers)


def specification(config: Any, architecture: str) -> dict[str, Any]:
    """Every variable that CTranslate2 makes of such a model: a `CheckpointVariable` for weights, else its constant."""
    model = build(config, architecture)
    tensors = {
        name: WeightSource(
            stored=StoredTensor(
                file=Path(), name=name, shape=tuple(parameter.shape), dtype="F32", start=0, num_bytes=0
            )
        )
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    insert_variables(model, tensors, torch.float32)
    gc.freeze()  # the loaders collect garbage after each layer, which takes 0.2 s among all that is loaded
    try:
        spec = LOADERS[architecture]().get_model_spec(model)
    finally:
        gc.unfreeze()
    if rope_type(config) == "llama3":
        complete_llama3(spec, config.rope_parameters)
    # Makes variables of the constants. A language model's own method asks for a vocabulary too.
    LayerSpec.validate(spec)
    variables: dict[str, Any] = spec.variables()
    return variables


def require_understood(model_bin: ModelBin, specified: Mapping[str, Any]) -> None:
    """Raise `ArtifactError` unless the file holds what is `specified`, and no more than that and its scales."""
    known = set(specified)
    for name, expected in specified.items():
        stored = model_bin.variable(name)
        if tuple(expected.shape) != stored.shape:
            raise ArtifactError(
                f"{name} in {model_bin.path} has shape {list(stored.shape)}, not {list(expected.shape)}: convert the "
                "checkpoint again"
            )
        if not stored.shape:
            if expected.numpy().item() != stored.number:
                raise not_understood(model_bin, f"{name} = {stored.number}")
        elif stored.dtype.startswith("int"):
            scale_name = model_bin.target(name) + SCALE
            scale_shape = {"int8": stored.shape[:1], "int16": ()}.get(stored.dtype)
            if scale_name not in model_bin or model_bin.variable(scale_name).shape != scale_shape:
                raise not_understood(model_bin, f"{name} of type {stored.dtype}")
            known.add(scale_name)
    for name in (*model_bin.variables, *model_bin.aliases):
        if name not in known:
            raise not_understood(model_bin, name)


def not_understood(model_bin: ModelBin, what: str) -> ArtifactError:
    """The error for `what` the file holds and no model of its architecture does."""
    return ArtifactError(
        f"{model_bin.path} holds {what}, which the torch engine does not know: serve it with --engine ctranslate2"
    )


def _readers(
    model_bin: ModelBin, specified: Mapping[str, Any], device: str, *, tied: bool
) -> Iterator[tuple[str, Callable[[], Value]]]:
    """How to read each parameter: as some rows of a variable. What is tied comes once."""
    size = model_bin.path.stat().st_size
    data = torch.from_file(str(model_bin.path), size=size, dtype=torch.uint8)  # mapped, not read
    for name, variable in specified.items():
        if not isinstance(variable, CheckpointVariable) or (tied and name == HEAD):
            continue
        start = 0
        for part in variable.parts:
            rows = slice(start, start := start + part.shape[0])
            yield part.name, partial(_read, model_bin, data, name, rows, device)


def _read(model_bin: ModelBin, data: torch.Tensor, name: str, rows: slice, device: str) -> Value:
    matrix = _tensor(data, model_bin.variable(name))[rows].to(device)
    if matrix.is_floating_point():
        return matrix
    # What is stored has been multiplied by the scale: for int8, by 127 over the largest weight of the row.
    scales = _tensor(data, model_bin.variable(model_bin.target(name) + SCALE)).to(device).reciprocal()
    if matrix.dtype == torch.int8:
        return Quantized(integers=matrix, scales=scales[rows, None], bits=8)
    return matrix * scales


def _tensor(data: torch.Tensor, variable: BinVariable) -> torch.Tensor:
    stored = data[variable.offset : variable.offset + variable.num_bytes]
    dtype: torch.dtype = getattr(torch, variable.dtype)
    if variable.offset % dtype.itemsize:
        stored = stored.clone()
    return stored.view(dtype).view(variable.shape)
