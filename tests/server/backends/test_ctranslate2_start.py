"""CTranslate2 before its first request: what is warmed, learned, refused, and which draws it is trusted with."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from support.collector import Collector
from support.commands import Artifacts
from transformers import AutoModelForCausalLM

from pangu_convert.artifact import Artifact, ArtifactError, read_artifact
from pangu_server.backends.ctranslate2 import backend as backend_module
from pangu_server.backends.ctranslate2 import drawing
from pangu_server.backends.ctranslate2.backend import CTranslate2Backend
from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.ctranslate2.cublas import load_cublas
from pangu_server.backends.ctranslate2.drawing import can_cut
from pangu_server.backends.ctranslate2.faults import explained
from pangu_server.backends.seam import LoadOptions, SamplingOptions

ROWS = 3
PROMPT = [589, 28176, 34, 83, 711, 203, 202]  # any tokens
FEW = 64  # classes of a top-p that is as limited as on a GPU


@pytest.fixture(scope="module")
def artifact(artifacts: Artifacts) -> Artifact:
    return read_artifact(artifacts("tiny_starcoder", "ctranslate2", "--quantization", "float32"))


Options = dict[str, Any]  # of `generate_batch`


class Library:
    """The module and its one generator, which notes what it is asked for and raises what `fails` does."""

    def __init__(self) -> None:
        self.generator: Any = None
        self.fails: Callable[[Options], None] = lambda options: None
        self.batches: list[tuple[int, float, bool]] = []  # rows, top_p, logits
        self.texts = self.running = self.most = 0

    def Generator(self, *arguments: Any, **options: Any) -> "Library":
        self.generator = ctranslate2.Generator(*arguments, **options)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.generator if hasattr(self.generator, name) else ctranslate2, name)

    def generate_batch(self, prompts: list[list[str]], **options: Any) -> None:
        self.fails(options)
        self.batches.append((len(prompts), options["sampling_topp"], options["return_logits_vocab"]))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            self.generator.generate_batch(prompts, **options)
        finally:
            self.running -= 1

    def forward_batch(self, texts: list[list[int]]) -> Any:
        self.texts += 1
        return self.generator.forward_batch(texts)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The one that the backend is made with."""
    library = Library()
    monkeypatch.setattr(backend_module, "ctranslate2", library)
    yield library
    del library.generator


def load(artifact: Artifact, **options: Any) -> CTranslate2Backend:
    return CTranslate2Backend(artifact, LoadOptions(device="cpu", max_batch=ROWS, **options))


def test_what_a_request_can_need_has_run_before_it_comes(artifact: Artifact, library: Library) -> None:
    seen: list[int] = []
    backend = load(artifact, on_batch=seen.append)
    assert {(1, 1, False), (ROWS, 1, False), (1, 0.95, False), (1, 1, True)} <= {*library.batches}
    assert library.texts == 1
    assert library.most == 2, "the second worker too"
    assert seen == [], "nobody asked for these"
    fresh = CostModel()
    assert backend.costs.step_seconds != fresh.step_seconds
    assert backend.costs.token_seconds != fresh.token_seconds
    backend.close()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Library libcublas.so.12 is not found or cannot be loaded", "pip install nvidia-cublas-cu12"),
        ("CUDA failed with error out of memory", "fewer --max-batch"),
        ("something\nelse", "something else"),
    ],
)
@pytest.mark.parametrize("when", ["alone", "many", "drawn"])
def test_what_fails_at_the_first_tokens_ends_the_start_with_one_line(
    artifact: Artifact, library: Library, message: str, said: str, when: str
) -> None:
    def fails(options: Options) -> None:
        many = len(library.batches) == 4  # before it: the outer one, greedy, drawn, seeded
        if {"alone": True, "many": many, "drawn": options["sampling_topp"] < 1}[when]:
            raise RuntimeError(message)

    library.fails = fails
    with pytest.raises(ArtifactError) as caught:
        load(artifact)
    text = str(caught.value)
    assert said in text
    assert str(artifact.path) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("std::bad_alloc"), "fewer --max-batch"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("mkl_malloc: failed to allocate memory"), "fewer --max-batch"),
        (ValueError("unsupported model"), "unsupported model"),
    ],
)
def test_an_error_is_explained(error: Exception, said: str) -> None:
    assert said in explained(error)


