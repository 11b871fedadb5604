"""Hugging Face's `Trainer` with the RRTF loss: what it must do differently for pairs, and nothing else."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from pangu_training.rrtf.held_out import HeldOutProblems
from pangu_training.rrtf.loss import FineTuning, PairLosses, Rank, answer_log_probs, rrtf_loss

WATCHED = ("rank_loss", "fine_tuning_loss", "ranked_right")


class PairTrainer(Trainer):  # type: ignore[misc]
    """Trains on the batches of `pairs.collate`.

    The loss is the mean over the pairs of a global batch, however they are spread over accumulation steps and
    processes: 1 pair 4 times is 4 pairs at once.
    """

    # A model that takes **kwargs makes Trainer believe that the loss is divided by the accumulation steps already.
    # `PairTrainer`'s is, by `get_batch_samples`' count of pairs; said here so that it does not depend on the model.
    loss_is_scaled_for_ga = True
    control: Any

    def __init__(
        self,
        *,
        rank: Rank,
        fine_tuning: FineTuning,
        held_out_problems: HeldOutProblems | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._held_out_problems = held_out_problems
        self._pair_losses = partial(pair_losses, rank=rank, fine_tuning=fine_tuning)
        self._sums = torch.zeros(len(WATCHED) + 2, dtype=torch.float64, device=self.args.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Tensor]:
        """The batches of one optimizer step, and what to divide their losses' sum by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = torch.tensor(float(sum(len(batch["score_gap"]) for batch in batches)), device=device)
        # Gradients are averaged over the processes, so the divisor is the pairs of an average process.
        return batches, self.accelerator.reduce(pairs, "sum") / self.accelerator.num_processes

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """This process' part of the mean over the global batch."""
        losses = self._pair_losses(model, inputs)
        watched = (losses.rank, losses.fine_tuning, losses.ranked_right)
        self._sums += torch.stack(
            [
                *(values.detach().double().sum() for values in watched),
                inputs["attention_mask"].sum().double(),
                losses.total.new_tensor(len(losses.total)).double(),
            ]
        )
        return losses.total.sum() / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; a training step's entry gets what was watched since the last one."""
        if "loss" in logs:
            *sums, tokens, pairs = self.accelerator.reduce(self._sums, "sum").tolist()
            self._sums.zero_()
            logs |= {name: total / pairs for name, total in zip(WATCHED, sums, strict=True)}
            logs |= {"tokens": int(tokens), "pairs": int(pairs)}
        super().log(logs, start_time)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """What is held out: the losses and the ranked-right rate over pairs, pass@1 over problems."""
        self.model_wrapped.eval()
        metrics = self._pair_means() if self.eval_dataset else {}
        if self._held_out_problems:
            epoch = round(self.state.epoch or 0)
            metrics |= self._held_out_problems.evaluate(self.model_wrapped, self.accelerator, epoch)
        self.model_wrapped.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _pair_means(self) -> dict[str, Any]:
        """Means over the held-out pairs, each counted once."""
        rows = []
        for inputs in self.get_eval_dataloader():
            with torch.no_grad(), self.compute_loss_context_manager():
                losses = self._pair_losses(self.model_wrapped, self._prepare_inputs(inputs))
            watched = torch.stack([losses.rank, losses.fine_tuning, losses.ranked_right], dim=1)
            rows.append(self.accelerator.gather_for_metrics(watched).double().cpu())
        means = torch.cat(rows).mean(dim=0).tolist()
        return {f"held_out_{name}": mean for name, mean in zip(WATCHED, means, strict=True)}


def pair_losses(
    model: Any, inputs: Mapping[str, Tensor], *, rank: Rank, fine_tuning: FineTuning
) -> PairLosses:
    """The loss of each pair of a batch of `pairs.collate`."""
    is_answer = inputs["is_answer"]
    # Logits at the positions before an answer's tokens only: [answer tokens, vocabulary].
    logits = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        logits_to_keep=is_answer.roll(-1, dims=1),
        use_cache=False,
    ).logits
    answers = answer_log_probs(logits, inputs["input_ids"][is_answer], is_answer.sum(dim=1))
    chosen, rejected = answers.halves()
    return rrtf_loss(chosen, rejected, inputs["score_gap"], rank=rank, fine_tuning=fine_tuning)
