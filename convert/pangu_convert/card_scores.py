"""What was measured of an artifact, for its card: from its manifest, and from what `pangu-bench compare` left.

Nothing is measured here. The figures of another artifact are refused, whatever its name is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pangu_convert.artifact import Artifact
from pangu_training.stage.errors import DataError
from pangu_training.stage.files import read_object

FIGURES = "compare.json"  # what `pangu-bench compare` writes for others to read


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How much of a suite the model solves: a share, with a 95 % interval."""

    suite: str
    style: str
    samples: str  # problems x samples of each
    k: str  # of pass@k
    share: float
    interval: tuple[float, float]
    measured_at: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the model differs from another one, in the words of the benchmark."""

    baseline: str
    suite: str
    style: str
    words: str


def scores_of(artifact: Artifact, runs: Iterable[Path]) -> tuple[list[Score], list[Verdict]]:
    """All that is known, each once.

    Raises:
        DataError: a run is not one of `pangu-bench compare`, or has no figures of this artifact.
    """
    scores: dict[Score, None] = {}
    verdicts: dict[Verdict, None] = {}
    for name, one in artifact.manifest.scores.items():
        if isinstance(one, dict) and "pass_at_k" in one:
            scores |= dict.fromkeys(_scores(one, f"the scores of {name} in the manifest of {artifact.path}"))
    for run in runs:
        file = run / FIGURES if run.is_dir() else run
        report = _read(file)
        try:
            own = _own(report, artifact, file)
            suite, style = own["score"]["suite"], own["score"]["style"]
            scores |= dict.fromkeys(_scores(own["score"], str(file)))
            for pair in report["pairs"]:
                if pair["name"] == own["name"]:
                    words = Verdict(
                        baseline=pair["baseline"], suite=suite, style=style, words=pair["verdict"]
                    )
                    verdicts[words] = None
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file} is not what pangu-bench compare writes ({error}): run it again"
            ) from None
    return list(scores), list(verdicts)


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"{file} is not there: --scores takes the --output of a pangu-bench compare")
    try:
        return read_object(file)
    except ValueError as error:
        raise DataError(
            f"{file} is not what pangu-bench compare writes ({error}): give its --output, or run it again"
        ) from None


def _own(report: Mapping[str, Any], artifact: Artifact, file: Path) -> Mapping[str, Any]:
    manifest = artifact.manifest
    for one in report["artifacts"]:
        if one.get("sha256") == manifest.sha256:
            found: Mapping[str, Any] = one
            return found
    names = ", ".join(str(one["name"]) for one in report["artifacts"])
    raise DataError(
        f"{file} has figures of {names}, and none of {artifact.path} ({manifest.name}, sha256 "
        f"{manifest.sha256[:12]}…): give the run in which it was measured, or run the same pangu-bench compare again"
    )


def _scores(score: Mapping[str, Any], where: str) -> list[Score]:
    try:
        return [
            Score(
                suite=str(score["suite"]),
                style=str(score["style"]),
                samples=str(score["samples"]),
                k=str(k),
                share=float(share),
                interval=(float(score["intervals"][k][0]), float(score["intervals"][k][1])),
                measured_at=str(score["measured_at"]),
                warnings=tuple(map(str, score["warnings"])),
            )
            for k, share in score.get("pass_at_k", {}).items()
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where} cannot be read ({error}): measure again") from None
