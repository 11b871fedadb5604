"""The table of docs/api.md, derived: each value is sent to each engine, and what it does is what the table says.

A tiny random model has no opinions, so every option can be seen in its tokens.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from support import ROOT
from support.commands import GPTQ_8, Artifacts
from tokenizers import Tokenizer

from pangu_convert.artifact import read_artifact
from pangu_server.app import create_app
from pangu_server.backends import load_backend
from pangu_server.backends.seam import EngineName, LoadOptions
from pangu_server.engine import Engine
from pangu_server.metrics import Metrics

ENGINES: tuple[EngineName, ...] = ("torch", "ctranslate2")  # the columns
# An engine, and an artifact that it runs
RUN: dict[str, tuple[EngineName, tuple[str, ...]]] = {
    "torch, transformers": ("torch", ("tiny_bigcode", "transformers", "--dtype", "float32")),
    "torch, gptq": ("torch", GPTQ_8),
    "torch, int8": ("torch", ("tiny_bigcode", "ctranslate2", "--quantization", "int8")),
    "ctranslate2": ("ctranslate2", ("tiny_bigcode", "ctranslate2", "--quantization", "float32")),
}
PROMPT = "def fibonacci(n):\n    if n"


class Client:
    """The app over one real engine."""

    def __init__(self, folder: Path, engine: EngineName) -> None:
        self.column = ENGINES.index(engine)
        artifact = read_artifact(folder)
        self.batches: list[int] = []
        self.tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
        self.engine = Engine(artifact, self.tokenizer, Metrics(artifact.manifest.name))
        options = LoadOptions(device="cpu", engine=engine, threads=1, on_batch=self.batches.append)
        backend = load_backend(artifact, options)
        assert backend.info.engine == engine
        self.engine.load(backend)
        self.end = artifact.manifest.end_token_ids[0]
        self.client = TestClient(create_app(self.engine))

    def complete(self, **body: Any) -> Any:
        """The answer to one prompt, by default greedy."""
        answer = self.client.post(
            "/v1/completions",
            json={"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 0, **body},
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tokens(self, **body: Any) -> list[str]:
        """The tokens of one completion, by name."""
        tokens: list[str] = self.complete(**body)["choices"][0]["logprobs"]["tokens"]
        return tokens


@pytest.fixture(scope="module", params=RUN)
def client(request: pytest.FixtureRequest, artifacts: Artifacts) -> Iterator[Client]:
    engine, arguments = RUN[request.param]
    client = Client(artifacts(*arguments), engine)
    yield client
    client.engine.close()


def id_of(client: Client, token: str) -> str:
    [token_id] = client.tokenizer.encode(token, add_special_tokens=False).ids
    return str(token_id)


def works_temperature_0(client: Client) -> None:
    assert client.tokens() == client.tokens()


def works_temperature(client: Client) -> None:
    hot = {tuple(client.tokens(temperature=2)) for _ in range(3)}
    assert len(hot) > 1
    assert client.tokens(temperature=2, top_k=1) == client.tokens()
    assert client.tokens(temperature=2, top_p=1e-6) == client.tokens()


def works_seed(client: Client) -> None:
    first = client.tokens(temperature=1.5, seed=11)
    assert client.tokens(temperature=1.5, seed=11) == first
    assert client.tokens(temperature=1.5, seed=12) != first


def works_min_p(client: Client) -> None:
    assert client.tokens(temperature=2, min_p=1) == client.tokens()


def works_penalties(client: Client) -> None:
    first = client.tokens(max_tokens=1)[0]
    again = {"logit_bias": {id_of(client, first): 100}}  # nothing but this token …
    assert client.tokens(**again) == [first] * 12
    assert client.tokens(**again, presence_penalty=2, frequency_penalty=2) == [first] * 12
    # … until a penalty is larger than the lead: two tokens of almost equal bias take turns.
    other = client.tokens(logit_bias={id_of(client, first): -100}, max_tokens=1)[0]
    both = {id_of(client, first): 100, id_of(client, other): 100}
    plain = client.tokens(logit_bias=both)
    assert len(set(client.tokens(logit_bias=both, frequency_penalty=2))) == 2 > len(set(plain)) - 1


def works_repetition_penalty(client: Client) -> None:
    assert len(set(client.tokens(repetition_penalty=100.0))) == 12, "no token twice"


def works_logit_bias(client: Client) -> None:
    token = "import"
    assert client.tokens(logit_bias={id_of(client, token): 100}, max_tokens=3) == [token] * 3


def works_min_tokens(client: Client) -> None:
    ends = {str(client.end): 100}
    assert client.tokens(logit_bias=ends) == [client.tokenizer.id_to_token(client.end)]
    assert len(client.tokens(logit_bias=ends, min_tokens=5)) == 6


def works_ignore_eos(client: Client) -> None:
    ends = {str(client.end): 100}
    assert len(client.tokens(logit_bias=ends, ignore_eos=True)) == 12


def works_grammar(client: Client) -> None:
    choices = ["import os", "return n - 1"]
    answer = client.complete(structured_outputs={"choice": choices})["choices"][0]
    assert answer["text"] in choices
    assert answer["finish_reason"] == "stop"
    texts = {
        client.complete(guided_choice=choices, temperature=2, seed=n)["choices"][0]["text"] for n in range(9)
    }
    assert texts == set(choices)


def works_logprobs(client: Client) -> None:
    body = {"prompt": PROMPT, "max_tokens": 2, "echo": True, "logprobs": 3, "temperature": 0}
    [choice] = client.client.post("/v1/completions", json=body).json()["choices"]
    values = choice["logprobs"]["token_logprobs"]
    assert values[0] is None
    assert all(value < 0 for value in values[1:])
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def works_n(client: Client) -> None:
    client.batches.clear()
    body = {"prompt": PROMPT, "n": 4, "max_tokens": 8, "temperature": 1.5}
    for _ in range(3):  # a choice may have begun before the others were there
        choices = client.client.post("/v1/completions", json=body).json()["choices"]
        assert len({choice["text"] for choice in choices}) > 1
        if max(client.batches) == 4:
            break
    assert max(client.batches) == 4


def works_prediction(client: Client) -> None:
    plain = client.complete()["choices"][0]
    drafted = 0
    for text in (plain["text"], "something else"):
        answer = client.complete(prediction={"type": "content", "content": text})
        assert answer["choices"][0]["text"] == plain["text"]
        drafted += sum(answer["usage"]["completion_tokens_details"].values())
    assert bool(drafted) == ("drafts" in documented()["`prediction`"][client.column])


def works_prefix(client: Client) -> None:
    prompt = "import os\n" + PROMPT * 12  # no other request begins so
    texts, cached = [], []
    for end in (" ==", " ==", " <"):
        answer = client.complete(prompt=prompt + end)
        texts.append(answer["choices"][0]["text"])
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert (cached[0], texts[0]) == (0, texts[1])
    assert [bool(tokens) for tokens in cached[1:]] == ["cache" in documented()[PREFIX][client.column]] * 2


PREFIX = "a prompt's beginning, seen before"
# Row of the table -> its check.
ROWS = {
    "`temperature` 0": works_temperature_0,
    "`temperature`, `top_p`, `top_k`": works_temperature,
    "`seed` with a temperature": works_seed,
    "`min_p`": works_min_p,
    "`presence_penalty`, `frequency_penalty`": works_penalties,
    "`repetition_penalty`": works_repetition_penalty,
    "`logit_bias`": works_logit_bias,
    "`min_tokens`": works_min_tokens,
    "`ignore_eos`": works_ignore_eos,
    "a grammar or schema": works_grammar,
    "`logprobs`, `echo` with `logprobs`": works_logprobs,
    "`n`, `best_of`": works_n,
    "`prediction`": works_prediction,
    PREFIX: works_prefix,
}


@pytest.mark.parametrize("row", ROWS)
def test_a_value_does_what_the_table_says(client: Client, row: str) -> None:
    ROWS[row](client)


def documented() -> dict[str, list[str]]:
    """The rows of the table in docs/api.md."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    table = text.split("<!-- capabilities -->")[1].split("\n\n")[0].strip().splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert rows[0] == ["value", *ENGINES]
    return {row[0]: row[1:] for row in rows[2:]}


def test_the_table_has_these_rows_and_no_refusals() -> None:
    table = documented()
    assert list(table) == list(ROWS)
    assert not [cell for cells in table.values() for cell in cells if "400" in cell]


# A body of each row that CTranslate2 either draws by itself (one batch to the end) or that our sampler surely
# disagrees with on the way (a batch more for each disagreement).
DRAWN: dict[str, dict[str, Any]] = {
    "`temperature` 0": {},
    "`temperature`, `top_p`, `top_k`": {"temperature": 2},
    "`seed` with a temperature": {"temperature": 2, "seed": 1},
    "`min_p`": {"temperature": 2, "min_p": 1e-9},
    "`repetition_penalty`": {"repetition_penalty": 100},
    "`ignore_eos`": {"ignore_eos": True},
    "`logprobs`, `echo` with `logprobs`": {"logprobs": 3},
}


@pytest.mark.parametrize("client", ["ctranslate2"], indirect=True)
@pytest.mark.parametrize("row", DRAWN)
def test_who_draws_with_ctranslate2_is_what_the_table_says(client: Client, row: str) -> None:
    client.batches.clear()
    client.tokens(**DRAWN[row])
    cell = documented()[row][client.column]
    assert ("verified" if len(client.batches) > 1 else "native") in cell
