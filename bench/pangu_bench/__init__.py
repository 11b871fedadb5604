"""Stage 4 of 4: what an artifact costs and what it solves (`pangu-bench`).

from pangu_bench import compare
report = compare(["baseline", "int8"], "results", limit=20)
"""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any


def compare(
    artifacts: Iterable[str | PathLike[str]], output: str | PathLike[str], **options: Any
) -> dict[str, Any]:
    """Measure the artifacts, of which the first is the baseline, as `pangu-bench compare` does; `options` are its own.

    Rows, table and page are in the folder `output`; returned is the report of its `compare.json`.

    Raises:
        PanguError: the verb's, as on the command line.
        TypeError: the verb has no such option.
    """
    from pangu_bench.comparison import CompareOptions, compared
    from pangu_training.stage.options import options_of
    from pangu_training.stage.paths import check_paths

    paths = {"artifacts": tuple(map(Path, artifacts)), "output": Path(output)}
    filled = options_of(CompareOptions, **paths, **options)
    check_paths(filled)
    return compared(filled)
