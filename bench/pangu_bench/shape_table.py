"""The costs of a shape as Markdown, with the paper's rows, and ratios, in which the hardware cancels out."""

from collections.abc import Mapping, Sequence
from typing import Any

from pangu_bench.cost_tables import (
    COST_DEFINITIONS,
    environment,
    gigabytes,
    latency,
    memory,
    milliseconds,
    rows,
    tpot_seconds,
)

Report = Mapping[str, Any]


def table(report: Report) -> str:
    """The whole text."""
    artifacts = report["artifacts"]
    others = artifacts[1:]
    layers = f"{report['layers']} layers"
    if report["layers"] != report["layers_of"]:
        layers = (
            f"{report['layers']} of {report['layers_of']} layers: a trial, so the paper's rows are not shown"
        )
    sections = [
        f"# The shape of {report['shape']}: random weights",
        f"**Shape only: random weights.** Memory and time are those of {report['parameters']:,} parameters "
        f"({layers}). The text is nonsense, so there is no score.",
        _main(artifacts, report["cost_options"]),
        "\n".join(f"- Left out: {reason}." for reason in report["left_out"].values()),
        f"## Against {artifacts[0]['format']}" if others else "",
        _ratios(artifacts[0], others) if others else "",
        "## Memory and size",
        memory(artifacts, {artifact["source_sha256"]: report["parameters"] for artifact in artifacts}),
        "## Latency of one request alone",
        latency(artifacts),
        "## Conversion",
        _conversion(artifacts),
        "## Where and how",
        environment(artifacts, report["cost_options"]),
        f"{COST_DEFINITIONS}\n"
        "- **Bits a weight** are of the weight files, over the parameters.\n"
        "- **Paper** is Table 4 of arXiv 2307.14936, whose unquantized model is float16; its GPU, prompts and group\n"
        "  size are not told.\n"
        "- **GPTQ** weights are random in their packed format (groups of 128, no act-order): nothing was calibrated.",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _main(artifacts: Sequence[Report], options: Report) -> str:
    return rows(
        (
            "format (random weights)",
            f"memory, GB (peak at {options['context']} tokens)",
            "paper, GB",
            f"ms/token (prompt {options['prompt_tokens'][0]})",
            "paper, ms",
            "tokens/s",
            "bandwidth",
        ),
        (
            (
                f"{artifact['format']}, computed in {artifact['costs']['served']['compute_type']}",
                gigabytes(artifact["costs"]["memory"]["generating_bytes"]),
                _paper(artifact, "gigabytes", ".2f"),
                milliseconds(tpot_seconds(artifact["costs"]), "median"),
                _paper(artifact, "milliseconds", "g"),
                _of_first(artifact, "tokens_per_second", ".2f"),
                _of_first(artifact, "bandwidth_share", ".0%"),
            )
            for artifact in artifacts
        ),
    )


def _ratios(first: Report, others: Sequence[Report]) -> str:
    """Of peak memory and ms/token to those of `first`; the paper's from its own rows."""

    def ratio(value: float | None, base: float | None) -> str:
        return f"{value / base:.3f}" if value and base else "—"

    def paper(artifact: Report, name: str) -> str:
        return ratio(*((one["paper"] or {}).get(name) for one in (artifact, first)))

    return rows(
        ("format", "memory", "paper's", "ms/token", "paper's"),
        (
            (
                artifact["format"],
                ratio(*(one["costs"]["memory"]["generating_bytes"] for one in (artifact, first))),
                paper(artifact, "gigabytes"),
                ratio(*((tpot_seconds(one["costs"]) or {}).get("median") for one in (artifact, first))),
                paper(artifact, "milliseconds"),
            )
            for artifact in others
        ),
    )


def _conversion(artifacts: Sequence[Report]) -> str:
    made = [(artifact["format"], artifact["conversion"]) for artifact in artifacts if artifact["conversion"]]
    if not made:
        return "None: GPTQ weights were drawn as they are."
    return rows(
        ("format", "pangu-convert, s (hashing included)", "its peak memory (pss), GB"),
        ((name, f"{figures['seconds']:.0f}", gigabytes(figures["peak_bytes"])) for name, figures in made),
    )


def _paper(artifact: Report, name: str, form: str) -> str:
    return format(artifact["paper"][name], form) if artifact["paper"] else "—"


def _of_first(artifact: Report, name: str, form: str) -> str:
    """A figure at the first prompt length."""
    value = artifact["costs"]["latency"][0][name]
    return "—" if value is None else format(value, form)
