"""A LoRA adapter merged into its base: a plain checkpoint. float32 sums, rounded once to the type that is stored.

The base is known by its hash. An adapter that says which base it was trained on is merged into no other; one that does
not is merged as it asks, and `import.json` says that nobody could check.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pangu_convert.conversion import require_whole, whole_checkpoint
from pangu_convert.weights import write_other_files
from pangu_training.stage.adapter import Adapter
from pangu_training.stage.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    GENERATION,
    TEXT_FILES,
    TOKENIZER,
    TRAINED,
    TRAINING_FACTS,
    Checkpoint,
    read_json,
)
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash, hash_files
from pangu_training.stage.output import require_free_space

LOSSY = 0.9  # of the adapter's changes: who keeps less is told


def merge_adapter(
    adapter: Adapter, base: Checkpoint, origin: Mapping[str, Any] | None, folder: Path, dtype: str | None
) -> dict[str, Any]:
    """Write the merged checkpoint into `folder`; returns what to say of it. `origin` is where the base came from.

    Raises:
        CheckpointError: the base is not one that can be converted or not the adapter's, or they do not fit together.
    """
    from pangu_training.stage.adapter_changes import changes_of
    from pangu_training.stage.architecture import located
    from pangu_training.stage.rewriting import rewrite_weights

    require_whole(base)
    changes = changes_of(adapter, located(base))
    sha256 = checkpoint_hash(base)
    checked = _is_checked(adapter, base, sha256)
    stored = dtype or base.dtype
    require_free_space(folder, base.num_elements * (4 if stored == "float32" else 2))
    rounding = rewrite_weights(base, folder, changes, dtype, hint=": give another --dtype")
    write_other_files(base, folder, stored)
    own_tokenizer = _take_tokenizer(adapter.path, folder)
    whole_checkpoint(folder)
    if rounding.share < LOSSY:
        print(
            f"caution: rounded to {stored}, {rounding.share:.0%} of what the adapter changes is left: --dtype float32 "
            "keeps all of it",
            file=sys.stderr,
        )
    provenance = base.provenance or origin
    quantized = (provenance or {}).get("quantized_source")
    return {
        "adapter": {
            "files": hash_files(adapter.path, [ADAPTER_CONFIG, ADAPTER_WEIGHTS], "hashing the adapter"),
            "changed_weights": len(changes),
            "tokenizer": "the adapter's" if own_tokenizer else "the base's",
            "training": _training(adapter),
        },
        "base": {"name": base.name, "sha256": sha256, "checked": checked, "provenance": provenance},
        **({"quantized_source": quantized} if quantized else {}),
        "update_kept": round(rounding.share, 4),
        "note": f"a LoRA adapter merged into its base in float32, rounded once to {stored}",
    }


def _training(adapter: Adapter) -> dict[str, Any] | None:
    """What `pangu-train fit` says of the training, if it made the adapter; nothing else that may be in its record."""
    base = adapter.trained_from
    if base is None:
        return None
    record = read_json(adapter.path / TRAINED)
    facts = {name: record[name] for name in TRAINING_FACTS if name in record}
    return {"base": {name: base.get(name) for name in ("name", "sha256")}, **facts}


def _is_checked(adapter: Adapter, base: Checkpoint, sha256: str) -> bool:
    """Whether the base is known to be the adapter's own; says so where nobody knows."""
    told = adapter.trained_from
    if told is None:
        print(
            f"caution: {adapter.path} does not say which weights it was trained on: it is merged into those of "
            f"{base.path} (sha256 {sha256[:12]}…), unchecked",
            file=sys.stderr,
        )
        return False
    if told["sha256"] != sha256:
        raise CheckpointError(
            f"{base.path} is not the checkpoint that {adapter.path} was trained on ({told.get('name')}, sha256 "
            f"{told['sha256'][:12]}…; this is {sha256[:12]}…): give that with --base"
        )
    return True


def _take_tokenizer(source: Path, folder: Path) -> bool:
    """The adapter's tokenizer, with its chat template, instead of the base's, where it has one."""
    if not (source / TOKENIZER).is_file():
        return False
    for name in TEXT_FILES:
        if name != GENERATION:
            (folder / name).unlink(missing_ok=True)
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    return True
