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

from pangu_convert.artifact import UNKNOWN, Source, seal
from pangu_convert.ctranslate2 import within_window
from pangu_convert.ctranslate2_checks import EXPONENTS, VOCABULARY, require_sound
from pangu_convert.model_bin import MODEL_BIN, ModelBin
from pangu_training.stage.checkpoint import (
    CONFIG,
    TEXT_FILES,
    TOKENIZER,
    Checkpoint,
    read_json,
    require_readable,
)
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.files import require_inside
from pangu_training.stage.identity import combined_hash, hash_files
from pangu_training.stage.output import link_or_copy
from pangu_training.stage.vocabulary import read_tokenizer, require_usable

OWN_FILES = (MODEL_BIN, CONFIG, VOCABULARY)
DECODER = "TransformerDecoderSpec"
EMBEDDINGS = "decoder/embeddings/weight"
POSITIONS = "decoder/position_encodings/encodings"
ROPE_TYPE, LLAMA3 = "rotary_scaling_type", 2
LEFT_OUT = ("rotary_scaling_factor", "original_max_position_embeddings")  # by the library's converter
WINDOW = "sliding_window"
MOST_TOKENS = 10**7  # a tokenizer without a limit names a larger one
REMEDY = "convert the checkpoint with pangu-convert ctranslate2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of the model."""

    architecture: str
    context_length: int
    end_token_ids: tuple[int, ...]
    window: int | None = None  # of its attention, in tokens


def write_adopted(path: Path, text: Path, origin: Mapping[str, Any], name: str | None, folder: Path) -> None:
    """Make `folder` the artifact of the folder at `path`; its tokenizer lies in `text`, and perhaps its config.

    Raises:
        ArtifactError: `model.bin` is damaged, of another version, or not finite.
        CheckpointError: something is missing, leads out of its folder, or does not belong to the rest; or the library
            computes something else than the model.
    """
    for own in OWN_FILES:
        if not (path / own).is_file():
            raise CheckpointError(f"{path} has no {own}: it is not a CTranslate2 model of today; {REMEDY}")
    if not (text / TOKENIZER).is_file():
        raise CheckpointError(
            f"{text} has no {TOKENIZER}: name the folder of the model that it was made from with --tokenizer"
        )
    _require_own(path, text)
    model_bin, vocabulary = require_sound(path)
    config = read_json(path / CONFIG)
    if model_bin.specification != DECODER:
        raise CheckpointError(
            f"{path} is a {model_bin.specification}: only {DECODER}, a text generator, is served"
        )
    quantization, rest = _types(model_bin)
    _require_scaled(model_bin)
    _require_tokens(path, model_bin, config, vocabulary, text)
    known = _known(path, model_bin, config, vocabulary, text)
    windows = [*_windows(model_bin), *([known.window] if known.window else [])]
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
        context_length=within_window(min(windows, default=None), known.context_length),
        end_token_ids=known.end_token_ids,
        source=Source(
            name=source,
            sha256=combined_hash(hashes),
            provenance={**origin, "adopted": True, "base_model": UNKNOWN},
        ),
    )


def _require_own(path: Path, text: Path) -> None:
    """Refuse files that no program should read, and links out of the folders: what is copied is given to others."""
    for folder in dict.fromkeys((path, text)):
        require_readable(folder)
    try:
        require_inside(path / VOCABULARY)
    except ValueError as error:
        raise CheckpointError(f"{path / VOCABULARY} cannot be read ({error}): download it again") from None


def _require_scaled(model_bin: ModelBin) -> None:
    """Refuse Llama 3's RoPE scaling as the library's converter writes it; see `ctranslate2_files.complete_llama3`."""
    for name, variable in model_bin.variables.items():
        layer, _, part = name.rpartition("/")
        if part == ROPE_TYPE and variable.number == LLAMA3:
            for number in LEFT_OUT:
                if f"{layer}/{number}" not in model_bin:
                    raise CheckpointError(
                        f"{model_bin.path} lacks {layer}/{number}, which CTranslate2's converter leaves out of Llama "
                        f"3's RoPE scaling: the library would not scale at all; {REMEDY}"
                    )


def _windows(model_bin: ModelBin) -> list[int]:
    """The attention windows of the layers that have one."""
    numbers = [model_bin.number(name) for name in model_bin.variables if name.rpartition("/")[2] == WINDOW]
    return [int(number) for number in numbers if number > 0]


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
        or not matrices <= {"int8", "int16", *EXPONENTS}
        or not rest <= EXPONENTS.keys()
    ):
        raise CheckpointError(
            f"{model_bin.path} has matrices of {' and '.join(sorted(matrices)) or 'no type'} and else "
            f"{' and '.join(sorted(rest)) or 'nothing'}: {REMEDY}"
        )
    return matrices.pop(), rest.pop()


def _require_tokens(
    path: Path, model_bin: ModelBin, config: Mapping[str, Any], vocabulary: list[str], text: Path
) -> None:
    """Refuse a vocabulary, the tokens by id, that is not the model's and the tokenizer's."""
    shape = model_bin.variable(EMBEDDINGS).shape
    if len(shape) != 2:
        raise CheckpointError(
            f"{EMBEDDINGS} in {model_bin.path} has the shape {list(shape)}, not tokens by width: {REMEDY}"
        )
    rows = shape[0]
    if len(vocabulary) != rows or len(set(vocabulary)) != rows:
        raise CheckpointError(
            f"{path / VOCABULARY} does not name {rows} tokens, as {MODEL_BIN} has: {REMEDY}"
        )
    if config.get("unk_token") not in vocabulary:
        raise CheckpointError(
            f"{path / CONFIG} names no unk_token of the vocabulary, and CTranslate2 does not load it without: {REMEDY}"
        )
    tokens: dict[str, int] = read_tokenizer(text / TOKENIZER).get_vocab()
    require_usable(text / TOKENIZER)
    for token, id in tokens.items():
        if id < rows and vocabulary[id] != token:
            raise CheckpointError(
                f"token {id} is {vocabulary[id]!r} in {path / VOCABULARY} and {token!r} in {text / TOKENIZER}: give "
                f"the tokenizer that it was made with, or {REMEDY}"
            )


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
            window=_window(model),
        )
    tokenizer_config = text / "tokenizer_config.json"
    length: object = (
        read_json(tokenizer_config).get("model_max_length") if tokenizer_config.is_file() else None
    )
    if POSITIONS in model_bin:
        length = next(iter(model_bin.variable(POSITIONS).shape), None)
    if type(length) is not int or not 0 < length <= MOST_TOKENS:
        raise CheckpointError(
            f"{path} does not say how long its context is: name the folder of the model that it was made from with "
            "--tokenizer"
        )
    end = config.get("eos_token")
    if end not in vocabulary:
        raise CheckpointError(f"{path / CONFIG} names no eos_token of the vocabulary: {REMEDY}")
    return Known(architecture=UNKNOWN, context_length=length, end_token_ids=(vocabulary.index(str(end)),))


def _window(model: Checkpoint) -> int | None:
    from pangu_convert.ctranslate2_loaders import attention_window
    from pangu_training.stage.architecture import model_config

    try:
        return attention_window(model_config(model))
    except CheckpointError as error:
        raise CheckpointError(f"{model.path / CONFIG}: {error}") from None
