"""The documentation is held to the code: commands run or exist, files and rooms are there, links lead somewhere,
and the sentences stay short."""

import contextlib
import inspect
import os
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import ROOT
from support.commands import Artifacts

import pangu_bench.cli
import pangu_convert.cli
import pangu_server.cli
import pangu_training.cli
from pangu_convert.int8 import int8_caution
from pangu_server.metrics import Metrics

STAGES = ("training", "convert", "server", "bench")
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "pangu-train": pangu_training.cli.main,
    "pangu-convert": pangu_convert.cli.main,
    "pangu-serve": pangu_server.cli.main,
    "pangu-bench": pangu_bench.cli.main,
}
LONGEST_SENTENCE_WORDS = 35
# What is not the field's word, or not how one says it. "There is no X" is.
NOT_PLAIN = re.compile(
    r"(?<!there )\b(?:is|are|was|were) no (?!longer|more)|\bhangs? (?:on|together)\b|\bshall\b|\bso many\b"
    r"|\bstands? in\b|\bbeside\b|\bours\b",
    re.IGNORECASE,
)
OTHERS_FILES = {"humaneval_gen.py", "test_completions.py"}  # WizardCoder's, the openai package's


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
each_page_but_results = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "results"], ids=name_of
)


def free_port() -> int:
    """Not one of those that the kernel gives to whoever asks for any, until the script comes to it."""
    while True:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


# ------------------------------------------------------------------ commands


