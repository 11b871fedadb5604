"""The torch backend: transformers' own `generate`, one prompt at a time for now.

Serves what a loader gives it: an unquantized model, or a GPTQ one (`backends.gptq`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends import BackendInfo, CacheUse, LoadOptions
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.serial import SerialSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model ready to generate, and how it computes."""

    model: Any
    compute_type: str
    kernel: str | None = None


Load = Callable[[Artifact, str], Loaded]  # the artifact, the device


def load_unquantized(artifact: Artifact, device: str) -> Loaded:
    """Load a `transformers` artifact on `device` in its own type."""
    model = AutoModelForCausalLM.from_pretrained(
        artifact.path, dtype="auto", local_files_only=True, use_safetensors=True
    )
    return Loaded(model=model.to(device).eval(), compute_type=str(model.dtype).removeprefix("torch."))


class TransformersBackend:
    """A causal language model in torch behind the `Backend` seam."""

    def __init__(
        self,
        artifact: Artifact,
        options: LoadOptions,
        *,
        name: str = "transformers",
        load: Load = load_unquantized,
    ) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(options.threads)
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            loaded = load(artifact, device)
        except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
            raise ArtifactError(f"{name} cannot load {artifact.path}: {error}") from error
        self._model = loaded.model
        # The checkpoint's own sampling defaults (Qwen's repetition penalty) must not leak into requests.
        self._model.generation_config = GenerationConfig()
        self.info = BackendInfo(
            name=name,
            device=device,
            compute_type=loaded.compute_type,
            kernel=loaded.kernel,
            weight_bytes=memory_bytes(self._model),
            threads=options.threads,
        )
        self._scheduler = SerialSchedule(self._generate)
        self.submit, self.cancel = self._scheduler.submit, self._scheduler.cancel

    def close(self) -> None:
        """See `Backend`."""
        self._scheduler.close()
        del self._model

    def cache_use(self) -> CacheUse:
        """See `Backend`."""
        return CacheUse(held_bytes=0, used_fraction=0.0)

    def _generate(self, ticket: Ticket) -> None:
        options = ticket.options
        input_ids = torch.tensor([ticket.tokens], device=self._model.device)
        sampling: dict[str, Any] = {"do_sample": False}
        if options.temperature > 0:
            # top_k=0 is "all tokens": generate would take 50
            sampling = {
                "do_sample": True,
                "temperature": options.temperature,
                "top_p": options.top_p,
                "top_k": 0,
            }
        self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=GenerationConfig(
                max_new_tokens=options.max_tokens,
                eos_token_id=list(options.end_token_ids),
                pad_token_id=options.end_token_ids[0],
                **sampling,
            ),
            stopping_criteria=StoppingCriteriaList([_TokenCallback(ticket.take)]),
        )


def memory_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers in memory; what several names share counts once."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class _TokenCallback(StoppingCriteria):  # type: ignore[misc]
    """Called by `generate` after each token with all of them."""

    def __init__(self, on_token: Callable[[int], bool]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        stop = self._on_token(int(input_ids[0, -1]))
        return torch.tensor([stop], device=input_ids.device)
