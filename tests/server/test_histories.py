"""Random histories of a server over both schedules: each request ends once, nobody is harmed, the metrics are right.

`HISTORIES=100000` asks for more of each kind; a failure names the seed of its history.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.histories import COUNTED, History
from support.scripted import byte_tokenizer, scripted_artifact

from pangu_server.backends.torch import continuous, prefill
from pangu_server.engine import Engine
from pangu_server.metrics import Metrics

HISTORIES = int(os.environ.get("HISTORIES", "150"))
PREFILL_TOKENS = 24  # a turn: prompts here are short
METRICS = {"tokens": "vllm:generation_tokens_total", "prompt tokens": "vllm:prompt_tokens_total"}
LABELS = {
    "ended": ("vllm:request_success_total", "finished_reason"),
    "cancelled": ("pangu_requests_cancelled_total", "stage"),
    "rejected": ("pangu_requests_rejected_total", "reason"),
}


def value(metrics: Metrics, name: str) -> float:
    """Of a metric by its name in the ledger."""
    labels: dict[str, str] = {}
    if name in METRICS:
        metric = METRICS[name]
    else:
        kind, which = name.split()
        metric, label = LABELS[kind]
        labels = {label: which}
    return metrics.registry.get_sample_value(metric, {"model_name": "scripted", **labels}) or 0.0


@pytest.mark.parametrize("kind", ["torch", "torch, ahead", "ctranslate2"])
def test_every_history_ends_as_its_ledger_says(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.disable(logging.CRITICAL)  # faults are logged with their tracebacks
    monkeypatch.setitem(prefill.PREFILL_TOKENS, "cpu", PREFILL_TOKENS)
    monkeypatch.setattr(continuous, "TRIED_STEPS", 3)  # so that steps run ahead in short histories too
    torch.set_num_threads(1)
    metrics = Metrics("scripted")
    engine = Engine(scripted_artifact(tmp_path), byte_tokenizer(), metrics)
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        before = {name: value(metrics, name) for name in COUNTED}
        try:
            history = lived(engine, kind, seed)
            grown = {name: value(metrics, name) - before[name] for name in COUNTED}
            seen += history.check(grown)
        except Exception as error:
            error.add_note(f"seed {seed} of {kind}")
            raise
    assert all(seen[name] for name in COUNTED), f"these histories did not have everything: {seen}"


def lived(engine: Engine, kind: str, seed: int) -> History:
    """A history to its end, on its own clock."""
    history = History(engine, kind, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: history.clock.now)
        patch.setattr(asyncio, "get_running_loop", lambda: history.clock)
        history.run()
    return history
