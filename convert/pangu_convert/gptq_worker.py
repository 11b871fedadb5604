"""The process that quantizes with gptqmodel: it patches other libraries on import, so it has one to itself.

    python -m pangu_convert.gptq_worker < job.json

Events go to stdout, a JSON object a line: `{"layer": i}`, then `{"done": {…}}` or
`{"error": "…"}`. What gptqmodel prints goes to stderr. Its files (`model.safetensors`, and debris) stay in
`job.folder`. Only `pangu_convert.gptq` starts it; it dies with that process.
"""

import ctypes
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch

PR_SET_PDEATHSIG = 1  # linux/prctl.h
Report = Callable[..., None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to quantize and how; travels as JSON on stdin."""

    parent_process: int
    checkpoint: str
    folder: str
    dtype: str
    bits: int
    group_size: int
    act_order: bool
    damp: float
    rows: tuple[tuple[int, ...], ...]
    eight_bits: tuple[str, ...] = ()  # regular expressions for the names of layers
    mse: float = 0.0
    gptaq: bool = False

    @property
    def dynamic(self) -> dict[str, dict[str, int]]:
        """What differs by layer, as gptqmodel and vLLM read it."""
        return {f"+:{rule}": {"bits": 8} for rule in self.eight_bits}

    def to_json(self) -> str:
        """The line that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a job."""
        return cls(**json.loads(text))


def main() -> int:
    """Do the job on stdin; exit code 0, or 1 after reporting an error."""
    # Ctrl-C reaches the whole group; the parent stops us and says so once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job.from_json(sys.stdin.read())
    die_with(job.parent_process)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as events:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

        def report(**event: Any) -> None:
            print(json.dumps(event), file=events, flush=True)

        try:
            report(done=quantize(job, report))
        except Exception as error:  # whatever a library raises is reported, with its traceback on stderr
            report(error=f"{type(error).__name__}: {' '.join(str(error).split())}")
            raise
    return 0


def die_with(parent_process: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_process:  # it ended before
        sys.exit(1)


def quantize(job: Job, report: Report) -> dict[str, Any]:
    """Quantize and write `model.safetensors` (or shards and their index) into `job.folder`."""
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import GPTQConfig
    from gptqmodel.quantization.config import GPTAQConfig

    config = GPTQConfig(
        bits=job.bits,
        group_size=job.group_size,
        desc_act=job.act_order,
        # Sorts by activation size but keeps groups whole: closer, and free at run time.
        act_group_aware=not job.act_order and job.group_size > 0,
        damp_percent=job.damp,
        sym=True,
        dynamic=job.dynamic or None,
        mse=job.mse,
        gptaq=GPTAQConfig() if job.gptaq else None,
        offload_to_disk=False,
        pack_impl="original",  # the default compiles a C++ extension into the home folder, for the same bytes
    )
    stored = getattr(torch, job.dtype)
    dtype = computing_dtype(stored)
    model = GPTQModel.load(job.checkpoint, config, dtype=dtype, trust_remote_code=False, use_safetensors=True)

    def layer_complete(*, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            report(layer=layer_idx)

    model.layer_callback = layer_complete
    rows = [{"input_ids": [*row], "attention_mask": [1] * len(row)} for row in job.rows]
    model.quantize(rows, batch_size=1)
    # Written out even when tied: auto-gptq would otherwise take random numbers for the output layer.
    head, embedding = model.model.get_output_embeddings(), model.model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for parameter in model.model.parameters():  # packed tensors are buffers
        parameter.data = parameter.data.to(stored)
    model.save(job.folder)
    return {
        "computed_in": str(dtype).removeprefix("torch."),
        "act_group_aware": config.act_group_aware,
        "true_sequential": config.true_sequential,
        "sym": config.sym,
        "damp_auto_increment": config.damp_auto_increment,
        "device": str(config.device.value if hasattr(config.device, "value") else config.device),
    }


def computing_dtype(stored: "torch.dtype") -> "torch.dtype":
    """What to calibrate in: the stored type, or float32 on a CPU that has no instructions for it (5 times as fast)."""
    import torch

    if torch.cuda.is_available():
        return stored
    native = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if stored in native and native[stored]():
        return stored
    return torch.float32


if __name__ == "__main__":
    sys.exit(main())
