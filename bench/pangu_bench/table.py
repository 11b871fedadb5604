"""A comparison as Markdown: the paper's Table 4 first, then what shows whether a difference in it is real."""

from collections.abc import Mapping, Sequence
from typing import Any

from pangu_bench.cost_tables import (
    COST_DEFINITIONS,
    editor_ttft,
    environment,
    gigabytes,
    latency,
    memory,
    milliseconds,
    rows,
    tpot_seconds,
)
from pangu_bench.options import MIDDLE_FILE

Report = Mapping[str, Any]
NAMES_SHOWN = 12  # task ids printed of each kind; the JSON has all

DEFINITIONS = f"""\
{COST_DEFINITIONS}
- **Bits a weight** are of the weight files, over the parameters of an unquantized artifact of the same source here.
- **p** is McNemar's exact test over problems gained and lost; intervals are 95 %."""


def table(report: Report) -> str:
    """The whole text."""
    artifacts = report["artifacts"]
    sections = [
        "# Comparison",
        _main(artifacts, report["cost_options"]),
        "## Is it real?",
        _pairs(report["pairs"]) if report["pairs"] else "One artifact, or no score: nothing to compare.",
        *_warnings(artifacts),
        "## Scores",
        _scores(artifacts),
        "## Memory and size",
        memory(artifacts, _parameters(artifacts)),
        "## Latency of one request alone",
        latency(artifacts),
        "## How each was made",
        _made(artifacts),
        "## Distance from the source",
        _fidelity(artifacts),
        "## Where and how",
        environment(artifacts, report["cost_options"]),
        DEFINITIONS,
    ]
    return "\n\n".join(sections) + "\n"


def _main(artifacts: Sequence[Report], options: Report) -> str:
    score = artifacts[0]["score"]
    return rows(
        (
            "artifact",
            "precision",
            f"memory, GB (peak at {options['context']} tokens)",
            f"ms/token (prompt {options['prompt_tokens'][0]})",
            f"editor TTFT, ms (file of {MIDDLE_FILE:,} tokens)",
            f"{score['suite']} pass@1 ({score['style']}, {score['samples']})",
        ),
        (
            (
                artifact["name"],
                _precision(artifact),
                gigabytes(artifact["costs"]["memory"]["generating_bytes"]),
                milliseconds(tpot_seconds(artifact["costs"]), "median"),
                editor_ttft(artifact["costs"]),
                _pass_at(artifact["score"], "1"),
            )
            for artifact in artifacts
        ),
    )


def _pairs(pairs: Sequence[Report]) -> str:
    lines = rows(
        (
            "artifact",
            f"points against {pairs[0]['baseline']}",
            "gained",
            "lost",
            "p",
            "detectable",
            "verdict",
        ),
        (
            (
                pair["name"],
                "{:+.1f} ({:+.1f} to {:+.1f})".format(
                    *(100 * share for share in (pair["difference"], *pair["interval"]))
                ),
                _number(len(pair["gained"]), pair["p_value"] is not None),
                _number(len(pair["lost"]), pair["p_value"] is not None),
                "—" if pair["p_value"] is None else f"{pair['p_value']:.2g}",
                f"{100 * pair['detectable']:.1f}" if pair["detectable"] else "—",
                pair["verdict"],
            )
            for pair in pairs
        ),
    )
    flips = [
        f"- {pair['name']} {kind} {_names(pair[kind])}"
        for pair in pairs
        for kind in ("gained", "lost")
        if pair[kind]
    ]
    return "\n\n".join([lines, "\n".join(flips)] if flips else [lines])


def _parameters(artifacts: Sequence[Report]) -> dict[str, float]:
    return {
        artifact["source_sha256"]: artifact["stored_weight_bytes"] * 8 / artifact["bits"]
        for artifact in artifacts
        if (artifact["bits"] or 0) >= 16
    }


def _made(artifacts: Sequence[Report]) -> str:
    """Two artifacts of one precision can differ in what they were calibrated on."""

    def calibration(artifact: Report) -> str:
        if artifact["calibration"] is None:
            return "no calibration recorded"
        words = ", ".join(
            f"{name.replace('_', ' ')} {value}" for name, value in artifact["calibration"].items()
        )
        return f"calibrated: {words}"

    return "\n".join(
        f"- **{artifact['name']}**: {artifact['quantization']}, {calibration(artifact)}"
        for artifact in artifacts
    )


def _warnings(artifacts: Sequence[Report]) -> list[str]:
    found = [
        f"- **{artifact['name']}**: {warning}"
        for artifact in artifacts
        for warning in (
            *artifact["score"]["warnings"],
            *artifact["fidelity_outside"],
            *filter(None, [artifact["costs"].get(name) for name in ("not_timed", "not_typed")]),
        )
    ]
    return ["## Warnings", "\n".join(found)] if found else []


def _scores(artifacts: Sequence[Report]) -> str:
    score = artifacts[0]["score"]
    if "no_score" in score:
        return f"No score: {score['no_score']}."
    gold = score["gold"]
    ks = list(score["pass_at_k"])
    lines = rows(
        ("artifact", *(f"pass@{k} (95 %)" for k in ks), "outcomes"),
        [
            (
                artifact["name"],
                *(_pass_at(artifact["score"], k) for k in ks),
                ", ".join(f"{name} {count}" for name, count in artifact["score"]["outcomes"].items()),
            )
            for artifact in artifacts
        ]
        + [("gold solutions", f"{gold['passed']} of {gold['problems']}", *[""] * len(ks))],
    )
    return (
        f"{lines}\n\nTemperature {score['temperature']:g}, {score['concurrency']} request(s) at a time, sandbox "
        f"{score['sandbox']}, suite sha256 {score['suite_sha256'][:12]}…"
    )


def _fidelity(artifacts: Sequence[Report]) -> str:
    measured = [artifact for artifact in artifacts if artifact["fidelity"]]
    if not measured:
        return "Not measured: `pangu-convert verify ARTIFACT --against CHECKPOINT` records it."
    return rows(
        ("artifact", "mean KL", "99 % KL", "same top-1", "perplexity (source)", "first greedy difference"),
        (
            (
                artifact["name"],
                f"{fidelity['kl_mean']:.5f}",
                f"{fidelity['kl_p99']:.4f}",
                f"{fidelity['same_top1']:.1%}",
                f"{fidelity['perplexity']:.3f} ({fidelity['source_perplexity']:.3f})",
                ", ".join("none" if at is None else str(at) for at in fidelity["greedy_first_difference"]),
            )
            for artifact in measured
            for fidelity in [artifact["fidelity"]]
        ),
    )


def _precision(artifact: Report) -> str:
    computed = artifact["costs"]["served"]["compute_type"]
    words = [artifact["quantization"], computed and f"computed in {computed}"]
    return ", ".join(filter(None, words)) or "—"


def _pass_at(score: Report, k: str) -> str:
    if "no_score" in score:
        return "—"
    low, high = score["intervals"][k]
    return f"{score['pass_at_k'][k]:.1%} ({low:.1%} to {high:.1%})"


def _number(value: int, shown: bool) -> str:
    return str(value) if shown else "—"


def _names(tasks: Sequence[str]) -> str:
    more = len(tasks) - NAMES_SHOWN
    return ", ".join(tasks[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
