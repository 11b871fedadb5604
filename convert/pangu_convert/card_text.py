"""The words of a model card: metadata that the hub reads, then what a user has to know first."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from pangu_convert.adapter_import import LOSSY
from pangu_convert.artifact import Artifact, Manifest
from pangu_convert.card_scores import Score, Verdict
from pangu_convert.origin import Origin, origin_of
from pangu_convert.verification import BOUNDS, bits_of, conclusion, figures, outside

UNKNOWN = "unknown"
# What the hub knows by these names; any other licence is "other" to it, with a name of its own.
LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
    "gpl-2.0",
    "gpl-3.0",
    "lgpl-3.0",
    "agpl-3.0",
    "mpl-2.0",
    "openrail",
    "bigscience-openrail-m",
    "bigcode-openrail-m",
    "llama2",
    "llama3",
    "llama3.1",
    "llama3.2",
    "gemma",
    "unknown",
    "other",
}
LIBRARIES = {"ctranslate2": "ctranslate2", "gptq": "transformers", "transformers": "transformers"}
FORMATS = {
    "ctranslate2": "CTranslate2's",
    "gptq": "GPTQ in AutoGPTQ's layout",
    "transformers": "Hugging Face's, not quantized here",
}
PROJECT = "pangu-coder2"


def card_text(
    artifact: Artifact,
    scores: Sequence[Score],
    verdicts: Sequence[Verdict],
    *,
    licence: str | None,
    repository: str | None,
) -> str:
    """The whole card, in Markdown."""
    manifest, origin = artifact.manifest, origin_of(artifact.manifest.source.provenance)
    licence = licence or origin.licence or UNKNOWN
    sections = [
        _metadata(manifest, origin, licence),
        f"# {_plain(manifest.name)}\n\n{_summary(manifest)}",
        _section("Before you use it", _cautions(manifest, origin, scores, licence)),
        _section("What it is", [_table(_facts(manifest))]),
        _section("Where it comes from", _origin(manifest, origin, licence)),
        _section("What was measured", _measured(manifest, origin, scores, verdicts)),
        _section("How to serve it", [_serving(artifact, repository)]),
    ]
    return "\n".join(sections)


def _metadata(manifest: Manifest, origin: Origin, licence: str) -> str:
    """YAML, of which JSON is a part: texts are quoted as JSON's."""
    known = licence.lower() in LICENCES
    fields: dict[str, Any] = {"license": licence.lower() if known else "other"}
    if not known:
        fields["license_name"] = licence
    if origin.hub_id:
        fields["base_model"] = origin.hub_id
        if manifest.is_quantized or origin.is_changed:
            fields["base_model_relation"] = "quantized" if manifest.is_quantized else "finetune"
    fields |= {
        "library_name": LIBRARIES.get(manifest.format, manifest.format),
        "pipeline_tag": "text-generation",
        "quantization": manifest.quantization if manifest.is_quantized else "none",
        "tags": ["code", PROJECT, manifest.format]
        + ([f"{bits_of(manifest)}-bit"] if manifest.is_quantized else []),
    }
    return "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()) + "---\n"


def _summary(manifest: Manifest) -> str:
    how = (
        f"quantized to {bits_of(manifest)} bits ({manifest.quantization})"
        if manifest.is_quantized
        else f"its weights in {_stored(manifest)}, not quantized"
    )
    return (
        f"A code model made of {_plain(manifest.source.name)}, {how}, in a format that `pangu-serve` of {PROJECT} "
        "loads.\n"
    )


def _cautions(manifest: Manifest, origin: Origin, scores: Sequence[Score], licence: str) -> Iterator[str]:
    """What a user may not expect, an item each."""
    for note in origin.notes:
        yield f"- {_sentence(note)}"
    if origin.quantized_source:
        kind = _plain(origin.quantized_source)
        again = (
            "the weights were quantized a second time, and lost something twice"
            if manifest.is_quantized
            else "what that lost is still lost, though these are 16 or 32 bits"
        )
        yield f"- Its source was quantized already ({kind}): {again}."
    if origin.base_unchecked:
        yield "- An adapter was merged into a base of which nobody could check that it is the one it was trained on."
    if origin.update_kept is not None and origin.update_kept < LOSSY:
        yield f"- Rounding left {origin.update_kept:.0%} of what its adapter changes."
    if licence == UNKNOWN:
        yield "- Its licence is unknown: ask the authors of its source before you use it or pass it on."
    if not scores:
        yield "- What it solves is unknown: no benchmark score is recorded."
    for warning in dict.fromkeys(warning for score in scores for warning in score.warnings):
        yield f"- Of a score: {_sentence(warning)}"


