"""A checkpoint of any size into CTranslate2's files, one block of rows of one weight at a time.

CTranslate2's own converter loads the whole model, quantizes it in memory and then writes it: for StarCoder's
15.5 billion parameters that is 31 GB and more. Here its own code makes the same decisions, to the same bytes,
but never has a model in its hands:

1. transformers builds the model on the `meta` device: names and shapes, no numbers;
2. each parameter is replaced by a `CheckpointVariable`, which knows where the weight lies in which file;
3. CTranslate2's loader for the architecture fills its specification from that model, which settles the names,
   the constants and what is fused; the specification validates itself and finds weights that are equal;
4. each variable is replaced by a `ConvertedVariable`, which says at once how large it will be, and reads and
   quantizes its rows (by CTranslate2's code again) only when the specification writes it.

The most memory is that of the largest variable as it is written, plus a few blocks. int16 alone has one scale
for a whole matrix and therefore wants it whole in float32, about three times.

The bytes differ from the stock converter's in these cases. RoPE scaling `llama3`: its files compute something else
than the model does, see `complete_llama3`. A tokenizer without an unknown token: its files do not load, see
`complete_tokens`. Architectures that it has no loader for: see `ctranslate2_loaders`. A smoothed model is other
numbers, and takes a block of the model in float32 to smooth; see `smoothing`. What it would drop without a word
is refused, and so are weights that are not finite.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from ctranslate2.specs.common_spec import LinearSpec
from ctranslate2.specs.model_spec import (
    LanguageModelSpec,
    LayerSpec,
    NumpyVariable,
    PyTorchVariable,
    Variable,
    visit_spec,
)
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm

from pangu_convert.checkpoint_variable import CheckpointVariable, WeightSource
from pangu_convert.ctranslate2_loaders import LOADERS, rope_type, unsupported
from pangu_convert.smoothing import smoothed
from pangu_training.stage.architecture import located
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import CheckpointError, NotCarriedOver
from pangu_training.stage.finite import all_finite, one_thread
from pangu_training.stage.vocabulary import transformers_tokenizer

# Quantization -> the type of matrices, and of everything else (None: the checkpoint's).
STORED_TYPES = {
    "int8": ("int8", None),
    "int8_float32": ("int8", "float32"),
    "int8_float16": ("int8", "float16"),
    "int8_bfloat16": ("int8", "bfloat16"),
    "int16": ("int16", "float32"),
    "float16": ("float16", "float16"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "float32": ("float32", "float32"),
}
MAX_VARIABLE_BYTES = (1 << 32) - 1  # the file's length fields have 32 bits


def stream(
    checkpoint: Checkpoint, folder: Path, quantization: str, rows: Sequence[Sequence[int]] = ()
) -> None:
    """Write `model.bin`, `config.json` and `vocabulary.json` into `folder`; smoothed, if there are calibration `rows`.

    Raises:
        CheckpointError: a weight is missing, of a wrong shape or not finite, or CTranslate2 lacks something
            that the model has.
    """
    transformers.utils.logging.set_verbosity_error()
    try:
        spec = specification(checkpoint, rows)
    except (ValueError, KeyError, NotImplementedError, StrictDataclassError) as error:
        raise CheckpointError(f"{checkpoint.path} does not convert: {error}") from error
    bar: tqdm[Any]
    with one_thread(), tqdm(desc=f"writing {quantization}", unit="B", unit_scale=True) as bar:
        convert_on_write(spec, quantization, bar)
        spec.save(str(folder))


def specification(checkpoint: Checkpoint, rows: Sequence[Sequence[int]] = ()) -> LanguageModelSpec:
    """CTranslate2's specification of the model, with `CheckpointVariable`s for weights, equal ones aliased."""
    whole = located(checkpoint)
    model, path = whole.model, checkpoint.path
    for setting in unsupported(model.config):
        raise NotCarriedOver(
            f"{path}/config.json has {setting}, which CTranslate2's converter does not carry over: use "
            "pangu-convert transformers"
        )
    tensors = {name: WeightSource(stored=tensor) for name, tensor in whole.tensors.items()}
    if rows:
        tensors = smoothed(model, tensors, rows)
    insert_variables(model, tensors, model.config.dtype)
    tokenizer = transformers_tokenizer(path, model.config)
    spec = LOADERS[checkpoint.architecture]()(model, tokenizer)
    if rope_type(model.config) == "llama3":
        complete_llama3(spec, model.config.rope_parameters)
    require_used(checkpoint, spec, tensors)
    complete_vocabulary(spec, tokenizer.get_vocab(), checkpoint.vocabulary_size)
    complete_tokens(spec)
    spec.validate()
    spec._alias_variables()
    return spec


def require_used(
    checkpoint: Checkpoint, spec: LanguageModelSpec, tensors: Mapping[str, WeightSource]
) -> None:
    """Raise `NotCarriedOver` unless the loader has taken each of `tensors`."""
    used: set[str] = set()

    def collect(_owner: LayerSpec, _name: str, value: object) -> None:
        if isinstance(value, CheckpointVariable):
            used.update(part.name for part in value.parts)

    visit_spec(spec, collect)
    for name, tensor in tensors.items():
        if tensor.name not in used:
            raise NotCarriedOver(
                f"{checkpoint.path} has {name}, which CTranslate2's converter does not carry over: use pangu-convert "
                "transformers"
            )


