"""`pangu-convert card`: a model card, README.md in the artifact, of what its manifest knows and what was measured.

It says what is not known, too: nothing is guessed. A README.md that was written or edited by hand stays, unless --force
is given.
"""

from dataclasses import dataclass
from pathlib import Path

from pangu_convert.artifact import Artifact, read_artifact
from pangu_convert.card_scores import FIGURES, scores_of
from pangu_convert.card_text import card_text
from pangu_training.stage.errors import OutputError
from pangu_training.stage.options import argument, nested, option
from pangu_training.stage.output import write_file
from pangu_training.stage.paths import CARD
from pangu_training.stage.signed import is_as_written, signed

COMMAND = "pangu-convert card"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardContents:
    """What a card says besides what the manifest knows."""

    scores: tuple[Path, ...] = option(
        f"folders of `pangu-bench compare`, or their {FIGURES}: scores and verdicts of this artifact",
        (),
        metavar="RUN",
    )
    licence: str | None = option(
        "its licence, as the hub calls it, such as apache-2.0 (default: what its source says, else unknown)",
        None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """Whose card, and what it says."""

    artifact: Path = argument("the artifact folder")
    contents: CardContents = nested(CardContents)
    force: bool = option("replace a README.md that was written or edited by hand", False)


def card(options: CardOptions) -> None:
    """Write the card, and say where."""
    file = write_card(read_artifact(options.artifact), options.contents, force=options.force)
    print(f"{file}: read it before others do")


def write_card(
    artifact: Artifact, contents: CardContents, repository: str | None = None, *, force: bool = False
) -> Path:
    """Write the card of an artifact that will be at `repository` of the hub, if that is known.

    Raises:
        DataError: see `scores_of`.
        OutputError: there is a README.md that somebody wrote or edited, and no `force`.
    """
    file = artifact.path / CARD
    if file.exists() and not force and not is_as_written(file):
        raise OutputError(
            f"{file} was written or edited by hand and is kept: move it, or replace it with --force"
        )
    scores, verdicts = scores_of(artifact, contents.scores)
    text = card_text(artifact, scores, verdicts, licence=contents.licence, repository=repository)
    write_file(file, signed(text, COMMAND).encode())
    return file
