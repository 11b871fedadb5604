"""What is looked at before CTranslate2's library reads a folder: it takes for granted that its own converter wrote it.

Needs NumPy, which that library needs too.
"""

from pathlib import Path

import numpy as np

from pangu_convert.artifact import ArtifactError
from pangu_convert.model_bin import MODEL_BIN, ModelBin, read_model_bin
from pangu_training.stage.checkpoint import CONFIG
from pangu_training.stage.files import read_object, read_value

VOCABULARY = "vocabulary.json"
BLOCK_BYTES = 8 << 20
# Of a floating-point type: an integer of its size, and its exponent, which is all ones in NaN and in infinity.
EXPONENTS = {"float32": ("<u4", 0x7F800000), "float16": ("<u2", 0x7C00), "bfloat16": ("<u2", 0x7F80)}


def require_sound(folder: Path) -> tuple[ModelBin, list[str]]:
    """The table of the `model.bin` in `folder`, and its vocabulary: the token of each row.

    Raises:
        ArtifactError: a file makes no sense, or a weight is NaN or infinity.
    """
    model_bin = read_model_bin(folder / MODEL_BIN)
    for file, read in ((folder / CONFIG, read_object), (folder / VOCABULARY, read_value)):
        try:
            value = read(file)
        except ValueError as error:
            raise ArtifactError(f"{file} cannot be read ({error}): convert the checkpoint again") from None
    if not isinstance(value, list) or not value or not all(type(token) is str for token in value):
        raise ArtifactError(f"{folder / VOCABULARY} is not a list of tokens: convert the checkpoint again")
    require_finite(model_bin)
    return model_bin, value


def require_finite(model_bin: ModelBin) -> None:
    """Raise `ArtifactError` if a number of the file is NaN or infinity."""
    with model_bin.path.open("rb") as file:
        for name, variable in model_bin.variables.items():
            if variable.dtype not in EXPONENTS:
                continue
            kind, exponent = EXPONENTS[variable.dtype]
            file.seek(variable.offset)
            left = variable.num_bytes
            while left > 0:
                bits = np.frombuffer(file.read(min(left, BLOCK_BYTES)), kind)
                left -= bits.nbytes
                if not bits.nbytes or ((bits & exponent) == exponent).any():
                    raise ArtifactError(
                        f"{name} in {model_bin.path} holds NaN or infinity: the model is broken; convert a whole "
                        "checkpoint"
                    )
