"""A command that sends itself a signal at a known point of its work: a test that watched it would race with it."""

import signal
import subprocess
import sys

# The point: a file whose path ends so is opened, in this mode, for the n-th time.
PROGRAM = """
import os, runpy, sys
module, ending, mode, times, number = sys.argv[1:6]
left = int(times)

def hook(event, arguments):
    global left
    if event == "open" and arguments[1] == mode and str(arguments[0]).endswith(ending):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), int(number))

sys.addaudithook(hook)
sys.argv = [module, *sys.argv[6:]]
runpy.run_module(module, run_name="__main__")
"""


def run_signalled(
    module: str, arguments: list[str], sent: signal.Signals, *, opening: str, mode: str, times: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run a command's module until it ends; `sent` comes when it opens `opening` for the `times`-th time."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, module, opening, mode, str(times), str(int(sent)), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
