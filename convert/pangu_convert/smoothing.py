"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): a model whose activations lose less when they become int8.

CTranslate2's int8 rounds the inputs of a matrix too, with one scale a token. A few input channels are much larger than
the others, which are left with a few of the 255 levels. What stands before the matrix can put out each channel divided
by a factor when the matrix' column is multiplied by it: the model stays the same, and the rounding errors shrink.
That goes where nothing nonlinear lies between: behind norms, and behind `up_proj`, the factor of a gated MLP.
GPTBigCode's activation function keeps it from the second matrix of its MLP.

What differs from the paper (docs/results/quantization.md has what it is worth):

- a channel's size is its root mean square; a maximum is that of one rare token;
- the first token of a text is unlike all others: its inputs are hundreds of times larger in a few channels ("massive
  activations", Sun et al. 2024, arXiv 2402.17762). All the others attend to it, so before attention it counts as much
  as they do together; before the MLP it does not count;
- the exponent is chosen for each matrix, by the error of its outputs on calibration text, as AWQ does (Lin et al. 2023,
  arXiv 2306.00978); where no exponent helps, nothing is smoothed;
- factors are powers of two, so that multiplying by them rounds nothing.

Holds one block of the model in memory, in float32.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pangu_convert.checkpoint_variable import Factors, WeightSource
from pangu_training.stage.architecture import compute
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.finite import all_finite

EXPONENTS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TRIED_TOKENS, TRIED_OUTPUTS = 512, 1024  # of a matrix, to choose an exponent: the error is a mean over both


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """Modules of a block that put out a channel each, and the matrices that take these channels in."""

    before: str
    matrices: tuple[str, ...]
    attention: bool = False


GATED = (
    Site("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), attention=True),
    Site("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Site("mlp.up_proj", ("mlp.down_proj",)),
)
# A norm of Gemma multiplies by 1 + its weight, which is why it is left alone.
SITES = {
    "GPTBigCodeForCausalLM": (Site("ln_1", ("attn.c_attn",), attention=True), Site("ln_2", ("mlp.c_fc",))),
    "GemmaForCausalLM": GATED[2:],
    "LlamaForCausalLM": GATED,
    "MistralForCausalLM": GATED,
    "PhiForCausalLM": (Site("input_layernorm", (*GATED[0].matrices, "mlp.fc1"), attention=True),),
    "Qwen2ForCausalLM": GATED,
    "Qwen3ForCausalLM": GATED,
    "SeedOssForCausalLM": GATED,
    "StableLmForCausalLM": GATED,
    "Starcoder2ForCausalLM": (GATED[0], Site("post_attention_layernorm", ("mlp.c_fc",))),
}


def smoothed(
    model: Any, tensors: Mapping[str, WeightSource], rows: Sequence[Sequence[int]]
) -> dict[str, WeightSource]:
    """`tensors`, the parameters of `model` by name, with the factors that smooth it on the calibration `rows`.

    Args:
        model: a transformers model on the `meta` device, which it is on again afterwards.
        rows: token ids, all of one length.

    Raises:
        CheckpointError: the model computes NaN or infinity.
    """
    found: dict[str, Factors] = {}

    def multiply(name: str, **factors: Tensor) -> None:
        if name in tensors:
            found[name] = dataclasses.replace(found.get(name, Factors()), **factors)

    def smooth(block: Any, path: str, site: Site, inputs: Tensor) -> None:
        weight = torch.cat([block.get_submodule(matrix).weight for matrix in site.matrices])
        first, others = inputs[:, 0], inputs[:, 1:].flatten(0, 1)
        factors = smoothing_factors((first, others) if site.attention else (others,), weight)
        if factors is None:
            return
        for parameter in ("weight", "bias"):
            multiply(f"{path}.{site.before}.{parameter}", rows=1 / factors)
        for matrix in site.matrices:
            multiply(f"{path}.{matrix}.weight", columns=factors)

    run_by_block(model, tensors, torch.tensor(rows), SITES[type(model).__name__], smooth)
    return {
        name: dataclasses.replace(tensor, factors=found[name]) if name in found else tensor
        for name, tensor in tensors.items()
    }


def smoothing_factors(groups: Sequence[Tensor], weight: Tensor) -> Tensor | None:
    """What to divide each input channel by, and multiply each column by; None when nothing lessens the error.

    Args:
        groups: [N, C] each, what the matrix is given for N tokens. One group counts as much as another.
        weight: [O, C].

    Returns:
        [C], powers of two.
    """
    sizes = torch.stack([group.square().mean(0) for group in groups]).mean(0).sqrt().clamp(min=1e-5)
    columns = weight.abs().amax(0).clamp(min=1e-5)
    groups = [group[:: -(-len(group) // TRIED_TOKENS)] for group in groups]
    weight = weight[:: -(-len(weight) // TRIED_OUTPUTS)]
    outputs = [group @ weight.T for group in groups]

    def error(factors: Tensor) -> float:
        matrix = int8_rounded(weight * factors).T
        rounded = [int8_rounded(group / factors) @ matrix for group in groups]
        return sum(float((got - exact).square().mean()) for got, exact in zip(rounded, outputs, strict=True))

    candidates = [sizes**exponent / columns ** (1 - exponent) for exponent in EXPONENTS]
    candidates = [_powers_of_two(factors / factors.log().mean().exp()) for factors in candidates]
    unchanged = torch.ones_like(sizes)
    best = min((unchanged, *candidates), key=error)  # the first of equals
    return None if best is unchanged else best


def int8_rounded(rows: Tensor) -> Tensor:
    """As CTranslate2 rounds weights and activations: symmetric, each row by its own largest value."""
    scales = rows.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (rows / scales).round() * scales


def run_by_block(
    model: Any,
    tensors: Mapping[str, WeightSource],
    ids: Tensor,
    sites: Sequence[Site],
    on_inputs: Callable[[Any, str, Site, Tensor], None],
) -> None:
    """Run `model` on `ids` [rows, tokens], with one block in memory at a time.

    `on_inputs` is called with each block, its path, each of its `sites` and what the site's matrices are given:
    [rows, tokens, channels].
    """
    body = model.base_model
    prefix = model.base_model_prefix
    list_name = next(name for name, child in body.named_children() if isinstance(child, torch.nn.ModuleList))
    blocks = body.get_submodule(list_name)
    bar = tqdm(total=len(blocks), desc="smoothing", unit="block")

    def load(module: Any, path: str) -> None:
        names = [name for name, _ in module.named_parameters()]
        weights = {name: tensors[f"{path}.{name}"] for name in names}
        module.load_state_dict(
            {name: tensor.rows(0, tensor.shape[0]).float() for name, tensor in weights.items()}, assign=True
        )

    def watch(block: Any, path: str) -> None:
        def unload(module: Any, _inputs: object, outputs: Tensor) -> None:
            if not all_finite(outputs):
                raise CheckpointError(f"{path} puts out NaN or infinity: the model is broken")
            module.to("meta")
            bar.update()

        hooks.append(block.register_forward_pre_hook(lambda module, _: load(module, path)))
        hooks.append(block.register_forward_hook(unload))
        for site in sites:
            matrix = block.get_submodule(site.matrices[0])
            hooks.append(
                matrix.register_forward_pre_hook(
                    lambda _, inputs, site=site: on_inputs(block, path, site, inputs[0])
                )
            )

    hooks: list[Any] = []
    others = [(child, f"{prefix}.{name}") for name, child in body.named_children() if name != list_name]
    model.eval()
    try:
        for number, block in enumerate(blocks):
            watch(block, f"{prefix}.{list_name}.{number}")
        computed = [name for name, _ in model.named_non_persistent_buffers() if f".{list_name}." not in name]
        compute(model, computed, "cpu")
        for child, path in others:
            load(child, path)
        with torch.inference_mode(), bar:
            body(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for child, _ in others:
            child.to("meta")


def _powers_of_two(factors: Tensor) -> Tensor:
    return torch.exp2(factors.log2().round())
