"""The editor's TTFT in `compare`: keystrokes into the middle file, in the rows of `pangu-bench editor`."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_bench.editing import figures, is_typed, type_files
from pangu_bench.editor import ROWS, configuration
from pangu_bench.options import MIDDLE_FILE, EditorOptions, UsageError
from pangu_bench.rows import RowFile, ServedRow
from pangu_training.asking.endpoint import Endpoint, ServedError, file_stem


@dataclass(slots=True)
class EditorColumn:
    """What is measured, and why not; `rows` is None where nothing is to be."""

    rows: RowFile | None
    options: EditorOptions
    not_typed: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing that can be had."""
        return self.rows is None or is_typed(self.rows, [MIDDLE_FILE])

    def measure(self, endpoint: Endpoint, tokenizer: Any, started: ServedRow | None = None) -> None:
        """Append the rows that are missing; `started` is the server's start, if it is not a stranger's."""
        if self.rows is None or self.is_complete:
            return
        if started is not None and not self.rows.has(ServedRow, started.started_at):
            self.rows.append(started)
        try:
            asyncio.run(type_files(self.rows, endpoint, tokenizer, [MIDDLE_FILE], self.options))
        except (ServedError, UsageError) as error:  # its score can still be had
            self.not_typed = _why(error)

    def figures(self) -> dict[str, Any]:
        """What the costs say of it."""
        typed = figures(self.rows, [MIDDLE_FILE]) if self.rows is not None else []
        return {"editor": typed[0] if typed else None, "not_typed": self.not_typed}


@contextlib.contextmanager
def editor_column(
    folder: Path, name: str, subject: Mapping[str, Any], context: int | None, keystrokes: int
) -> Iterator[EditorColumn]:
    """The column of the model `name`; `keystrokes` of 0 leave it out.

    Raises:
        RowsError: the rows that are there were measured with other options.
    """
    options = EditorOptions(keystrokes=keystrokes)
    if keystrokes == 0:
        yield EditorColumn(None, options)
        return
    try:
        options.check(name, context, MIDDLE_FILE)
    except UsageError as error:
        yield EditorColumn(None, options, _why(error))
        return
    with RowFile(folder / f"{file_stem(name)}.{ROWS}", configuration(subject, options)) as rows:
        yield EditorColumn(rows, options)


def _why(error: Exception) -> str:
    return f"the editor's TTFT is not measured: {error}"
