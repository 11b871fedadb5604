"""What is typed, what comes of it, and `pangu-bench editor` against the real server."""

import asyncio
import json
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import pytest
from support.answering import answering
from support.commands import pangu_convert
from support.once import once
from support.process import Server
from support.tiny import save_tiny
from tokenizers import Tokenizer

from pangu_bench import cli
from pangu_bench.cost_tables import editor_ttft
from pangu_bench.editing import figures
from pangu_bench.fim_forms import FORMS, accepted_form
from pangu_bench.keystrokes import OpenFile, typing
from pangu_bench.options import EditorOptions, UsageError
from pangu_bench.rows import EditorRow, KeystrokeRow, RowFile, read_rows
from pangu_bench.server_counts import Counts
from pangu_convert.artifact import read_artifact
from pangu_convert.code_text import evaluation_modules
from pangu_server.metrics import Metrics
from pangu_training.asking.endpoint import ServedError

OPTIONS = EditorOptions(keystrokes=20)
KEYSTROKE = KeystrokeRow(
    file_tokens=500,
    keystroke=0,
    waited=True,
    cancelled=False,
    accepted=False,
    prompt_tokens=500,
    cached_tokens=0,
    completion_tokens=16,
    ttft_seconds=3.0,
    seconds=4.0,
)
FILE = EditorRow(
    file_tokens=500,
    text="code",
    counted=True,
    fim="suffix",
    seconds=9.0,
    server_prompt_tokens=None,
    server_cached_tokens=None,
    server_generated_tokens=None,
    server_cancelled=None,
)


@pytest.fixture(scope="module")
def artifact(shared: Path, starcoder: Tokenizer) -> Path:
    """A tiny model with FIM tokens, whose context has room for a file."""
    checkpoint, output = shared / "tiny-long", shared / "tiny-long-artifact"
    once(checkpoint, lambda: save_tiny(checkpoint, starcoder, "gpt_bigcode", n_positions=2048))
    words = ("ctranslate2", checkpoint, "--output", output, "--quantization", "float32", "--name", "tiny")
    return once(output, lambda: pangu_convert(*words))


# ------------------------------------------------------------------ what is typed


def test_a_seed_types_the_same_at_every_server() -> None:
    once, again = (typing(OPTIONS, 500, len, with_suffix=True) for _ in range(2))
    assert once == again
    other = typing(replace(OPTIONS, seed=1), 500, len, with_suffix=True)
    assert other.keystrokes != once.keystrokes
    assert typing(OPTIONS, 400, len, with_suffix=True).prefix != once.prefix[:320], "each file is another one"


@pytest.mark.parametrize("with_suffix", [True, False])
def test_a_file_is_real_code_of_its_size_and_goes_on_where_the_cursor_is(
    starcoder: Tokenizer, with_suffix: bool
) -> None:
    def count(text: str) -> int:
        return len(starcoder.encode(text, add_special_tokens=False).ids)

    plan = typing(OPTIONS, 500, count, with_suffix=with_suffix)
    tokens = count(plan.prefix), count(plan.suffix)
    assert tokens == ((400, 100) if with_suffix else (500, 0))
    typed = "".join(keystroke.typed for keystroke in plan.keystrokes)
    [module] = [text for text in evaluation_modules().values() if plan.prefix + typed + plan.suffix in text]
    assert module
    assert plan.keystrokes[0].typed == "", "the first request is of the file as it is opened"
    assert all(1 <= count(keystroke.typed) <= 30 for keystroke in plan.keystrokes[1:])


def test_the_shares_are_exact_and_the_first_keystroke_waits() -> None:
    options = replace(OPTIONS, cancelled=0.5, accepted=0.3, pause_ms=(100, 400))
    keystrokes = typing(options, 500, len, with_suffix=True).keystrokes
    pauses = [keystroke.pause_seconds for keystroke in keystrokes if keystroke.pause_seconds is not None]
    assert (len(keystrokes), len(pauses)) == (21, 10)
    assert all(0.1 <= pause <= 0.4 for pause in pauses)
    assert sum(keystroke.accepts for keystroke in keystrokes) == 3
    assert all(keystroke.pause_seconds is None for keystroke in keystrokes if keystroke.accepts)
    assert (keystrokes[0].pause_seconds, keystrokes[0].accepts) == (None, False)


