"""A server whose answers are written down: an OpenAI-style endpoint without a model."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# A completion, one with its finish reason, or the status of a refusal.
Answer = str | tuple[str, str] | int


class Answering:
    """`answer(body)` is what is answered, nothing when it raises ConnectionError; `bodies` is what was asked."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.address = ""

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        answer = self.answer(body)
        if isinstance(answer, int):
            return answer, {"error": {"message": "not now"}}
        text, reason = answer if isinstance(answer, tuple) else (answer, "stop")
        choice = {"text": text, "message": {"content": text}, "finish_reason": reason}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}


@contextmanager
def answering(answer: Callable[[dict[str, Any]], Answer]) -> Iterator[Answering]:
    """Serve while the context lasts."""
    state = Answering(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send(200, {"data": [{"id": "written/down", "quantization": "none"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                self.send(*state.reply(body))
            except ConnectionError:
                self.close_connection = True

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
