"""The CTranslate2 backend. One prompt a batch for now: its batches cannot be added to once they run."""

import json
import logging

import ctranslate2

from pangu_convert.artifact import Artifact, ArtifactError
from pangu_server.backends import BackendInfo, CacheUse, LoadOptions
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.serial import SerialSchedule


class CTranslate2Backend:
    """A `ctranslate2.Generator` behind the `Backend` seam."""

    def __init__(self, artifact: Artifact, options: LoadOptions) -> None:
        # It warns of every compute type it replaces; we report the effective one instead.
        ctranslate2.set_log_level(logging.ERROR)
        try:
            self._generator = ctranslate2.Generator(
                str(artifact.path), device=options.device, intra_threads=options.threads, inter_threads=1
            )
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"CTranslate2 cannot load {artifact.path}: {error}") from error
        # Prompts go in as token strings, by the artifact's own vocabulary: its ids are the model's rows.
        vocabulary = (artifact.path / "vocabulary.json").read_text(encoding="utf-8")
        self._vocabulary: list[str] = json.loads(vocabulary)
        self.info = BackendInfo(
            name="ctranslate2",
            device=self._generator.device,
            compute_type=self._generator.compute_type,
            weight_bytes=artifact.manifest.weight_bytes,
            threads=options.threads,
        )
        self._scheduler = SerialSchedule(self._generate)
        self.submit, self.cancel = self._scheduler.submit, self._scheduler.cancel

    def close(self) -> None:
        """See `Backend`."""
        self._scheduler.close()
        self._generator.unload_model()

    def cache_use(self) -> CacheUse:
        """See `Backend`."""
        return CacheUse(held_bytes=0, used_fraction=0.0)

    def _generate(self, ticket: Ticket) -> None:
        options, greedy = ticket.options, ticket.options.temperature == 0
        self._generator.generate_batch(
            [[self._vocabulary[token_id] for token_id in ticket.tokens]],
            max_length=options.max_tokens,
            # The prompt is prefilled at once only when it is left out of the result.
            include_prompt_in_result=False,
            end_token=list(options.end_token_ids),
            # 0 is "all tokens"; the default 1 would make the temperature a no-op.
            sampling_topk=1 if greedy else 0,
            sampling_topp=1 if greedy else options.top_p,
            sampling_temperature=1 if greedy else options.temperature,
            callback=lambda step: ticket.take(step.token_id),
        )
