"""How far CTranslate2's int8 is on this CPU from the same int8 with exact products.

    python docs/scripts/int8_products.py

For each architecture a tiny random model with a few outlier channels is computed three times: in float32, in int8 by
CTranslate2, and in torch with weights and activations rounded as CTranslate2 rounds them. Prints the mean KL divergence
of both from float32. On a CPU with exact int8 products the two are close.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pangu_convert.ctranslate2 import write_ctranslate2
from pangu_convert.fidelity import FidelityMeter
from pangu_convert.int8 import int8_caution
from pangu_convert.scoring import CTranslate2Scorer
from pangu_convert.smoothing import int8_rounded
from pangu_training.stage.checkpoint import read_checkpoint

VOCABULARY, CONTEXT, TOKENS = 4096, 128, 64
CONFIGS: dict[str, dict[str, float]] = {
    "gpt_bigcode": {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    },
}
SCALE = 0.2  # of the random weights: large enough for logits that differ


def checkpoint(kind: str, folder: Path) -> Path:
    """A random model; two channels behind each norm are 40 times the others, as trained models have them."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](
        vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, initializer_range=SCALE, **CONFIGS[kind]
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0").save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("ln_1.weight", "ln_2.weight", "layernorm.weight")):
            weight[[3, 17]] *= 40
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def exact_int8(folder: Path, ids: list[int]) -> torch.Tensor:
    """Log-probabilities with every matrix and its input rounded to int8, and products in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = int8_rounded(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (int8_rounded(inputs[0]),))
    with torch.inference_mode():
        logs: torch.Tensor = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logs


def divergence(ids: list[int], expected: torch.Tensor, found: torch.Tensor) -> float:
    """Mean KL, nats."""
    meter = FidelityMeter()
    meter.add(ids, expected, found)
    return meter.result().kl_mean


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(int8_caution("int8") or "this CPU has VNNI instructions, or is not an x86")
    ids = torch.randint(1, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
    for kind in CONFIGS:
        with tempfile.TemporaryDirectory() as name:
            source = checkpoint(kind, Path(name) / "checkpoint")
            logs = {}
            for quantization in ("float32", "int8"):
                folder = Path(name) / quantization
                folder.mkdir()
                write_ctranslate2(read_checkpoint(source), folder, quantization)
                logs[quantization] = CTranslate2Scorer(folder, threads=1).log_probabilities(ids).clone()
            library = divergence(ids, logs["float32"], logs["int8"])
            exact = divergence(ids, logs["float32"], exact_int8(source, ids))
        print(f"{kind}: mean KL {library:.2g} by CTranslate2, {exact:.2g} with exact products")


if __name__ == "__main__":
    main()
