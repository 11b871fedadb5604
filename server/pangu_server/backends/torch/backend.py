"""The torch engine: any artifact, on a CPU or a GPU, behind the `Backend` seam."""

import gc
import logging
import time
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import BackendInfo, LoadOptions, SamplingOptions
from pangu_server.backends.torch.cache import PAGE_TOKENS, CpuCache, PagedCache, page_bytes
from pangu_server.backends.torch.choosing import Choosing, choosing_for
from pangu_server.backends.torch.continuous import ContinuousSchedule
from pangu_server.backends.torch.drafting import Costs
from pangu_server.backends.torch.loading import Load, load_model, memory_bytes
from pangu_server.backends.torch.lora import Adapters
from pangu_server.backends.torch.prefill import PREFILL_TOKENS
from pangu_server.backends.torch.rows import Part, Row
from pangu_server.backends.torch.runner import Runner, heads_of
from pangu_training.stage.command import free_memory_bytes

logger = logging.getLogger(__name__)

CPU_SHARE = 8  # of the memory that is free, this part may hold keys and values
GPU_RESERVE_BYTES = 1 << 30  # that the cache leaves free: what a forward needs for itself


class TorchBackend(ContinuousSchedule):
    """A causal language model of transformers with our cache, kernels and schedule."""

    def __init__(
        self, artifact: Artifact, options: LoadOptions, *, name: str = "torch", load: Load = load_model
    ) -> None:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        torch.set_num_threads(options.threads)
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load(artifact, device)
        model = loaded.model
        adapters = Adapters(model, artifact, options.adapters)
        gc.collect()
        # Before the cache, which takes the rest of a GPU's memory.
        vocabulary_size = model.config.get_text_config().vocab_size
        choosing = choosing_for(vocabulary_size, options.max_batch, model.device)
        runner = Runner(model, _cache(model, artifact, options), adapters.select)
        costs = Costs()
        super().__init__(
            runner,
            choosing,
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
            weight_bytes=memory_bytes(model) + loaded.quantized_bytes + adapters.nbytes,
            threads=options.threads,
            max_batch=options.max_batch,
            vocabulary_size=vocabulary_size,
        )
        _warm(runner, choosing, costs, options)
        self.start()


def _cache(model: Any, artifact: Artifact, options: LoadOptions) -> PagedCache:
    """The pages that the memory allows; `ArtifactError` if not even one request of full context fits."""
    layers, dtype = heads_of(model), model.dtype
    context = artifact.manifest.context_length
    row_pages = -(-context // PAGE_TOKENS) + 1
    size = page_bytes(layers, dtype)
    cuda = model.device.type == "cuda"
    given = options.cache_bytes
    if given is not None:
        pages = given // size
    elif cuda:
        free = torch.cuda.mem_get_info()[0]
        pages = max(free - max(GPU_RESERVE_BYTES, free // 10), 0) // size
    else:
        most = options.max_batch * row_pages  # more would only keep what nobody asks for
        pages = max(row_pages, min(most, free_memory_bytes() // CPU_SHARE // size))
    if pages < row_pages:
        held = f"{pages * size} bytes" if given is None else "--cache-memory"
        raise ArtifactError(
            f"{held} of attention cache cannot hold one request of {context} tokens: {row_pages * size} bytes are "
            "needed; raise --cache-memory, or take a smaller model or a larger device"
        )
    if cuda:
        from pangu_server.backends.torch.cuda_cache import CudaCache

        return CudaCache(layers, pages, options.max_batch, row_pages, dtype, model.device)
    return CpuCache(layers, pages, options.max_batch, row_pages, dtype, model.device, threads=options.threads)


def _warm(runner: Runner, choosing: Choosing, costs: Costs, options: LoadOptions) -> None:
    """One prefill, a step of each size, sampled ones too: what a first request would wait for, and what steps cost.

    Raises:
        ArtifactError: it does not work here; says what to do.
    """
    try:
        with torch.inference_mode():
            if runner.device.type == "cuda" and options.graphs:
                try:
                    runner.capture(options.max_batch)
                except RuntimeError as error:
                    logger.warning("no CUDA graphs: %s", " ".join(str(error).split())[:200])
            sampled = SamplingOptions(max_tokens=1, temperature=0.8, top_p=0.95)
            for slot in range(options.max_batch):
                choosing.join(slot, [0], [], sampled)
            for size in sorted({*(2**n for n in range(8) if 2**n < options.max_batch), options.max_batch}):
                slots = list(range(size))
                choosing.choose(_forward(runner, [1] * size), slots, [0] * size).tolist()
                started = time.perf_counter()
                _forward(runner, [1] * size).argmax(-1).tolist()
                costs.learn(size, time.perf_counter() - started)
            for slot in range(options.max_batch):
                choosing.leave(slot)
            # Libraries load a kernel at its first use, and choose it by the size.
            most = min(PREFILL_TOKENS[runner.device.type], runner.cache.row_tokens)
            for size in [most] if runner.device.type == "cpu" else [most >> n for n in range(6)]:
                _forward(runner, [size]).argmax(-1).tolist()
    except torch.OutOfMemoryError as error:
        raise ArtifactError(
            f"the GPU's memory is too small for the model and its cache: lower --cache-memory or --max-batch ({error})"
        ) from error
    except (RuntimeError, ArithmeticError, ValueError, TypeError, LookupError) as error:
        # A config may hold a number that no model can be computed with.
        raise ArtifactError(f"the model does not run on {runner.device}: {error}") from error


def _forward(runner: Runner, counts: list[int]) -> torch.Tensor:
    """The logits behind rows with these numbers of new tokens; nobody has a page yet, so they may write anywhere."""
    parts = []
    for slot, count in enumerate(counts):
        ticket = Ticket([0] * count, SamplingOptions(max_tokens=1), None)  # type: ignore[arg-type]
        parts.append(Part.of(Row(ticket, slot, 0), count))
    return runner.forward(parts)
