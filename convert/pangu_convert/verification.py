"""`pangu-convert verify`: is the artifact whole, and how close is it to what it was made from?

Hashes first; then, with `--against CHECKPOINT`, the log-probabilities of both on a fixed code text: KL
divergence, how often both find the same token likeliest, perplexity, and where greedy text parts. KL and likeliest
tokens also of answers, where the model fills holes or has a chat template. The figures go into the manifest's scores,
which the server shows. Exit code 1 when one of the code is outside its bound.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from pangu_convert.answers import Asked, asked
from pangu_convert.artifact import Artifact, Manifest, read_artifact, write_scores
from pangu_convert.artifact import verify as verify_files
from pangu_convert.code_text import evaluation_windows
from pangu_convert.conversion import whole_checkpoint
from pangu_convert.fidelity import Fidelity, FidelityMeter, first_difference
from pangu_convert.int8 import int8_caution
from pangu_convert.scoring import Scorer, load_scorer, load_source
from pangu_training.stage.checkpoint import TOKENIZER, Checkpoint
from pangu_training.stage.command import usable_cpus
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash, library_versions
from pangu_training.stage.options import argument, option
from pangu_training.stage.vocabulary import read_tokenizer

GREEDY_PROMPTS, GREEDY_PROMPT_TOKENS, GREEDY_TOKENS = 4, 64, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a good conversion stays within."""

    max_kl: float
    min_same_top1: float
    max_perplexity_ratio: float


# By bits a weight, from the table in docs/results/conversion-fidelity.md with room for other models.
BOUNDS = {
    32: Bounds(max_kl=0.0001, min_same_top1=0.999, max_perplexity_ratio=1.001),
    16: Bounds(max_kl=0.005, min_same_top1=0.97, max_perplexity_ratio=1.01),
    8: Bounds(max_kl=0.08, min_same_top1=0.88, max_perplexity_ratio=1.06),
    4: Bounds(max_kl=0.35, min_same_top1=0.75, max_perplexity_ratio=1.30),
}


