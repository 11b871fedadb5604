"""Checkpoints and artifacts that several tests share, made by the commands that users run."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.commands import Artifacts, pangu_convert
from support.once import fetched, once
from tokenizers import Tokenizer

from pangu_convert.catalogue import STARCODER_VOCABULARY
from pangu_convert.download import cache_folder
from pangu_convert.tokenizer import starcoder_tokenizer

# One thread, here and in the commands: a test computes little, and on a busy machine two wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Triton's kernels run on a CPU; it asks when it is imported, which other libraries may do first.
os.environ["TRITON_INTERPRET"] = "1"

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
    return starcoder_tokenizer(fetched(STARCODER_VOCABULARY))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run have, see `once`."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared"


@pytest.fixture(scope="session")
def tiny_starcoder(shared: Path, starcoder: Tokenizer) -> Path:
    """A random two-layer GPTBigCode checkpoint with the real StarCoder tokenizer."""
    from support.tiny import save_tiny

    folder = shared / "tiny-starcoder"
    return once(folder, lambda: save_tiny(folder, starcoder, "gpt_bigcode"))


@pytest.fixture(scope="session")
def tiny_bigcode(shared: Path, starcoder: Tokenizer) -> Path:
    """Like `tiny_starcoder`, wide enough for groups of 128; its embeddings are tied."""
    from support.tiny import save_tiny

    folder = shared / "tiny-bigcode"
    return once(folder, lambda: save_tiny(folder, starcoder, "gpt_bigcode", n_embd=128, n_inner=512))


@pytest.fixture(scope="session")
def tiny_bytes(shared: Path) -> Path:
    """Like `tiny_starcoder`, with a vocabulary of bytes: a token takes next to no time."""
    from support.scripted import byte_tokenizer
    from support.tiny import save_tiny

    folder = shared / "tiny-bytes"
    return once(folder, lambda: save_tiny(folder, byte_tokenizer(), "gpt_bigcode"))


@pytest.fixture(scope="session")
def tiny_qwen2(shared: Path, starcoder: Tokenizer) -> Path:
    """A random two-layer Qwen2 checkpoint with tied embeddings and a rope_theta that is not the default."""
    from support.tiny import save_tiny

    folder = shared / "tiny-qwen2"
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0}
    changes = {"hidden_size": 128, "tie_word_embeddings": True, "rope_parameters": rope}
    return once(folder, lambda: save_tiny(folder, starcoder, "qwen2", **changes))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct checkpoint, imported once into the cache folder."""
    checkpoint = cache_folder() / "checkpoints" / "smollm2-135m"
    return once(checkpoint, lambda: pangu_convert("import", "smollm2-135m", "--output", checkpoint))


@pytest.fixture(scope="session")
def artifacts(shared: Path, request: pytest.FixtureRequest) -> Artifacts:
    """Artifacts of the checkpoint fixtures, converted on first use. Nobody writes into them."""
    return Artifacts(shared / "artifacts", request)
