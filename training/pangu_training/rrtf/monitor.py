"""What watches a training run: metrics as JSON lines and for TensorBoard, a bar, orderly stops."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from pangu_training.rrtf.run import Run
from pangu_training.rrtf.trainer import WATCHED

SHOWN = (*WATCHED, "held_out_pass_at_1")


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets. A second one of the same kind acts at once."""
    event = threading.Event()
    previous: dict[int, Any] = {}

    def request(number: int, _frame: Any) -> None:
        signal.signal(number, previous[number])
        event.set()

    for kind in (signal.SIGINT, signal.SIGTERM):
        previous[kind] = signal.signal(kind, request)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Monitor(TrainerCallback):  # type: ignore[misc]
    """Writes what is logged, shows it, saves at the end of every epoch, and saves and stops when asked to.

    `stopped` is true when the training ended because of a request.
    """

    def __init__(self, run: Run, accelerator: Any, stop: threading.Event) -> None:
        self._run, self._accelerator, self._stop = run, accelerator, stop
        self._saved_step = -1
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}
        self._board: Any = None
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the bar; drop the metrics of steps that will be done again."""
        self._saved_step = state.global_step
        if state.is_world_process_zero:
            # A run that starts again evaluates again.
            self._run.drop_metrics_after(state.global_step or -1)
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None
            )
            from torch.utils.tensorboard import SummaryWriter

            again = state.global_step + 1 if state.global_step else 0
            self._board = SummaryWriter(str(self._run.path / "tensorboard"), purge_step=again)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Write a step's or an evaluation's entry."""
        evaluation = any(name.startswith("held_out_") for name in logs)
        if state.is_world_process_zero and ("loss" in logs or evaluation):
            self._run.append_metrics({"step": state.global_step, **logs})
            for name, value in logs.items():
                # of the outcomes each is a curve
                parts = value if isinstance(value, dict) else {"": value}
                for part, number in parts.items():
                    self._board.add_scalar(f"{name}/{part}".rstrip("/"), number, state.global_step)
            if self._bar is not None:
                self._shown |= {name: f"{logs[name]:.3g}" for name in SHOWN if name in logs}
                self._bar.set_postfix(self._shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move the bar; stop when any process was asked to."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)
        asked = torch.tensor(float(self._stop.is_set()), device=args.device)
        if self._accelerator.reduce(asked, "sum") > 0:
            self.stopped = state.global_step < state.max_steps
            control.should_save = control.should_training_stop = True
        # An epoch's last step is saved below, after the evaluation, which draws from the same random numbers.
        control.should_save = control.should_save and not state.epoch.is_integer()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save, once: writing a marked checkpoint again could leave it half. Evaluate whole epochs only."""
        control.should_save = state.global_step != self._saved_step
        control.should_evaluate = control.should_evaluate and state.epoch.is_integer()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as whole once every process has written its part."""
        self._saved_step = state.global_step
        self._accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            self._run.mark_whole(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close what was opened."""
        for shown in (self._bar, self._board):
            if shown is not None:
                shown.close()
