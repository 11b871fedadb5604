"""Build the wheel, install it alone and as a serving machine would, and use what it installed.

Run by `make check-wheel` and in CI; not a pytest module, because it needs minutes and empty environments.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"pangu_training", "pangu_convert", "pangu_server", "pangu_bench"}
COMMANDS = ("pangu-bench", "pangu-convert", "pangu-serve", "pangu-train")
NOT_FOR_SERVING = ("torch", "transformers", "gguf")
# An artifact of no weights, made with what comes without extras.
MAKE_ARTIFACT = """
import sys
from pathlib import Path
from pangu_convert.artifact import Source, seal
folder = Path(sys.argv[1])
folder.mkdir()
(folder / "weights").write_bytes(b"none")
seal(folder, name="empty", format=sys.argv[2], architecture="none", quantization="none", dtype="float32",
     weight_files=["weights"], context_length=8, end_token_ids=[0], source=Source(name="none", sha256="0"))
"""


def run(*command: object) -> str:
    """The command's output; it must succeed."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


class Installed:
    """The wheel in an environment of its own, with some extras."""

    def __init__(self, folder: Path, wheel: Path, extras: str = "") -> None:
        venv.create(folder, with_pip=True)
        self.bin = folder / "bin"
        self._pip = (self.bin / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*self._pip, "install", "--constraint", ROOT / "constraints.txt", f"{wheel}{extras}")

    def packages(self) -> str:
        """What is installed, a line each."""
        return "\n" + run(*self._pip, "freeze").lower()

    def refused(self, extra: str, command: str, *arguments: object) -> None:
        """The command must end with exit code 2 and one line that names the extra."""
        words = [str(self.bin / command), *map(str, arguments)]
        ended = subprocess.run(words, capture_output=True, text=True, check=False)
        lines = ended.stderr.strip().splitlines()
        assert ended.returncode == 2, f"{words} ended with {ended.returncode}: {ended.stderr}"
        assert len(lines) == 1, ended.stderr
        assert lines[0].startswith(f"{command}: error: "), lines[0]
        assert f"'.[{extra}]'" in lines[0], lines[0]


def check_contents(wheel: Path) -> None:
    """The wheel has the four packages with their data, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == PACKAGES, f"the wheel installs {top}"
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    page = {f"pangu_server/page/{file.name}" for file in (ROOT / "server/pangu_server/page").iterdir()}
    assert page <= set(names), f"of the page the wheel lacks {page - set(names)}"


def check_alone(installed: Installed, folder: Path) -> None:
    """Without extras each command has its help, and says which extra a verb needs."""
    for command in COMMANDS:
        shown = run(installed.bin / command, "--help")
        assert shown.startswith(f"usage: {command}"), shown
    problems, gguf, artifact = folder / "problems.jsonl", folder / "model.gguf", folder / "artifact"
    problems.write_text('{"id": "own/1", "prompt": "Write a function add(a, b)."}\n', encoding="utf-8")
    gguf.write_bytes(b"GGUF")
    run(installed.bin / "python", "-c", MAKE_ARTIFACT, artifact, "ctranslate2")
    output = ("--output", folder / "output")
    url = ("--base-url", "http://127.0.0.1:9")
    installed.refused("train", "pangu-train", "evolve", problems, *output, *url)
    installed.refused("convert", "pangu-convert", "import", gguf, *output)
    installed.refused("bench", "pangu-bench", "humaneval", artifact, *output)
    installed.refused("serve", "pangu-serve", artifact, "--port", "0")


def check_serving(installed: Installed, folder: Path) -> None:
    """With the serve extra there is no training stack; what needs torch says so."""
    for library in NOT_FOR_SERVING:
        assert f"\n{library}==" not in installed.packages(), f"the serve extra brings {library}"
    run(
        installed.bin / "python",
        "-c",
        "import pangu_server.app, pangu_server.backends.ctranslate2.backend",
    )


def main() -> None:
    """Raises when anything is amiss."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
        [wheel] = folder.glob("*.whl")
        check_contents(wheel)
        check_alone(Installed(folder / "alone", wheel), folder)
        check_serving(Installed(folder / "serving", wheel, "[serve]"), folder)
    print(f"{wheel.name}: builds, names what is missing, serves without a training stack")


if __name__ == "__main__":
    main()
