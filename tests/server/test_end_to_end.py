"""The installed `pangu-serve` as a process, a real model, and the `openai` package as its client."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.commands import Artifacts
from support.process import COMMAND, Server, wait_for

pytestmark = pytest.mark.real_model
PROMPT = "def fibonacci(n):"
INT8 = ("ctranslate2", "--quantization", "int8")
GPTQ = ("gptq", "--bits", "4", "--group-size", "64", "--samples", "4", "--sequence-length", "64")
SERVED = {  # an artifact, and the engine that serves it
    "ctranslate2": (INT8, "ctranslate2"),
    "ctranslate2-on-torch": (INT8, "torch"),
    "transformers": (("transformers", "--dtype", "float32"), "auto"),
    "gptq": (GPTQ, "auto"),
}
COMPUTE_TYPES = {
    "ctranslate2": ["int8_float32"],  # the engines
    "torch": ["float32", "int8 + float32", "int4 g64 + float32"],
}
START_TIMEOUT_SECONDS = 120


@pytest.fixture(scope="module", params=SERVED)
def server(request: pytest.FixtureRequest, artifacts: Artifacts) -> Iterator[Server]:
    conversion, engine = SERVED[request.param]
    server = Server(artifacts("smollm2", *conversion), "--engine", engine)
    yield server
    assert server.terminate() == 0


def is_unquantized(server: Server) -> bool:
    """What a small quantized model writes differs from one kind of CPU to another, and may be no code at all."""
    return ": float32 on cpu" in server.banner


def test_the_printed_curl_line_works(server: Server) -> None:
    curl = server.banner.splitlines()[1]
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    [choice] = json.loads(answer)["choices"]
    same = server.openai.completions.create(
        model=server.model, prompt=PROMPT, max_tokens=96, temperature=0, stop=["\n\n"]
    ).choices[0]
    assert (choice["text"], choice["finish_reason"]) == (same.text, same.finish_reason)
    if not is_unquantized(server):
        return
    text = choice["text"] if choice["finish_reason"] == "stop" else choice["text"].rpartition("\n")[0]
    code, _, _ = text.partition("\n```")  # an instructed model ends its code like that
    names: dict[str, Any] = {}
    exec(PROMPT + code, names)
    assert isinstance(names["fibonacci"](1), int), "the completion is code that runs"


def test_openai_completes(server: Server) -> None:
    completion = server.openai.completions.create(
        model=server.model, prompt=PROMPT, max_tokens=32, temperature=0
    )
    assert completion.choices[0].text.startswith("\n    " if is_unquantized(server) else "")
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (6, 32)


def test_openai_streams_the_same_text(server: Server) -> None:
    arguments: dict[str, Any] = {"model": server.model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    whole = server.openai.completions.create(**arguments).choices[0].text
    stream = server.openai.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole
    assert len(chunks) > 10
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 16


def test_openai_predicts_an_answer_and_reads_what_came_of_it(server: Server) -> None:
    arguments: dict[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Repeat: x = 1\ny = 2\nz = 3\n" * 4}],
        "max_tokens": 12,
        "temperature": 0,
    }
    plain = server.openai.chat.completions.create(**arguments)
    text = plain.choices[0].message.content
    again = server.openai.chat.completions.create(
        **arguments, prediction={"type": "content", "content": text}
    )
    if is_unquantized(server):  # what is verified together is computed in another shape
        assert again.choices[0].message.content == text
    assert plain.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    cached = again.usage.prompt_tokens_details.cached_tokens
    hits, drafted = (
        server.metric(f"vllm:{name}_total") for name in ("prefix_cache_hits", "spec_decode_num_draft_tokens")
    )
    assert cached is not None
    assert 0 <= cached < again.usage.prompt_tokens
    assert hits >= cached
    details = again.usage.completion_tokens_details
    assert details is not None
    accepted, rejected = details.accepted_prediction_tokens, details.rejected_prediction_tokens
    assert accepted is not None
    assert rejected is not None
    assert 0 <= accepted + rejected <= drafted
    guessed = plain.usage.completion_tokens_details  # from the prompt alone
    assert guessed is None or sum(guessed.model_dump(exclude_none=True).values()) > 0


def test_a_stop_string_is_not_in_the_text(server: Server) -> None:
    arguments: dict[str, Any] = {"model": server.model, "prompt": PROMPT, "max_tokens": 64, "temperature": 0}
    whole = server.openai.completions.create(**arguments).choices[0].text
    stop = whole[len(whole) // 2 :][:6]  # begins and ends within tokens
    choice = server.openai.completions.create(**arguments, stop=["never to be found", stop]).choices[0]
    assert (choice.finish_reason, choice.text) == ("stop", whole[: whole.index(stop)])


def test_sampling_varies_and_greedy_does_not(server: Server) -> None:
    def texts(temperature: float) -> set[str]:
        return {
            server.openai.completions.create(
                model=server.model, prompt="x = ", max_tokens=6, temperature=temperature
            )
            .choices[0]
            .text
            for _ in range(4)
        }

    assert len(texts(0)) == 1
    assert len(texts(1.5)) > 1


def test_bad_requests_raise_openais_errors(server: Server) -> None:
    create = server.openai.completions.create
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        create(model="gpt-7", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        create(model=server.model, prompt=PROMPT, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        create(model=server.model, prompt=PROMPT, temperature=9)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_generation(server: Server, stream: bool) -> None:
    cancelled = server.metric("pangu_requests_cancelled_total", stage="running")
    generated = server.metric("vllm:generation_tokens_total")
    body = {"prompt": PROMPT, "max_tokens": 4000, "temperature": 0, "ignore_eos": True, "stream": stream}
    data, (host, port) = json.dumps(body).encode(), server.address.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        wait_for(lambda: server.metric("vllm:num_requests_running") == 1)
    wait_for(lambda: server.metric("pangu_requests_cancelled_total", stage="running") == cancelled + 1)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric("vllm:generation_tokens_total") - generated < 2000


def test_metrics_tell_what_runs(server: Server) -> None:
    [card] = httpx.get(f"{server.address}/v1/models", timeout=60).json()["data"]
    labels = {name: card[name] for name in ("backend", "engine", "quantization", "compute_type", "device")}
    assert labels["backend"] == labels["engine"]
    assert f": {labels['engine']} engine" in server.banner
    assert labels["compute_type"] in COMPUTE_TYPES[labels["backend"]]
    assert server.metric("pangu_model_info", **labels) == 1
    assert server.metric("pangu_model_weight_bytes") > 100e6
    assert server.metric("process_resident_memory_bytes") > 100e6


def test_sigterm_lets_a_running_stream_finish(server: Server) -> None:
    """The last of the tests with this server."""
    stream = server.openai.completions.create(
        model=server.model,
        prompt=PROMPT,
        max_tokens=50,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = [next(iter(stream))]
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: not accepts(server.address))
    chunks += list(stream)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert server.process.wait(60) == 0


def accepts(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


def refused(*arguments: object) -> str:
    """Start a server that must exit 2 with one line, which is returned."""
    ended = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_TIMEOUT_SECONDS,
    )
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1), ended
    return ended.stderr


def test_a_server_that_cannot_start_says_why_in_one_line(artifacts: Artifacts, tmp_path: Path) -> None:
    artifact = artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused(artifact, "--port", port)
    assert "cannot listen" in refused(artifact, "--host", "203.0.113.7")
    assert "is not an artifact" in refused(tmp_path, "--port", "0")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in artifact.iterdir():
        data = bytearray(file.read_bytes())
        if file.name == "model.bin":
            data[len(data) // 2] ^= 1
        (damaged / file.name).write_bytes(data)
    assert "model.bin in" in refused(damaged, "--port", "0")
    # What gets past the hashes still fails in one line: here the library's own check of its file.
    (damaged / "model.bin").write_bytes(b"\xff" * (damaged / "model.bin").stat().st_size)
    assert "convert the checkpoint again" in refused(damaged, "--port", "0", "--skip-verify")


def test_help_is_printed_by_the_installed_commands() -> None:
    for command in ("pangu-serve", "pangu-convert"):
        shown = subprocess.run(
            [COMMAND.with_name(command), "--help"], capture_output=True, text=True, check=True, env=os.environ
        )
        assert shown.stdout.startswith(f"usage: {command}")
