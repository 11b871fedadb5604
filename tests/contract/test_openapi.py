"""schemathesis sends what `/openapi.json` allows and what it forbids, to each backend."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import GPTQ_4, Artifacts
from support.process import Server

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
FORMATS = {
    "ctranslate2": ("tiny_bytes", "ctranslate2", "--quantization", "float32"),
    "transformers": ("tiny_bytes", "transformers", "--dtype", "float32"),
    "gptq": GPTQ_4,
}
# A schema cannot say which prompts fit the context, which ids the vocabulary has, that best_of is not below n,
# or that this model has no chat template: refusing such a body is right.
EXCLUDED = "positive_data_acceptance"
EXAMPLES = 10  # an endpoint and phase; a fixed seed, so that a failure can be repeated


@pytest.fixture(params=FORMATS)
def server(request: pytest.FixtureRequest, artifacts: Artifacts) -> Iterator[Server]:
    server = Server(artifacts(*FORMATS[request.param]))
    yield server
    # uvicorn's, to the NULL byte in a header that schemathesis tries first.
    assert server.terminate(expected=r"Invalid HTTP request received\.$") == 0


def test_the_schema_is_kept(server: Server, tmp_path: Path) -> None:
    command = [str(SCHEMATHESIS), "run", f"{server.address}/openapi.json", "--max-examples", str(EXAMPLES)]
    checks = ["--mode", "all", "--checks", "all", "--exclude-checks", EXCLUDED, "--request-timeout", "60"]
    options = ["--seed", "1", "--no-color", "--output-sanitize", "false", "--output-truncate", "false"]
    ran = subprocess.run(
        [*command, *checks, *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