def _facts(manifest: Manifest) -> Iterator[tuple[str, object]]:
    yield "format", FORMATS.get(manifest.format, manifest.format)
    yield "architecture", manifest.architecture
    yield (
        "quantization",
        f"{manifest.quantization}, the rest {manifest.dtype}"
        if manifest.is_quantized
        else f"none, {_stored(manifest)}",
    )
    if manifest.calibration:
        told = {k: v for k, v in manifest.calibration.items() if isinstance(v, str | int | float)}
        yield "calibration", ", ".join(f"{name} {value}" for name, value in told.items())
    yield "weights", f"{manifest.weight_bytes / 1e9:.3f} GB"
    yield "context", f"{manifest.context_length:,} tokens"
    yield "sha256 of the artifact", f"`{manifest.sha256}`"
    yield "made", manifest.created_at
    names = (PROJECT, "ctranslate2", "gptqmodel", "torch", "transformers")
    versions = (
        f"{name} {manifest.library_versions[name]}" for name in names if name in manifest.library_versions
    )
    yield "with", ", ".join(versions)


def _origin(manifest: Manifest, origin: Origin, licence: str) -> Iterator[str]:
    yield f"- Checkpoint: {_plain(manifest.source.name)}, sha256 `{manifest.source.sha256}`."
    for step in origin.steps:
        yield f"- {_sentence(step)}"
    if not origin.steps:
        yield "- Where the checkpoint comes from is unknown: it has no record of it."
    yield f"- Licence: {_plain(licence)}." + (
        f" Of its base: {_plain(origin.base_licence)}." if origin.base_licence and licence == UNKNOWN else ""
    )
    for cite in origin.cites:
        yield f"- Cite: {_plain(cite)}."


def _measured(
    manifest: Manifest, origin: Origin, scores: Sequence[Score], verdicts: Sequence[Verdict]
) -> Iterator[str]:
    if scores:
        rows = [
            f"| {_plain(one.suite)} | {_plain(one.style)} | {_plain(one.samples)} | pass@{one.k} {one.share:.1%} | "
            f"{one.interval[0]:.1%} to {one.interval[1]:.1%} | {one.measured_at[:10]} |"
            for one in scores
        ]
        yield "\n".join(
            [
                "| suite | prompts | problems x samples | solved | 95 % interval | measured |",
                "| --- | --- | --- | --- | --- | --- |",
                *rows,
            ]
        )
        yield ""
    else:
        yield "No benchmark score is recorded."
        yield ""
    for one in verdicts:
        yield f"- Against {_plain(one.baseline)} ({_plain(one.suite)}, {_plain(one.style)}): {_sentence(one.words)}"
    fidelity = manifest.scores.get("fidelity")
    if isinstance(fidelity, dict):
        bits = bits_of(manifest)
        code, *answers = figures(fidelity)
        within = conclusion(outside(fidelity, BOUNDS[bits]), bits)
        yield f"- Distance from its checkpoint on code: {code}; {within}."
        yield from (f"- The same of {_plain(line)}." for line in answers)
    elif origin.is_adopted:
        yield "- Its distance from the model before it was quantized is unknown: others did that."
    else:
        yield "- Its distance from the checkpoint that it was made of was not measured (`pangu-convert verify`)."


def _serving(artifact: Artifact, repository: str | None) -> str:
    place = repository.rpartition("/")[2] if repository else "FOLDER"
    fetch = f"hf download {repository} --local-dir {place}\n" if repository else ""
    chat = (
        "It has a chat template, so `/v1/chat/completions` works too."
        if _has_chat_template(artifact)
        else "It has no chat template: `/v1/chat/completions` answers 400."
    )
    request = json.dumps(
        {"model": artifact.manifest.name, "prompt": "def fibonacci(n):", "max_tokens": 64, "temperature": 0}
    )
    return (
        f"With {PROJECT} installed:\n\n```sh\n{fetch}pangu-serve {place}\n```\n\n"
        f"```sh\ncurl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(request)}\n```\n\n"
        f"The API is OpenAI's. {chat} The server checks the sha256 of every file before it loads it."
    )


def _stored(manifest: Manifest) -> str:
    """The type of the weights of a model that is not quantized."""
    return manifest.dtype if manifest.quantization == "none" else manifest.quantization


def _has_chat_template(artifact: Artifact) -> bool:
    if (artifact.path / "chat_template.jinja").is_file():
        return True
    settings = artifact.path / "tokenizer_config.json"
    return settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8", errors="replace")


def _table(rows: Iterator[tuple[str, object]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_plain(value)} |" for name, value in rows)])


def _section(title: str, lines: Iterator[str] | Sequence[str]) -> str:
    body = "\n".join(lines).strip("\n")
    return f"## {title}\n\n{body}\n" if body else ""


def _sentence(text: object) -> str:
    words = _plain(text)
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _plain(text: object) -> str:
    """One line without what Markdown or a browser would take for more than words."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "\\|")