def test_what_is_typed_or_accepted_moves_the_cursor_and_not_the_suffix() -> None:
    file = OpenFile("def add(a, b):\n    ret", "\n\nadd(1, 2)\n")
    file.write("urn ")
    file.write("a + b")
    assert (file.prefix, file.suffix) == ("def add(a, b):\n    return a + b", "\n\nadd(1, 2)\n")


def test_what_cannot_be_typed_is_refused() -> None:
    with pytest.raises(UsageError, match="characters: take a shorter file"):
        typing(OPTIONS, 100_000, len, with_suffix=True)
    with pytest.raises(UsageError, match="the shorter pause first"):
        EditorOptions(pause_ms=(2, 1))
    with pytest.raises(UsageError, match="tiny has a context of 512 tokens, too short for a file of 500"):
        OPTIONS.check("tiny", 512, 500)


# ------------------------------------------------------------------ how a server is asked, and what it says


def test_each_form_sends_the_code_and_reads_the_answer() -> None:
    sent = {name: form.body("m", "before", "behind", 16) for name, form in FORMS.items()}
    assert (sent["suffix"]["prompt"], sent["suffix"]["suffix"]) == ("before", "behind")
    assert "suffix" not in sent["off"]
    infill = sent["infill"]
    assert (infill["input_prefix"], infill["input_suffix"], infill["n_predict"]) == ("before", "behind", 16)
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 7},
    }
    assert FORMS["suffix"].piece({"choices": [{"text": "x"}], "usage": usage}) == ("x", 9, 7, 2)
    assert FORMS["off"].piece({"choices": [{"text": "x"}], "usage": None}) == ("x", None, None, None)
    assert FORMS["off"].piece({"choices": [], "usage": usage}) == ("", 9, 7, 2)
    # llama-server's last event: `cache_n` of the `tokens_evaluated` came from its cache
    last = {"content": "", "stop": True, "tokens_evaluated": 9, "tokens_predicted": 2}
    assert FORMS["infill"].piece({**last, "timings": {"cache_n": 7, "prompt_n": 2}}) == ("", 9, 7, 2)


def test_a_server_that_ignores_the_suffix_does_not_take_it() -> None:
    with answering(lambda _: "answer") as server:

        async def find(wanted: str) -> str:
            async with httpx.AsyncClient(base_url=server.address) as client:
                return (await accepted_form(client, "m", wanted)).name

        assert asyncio.run(find("auto")) == "off"
        assert [("suffix" in body, "input_prefix" in body) for body in server.bodies] == [
            (True, False),
            (True, False),
            (False, True),
        ]
        with pytest.raises(
            ServedError, match="--fim suffix: the server takes the suffix and ignores it: try"
        ):
            asyncio.run(find("suffix"))
        with pytest.raises(ServedError, match="/infill answers in another form"):
            asyncio.run(find("infill"))


def test_the_counters_of_both_families_of_servers_are_read() -> None:
    metrics = Metrics("m")
    empty = Counts.of(metrics.exposition().decode())
    assert (empty.prompt_tokens, empty.generated_tokens, empty.cancelled, empty.under_way) == (0, 0, 0, 0)
    metrics.generation_tokens.inc(3)
    moved = Counts.of(metrics.exposition().decode()).since(empty)
    assert (moved.generated_tokens, moved.prompt_tokens) == (3, 0)
    llama = Counts.of(
        "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 40\n"
        "# TYPE llamacpp:prompt_tokens_cached_total counter\nllamacpp:prompt_tokens_cached_total 60\n"
        "# TYPE llamacpp:tokens_predicted_total counter\nllamacpp:tokens_predicted_total 5\n"
    )
    assert (llama.prompt_tokens, llama.cached_tokens, llama.generated_tokens) == (100, 60, 5)
    assert llama.cancelled is None
    assert Counts.of("<html>nothing here</html>") == Counts()


