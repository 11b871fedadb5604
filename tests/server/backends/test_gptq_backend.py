"""The GPTQ backend: the same greedy tokens as the quantizer's own library, and it says what runs.

gptqmodel patches other libraries when it is imported, so its import stays inside the tests that need it.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.collector import greedy
from support.commands import GPTQ_4, GPTQ_8, SMALL, Artifacts
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import ArtifactError, read_artifact
from pangu_convert.gptq_weights import PACKED_TENSORS, dequantize
from pangu_server.backends import load_backend
from pangu_server.backends.seam import LoadOptions

pytestmark = [
    # gptqmodel 7.6 makes a temporary folder for every config and leaves it to the garbage collector.
    pytest.mark.filterwarnings(
        "ignore:Implicitly cleaning up <TemporaryDirectory '[^']*gptqmodel:ResourceWarning"
    ),
]
REAL = ("smollm2", "gptq", "--bits", "4", "--group-size", "64", *SMALL)  # as test_end_to_end serves it
CPU = LoadOptions(device="cpu", threads=1)
PROMPTS = ([589, 1459, 81, 7656, 81, 5860, 2262], [1, 2, 3])
NUM_TOKENS = 16


def library_greedy(model: torch.nn.Module, prompt_ids: list[int]) -> list[int]:
    ids = torch.tensor([prompt_ids])
    whole = model.generate(
        inputs=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        repetition_penalty=1.0,  # not the checkpoint's, which must not leak into requests
        eos_token_id=0,
        pad_token_id=0,
    )
    return [int(token_id) for token_id in whole[0, len(prompt_ids) :]]


@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        (GPTQ_4, torch.float32),
        (("tiny_qwen2", "gptq", *SMALL), torch.float32),
        pytest.param(REAL, torch.bfloat16, marks=pytest.mark.real_model),
    ],
)
def test_four_bit_tokens_are_those_of_gptqmodel(
    artifacts: Artifacts, source: tuple[str, ...], dtype: torch.dtype
) -> None:
    path = artifacts(*source)
    backend = load_backend(read_artifact(path), CPU)
    tokens = [greedy(backend, prompt, NUM_TOKENS, [0]) for prompt in PROMPTS]
    backend.close()
    from gptqmodel import GPTQModel

    model = GPTQModel.load(str(path), device="cpu", dtype=dtype)
    assert tokens == [library_greedy(model, prompt) for prompt in PROMPTS]


def test_what_runs_is_named_and_its_memory_counted(artifacts: Artifacts, tiny_bigcode: Path) -> None:
    backend = load_backend(read_artifact(artifacts(*GPTQ_4)), CPU)
    info = backend.info
    backend.close()
    unquantized = AutoModelForCausalLM.from_pretrained(tiny_bigcode).get_memory_footprint(
        return_buffers=False
    )
    assert (info.name, info.compute_type) == ("gptqmodel", "int4 g128 with bfloat16 inputs + float32")
    assert info.kernel
    assert info.kernel.endswith("Linear")
    # Most of it is the tied embedding, which is on the disk twice and in memory once.
    assert unquantized / 2 < info.weight_bytes < unquantized


def test_eight_bits_run_de_quantized_on_a_cpu(artifacts: Artifacts) -> None:
    path = artifacts(*GPTQ_8)
    backend = load_backend(read_artifact(path), CPU)
    tokens = greedy(backend, PROMPTS[0], NUM_TOKENS, [0])
    info = backend.info
    backend.close()
    assert (info.compute_type, info.kernel) == ("float32 (from int8 g64)", "dequantized")
    assert len(tokens) == NUM_TOKENS or tokens[-1] == 0


@pytest.mark.parametrize(("source", "bits"), [(GPTQ_4, 4), (GPTQ_8, 8)])
def test_our_de_quantization_is_that_of_gptqmodel(
    artifacts: Artifacts, source: tuple[str, ...], bits: int
) -> None:
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    path = artifacts(*source)
    tensors = load_file(path / "model.safetensors")
    model = GPTQModel.load(str(path), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH).model
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, TorchLinear)}
    assert layers
    for name, layer in layers.items():
        own = dequantize(*(tensors[f"{name}.{part}"] for part in PACKED_TENSORS), bits=bits)
        theirs = TorchLinear.dequantize_weight(layer).t().float()  # the class's: an instance's is compiled
        assert torch.allclose(own, theirs, atol=2e-3)


def test_eight_bits_are_close_to_the_checkpoint(artifacts: Artifacts, tiny_qwen2: Path) -> None:
    path = artifacts(*GPTQ_8)
    quantized, original = load_file(path / "model.safetensors"), load_file(tiny_qwen2 / "model.safetensors")
    for name in [name.removesuffix(".qweight") for name in quantized if name.endswith(".qweight")]:
        matrix = dequantize(*(quantized[f"{name}.{part}"] for part in PACKED_TENSORS), bits=8)
        error = (matrix - original[f"{name}.weight"]).norm() / original[f"{name}.weight"].norm()
        assert error < 0.02


def test_a_damaged_artifact_is_refused(artifacts: Artifacts, tmp_path: Path) -> None:
    source = artifacts(*GPTQ_4)
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    size_bytes = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "model.safetensors").write_bytes(b"\0" * size_bytes)
    with pytest.raises(ArtifactError, match="gptqmodel cannot load"):
        load_backend(read_artifact(tmp_path), CPU)
