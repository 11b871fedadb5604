"""`pangu-serve ARTIFACT`: take the port, check and load the artifact, answer until SIGTERM."""

import argparse
import os
import sys
from collections.abc import Sequence

from pangu_convert.artifact import read_artifact
from pangu_server.listening import listen
from pangu_server.options import options_of, parser
from pangu_training.stage import command


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C; returns when the requests that were taken have ended.

    Raises:
        ArtifactError: the artifact is not whole or does not load.
        AccessError: the API keys cannot be used.
        ServeError: the address cannot be listened on.
    """
    options = options_of(arguments)
    artifact = read_artifact(options.artifact)
    with listen(options.host, options.port) as listener:
        from pangu_server.serving import serve

        serve(artifact, listener, options, os.environ)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-serve`."""
    return command.run(parser(run), argv, extra="serve")


if __name__ == "__main__":
    sys.exit(main())
