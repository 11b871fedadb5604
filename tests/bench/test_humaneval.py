"""`pangu-bench humaneval` with problems of our own, over a server whose answers are written down."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.answering import answering

from pangu_bench import cli
from pangu_bench.rows import GenerationRow, VerdictRow, read_rows

NAMES = ("double", "triple", "negate")
BODIES = {"double": "    return 2 * x\n", "triple": "    return 3 * x\n", "negate": "    return -x\n"}
VALUES = {"double": 8, "triple": 12, "negate": -4}


def row(name: str, **changes: str) -> dict[str, str]:
    return {
        "task_id": f"Own/{name}",
        "prompt": f'def {name}(x):\n    """ {name} of x """\n',
        "entry_point": name,
        "canonical_solution": BODIES[name],
        "test": f"def check(candidate):\n    assert candidate(4) == {VALUES[name]}\n",
        **changes,
    }


def solution(body: dict[str, Any]) -> str:
    text = body["prompt"]
    return next(BODIES[name] for name in NAMES if f"def {name}" in text)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write(tmp_path / "own.jsonl", *map(row, NAMES))


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[int, Any, str]]:
    """Runs the verb: exit code, the JSON that stdout ends with (or None), stderr."""

    def run(*arguments: object) -> tuple[int, Any, str]:
        words = ["humaneval", *arguments, "--output", tmp_path / "out"]
        code = cli.main([str(word) for word in words])
        captured = capsys.readouterr()
        last = captured.out.splitlines()[-1] if captured.out else "null"
        return code, json.loads(last), captured.err

    return run


def test_a_model_that_knows_the_solutions_solves_all(bench: Any, suite: Path, tmp_path: Path) -> None:
    with answering(solution) as server:
        arguments = ("--base-url", f"{server.address}/v1", "--suite", f"humaneval:{suite}")
        code, score, _ = bench(*arguments)
        assert (code, score["pass_at_k"], score["outcomes"]) == (0, {"1": 1.0}, {"passed": 3})
        assert score["gold"] == {"passed": 3, "problems": 3, "failed": []}
        assert score["samples"] == "3x1"
        assert score["warnings"] == []
        assert all(body["temperature"] == 0 and "\ndef" in body["stop"] for body in server.bodies)

        asked = len(server.bodies)
        again = bench(*arguments)[1]
        assert len(server.bodies) == asked, "what is there is not asked again"
        assert bench("--base-url", f"{server.address}=mine", *arguments[2:])[1]["model"] == "mine"
        assert {**again, "measured_at": ""} == {**score, "measured_at": ""}
    rows = read_rows(tmp_path / "out" / "written_down.humaneval-form.completion.jsonl")[1]
    assert sum(isinstance(row, GenerationRow) for row in rows) == 3
    assert sum(isinstance(row, VerdictRow) for row in rows) == 3


def test_a_run_goes_on_where_the_server_failed(bench: Any, suite: Path) -> None:
    arguments = ("--suite", f"humaneval:{suite}")
    with answering(lambda body: 500 if "triple" in body["prompt"] else solution(body)) as server:
        code, _, errors = bench("--base-url", server.address, *arguments)
        assert code == 2
        assert errors.count("\n") == 1
        assert "Own/triple: the server said 500: not now" in errors
    with answering(solution) as server:  # another port is the same model
        assert bench("--base-url", server.address, *arguments)[1]["pass_at_k"] == {"1": 1.0}
        assert [body["prompt"] for body in server.bodies] == [row(name)["prompt"] for name in NAMES[1:]]


def test_a_busy_server_is_asked_again(bench: Any, suite: Path) -> None:
    refusals = iter((429, 503))
    with answering(lambda body: next(refusals, None) or solution(body)) as server:
        arguments = ("--base-url", server.address, "--suite", f"humaneval:{suite}", "--concurrency", "2")
        assert bench(*arguments)[1]["pass_at_k"] == {"1": 1.0}
        assert len(server.bodies) == 5


def test_samples_are_added_and_problems_too(bench: Any, suite: Path) -> None:
    with answering(lambda body: solution(body) if body["seed"] % 2 else "    pass\n") as server:
        drawn = ("--temperature", "0.8", "--seed", "7")
        arguments = ("--base-url", server.address, "--suite", f"humaneval:{suite}", *drawn)
        assert bench(*arguments, "--limit", "2")[1]["pass_at_k"] == {"1": 1.0}
        code, score, _ = bench(*arguments, "--samples", "10")
        assert code == 0
        assert len(server.bodies) == 30
        assert score["pass_at_k"] == pytest.approx({"1": 0.5, "10": 1.0})
        assert score["samples"] == "3x10"
        fewer = bench(*arguments, "--limit", "1", "--samples", "2")[1]
        assert (fewer["samples"], fewer["pass_at_k"]) == ("1x2", {"1": 0.5})


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        ("", "3 of 3 answers are empty"),
        ("    x x x\n", "all 3 answers are the same text"),
    ],
)
def test_a_broken_model_is_flagged(bench: Any, suite: Path, answer: str, warning: str) -> None:
    with answering(lambda body: answer) as server:
        code, score, _ = bench("--base-url", server.address, "--suite", f"humaneval:{suite}")
    assert (code, score["pass_at_k"]) == (0, {"1": 0.0})
    assert any(words.startswith(warning) for words in score["warnings"])


def test_gold_that_fails_is_the_suites_fault_and_said_so(bench: Any, tmp_path: Path) -> None:
    wrong = row("triple", canonical_solution="    return x\n")
    suite = write(tmp_path / "wrong.jsonl", row("double"), wrong)
    code, result, _ = bench("--gold", "--suite", f"humaneval:{suite}")
    assert code == 1
    assert result == {"suite": "humaneval-form", "passed": 1, "problems": 2, "failed": ["Own/triple"]}
    with answering(solution) as server:
        code, score, _ = bench("--base-url", server.address, "--suite", f"humaneval:{suite}")
    assert code == 1
    assert "Own/triple" in score["warnings"][0]


def test_chat_and_infilling_reach_their_endpoints(bench: Any, suite: Path, tmp_path: Path) -> None:
    fenced = {name: f"Sure!\n```python\ndef {name}(x):\n{BODIES[name]}```" for name in NAMES}
    with answering(
        lambda body: next(fenced[n] for n in NAMES if n in body["messages"][0]["content"])
    ) as server:
        arguments = ("--base-url", server.address, "--suite", f"humaneval:{suite}", "--style", "chat")
        assert bench(*arguments)[1]["pass_at_k"] == {"1": 1.0}
    hole = row("double", canonical_solution="    y = 2 * x\n", suffix="    return y\n")
    holes = tmp_path / "holes.jsonl.gz"
    holes.write_bytes(gzip.compress(json.dumps(hole).encode()))
    with answering(lambda body: "    y = x + x") as server:
        arguments = ("--base-url", server.address, "--suite", f"infilling:{holes}", "--style", "infilling")
        assert bench(*arguments)[1]["pass_at_k"] == {"1": 1.0}
        assert server.bodies[0]["suffix"] == "    return y\n"


def test_a_suite_whose_tests_nobody_has_gets_no_score(bench: Any, tmp_path: Path) -> None:
    fields = {"question_id": "q1", "signature": "def f(x)", "input": "def f(x):\n    '''f'''\n"}
    suite = write(tmp_path / "codereval.jsonl", fields)
    with answering(lambda body: "    return x") as server:
        code, result, _ = bench("--base-url", server.address, "--suite", f"codereval:{suite}")
    assert code == 0
    assert "only CoderEval's prompts are public" in result["no_score"]
    assert "pass_at_k" not in result


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of an artifact, --base-url and --gold"),
        (("--gold", "--base-url", "http://127.0.0.1:9"), "give one of"),
        (("nowhere",), "is not a folder"),
        (("--base-url", "http://127.0.0.1:9"), "no OpenAI-style server answers"),
        (("--base-url", "nonsense"), "no OpenAI-style server answers"),
        (("--gold", "--suite", "mbpp"), "give humaneval, or FORM:FILE"),
        (("--gold", "--suite", "humaneval-plus"), "give humaneval, or FORM:FILE"),
        (("--gold", "--suite", "leetcode:nowhere.jsonl"), "nowhere.jsonl is not there"),
        (("--gold", "--samples", "3"), "without a --temperature above 0"),
        (("--gold", "--style", "infilling"), "cannot be asked in the style"),
    ],
)
def test_bad_input_ends_with_one_line(
    bench: Any, suite: Path, arguments: tuple[str, ...], words: str
) -> None:
    given = arguments if "--suite" in arguments else (*arguments, "--suite", f"humaneval:{suite}")
    code, _, errors = bench(*given)
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1


def test_rows_of_another_setting_are_refused(bench: Any, suite: Path) -> None:
    with answering(solution) as server:
        arguments = ("--base-url", server.address, "--suite", f"humaneval:{suite}")
        bench(*arguments)
        code, _, errors = bench(*arguments, "--max-tokens", "9")
    assert code == 2
    assert "measured with another max_tokens" in errors


def test_samples_that_all_fail_leave_an_interval(bench: Any, suite: Path) -> None:
    with answering(lambda body: "    pass\n") as server:
        arguments = ("--base-url", server.address, "--suite", f"humaneval:{suite}", "--samples", "2")
        score = bench(*arguments, "--temperature", "1")[1]
    low, high = score["intervals"]["1"]
    assert low == 0
    assert high > 0.5, "three problems say little"


def test_help_loads_no_library_and_a_missing_one_is_named() -> None:
    script = "import sys; from pangu_bench import cli; cli.parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not {"numpy", "httpx", "tokenizers", "torch"} & set(loaded.split())
    script = "import sys; sys.modules['httpx'] = None; from pangu_bench import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, "humaneval", "--gold", "--output", "nowhere"]
    missing = subprocess.run(command, capture_output=True, text=True)
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert "--editable '.[bench]'" in missing.stderr
