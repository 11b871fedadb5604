"""Problems and responses in files, as the ranker reads them."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pangu_training.data.responses import Response
from pangu_training.stage.line_file import key_of


def response(problem: str, role: str, text: str, **fields: Any) -> Response:
    """A recorded response, of a source that is named by its role, or what `fields` say."""
    row: dict[str, Any] = dict.fromkeys(Response.__dataclass_fields__)
    row |= {"problem": problem, "role": role, "text": text, "source": role, "style": "recorded", "sample": 0}
    return Response(**row | fields | {"key": key_of(problem, role, text, fields)})


def write_lines(path: Path, rows: Iterable[Response | dict[str, Any]]) -> Path:
    """`rows` as JSON lines."""
    lines = (json.dumps(row if isinstance(row, dict) else asdict(row)) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
