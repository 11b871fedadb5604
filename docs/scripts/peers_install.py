"""The peers of `peers.py` under `$PANGU_HOME/peers`: llama-server is built, OpenVINO GenAI installed, once each.

llama.cpp comes with the source package of llama-cpp-python, so pip's index is all that is asked. `cmake` and a C++
compiler must be there.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from pangu_bench.environment import environment
from pangu_training.stage.errors import PanguError

LLAMA_CPP_PYTHON = "0.3.36"
OPENVINO_GENAI = "2026.4.1.0"
SENTENCEPIECE = "0.2.3"  # what the GGUF writer imports first, for any tokenizer
# For this CPU, in one file, without what a server of one local model does not need.
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be downloaded
    "-DLLAMA_OPENSSL=OFF",
)
COMPILERS = 2  # at a time: some files take 1 GB each


class InstallError(PanguError):
    """A peer cannot be installed."""


def llama_server(folder: Path) -> Path:
    """The program, built for this CPU unless it is there."""
    source = llama_cpp(folder)
    program = folder / "-".join(("llama-server", LLAMA_CPP_PYTHON, *environment(1)["isa"]))
    if not program.exists():
        for tool in ("cmake", "c++"):
            if shutil.which(tool) is None:
                raise InstallError(
                    f"llama-server is built with {tool}, which is not here: apt-get install cmake g++ make"
                )
        build = folder / f"build-{program.name}"
        log = folder / "llama-server.log"
        _run(["cmake", "-S", str(source), "-B", str(build), *CMAKE_OPTIONS], log)
        _run(["cmake", "--build", str(build), "--target", "llama-server", f"-j{COMPILERS}"], log)
        partial = program.with_name(f".{program.name}.partial")
        shutil.copy2(build / "bin" / "llama-server", partial)
        partial.rename(program)
        shutil.rmtree(build)
    return program


def llama_cpp(folder: Path) -> Path:
    """The source of llama.cpp, as the source package carries it."""
    name = f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
    if not (folder / name).exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        requirement = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
        _run([*pip, "--dest", str(folder), requirement], folder / "llama-server.log")
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(partial, filter="data")
        (partial / name).rename(folder / name)
        partial.rmdir()
        (folder / f"{name}.tar.gz").unlink()
    return folder / name / "vendor" / "llama.cpp"


def q8_0(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint's weights in llama.cpp's 8 bits, written unless they are there."""
    file = folder / f"{checkpoint.name}-q8_0.gguf"
    if not file.exists():
        if not (checkpoint / "config.json").is_file():
            raise InstallError(f"{checkpoint} is no checkpoint: make it with pangu-convert import")
        log, extra = folder / "gguf.log", folder / f"sentencepiece-{SENTENCEPIECE}"
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--target", str(extra)]
        _run([*pip, f"sentencepiece=={SENTENCEPIECE}"], log)
        partial = file.with_name(f".{file.name}.partial")
        script = llama_cpp(folder) / "convert_hf_to_gguf.py"
        write = [sys.executable, str(script), str(checkpoint), "--outtype", "q8_0", "--outfile", str(partial)]
        _run(write, log, PYTHONPATH=str(extra))
        partial.rename(file)
    return file


def openvino_python(folder: Path) -> Path:
    """The Python of an environment with OpenVINO GenAI, made unless it is there."""
    home = folder / f"openvino-genai-{OPENVINO_GENAI}"
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        log = folder / "openvino.log"
        _run([sys.executable, "-m", "venv", "--clear", str(home)], log)
        _run([str(python), "-m", "pip", "install", f"openvino-genai=={OPENVINO_GENAI}"], log)
        done.touch()
    return python


def cxx_version() -> str:
    """The compiler's name and version, where it is still there."""
    if shutil.which("c++") is None:
        return "an unknown compiler"
    said = subprocess.run(["c++", "--version"], capture_output=True, text=True, check=True).stdout
    return re.sub(r"^c\+\+ ", "GCC ", said.splitlines()[0])


def _run(command: list[str], log: Path, **variables: str) -> None:
    """Run with the output in `log`; raises `InstallError` with where to look."""
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **variables}, check=False
        )
    if done.returncode:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        raise InstallError(f"{command[0]} failed: {last} (whole log: {log})")
