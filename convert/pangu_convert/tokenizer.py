"""A `tokenizer.json` from the vocabulary inside a GGUF file.

transformers can do this too, but it leaves out the split of digits (SmolLM2, StarCoder) and the Unicode
normalisation (Qwen2), which changes the tokens of some texts without a word. Here the `tokenizer.ggml.pre`
field chooses the pre-tokenizer that the model was trained with, and an unknown one is refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_training.stage.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

# Token types of GGUF (llama.cpp, gguf-py `TokenType`)
CONTROL, USER_DEFINED = 3, 4
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gguf_tokenizer(reader: "GGUFReader") -> "Tokenizer":
    """Build the byte-level BPE tokenizer of an open GGUF file.

    Raises:
        CheckpointError: the vocabulary is not byte-level BPE, or its pre-tokenizer is not known here.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors

    kind, pre = field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"the GGUF file's tokenizer ({kind}, {pre}) is not one of {', '.join(PRE_TOKENIZERS)}: import the "
            "model's Hugging Face folder instead"
        )
    texts: list[str] = field(reader, "tokenizer.ggml.tokens")
    types: list[int] = field(reader, "tokenizer.ggml.token_type")
    while texts and texts[-1] == f"[PAD{len(texts) - 1}]":  # filled up to the embedding's row count
        texts.pop()
    merges = [tuple(merge.split(" ", 1)) for merge in field(reader, "tokenizer.ggml.merges") or ()]
    tokenizer = Tokenizer(
        models.BPE(vocab={text: token_id for token_id, text in enumerate(texts)}, merges=merges)
    )
    PRE_TOKENIZERS[pre](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(text, special=token_type == CONTROL, normalized=False)
            for text, token_type in zip(texts, types, strict=False)
            if token_type in (CONTROL, USER_DEFINED)
        ]
    )
    if field(reader, "tokenizer.ggml.add_bos_token"):
        bos = texts[field(reader, "tokenizer.ggml.bos_token_id")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def field(reader: "GGUFReader", name: str) -> Any:
    """The value of a metadata field of a GGUF file, None when it has no such field."""
    found = reader.get_field(name)
    return None if found is None else found.contents()


def starcoder_tokenizer(vocabulary: Path) -> "Tokenizer":
    """StarCoder's tokenizer, 49,152 tokens, from `catalogue.STARCODER_VOCABULARY`."""
    from gguf import GGUFReader

    return gguf_tokenizer(GGUFReader(vocabulary))


def _digits(tokenizer: "Tokenizer") -> None:
    from tokenizers import pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _split(pattern: str, *, nfc: bool) -> "Callable[[Tokenizer], None]":
    def apply(tokenizer: "Tokenizer") -> None:
        from tokenizers import Regex, normalizers, pre_tokenizers

        if nfc:
            tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return apply


PRE_TOKENIZERS: "dict[str, Callable[[Tokenizer], None]]" = {
    "qwen2": _split(QWEN2_SPLIT, nfc=True),
    "llama-bpe": _split(LLAMA3_SPLIT, nfc=False),
    "smollm": _digits,
    "starcoder": _digits,
    "refact": _digits,
}
