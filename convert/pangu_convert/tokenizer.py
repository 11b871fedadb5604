"""A `tokenizer.json` from the vocabulary inside a GGUF file.

transformers can do this too, but it leaves out the split of digits (SmolLM2, StarCoder) and the Unicode
normalisation (Qwen2), which changes the tokens of some texts without a word. Here the `tokenizer.ggml.pre`
field chooses the pre-tokenizer that the model was trained with, and an unknown one is refused.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pangu_convert.gguf_file import read_gguf
from pangu_convert.gguf_keys import GgufKeys
from pangu_training.stage.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Token types of GGUF (llama.cpp, gguf-py `TokenType`)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Tokens that a file names by `tokenizer.ggml.ROLE_token_id`; those of the first list are not text.
ROLES = (
    *("bos", "eos", "eot", "eom", "prefix", "suffix", "middle"),
    *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
)
PLAIN_ROLES = ("unknown", "padding", "seperator", "cls", "mask")
# Besides the tokens that the file names, these end a plain completion where they are control tokens.
END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>")
SPACE = "\u2581"  # SentencePiece's mark of a space
# Of a SentencePiece vocabulary, whose merges are searched for. Llama 2 has 61,249, and its longest token 16 characters.
MOST_CHARACTERS, MOST_MERGES = 256, 4_000_000
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# It splits one kind of character after the other: line ends, words, punctuation, Chinese and Korean, digits.
DEEPSEEK_CODER_SPLITS = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A GGUF file's tokenizer, the size of its vocabulary with filling, and the tokens that it names."""

    tokenizer: "Tokenizer"
    size: int
    beginning: int | None
    unknown: int | None
    padding: int | None
    ends: tuple[int, ...]


def read_vocabulary(keys: GgufKeys) -> Vocabulary:
    """Take the tokenizer's keys out of `keys`.

    Raises:
        CheckpointError: the vocabulary is of a kind, or has a pre-tokenizer, that is not known here; or it
            contradicts itself.
    """
    kind, pre = keys.text("tokenizer.ggml.model"), keys.text("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama") or pre not in (PRE_TOKENIZERS if kind == "gpt2" else (None, "default")):
        raise CheckpointError(
            f"{keys.name}: its tokenizer (model {kind}, pre {pre}) is not one of {', '.join(PRE_TOKENIZERS)} or "
            "SentencePiece (model llama, pre default): import the model's Hugging Face folder instead"
        )
    texts: list[str] = keys.items("tokenizer.ggml.tokens", str)
    types: list[int] = keys.items("tokenizer.ggml.token_type", int)
    scores: list[float] = keys.items("tokenizer.ggml.scores", float)
    merges: list[str] = []
    if kind == "gpt2":  # a SentencePiece vocabulary's merges come from its scores
        merges = keys.items("tokenizer.ggml.merges", str)
    _check_tables(keys.name, texts, types, scores if kind == "llama" else None)
    size = len(texts)
    while texts and texts[-1] == f"[PAD{len(texts) - 1}]":  # filled up to the embedding's row count
        texts.pop()
    named = {
        name: keys.token(f"tokenizer.ggml.{name}_token_id", len(texts)) for name in (*ROLES, *PLAIN_ROLES)
    }
    if named["eos"] is None:
        raise keys.refused("tokenizer.ggml.eos_token_id", None, "the token that ends a text")
    for role in ROLES:  # some writers leave these among the ordinary tokens
        token_id = named[role]
        if token_id is not None and types[token_id] == NORMAL:
            types[token_id] = CONTROL
    keys.neutral("tokenizer.ggml.remove_extra_whitespaces", False)
    keys.neutral("tokenizer.ggml.precompiled_charsmap", [])
    keys.neutral("tokenizer.ggml.add_sep_token", False)
    if kind == "llama":
        spaced = keys.flag("tokenizer.ggml.add_space_prefix", True)
        tokenizer = _sentence_piece(keys.name, texts, types, scores, prefix=spaced, unknown=named["unknown"])
    else:
        keys.neutral("tokenizer.ggml.add_space_prefix", False)
        tokenizer = _byte_level(keys.name, texts, merges, str(pre))
    tokenizer.add_tokens(
        [
            _added(text, token_type)
            for text, token_type in zip(texts, types, strict=False)
            if token_type in ((CONTROL, USER_DEFINED) if kind == "gpt2" else (UNKNOWN, CONTROL, USER_DEFINED))
        ]
    )
    # llama.cpp's defaults: these two kinds of models were trained with a token at the beginning.
    begins = keys.flag("tokenizer.ggml.add_bos_token", kind == "llama" or pre == "llama-bpe")
    ends = keys.flag("tokenizer.ggml.add_eos_token", False)
    if begins and named["bos"] is None:
        raise keys.refused(
            "tokenizer.ggml.bos_token_id", None, "the token at the beginning, as add_bos_token asks"
        )
    _add_around(tokenizer, named["bos"] if begins else None, named["eos"] if ends else None)
    control = {text: token_id for token_id, text in enumerate(texts) if types[token_id] == CONTROL}
    all_ends = [named["eos"], named["eot"], named["eom"], *(control.get(text) for text in END_OF_TEXT)]
    return Vocabulary(
        tokenizer=tokenizer,
        size=size,
        beginning=named["bos"],
        unknown=named["unknown"],
        padding=named["padding"],
        ends=tuple(dict.fromkeys(token_id for token_id in all_ends if token_id is not None)),
    )


