"""`pangu-serve MODEL`: make the artifact if need be, take the port, check and load it, answer until SIGTERM."""

import os
import sys
from collections.abc import Sequence

from pangu_convert.artifact import read_artifact
from pangu_server.environment import EnvironmentParser
from pangu_server.listening import check_certificate, listening
from pangu_server.options import ServeOptions
from pangu_server.sources import artifact_folder
from pangu_training.stage import command


def serve(options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C; returns when the requests that were taken have ended.

    Raises:
        ArtifactError: the artifact is not whole or does not load.
        PanguError: there is none, and none can be made; see `artifact_folder`.
        AccessError: the API keys cannot be used.
        ServeError: the address cannot be listened on, or the certificate not be used.
    """
    # Read when a framework loads OpenMP: compute threads that wait leave their CPU to others.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    artifact = read_artifact(artifact_folder(options))
    if options.ssl_certfile is not None:
        check_certificate(options.ssl_certfile, options.ssl_keyfile)
    with listening(options.host, options.port, options.uds) as listener:
        from pangu_server import serving

        serving.serve(artifact, listener, options, os.environ)


def parser() -> EnvironmentParser:
    """The command's argument parser."""
    parser = EnvironmentParser(
        prefix="PANGU_SERVE_",
        prog="pangu-serve",
        description="Serve a model as an OpenAI-style completion endpoint.",
    )
    command.add_verb(parser, serve)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-serve`."""
    return command.run(parser(), argv, extra="serve")


if __name__ == "__main__":
    sys.exit(main())
