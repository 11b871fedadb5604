"""The torch backend for unquantized artifacts: transformers' own `generate`, one prompt at a time for now."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends import BackendInfo, Listener, LoadOptions, SamplingOptions
from pangu_server.backends.serial import SerialScheduler, Ticket


class TransformersBackend:
    """A transformers causal language model behind the `Backend` seam."""

    def __init__(self, artifact: Artifact, options: LoadOptions) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(options.threads)
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                artifact.path, dtype="auto", local_files_only=True, use_safetensors=True
            )
            self._model = self._model.to(device).eval()
        except (SafetensorError, RuntimeError, ValueError, OSError) as error:
            raise ArtifactError(f"transformers cannot load {artifact.path}: {error}") from error
        # The checkpoint's own sampling defaults (Qwen's repetition penalty) must not leak into requests.
        self._model.generation_config = GenerationConfig()
        self.info = BackendInfo(
            name="transformers",
            device=device,
            compute_type=str(self._model.dtype).removeprefix("torch."),
            weight_bytes=self._model.get_memory_footprint(return_buffers=False),
            threads=options.threads,
        )
        self._scheduler = SerialScheduler(self._generate)

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Ticket:
        """See `Backend`."""
        return self._scheduler.submit(prompt_ids, options, listener)

    def cancel(self, ticket: Ticket) -> None:
        """See `Backend`."""
        self._scheduler.cancel(ticket)

    def close(self) -> None:
        """See `Backend`."""
        self._scheduler.close()
        del self._model

    def _generate(
        self, prompt_ids: Sequence[int], options: SamplingOptions, on_token: Callable[[int], bool]
    ) -> None:
        input_ids = torch.tensor([list(prompt_ids)], device=self._model.device)
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
            stopping_criteria=StoppingCriteriaList([_TokenCallback(on_token)]),
        )


class _TokenCallback(StoppingCriteria):  # type: ignore[misc]
    """Called by `generate` after each token with all of them."""

    def __init__(self, on_token: Callable[[int], bool]) -> None:
        self._on_token = on_token

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        stop = self._on_token(int(input_ids[0, -1]))
        return torch.tensor([stop], device=input_ids.device)
