"""Build the wheel, install it as a serving machine would, and use what it installed.

Run by `make check-wheel` and in CI; not a pytest module, because it needs minutes and an empty environment.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"pangu_training", "pangu_convert", "pangu_server", "pangu_bench"}
COMMANDS = ("pangu-bench", "pangu-convert", "pangu-serve", "pangu-train")
NOT_FOR_SERVING = ("torch", "transformers", "gguf")


def run(*command: object) -> str:
    """The command's output; it must succeed."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Raises when anything is amiss."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
        [wheel] = Path(folder).glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        top = {name.split("/")[0] for name in names if ".dist-info" not in name}
        assert top == PACKAGES, f"the wheel installs {top}"
        assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
        page = {f"pangu_server/page/{file.name}" for file in (ROOT / "server/pangu_server/page").iterdir()}
        assert page <= set(names), f"of the page the wheel lacks {page - set(names)}"

        venv.create(Path(folder) / "empty", with_pip=True)
        bin_folder = Path(folder) / "empty" / "bin"
        pip = (bin_folder / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
        run(*pip, "install", "--constraint", ROOT / "constraints.txt", f"{wheel}[serve]")
        for command in COMMANDS:
            shown = run(bin_folder / command, "--help")
            assert shown.startswith(f"usage: {command}"), shown
        installed = run(*pip, "freeze").lower()
        for library in NOT_FOR_SERVING:
            assert f"\n{library}==" not in installed, f"the serve extra brings {library}"
        run(bin_folder / "python", "-c", "import pangu_server.app, pangu_server.backends.ctranslate2.backend")
    print(f"{wheel.name}: builds, installs without a training stack, commands run")


if __name__ == "__main__":
    main()
