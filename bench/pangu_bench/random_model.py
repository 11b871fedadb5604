"""Random weights in a real model's exact shape: a checkpoint or a GPTQ artifact, a shard in memory at a time.

Memory, time and disk are the real model's; the text is nonsense. The same name draws the same weights, so that what
an interrupted run has written can stay.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM, PreTrainedTokenizerFast

from pangu_convert.artifact import Source, seal
from pangu_convert.catalogue import STARCODER_VOCABULARY
from pangu_convert.download import cache_folder, fetch
from pangu_convert.gptq import BLOCKS, write_configs
from pangu_convert.gptq_worker import Job
from pangu_convert.tokenizer import starcoder_tokenizer
from pangu_training.stage.checkpoint import CONFIG, SHARD_INDEX, Checkpoint, read_json
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash
from pangu_training.stage.output import new_directory, require_free_space, write_json

SHARD_BYTES = 2_000_000_000
STD = 0.02  # of a fresh model's matrices: activations stay finite
GROUP_SIZE = 128
END = "<|endoftext|>"
DAMP = 0.05  # the converter's default; `quantize_config.json` has it, which loaders want whole
NOTHING = "none: random weights"
PROVENANCE = "import.json"


Fill = Callable[[torch.Tensor, torch.Generator], object]


class Part(NamedTuple):
    """A tensor that is still to be drawn; `fill` draws it in place."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Fill
    seed: str  # equal seeds draw equal weights

    @property
    def size_bytes(self) -> int:
        """On disk."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter by name, a tied one once, of a GPTBigCode model with this `config`."""
    with torch.device("meta"):
        model = GPTBigCodeForCausalLM(GPTBigCodeConfig(**config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write_checkpoint(folder: Path, config: Mapping[str, Any], name: str, *, beside_bytes: int) -> None:
    """Write what of the checkpoint is not there yet; `beside_bytes` of disk must stay free."""
    _describe(folder, config, name)
    parts = {tensor: _plain(tensor, shape) for tensor, shape in parameter_shapes(config).items()}
    _write_shards(folder, parts, beside_bytes)


def write_gptq(output: Path, config: Mapping[str, Any], name: str, bits: int) -> None:
    """The artifact that `pangu-convert gptq` would make of such a checkpoint, but drawn: nothing is calibrated."""
    parts = dict(_gptq_parts(parameter_shapes(config), bits))
    with new_directory(output) as folder:
        _describe(folder, config, name)
        checkpoint = Checkpoint(path=folder, config=read_json(folder / CONFIG), weight_files=())
        source = Source(name=name, sha256=checkpoint_hash(checkpoint), provenance=checkpoint.provenance)
        (folder / PROVENANCE).unlink()
        job = Job(  # as the converter would have it, but for the calibration rows
            parent_process=os.getpid(),
            checkpoint=name,
            folder=str(folder),
            dtype=checkpoint.dtype,
            bits=bits,
            group_size=GROUP_SIZE,
            act_order=False,
            damp=DAMP,
            rows=(),
        )
        write_configs(checkpoint, folder, job)
        _write_shards(folder, parts)
        quantization = f"gptq-int{bits}-g{GROUP_SIZE}"
        seal(
            folder,
            name=f"{name}-{quantization}",
            format="gptq",
            architecture=checkpoint.architecture,
            quantization=quantization,
            dtype=checkpoint.dtype,
            weight_files=sorted(file.name for file in folder.glob("*.safetensors")),
            context_length=checkpoint.context_length,
            end_token_ids=checkpoint.end_token_ids,
            source=source,
            calibration={"source": NOTHING, "bits": bits, "group_size": GROUP_SIZE, "act_order": False},
        )


def _describe(folder: Path, config: Mapping[str, Any], name: str) -> None:
    """All of a checkpoint but its weights: config, StarCoder's tokenizer, where it is from."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = GPTBigCodeConfig(architectures=["GPTBigCodeForCausalLM"], dtype="bfloat16", **config)
    whole.save_pretrained(folder)
    tokenizer = starcoder_tokenizer(fetch(STARCODER_VOCABULARY, cache_folder()))
    if tokenizer.token_to_id(END) != whole.eos_token_id:
        raise CheckpointError(f"{STARCODER_VOCABULARY.file_name} does not begin with {END}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)
    origin = {"source": name, "note": "random weights: shape only"}
    write_json(folder / PROVENANCE, origin)


def _plain(name: str, shape: tuple[int, ...]) -> Part:
    """As a fresh model has it."""
    if len(shape) == 2:
        return Part(shape, torch.bfloat16, lambda to, dice: to.normal_(std=STD, generator=dice), name)
    value = 1 if name.endswith("weight") else 0  # of a layer norm, or a bias
    return Part(shape, torch.bfloat16, lambda to, _: to.fill_(value), name)


def _gptq_parts(shapes: Mapping[str, tuple[int, ...]], bits: int) -> Iterator[tuple[str, Part]]:
    for name, shape in shapes.items():
        layer = name.rpartition(".")[0]
        if not any(block in name for block in BLOCKS) or len(shapes[f"{layer}.weight"]) != 2:
            yield name, _plain(name, shape)
        elif name.endswith("weight"):
            yield from _packed(layer, *shape, bits=bits)
        else:  # a packed layer's bias
            yield name, _plain(name, shape)._replace(dtype=torch.float16)
    # Written twice even though it is tied, as the converter does.
    embedding = "transformer.wte.weight"
    yield "lm_head.weight", _plain(embedding, shapes[embedding])


def _packed(layer: str, outputs: int, inputs: int, *, bits: int) -> Iterator[tuple[str, Part]]:
    """A matrix in AutoGPTQ's first format, see `gptq_weights.dequantize`; symmetric: all zero points are equal."""
    zeros = sum(((1 << (bits - 1)) - 1) << shift for shift in range(0, 32, bits))
    scale = STD * math.sqrt(12) / (1 << bits)  # all integers are equally likely
    groups = inputs // GROUP_SIZE
    int32, half, draw = torch.int32, torch.float16, (-(1 << 31), 1 << 31)
    parts: tuple[tuple[str, tuple[int, ...], torch.dtype, Fill], ...] = (
        (
            "qweight",
            (inputs * bits // 32, outputs),
            int32,
            lambda to, dice: to.random_(*draw, generator=dice),
        ),
        ("qzeros", (groups, outputs * bits // 32), int32, lambda to, _: to.fill_(zeros)),
        ("scales", (groups, outputs), half, lambda to, _: to.fill_(scale)),
        ("g_idx", (inputs,), int32, lambda to, _: to.copy_(torch.arange(inputs) // GROUP_SIZE)),
    )
    for name, shape, dtype, fill in parts:
        yield f"{layer}.{name}", Part(shape, dtype, fill, seed=f"{layer}.{name}")


def plan_shards(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """File name -> names of the tensors in it, in order, at most about `SHARD_BYTES` each."""
    groups: list[list[str]] = [[]]
    filled_bytes = 0
    for name, size_bytes in sizes.items():
        if groups[-1] and filled_bytes + size_bytes > SHARD_BYTES:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(name)
        filled_bytes += size_bytes
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def _write_shards(folder: Path, parts: Mapping[str, Part], beside_bytes: int = 0) -> None:
    """Write the shards that are not there, then their index."""
    sizes = {name: part.size_bytes for name, part in parts.items()}
    shards = plan_shards(sizes)
    missing = {file: names for file, names in shards.items() if not (folder / file).is_file()}
    missing_bytes = sum(sizes[name] for names in missing.values() for name in names)
    if missing:
        require_free_space(folder, missing_bytes + beside_bytes)
    with tqdm(total=missing_bytes, desc="drawing weights", unit="B", unit_scale=True, disable=None) as bar:
        for file, names in missing.items():
            tensors = {}
            for name in names:
                part = parts[name]
                tensors[name] = torch.empty(part.shape, dtype=part.dtype)
                part.fill(tensors[name], torch.Generator().manual_seed(zlib.crc32(part.seed.encode())))
                bar.update(part.size_bytes)
            partial = folder / f".{file}.partial"
            save_file(tensors, partial, metadata={"format": "pt"})
            partial.rename(folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
    write_json(folder / SHARD_INDEX, index)
