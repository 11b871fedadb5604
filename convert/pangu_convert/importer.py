"""`pangu-convert import`: a checkpoint folder from a catalogue name, a GGUF file, a folder or a hub id.

A GGUF file comes out de-quantized in bfloat16, and `import.json` says so: converting it again quantizes a
second time, and no figure of its "unquantized" form is one of the original model.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.architectures import ARCHITECTURES, GGUF_ARCHITECTURES
from pangu_convert.catalogue import DEFAULT_MODEL, MODELS
from pangu_convert.conversion import whole_checkpoint
from pangu_convert.download import DownloadError, cache_folder, fetch
from pangu_convert.tokenizer import field, gguf_tokenizer
from pangu_convert.weights import DTYPES, with_rope_theta, write_model
from pangu_training.stage.checkpoint import CONFIG, TEXT_FILES, read_checkpoint, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import hash_weights, library_versions, sha256_of
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory, require_free_space, write_file

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Besides the end-of-turn token, which GGUF names, these end a plain completion.
END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What to make a checkpoint folder of."""

    source: str = argument(
        f"{', '.join(MODELS)}; a GGUF file; a Hugging Face folder; or a hub id", DEFAULT_MODEL
    )
    output: Path = option("the checkpoint folder to make")
    dtype: str | None = option(
        "type of the weights (default: bfloat16 for GGUF, else as they are)", None, choices=DTYPES
    )
    force: bool = option("replace the output folder", False)


def import_checkpoint(options: ImportOptions) -> None:
    """Import `options.source` into `options.output`."""
    source, output = options.source, options.output
    with new_directory(output, force=options.force) as folder:
        if source in MODELS:
            file = MODELS[source]
            path = fetch(file, cache_folder())
            origin = {"source": source, "licence": file.licence, "cite": file.cite, "sha256": file.sha256}
            import_gguf(path, folder, origin, options.dtype or "bfloat16")
        elif Path(source).is_file():
            path = Path(source)
            origin = {"source": path.name, "sha256": sha256_of(path)}
            import_gguf(path, folder, origin, options.dtype or "bfloat16")
        elif Path(source).is_dir():
            import_folder(Path(source), folder, {"source": Path(source).resolve().name}, options.dtype)
        elif HUB_ID.fullmatch(source):
            import_folder(fetch_hub_model(source), folder, {"source": source}, options.dtype)
        else:
            raise CheckpointError(
                f"{source!r} is neither a file, a folder, a hub id (owner/name) nor one of {', '.join(MODELS)}"
            )
    checkpoint = read_checkpoint(output)
    print(f"{output}: {checkpoint.architecture}, {checkpoint.dtype}, {checkpoint.weight_bytes / 1e9:.2f} GB")


def import_gguf(path: Path, folder: Path, origin: Mapping[str, Any], dtype: str) -> None:
    """De-quantize the GGUF file at `path` into a checkpoint in `folder`.

    Peak memory is about 4.5 bytes a parameter (measured: 2.8 GiB for 0.63 billion).

    Raises:
        CheckpointError: not GGUF, not a supported architecture or tokenizer.
    """
    from gguf import GGUFReader, LlamaFileType

    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(
            f"{path} is not a GGUF file: give one, or the folder of a Hugging Face checkpoint"
        )
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}): download it again") from None
    architecture = field(reader, "general.architecture")
    if architecture not in GGUF_ARCHITECTURES:
        raise CheckpointError(
            f"{path.name} is of architecture {architecture!r}; GGUF import takes {', '.join(GGUF_ARCHITECTURES)}; "
            f"a Hugging Face folder can be {', '.join(ARCHITECTURES)}"
        )
    tokenizer = gguf_tokenizer(reader)
    parameters = sum(int(tensor.n_elements) for tensor in reader.tensors)
    require_free_space(folder, parameters * (4 if dtype == "float32" else 2))
    _save_dequantized(path, folder, tokenizer, field(reader, "tokenizer.chat_template"), dtype)
    _complete_config(folder)
    file_type = field(reader, "general.file_type")
    _write_origin(
        folder,
        {
            **origin,
            "file": path.name,
            "model": field(reader, "general.name"),
            "quantized_source": {
                "format": "GGUF",
                "type": "unknown"
                if file_type is None
                else LlamaFileType(file_type).name.removeprefix("MOSTLY_").removeprefix("ALL_"),
                "tensor_types": dict(Counter(tensor.tensor_type.name for tensor in reader.tensors)),
            },
            "note": f"weights de-quantized to {dtype} from the GGUF file: not the original unquantized model",
        },
    )


def import_folder(path: Path, folder: Path, origin: Mapping[str, Any], dtype: str | None) -> None:
    """Take over the Hugging Face folder at `path`; weights are linked unless `dtype` differs."""
    checkpoint = whole_checkpoint(path)
    hashes = hash_weights(checkpoint)  # first: it refuses numbers that are not finite
    require_free_space(folder, 0 if dtype in (None, checkpoint.dtype) else 2 * checkpoint.weight_bytes)
    write_model(checkpoint, folder, dtype)
    _complete_config(folder)
    _write_origin(folder, {**(checkpoint.provenance or {}), **origin, "weights_sha256": hashes})


def fetch_hub_model(repository: str) -> Path:
    """Download the safetensors and tokenizer of a hub model into the cache folder; resumes."""
    import httpx2
    from huggingface_hub import snapshot_download

    target = cache_folder() / "hub" / repository.replace("/", "--")
    try:
        snapshot_download(
            repository, local_dir=target, allow_patterns=[CONFIG, "*.safetensors*", *TEXT_FILES]
        )
    except (httpx2.HTTPError, OSError) as error:
        raise DownloadError(
            f"{repository} could not be fetched from the hub ({str(error).splitlines()[0]}): check the name and "
            "the network, or give a local folder"
        ) from None
    return target


def _save_dequantized(path: Path, folder: Path, tokenizer: Any, template: str | None, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        trust_remote_code=False,
        # Without it the weights stay packed and a token takes ten seconds.
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if head is not embedding and torch.equal(head, embedding):
        model.config.tie_word_embeddings = True
        model.tie_weights()
    config = model.config
    ends = [config.eos_token_id, *(tokenizer.token_to_id(text) for text in END_OF_TEXT)]
    model.generation_config.eos_token_id = list(dict.fromkeys(token for token in ends if token is not None))
    model.save_pretrained(folder)

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else tokenizer.id_to_token(token_id)

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=text(config.bos_token_id),
        eos_token=text(config.eos_token_id),
        pad_token=text(config.pad_token_id),
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)


def _complete_config(folder: Path) -> None:
    """Write what loaders older than transformers 5 look for, so that they do not take a default in silence."""
    config = read_json(folder / CONFIG)
    if (complete := with_rope_theta(config)) != config:
        _write_json(folder / CONFIG, complete)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file() and read_json(tokenizer).get("tokenizer_class") == "TokenizersBackend":
        _write_json(tokenizer, {**read_json(tokenizer), "tokenizer_class": "PreTrainedTokenizerFast"})


def _write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    _write_json(folder / "import.json", {**origin, "library_versions": library_versions()})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(value, indent=2) + "\n").encode())
