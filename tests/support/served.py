"""The app over a scripted backend, and a client of it."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from pangu_server.app import create_app
from pangu_server.engine import Engine
from pangu_server.metrics import Metrics
from support.scripted import CONTEXT_LENGTH, END, ScriptedBackend, byte_tokenizer, scripted_artifact


class Server:
    """An app over a scripted backend, and a client of it."""

    def __init__(
        self,
        folder: Path,
        script: Callable[[Sequence[int]], Iterable[int]],
        tokenizer: Tokenizer | None = None,
        end: int = END,
        context_length: int = CONTEXT_LENGTH,
        **options: Any,
    ) -> None:
        self.backend = ScriptedBackend(script)
        self.metrics = Metrics("scripted")
        artifact = scripted_artifact(folder, end, context_length)
        self.engine = Engine(artifact, tokenizer or byte_tokenizer(), self.metrics, **options)
        # An exception inside the app must become a response, as it does in production.
        self.client = TestClient(create_app(self.engine), raise_server_exceptions=False)

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(path, json=body)

    def complete(self, **body: Any) -> Any:
        return self.post("/v1/completions", **{"prompt": "p", "max_tokens": 100, **body})

    def stream(self, path: str = "/v1/completions", **body: Any) -> tuple[list[dict[str, Any]], str]:
        """The events of a stream and the line that ends it."""
        defaults = {"prompt": "p", "max_tokens": 100} if path == "/v1/completions" else {}
        answer = self.post(path, **{**defaults, **body, "stream": True})
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        return [json.loads(line) for line in lines[:-1]], lines[-1]

    def metric(self, name: str, **labels: str) -> float:
        text = self.client.get("/metrics").text
        wanted = {"model_name": "scripted", **labels}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and wanted.items() <= sample.labels.items():
                    return float(sample.value)
        raise AssertionError(f"no metric {name} {labels}")


def usage(*, prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """Of a request without a prediction."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        threading.Event().wait(0.01)