def starcoder_tokenizer(vocabulary: Path) -> "Tokenizer":
    """StarCoder's tokenizer, 49,152 tokens, from `catalogue.STARCODER_VOCABULARY`."""
    return read_vocabulary(GgufKeys(read_gguf(vocabulary))).tokenizer


def _check_tables(name: str, texts: list[str], types: list[int], scores: list[float] | None) -> None:
    if len(types) != len(texts) or not texts:
        raise CheckpointError(
            f"{name}: tokenizer.ggml.token_type has {len(types)} entries for {len(texts)} tokens"
        )
    if unknown := set(types) - set(range(NORMAL, BYTE + 1)):
        raise CheckpointError(f"{name}: tokenizer.ggml.token_type has the unknown type {min(unknown)}")
    if len(set(texts)) != len(texts):
        twice = Counter(texts).most_common(1)[0][0]
        raise CheckpointError(
            f"{name}: tokenizer.ggml.tokens has {twice!r} twice: one of the two could not be encoded"
        )
    if scores is not None and (len(scores) != len(texts) or len(set(scores)) < 2):
        raise CheckpointError(
            f"{name}: tokenizer.ggml.scores does not order the {len(texts)} tokens, and without an order no text "
            "can be encoded: import the model's Hugging Face folder instead"
        )


def _added(text: str, token_type: int) -> Any:
    from tokenizers import AddedToken

    return AddedToken(text, special=token_type != USER_DEFINED, normalized=False)


def _add_around(tokenizer: "Tokenizer", beginning: int | None, end: int | None) -> None:
    from tokenizers import processors

    pairs = [
        (str(tokenizer.id_to_token(token_id)), token_id)
        for token_id in (beginning, end)
        if token_id is not None
    ]
    if pairs:
        before, after = (beginning is not None) * [pairs[0][0]], (end is not None) * [pairs[-1][0]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after], special_tokens=list(dict(pairs).items())
        )


def _byte_level(name: str, texts: list[str], merges: list[str], pre: str) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models

    vocabulary = {text: token_id for token_id, text in enumerate(texts)}
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise CheckpointError(
                f"{name}: tokenizer.ggml.merges joins {left!r} and {right!r}, which are not all tokens"
            )
        pairs.append((left, right))
    # Llama 3 takes a whole word that is a token, whatever the merges would make of it.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe"))
    PRE_TOKENIZERS[pre](tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(
    name: str, texts: list[str], types: list[int], scores: list[float], *, prefix: bool, unknown: int | None
) -> "Tokenizer":
    """SentencePiece's BPE as Llama 2 has it: the pair whose piece has the highest score is joined first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {text: token_id for token_id, text in enumerate(texts)}
    normal = [
        (text, score) for text, kind, score in zip(texts, types, scores, strict=False) if kind == NORMAL
    ]
    cuts = (
        (score, text[:cut], text[cut:])
        for text, score in normal
        for cut in range(1, min(len(text), MOST_CHARACTERS))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    )
    pairs = list(islice(cuts, MOST_MERGES + 1))
    if len(pairs) > MOST_MERGES or any(len(text) > MOST_CHARACTERS for text, _ in normal):
        raise CheckpointError(
            f"{name}: tokenizer.ggml.tokens does not look like a vocabulary: a token has more than "
            f"{MOST_CHARACTERS} characters, or there are more than {MOST_MERGES} ways to join two"
        )
    # Among equal scores the longest left part first, as in every tokenizer.json made from such a vocabulary.
    pairs.sort(key=lambda pair: (pair[0], len(pair[1]), len(pair[2])), reverse=True)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for _, left, right in pairs],
            unk_token=None if unknown is None else texts[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replaced = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), *replaced] if prefix else replaced
    )
    decoded = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*decoded, decoders.Strip(" ", 1, 0)] if prefix else decoded)
    return tokenizer


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


def _deepseek_coder(tokenizer: "Tokenizer") -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), behavior="isolated") for split in DEEPSEEK_CODER_SPLITS),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS: "dict[str, Callable[[Tokenizer], None]]" = {
    "qwen2": _split(QWEN2_SPLIT, nfc=True),
    "llama-bpe": _split(LLAMA3_SPLIT, nfc=False),
    "smollm": _digits,
    "starcoder": _digits,
    "refact": _digits,
    "deepseek-coder": _deepseek_coder,
}
