"""What a GPTQ or AWQ folder of others holds: how it says it is packed, and each packed layer, its shapes checked.

A layer that was packed is looked at as the matrix it stands for, so that the one reader's checks (`stage.architecture`)
hold for a quantized folder too. Of numbers only biases are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from pangu_convert.architectures import require_supported
from pangu_convert.artifact import UNKNOWN
from pangu_convert.gptq_weights import BITS, PACKED_TENSORS, STORED_LESS
from pangu_convert.weights import open_weights
from pangu_training.stage.architecture import build, model_config
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import FLOATING, StoredTensor

PARTS = {"gptq": PACKED_TENSORS, "awq": PACKED_TENSORS[:3]}  # AWQ's groups are in order
REMEDY = "give the unquantized checkpoint that it was made from to pangu-convert gptq or ctranslate2"
# What GPTQModel can put next to the packed matrices, which computes something else than their product.
ALTERING = ("adapter", "rotation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a folder says that it is packed."""

    method: Literal["gptq", "awq"]
    bits: int
    group_size: int  # -1: an output has one scale
    stored_less: int  # what zero points are less when they are stored
    quantizer: str  # program and version, or UNKNOWN
    dynamic: Mapping[str, Any]  # GPTQModel's rules for modules with bits and group sizes of their own
    facts: Mapping[str, Any]  # all else that is known of the quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A packed matrix."""

    name: str
    outputs: int
    inputs: int
    bits: int
    groups: int
    parts: Mapping[str, StoredTensor]


def scheme_of(checkpoint: Checkpoint) -> Scheme:
    """How the folder is packed, by what it says.

    Raises:
        CheckpointError: it is not quantized, or in a way that the engine does not hold.
    """
    said = checkpoint.quantization
    if said is None:
        raise CheckpointError(f"{checkpoint.path} is not quantized: pangu-convert import takes it")
    method = said["quant_method"]
    if method not in PARTS:
        raise CheckpointError(
            f"{checkpoint.path} is quantized by {method}; only GPTQ and AWQ are adopted: {REMEDY}"
        )
    most = max(BITS) if method == "gptq" else 4
    bits, group_size = said.get("bits"), said.get("group_size")
    if type(bits) is not int or bits not in BITS or bits > most:
        raise _not_held(checkpoint, f"{bits} bits by {method}", "GPTQ is read with 4 and 8, AWQ with 4")
    if type(group_size) is not int or group_size == 0 or group_size < -1:
        raise CheckpointError(
            f"{checkpoint.path} says that its group size is {group_size}: download it again"
        )
    for key in ALTERING:
        if said.get(key):
            raise _not_held(checkpoint, f"GPTQ with {key}", "the engine computes packed matrices alone")
    if said.get("pack_dtype") not in (None, "int32"):
        raise _not_held(checkpoint, f"words of {said['pack_dtype']}", "int32 is read")
    dynamic = said.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise CheckpointError(f"{checkpoint.path} has rules (dynamic) that are none: download it again")
    meta = said["meta"] if isinstance(said.get("meta"), dict) else {}
    quantizer = meta.get("quantizer", said.get("quantizer", UNKNOWN))
    return Scheme(
        method=method,
        bits=bits,
        group_size=group_size,
        stored_less=_stored_less(checkpoint, said) if method == "gptq" else _require_gemm(checkpoint, said),
        quantizer=", ".join(map(str, quantizer)) if isinstance(quantizer, list) else str(quantizer),
        dynamic=dynamic,
        facts={
            key: value
            for key, value in {**meta, **said}.items()
            if key in ("sym", "desc_act", "damp_percent", "static_groups", "true_sequential", "zero_point")
        },
    )


def packed_layers(checkpoint: Checkpoint, scheme: Scheme) -> dict[str, Layer]:
    """The packed layers by their names.

    Raises:
        CheckpointError: a part of one is missing, or they do not fit together or to the scheme.
    """
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        layer, _, part = name.rpartition(".")
        if part in PARTS["gptq"]:
            parts.setdefault(layer, {})[part] = tensor
    if not parts:
        raise CheckpointError(f"{checkpoint.path} has no packed tensors (qweight): download it again")
    return {name: _layer(checkpoint, scheme, name, found) for name, found in parts.items()}