def test_figures_are_of_the_keystrokes_that_wait_and_work_is_what_nobody_read(tmp_path: Path) -> None:
    def row(keystroke: int, **changes: object) -> KeystrokeRow:
        return replace(KEYSTROKE, keystroke=keystroke, cached_tokens=490, **changes)  # type: ignore[arg-type]

    rows = [
        KEYSTROKE,
        row(1, ttft_seconds=0.1, seconds=0.5),
        row(2, waited=False, ttft_seconds=0.01, seconds=0.02),  # quicker than the next keystroke
        row(3, waited=False, cancelled=True, ttft_seconds=None, prompt_tokens=None, completion_tokens=0),
        row(4, ttft_seconds=0.3, seconds=0.7, accepted=True),
    ]
    served = replace(
        FILE,
        server_prompt_tokens=5 * 500,
        server_cached_tokens=4 * 490,
        server_generated_tokens=4 * 16 + 3,
        server_cancelled=1,
    )
    with RowFile(tmp_path / "rows", {}) as file:
        for one in rows:
            file.append(one)
        file.append(served)
        [typed] = figures(file, [500])
        assert figures(file, [1500]) == []
    assert read_rows(tmp_path / "rows")[1] == [*rows, served]
    assert typed["opened_seconds"] == 3.0
    assert typed["ttft_seconds"] == pytest.approx({"min": 0.1, "median": 0.2, "p95": 0.3, "max": 0.3})
    assert typed["answer_seconds"]["median"] == pytest.approx(0.6)
    assert (typed["waited"], typed["accepted"], typed["cancelled"]) == (2, 1, 1)
    assert (typed["prompt_tokens"], typed["cached_tokens"]) == (500, 490)
    assert typed["cancelled_work"] == {"prompt_tokens": 10, "cached_tokens": 490, "generated_tokens": 3}


def test_a_report_of_before_has_no_editor() -> None:
    assert editor_ttft({"latency": []}) == editor_ttft({"editor": None}) == "—"
    spread = {"min": 0.1, "median": 0.2, "p95": 0.3, "max": 0.3}
    assert editor_ttft({"editor": {"fim": "off", "ttft_seconds": spread}}) == "200.0 (prefix only)"


# ------------------------------------------------------------------ against the real server


