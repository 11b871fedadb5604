"""The search for launch shapes on the card at hand, done once: a file keeps what it found."""

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources

from pangu_server.backends.torch.kernels import kernels_folder
from pangu_server.backends.torch.kernels.launching import Launch, Plan, default_plan
from pangu_server.backends.torch.kernels.triton_linear import TritonLinear

log = logging.getLogger(__name__)

SPLITS = (1, 2, 4, 8)
LAUNCHES = {
    16: (Launch(64, 4, 3), Launch(64, 4, 4), Launch(64, 4, 6), Launch(128, 4, 3), Launch(128, 8, 4)),
    32: (Launch(64, 4, 3), Launch(64, 4, 4), Launch(128, 4, 3), Launch(128, 8, 3)),
    64: (Launch(64, 4, 2), Launch(64, 4, 3), Launch(128, 4, 3), Launch(128, 8, 3)),
}
REPEATS = 7
CACHE_BYTES = 512 << 20  # written between two runs, so that no weights are left in the card's cache


Timer = Callable[[Callable[[], object]], float]


def tune(linears: Iterable[TritonLinear], folder: Path | None = None, timer: Timer | None = None) -> int:
    """Give each layer the best plan for this card, searched for now or by an earlier start.

    The split is chosen where it matters, at 16 rows, and kept for more rows: a row's result must not depend on how
    many others there are.

    Returns:
        How many shapes had to be searched.
    """
    layers: dict[str, list[TritonLinear]] = {}
    for linear in linears:
        layers.setdefault(linear.key, []).append(linear)
    if not layers:
        return 0
    path = (folder or kernels_folder()) / f"{_device_name(layers)}-triton-{triton.__version__}.json"
    plans = _read(path)
    missing = layers.keys() - plans.keys()
    for key in sorted(missing):
        started = time.perf_counter()
        plans[key] = _search(layers[key][0], timer or seconds)
        log.info("launch shapes of %s found in %.1f s", key, time.perf_counter() - started)
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps({key: plan.to_json() for key, plan in plans.items()}, indent=1))
        whole.replace(path)
    for key, same in layers.items():
        for linear in same:
            linear.plan = plans[key]
    return len(missing)


def _device_name(layers: dict[str, list[TritonLinear]]) -> str:
    device = next(iter(layers.values()))[0].packed.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return str(name).replace(" ", "-")


def _read(path: Path) -> dict[str, Plan]:
    """The plans in a file of `tune`; none where there is no file, or one that is not understood."""
    try:
        return {key: Plan.from_json(plan) for key, plan in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s is not understood and is written anew: %s", path, error)
        return {}


def _search(linear: TritonLinear, timer: Timer) -> Plan:
    blocks = len(linear.packed)
    default = default_plan(linear.outputs, blocks)

    def of(padded: int, split: int, launch: Launch) -> float:
        """Seconds; infinite where the card has not the memory for this shape."""
        x = torch.zeros((padded, linear.inputs), device=linear.packed.device, dtype=linear.dtype)
        try:
            return timer(lambda: linear.launch(x, split, padded, **launch.options()))
        except OutOfResources:
            return float("inf")

    splits = [split for split in SPLITS if split == 1 or blocks >= 2 * split]
    times = {(split, launch): of(16, split, launch) for launch in LAUNCHES[16] for split in splits}
    split, best = min(times, key=lambda choice: times[choice])
    launches = {16: best}
    for padded in (32, 64):
        found = {launch: of(padded, split, launch) for launch in LAUNCHES[padded]}
        best = min(found, key=lambda launch: found[launch])
        launches[padded] = default.launches[padded] if found[best] == float("inf") else best
    return Plan(split, launches)


def seconds(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of `function` on the current CUDA device, with a cold cache. The host's own time does not count."""
    function()
    rubbish = torch.empty(CACHE_BYTES // 4, dtype=torch.int32, device="cuda")
    pairs = []
    for _ in range(repeats):
        rubbish.zero_()  # long enough for the host to queue what follows
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        function()
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    times: list[float] = sorted(first.elapsed_time(last) for first, last in pairs)
    return times[repeats // 2] / 1e3