def unpacked_form(checkpoint: Checkpoint, layers: Mapping[str, Layer]) -> Checkpoint:
    """The checkpoint as if its packed layers were the matrices they stand for, and it had never been quantized.

    Older versions of AutoGPTQ gave a bias of zeros to each packed layer: those that the model does not have go.

    Raises:
        CheckpointError: the config describes no supported model, or a packed layer is none of its linear ones.
    """
    config = {
        key: value
        for key, value in checkpoint.config.items()
        if key not in ("quantization_config", "compression_config")
    }
    packed = {part.name for layer in layers.values() for part in layer.parts.values()}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in packed}
    for layer in layers.values():
        name, like = f"{layer.name}.weight", layer.parts["scales"]
        if name in tensors:
            raise CheckpointError(f"{checkpoint.path} has {name} twice, packed and not: download it again")
        tensors[name] = replace(
            layer.parts["qweight"], name=name, shape=(layer.outputs, layer.inputs), dtype=like.dtype
        )
    plain = replace(checkpoint, config=config, tensors=tensors)
    require_supported(plain)
    model = build(model_config(plain), plain.architecture)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name in layers:
        if name not in linear:
            raise CheckpointError(
                f"{checkpoint.path} has packed tensors of {name}, which {plain.architecture} does not have as a linear "
                "layer: give the unquantized checkpoint to pangu-convert transformers"
            )
        if f"{name}.weight" in model.all_tied_weights_keys:
            raise CheckpointError(
                f"{checkpoint.path} has packed tensors of {name}, which its config.json ties to the embedding: set "
                "tie_word_embeddings to false there"
            )
    known = model.state_dict().keys()
    biases = [f"{name}.bias" for name in layers if f"{name}.bias" in tensors.keys() - known]
    gone = {name for name in biases if _only_zeros(tensors[name])}
    return replace(plain, tensors={name: tensors[name] for name in tensors if name not in gone})


def _only_zeros(tensor: StoredTensor) -> bool:
    with open_weights(tensor.file) as weights:
        return not weights.get_tensor(tensor.name).any()


def _layer(checkpoint: Checkpoint, scheme: Scheme, name: str, parts: Mapping[str, StoredTensor]) -> Layer:
    for part in PARTS[scheme.method]:
        if part not in parts:
            raise CheckpointError(
                f"{checkpoint.path} has no tensor {name}.{part}, and has other parts of that layer: download it again"
            )
    shapes = {part: parts[part].shape for part in parts}
    try:
        (rows, columns), (groups, outputs) = shapes["qweight"], shapes["scales"]
        inputs = rows if scheme.method == "awq" else shapes["g_idx"][0]
        bits = 4 if scheme.method == "awq" else 32 * rows // inputs
        if not inputs or not groups or not outputs:
            raise ValueError("a matrix of nothing")
    except (ValueError, IndexError, ZeroDivisionError):
        raise _misfit(checkpoint, name, scheme, shapes) from None
    expected: dict[str, tuple[int, ...]] = {
        "qweight": (rows, columns),
        "qzeros": (groups, outputs * bits // 32),
        "scales": (groups, outputs),
    }
    if scheme.method == "awq":
        expected["qweight"] = (inputs, outputs * bits // 32)
    else:
        expected |= {"qweight": (inputs * bits // 32, outputs), "g_idx": (inputs,)}
    size = inputs if scheme.group_size == -1 else scheme.group_size
    told = bool(scheme.dynamic) or (bits == scheme.bits and groups == -(-inputs // size))
    whole = (inputs * bits) % 32 == (outputs * bits) % 32 == 0 and (
        scheme.method == "gptq" or inputs % groups == 0
    )
    types = all(
        part.dtype in FLOATING if kind == "scales" else part.dtype == "I32" for kind, part in parts.items()
    )
    if bits not in BITS or shapes != expected or not (told and whole and types):
        raise _misfit(checkpoint, name, scheme, shapes)
    return Layer(name=name, outputs=outputs, inputs=inputs, bits=bits, groups=groups, parts=parts)


def _stored_less(checkpoint: Checkpoint, said: Mapping[str, Any]) -> int:
    named = {str(said[key]) for key in ("checkpoint_format", "format") if said.get(key)}
    if said.get("is_marlin_format"):
        named.add("marlin")
    [format, *others] = sorted(named) or ["gptq"]
    if others or format not in STORED_LESS:
        raise _not_held(checkpoint, f"the format {' and '.join(sorted(named))}", "gptq and gptq_v2 are read")
    return STORED_LESS[format]


def _require_gemm(checkpoint: Checkpoint, said: Mapping[str, Any]) -> int:
    versions = {str(said[key]).lower() for key in ("version", "format", "checkpoint_format") if said.get(key)}
    if versions - {"gemm"}:
        raise _not_held(checkpoint, f"AWQ's version {' and '.join(sorted(versions))}", "gemm is read")
    return 0


def _not_held(checkpoint: Checkpoint, what: str, instead: str) -> CheckpointError:
    return CheckpointError(f"{checkpoint.path} holds {what}; {instead}: {REMEDY}")


def _misfit(
    checkpoint: Checkpoint, name: str, scheme: Scheme, shapes: Mapping[str, tuple[int, ...]]
) -> CheckpointError:
    described = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items())
    return CheckpointError(
        f"the packed tensors of {name} in {checkpoint.path} ({described}) do not fit together as {scheme.bits} bits in "
        f"groups of {scheme.group_size}: download it again"
    )