BOUNDS_GROUP = "bounds: defaults by bits a weight, in this order: " + "; ".join(
    f"{bits} bits: {bounds.max_kl}, {bounds.min_same_top1}, {bounds.max_perplexity_ratio}"
    for bits, bounds in BOUNDS.items()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What to compare, over how much text, and within which bounds."""

    artifact: Path = argument("the artifact folder")
    against: Path | None = option("the checkpoint it was made from", None, metavar="CHECKPOINT")
    windows: int = option("pieces of code text", 10)
    window_tokens: int = option("tokens a piece", 512)
    threads: int | None = option("compute threads (default: the CPUs we may use)", None)
    device: Literal["cpu", "cuda"] = option("what to compute both on", "cpu")
    max_kl: float | None = option("mean KL divergence, nats", None, group=BOUNDS_GROUP)
    min_same_top1: float | None = option("share of equal likeliest tokens", None, group=BOUNDS_GROUP)
    max_perplexity_ratio: float | None = option("perplexity over the source's", None, group=BOUNDS_GROUP)


def verify(options: VerifyOptions) -> int:
    """Verify; 0 when all is within its bound, 1 when not."""
    artifact = read_artifact(options.artifact)
    verify_files(artifact)
    print(f"{artifact.path}: all {len(artifact.manifest.files)} files match their sha256")
    if options.against is None:
        return 0
    checkpoint = whole_checkpoint(options.against)
    threads = options.threads or usable_cpus()
    record = measure(
        artifact,
        checkpoint,
        num_windows=options.windows,
        window_tokens=options.window_tokens,
        threads=threads,
        device=options.device,
    )
    bits = bits_of(artifact.manifest)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Bounds)}
    bounds = dataclasses.replace(BOUNDS[bits], **{k: v for k, v in given.items() if v is not None})
    failures = outside(record, bounds)
    print(*figures(record), conclusion(failures, bits), sep="\n")
    write_scores(artifact, {**artifact.manifest.scores, "fidelity": record})
    if artifact.manifest.format == "ctranslate2" and (
        caution := int8_caution(record["compute_type"], options.device)
    ):
        print(f"caution: {caution}")
    return 1 if failures else 0


def measure(
    artifact: Artifact,
    checkpoint: Checkpoint,
    *,
    num_windows: int,
    window_tokens: int,
    threads: int,
    device: str = "cpu",
) -> dict[str, Any]:
    """Compare the artifact with the checkpoint on the fixed code text.

    Raises:
        CheckpointError: the checkpoint is not the one that the artifact was made from, or is too short for
            the windows, or there is no GPU.
    """
    import torch

    torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("there is no GPU that torch can use: leave --device cuda out")
    sha256 = checkpoint_hash(checkpoint)
    if sha256 != artifact.manifest.source.sha256:
        raise CheckpointError(
            f"{checkpoint.path} is not the checkpoint that {artifact.path} was made from "
            f"({artifact.manifest.source.name}, sha256 {artifact.manifest.source.sha256[:12]}…): name that one"
        )
    if num_windows < 1 or not 1 < window_tokens < checkpoint.context_length:
        raise CheckpointError(
            f"--windows must be at least 1 and --window-tokens from 2 to {checkpoint.context_length - 1}"
        )
    tokenizer = read_tokenizer(artifact.path / TOKENIZER)
    text = evaluation_windows(tokenizer, num_windows=num_windows, window_tokens=window_tokens)
    forms = asked(artifact.path, tokenizer, num_windows=num_windows, window_tokens=window_tokens)
    source, quantized = load_source(checkpoint.path, device), load_scorer(artifact, threads, device)
    try:
        fidelity = compare(source, quantized, [Asked(window, 1) for window in text.windows])
        answers = {form: compare(source, quantized, texts) for form, texts in forms.items()}
        prompts = [window[:GREEDY_PROMPT_TOKENS] for window in text.windows[:GREEDY_PROMPTS]]
        differences = [
            first_difference(source.greedy(prompt, GREEDY_TOKENS), quantized.greedy(prompt, GREEDY_TOKENS))
            for prompt in prompts
        ]
    finally:
        source.close()
        quantized.close()
    return {
        **dataclasses.asdict(fidelity),
        "perplexity_ratio": fidelity.perplexity_ratio,
        "answers": {form: dataclasses.asdict(found) for form, found in answers.items()},
        "greedy_first_difference": differences,
        "greedy_tokens": GREEDY_TOKENS,
        "source_sha256": sha256,
        "text": {"source": text.source, "tokens": text.num_tokens, "sha256": text.sha256},
        "compute_type": quantized.compute_type,
        "device": device,
        "source_compute_type": source.compute_type,
        "library_versions": library_versions(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def compare(source: Scorer, quantized: Scorer, texts: Sequence[Asked]) -> Fidelity:
    """Run both models over the texts."""
    meter = FidelityMeter()
    for ids, first in tqdm(texts, desc="comparing", unit="text"):
        meter.add(ids, source.log_probabilities(ids), quantized.log_probabilities(ids), first=first)
    return meter.result()


def bits_of(manifest: Manifest) -> int:
    """Bits of a quantized weight: a key of `BOUNDS`."""
    if manifest.format == "gptq":
        return int((manifest.calibration or {})["bits"])
    if manifest.quantization.startswith("int8"):
        return 8
    stored = manifest.dtype if manifest.quantization == "none" else manifest.quantization
    return 32 if stored == "float32" else 16


def outside(record: Mapping[str, Any], bounds: Bounds) -> list[str]:
    """What is outside its bound, in words."""
    checks = [
        (record["kl_mean"] <= bounds.max_kl, f"mean KL {record['kl_mean']:.4f} > {bounds.max_kl}"),
        (
            record["same_top1"] >= bounds.min_same_top1,
            f"same top-1 {record['same_top1']:.3f} < {bounds.min_same_top1}",
        ),
        (
            record["perplexity_ratio"] <= bounds.max_perplexity_ratio,
            f"perplexity ratio {record['perplexity_ratio']:.4f} > {bounds.max_perplexity_ratio}",
        ),
    ]
    return [words for within, words in checks if not within]


def figures(record: Mapping[str, Any]) -> list[str]:
    """The figures of plain code in a line, and a line each of the forms of answers, which older records have not."""
    code = (
        f"mean KL {record['kl_mean']:.5f} (99th percentile {record['kl_p99']:.4f}), same top-1 "
        f"{record['same_top1']:.2%}, perplexity {record['perplexity']:.3f} against "
        f"{record['source_perplexity']:.3f} over {record['positions']} tokens; greedy texts part at "
        f"{', '.join('nowhere' if at is None else str(at) for at in record['greedy_first_difference'])} "
        f"of {record['greedy_tokens']} tokens"
    )
    answers = [
        f"{form}: mean KL {found['kl_mean']:.5f} (99th percentile {found['kl_p99']:.4f}), same top-1 "
        f"{found['same_top1']:.2%} over {found['positions']} tokens of answers"
        for form, found in record.get("answers", {}).items()
    ]
    return [code, *answers]


def conclusion(failures: list[str], bits: int) -> str:
    """Whether the figures of plain code are within their bounds, in a line."""
    if failures:
        return f"OUTSIDE the bounds for {bits} bits: {'; '.join(failures)}"
    return f"within the bounds for {bits} bits"
