"""A folder that CTranslate2's own converter wrote, as an artifact: checked, its files taken as they are.

It holds neither a tokenizer, unless that was copied in, nor the architecture, the context length or all tokens that end
a text. The folder of the model that it was made from has them. Without it the artifact is of an unknown architecture,
which CTranslate2's library alone computes.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pangu_convert.artifact import UNKNOWN, Source, seal
from pangu_convert.model_bin import MODEL_BIN, ModelBin, read_model_bin
from pangu_training.stage.checkpoint import CONFIG, TEXT_FILES, TOKENIZER, Checkpoint, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import read_value
from pangu_training.stage.finite import all_finite
from pangu_training.stage.identity import combined_hash, hash_files
from pangu_training.stage.output import link_or_copy
from pangu_training.stage.vocabulary import read_tokenizer

VOCABULARY = "vocabulary.json"
OWN_FILES = (MODEL_BIN, CONFIG, VOCABULARY)
FLOATS = {"float32", "float16", "bfloat16"}
DECODER = "TransformerDecoderSpec"
EMBEDDINGS = "decoder/embeddings/weight"
POSITIONS = "decoder/position_encodings/encodings"
MOST_TOKENS = 10**7  # a tokenizer without a limit names a larger one
REMEDY = "convert the checkpoint with pangu-convert ctranslate2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the model."""

    architecture: str
    context_length: int
    end_token_ids: tuple[int, ...]


def write_adopted(path: Path, text: Path, origin: Mapping[str, Any], name: str | None, folder: Path) -> None:
    """Make `folder` the artifact of the folder at `path`; its tokenizer lies in `text`, and perhaps its config.

    Raises:
        ArtifactError: `model.bin` is damaged or of another version.
        CheckpointError: something is missing, is not finite, or does not belong to the rest.
    """
    for own in OWN_FILES:
        if not (path / own).is_file():
            raise CheckpointError(f"{path} has no {own}: it is not a CTranslate2 model of today; {REMEDY}")
    if not (text / TOKENIZER).is_file():
        raise CheckpointError(
            f"{text} has no {TOKENIZER}: name the folder of the model that it was made from with --tokenizer"
        )
    model_bin, config = read_model_bin(path / MODEL_BIN), read_json(path / CONFIG)
    if model_bin.specification != DECODER:
        raise CheckpointError(
            f"{path} is a {model_bin.specification}: only {DECODER}, a text generator, is served"
        )
    quantization, rest = _types(model_bin)
    vocabulary = _vocabulary(path, model_bin, config, text)
    known = _known(path, model_bin, config, vocabulary, text)
    _require_finite(model_bin)
    text_files = [text / file for file in TEXT_FILES if (text / file).is_file()]
    hashes = hash_files(path, OWN_FILES, "hashing the model") | hash_files(
        text, [file.name for file in text_files], "hashing the tokenizer"
    )
    link_or_copy(path / MODEL_BIN, folder / MODEL_BIN)
    for file in (path / CONFIG, path / VOCABULARY, *text_files):
        shutil.copyfile(file, folder / file.name)
    source = str(origin["source"]).rsplit("/", 1)[-1]
    seal(
        folder,
        name=name or source,
        format="ctranslate2",
        architecture=known.architecture,
        quantization=quantization,
        dtype=rest,
        weight_files=(MODEL_BIN,),
        context_length=known.context_length,
        end_token_ids=known.end_token_ids,
        source=Source(
            name=source,
            sha256=combined_hash(hashes),
            provenance={**origin, "adopted": True, "base_model": UNKNOWN},
        ),
    )