def test_files_are_typed_into_and_another_one_later(
    artifact: Path, starcoder: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["editor", artifact, "--keystrokes", "8", "--accepted", "1", "--new-tokens", "8", "--warmup", "1"]
    command = [str(word) for word in (*words, "--threads", "1", "--output", tmp_path)]
    assert cli.main([*command, "--file-tokens", "120"]) == 0
    text = capsys.readouterr().out
    first = json.loads(text.splitlines()[-1])
    assert text.startswith((tmp_path / "tiny.editor.md").read_text(encoding="utf-8"))
    assert cli.main([*command, "--file-tokens", "120", "60"]) == 0
    text = capsys.readouterr().out
    later = json.loads(text.splitlines()[-1])
    assert later["files"][1] == first["files"][0], "what is there is not measured again"
    assert [file["file_tokens"] for file in later["files"]] == [60, 120]
    assert "# tiny in an editor" in text
    assert "| 60 | suffix | " in text
    [file] = first["files"]
    assert (file["fim"], file["waited"], file["accepted"]) == ("suffix", 4, 4)

    options = EditorOptions(keystrokes=8, accepted=1, new_tokens=8, warmup=1)
    plan = typing(options, 120, lambda text: len(starcoder.encode(text).ids), with_suffix=True)
    rows = [
        row
        for row in read_rows(tmp_path / "tiny.editor.jsonl")[1]
        if isinstance(row, KeystrokeRow) and row.file_tokens == 120
    ]
    assert rows[0].prompt_tokens == 120 + 3, "the file, and three FIM tokens"
    assert [row.accepted for row in rows] == [keystroke.accepts for keystroke in plan.keystrokes]
    whole = [row for row in rows if row.waited]
    assert [row.completion_tokens for row in whole] == [8] * 5
    typed = sum(len(starcoder.encode(keystroke.typed).ids) for keystroke in plan.keystrokes)
    grown = (whole[-1].prompt_tokens or 0) - (rows[0].prompt_tokens or 0)
    assert grown > typed + 8, "accepted completions are part of the file"


def test_the_next_keystroke_cancels_and_the_server_sees_it(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, seen = Server(artifact), 0.0
    for fim in ("suffix", "infill", "off"):
        words = ["editor", "--base-url", f"{server.address}=tiny", "--file-tokens", "60", "--fim", fim]
        words += ["--keystrokes", "3", "--cancelled", "1", "--pause-ms", "100", "100", "--warmup", "0"]
        assert cli.main([*words, "--new-tokens", "900", "--output", str(tmp_path / fim)]) == 0
        [file] = json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
        before, seen = seen, server.metric("pangu_requests_cancelled_total")
        assert (file["fim"], file["cancelled"]) == (fim, 3)
        assert 1 <= seen - before <= 3, "a request can be dropped before it has come"
        assert file["server_cancelled"] == seen - before
        assert file["cancelled_work"]["generated_tokens"] < 3 * 900, "it stopped"
        assert file["ttft_seconds"] is None, "nobody waited"
    assert server.terminate() == 0


def test_compare_has_the_editor_in_its_first_table(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "task_id": "Own/0",
        "prompt": "def one():\n",
        "entry_point": "one",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
    }
    suite = tmp_path / "own.jsonl"
    suite.write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = ["compare", artifact, "--suite", f"humaneval:{suite}", "--max-tokens", "4", "--keystrokes", "4"]
    few = ["--prompt-tokens", "8", "--new-tokens", "4", "--context", "64", "--repeats", "1"]
    command = [str(word) for word in (*words, *few, "--threads", "1", "--output", tmp_path / "out")]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    [costs] = [one["costs"] for one in json.loads(text.splitlines()[-1])["artifacts"]]
    first_table = text.split("## ")[0]
    assert "| editor TTFT, ms (file of 1,500 tokens) |" in first_table
    assert f"| {1e3 * costs['editor']['ttft_seconds']['median']:.1f} (FIM) |" in first_table
    recorded = read_artifact(artifact).manifest.scores["costs"]["editor"]
    assert recorded["ttft_seconds"] == costs["editor"]["ttft_seconds"]["median"]

    words = ["editor", artifact, "--keystrokes", "4", "--file-tokens", "1500", "--threads", "1"]
    assert cli.main([str(word) for word in (*words, "--output", tmp_path / "out")]) == 0
    [file] = json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
    assert file == costs["editor"], "the verb goes on with the rows"
    assert cli.main([*command, "--keystrokes", "0"]) == 0
    assert "| — |" in capsys.readouterr().out.split("## ")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give one of an artifact and --base-url"),
        (
            ("ARTIFACT", "--file-tokens", "1800"),
            "tiny has a context of 2048 tokens, too short for a file of 1800",
        ),
        (("ARTIFACT", "--pause-ms", "2", "1"), "give the shorter pause first"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    given = [str(artifact) if word == "ARTIFACT" else word for word in words]
    assert cli.main(["editor", *given, "--output", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors


def test_every_option_is_part_of_a_rows_configuration(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["editor", str(artifact), "--file-tokens", "60", "--keystrokes", "2", "--output", str(tmp_path)]
    assert cli.main([*words, "--threads", "1"]) == 0
    configuration = read_rows(tmp_path / "tiny.editor.jsonl")[0]
    assert asdict(EditorOptions()).keys() <= configuration.keys()
    capsys.readouterr()
    assert cli.main([*words, "--threads", "1", "--seed", "7"]) == 2
    assert "was measured with another seed" in capsys.readouterr().err
