"""Which engine runs an artifact, and why."""

import importlib.util
from dataclasses import dataclass, replace

from pangu_convert.artifact import UNKNOWN, Artifact, ArtifactError
from pangu_convert.int8 import packs_int8
from pangu_server.backends.seam import EngineChoice, EngineName, LoadOptions
from pangu_training.stage.errors import MissingExtra


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the choice is made from."""

    name: str  # of the artifact
    format: str
    quantization: str
    torch: bool  # torch and transformers are installed
    packs: bool  # CTranslate2 packs int8 matrices once on this CPU, when it loads them
    kernel: bool = False  # the torch engine has one for int8 matrices on this CPU
    gpu: bool = False  # there is one, and it may be used
    torch_gpu: bool = False  # torch can compute on it
    known: bool = True  # the architecture is: an adopted CTranslate2 folder may not say it


def choose_engine(artifact: Artifact, options: LoadOptions) -> tuple[EngineName, str]:
    """The engine for `artifact`, and the reason for the startup line: a sentence without its stop.

    Raises:
        ArtifactError: the engine that is asked for cannot run this artifact.
        MissingExtra: it is not installed.
    """
    manifest = artifact.manifest
    if options.adapters and options.engine == "ctranslate2":
        raise ArtifactError(
            "--lora needs the torch engine: leave --engine out, or merge with pangu-convert import"
        )
    facts = Facts(
        name=str(artifact.path),
        format=manifest.format,
        quantization=manifest.quantization,
        known=manifest.architecture != UNKNOWN,
        torch=all(importlib.util.find_spec(name) for name in ("torch", "transformers")),
        packs=packs_int8(),
    )
    # Both frameworks are imported to ask them: only if the answer can matter.
    if facts.torch and facts.format == "ctranslate2" and options.engine == "auto" and options.device != "cpu":
        gpu, torch_gpu = find_gpu()
        facts = replace(facts, gpu=gpu, torch_gpu=torch_gpu)
    if facts.torch and facts.format == "ctranslate2" and options.engine == "auto" and not facts.gpu:
        facts = replace(facts, kernel=has_kernel())
    if options.adapters:
        return choose(facts, "torch")[0], "it alone takes LoRA adapters"
    return choose(facts, options.engine)


def choose(facts: Facts, asked: EngineChoice) -> tuple[EngineName, str]:
    """See `choose_engine`."""
    if facts.format != "ctranslate2":
        if asked == "ctranslate2":
            raise ArtifactError(
                f"{facts.name} is a {facts.format} artifact, which the ctranslate2 engine cannot run: "
                "leave --engine out, or make another artifact with pangu-convert ctranslate2"
            )
        return "torch", f"it alone runs the {facts.format} format"
    if asked == "ctranslate2":
        return "ctranslate2", "it was asked for"
    if not facts.known:
        if asked == "torch":
            raise ArtifactError(
                f"{facts.name} is of an unknown architecture, which the torch engine cannot run: leave --engine out, "
                "or adopt it again with --tokenizer"
            )
        return "ctranslate2", "it alone runs an unknown architecture"
    if not facts.quantization.startswith("int8"):
        if asked == "torch":
            raise ArtifactError(
                f"{facts.name} holds {facts.quantization}, and of CTranslate2's types the torch engine reads int8 "
                "alone: leave --engine out, or make another artifact with pangu-convert transformers"
            )
        return "ctranslate2", f"it alone reads CTranslate2's {facts.quantization}"
    if asked == "torch":
        if not facts.torch:
            raise MissingExtra("the torch engine needs torch and transformers", "serve-torch")
        return "torch", "it was asked for"
    if not facts.torch:
        return "ctranslate2", "torch is not installed"
    if facts.gpu and not facts.torch_gpu:
        return "ctranslate2", "torch is built without CUDA"
    if not facts.gpu and facts.packs:
        return "ctranslate2", "on this CPU it packs int8 matrices once, when it loads them"
    if not facts.gpu and not facts.kernel:
        return "ctranslate2", "the torch engine has no int8 kernel for this CPU"
    if facts.gpu:
        return "torch", "on a GPU it is faster than CTranslate2"
    return "torch", "on this CPU CTranslate2 would pack every int8 matrix again at each step"


def has_kernel() -> bool:
    """Whether numba and this processor have what `CpuLinear` needs."""
    try:
        from pangu_server.backends.torch.kernels.vectors import SUPPORTED
    except ImportError:
        return False
    return SUPPORTED


def find_gpu() -> tuple[bool, bool]:
    """Whether CTranslate2 or torch sees a GPU, and whether torch does."""
    import ctranslate2
    import torch

    torch_gpu = torch.cuda.is_available()
    return torch_gpu or ctranslate2.get_cuda_device_count() > 0, torch_gpu