@pytest.mark.real_model
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("smollm2")  # what the script downloads is there: two processes cannot fetch one file
def test_the_commands_of_usage_work_in_order(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    script = "set -eu -o pipefail\n" + "".join(blocks).replace("8123", str(free_port()))
    caution = int8_caution("int8")
    if caution:  # int8 is outside its bounds on this CPU, which `verify` has to say
        script, verifies = re.subn(
            r"^pangu-convert verify .*", r"\g<0> || [ $? = 1 ]", script, flags=re.MULTILINE
        )
        assert verifies == 1
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # To files, and in a group of its own: a server that a failed script leaves behind must hold nothing up.
    with (tmp_path / "stdout").open("w+") as stdout, (tmp_path / "stderr").open("w+") as stderr:
        script_process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code = script_process.wait(1200)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(script_process.pid, signal.SIGKILL)
            script_process.wait()
    shown, errors = ((tmp_path / name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
    assert code == 0, errors
    for expected in (
        '"schema_version": 1',
        "files match",
        '"finish_reason":"',
        "data: [DONE]",
        "pangu_model_info",
    ):
        assert expected in shown
    completion = shown.rsplit("process_resident_memory_bytes", 1)[1].split("\n", 1)[1]
    if caution:
        assert caution in shown
    else:
        assert completion.startswith("\n    "), "an indented function body"
    assert completion.strip()


def commands_in(text: str) -> Iterator[list[str]]:
    """The words of each `pangu-… …` in fenced blocks and code spans."""
    fences = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for code in (*fences, *spans):
        for line in code.replace("\\\n", " ").splitlines():
            line = re.sub(r"\s#.*", "", line).replace("-m pangu_training.cli", "pangu-train")
            for command in re.findall(r"(?:^|(?<=[\s(]))pangu-(?:train|convert|serve|bench)\b[^|&;]*", line):
                yield command.split()


@cache
def flags_of(command: str, verb: str) -> frozenset[str]:
    """The flags that a verb's help names."""
    output = subprocess.run(
        [sys.executable, "-m", COMMANDS[command].__module__, *verb.split(), "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert output.returncode == 0, f"there is no {command} {verb}"
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", output.stdout))


@each_page
def test_every_command_shown_exists_with_its_flags(page: Path) -> None:
    for command, *words in commands_in(page.read_text(encoding="utf-8")):
        verbs = (
            []
            if command == "pangu-serve"
            else [word for word in words[:1] if word.islower() and word.isalnum()]
        )
        flags = {flag for word in words for flag in re.findall(r"^\[?(--[a-z][a-z0-9-]*)", word)}
        if verbs or (flags and command == "pangu-serve"):
            unknown = flags - flags_of(command, " ".join(verbs))
            assert not unknown, f"{command} {' '.join(verbs)} has no {', '.join(unknown)}"


def test_the_readme_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("pangu-train", "pangu-convert", "pangu-bench"):
        [cell] = re.findall(rf"^\| \w+ \| `{command} (.*?)` \|", text, re.MULTILINE)
        with pytest.raises(SystemExit):
            COMMANDS[command](["--help"])
        verbs = re.findall(r"^ {4}([a-z0-9]+)(?= |$)", capsys.readouterr().out, re.MULTILINE)
        assert sorted(re.split(r" \\\| ", cell)) == sorted(verbs)


# ------------------------------------------------------------------ Python


def python_blocks() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_client_works_as_printed(
    artifacts: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    from support.process import Server

    [block] = [block for block in python_blocks() if "http://" in block]
    server = Server(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "int8"))
    exec(block.replace("http://127.0.0.1:8000", server.address), {})
    assert server.terminate() == 0
    assert capsys.readouterr().out.strip()


def test_the_readmes_python_works_as_printed(
    tiny_starcoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [block] = [block for block in python_blocks() if "pangu_server.load" in block]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").symlink_to(tiny_starcoder)
    exec(block, {})
    assert (tmp_path / "int8" / "manifest.json").is_file()
    assert capsys.readouterr().out.strip()


def test_the_readmes_comparison_is_one_that_can_be_called() -> None:
    [block] = [block for block in python_blocks() if "pangu_bench.compare" in block]
    [call] = re.findall(r"^pangu_bench\.compare\(.*\)", block, re.MULTILINE)
    stub = SimpleNamespace(compare=inspect.signature(pangu_bench.compare).bind)  # to compare takes minutes
    assert eval(call, {"pangu_bench": stub}).arguments


# ------------------------------------------------------------------ rooms, files, links, metrics


def test_architecture_has_a_sentence_for_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [file.parent for stage in STAGES for file in (ROOT / stage).rglob("__init__.py")]
    assert len(rooms) > 10
    for room in (*rooms, ROOT / "server" / "pangu_server" / "page"):
        name = "/".join(room.relative_to(ROOT).parts[1:])
        assert re.search(rf"^\| `{name}` \| \w", text, re.MULTILINE), f"{name} has no sentence"


@each_page
def test_every_python_file_that_is_named_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    if page.name == "CHANGELOG.md":
        return  # it names what has gone, too
    files = [str(file) for folder in (*STAGES, "tests", "docs") for file in (ROOT / folder).rglob("*.py")]
    for name in set(re.findall(r"`((?:\w+/)*\w+\.py)`", text)) - OTHERS_FILES:
        if name in ("convert/streaming.py",):  # a decision tells what it is called now
            continue
        assert any(file.endswith(f"/{name}") for file in files), f"there is no {name}"


def test_the_readmes_map_names_whole_paths() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.split("\n## Where is …\n")[1].strip().split("\n\n")[0].splitlines()[2:]
    assert len(rows) > 10
    for row in rows:
        [first, *_] = re.findall(r"`([^`]*/[^`]*)`", row) or ["each verb's own module"]
        assert first.startswith("each") or (ROOT / first).exists(), row


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git hosts make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip(" ").replace(" ", "-") for heading in headings}


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_metric_of_operations_is_exported() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    exported = Metrics("m").exposition().decode()
    names = set(re.findall(r"\b(?:vllm:|pangu_(?!server))\w+", text))
    assert len(names) > 20
    # The label of a family without samples yet has none in a scrape, but always its name.
    known = set(re.findall(r"^# TYPE (\S+)", exported, re.MULTILINE))
    assert not [name for name in names if re.sub(r"_(?:bucket|sum|count)$", "", name) not in known]


# ------------------------------------------------------------------ words


def paragraphs(text: str) -> Iterator[str]:
    """Prose only: no code, a list's items and a table's cells each by itself."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )|\n(?=#)|\n(?=\|)", text):
        yield from block.split("|") if block.lstrip().startswith("|") else (block,)


def sentences(text: str) -> Iterator[str]:
    for paragraph in paragraphs(text):
        yield from re.split(r"(?<=[.!?])[*\")]*\s+", " ".join(paragraph.split()))


@each_page_but_results
def test_the_words_are_plain(page: Path) -> None:
    found = [
        sentence for sentence in sentences(page.read_text(encoding="utf-8")) if NOT_PLAIN.search(sentence)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("stage", STAGES)
def test_the_words_of_the_code_are_plain(stage: str) -> None:
    """Of comments, docstrings and messages, also where a sentence goes on in the next line."""
    found = []
    for file in sorted((ROOT / stage).rglob("*.py")):
        text = re.sub(r"\s+(?:# )?", " ", file.read_text(encoding="utf-8"))
        found += [
            f"{name_of(file)}: …{text[max(0, m.start() - 40) : m.end() + 20]}…"
            for m in NOT_PLAIN.finditer(text)
        ]
    assert not found, "\n".join(found)


@each_page_but_results
def test_no_sentence_is_long(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [sentence for sentence in sentences(text) if len(sentence.split()) > LONGEST_SENTENCE_WORDS]
    assert not found, "\n".join(found)
