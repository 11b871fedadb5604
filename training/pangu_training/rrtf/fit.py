"""`pangu-train fit`: train a checkpoint on ranked pairs with the RRTF loss, on one device or many.

Several devices: `accelerate launch --config_file training/configs/fsdp2.yaml -m pangu_training.cli fit …`.

The same command on the same --output goes on where it was stopped, with the losses it would have had. Defaults are
the paper's where it gives any (global batch, epochs), else WizardCoder's for the same base model.
"""

import contextlib
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.data.ranked import RankedFile, read_ranked
from pangu_training.rrtf.options import Options, TrainingOptions
from pangu_training.rrtf.run import Run
from pangu_training.stage.checkpoint import TRAINED, Checkpoint, read_checkpoint
from pangu_training.stage.errors import PanguError
from pangu_training.stage.identity import checkpoint_hash, library_versions
from pangu_training.stage.options import argument, nested, option
from pangu_training.stage.output import locked, new_directory, write_json

if TYPE_CHECKING:
    from pangu_training.rrtf.held_out import HeldOutProblems
    from pangu_training.rrtf.memory_plan import Shape
    from pangu_training.rrtf.pairs import Pair, PairTokenizer
    from pangu_training.rrtf.trainer import PairTrainer

KEPT_CHECKPOINTS = 2  # a kill while one is written leaves the other


