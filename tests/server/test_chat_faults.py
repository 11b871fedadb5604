"""Chat templates that are broken, or never end: a 400 that says why, and nobody else is harmed."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import TESTS
from support.scripted import END, scripted_artifact
from support.served import Server, wait_for


def chat(server: Server, **body: Any) -> Any:
    messages = [{"role": "user", "content": "hi"}]
    return server.post("/v1/chat/completions", **{"messages": messages, **body})


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0].text.more }}", "has no attribute 'text'"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        (NESTED, "more than 2 seconds"),
        (
            "{% set s = namespace(s='x') %}{% for a in range(99) %}{% set s.s = s.s ~ s.s %}{% endfor %}",
            "memory",
        ),
        ("{{ messages | string | center(9 * 10 ** 6) }}", "more than 8,388,608 characters"),
    ],
)
def test_a_template_that_is_broken_harms_nobody_else(tmp_path: Path, template: str, why: str) -> None:
    """While it computes the server answers, and a good conversation is rendered next to it."""
    source = "{% if messages[0].content == 'good' %}fine{% else %}" + template + "{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    server = Server(tmp_path, lambda _: [ord("x"), END])
    server.engine.load(server.backend)
    with server.client, ThreadPoolExecutor(1) as pool:
        bad = pool.submit(chat, server)
        assert server.complete().json()["choices"][0]["text"] == "x"
        assert chat(server, messages=[{"role": "user", "content": "good"}]).status_code == 200
        error = bad.result().json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "messages")
    assert why in error["message"]
    server.engine.close()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("chat_template.jinja", "{% if %}", "Expected an expression"),
        ("tokenizer_config.json", '{"chat_template": 1}', "neither a text nor a list"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "rag", "template": ""}]}',
            "(rag) is the default",
        ),
    ],
)
def test_completions_are_served_whatever_the_template_is(
    tmp_path: Path, name: str, text: str, why: str
) -> None:
    (tmp_path / name).write_text(text)
    server = Server(tmp_path, lambda _: [ord("x"), END])
    server.engine.load(server.backend)
    assert server.complete().json()["choices"][0]["text"] == "x"
    answer = chat(server)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert why in answer.json()["error"]["message"]
    assert server.engine.chat is not None
    assert why in str(server.engine.chat.try_out())
    server.engine.close()


def test_a_process_that_somebody_ends_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    server = Server(tmp_path, lambda _: [END])
    server.engine.load(server.backend)
    renderers = server.engine.chat._renderers if server.engine.chat else None
    assert renderers is not None
    for _ in range(2):
        assert chat(server).status_code == 200
        [worker] = [one for one in renderers._running if one.poll() is None]
        worker.kill()
        worker.wait()
    assert chat(server).status_code == 200
    server.engine.close()


def test_the_end_of_a_server_waits_for_no_template(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(NESTED)
    server = Server(tmp_path, lambda _: [END])
    server.engine.load(server.backend)
    assert server.engine.chat is not None
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(chat, server)
        renderers = server.engine.chat._renderers
        wait_for(lambda: bool(renderers and renderers._running))
        server.engine.close()
        assert asked.result().status_code == 503
    assert chat(server).status_code == 503


def busy_children(process_id: int) -> list[str]:
    """Ids of the processes that it started and that compute."""
    tasks = Path(f"/proc/{process_id}/task").glob("*/children")
    children = [Path("/proc", child, "stat") for task in tasks for child in task.read_text().split()]
    return [
        stat.parent.name for stat in children if stat.exists() and stat.read_text().split(") ")[1][0] == "R"
    ]


def test_a_server_starts_and_ends_whatever_its_template_does(tmp_path: Path) -> None:
    refusing = "{% if messages[0].content != 'loop' %}{{ raise_exception('not me') }}{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(refusing + NESTED)
    artifact = scripted_artifact(tmp_path).path
    command = [sys.executable, "-m", "support.serve_scripted", "0", "0.001", str(artifact), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS)
    try:
        assert process.stdout is not None
        ready = next(line for line in process.stdout if "ready on" in line)
        address = ready.split("ready on ")[1].split(": ")[0]
        body = {"messages": [{"role": "user", "content": "loop"}]}
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(httpx.post, f"{address}/v1/chat/completions", json=body, timeout=60)
            wait_for(lambda: bool(busy_children(process.pid)))
            answer = httpx.post(f"{address}/v1/completions", json={"prompt": "p"}, timeout=60)
            assert answer.status_code == 200
            process.terminate()
            assert asked.result().status_code in (400, 503)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert "chats will be refused: the chat template cannot be used (not me)" in errors
