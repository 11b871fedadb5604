"""The CTranslate2 backend: batches of near-equal prompts, drawn by the library where it can, else by `Sampler`.

What the library cannot draw (a request's seed, penalties, bias, min_p) is drafted greedily and verified: while
`Sampler` chooses the same token as the library the batch goes on, and at another one the row is prefilled again.
"""

import contextlib
import dataclasses
import logging
import re
import secrets
from collections.abc import Sequence

import ctranslate2
import numpy as np

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_convert.ctranslate2_checks import require_sound
from pangu_convert.int8 import int8_caution
from pangu_convert.model_bin import ModelBin
from pangu_server.backends.ctranslate2.batch import Batch, Interrupted
from pangu_server.backends.ctranslate2.batches import BatchSchedule
from pangu_server.backends.ctranslate2.cublas import load_cublas
from pangu_server.backends.ctranslate2.drawing import can_cut, native_sampling
from pangu_server.backends.ctranslate2.faults import explained
from pangu_server.backends.ctranslate2.warming import DRAWN, NEW_TOKENS, PROMPT_TOKENS, warm
from pangu_server.backends.sampling import Logits
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import BackendInfo, CacheUse, Counts, Listener, LoadOptions, SamplingOptions

# Logits of a whole text: memory for them, and what one takes while the library computes it (measured: 7.4).
PIECE_BYTES, POSITION_BYTES = 200 << 20, 8


class CTranslate2Backend(BatchSchedule):
    """A `ctranslate2.Generator` behind the `Backend` seam."""

    def __init__(self, artifact: Artifact, options: LoadOptions) -> None:
        super().__init__(options.max_batch, options.on_batch)
        # Prompts go in as token strings, by the artifact's own vocabulary: its ids are the model's rows.
        model_bin, self._vocabulary = require_sound(artifact.path)
        # It warns of every compute type it replaces; we report the effective one instead.
        ctranslate2.set_log_level(logging.ERROR)
        if options.device != "cpu":
            load_cublas()
        try:
            # The second worker is for a batch that runs while another one pauses. They share the weights.
            self._generator = ctranslate2.Generator(
                str(artifact.path), device=options.device, intra_threads=options.threads, inter_threads=2
            )
        except (RuntimeError, ValueError, MemoryError) as error:
            raise ArtifactError(f"CTranslate2 cannot load {artifact.path}: {explained(error)}") from error
        self.info = BackendInfo(
            name="ctranslate2",
            engine="ctranslate2",
            device=self._generator.device,
            compute_type=self._generator.compute_type,
            weight_bytes=artifact.manifest.weight_bytes,
            threads=options.threads,
            max_batch=options.max_batch,
            vocabulary_size=len(self._vocabulary),
            caution=int8_caution(self._generator.compute_type, self._generator.device),
        )
        self.piece = max(1, PIECE_BYTES // (POSITION_BYTES * len(self._vocabulary)))
        value_bytes = 2 if self.info.compute_type.endswith("float16") else 4  # bfloat16 too
        self._token_bytes = cached_values(model_bin) * value_bytes
        self._most_tokens = options.max_batch * artifact.manifest.context_length
        tokens = min(PROMPT_TOKENS[self.info.device], artifact.manifest.context_length - NEW_TOKENS)
        try:
            warm(self, rows=options.max_batch, tokens=tokens, drawn=self._drawable(DRAWN))
        except (RuntimeError, MemoryError) as error:
            del self._generator  # see `close`
            raise ArtifactError(f"CTranslate2 cannot run {artifact.path}: {explained(error)}") from error
        self.start()

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Ticket:
        """See `Backend`."""
        return super().submit(prompt_ids, self._drawable(options), listener)

    def close(self) -> None:
        """See `Backend`."""
        super().close()
        del self._generator  # joins its threads: else the process aborts at its end, unloaded or not

    def cache_use(self) -> CacheUse:
        """See `Backend`."""
        tokens = sum(len(ticket.tokens) for ticket in list(self.running))
        return CacheUse(held_bytes=tokens * self._token_bytes, used_fraction=tokens / self._most_tokens)

    def counts(self) -> Counts:
        """See `Backend`: the library keeps no prefix, and a preempted batch is not counted."""
        return Counts()

    def run(self, batch: Batch) -> None:
        """See `BatchSchedule`."""
        # Top-k 0 is "all tokens"; the library's default 1 would make the temperature a no-op.
        temperature, top_p, top_k = native_sampling(batch.tickets[0]) or (1, 1, 1)

        def on_token(result: ctranslate2.GenerationStepResult) -> bool:
            return batch.take(result.batch_id, result.step, result.token_id, lambda: to_numpy(result.logits))

        with contextlib.suppress(Interrupted):
            self._generator.generate_batch(
                [[self._vocabulary[token_id] for token_id in ticket.tokens] for ticket in batch.tickets],
                max_length=batch.max_tokens,
                # The prompt is prefilled at once only when it is left out of the result.
                include_prompt_in_result=False,
                end_token=[],  # each row ends by its own options, in `take`
                sampling_temperature=temperature,
                sampling_topp=top_p,
                sampling_topk=min(top_k, len(self._vocabulary)),
                return_logits_vocab=batch.needs_logits,
                callback=on_token,
            )

    def _drawable(self, options: SamplingOptions) -> SamplingOptions:
        """With a seed of its own a request is drawn by `Sampler`: any seed, where the library cannot draw."""
        if can_cut(options, self.info.device, len(self._vocabulary)) or options.seed is not None:
            return options
        return dataclasses.replace(options, seed=secrets.randbits(64))

    def forward(self, token_ids: Sequence[int]) -> Logits:
        """See `BatchSchedule`."""
        view = self._generator.forward_batch([list(token_ids)])
        if view.device != "cpu" or view.dtype != ctranslate2.DataType.float32:
            view = view.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
        logits: Logits = np.asarray(view)[0]  # not a copy: they are large
        return logits


def to_numpy(view: ctranslate2.StorageView) -> Logits:
    """A copy in float32. In a step's callbacks only the first result has logits: those of all rows."""
    on_cpu = view.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
    return np.array(on_cpu)


def cached_values(model_bin: ModelBin) -> int:
    """Numbers that the attention cache holds a token, from the shapes in `model_bin`.

    A layer's first projection gives queries, keys and values; its second takes as many as there are queries.
    """
    values = 0
    for name in (*model_bin.variables, *model_bin.aliases):
        if match := re.search(r"/self_attention/linear_([01])/weight$", name):
            shape = model_bin.variable(name).shape
            values += shape[0] if match[1] == "0" else -shape[1]
    return values