class FitError(PanguError):
    """The training cannot be run as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """What to train, on what, and where the run is."""

    data: Path = argument("ranked pairs, JSONL, as `pangu-train rank` writes them")
    checkpoint: Path = option("the checkpoint folder to start from")
    output: Path = option("the run's folder; an unfinished one goes on", writes="results")
    plan_only: bool = option("print the memory plan and stop", False)
    training: TrainingOptions = nested(TrainingOptions)


def fit(options: FitOptions) -> None:
    """Train on the whole file; raises as `train` does."""
    data = read_ranked(options.data)
    train(data, options.checkpoint, options.output, options.training, plan_only=options.plan_only)


def train(
    data: RankedFile, base: Path, output: Path, asked: TrainingOptions, *, plan_only: bool = False
) -> None:
    """Train the checkpoint `base` on `data`, or go on training, until the run in `output` is finished.

    Raises:
        CheckpointError, DataError, FitError, OutputError, SandboxError, SuiteError: before anything is loaded.
        KeyboardInterrupt: it was asked to stop, and saved.
    """
    options, checkpoint = asked.options, read_checkpoint(base)
    held_out = read_ranked(asked.held_out) if asked.held_out else None
    if options.max_length > checkpoint.context_length:
        raise FitError(
            f"--max-length {options.max_length} is beyond the checkpoint's {checkpoint.context_length} tokens"
        )

    from pangu_training.rrtf.held_out import HeldOutProblems
    from pangu_training.rrtf.memory_plan import Shape
    from pangu_training.rrtf.pairs import PairTokenizer
    from pangu_training.stage.architecture import located

    run = Run(output)
    tokenizer = PairTokenizer(checkpoint)
    pairs = _fitting(tokenizer, data, options)
    held_out_pairs = _fitting(tokenizer, held_out, options) if held_out else None
    problems = None
    if path := asked.held_out_problems:
        problems = HeldOutProblems(path, data, checkpoint, options, run, unsafe=asked.unsafe)
    located(checkpoint)
    shape = Shape.of(checkpoint)
    # Under ZeRO-3 every model made after this is sharded: the one to train, but not the plan's.
    training = _training_arguments(run, options, len(pairs), bool(held_out or problems))
    _print_plan(shape, options, training)
    if plan_only:
        return
    with contextlib.ExitStack() as stack:
        if training.process_index == 0:
            run.describe(
                {
                    "checkpoint_sha256": checkpoint_hash(checkpoint),
                    "data": _description(data, pairs),
                    "held_out": _description(held_out, held_out_pairs) if held_out else None,
                    "held_out_problems": problems.description if problems else None,
                    "options": asdict(options),
                },
                checkpoint=str(checkpoint.path.resolve()),
                library_versions=library_versions(),
            )
            stack.enter_context(locked(run.path))
        if run.final.exists():
            print(f"{run.final} is there: the run is finished")
            return
        _train(checkpoint, options, run, training, pairs, held_out_pairs, problems)
    if training.process_index == 0:
        print(f"{run.final}: trained; make a checkpoint of it with pangu-train export {output}")


def _fitting(tokenizer: "PairTokenizer", file: RankedFile, options: Options) -> "list[Pair]":
    pairs = tokenizer.pairs(file.rows, options.max_length)
    if not pairs:
        raise FitError(f"no row of {file.path} fits --max-length {options.max_length}: raise it")
    return pairs


def _description(file: "RankedFile", pairs: "Sequence[Pair] | None") -> dict[str, Any]:
    used = len(pairs or ())
    return {"name": file.path.name, "sha256": file.sha256, "used": used, "too_long": len(file.rows) - used}


def _training_arguments(run: Run, options: Options, pairs: int, evaluate: bool) -> Any:
    import torch
    from transformers import TrainingArguments

    cuda = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if cuda and world == 1 and torch.cuda.device_count() > 1:
        raise FitError(
            f"{torch.cuda.device_count()} GPUs and one process: start it with accelerate launch, or with "
            "CUDA_VISIBLE_DEVICES=0 for one GPU"
        )
    accumulation, rest = divmod(options.global_batch, options.micro_batch * world)
    if rest or not accumulation:
        raise FitError(
            f"--global-batch {options.global_batch} is not a multiple of {options.micro_batch} pairs on {world} "
            "devices: change it or --micro-batch"
        )
    steps = -(-pairs // options.global_batch) * options.epochs
    return TrainingArguments(
        output_dir=str(run.path),
        use_cpu=not cuda,
        bf16=_bf16(options),
        per_device_train_batch_size=options.micro_batch,
        per_device_eval_batch_size=options.micro_batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=options.epochs,
        learning_rate=options.peak_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(options.warmup_steps, steps // 10),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_gradient_norm,
        activation_checkpointing=options.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=options.seed,
        data_seed=options.seed,
        eval_strategy="epoch" if evaluate else "no",
        eval_on_start=evaluate and run.last_checkpoint() is None,
        save_strategy="steps",
        save_steps=options.save_steps,
        save_total_limit=KEPT_CHECKPOINTS,
        logging_steps=1,
        logging_nan_inf_filter=False,
        log_level="error",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
    )


def _bf16(options: Options) -> bool:
    import torch

    return options.precision == "bf16" or (options.precision == "auto" and torch.cuda.is_available())


def _sharded() -> bool:
    """Whether `accelerate launch` shards the model: FSDP or ZeRO-3."""
    return "true" in (os.environ.get("ACCELERATE_USE_FSDP"), os.environ.get("ACCELERATE_USE_DEEPSPEED"))


def _print_plan(shape: "Shape", options: Options, training: Any) -> None:
    """Print the memory plan; `FitError` when what is held whatever the batch does not fit already."""
    from pangu_training.rrtf.memory_plan import device_bytes, plan, table

    world = int(training.world_size)
    plans = {
        (rank, shards): plan(
            shape,
            lora_rank=rank,
            shards=shards,
            bf16=_bf16(options),
            tokens=2 * options.micro_batch * options.max_length,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        for rank in (0, options.lora_rank or 16)
        for shards in (1, world if world > 1 else 8)
    }
    chosen = plans[options.lora_rank, world if _sharded() else 1]
    available = device_bytes(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if training.process_index == 0:
        print(table(list(plans.values()), chosen, available))
    if chosen.fixed > available:
        raise FitError(
            f"weights, gradients and optimizer need {chosen.fixed / 2**30:.1f} GiB on each device, which has "
            f"{available / 2**30:.1f}: train with --lora-rank, on more devices with a config of "
            "training/configs, or a smaller model"
        )


def _train(
    checkpoint: Checkpoint,
    options: Options,
    run: Run,
    training: Any,
    pairs: "list[Pair]",
    held_out: "list[Pair] | None",
    problems: "HeldOutProblems | None",
) -> None:
    from transformers import PrinterCallback, set_seed
    from transformers.utils.logging import disable_progress_bar

    from pangu_training.rrtf.monitor import Monitor, stop_requests
    from pangu_training.rrtf.pairs import collate
    from pangu_training.rrtf.trainer import PairTrainer

    set_seed(options.seed)
    model = _load(checkpoint, options)
    disable_progress_bar()  # transformers' own, one a file saved, which breaks up the training's bar
    trainer = PairTrainer(
        rank=options.rank_loss,
        fine_tuning=options.fine_tuning_loss,
        held_out_problems=problems,
        model=model,
        args=training,
        data_collator=collate,
        train_dataset=pairs,
        eval_dataset=held_out or [],  # None would be refused where problems alone are evaluated
    )
    trainer.remove_callback(PrinterCallback)
    last = run.last_checkpoint()
    with stop_requests() as stop:
        monitor = Monitor(run, trainer.accelerator, stop)
        trainer.add_callback(monitor)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if monitor.stopped:
        raise KeyboardInterrupt
    _save(trainer, run, checkpoint, adapter=bool(options.lora_rank))


def _load(checkpoint: Checkpoint, options: Options) -> Any:
    """The model, with adapters when LoRA is asked for. Trained weights are float32, frozen ones as computed with."""
    import torch
    from transformers import AutoModelForCausalLM

    frozen_bf16 = options.lora_rank and _bf16(options)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path,
        dtype=torch.bfloat16 if frozen_bf16 else torch.float32,
        attn_implementation=options.attention,
        trust_remote_code=False,
        use_safetensors=True,
    )
    if not options.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import Linear

    # peft's own default for GPTBigCode adapts c_attn only.
    adapters = LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    # Named, it does not look for quantized layers first, for which it imports gptqmodel or fails without optimum.
    adapters._register_custom_module({torch.nn.Linear: Linear})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it reads a name that transformers 5 calls deprecated
        return get_peft_model(model, adapters)


def _save(trainer: "PairTrainer", run: Run, base: Checkpoint, *, adapter: bool) -> None:
    """Gather the trained weights into `final`, which is absent or whole. An adapter says which base it is of."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    main = trainer.is_world_process_zero()
    with new_directory(run.final) if main else contextlib.nullcontext(run.path) as folder:
        trainer.save_model(str(folder))
        if main and adapter:
            own = {"name": base.name, "sha256": run.description["checkpoint_sha256"]}
            record = {"base": own, **run.facts}
            write_json(folder / TRAINED, record)
    trainer.accelerator.wait_for_everyone()
