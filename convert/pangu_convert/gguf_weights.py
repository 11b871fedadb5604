"""The tensors of a GGUF file as one safetensors file, de-quantized a few rows at a time.

transformers' own model class says which tensors there must be and of what shape. Each is filled from exactly one
tensor of the file, and a tensor of the file that fills none is refused: nothing is left at its random start.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from pangu_convert.gguf_config import ROPE_FACTORS, understood
from pangu_convert.gguf_file import GgufFile, GgufTensor
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.tensors import header_of, stored_type

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PretrainedConfig

CHUNK_WEIGHTS = 1 << 24  # de-quantized at once: 64 MB in float32
HEAD = "output.weight"
EMBEDDING = "token_embd.weight"

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
    file_name, matched = file.parts[0].name, {}
    with torch.device("meta"), understood(file_name):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    for name, parameter in model.named_parameters():
        stored = _gguf_name(name, TENSOR_NAMES[architecture])
        if stored not in used:
            raise CheckpointError(
                f"{file_name} has no tensor {stored}, which its model needs as {name}: download it again, or import "
                "the Hugging Face folder"
            )
        matched[name] = used.pop(stored)
        if matched[name].shape != parameter.shape:
            raise CheckpointError(
                f"{file_name}: {stored} is of shape {list(matched[name].shape)}, and the model that its keys describe "
                f"has {list(parameter.shape)}"
            )
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

    from pangu_training.stage.finite import all_finite

    torch_dtype = getattr(torch, dtype)
    with target.open("wb") as output:
        output.write(header_of((name, stored_type(dtype), one.shape) for name, one in matched.items()))
        for tensor in tqdm(matched.values(), desc="de-quantizing", delay=1):
            heads = next((count for end, count in permuted_heads.items() if end in tensor.name), None)
            for chunk in _chunks(tensor, heads):
                cast = chunk.to(torch_dtype)
                if not all_finite(cast):
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


def _gguf_name(parameter: str, names: Mapping[str, str]) -> str:
    """The name in a GGUF file of one of transformers' parameters."""
    module, _, kind = parameter.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    template = {theirs: stored for stored, theirs in names.items()}[re.sub(r"\.\d+\.", ".{}.", module)]
    return f"{template.format(number and number[1])}.{kind}"


def _same_bytes(head: GgufTensor, embedding: GgufTensor | None) -> bool:
    """Whether two tensors are one that was stored twice."""
    import numpy as np

    if embedding is None or (head.type, head.shape) != (embedding.type, embedding.shape):
        return False
    return bool(np.array_equal(head.rows(), embedding.rows()))
