"""The torch engine: any artifact, on a CPU or a GPU, behind the `Backend` seam."""

import gc
import time
from typing import Any

import psutil
import torch
from transformers.utils import logging

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.seam import BackendInfo, LoadOptions
from pangu_server.backends.torch.cache import PAGE_TOKENS, CpuCache, Heads, PagedCache, page_bytes
from pangu_server.backends.torch.choosing import Choosing
from pangu_server.backends.torch.continuous import PREFILL_TOKENS, ContinuousSchedule
from pangu_server.backends.torch.drafting import Costs
from pangu_server.backends.torch.loading import Load, load_model, memory_bytes
from pangu_server.backends.torch.runner import Runner, heads_of

CPU_SHARE = 8  # of the memory that is free, this part may hold keys and values
GPU_RESERVE_BYTES = 1 << 30  # that stays free beside the cache: what a forward needs for itself


class TorchBackend(ContinuousSchedule):
    """A causal language model of transformers with our cache, kernels and schedule."""

    def __init__(
        self, artifact: Artifact, options: LoadOptions, *, name: str = "torch", load: Load = load_model
    ) -> None:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(options.threads)
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load(artifact, device)
        model = loaded.model
        gc.collect()
        runner = Runner(model, _cache(model, artifact, options))
        vocabulary = model.config.get_text_config().vocab_size
        costs = Costs()
        super().__init__(
            runner,
            Choosing(vocabulary, options.max_batch, runner.device),
            max_batch=options.max_batch,
            on_batch=options.on_batch,
            draft=options.draft,
            costs=costs,
        )
        self.info = BackendInfo(
            name=name,
            engine="torch",
            device=device,
            compute_type=loaded.compute_type,
            kernel=loaded.kernel,
            weight_bytes=memory_bytes(model) + loaded.quantized_bytes,
            threads=options.threads,
            max_batch=options.max_batch,
        )
        self.start()


def _cache(model: Any, artifact: Artifact, options: LoadOptions) -> PagedCache:
    """The pages that the memory allows; `ArtifactError` if not even one request of full context fits."""
    layers, dtype = heads_of(model), model.dtype
    context = artifact.manifest.context_length
    row_pages = -(-context // PAGE_TOKENS) + 1
    size = page_bytes(layers, dtype)
    given = options.cache_bytes
    if given is None:
        most = options.max_batch * row_pages  # more would only keep what nobody asks for
        free = psutil.virtual_memory().available // CPU_SHARE
        pages = max(row_pages, min(most, free // size))
    else:
        pages = given // size
    if pages < row_pages:
        raise ArtifactError(
            f"a cache of {given} bytes cannot hold one request of {context} tokens: give --cache-memory at least "
            f"{row_pages * size}"
        )
    return CpuCache(layers, pages, options.max_batch, row_pages, dtype, model.device, parallel=options.threads > 1)
