"""`pangu-serve` over a scripted backend: `python serve_scripted.py LOAD_SECONDS TOKEN_SECONDS ARTIFACT …`.

Answers every prompt with an endless row of `x`. A line with "loading" tells when loading has begun.
"""

import sys
import time
from collections.abc import Iterator, Sequence

from pangu_convert.artifact import Artifact
from pangu_server import cli, serving
from pangu_server.backends import ENGINES
from pangu_server.backends.seam import LoadOptions
from support.scripted import ScriptedBackend


def main() -> int:
    load_seconds, token_seconds = map(float, sys.argv[1:3])

    def endless(_: Sequence[int]) -> Iterator[int]:
        while True:
            time.sleep(token_seconds)
            yield ord("x")

    def load(artifact: Artifact, options: LoadOptions, why: str) -> ScriptedBackend:
        print("loading", flush=True)
        time.sleep(load_seconds)
        return ScriptedBackend(endless)

    ENGINES.update(dict.fromkeys(ENGINES, load))
    serving.FLUSH_SECONDS = 60  # this machine may be slow
    return cli.main(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