def _types(model_bin: ModelBin) -> tuple[str, str]:
    """The type of the matrices, and of all else."""
    matrices = {
        variable.dtype
        for name, variable in model_bin.variables.items()
        if len(variable.shape) == 2 and name.endswith("weight")
    }
    rest = {
        variable.dtype
        for name, variable in model_bin.variables.items()
        if variable.shape and not name.endswith(("weight", "_scale"))
    }
    if (
        len(matrices) != 1
        or len(rest) != 1
        or not matrices <= {"int8", "int16", *FLOATS}
        or not rest <= FLOATS
    ):
        raise CheckpointError(
            f"{model_bin.path} has matrices of {' and '.join(sorted(matrices)) or 'no type'} and else "
            f"{' and '.join(sorted(rest)) or 'nothing'}: {REMEDY}"
        )
    return matrices.pop(), rest.pop()


def _vocabulary(path: Path, model_bin: ModelBin, config: Mapping[str, Any], text: Path) -> list[str]:
    """The tokens by id, which must be the tokenizer's."""
    try:
        vocabulary: Any = read_value(path / VOCABULARY)
    except ValueError as error:
        raise CheckpointError(f"{path / VOCABULARY} cannot be read ({error}): download it again") from None
    rows = model_bin.variable(EMBEDDINGS).shape[0]
    if not isinstance(vocabulary, list) or len(vocabulary) != rows or len(set(map(str, vocabulary))) != rows:
        raise CheckpointError(
            f"{path / VOCABULARY} does not name {rows} tokens, as {MODEL_BIN} has: {REMEDY}"
        )
    if config.get("unk_token") not in vocabulary:
        raise CheckpointError(
            f"{path / CONFIG} names no unk_token of the vocabulary, and CTranslate2 does not load it without: {REMEDY}"
        )
    tokens: dict[str, int] = read_tokenizer(text / TOKENIZER).get_vocab()
    for token, id in tokens.items():
        if id < rows and vocabulary[id] != token:
            raise CheckpointError(
                f"token {id} is {vocabulary[id]!r} in {path / VOCABULARY} and {token!r} in {text / TOKENIZER}: give "
                f"the tokenizer that it was made with, or {REMEDY}"
            )
    return vocabulary


def _known(
    path: Path, model_bin: ModelBin, config: Mapping[str, Any], vocabulary: list[str], text: Path
) -> Known:
    if text != path and (text / CONFIG).is_file():
        model = Checkpoint(path=text, config=read_json(text / CONFIG), weight_files=())
        if model.vocabulary_size != len(vocabulary):
            raise CheckpointError(
                f"{text / CONFIG} is of a model with {model.vocabulary_size} tokens, and {path} has {len(vocabulary)}: "
                "give the folder that it was made from"
            )
        return Known(
            architecture=model.architecture,
            context_length=model.context_length,
            end_token_ids=model.end_token_ids,
        )
    tokenizer_config = text / "tokenizer_config.json"
    length: object = (
        read_json(tokenizer_config).get("model_max_length") if tokenizer_config.is_file() else None
    )
    if POSITIONS in model_bin:
        length = model_bin.variable(POSITIONS).shape[0]
    if type(length) is not int or not 0 < length <= MOST_TOKENS:
        raise CheckpointError(
            f"{path} does not say how long its context is: name the folder of the model that it was made from with "
            "--tokenizer"
        )
    end = config.get("eos_token")
    if end not in vocabulary:
        raise CheckpointError(f"{path / CONFIG} names no eos_token of the vocabulary: {REMEDY}")
    return Known(architecture=UNKNOWN, context_length=length, end_token_ids=(vocabulary.index(str(end)),))


def _require_finite(model_bin: ModelBin) -> None:
    data = torch.from_file(str(model_bin.path), size=model_bin.path.stat().st_size, dtype=torch.uint8)
    for name, variable in model_bin.variables.items():
        if variable.dtype in FLOATS:
            stored = data[variable.offset : variable.offset + variable.num_bytes].clone()  # aligned
            if not all_finite(stored.view(getattr(torch, variable.dtype))):
                raise CheckpointError(
                    f"{name} in {model_bin.path} holds NaN or infinity: the model is broken; {REMEDY}"
                )
