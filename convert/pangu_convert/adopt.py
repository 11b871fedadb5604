"""`pangu-convert adopt`: an artifact from a quantized model that others made, without quantizing anything again.

GPTQ (AutoGPTQ, GPTQModel; both formats), AWQ (version gemm) and what CTranslate2's converter wrote, from a folder or
the hub. Every tensor is checked as those of an unquantized checkpoint are. What the folder does not say is "unknown" in
the manifest.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.artifact import UNKNOWN, Artifact, Source, read_artifact, seal
from pangu_convert.conversion import print_cautions, report, require_whole
from pangu_convert.hub import HUB_SOURCE, fetch_hub_model
from pangu_convert.model_bin import MODEL_BIN
from pangu_convert.weights import with_rope_theta
from pangu_training.stage.checkpoint import CONFIG, QUANTIZE_CONFIG, SHARD_INDEX, Checkpoint, read_checkpoint
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptOptions:
    """What to make an artifact of."""

    source: str = argument(
        "a folder with a GPTQ, AWQ or CTranslate2 model, or a hub id, OWNER/NAME", reads=Path
    )
    output: Path = option("the artifact folder to make", writes="folder")
    revision: str | None = option("branch, tag or commit of a hub id (default: main)", None)
    tokenizer: Path | None = option(
        "of a CTranslate2 folder: the folder of the model that it was made from, with its tokenizer.json and "
        "config.json (default: the source itself)",
        None,
        metavar="FOLDER",
    )
    name: str | None = option("model id that the server answers to (default: the source's name)", None)
    force: bool = option("replace the output folder", False)


def adopt(options: AdoptOptions) -> None:
    """Adopt, and say what was made."""
    report(adopted_artifact(options))


def adopted_artifact(options: AdoptOptions) -> Artifact:
    """The model of `options.source` as an artifact.

    Raises:
        CheckpointError: it is not quantized, not in a way that the engine holds, or not whole.
        DownloadError, OutputError: see `fetch_hub_model`, `new_directory`.
    """
    path, origin = _found(options)
    if (path / MODEL_BIN).is_file():
        from pangu_convert.adopted_ctranslate2 import write_adopted

        with new_directory(
            options.output, force=options.force, needed_bytes=(path / MODEL_BIN).stat().st_size
        ) as folder:
            write_adopted(path, options.tokenizer or path, origin, options.name, folder)
        return read_artifact(options.output)
    if options.tokenizer:
        raise CheckpointError(f"--tokenizer is for a CTranslate2 folder, which {path} is not: leave it out")
    return _adopt_packed(read_checkpoint(path, quantized=True), origin, options)


def _found(options: AdoptOptions) -> tuple[Path, Mapping[str, Any]]:
    """The folder on this machine, and what is known of where it came from."""
    path = Path(options.source)
    if path.is_dir():
        if options.revision:
            raise CheckpointError(f"--revision is of a hub id, which {path} is not: leave it out")
        return path, {"source": path.resolve().name}
    if path.exists() or not HUB_SOURCE.fullmatch(options.source):
        raise CheckpointError(f"{options.source!r} is neither a folder nor a hub id (OWNER/NAME)")
    model = fetch_hub_model(options.source, options.revision)
    if not model.path.is_dir():
        raise CheckpointError(f"{options.source} is a GGUF file: pangu-convert import takes it")
    return model.path, model.origin


def _adopt_packed(checkpoint: Checkpoint, origin: Mapping[str, Any], options: AdoptOptions) -> Artifact:
    from pangu_convert.packed import packed_layers, scheme_of, unpacked_form
    from pangu_convert.repacking import write_repacked

    scheme = scheme_of(checkpoint)
    layers = packed_layers(checkpoint, scheme)
    plain = unpacked_form(checkpoint, layers)
    require_whole(plain)
    print_cautions(plain)
    name = str(origin["source"]).rsplit("/", 1)[-1]
    group = f"-g{scheme.group_size}" if scheme.group_size > 0 else ""
    others = sorted({layer.bits for layer in layers.values()} - {scheme.bits})
    with new_directory(options.output, force=options.force, needed_bytes=checkpoint.weight_bytes) as folder:
        sha256 = checkpoint_hash(checkpoint)  # first: it refuses numbers that are not finite
        places = write_repacked(checkpoint, plain, scheme, layers, folder)
        quantization = {
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "desc_act": False,  # AWQ's
            "sym": False,
            **scheme.facts,
            "lm_head": "lm_head" in layers,
            "quant_method": "gptq",
            "checkpoint_format": "gptq_v2",
            **({"dynamic": scheme.dynamic} if scheme.dynamic else {}),
        }
        write_json(folder / QUANTIZE_CONFIG, quantization)
        config = {**with_rope_theta(plain.config), "quantization_config": quantization}
        write_json(folder / CONFIG, config)
        if len(checkpoint.weight_files) > 1:
            write_json(folder / SHARD_INDEX, {"metadata": {}, "weight_map": places})
        for file in checkpoint.text_files:
            shutil.copyfile(file, folder / file.name)
        seal(
            folder,
            name=options.name or name,
            format="gptq",
            architecture=plain.architecture,
            quantization="+".join(
                [f"{scheme.method}-int{scheme.bits}{group}", *(f"int{bits}" for bits in others)]
            ),
            dtype=plain.dtype,
            weight_files=dict.fromkeys(places.values()),
            context_length=plain.context_length,
            end_token_ids=plain.end_token_ids,
            source=Source(
                name=name, sha256=sha256, provenance={**origin, "adopted": True, "base_model": UNKNOWN}
            ),
            calibration={
                "method": scheme.method.upper(),
                "text": UNKNOWN,
                "quantizer": scheme.quantizer,
                "bits": scheme.bits,
                "group_size": scheme.group_size,
                **scheme.facts,
            },
        )
    return read_artifact(options.output)