def complete_llama3(spec: LanguageModelSpec, rope: Mapping[str, float]) -> None:
    """Write all of Llama 3's RoPE scaling; CTranslate2 4.8's loader forgets two of four numbers.

    Its engine then takes 1 for the factor, that is, it does not scale at all.
    """
    for layer in spec.decoder.layer:
        # Past the check for unknown names: it knows these two for other kinds of scaling only.
        vars(layer.self_attention).update(
            rotary_scaling_factor=np.float32(rope["factor"]),
            rotary_low_freq_factor=np.float32(rope["low_freq_factor"]),
            rotary_high_freq_factor=np.float32(rope["high_freq_factor"]),
            original_max_position_embeddings=np.int32(rope["original_max_position_embeddings"]),
        )


def complete_vocabulary(spec: LanguageModelSpec, vocabulary: Mapping[str, int], rows: int) -> None:
    """Name each of the embedding's `rows` by its own token.

    The loaders take it for granted that a tokenizer's ids are 0, 1, 2 and so on, and no more than rows: where one is
    skipped, they shift all names behind it, and where there are more, GPTBigCode's does not convert.
    """
    if sorted(vocabulary.values()) != list(range(min(len(vocabulary), rows))):
        names = {row: token for token, row in vocabulary.items()}
        spec.register_vocabulary([names.get(row, f"<extra_id_{row}>") for row in range(rows)])


def complete_tokens(spec: LanguageModelSpec) -> None:
    """Name every special token: the loaders write null for one that is not there, and the engine fails on it.

    It fails as well on one that the vocabulary does not have.
    """
    known = set(spec._vocabulary)
    for name, value in spec.config.to_dict().items():
        if name.endswith("_token") and value not in known:
            setattr(spec.config, name, "")


def insert_variables(model: Any, tensors: Mapping[str, WeightSource], dtype: torch.dtype) -> None:
    """Put a `CheckpointVariable` in the place of each parameter of `model`."""
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        delattr(module, attribute)
        setattr(module, attribute, CheckpointVariable([tensor], dtype))


def convert_on_write(spec: LanguageModelSpec, quantization: str, bar: "tqdm[Any]") -> None:
    """Replace every `CheckpointVariable` in `spec` by a `ConvertedVariable`; `bar` then counts their bytes."""
    matrix_type, other_type = STORED_TYPES[quantization]

    def replace(owner: LayerSpec, name: str, value: object) -> None:
        if not isinstance(value, CheckpointVariable):
            return
        attribute = name.rsplit("/", 1)[-1]
        scale = None
        if not hasattr(owner, f"{attribute}_scale"):
            dtype = other_type or value.dtype
        else:
            dtype = matrix_type
            if dtype in ("int8", "int16"):
                # Filled in as the matrix is written, which is before: variables are in alphabetical order.
                scale = NumpyVariable(np.zeros(value.shape[:1] if dtype == "int8" else (), np.float32))
                setattr(owner, f"{attribute}_scale", scale)
        converted = ConvertedVariable(value, dtype, scale, bar)
        if converted.num_bytes() > MAX_VARIABLE_BYTES:
            raise CheckpointError(
                f"{value.parts[0].name} takes {converted.num_bytes()} bytes as {dtype}, more than CTranslate2's "
                "format can hold: choose a smaller --quantization"
            )
        bar.total = (bar.total or 0) + converted.num_bytes()
        setattr(owner, attribute, converted)

    visit_spec(spec, replace)


class ConvertedVariable(Variable):  # type: ignore[misc]
    """A `CheckpointVariable` in the type it is written in; computed when written, and not kept."""

    def __init__(
        self, source: CheckpointVariable, dtype: str, scale: NumpyVariable | None, bar: "tqdm[Any]"
    ) -> None:
        self._source, self._dtype, self._scale, self._bar = source, dtype, scale, bar

    @property
    def shape(self) -> list[int]:
        return self._source.shape

    @property
    def dtype(self) -> str:
        return self._dtype

    def num_bytes(self) -> int:
        itemsize = getattr(torch, self._dtype).itemsize
        return int(torch.Size(self.shape).numel() * itemsize)

    def to_bytes(self) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        output = np.empty(self.num_bytes(), np.uint8)
        row_bytes = self.num_bytes() // self.shape[0]
        written = getattr(torch, self._dtype)
        kind = written if written.is_floating_point else torch.float32
        for rows, block in self._source.blocks(one=self._dtype == "int16"):
            if not all_finite(block, kind):
                raise CheckpointError(
                    f"{self._source.parts[0].name} holds NaN or infinity, or a number too large for {self._dtype}: the "
                    "model is broken, or choose another --quantization"
                )
            data = self._convert(rows, block).to_bytes()
            output[rows.start * row_bytes : rows.stop * row_bytes] = np.frombuffer(data, np.uint8)
            self._bar.update(len(data))
        return output

    def _convert(self, rows: slice, block: torch.Tensor) -> Variable:
        if self._scale is None:
            return PyTorchVariable(block).to(self._dtype)
        part = LinearSpec()
        part.weight = PyTorchVariable(block)
        part._quantize(self._dtype)
        self._scale.array[rows if self._dtype == "int8" else ()] = part.weight_scale.numpy()
        return part.weight

    def numpy(self) -> Any:
        raise NotImplementedError

    def _equal(self, other: Any) -> Any:
        raise NotImplementedError

    def _to(self, dtype: str) -> Any:
        raise NotImplementedError
