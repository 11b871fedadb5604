"""The tensors of a GGUF file as one safetensors file, de-quantized a few rows at a time.

transformers' own model class says which tensors there must be and of what shape. Each is filled from exactly one
tensor of the file, and a tensor of the file that fills none is refused: nothing is left at its random start.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pangu_convert.gguf_config import ROPE_FACTORS
from pangu_convert.gguf_file import GgufFile, GgufTensor
from pangu_training.stage.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig

CHUNK_WEIGHTS = 1 << 24  # de-quantized at once: 64 MB in float32
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"
STORED_TYPE = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
BIGCODE_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}
TENSOR_NAMES = {"llama": LLAMA_NAMES, "qwen2": LLAMA_NAMES, "starcoder": BIGCODE_NAMES}


def match_tensors(file: GgufFile, architecture: str, config: "PretrainedConfig") -> dict[str, GgufTensor]:
    """The tensor of `file` for each parameter of the model; decides whether its embedding is tied.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or would not be used.
    """
    import torch
    from transformers import AutoModelForCausalLM

    used = dict(file.tensors)
    if architecture != "starcoder":  # it has positions of its own
        used.pop(ROPE_FACTORS, None)  # the config has it
    config.tie_word_embeddings = HEAD not in used or _same_bytes(used[HEAD], used.get(EMBEDDING))
    if config.tie_word_embeddings:
        used.pop(HEAD, None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    file_name, matched = file.parts[0].name, {}
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored_names = {_transformers_name(name, TENSOR_NAMES[architecture]): name for name in used}
    for name, shape in wanted.items():
        if name not in stored_names:
            raise CheckpointError(
                f"{file_name} has no tensor for {name}: import a complete file, or the Hugging Face folder"
            )
        tensor = used.pop(stored_names[name])
        if tensor.shape != shape:
            raise CheckpointError(
                f"{file_name}: {tensor.name} is of shape {list(tensor.shape)}, and the model that its keys describe "
                f"has {list(shape)}"
            )
        matched[name] = tensor
    for unused in used:
        raise CheckpointError(
            f"{file_name} has the tensor {unused}, which {config.architectures[0]} has no place for: import the "
            "model's Hugging Face folder instead"
        )
    return matched


def write_dequantized(
    matched: Mapping[str, GgufTensor], target: Path, dtype: str, permuted_heads: Mapping[str, int]
) -> None:
    """Write the tensors as `dtype`; those of an ending in `permuted_heads` get transformers' order of rows back.

    Raises:
        CheckpointError: a weight is not a finite number.
    """
    import torch

    torch_dtype = getattr(torch, dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in matched.items():
        end = position + tensor.elements * torch_dtype.itemsize
        header[name] = {
            "dtype": STORED_TYPE[dtype],
            "shape": tensor.shape,
            "data_offsets": [position, end],
        }
        position = end
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with target.open("wb") as output:
        output.write(struct.pack("<Q", len(head)) + head)
        for tensor in tqdm(matched.values(), desc="de-quantizing", delay=1):
            heads = next((count for end, count in permuted_heads.items() if end in tensor.name), None)
            for chunk in _chunks(tensor, heads):
                cast = chunk.to(torch_dtype)
                if not torch.isfinite(cast).all():
                    raise CheckpointError(
                        f"{tensor.file.name}: {tensor.name} has a weight that is not a finite number in {dtype}"
                    )
                output.write(cast.view(torch.uint8).numpy().data)


def _chunks(tensor: GgufTensor, heads: int | None) -> "Iterator[torch.Tensor]":
    import numpy as np
    import torch
    from gguf import dequantize

    rows = tensor.rows()
    if heads is not None and len(tensor.shape) == 1:
        yield torch.from_numpy(_unpermuted(dequantize(rows, tensor.type)[0], heads))
        return
    if heads is not None:
        rows = _unpermuted(rows, heads)  # quantization runs along a row: whole rows change places as they are
    step = max(1, CHUNK_WEIGHTS // tensor.shape[-1])
    for start in range(0, len(rows), step):
        weights = dequantize(np.ascontiguousarray(rows[start : start + step]), tensor.type)
        yield torch.from_numpy(np.array(weights, dtype=np.float32)).flatten()


def _unpermuted(rows: "np.ndarray[Any, Any]", heads: int) -> "np.ndarray[Any, Any]":
    """llama.cpp stores the two halves of a head that RoPE turns together as neighbours; here they are halves again."""
    import numpy as np

    order = np.arange(len(rows)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    unpermuted: np.ndarray[Any, Any] = rows[order]
    return unpermuted


def _transformers_name(name: str, names: Mapping[str, str]) -> str:
    """transformers' name of a tensor, `name` itself when there is none."""
    parts = re.fullmatch(r"(?:blk\.(0|[1-9]\d*)\.)?(\w+)\.(weight|bias)", name)
    if parts is None:
        return name
    number, module, kind = parts.groups()
    template = names.get(module if number is None else f"blk.{{}}.{module}")
    return name if template is None else f"{template.format(number)}.{kind}"


def _same_bytes(head: GgufTensor, embedding: GgufTensor | None) -> bool:
    """Whether two tensors are one that was stored twice."""
    import numpy as np

    if embedding is None or (head.type, head.shape) != (embedding.type, embedding.shape):
        return False
    return bool(np.array_equal(head.rows(), embedding.rows()))
