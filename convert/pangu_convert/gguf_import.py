"""A GGUF file, in one part or many, as a checkpoint folder; every key and tensor is used, or the file is refused."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_convert.architectures import ARCHITECTURES, GGUF_ARCHITECTURES
from pangu_convert.gguf_config import read_config
from pangu_convert.gguf_file import GgufFile, read_gguf
from pangu_convert.gguf_keys import GgufKeys
from pangu_convert.gguf_weights import match_tensors, write_dequantized
from pangu_convert.tokenizer import Vocabulary, read_vocabulary
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import sha256_of
from pangu_training.stage.output import require_free_space

if TYPE_CHECKING:
    from transformers import PretrainedConfig

QUANTIZATION_VERSION = 2  # of the blocks' layout, since May 2023


def import_gguf(path: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """De-quantize the GGUF file at `path` into a checkpoint in `folder`; return what is known of its origin.

    Peak memory is a few hundred MB more than the libraries take, whatever the model's size.

    Raises:
        CheckpointError: not GGUF, or not a model that can be taken whole: the message names what is in the way.
    """
    from transformers.utils import logging

    file = read_gguf(path)
    keys = GgufKeys(file)
    architecture, file_type = _kind(keys)
    template = keys.text("tokenizer.chat_template")
    vocabulary = read_vocabulary(keys)
    logging.set_verbosity_error()
    config = read_config(file, keys, architecture, vocabulary.size)
    keys.require_empty()
    matched = match_tensors(file, architecture, config)
    weights = sum(tensor.elements for tensor in matched.values())
    require_free_space(folder, weights * (4 if dtype == "float32" else 2))
    # llama.cpp stores the rows of these in another order, for this architecture alone.
    heads = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    write_dequantized(matched, folder / "model.safetensors", dtype, heads if architecture == "llama" else {})
    _save_config(config, vocabulary, dtype, folder)
    _save_tokenizer(config, vocabulary, template, folder)
    return {
        **_hashes(file),
        "file": path.name,
        "model": file.keys.get("general.name"),
        "quantized_source": {
            "format": "GGUF",
            "type": file_type,
            "tensor_types": dict(Counter(tensor.type.name for tensor in file.tensors.values())),
        },
        "note": f"weights de-quantized to {dtype} from the GGUF file: not the original unquantized model",
    }


def _kind(keys: GgufKeys) -> tuple[str, str]:
    """The architecture and the type of the file, both known here."""
    from gguf import LlamaFileType

    architecture = keys.text("general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        raise CheckpointError(
            f"{keys.name} is of architecture {architecture!r}; GGUF import takes {', '.join(GGUF_ARCHITECTURES)}; "
            f"a Hugging Face folder can be {', '.join(ARCHITECTURES)}"
        )
    keys.neutral("general.type", "model")
    keys.neutral("general.quantization_version", QUANTIZATION_VERSION)
    known = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    file_type = keys.known("general.file_type", known)
    return architecture, file_type or "unknown"


def _save_config(config: "PretrainedConfig", vocabulary: Vocabulary, dtype: str, folder: Path) -> None:
    import torch
    from transformers import GenerationConfig

    config.dtype = getattr(torch, dtype)
    tokens = {
        "bos_token_id": vocabulary.beginning,
        "eos_token_id": vocabulary.ends[0],
        "pad_token_id": vocabulary.padding,
    }
    for name, token in tokens.items():
        setattr(config, name, token)
    config.save_pretrained(folder)
    GenerationConfig(**{**tokens, "eos_token_id": list(vocabulary.ends)}).save_pretrained(folder)


def _save_tokenizer(
    config: "PretrainedConfig", vocabulary: Vocabulary, template: str | None, folder: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else vocabulary.tokenizer.id_to_token(token_id)

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=vocabulary.tokenizer,
        bos_token=text(vocabulary.beginning),
        eos_token=text(vocabulary.ends[0]),
        pad_token=text(vocabulary.padding),
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)


def _hashes(file: GgufFile) -> Mapping[str, Any]:
    if len(file.parts) == 1:
        return {"sha256": sha256_of(file.parts[0])}
    return {"parts_sha256": {part.name: sha256_of(part) for part in file.parts}}
