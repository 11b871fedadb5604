"""The base of a LoRA adapter: found, or asked for; checked where the adapter says which it was; named in the record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.adapters import TWO, imported, merged_by_peft, refused, same, save_adapter, set_config
from support.damage import copied
from support.gguf_files import gguf_content
from support.hub import commit_of, serve_hub, use_hub

from pangu_convert import cli
from pangu_convert.artifact import read_artifact
from pangu_training.stage.checkpoint import read_checkpoint
from pangu_training.stage.identity import checkpoint_hash

Make = Callable[[str], Path]


def test_a_base_that_is_told_is_checked(
    made: Make, adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = copied(adapters("plain"), tmp_path / "adapter")
    imported(adapter, tmp_path / "unknown")
    assert "does not say which weights it was trained on" in capsys.readouterr().err
    sha256 = checkpoint_hash(read_checkpoint(made("qwen2_tied")))
    base = {"name": "panda", "sha256": sha256}
    told = {"base": {**base, "path": "/home/me"}, "data": {"used": 3}, "checkpoint": "/home/me/panda"}
    (adapter / "training.json").write_text(json.dumps(told))
    imported(adapter, tmp_path / "known")
    assert "caution" not in capsys.readouterr().err
    found: list[Any] = [read_checkpoint(tmp_path / name).provenance for name in ("unknown", "known")]
    assert [one["base"]["checked"] for one in found] == [False, True]
    assert [one["base"]["sha256"] for one in found] == [sha256] * 2
    assert found[1]["adapter"]["training"] == {"base": base, "data": {"used": 3}}, "nothing of the machine"
    (adapter / "training.json").write_text(json.dumps({"base": {"name": "panda", "sha256": "0" * 64}}))
    assert "is not the checkpoint that" in refused(capsys, adapter, tmp_path / "out")


def test_a_base_is_found_or_asked_for(
    made: Make, adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = copied(adapters("plain"), tmp_path / "adapter"), tmp_path / "out"
    for name, message in ((None, "does not name its base"), ("/gone/base", "is not here")):
        set_config(adapter, base_model_name_or_path=name)
        assert f"{message}" in (error := refused(capsys, adapter, out))
        assert "give it with --base" in error
    gguf = gguf_content(made("qwen2_tied"), "qwen2").write(tmp_path / "base.gguf")
    imported(adapter, out, "--base", gguf)
    provenance: Any = read_checkpoint(out).provenance
    assert provenance["quantized_source"]["type"] == "F32"
    assert provenance["base"]["name"] == "base.gguf"
    error = refused(capsys, made("llama"), tmp_path / "none", "--base", made("llama"))
    assert "--base is of a LoRA adapter" in error
    assert "--base" in refused(capsys, gguf, tmp_path / "none", "--base", made("llama"))
    hub = Path("owner/repo/model-q8_0.gguf")  # nothing is asked of the hub
    assert "--base is of a LoRA adapter" in refused(capsys, hub, tmp_path / "none", "--base", made("llama"))
    error = refused(capsys, adapter, tmp_path / "none", "--base", made("gpt_bigcode"))
    assert (
        "names the module q_proj in target_modules, which its base has not" in error or "down_proj" in error
    )


def test_a_base_that_the_adapter_names_is_not_overwritten(
    made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    assert cli.main(["import", str(made("qwen2_tied")), "--output", str(base)]) == 0
    adapter = save_adapter(base, tmp_path / "adapter", **TWO)
    before = checkpoint_hash(read_checkpoint(base))
    assert cli.main(["import", str(adapter), "--output", str(base), "--force"]) == 2
    assert f"the output {base} is {base}, which is read" in capsys.readouterr().err
    assert checkpoint_hash(read_checkpoint(base)) == before


def test_adapter_and_base_come_from_the_hub_by_commit(
    made: Make, adapters: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One repository with two branches: the adapter's is main, and it names its base's."""
    base = made("qwen2_tied")
    adapter = copied(adapters("plain"), tmp_path / "repository")
    set_config(adapter, base_model_name_or_path="owner/repo", revision="base")
    (adapter / "adapter_model.bin").write_bytes(b"a pickle that nobody asked for")
    with serve_hub(adapter, {"base": base}) as address:
        use_hub(monkeypatch, address, tmp_path / "home")
        merged = imported("owner/repo", tmp_path / "out")
    assert same(merged, merged_by_peft(base, adapters("plain")))
    provenance: Any = read_checkpoint(tmp_path / "out").provenance
    assert (provenance["source"], provenance["commit"]) == ("owner/repo", commit_of(adapter))
    assert provenance["base"]["provenance"]["commit"] == commit_of(base)
    assert not list((tmp_path / "home").rglob("*.bin"))


def test_an_adapters_own_tokenizer_is_taken(made: Make, adapters: Make, tmp_path: Path) -> None:
    adapter, base = copied(adapters("plain"), tmp_path / "adapter"), made("qwen2_tied")
    shutil.copy(base / "tokenizer.json", adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    imported(adapter, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text().endswith("!")
    assert not (tmp_path / "out" / "tokenizer_config.json").exists(), "the base's is of another tokenizer"
    assert (tmp_path / "out" / "generation_config.json").exists()
    assert (base / "tokenizer_config.json").exists()


def test_a_merged_model_is_a_checkpoint_like_any_other(adapters: Make, tmp_path: Path) -> None:
    imported(adapters("plain"), tmp_path / "merged")
    assert cli.main(["transformers", str(tmp_path / "merged"), "--output", str(tmp_path / "artifact")]) == 0
    provenance = read_artifact(tmp_path / "artifact").manifest.source.provenance
    assert provenance is not None
    assert provenance["note"] == "a LoRA adapter merged into its base in float32, rounded once to float32"


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer_config.json", "training.json"])
def test_a_link_out_of_the_adapter_is_refused(
    name: str, made: Make, adapters: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else what it leads to would end in the checkpoint."""
    adapter = copied(adapters("plain"), tmp_path / "adapter")
    shutil.copyfile(made("llama") / "tokenizer.json", adapter / "tokenizer.json")
    (tmp_path / "secret").write_text("{}")
    (adapter / name).unlink(missing_ok=True)
    (adapter / name).symlink_to(tmp_path / "secret")
    error = refused(capsys, adapter, tmp_path / "out")
    assert f"{name} cannot be read (it is a link to " in error
