"""No verb of any command writes over what it reads, or over what is not ours: whatever its options are called."""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_commands import COMMANDS, fields_of, flags_of

from pangu_training.stage.command import Verb, options_class
from pangu_training.stage.paths import require_free

# What verbs are told in words that name no file.
WORDS = {"base_url", "cache_memory", "eight_bits", "ids", "label", "model", "name", "revision", "text_field"}
FORMS = ("{}", "me={}", "problems:{}")  # in which a text names a file


class Case(NamedTuple):
    """A verb with one of its outputs and one of its inputs."""

    cli: Any
    name: str
    verb: Verb
    output: argparse.Action
    input: argparse.Action


def verbs() -> Iterator[tuple[str, Any, str, Verb]]:
    for command, cli in COMMANDS.items():
        for name, (verb, _) in cli.VERBS.items():
            yield command, cli, name, verb


def settings(verb: Verb) -> Mapping[str, Mapping[str, Any]]:
    return {field.name: field.metadata for field in fields_of(options_class(verb))}


def is_read(flag: argparse.Action, settings: Mapping[str, Any]) -> bool:
    return "writes" not in settings and (flag.type is Path or "reads" in settings)


CASES = {
    f"{command} {name} {output.dest} {read.dest}": Case(cli, name, verb, output, read)
    for command, cli, name, verb in verbs()
    for output in flags_of(verb)
    if "writes" in settings(verb)[output.dest]
    for read in flags_of(verb)
    if is_read(read, settings(verb)[read.dest])
}
FORCED = {
    f"{command} {name}": Case(cli, name, verb, output, output)
    for command, cli, name, verb in verbs()
    if "force" in settings(verb)
    for output in flags_of(verb)
    if output.dest == "output"
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
forced = pytest.mark.parametrize("case", FORCED.values(), ids=FORCED)


def text_of(case: Case, path: Path) -> str:
    """What the input's flag is given, so that `path` is read."""
    reads = settings(case.verb)[case.input.dest].get("reads")
    if reads is None:
        return str(path)
    for form in FORMS:
        text = form.format(path)
        try:
            value = case.input.type(text) if callable(case.input.type) else text
        except argparse.ArgumentTypeError:
            continue
        if reads(value) == path:
            return text
    raise AssertionError(f"no form of {case.input.dest} names a file")


def command_line(case: Case, tmp_path: Path, given: Mapping[str, str]) -> list[str]:
    """The verb with the `given` flags, and something for those that it cannot do without."""
    words = [case.name]
    for flag in sorted(flags_of(case.verb), key=lambda flag: bool(flag.option_strings)):
        value = given.get(flag.dest)
        if value is None and flag.required:
            value = next(
                iter(flag.choices or ["humaneval" if flag.dest == "source" else str(tmp_path / flag.dest)])
            )
        if flag.dest == "force":
            words.append("--force")
        elif value is not None:
            words += [*flag.option_strings[-1:], value]
    return words


def tree(folder: Path) -> dict[str, str | None]:
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(case: Case, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert case.cli.main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_every_output_says_that_it_is_one() -> None:
    """A path that says nothing is an input; a text that names a file says how."""
    for command, _, name, verb in verbs():
        writes = {field for field, setting in settings(verb).items() if "writes" in setting}
        assert ("output" in settings(verb)) == ("output" in writes), (command, name)
        if writes:
            for flag in flags_of(verb):
                silent = flag.type is None and flag.nargs != 0 and not flag.choices
                assert not silent or flag.dest in WORDS or "reads" in settings(verb)[flag.dest], flag


@cases
@pytest.mark.parametrize("place", ["is", "contains", "lies inside"])
@pytest.mark.parametrize("through_link", [False, True])
def test_an_output_is_no_input(
    case: Case, place: str, through_link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = tmp_path / "around" / "read"
    read.mkdir(parents=True)
    (read / "config.json").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "around")
    output = {"is": read, "contains": read.parent, "lies inside": read / "new"}[place]
    writes = settings(case.verb)[case.output.dest]["writes"]
    if place == "contains" and writes != "folder":
        return  # what it gets is new, and nothing goes
    if through_link:
        output = tmp_path / "link" / output.relative_to(read.parent)
    before = tree(tmp_path)
    given = {case.input.dest: text_of(case, read), case.output.dest: str(output)}
    line = refused(case, command_line(case, tmp_path, given), capsys)
    assert f"the output {output} {place} {read}, which is read" in line
    assert tree(tmp_path) == before


@forced
def test_force_replaces_nothing_that_is_not_ours(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "thesis", tmp_path / "home"
    file.write_text("precious")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "notes.txt").write_text("precious")
    (folder / "manifest.json").write_text('{"name": "an app", "files": {"deep/notes.txt": 1}}')
    before = tree(tmp_path)
    writes = settings(case.verb)["output"]["writes"]
    for output in (file, folder) if writes == "folder" else (folder,):
        line = refused(case, command_line(case, tmp_path, {"output": str(output)}), capsys)
        assert str(output) in line
        assert "choose another output" in line
    assert tree(tmp_path) == before


@forced
def test_nothing_is_replaced_without_force(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "old"
    output.touch() if settings(case.verb)["output"]["writes"] == "file" else output.mkdir()
    words = [word for word in command_line(case, tmp_path, {"output": str(output)}) if word != "--force"]
    assert "replace it with --force" in refused(case, words, capsys)


@forced
def test_two_outputs_are_not_one(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink(tmp_path / "one", tmp_path / "link")
    for name, setting in settings(case.verb).items():
        if "writes" in setting and name != "output":
            given = {"output": str(tmp_path / "one"), name: str(tmp_path / "link")}
            assert "cannot hold two things" in refused(case, command_line(case, tmp_path, given), capsys)


def test_a_file_that_is_linked_from_an_input_is_an_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint of links to another one's weights, as a hub cache has them."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    (old / "model.safetensors").write_text("precious")
    (new / "model.safetensors").symlink_to(old / "model.safetensors")
    case = CASES["pangu-convert transformers output checkpoint"]
    assert "contains" in refused(case, ["transformers", str(new), "--output", str(old), "--force"], capsys)
    assert (old / "model.safetensors").read_text() == "precious"


@pytest.mark.parametrize("record", ["manifest.json", "import.json", "training.json"])
def test_only_the_files_that_a_record_names_are_ours(record: str, tmp_path: Path) -> None:
    from pangu_training.stage.errors import OutputError

    (tmp_path / "model.safetensors").touch()
    with pytest.raises(OutputError, match=r"holds model\.safetensors"):
        require_free(tmp_path, "folder", force=True)
    (tmp_path / record).write_text('{"source": "x", "files": {"model.safetensors": "0"}}')
    require_free(tmp_path, "folder", force=True)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.txt").touch()
    with pytest.raises(OutputError, match=r"holds deep/mine\.txt"):
        require_free(tmp_path, "folder", force=True)
