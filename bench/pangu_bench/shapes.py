"""The shapes and formats that `pangu-bench shape` knows, what each takes, and the paper's figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "starcoder-15b": {  # bigcode/starcoder's config.json
        "vocab_size": 49152,
        "n_positions": 8192,
        "n_embd": 6144,
        "n_layer": 40,
        "n_head": 48,
        "n_inner": 24576,
        "activation_function": "gelu",
        "multi_query": True,
        "attention_softmax_in_fp32": True,
        "scale_attention_softmax_in_fp32": True,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How an artifact is made and what it takes, and the paper's row (arXiv 2307.14936, Table 4)."""

    verb: tuple[str, ...]  # of pangu-convert; none: drawn as it is
    bits: float  # a weight of the blocks, scales included
    gptq_bits: int = 0
    paper: Mapping[str, float] | None = None  # decimal GB, ms/token


FORMATS = {
    "bfloat16": Format(verb=("transformers",), bits=16, paper={"gigabytes": 32.36, "milliseconds": 75}),
    "float16": Format(
        verb=("transformers", "--dtype", "float16"), bits=16, paper={"gigabytes": 32.36, "milliseconds": 75}
    ),
    "int8": Format(verb=("ctranslate2",), bits=8, paper={"gigabytes": 16.29, "milliseconds": 33}),
    "gptq-8": Format(verb=(), bits=8.2, gptq_bits=8, paper={"gigabytes": 16.92, "milliseconds": 51}),
    "gptq-4": Format(verb=(), bits=4.2, gptq_bits=4, paper={"gigabytes": 9.82, "milliseconds": 42}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Parameters: the blocks' matrices, which are quantized, and the rest."""

    blocks: int
    rest: int

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]]) -> "Sizes":
        """From the parameters' shapes by name."""
        from pangu_convert.gptq import BLOCKS

        counts = {name: math.prod(shape) for name, shape in shapes.items()}
        blocks = sum(
            count
            for name, count in counts.items()
            if len(shapes[name]) == 2 and any(block in name for block in BLOCKS)
        )
        return cls(blocks=blocks, rest=sum(counts.values()) - blocks)

    def weight_bytes(self, bits: float) -> int:
        """Of a model with `bits` bits a weight in the blocks and 16 in the rest."""
        return int(self.blocks * bits / 8 + 2 * self.rest)

    def needed_bytes(self, format: Format) -> int:
        """The most memory that loading takes, roughly. Seen on 2 to 8 layers of StarCoder-15B."""
        if not format.gptq_bits:
            return int(1.02 * self.weight_bytes(format.bits) + 1e9)
        return int(1.3 * self.weight_bytes(format.bits) + 1.5e9)  # a matrix is there twice, and a file
