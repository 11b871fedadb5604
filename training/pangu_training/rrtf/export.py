"""`pangu-train export`: a checkpoint folder of a finished run, exactly what `pangu-convert` takes.

Weights in the base checkpoint's type and files, LoRA adapters merged in float32, the base's tokenizer with the
prompt format as its chat template, `training.json` with what it was trained on and how, and a model card.
One block of weights at a time is in memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.evaluation.prompt import chat_template, format_prompt
from pangu_training.rrtf.run import Run
from pangu_training.stage.checkpoint import (
    CONFIG,
    SHARD_INDEX,
    TOKENIZER,
    TRAINED,
    Checkpoint,
    read_checkpoint,
    read_json,
)
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.identity import checkpoint_hash, hash_files
from pangu_training.stage.options import argument, option
from pangu_training.stage.output import new_directory, write_file
from pangu_training.stage.paths import require_apart
from pangu_training.stage.tensors import read_tensors
from pangu_training.stage.vocabulary import read_tokenizer

if TYPE_CHECKING:
    from pangu_training.stage.rewriting import Changes

METHODS = {
    "score-gap": "RRTF (PanGu-Coder2, arXiv 2307.14936)",
    "unweighted": "RRHF's unweighted ranking loss (arXiv 2304.05302) on RRTF's pairs",
    "off": "fine-tuning on the chosen answers of RRTF's pairs, without its ranking loss",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Which run, and where its checkpoint goes."""

    run_folder: Path = argument("the folder that `pangu-train fit` wrote", metavar="run")
    output: Path = option("the checkpoint folder to make", writes="folder")
    name: str | None = option("the model's name (default: the output folder's)", None)
    checkpoint: Path | None = option(
        "the base checkpoint, when it is not where the run found it any more", None
    )
    force: bool = option("replace the output folder", False)


def export(options: ExportOptions) -> None:
    """Write the checkpoint.

    Raises:
        CheckpointError: the run is not finished, or its base checkpoint is gone or another one now.
        OutputError: see `new_directory`.
    """
    trained, output = Run(options.run_folder), options.output
    if not trained.final.is_dir():
        raise CheckpointError(f"{trained.path} is not a finished run: run its pangu-train fit command again")
    description = trained.description
    base = read_checkpoint(options.checkpoint or Path(description["checkpoint"]))
    require_apart(output, [base.path])  # which the run names
    if checkpoint_hash(base) != description["checkpoint_sha256"]:
        raise CheckpointError(f"{base.path} is not the checkpoint that {trained.path} started from")
    provenance = _provenance(options.name or output.name, base, trained)
    with new_directory(output, force=options.force, needed_bytes=base.weight_bytes) as folder:
        _write_weights(base, trained.final, folder)
        _write_texts(base, folder)
        write_file(folder / "README.md", model_card(provenance).encode())
        names = sorted(file.name for file in folder.iterdir())
        files = hash_files(folder, names, "hashing the checkpoint")
        _write_json(folder / TRAINED, {**provenance, "files": files})
    read_checkpoint(output)
    print(f"{output}: convert it with pangu-convert ctranslate2 {output} --output …")


def _write_weights(base: Checkpoint, final: Path, folder: Path) -> None:
    """The trained weights by the names, files and types of the base's."""
    from pangu_training.stage.adapter import is_adapter, read_adapter
    from pangu_training.stage.adapter_changes import changes_of
    from pangu_training.stage.architecture import located
    from pangu_training.stage.rewriting import rewrite_weights

    changes = changes_of(read_adapter(final), located(base)) if is_adapter(final) else _full(base, final)
    rewrite_weights(
        base,
        folder,
        changes,
        hint=f" after the training in {final}: train again, with a lower --learning-rate",
    )


