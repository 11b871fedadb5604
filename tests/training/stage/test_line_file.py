"""JSON lines that grow, and finished work by key."""

from pathlib import Path

import pytest

from pangu_training.stage.line_file import Journal, LineFileError, key_of


def test_finished_work_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "made" / "work.jsonl"
    with Journal(path) as journal:
        journal.append(key_of("a", 1), {"text": "é"})
    with Journal(path) as journal:
        assert journal.rows == {key_of("a", 1): {"key": key_of("a", 1), "text": "é"}}
    assert key_of("a", 1) != key_of("a", 2)


def test_a_line_that_a_kill_cut_short_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text('{"key": "a"}\n{"key": "b", "te')
    with Journal(path) as journal:
        assert list(journal.rows) == ["a"]
        journal.append("c", {})
    assert path.read_text() == '{"key": "a"}\n{"key": "c"}\n'


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "no key"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "work.jsonl"
    path.write_text('{"key": "a"}\n' + line + "\n")
    with pytest.raises(LineFileError, match="line 2 is damaged"):
        Journal(path)
    Path(path).write_text("")  # and nothing is locked
    with Journal(path), pytest.raises(LineFileError, match="another process"):
        Journal(path)
