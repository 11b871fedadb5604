"""A comparison as Markdown: the paper's Table 4 first, then what shows whether a difference in it is real."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
NAMES_SHOWN = 12  # task ids printed of each kind; the JSON has all

DEFINITIONS = """\
- **Memory** is read in the server's own process by one meter for all rows: `pss` is main memory, pages that processes
  share divided among them; `nvml` is GPU memory of the process; `nvml_device` the GPU's memory in use, less what was in
  use before. Peaks are the largest of up to 20 readings a second. GB are 10^9 bytes.
- **ms/token** is TPOT, (last token's time - first's) / (tokens - 1), of one request alone, as the client sees it;
  median over requests. **TTFT** is request sent to first token received, **ITL** the time between two tokens.
- **Load** is the time from the process's start until it answers, the check of all hashes included, which brings the
  files into the page cache.
- **Bandwidth** is weights x tokens/s as a share of what the main memory moves in a plain copy (read and written).
- **Bits a weight** are of the weight files, over the parameters of an unquantized artifact of the same source here.
- **p** is McNemar's exact test over problems gained and lost; intervals are 95 %."""


def table(report: Report) -> str:
    """The whole text."""
    artifacts = report["artifacts"]
    sections = [
        "# Comparison",
        _main(artifacts),
        "## Is it real?",
        _pairs(report["pairs"]) if report["pairs"] else "One artifact, or no score: nothing to compare.",
        *_warnings(artifacts),
        "## Scores",
        _scores(artifacts),
        "## Memory and size",
        _memory(artifacts),
        "## Latency of one request alone",
        _latency(artifacts),
        "## Distance from the source",
        _fidelity(artifacts),
        "## Where and how",
        _environment(artifacts, report["cost_options"]),
        DEFINITIONS,
    ]
    return "\n\n".join(sections) + "\n"


def _main(artifacts: Sequence[Report]) -> str:
    first = artifacts[0]["costs"]
    context, prompt = first["memory"]["context_tokens"], first["latency"][0]["prompt_tokens"]
    score = artifacts[0]["score"]
    return rows(
        (
            "artifact",
            "precision",
            f"memory, GB (peak at {context} tokens)",
            f"ms/token (prompt {prompt})",
            f"{score['suite']} pass@1 ({score['style']}, {score['samples']})",
        ),
        (
            (
                artifact["name"],
                f"{artifact['quantization']}, computed in {artifact['costs']['served']['compute_type']}",
                _gigabytes(artifact["costs"]["memory"]["generating_bytes"]),
                milliseconds(artifact["costs"]["latency"][0]["tpot_seconds"], "median"),
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


def _warnings(artifacts: Sequence[Report]) -> list[str]:
    found = [
        f"- **{artifact['name']}**: {warning}"
        for artifact in artifacts
        for warning in (*artifact["score"]["warnings"], *artifact["fidelity_outside"])
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


def _memory(artifacts: Sequence[Report]) -> str:
    parameters = {
        artifact["source_sha256"]: artifact["stored_weight_bytes"] * 8 / artifact["bits"]
        for artifact in artifacts
        if artifact["bits"] >= 16
    }

    def bits(artifact: Report) -> str:
        count = parameters.get(artifact["source_sha256"])
        return "—" if count is None else f"{8 * artifact['stored_weight_bytes'] / count:.2f}"

    return rows(
        (
            "artifact",
            "meter",
            "weights",
            "peak loading",
            "loaded",
            "peak",
            "on disk",
            "bits a weight",
            "load, s",
        ),
        (
            (
                artifact["name"],
                costs["memory"]["meter"],
                _gigabytes(costs["weight_bytes"]),
                _gigabytes(costs["memory"]["loading_bytes"]),
                _gigabytes(costs["memory"]["loaded_bytes"]),
                _gigabytes(costs["memory"]["generating_bytes"]),
                _gigabytes(costs["disk_bytes"]),
                bits(artifact),
                f"{costs['load_seconds']:.1f}",
            )
            for artifact in artifacts
            for costs in [artifact["costs"]]
        ),
    )


def _latency(artifacts: Sequence[Report]) -> str:
    return rows(
        (
            "artifact",
            "prompt",
            "TTFT median / p95, ms",
            "ITL median / p95, ms",
            "TPOT min / median / max, ms",
            "tokens/s",
            "bandwidth",
        ),
        (
            (
                artifact["name"],
                str(latency["prompt_tokens"]),
                milliseconds(latency["ttft_seconds"], "median", "p95"),
                milliseconds(latency["itl_seconds"], "median", "p95"),
                milliseconds(latency["tpot_seconds"], "min", "median", "max"),
                "—" if latency["tokens_per_second"] is None else f"{latency['tokens_per_second']:.1f}",
                "—" if latency["bandwidth_share"] is None else f"{latency['bandwidth_share']:.0%}",
            )
            for artifact in artifacts
            for latency in artifact["costs"]["latency"]
        ),
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


def _environment(artifacts: Sequence[Report], options: Report) -> str:
    lines = rows(
        ("artifact", "backend", "device", "compute type", "kernel", "date", "load average", "copy, GB/s"),
        (
            (
                artifact["name"],
                served["backend"],
                served["device"],
                served["compute_type"],
                served["kernel"] or "—",
                environment["date"][:19],
                f"{environment['load_average']:.1f}",
                f"{environment['copy_bytes_per_second'] / 1e9:.1f}",
            )
            for artifact in artifacts
            for served, environment in [(artifact["costs"]["served"], artifact["costs"]["environment"])]
        ),
    )
    return (
        f"{lines}\n\n{machine(artifacts[0]['costs']['environment'])} {options['warmup']} requests to warm up and "
        f"{options['repeats']} measured at each prompt length, {options['new_tokens']} new tokens each."
    )


def machine(environment: Report) -> str:
    """A sentence about it."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['cpu']} ({' '.join(environment['isa']) or 'no vector extension known here'}), "
        f"{environment['cpus']} CPUs, {environment['threads']} compute threads, GPUs: "
        f"{', '.join(environment['gpus']) or 'none'}; Linux {environment['kernel']}, Python {environment['python']}, "
        f"{versions}."
    )


def rows(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _pass_at(score: Report, k: str) -> str:
    if "no_score" in score:
        return "—"
    low, high = score["intervals"][k]
    return f"{score['pass_at_k'][k]:.1%} ({low:.1%} to {high:.1%})"


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.3f}"


def milliseconds(spread: Mapping[str, float] | None, *names: str) -> str:
    """Some of a spread of seconds."""
    return " / ".join(f"{1e3 * spread[name]:.1f}" for name in names) if spread else "—"


def _number(value: int, shown: bool) -> str:
    return str(value) if shown else "—"


def _names(tasks: Sequence[str]) -> str:
    more = len(tasks) - NAMES_SHOWN
    return ", ".join(tasks[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