def test_the_generator_of_a_failed_start_is_gone(artifact: Artifact, tmp_path: Path) -> None:
    """Else the process would abort at its end, and its exit code with it."""
    program = tmp_path / "fails.py"
    program.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from pangu_convert.artifact import ArtifactError, read_artifact\n"
        "from pangu_server.backends.ctranslate2 import backend\n"
        "from pangu_server.backends.seam import LoadOptions\n"
        "def forward(self, token_ids): raise RuntimeError('out of memory')\n"
        "backend.CTranslate2Backend.forward = forward\n"
        "try:\n"
        "    backend.CTranslate2Backend(read_artifact(Path(sys.argv[1])), LoadOptions(device='cpu'))\n"
        "except ArtifactError as error:\n"
        "    kept = error  # and its traceback\n"
        "    sys.exit(2)\n",
        encoding="utf-8",
    )
    ended = subprocess.run([sys.executable, program, artifact.path], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, "")


@pytest.mark.parametrize(
    ("device", "vocabulary", "options", "can"),
    [
        ("cpu", 49152, SamplingOptions(max_tokens=1, top_p=0.9), True),
        ("cuda", 49152, SamplingOptions(max_tokens=1, top_p=0.9), False),
        ("cuda", 8193, SamplingOptions(max_tokens=1, top_p=0.9), False),
        ("cuda", 8192, SamplingOptions(max_tokens=1, top_p=0.9), True),
        ("cuda", 49152, SamplingOptions(max_tokens=1, top_p=1), True),
        ("cuda", 49152, SamplingOptions(max_tokens=1, top_p=0.9, temperature=0), True),
        ("cuda", 49152, SamplingOptions(max_tokens=1, top_p=0.9, top_k=8192), True),
        ("cuda", 49152, SamplingOptions(max_tokens=1, top_p=0.9, top_k=8193), False),
        ("cuda", 8000, SamplingOptions(max_tokens=1, top_p=0.9, top_k=9000), True),
    ],
)
def test_whether_the_library_can_cut_by_top_p(
    device: str, vocabulary: int, options: SamplingOptions, can: bool
) -> None:
    assert can_cut(options, device, vocabulary) == can


def test_top_p_where_the_library_cannot_is_drawn_all_the_same(
    artifact: Artifact, tiny_starcoder: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU with a GPU's limit, at 64 tokens. The library's own message, where it would be asked too much."""

    def refuses(options: Options) -> None:
        if options["sampling_topp"] < 1 and not 0 < options["sampling_topk"] <= FEW:
            raise RuntimeError(f"The TopP operator does not support more than {FEW} classes.")

    library.fails = refuses
    monkeypatch.setitem(drawing.TOP_P_CLASSES, "cpu", FEW)
    backend = load(artifact)
    alone = SamplingOptions(max_tokens=6, temperature=1.5, top_p=0.02)
    cut = SamplingOptions(max_tokens=6, temperature=1.5, top_p=0.9, top_k=FEW)
    collectors = [Collector() for _ in range(4)]
    library.batches.clear()
    for collector in collectors:
        backend.submit(PROMPT, alone, collector)
    backend.submit(PROMPT, cut, last := Collector())
    for collector in (*collectors, last):
        assert collector.ended.wait(60)
        assert collector.error is None
        assert len(collector.tokens) == 6
    assert len({tuple(collector.tokens) for collector in collectors}) > 1, "each has a seed of its own"
    assert {top_p for _, top_p, _ in library.batches} == {1, 0.9}, "the library drew where top-k had cut"
    backend.close()
    model = AutoModelForCausalLM.from_pretrained(tiny_starcoder, dtype=torch.float32).eval()
    for collector in collectors:
        tokens = [*PROMPT, *collector.tokens]
        with torch.inference_mode():
            logits = model(torch.tensor([tokens])).logits[0].numpy()
        for row, token in zip(logits[len(PROMPT) - 1 :], collector.tokens, strict=False):
            weights = np.exp(row.astype(np.float64) / 1.5)
            better = weights[row > row[token]].sum()
            assert better < 0.02 * weights.sum() * 1.001, "only tokens of the nucleus"


def test_a_library_of_another_package_is_found_by_name_once_it_is_loaded() -> None:
    """With NumPy's BLAS: a real library that pip puts where the system does not look."""
    name = next(file.name for file in files("numpy") or () if ".so" in file.name and "libs/" in str(file))
    program = (
        "import ctypes\n"
        "from pangu_server.backends.ctranslate2.cublas import load_cublas\n"
        "try:\n"
        f"    ctypes.CDLL({name!r})\n"
        "    print('found')\n"
        "except OSError:\n"
        "    pass\n"
        f"load_cublas('numpy', ({name!r}, 'libnone.so'))\n"
        f"ctypes.CDLL({name!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    load_cublas("no-such-package")
