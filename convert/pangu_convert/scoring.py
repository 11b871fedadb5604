"""A checkpoint or an artifact as a function from token ids to log-probabilities, without a server.

GPTQ weights are unpacked into float32 first: what is scored is the quantization, not a kernel's rounding. That
takes the memory of the unquantized model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pangu_convert.artifact import Artifact, ArtifactError

if TYPE_CHECKING:
    import torch


class Scorer(Protocol):
    """A model that scores a text and continues it greedily."""

    compute_type: str

    def log_probabilities(self, ids: Sequence[int]) -> "torch.Tensor":
        """Float32, shape (T, vocabulary): row t is the distribution of the token after `ids[: t + 1]`."""

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """The `num_tokens` tokens that follow `ids` by the highest probability, whatever they are."""

    def close(self) -> None:
        """Release the model."""


class TorchScorer:
    """A transformers model in float32."""

    compute_type = "float32"

    def __init__(self, model: Any) -> None:
        self._model = model

    def log_probabilities(self, ids: Sequence[int]) -> "torch.Tensor":
        """See `Scorer`."""
        import torch

        with torch.inference_mode():
            prompt = torch.tensor([list(ids)], device=self._model.device)
            logits: torch.Tensor = self._model(prompt).logits[0]
            return logits.float().log_softmax(-1).cpu()

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Scorer`."""
        import torch
        from transformers import GenerationConfig

        self._model.generation_config = GenerationConfig()
        prompt = torch.tensor([list(ids)], device=self._model.device)
        config = GenerationConfig(
            max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        with torch.inference_mode():
            whole = self._model.generate(
                prompt, attention_mask=torch.ones_like(prompt), generation_config=config
            )
        tokens: list[int] = whole[0, len(ids) :].tolist()
        return tokens

    def close(self) -> None:
        """See `Scorer`."""
        del self._model


class CTranslate2Scorer:
    """A CTranslate2 model in the type that it really computes in; by default the one it is stored in."""

    def __init__(
        self, folder: Path, threads: int, compute_type: str = "default", device: str = "cpu"
    ) -> None:
        import logging

        import ctranslate2

        from pangu_convert.ctranslate2_checks import require_sound

        ctranslate2.set_log_level(logging.ERROR)
        _, self._vocabulary = require_sound(folder)
        try:
            self._generator = ctranslate2.Generator(
                str(folder),
                device=device,
                compute_type=compute_type,
                intra_threads=threads,
                inter_threads=1,
            )
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"CTranslate2 cannot load {folder}: {error}") from error
        self.compute_type = str(self._generator.compute_type)

    def log_probabilities(self, ids: Sequence[int]) -> "torch.Tensor":
        """See `Scorer`."""
        import ctranslate2
        import numpy as np
        import torch

        view = self._generator.forward_batch([list(ids)], return_log_probs=True)
        # float16 and bfloat16 results have no NumPy type of their own
        return torch.from_numpy(np.array(view.to(ctranslate2.DataType.float32))[0])

    def greedy(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        """See `Scorer`."""
        [result] = self._generator.generate_batch(
            [[self._vocabulary[token_id] for token_id in ids]],
            max_length=num_tokens,
            min_length=num_tokens,
            include_prompt_in_result=False,
            sampling_topk=1,
        )
        tokens: list[int] = result.sequences_ids[0]
        return tokens

    def close(self) -> None:
        """See `Scorer`."""
        self._generator.unload_model()


def load_scorer(artifact: Artifact, threads: int, device: str = "cpu") -> Scorer:
    """The scorer of an artifact; `ArtifactError` when it does not load."""
    if artifact.manifest.format == "ctranslate2":
        return CTranslate2Scorer(artifact.path, threads, device=device)
    if artifact.manifest.format == "gptq":
        import torch

        from pangu_convert.gptq_weights import load_dequantized

        return TorchScorer(load_dequantized(artifact, torch.float32).to(device))
    return load_source(artifact.path, device)


def load_source(folder: Path, device: str = "cpu") -> Scorer:
    """The scorer of an unquantized Hugging Face folder, in float32: exact for weights of 16 bits."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    return TorchScorer(model.to(device).eval())
