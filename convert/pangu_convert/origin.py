"""Where a model comes from, in words: the steps that the records of its checkpoint tell, the latest first.

Records are `import.json` and `training.json`, one inside the other. Other people's may hold anything: what is not there
or not a text is left out, never guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pangu_convert.catalogue import MODELS, HubFile

DEEPEST = 20  # records within records


@dataclass(slots=True, kw_only=True)
class Origin:
    """What the records tell."""

    steps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what the records themselves warn of
    cites: list[str] = field(default_factory=list)
    licence: str | None = None  # of the model itself
    base_licence: str | None = None  # of what it was trained or merged from
    hub_id: str | None = None  # what it was made of
    is_changed: bool = False  # trained or merged since
    is_adopted: bool = False  # others quantized it
    quantized_source: str | None = None
    base_unchecked: bool = False
    update_kept: float | None = None


def origin_of(provenance: Mapping[str, Any] | None) -> Origin:
    """Read the records, from the checkpoint's own to that of the first model."""
    origin, depth = Origin(), 0
    while isinstance(provenance, Mapping) and depth < DEEPEST:
        provenance = _read(provenance, origin)
        depth += 1
    return origin


def _read(record: Mapping[str, Any], origin: Origin) -> Mapping[str, Any] | None:
    """Add what one record tells; returns the record of its base."""
    source, base = _text(record, "source"), record.get("base")
    base = base if isinstance(base, Mapping) else None
    commit = _text(record, "commit")
    licence = _text(record, "licence")
    if licence and not origin.is_changed:
        origin.licence = origin.licence or licence
    elif licence:
        origin.base_licence = origin.base_licence or licence
    origin.notes += [note for note in [_text(record, "note")] if note and "adapter" not in record]
    origin.cites += [cite for cite in [_text(record, "cite")] if cite]
    origin.is_adopted |= record.get("adopted") is True
    quantized = record.get("quantized_source")
    if isinstance(quantized, Mapping):
        origin.quantized_source = f"{quantized.get('format', 'unknown')} {quantized.get('type', 'unknown')}"
    if "adapter" in record and base:
        origin.steps.append(f"A LoRA adapter, {_place(source, commit)}, merged into {_named(base)}")
        origin.base_unchecked |= base.get("checked") is not True
        kept = record.get("update_kept")
        origin.update_kept = kept if isinstance(kept, float) else origin.update_kept
    elif "method" in record and base:
        data = record.get("data")
        used = (
            f" on {data.get('used')} pairs (sha256 `{data.get('sha256')}`)"
            if isinstance(data, Mapping)
            else ""
        )
        origin.steps.append(f"Trained{used} from {_named(base)} by {_text(record, 'method')}")
    elif source:
        origin.steps.append(_imported(record, source, commit))
        origin.hub_id = origin.hub_id or _hub_id(record, source, commit)
    if base is None:
        return None
    origin.is_changed = True
    inner = base.get("provenance")
    return inner if isinstance(inner, Mapping) else None


def _imported(record: Mapping[str, Any], source: str, commit: str | None) -> str:
    hub_id = _hub_id(record, source, commit)
    words = f"Imported from {_place(source, commit)}"
    if hub_id and hub_id != source:
        words += f" of the catalogue (`{hub_id}` on the hub)"
    if path := _text(record, "path") or _text(record, "file"):
        words += f", file `{path}`"
    if sha256 := _text(record, "sha256"):
        words += f", sha256 `{sha256}`"
    return words


def _place(source: str | None, commit: str | None) -> str:
    return f"`{source}` at commit `{commit}`" if commit else f"`{source}`"


def _named(base: Mapping[str, Any]) -> str:
    return f"`{base.get('name')}` (sha256 `{base.get('sha256')}`)"


def _hub_id(record: Mapping[str, Any], source: str, commit: str | None) -> str | None:
    """Where the hub has it: a model of the catalogue is known by its hash, as any folder may have its name."""
    if commit:
        return source
    known = MODELS.get(source)
    if known is None or record.get("sha256") != known.sha256:
        return None
    return next((mirror.repository for mirror in known.mirrors if isinstance(mirror, HubFile)), None)


def _text(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    return value if isinstance(value, str) and value else None
