"""Checkpoints and artifacts that several tests share, made by the commands that users run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.commands import Artifacts, pangu_convert
from tokenizers import Tokenizer

from pangu_convert.catalogue import STARCODER_VOCABULARY
from pangu_convert.download import cache_folder, fetch
from pangu_convert.tokenizer import starcoder_tokenizer

settings.register_profile("any machine", deadline=None)  # no test asserts a time
settings.load_profile("any machine")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch computes with one thread: the number changes the last bits, and on a busy machine two are slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def starcoder() -> Tokenizer:
    """The real StarCoder tokenizer."""
    return starcoder_tokenizer(fetch(STARCODER_VOCABULARY, cache_folder()))


@pytest.fixture(scope="session")
def tiny_starcoder(tmp_path_factory: pytest.TempPathFactory, starcoder: Tokenizer) -> Path:
    """A random two-layer GPTBigCode checkpoint with the real StarCoder tokenizer."""
    from support.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("checkpoints") / "tiny-starcoder", starcoder, "gpt_bigcode")


@pytest.fixture(scope="session")
def tiny_bigcode(tmp_path_factory: pytest.TempPathFactory, starcoder: Tokenizer) -> Path:
    """Like `tiny_starcoder`, wide enough for groups of 128; its embeddings are tied."""
    from support.tiny import save_tiny

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-bigcode"
    return save_tiny(folder, starcoder, "gpt_bigcode", n_embd=128, n_inner=512)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory, starcoder: Tokenizer) -> Path:
    """A random two-layer Qwen2 checkpoint with tied embeddings and a rope_theta that is not the default."""
    from support.tiny import save_tiny

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-qwen2"
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    return save_tiny(
        folder, starcoder, "qwen2", hidden_size=128, tie_word_embeddings=True, rope_parameters=rope
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct checkpoint, imported once into the cache folder."""
    checkpoint = cache_folder() / "checkpoints" / "smollm2-135m"
    if not (checkpoint / "import.json").is_file():
        pangu_convert("import", "smollm2-135m", "--output", checkpoint)
    return checkpoint


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Artifacts:
    """Artifacts of the checkpoint fixtures, converted on first use."""
    return Artifacts(tmp_path_factory.mktemp("artifacts"), request)
