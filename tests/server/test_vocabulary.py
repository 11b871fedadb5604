"""A tokenizer with more tokens than the model: said at conversion, and a request with one of them is a 400."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support.models import save_model
from support.served import Server
from tokenizers import Tokenizer

from pangu_convert import cli
from pangu_convert.artifact import read_artifact
from pangu_server.app import create_app
from pangu_server.backends import load_backend
from pangu_server.backends.seam import EngineName, LoadOptions
from pangu_server.encoding import read_tokenizer
from pangu_server.engine import Engine
from pangu_server.metrics import Metrics

ROWS = 261
PAD, FAR = ROWS, ROWS + 9  # ids of the tokens that the model does not have
PREDICTION = {"type": "content", "content": "[PAD]"}
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"prompt": "a[PAD]b"}, "prompt"),
    ("/v1/completions", {"prompt": [1, PAD]}, "prompt"),
    ("/v1/completions", {"prompt": [[1], [2, FAR]]}, "prompt"),
    ("/v1/completions", {"prompt": [1, 10**6]}, "prompt"),
    ("/v1/completions", {"prompt": "a", "echo": True, "suffix": "[FAR]", "parse_special": True}, "prompt"),
    (
        "/v1/completions",
        {"prompt": "a", "prediction": PREDICTION, "parse_special": True},
        "prediction",
    ),
    ("/v1/completions", {"prompt": "a", "logit_bias": {str(PAD): 5}}, "logit_bias"),
    ("/v1/fim/completions", {"prompt": "[PAD]", "suffix": "b", "parse_special": True}, "prompt"),
    ("/infill", {"input_prefix": "[PAD]", "input_suffix": "b", "parse_special": True}, "prompt"),
]


def with_more_tokens(folder: Path) -> Path:
    """A WizardCoder: a [PAD] behind the embedding, and one whose id is not the next."""
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(["[PAD]", *(f"[{number}]" for number in range(8)), "[FAR]"])
    tokenizer.save(str(file))
    return folder


@pytest.mark.parametrize(("path", "body", "param"), BODIES)
def test_a_token_beyond_the_model_is_a_400(
    tmp_path: Path, path: str, body: dict[str, Any], param: str
) -> None:
    server = Server(tmp_path, lambda _: [97])
    with_more_tokens(tmp_path)
    server.engine = Engine(
        server.engine.artifact, read_tokenizer(server.engine.artifact), Metrics("scripted")
    )
    server.backend.info = dataclasses.replace(server.backend.info, vocabulary_size=ROWS)
    server.engine.load(server.backend)
    client = TestClient(create_app(server.engine), raise_server_exceptions=False)
    answer = client.post(path, json={"max_tokens": 4, "n_predict": 4, **body})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    good = {"prompt": "a", "input_prefix": "a", "input_suffix": "", "max_tokens": 1, "n_predict": 1}
    assert client.post(path, json=good).status_code == 200
    server.engine.close()


@pytest.mark.parametrize("verb", ["transformers", "ctranslate2"])
@pytest.mark.parametrize("model", ["gpt_bigcode", "llama", "qwen2"])
def test_it_is_said_at_conversion_and_served(
    model: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = with_more_tokens(save_model(tmp_path / "checkpoint", model))
    options = ["--no-smooth"] if verb == "ctranslate2" else []
    assert cli.main([verb, str(checkpoint), "--output", str(tmp_path / "out"), *options]) == 0
    said = "caution: the tokenizer has 10 tokens more than the model's 261, the first is '[PAD]'"
    assert said in capsys.readouterr().err
    artifact = read_artifact(tmp_path / "out")
    engines: tuple[EngineName, ...] = ("torch", "ctranslate2") if verb == "ctranslate2" else ("torch",)
    for name in engines:
        backend = load_backend(artifact, LoadOptions(device="cpu", threads=1, engine=name, max_batch=1))
        assert backend.info.vocabulary_size == ROWS
        engine = Engine(artifact, read_tokenizer(artifact), Metrics("test"))
        engine.load(backend)
        client = TestClient(create_app(engine), raise_server_exceptions=False)
        for prompt in ("a[PAD]", [1, FAR]):
            assert client.post("/v1/completions", json={"prompt": prompt}).status_code == 400
        answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 8, "temperature": 0})
        assert answer.status_code == 200, answer.text
        engine.close()
