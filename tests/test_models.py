"""The page of models says what the code goes by."""

import runpy

from support import ROOT


def test_the_page_of_models_is_the_table() -> None:
    table = runpy.run_path(str(ROOT / "docs" / "scripts" / "models.py"))["table"]()
    assert table in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
