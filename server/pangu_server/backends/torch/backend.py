"""The torch backend: transformers' models, an unquantized one or a GPTQ one (`gptq`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.seam import BackendInfo, LoadOptions
from pangu_server.backends.torch.continuous import ContinuousSchedule


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


class TorchBackend(ContinuousSchedule):
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
        super().__init__(
            loaded.model,
            max_batch=options.max_batch,
            context_length=artifact.manifest.context_length,
            on_batch=options.on_batch,
        )
        self.info = BackendInfo(
            name=name,
            engine="torch",
            device=device,
            compute_type=loaded.compute_type,
            kernel=loaded.kernel,
            weight_bytes=memory_bytes(loaded.model),
            threads=options.threads,
            max_batch=options.max_batch,
        )
        self.start()


def memory_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers in memory; what several names share counts once."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
