"""`pangu-train export`: a checkpoint folder of a finished run, exactly what `pangu-convert` takes.

Weights in the base checkpoint's type and files, LoRA adapters merged in float32, the base's tokenizer with the
prompt format as its chat template, `training.json` with what it was trained on and how, and a model card.
One weight file at a time is in memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from pangu_training.stage.vocabulary import read_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

METHODS = {
    "score-gap": "RRTF (PanGu-Coder2, arXiv 2307.14936)",
    "unweighted": "RRHF's unweighted ranking loss (arXiv 2304.05302) on RRTF's pairs",
    "off": "fine-tuning on the chosen answers of RRTF's pairs, without its ranking loss",
}
RECORDED = ("data", "held_out", "held_out_problems", "options", "library_versions")
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


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
    from safetensors import safe_open
    from safetensors.torch import save_file

    from pangu_training.stage.finite import all_finite

    adapter = (final / ADAPTER).is_file()
    trained = _lora(final) if adapter else _full(final)
    names = set()
    for file in base.weight_files:
        with safe_open(file, framework="pt") as weights:
            tensors = {}
            for name in weights.keys():  # noqa: SIM118  (it is not a mapping)
                tensor = weights.get_tensor(name)
                names.add(name)
                if change := trained.get(name):
                    tensor = change(tensor).to(tensor.dtype).contiguous()
                    if not all_finite(tensor):
                        raise CheckpointError(
                            f"{name} holds NaN or infinity after the training in {final}: train again, with a lower "
                            "--learning-rate"
                        )
                tensors[name] = tensor
            save_file(tensors, folder / file.name, metadata={"format": "pt"})
    # A full training has all of the base's weights, and FSDP saves a tied one twice; an adapter has some of them.
    lost = trained.keys() - names if adapter else names - trained.keys()
    if lost:
        raise CheckpointError(
            f"{base.path} and {final} do not belong together: {min(lost)} is in one of them only"
        )


def _lora(final: Path) -> "dict[str, Callable[[Tensor], Tensor]]":
    """Weight name -> the weight with its adapter merged: W + alpha / r · B A, in float32."""
    from safetensors.torch import load_file

    config, adapters = read_json(final / ADAPTER_CONFIG), load_file(final / ADAPTER)
    scale, suffix = config["lora_alpha"] / config["r"], ".lora_A.weight"

    def merge(module: str) -> "Callable[[Tensor], Tensor]":
        a, b = (adapters[f"{module}.lora_{matrix}.weight"].float() for matrix in "AB")
        return lambda weight: weight.float() + scale * (b @ a)

    return {
        module.removeprefix("base_model.model.") + ".weight": merge(module)
        for module in (name.removesuffix(suffix) for name in adapters if name.endswith(suffix))
    }


def _full(final: Path) -> "dict[str, Callable[[Tensor], Tensor]]":
    """Weight name -> the trained weight instead."""
    from safetensors import safe_open

    def take(file: Path, name: str) -> "Callable[[Tensor], Tensor]":
        def load(_: "Tensor") -> "Tensor":
            with safe_open(file, framework="pt") as weights:
                return weights.get_tensor(name)

        return load

    changes: dict[str, Callable[[Tensor], Tensor]] = {}
    for file in sorted(final.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            changes |= {name: take(file, name) for name in weights.keys()}  # noqa: SIM118
    return changes


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
    before = base.provenance or {}
    return {
        "source": name,
        "method": METHODS[trained.description["options"]["rank_loss"]],
        "base": {
            "name": before.get("source") or base.path.resolve().name,
            "sha256": trained.description["checkpoint_sha256"],
            "provenance": base.provenance,
        },
        **{name: trained.description.get(name) for name in RECORDED},
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
