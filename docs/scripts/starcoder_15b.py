"""A model of StarCoder's size, 15.5 billion parameters, through conversion and serving on one machine.

    python docs/scripts/starcoder_15b.py --output-dir DIR --report FILE [--keep]

The weights are random: time, memory and disk are StarCoder's, the text is nonsense. Takes 31 GB of disk for
the checkpoint and 16 GB for the int8 artifact. `--layers 2` tries the same on a small scale. What is done is
kept in DIR and not done again by a second run; at the end checkpoint and artifact are deleted unless `--keep`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pangu_convert.artifact import read_artifact
from pangu_convert.catalogue import STARCODER_VOCABULARY
from pangu_convert.download import cache_folder, fetch
from pangu_convert.tokenizer import starcoder_tokenizer
from pangu_training import command
from pangu_training.checkpoint import SHARD_INDEX
from pangu_training.errors import PanguError
from pangu_training.output import require_free_space, write_file

SHARD_BYTES = 5_000_000_000
INT8_SHARE = 0.55  # of the bfloat16 checkpoint's bytes, with some to spare
NUM_TOKENS = 16
PROMPT = "def fibonacci(n):"
END = "<|endoftext|>"
POLL_SECONDS = 0.2


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for checkpoint and artifact")
    parser.add_argument("--layers", type=int, default=40, help="layers of the model (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="write the figures here too")
    parser.add_argument(
        "--keep", action="store_true", help="do not delete checkpoint and artifact at the end"
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Make the checkpoint, convert it, serve it; each once. Print the figures as JSON."""
    folder = arguments.output_dir / f"starcoder-{arguments.layers}-layers"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, artifact, state = folder / "checkpoint", folder / "artifact", folder / "report.json"
    report = json.loads(state.read_text()) if state.is_file() else {"machine": machine()}
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "checkpoint": lambda: write_checkpoint(checkpoint, arguments.layers),
        "convert": lambda: convert(checkpoint, artifact),
        "serve": lambda: serve(artifact),
    }
    for name, step in steps.items():
        if name not in report:
            report[name] = step()
            if name == "convert" and report[name]["model_bytes"] < report["checkpoint"]["parameters"]:
                raise PanguError("the artifact is smaller than a byte a parameter: are weights repeated?")
            write_file(state, json.dumps(report, indent=2).encode())
    if not arguments.keep:
        shutil.rmtree(checkpoint, ignore_errors=True)
        shutil.rmtree(artifact, ignore_errors=True)
    text = json.dumps(report, indent=2)
    if arguments.report:
        write_file(arguments.report.absolute(), (text + "\n").encode())
    print(text)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": models[0] if models else "unknown",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def write_checkpoint(folder: Path, num_layers: int) -> dict[str, Any]:
    """Write what of the checkpoint is not there yet, one shard after the other."""
    import torch
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM, PreTrainedTokenizerFast

    started = time.perf_counter()
    folder.mkdir(exist_ok=True)
    config = GPTBigCodeConfig(  # bigcode/starcoder's config.json, but for the type, which is float32 there
        vocab_size=49152,
        n_positions=8192,
        n_embd=6144,
        n_layer=num_layers,
        n_head=48,
        n_inner=24576,
        activation_function="gelu",
        multi_query=True,
        attention_softmax_in_fp32=True,
        scale_attention_softmax_in_fp32=True,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        architectures=["GPTBigCodeForCausalLM"],
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = GPTBigCodeForCausalLM(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    num_parameters = sum(shape.numel() for shape in shapes.values())
    shards = plan_shards({name: 2 * shape.numel() for name, shape in shapes.items()})
    missing = [file for file in shards if not (folder / file).is_file()]
    missing_bytes = sum(2 * shapes[name].numel() for file in missing for name in shards[file])
    require_free_space(folder, missing_bytes + int(INT8_SHARE * 2 * num_parameters))
    with tqdm(total=missing_bytes, desc="writing random weights", unit="B", unit_scale=True) as bar:
        for file in missing:
            write_shard(folder / file, {name: shapes[name] for name in shards[file]}, bar)
    weight_map = {name: file for file, names in shards.items() for name in names}
    index = {"metadata": {"total_size": 2 * num_parameters}, "weight_map": weight_map}
    write_file(folder / SHARD_INDEX, json.dumps(index, indent=2).encode())
    config.save_pretrained(folder)
    tokenizer = starcoder_tokenizer(fetch(STARCODER_VOCABULARY, cache_folder()))
    if tokenizer.token_to_id(END) != 0:
        raise PanguError(f"{STARCODER_VOCABULARY.file_name} does not begin with {END}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)
    origin = {"source": "starcoder-15b-random", "note": "random weights: shape only"}
    write_file(folder / "import.json", json.dumps(origin, indent=2).encode())
    return {
        "parameters": num_parameters,
        "disk_bytes": folder_bytes(folder),
        "shards": len(shards),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


def plan_shards(sizes: dict[str, int]) -> dict[str, list[str]]:
    """File name -> names of the tensors in it, in order, at most about `SHARD_BYTES` each."""
    groups: list[list[str]] = [[]]
    filled_bytes = 0
    for name, size_bytes in sizes.items():
        if groups[-1] and filled_bytes + size_bytes > SHARD_BYTES:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(name)
        filled_bytes += size_bytes
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def write_shard(path: Path, shapes: dict[str, Any], bar: "tqdm[Any]") -> None:
    """Draw the tensors as a fresh model has them, and write them; the same ones for the same file name."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(zlib.crc32(path.name.encode()))
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.zeros(shape, dtype=torch.bfloat16)
        if len(shape) == 2:
            tensor.normal_(std=0.02, generator=generator)
        elif name.endswith("weight"):
            tensor.fill_(1)  # of a layer norm
        tensors[name] = tensor
        bar.update(tensor.nbytes)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(path)


def convert(checkpoint: Path, artifact: Path) -> dict[str, Any]:
    """`pangu-convert ctranslate2` in a process of its own."""
    verb = ("pangu_convert.cli", "ctranslate2", str(checkpoint), "--output", str(artifact), "--force")
    started = time.perf_counter()
    with Watched(verb, stdout=sys.stderr) as process:
        code = process.wait()
    if code:
        raise PanguError(f"pangu-convert ended with {code}")
    manifest = read_artifact(artifact).manifest
    return {
        "quantization": manifest.quantization,
        "wall_seconds": round(time.perf_counter() - started, 1),  # hashing included
        "peak_rss_bytes": process.peak_bytes,
        "model_bytes": manifest.weight_bytes,
        "disk_bytes": folder_bytes(artifact),
    }


def serve(artifact: Path) -> dict[str, Any]:
    """`pangu-serve` in a process of its own, and one completion from it."""
    verb = ("pangu_server.cli", str(artifact), "--port", "0", "--skip-verify")
    started = time.perf_counter()
    with Watched(verb, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if ready := re.search(r" ready on (http://\S+): ", line):
                break
        else:
            raise PanguError(f"pangu-serve ended with {process.wait()}")
        print(line, end="", file=sys.stderr)
        loaded = time.perf_counter()
        body = json.dumps({"prompt": PROMPT, "max_tokens": NUM_TOKENS, "temperature": 0}).encode()
        request = urllib.request.Request(
            f"{ready[1]}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            completion = json.load(response)
        answered = time.perf_counter()
        with urllib.request.urlopen(f"{ready[1]}/metrics") as response:
            metrics = response.read().decode()
        process.terminate()
        process.wait()

    def metric(name: str) -> float:
        (value,) = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE)
        return float(value)

    gaps = metric("vllm:inter_token_latency_seconds_count")
    return {
        "load_seconds": round(loaded - started, 1),  # from the start of the process
        "resident_memory_bytes": int(metric("process_resident_memory_bytes")),
        "peak_rss_bytes": process.peak_bytes,
        "prompt_tokens": completion["usage"]["prompt_tokens"],
        "completion_tokens": completion["usage"]["completion_tokens"],
        "finish_reason": completion["choices"][0]["finish_reason"],
        "request_seconds": round(answered - loaded, 2),
        "ttft_seconds": round(metric("vllm:time_to_first_token_seconds_sum"), 3),
        # The mean time between two tokens, the first one's wait left out.
        "seconds_per_token": round(metric("vllm:inter_token_latency_seconds_sum") / gaps, 4)
        if gaps
        else None,
    }


class Watched(subprocess.Popen[str]):
    """One of our programs as a child process, whose most resident memory is looked up while it runs.

    Not its `ru_maxrss`: that begins with what this process had.
    """

    def __init__(self, module_and_arguments: tuple[str, ...], *, stdout: Any) -> None:
        self.peak_bytes = 0
        super().__init__([sys.executable, "-m", *module_and_arguments], stdout=stdout, text=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while self.returncode is None:
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:  # it ended
                return
            if peak := re.search(r"VmHWM:\s+(\d+) kB", status):
                self.peak_bytes = int(peak[1]) * 1024
            time.sleep(POLL_SECONDS)

    def __exit__(self, *exception: Any) -> None:
        if exception[0] is not None:
            self.terminate()
        super().__exit__(*exception)


def folder_bytes(folder: Path) -> int:
    """Size of all files in `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    sys.exit(command.run(parser()))
