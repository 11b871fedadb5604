"""A GGUF file that is wrong in any one way is refused by name, or comes out exactly as it would have."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gguf_files import Content, gguf_content
from support.scripted import byte_tokenizer
from support.tiny import save_tiny

from pangu_convert import cli
from pangu_convert.gguf_import import import_gguf
from pangu_training.stage.errors import CheckpointError


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    return save_tiny(
        folder, byte_tokenizer(), "llama", num_hidden_layers=1, hidden_size=32, attention_bias=True
    )


def content_of(checkpoint: Path) -> Content:
    """A file with most of what a file can have."""
    content = gguf_content(checkpoint, "llama")
    content.keys |= {
        "general.type": "model",
        "general.quantization_version": 2,
        "general.alignment": 32,
        "llama.vocab_size": 261,
        "llama.rope.dimension_count": 8,
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 64,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.add_bos_token": True,
    }
    return content


def outcome(gguf: Path, folder: Path) -> str | dict[str, bytes]:
    """The refusal, or the files that came out. Any other exception fails the test."""
    folder.mkdir()
    try:
        import_gguf(gguf, folder, "float32")
    except CheckpointError as error:
        return str(error)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def renamed_bytes(path: Path, name: str, new: str) -> Path:
    """Rename in the written file, where the writer itself would not."""
    data = path.read_bytes()
    assert len(name) == len(new)
    assert data.count(name.encode()) == 1
    path.write_bytes(data.replace(name.encode(), new.encode()))
    return path


def test_each_tensor_is_used_once_or_refused(tmp_path: Path, llama: Path) -> None:
    for number, name in enumerate(content_of(llama).tensors):
        removed, renamed, doubled, reshaped = (content_of(llama) for _ in range(4))
        del removed.tensors[name]
        renamed.tensors["x" + name] = renamed.tensors.pop(name)
        # Not in the last place: a name's twin comes before the name as well.
        doubled.tensors = {name[:-1] + "~": doubled.tensors[name], **doubled.tensors}
        reshaped.tensors[name] = np.concatenate([reshaped.tensors[name]] * 2)
        for wrong, change in enumerate((removed, renamed, reshaped)):
            gguf = change.write(tmp_path / f"{number}-{wrong}.gguf")
            found = outcome(gguf, tmp_path / f"out{number}-{wrong}")
            if change is removed and name == "output.weight":
                assert isinstance(found, dict)  # a file of a model that ties it
                assert b'"tie_word_embeddings": true' in found["config.json"]
            else:
                assert name in found, (name, wrong, found)
                assert isinstance(found, str), (name, wrong)
        gguf = renamed_bytes(doubled.write(tmp_path / "doubled.gguf"), name[:-1] + "~", name)
        assert f"{name} twice" in outcome(gguf, tmp_path / f"doubled{number}")


def test_each_key_is_used_or_refused(tmp_path: Path, llama: Path) -> None:
    """Removed, misspelt, twice, or of a wrong value: by name, or without any effect."""
    whole = outcome(content_of(llama).write(tmp_path / "whole.gguf"), tmp_path / "whole")
    assert isinstance(whole, dict), whole
    optional = {  # without them a file means something else, which is then what comes out
        "llama.rope.scaling.factor",
        "llama.rope.scaling.type",
        "llama.rope.scaling.original_context_length",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.chat_template",
        "llama.attention.head_count_kv",
    }
    for number, (name, value) in enumerate(content_of(llama).keys.items()):
        if name == "general.architecture":
            continue
        removed, misspelt, doubled = (content_of(llama) for _ in range(3))
        del removed.keys[name]
        misspelt.keys[name + "x"] = misspelt.keys.pop(name)
        doubled.keys[name[:-1] + "~"] = value
        for kind, change in (("removed", removed), ("misspelt", misspelt)):
            found = outcome(change.write(tmp_path / f"{number}{kind}.gguf"), tmp_path / f"{number}{kind}")
            if isinstance(found, dict):
                assert found == whole or (kind == "removed" and name in optional), (name, kind)
                assert kind == "removed" or name.startswith("general."), name
            else:
                last = name.rsplit(".", 1)[-1]
                assert last in found or (kind == "removed" and name in optional), (name, kind, found)
        gguf = doubled.write(tmp_path / f"{number}doubled.gguf")
        gguf = renamed_bytes(gguf, name[:-1] + "~", name)
        assert f"{name!r} twice" in outcome(gguf, tmp_path / f"{number}doubled")


def test_no_value_of_a_key_is_a_traceback(tmp_path: Path, llama: Path) -> None:
    wrong: list[Any] = [
        True,
        "text",
        "",
        0,
        1,
        7,
        2**31,
        2**32 - 1,
        0.0,
        -1.0,
        float("nan"),
        float("inf"),
        [1],
        ["a"],
    ]
    for number, name in enumerate(content_of(llama).keys):
        if name == "general.architecture":
            continue
        for place, value in enumerate(wrong):
            content = content_of(llama)
            content.keys[name] = value
            # What the writer itself uses or refuses is not the point here.
            if name == "general.alignment" and value not in (0, 1, 7):
                continue
            outcome(content.write(tmp_path / "wrong.gguf"), tmp_path / f"{number}-{place}")


def test_no_damaged_byte_is_a_traceback(tmp_path: Path, llama: Path) -> None:
    data = content_of(llama).write(tmp_path / "whole.gguf").read_bytes()
    random.seed(0)
    header = data.index(b"output_norm") + 500
    for number in range(60):
        place, damaged = random.randrange(4, header), bytearray(data)
        damaged[place] ^= 1 << random.randrange(8)
        cut = random.randrange(len(data))
        for kind, some in (("flipped", bytes(damaged)), ("cut", data[:cut])):
            gguf = tmp_path / f"{kind}.gguf"
            gguf.write_bytes(some)
            found = outcome(gguf, tmp_path / f"{kind}{number}")
            assert kind == "flipped" or isinstance(found, str)


def bomb(*values: tuple[str, int]) -> bytes:
    """A header with one key, then these little-endian numbers."""
    head = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    key = b"a" * 3
    numbers = b"".join(value.to_bytes({"I": 4, "Q": 8}[code], "little") for code, value in values)
    return head + len(key).to_bytes(8, "little") + key + numbers


NESTED = [("I", 9), *[("I", 9), ("Q", 1)] * 3000]


@pytest.mark.parametrize(
    "data",
    [
        bomb(("I", 9), ("I", 4), ("Q", 2**40)),
        bomb(("I", 9), ("I", 8), ("Q", 2**40)),
        bomb(("I", 8), ("Q", 2**63)),
        bomb(*NESTED),
        b"GGUF" + (3).to_bytes(4, "little") + (2**62).to_bytes(8, "little") * 2,
        b"GGUF",
    ],
    ids=["numbers", "texts", "text", "nested", "counts", "empty"],
)
def test_a_bomb_is_one_line_at_once(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bomb.gguf").write_bytes(data)
    assert "damaged or cut short" in outcome(tmp_path / "bomb.gguf", tmp_path / "out")


def refusal(capsys: pytest.CaptureFixture[str], gguf: Path) -> str:
    """The one line of an import that must exit 2 and leave nothing."""
    out = gguf.parent / "new" / "out"
    assert cli.main(["import", str(gguf), "--output", str(out)]) == 2
    assert not list(out.parent.iterdir())
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("pangu-convert: error: ")
    return lines[-1]


def set_key(name: str, value: Any) -> Callable[[Content], None]:
    return lambda content: content.keys.update({name: value})


def factors(content: Content) -> None:
    content.keys = {name: value for name, value in content.keys.items() if "scaling" not in name}
    content.tensors["rope_freqs.weight"] = np.asarray([1, 1, 2, 3], dtype=np.float32)


def not_a_number(content: Content) -> None:
    content.tensors["blk.0.ffn_up.weight"] = content.tensors["blk.0.ffn_up.weight"].copy()
    content.tensors["blk.0.ffn_up.weight"][3, 3] = np.nan


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (set_key("general.file_type", 999), "general.file_type is 999"),
        (set_key("general.type", "adapter"), "general.type is 'adapter'"),
        (set_key("general.quantization_version", 1), "general.quantization_version is 1"),
        (set_key("llama.rope.scaling.type", "longrope"), "llama.rope.scaling.type is 'longrope'"),
        (
            set_key("llama.rope.scaling.yarn_log_multiplier", 0.1),
            "llama.rope.scaling.yarn_log_multiplier is 0.1",
        ),
        (set_key("llama.expert_count", 8), "llama.expert_count is 8"),
        (set_key("llama.attention.sliding_window", 64), "llama.attention.sliding_window is 64"),
        (set_key("llama.logit_scale", 2.0), "the key llama.logit_scale"),
        (set_key("llama.block_count", 10**9), "llama.block_count is 1000000000"),
        (set_key("tokenizer.ggml.eos_token_id", 261), "tokenizer.ggml.eos_token_id is 261"),
        (set_key("tokenizer.ggml.eos_token_id", "256"), "tokenizer.ggml.eos_token_id is '256'"),
        (set_key("tokenizer.ggml.add_space_prefix", True), "tokenizer.ggml.add_space_prefix is True"),
        (set_key("tokenizer.ggml.pre", "novel"), "tokenizer (model gpt2, pre novel) is not one of"),
        (set_key("tokenizer.ggml.model", "t5"), "tokenizer (model t5, pre qwen2) is not one of"),
        (set_key("tokenizer.ggml.merges", ["a nothing"]), "joins 'a' and 'nothing'"),
        (set_key("general.architecture", "gemma"), "architecture 'gemma'; GGUF import takes llama, qwen2"),
        (factors, "rope_freqs.weight is not the frequency scaling of Llama 3"),
        (not_a_number, "blk.0.ffn_up.weight has a weight that is not a finite number"),
    ],
)
def test_what_cannot_be_taken_is_named(
    tmp_path: Path,
    llama: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Content], None],
    expected: str,
) -> None:
    content = content_of(llama)
    change(content)
    assert expected in refusal(capsys, content.write(tmp_path / "tiny.gguf"))


def test_an_unknown_tensor_type_is_named(
    tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = content_of(llama).write(tmp_path / "tiny.gguf")
    data = bytearray(gguf.read_bytes())
    place = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    assert data[place : place + 4] == bytes(4)  # float32
    data[place] = 200
    gguf.write_bytes(data)
    assert "'output_norm.weight' as type 200" in refusal(capsys, gguf)


def test_a_missing_part_is_named(tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = content_of(llama).write(tmp_path / "tiny.gguf", tensors_per_part=6)
    second, third = (tmp_path / f"tiny-0000{number}-of-00003.gguf" for number in (2, 3))
    third.rename(tmp_path / "third")
    assert "tiny-00003-of-00003.gguf is missing" in refusal(capsys, second)
    (tmp_path / "third").rename(third)
    alone = first.rename(tmp_path / "renamed.gguf")
    assert "part 1 of 3 by its own header" in refusal(capsys, alone)
    alone.rename(first)
    second.rename(tmp_path / "other")
    third.rename(second)
    (tmp_path / "other").rename(third)
    assert "part 3 of 3 by its own header" in refusal(capsys, first)
