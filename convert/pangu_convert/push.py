"""`pangu-convert push`: an artifact with its card to a repository of a model hub, in one commit.

The artifact is verified first, by the sha256 of every file. Files go up before the commit, which makes them visible all
at once; the same command run again sends only what the hub has not. The token is the one of the hub's own client.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_convert.artifact import Artifact, read_artifact, verify
from pangu_convert.card import CardContents, write_card
from pangu_convert.hub import MAIN, TIMEOUT_SECONDS
from pangu_convert.inspection import summary
from pangu_training.stage.errors import PanguError
from pangu_training.stage.files import is_there, require_inside
from pangu_training.stage.identity import MANIFEST
from pangu_training.stage.options import argument, nested, option
from pangu_training.stage.paths import CARD
from pangu_training.stage.signed import is_as_written

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
THEIRS = (".gitattributes", CARD)  # the hub's own, and what is looked at before it is replaced
ADVICE = {
    401: "the hub does not know the token: log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there: make one with write access, or choose another owner",
    404: "there is no such repository, branch or owner for this token: check the name",
    409: "the hub is changing the same thing, or has it: wait a moment and run the same command again",
    412: "the repository changed meanwhile: run the same command again",
    429: "the hub asks to wait: run the same command again later",
}
AGAIN = "run the same command again: it goes on with what is missing"


class PushError(PanguError):
    """The hub did not take the artifact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushOptions:
    """What goes where."""

    artifact: Path = argument("the artifact folder")
    repository: str = argument("OWNER/NAME on the hub; it is made if it is not there", metavar="OWNER/NAME")
    private: bool = option("make a new repository private", False)
    revision: str = option("the branch; it is made if it is not there", MAIN)
    force: bool = option("replace a README.md that was edited on the hub", False)
    contents: CardContents = nested(CardContents, group="the card, README.md")


def push(options: PushOptions) -> None:
    """Upload, and print the commit's address.

    Raises:
        ArtifactError: a file of the artifact is not what its manifest says.
        DataError, OutputError: see `write_card`; a README.md that somebody wrote is uploaded as it is.
        PushError: the card leads out of the folder, or the hub refuses or has files that are not this artifact's.
    """
    if not REPOSITORY.fullmatch(options.repository):
        raise PushError(f"{options.repository!r} does not name a repository: give OWNER/NAME")
    artifact = read_artifact(options.artifact)
    verify(artifact)
    card = artifact.path / CARD
    try:
        require_inside(card)
        written = is_there(card) and not is_as_written(card)
    except ValueError as error:
        raise PushError(f"{card} cannot be uploaded ({error}): make it a file, or remove it") from None
    if not written:
        write_card(artifact, options.contents, options.repository)
    elif options.contents.scores or options.contents.licence:
        raise PushError(
            f"{card} was written by hand and is uploaded as it is: leave the card's options out, or replace it "
            "first with pangu-convert card --force"
        )
    print(_upload(artifact, options))


def _upload(artifact: Artifact, options: PushOptions) -> str:
    """The commit's address."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise PushError("there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN")
    api, repository = HfApi(), options.repository
    names = [*artifact.manifest.files, MANIFEST, CARD]
    with _one_line(repository):
        api.create_repo(repository, private=options.private or None, exist_ok=True)
        if options.revision != MAIN:
            api.create_branch(repository, branch=options.revision, exist_ok=True)
        parent = _require_own(api, options, names)
        # `upload_folder` may make several commits of one folder.
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=artifact.path / name) for name in names],
            commit_message=f"{summary(artifact)}; artifact sha256 {artifact.manifest.sha256}",
            revision=options.revision,
            parent_commit=parent,  # refused if somebody was faster
        )
    return str(commit.commit_url)


def _require_own(api: "HfApi", options: PushOptions, names: list[str]) -> str | None:
    """The commit that was looked at.

    Raises:
        PushError: another model, or a card that somebody edited, would be mixed with this one.
    """
    info = api.model_info(options.repository, revision=options.revision, timeout=TIMEOUT_SECONDS)
    there = {sibling.rfilename for sibling in info.siblings or ()}
    strangers = sorted(there - {*names, *THEIRS})
    where = options.repository if options.revision == MAIN else f"{options.repository} at {options.revision}"
    if strangers:
        raise PushError(
            f"{where} holds {strangers[0]}, which is not of this artifact: choose another repository or --revision, or "
            "delete it there"
        )
    if CARD in there and not options.force:
        own = options.artifact / CARD
        theirs = Path(api.hf_hub_download(options.repository, CARD, revision=info.sha))
        if not is_as_written(theirs) and theirs.read_bytes() != own.read_bytes():
            raise PushError(
                f"the {CARD} of {where} was edited there: take it into {options.artifact}, or replace it with --force"
            )
    return info.sha


@contextmanager
def _one_line(repository: str) -> Iterator[None]:
    """What the client raises as one line that says what to do."""
    import httpx2  # what huggingface_hub speaks
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # It asks a server in trouble five times more, and says so each time.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except PanguError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # a bar may be in this line
        cause: BaseException = error
        while cause.__cause__ is not None and not hasattr(cause, "response"):
            cause = cause.__cause__
        status: int | None = getattr(getattr(cause, "response", None), "status_code", None)
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        reason = f"HTTP {status}" if status else lines[0].rstrip(".:")
        raise PushError(
            f"{repository} was not pushed ({reason}): {ADVICE.get(status or 0, AGAIN)}"
        ) from error