def _full(base: Checkpoint, final: Path) -> "Changes":
    """The trained weights instead of the base's; FSDP saves a tied one twice, which is one too many."""
    from pangu_training.stage.adapter_changes import replaced_by

    trained = read_tensors(sorted(final.glob("*.safetensors")))
    for name, tensor in base.tensors.items():
        if name not in trained or trained[name].shape != tensor.shape:
            raise CheckpointError(
                f"{base.path} and {final} do not belong together: {name} is not the same in both"
            )
    return {name: partial(replaced_by, trained[name]) for name in base.tensors}


def _write_texts(base: Checkpoint, folder: Path) -> None:
    """Config, tokenizer and generation config of the base, with the prompt format as chat template."""
    for file in (*base.text_files, base.path / SHARD_INDEX, base.path / CONFIG):
        if file.is_file():
            write_file(folder / file.name, file.read_bytes())
    tokenizer = read_tokenizer(base.path / TOKENIZER)
    start = "".join(map(str, map(tokenizer.id_to_token, tokenizer.encode("").ids)))
    template = chat_template(start, str(tokenizer.id_to_token(base.end_token_ids[0])))
    write_file(folder / "chat_template.jinja", template.encode())
    settings = folder / "tokenizer_config.json"
    if settings.is_file():  # older checkpoints hold their template in it
        _write_json(settings, {k: v for k, v in read_json(settings).items() if k != "chat_template"})


def _provenance(name: str, base: Checkpoint, trained: Run) -> dict[str, Any]:
    metrics = trained.metrics
    held_out = [entry for entry in metrics if "loss" not in entry]
    steps = [entry for entry in metrics if "loss" in entry]
    return {
        "source": name,
        "method": METHODS[trained.description["options"]["rank_loss"]],
        "base": {
            "name": base.name,
            "sha256": trained.description["checkpoint_sha256"],
            "provenance": base.provenance,
        },
        **trained.facts,
        "metrics": {
            "first_step": steps[0],
            "last_step": steps[-1],
            "held_out_before": held_out[0] if held_out else None,
            "held_out_after": held_out[-1] if held_out else None,
        },
    }


def model_card(training: Mapping[str, Any]) -> str:
    """The model card of a checkpoint, from its `training.json`."""
    metrics, data, held_out = training["metrics"], training["data"], training["held_out"]
    rows = [
        ("first training step", metrics["first_step"], ""),
        ("last training step", metrics["last_step"], ""),
    ]
    if held_out:
        rows += [
            ("held out, before", metrics["held_out_before"], "held_out_"),
            ("held out, after", metrics["held_out_after"], "held_out_"),
        ]
    scores = "\n".join(
        f"| {label} | {entry[prefix + 'rank_loss']:.4g} | {entry[prefix + 'fine_tuning_loss']:.4g} | "
        f"{entry[prefix + 'ranked_right']:.1%} |"
        for label, entry, prefix in rows
    )
    options = "\n".join(f"| {name} | {value} |" for name, value in training["options"].items())
    held = f"Held out: {held_out['used']} pairs, sha256 `{held_out['sha256']}`." if held_out else ""
    solved = ""
    if problems := training["held_out_problems"]:
        before, after = (metrics[f"held_out_{when}"]["held_out_pass_at_1"] for when in ("before", "after"))
        solved = (
            f"pass@1 on {problems['used']} held-out problems (sha256 `{problems['sha256']}`), one greedy answer "
            f"each: {before:.1%} before, {after:.1%} after.\n\n"
        )
    return f"""# {training["source"]}

{training["base"]["name"]}, trained by {training["method"]} with pangu-coder2.

## Prompt

A problem in triple quotes; the model answers with code and ends. It is also the chat template.

```
{format_prompt("The problem, in words.")}```

## Training

Base checkpoint: sha256 `{training["base"]["sha256"]}`. Data: {data["used"]} ranked pairs, sha256 `{data["sha256"]}`
({data["too_long"]} more were too long). {held}

| | rank loss | fine-tuning loss | ranked right |
| --- | --- | --- | --- |
{scores}

{solved}| option | |
| --- | --- |
{options}

Losses say how well the pairs are learnt, not how well the model solves problems. Everything above and the versions
of the libraries are in `training.json`.
"""


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
