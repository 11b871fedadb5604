"""A server whose answers are written down: an OpenAI-style endpoint without a model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A completion, one with its finish reason, several, or the status of a refusal; None hangs up.
Answer = str | tuple[str, str] | list[str] | int | None


class Answering:
    """`answer(body)` is what is answered; `bodies` is what was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.card: dict[str, Any] = {"id": "written/down", "quantization": "none"}
        self.address = ""

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        self.bodies.append(body)
        answer = self.answer(body)
        if answer is None:
            return None
        if isinstance(answer, int):
            return answer, {"error": {"message": "not now"}}
        texts, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        choices = [
            {"text": text, "message": {"content": text}, "finish_reason": reason}
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        return 200, {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 5 * len(choices)}}


@contextmanager
def answering(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[Answering]:
    """Serve while the context lasts."""
    state = Answering(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"data": [state.card]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if answer := state.reply(body):
                self.send(*answer)

        def send(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.send_header("retry-after", "0")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
