"""The summary of a ranking: what became of each source's responses, and of each problem."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pangu_training.data.ranking import Judged, LeftOut, Pair, Rule, Situation
from pangu_training.data.responses import TEACHER

Source = tuple[str, str]  # role, name


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A source's responses to the problems whose tests can run.

    `pass_at_1` is the mean over its problems of the share of its responses that pass all tests.
    """

    role: str
    source: str
    responses: int
    without_program: int  # they count as not compiling
    situations: Mapping[str, int]
    mean_score: float
    pass_at_1: float
    chosen: int
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standings:
    """All sources, the teachers first; and how many problems gave a pair, of which kind, or none and why."""

    sources: Sequence[Standing]
    problems: int
    pairs: int
    ties: int
    pair_situations: Mapping[str, int]
    left_out: Mapping[str, int]
    programs: int  # that were run, each once
    cpu_seconds: float  # theirs


def standings(
    answers: Mapping[str, Sequence[Judged]], ranked: Mapping[str, Pair | LeftOut], rule: Rule
) -> Standings:
    """Of `answers` by problem, and of what each problem came to."""
    by_source: dict[Source, list[Judged]] = defaultdict(list)
    for task_id, judged in answers.items():
        for answer in judged if ranked[task_id] is not LeftOut.BROKEN_TESTS else ():
            by_source[_source(answer)].append(answer)
    pairs = [pair for pair in ranked.values() if isinstance(pair, Pair)]
    situations = Counter((pair.chosen.situation, pair.rejected.situation) for pair in pairs)
    programs = {
        (a.response.problem, a.program): a.result for all_ in answers.values() for a in all_ if a.program
    }
    return Standings(
        sources=[
            _standing(source, judged, pairs, rule)
            for source, judged in sorted(by_source.items(), key=lambda item: (item[0][0] != TEACHER, item[0]))
        ],
        problems=len(ranked),
        pairs=len(pairs),
        ties=sum(rule.score(pair.chosen) == rule.score(pair.rejected) for pair in pairs),
        pair_situations={
            f"{high} > {low}": situations[high, low] for high, low in sorted(situations, reverse=True)
        },
        left_out=dict(Counter(str(reason) for reason in ranked.values() if isinstance(reason, LeftOut))),
        programs=len(programs),
        cpu_seconds=round(sum(result.cpu_seconds for result in programs.values()), 1),
    )


def in_words(standings: Standings) -> str:
    """The same for people: a table of sources, situations in per cent of their responses, and of pairs."""
    heads = ["source", "responses", *map(str, Situation), "pass@1", "mean score", "chosen", "rejected"]
    lines = [heads] + [
        [
            f"{source.source} ({source.role})",
            str(source.responses),
            *(f"{100 * count / source.responses:.1f} %" for count in source.situations.values()),
            f"{100 * source.pass_at_1:.1f} %",
            f"{source.mean_score:.2f}",
            str(source.chosen),
            str(source.rejected),
        ]
        for source in standings.sources
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in lines]
    counts = [f"pairs: {standings.pairs} of {standings.problems} problems, {standings.ties} of them ties"]
    counts += [f"  {count:>6}  {kind}" for kind, count in standings.pair_situations.items()]
    if standings.left_out:
        counts += ["left out:", *(f"  {count:>6}  {reason}" for reason, count in standings.left_out.items())]
    return "\n".join([*table, *counts])


def _standing(source: Source, judged: Sequence[Judged], pairs: Iterable[Pair], rule: Rule) -> Standing:
    passes: dict[str, list[bool]] = defaultdict(list)
    for answer in judged:
        passes[answer.response.problem].append(answer.situation is Situation.PASSES_ALL)
    role, name = source
    return Standing(
        role=role,
        source=name,
        responses=len(judged),
        without_program=sum(not answer.program for answer in judged),
        situations={str(one): sum(answer.situation is one for answer in judged) for one in Situation},
        mean_score=round(fmean(map(rule.score, judged)), 4),
        pass_at_1=round(fmean(map(fmean, passes.values())), 4),
        chosen=sum(_source(pair.chosen) == source for pair in pairs),
        rejected=sum(_source(pair.rejected) == source for pair in pairs),
    )


def _source(answer: Judged) -> Source:
    return answer.response.role, answer.response.source
