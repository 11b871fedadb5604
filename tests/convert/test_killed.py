"""A verb that is killed at any moment, or finds the disk full at any moment, leaves nothing that passes for a whole
folder, and the same command then gives what it would have given undisturbed. (With `step=1` every change on the disk is
tried, which takes minutes.)"""

from pathlib import Path
from typing import Any

import pytest
from support.adapters import save_adapter
from support.commands import SMALL, pangu_convert
from support.gguf_files import gguf_content
from support.hub import hub_environment, serve_hub
from support.killing import Job, harmed
from support.packers import AWQ, save_packed
from support.ranked_rows import write_rows
from support.scripted import byte_tokenizer
from support.tiny import save_tiny

SHORT = ("--max-length", "128", "--global-batch", "4", "--micro-batch", "4", "--epochs", "1")
NAMES = ("import", "hub", "gguf", "transformers", "ctranslate2", "gptq", "force", "export", "adopt", "merge")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_bytes: Path) -> dict[str, dict[str, Any]]:
    """One process harms all verbs: it loads their libraries once."""
    folder = tmp_path_factory.mktemp("harmed")
    llama = save_tiny(folder / "llama", byte_tokenizer(), "llama", num_hidden_layers=1)
    packed = save_packed(llama, folder / "packed", AWQ)
    adapter = save_adapter(tiny_bytes, folder / "adapter", target_modules=["c_attn"])
    gguf = gguf_content(llama, "llama").write(folder / "tiny.gguf")
    rows, run = write_rows(folder / "rows.jsonl", 4), folder / "run"
    fit = ("train", "fit", rows, "--checkpoint", tiny_bytes, "--output", run, *SHORT)
    arguments: dict[str, tuple[object, ...]] = {
        "import": ("import", tiny_bytes),
        "hub": ("import", "owner/repo"),
        "gguf": ("import", gguf),
        "transformers": ("transformers", tiny_bytes),
        "ctranslate2": ("ctranslate2", tiny_bytes, "--no-smooth"),
        "gptq": ("gptq", llama, *SMALL),
        "force": ("transformers", tiny_bytes, "--force"),
        "export": ("export", run),
        "adopt": ("adopt", packed),
        "merge": ("import", adapter),
    }
    pangu_convert("ctranslate2", tiny_bytes, "--no-smooth", "--output", folder / "force" / "in" / "out")
    jobs = {
        name: Job(
            command="train" if name == "export" else "convert",
            arguments=[str(word) for word in words],
            output=str(folder / name / "in" / "out"),
            step=25 if name == "hub" else 9,
            before=[[str(word) for word in fit]] if name == "export" else [],
        )
        for name, words in arguments.items()
    }
    for job in jobs.values():
        Path(job.output).parent.mkdir(parents=True, exist_ok=True)
    with serve_hub(tiny_bytes) as address:
        return harmed(jobs, folder / "kept", hub_environment(address, folder / "cache"))


@pytest.mark.parametrize("name", NAMES)
def test_a_verb_is_whole_or_absent(name: str, results: dict[str, dict[str, Any]]) -> None:
    result = results[name]
    assert not result["wrong"]
    assert result["killed"] > 5
    assert result["disk_full"] > 5
