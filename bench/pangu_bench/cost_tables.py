"""What artifacts cost, as Markdown: memory, latency, where it was measured. None is a dash: it was not measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pangu_bench.options import MIDDLE_FILE

Report = Mapping[str, Any]

COST_DEFINITIONS = f"""\
- **Memory** is read in the server's own process by one meter for all rows: `pss` is main memory, pages that processes
  share divided among them; `nvml` is GPU memory of the process; `nvml_device` the GPU's memory in use, less what was in
  use before. Peaks are the largest of up to 20 readings a second. GB are 10^9 bytes.
- **ms/token** is TPOT, (last token's time - first's) / (tokens - 1), of one request alone, as the client sees it;
  median over requests. **TTFT** is request sent to first token received, **ITL** the time between two tokens.
- **Editor TTFT** is the median of the keystrokes that wait for their completion while someone types into a file of
  {MIDDLE_FILE:,} tokens (`pangu-bench editor`): asked with the code behind the cursor (FIM), or without (prefix only).
- **Load** is the time from the process's start until it answers, the check of all hashes included, which brings the
  files into the page cache.
- **Bandwidth** is what a token reads x tokens/s, as a share of what the memory (main or GPU) moves in a plain copy,
  read and written. A token reads all weights but an input embedding that is not the output head too: of that, a row."""


def memory(artifacts: Sequence[Report], parameters: Mapping[str, float]) -> str:
    """Main or GPU memory, by phase; size on disk. `parameters` are those of the sources, by sha256."""

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
                costs["memory"]["meter"] or "—",
                gigabytes(costs["weight_bytes"]),
                gigabytes(costs["memory"]["loading_bytes"]),
                gigabytes(costs["memory"]["loaded_bytes"]),
                gigabytes(costs["memory"]["generating_bytes"]),
                gigabytes(costs["disk_bytes"]),
                bits(artifact),
                "—" if costs["load_seconds"] is None else f"{costs['load_seconds']:.1f}",
            )
            for artifact in artifacts
            for costs in [artifact["costs"]]
        ),
    )


def latency(artifacts: Sequence[Report]) -> str:
    """Of one request alone, by prompt length."""
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


def environment(artifacts: Sequence[Report], options: Report) -> str:
    """What ran where, and how it was measured."""
    lines = rows(
        (
            "artifact",
            "backend",
            "engine",
            "device",
            "compute type",
            "kernel",
            "date",
            "load average",
            "copy, GB/s",
        ),
        (
            (
                artifact["name"],
                *(served[name] or "—" for name in ("backend", "engine", "device", "compute_type", "kernel")),
                *_when(artifact["costs"]["environment"]),
            )
            for artifact in artifacts
            for served in [artifact["costs"]["served"]]
        ),
    )
    known = [artifact["costs"]["environment"] for artifact in artifacts if artifact["costs"]["environment"]]
    return (
        f"{lines}\n\n{machine(known[0] if known else None)} {options['warmup']} requests to warm up and "
        f"{options['repeats']} measured at each prompt length, {options['new_tokens']} new tokens each."
    )


def _when(environment: Report | None) -> Sequence[str]:
    if environment is None:
        return ("—", "—", "—")
    load, copy = environment["load_average"], environment["copy_bytes_per_second"]
    return (environment["date"][:19], f"{load:.1f}", "—" if copy is None else f"{copy / 1e9:.1f}")


def machine(environment: Report | None) -> str:
    """A sentence about it."""
    if environment is None:
        return "It ran already: what on is not known from outside."
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


def gigabytes(size_bytes: int | None) -> str:
    """Decimal; a dash for what is not known."""
    return "—" if size_bytes is None else f"{size_bytes / 1e9:.3f}"


def tpot_seconds(costs: Report) -> Mapping[str, float] | None:
    """The paper's ms/token in seconds, at the first prompt length."""
    spread: Mapping[str, float] | None = costs["latency"][0]["tpot_seconds"] if costs["latency"] else None
    return spread


def editor_ttft(costs: Report) -> str:
    """What someone who types waits for; a report made before it was measured has none."""
    typed = costs.get("editor")
    if not typed or not typed["ttft_seconds"]:
        return "—"
    how = "prefix only" if typed["fim"] == "off" else "FIM"
    return f"{milliseconds(typed['ttft_seconds'], 'median')} ({how})"


def milliseconds(spread: Mapping[str, float] | None, *names: str) -> str:
    """Some of a spread of seconds."""
    return " / ".join(f"{1e3 * spread[name]:.1f}" for name in names) if spread else "—"
