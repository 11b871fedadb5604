"""The speed of the Triton kernels on a CUDA device, after a check that they are right.

    python docs/scripts/kernels.py                                  # all kernels; the products as they are, then tuned
    python docs/scripts/kernels.py --device cpu --toy               # only right or wrong, by Triton's interpreter

Times are medians with a cold cache, without the host's share. TB/s counts the packed weights, or the keys and values.
`layers` is the time that all matrices of StarCoder-15B's 40 layers take in a CUDA graph.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

SHAPES = {
    "qkv": (6400, 6144),
    "proj": (6144, 6144),
    "fc": (24576, 6144),
    "out": (6144, 24576),
}  # outputs, inputs
LAYERS, HEADS, WIDTH, PAGE = 40, 48, 128, 64
Timer = Callable[[Callable[[], object]], float]


def quantized(outputs: int, inputs: int, bits: int, groups: int, device: str) -> Any:
    """A random matrix, as an artifact's is read."""
    from pangu_server.backends.torch.quantized import Quantized

    least = -(2 ** (bits - 1))
    integers = torch.randint(least, -least, (outputs, inputs), dtype=torch.int8, device=device)
    scales = (torch.rand((outputs, groups), device=device) + 0.5) * 0.01 / 2 ** (bits - 4)
    return Quantized(integers, scales.half().float(), bits)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative."""
    return float((found.float() - expected).norm() / expected.norm())


def judge(name: str, found: float, most: float) -> None:
    """A line that begins with WRONG if it is."""
    print(f"{'right' if found <= most else 'WRONG'}  {name}: relative error {found:.2g}", flush=True)


def check_linear(device: str) -> None:
    """Products against plain torch, and that a row does not depend on those around it."""
    from pangu_server.backends.torch.kernels.triton_linear import TritonLinear

    cases = [(4, 100, 512, 4), (8, 100, 512, 4), (8, 72, 576, 1), (4, 65, 896, 7), (4, 64, 256, 8)]
    for dtype in (torch.float16, torch.bfloat16):
        for bits, outputs, inputs, groups in cases:
            weight = quantized(outputs, inputs, bits, groups, device)
            layer = TritonLinear.pack(weight, torch.randn(outputs, device=device), dtype)
            x = torch.randn((70, inputs), device=device).to(dtype)
            assert layer.bias is not None
            expected = x.float() @ weight.dense().T + layer.bias.float()
            alone = torch.cat([layer(row[None]) for row in x[:2]])
            most = 1e-3 if dtype == torch.float16 else 8e-3
            name = f"{bits} bits, {outputs} x {inputs}, {groups} groups, {dtype}"
            for rows in (3, 64, 70):
                found = layer(x[:rows])
                judge(f"{name}, {rows} rows", error(found, expected[:rows]), most)
                if rows <= 64:
                    judge(f"{name}, {rows} rows, as alone", float((found[:2] != alone).sum()), 0)


def paged(
    rows: int, tokens: int, kv_heads: int, width: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, ...]:
    """Random keys, values and a page table."""
    pages = -(-tokens // PAGE)
    keys, values = (
        torch.randn((rows * pages, PAGE, kv_heads, width), device=device).to(dtype) for _ in range(2)
    )
    return keys, values, torch.randperm(rows * pages, device=device).view(rows, pages).int()


def check_attention(device: str) -> None:
    """Attention against plain torch."""
    from pangu_server.backends.torch.kernels.triton_attention import attention

    held = [300, 64, 17]
    for dtype in (torch.float16, torch.bfloat16):
        for heads, kv_heads, width, new in ((12, 1, 128, 1), (14, 2, 64, 5), (8, 4, 80, 2), (4, 4, 256, 1)):
            keys, values, table = paged(3, 320, kv_heads, width, dtype, device)
            q = torch.randn((3 * new, heads, width), device=device).to(dtype)
            lengths = torch.tensor(held, device=device, dtype=torch.int32)
            found = attention(q, keys, values, table, lengths, scale=width**-0.5)
            expected = torch.empty(q.shape, device=device)
            for row, length in enumerate(held):
                key, value = (
                    each[table[row].long()]
                    .flatten(0, 1)[:length]
                    .float()
                    .repeat_interleave(heads // kv_heads, 1)
                    for each in (keys, values)
                )
                scores = (
                    torch.einsum("thd,khd->htk", q[row * new : row * new + new].float(), key) * width**-0.5
                )
                hidden = torch.ones((new, length), device=device).tril(length - new) == 0
                weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
                expected[row * new : row * new + new] = torch.einsum("htk,khd->thd", weights, value)
            name = f"attention, {heads} heads on {kv_heads} of {width}, {new} new tokens, {dtype}"
            judge(name, error(found, expected), 1e-3 if dtype == torch.float16 else 8e-3)


def in_graph(function: Callable[[], object]) -> Callable[[], None]:
    """`function` as a captured CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    replay: Callable[[], None] = graph.replay
    return replay


def put(what: str, rows: int, seconds: float, size: int, note: str = "") -> None:
    """A line of the table; `size` is what had to be read, in bytes."""
    print(
        f"{what:32} {rows:3} rows {seconds * 1e6:9.1f} us {size / seconds / 1e12:6.2f} TB/s  {note}",
        flush=True,
    )


def time_linear(a: argparse.Namespace, timer: Timer, left: Callable[[], bool]) -> None:
    """The four matrices of a layer, and all of forty layers."""
    for bits, group in a.formats:
        layers = [packed_layer(bits, group, a.dtype) for _ in range(a.layers)]
        time_layers(a, timer, left, f"{bits} bits, group {group or 'row'}", layers)


def packed_layer(bits: int, group: int, dtype: torch.dtype) -> dict[str, Any]:
    """The packed matrices of a layer."""
    from pangu_server.backends.torch.kernels.triton_linear import TritonLinear

    layer = {}
    for name, (outputs, inputs) in SHAPES.items():
        weight = quantized(outputs, inputs, bits, inputs // (group or inputs), "cuda")
        layer[name] = TritonLinear.pack(weight, torch.zeros(outputs, device="cuda"), dtype)
    return layer


def time_layers(
    a: argparse.Namespace, timer: Timer, left: Callable[[], bool], label: str, layers: list[dict[str, Any]]
) -> None:
    """A line for each matrix and one for all layers, for each number of rows."""
    for rows in a.rows if left() else ():
        x = {inputs: torch.randn((rows, inputs), device="cuda").to(a.dtype) for _, inputs in SHAPES.values()}
        total = 0.0
        for name, linear in layers[0].items():
            seconds = timer(partial(linear, x[linear.inputs]))
            total += seconds * LAYERS
            plan = f"split {linear.plan.split}, {linear.plan.launches[max(16, 1 << (rows - 1).bit_length())]}"
            put(f"{label}, {name}", rows, seconds, linear.packed.nbytes + linear.scales.nbytes, plan)

        def step(x: dict[int, torch.Tensor] = x) -> None:
            for layer in layers:
                for linear in layer.values():
                    linear(x[linear.inputs])

        size = sum(linear.packed.nbytes + linear.scales.nbytes for linear in layers[0].values()) * LAYERS
        seconds = timer(in_graph(step)) * LAYERS / len(layers)
        put(f"{label}, layers", rows, seconds, size, f"one by one: {total * 1e6:.1f} us")


def time_cublas(a: argparse.Namespace, timer: Timer, left: Callable[[], bool]) -> None:
    """The same matrices in 16 bits."""
    for name, (outputs, inputs) in SHAPES.items():
        weight = torch.randn((outputs, inputs), device="cuda").to(a.dtype)
        for rows in a.rows if left() else ():
            x = torch.randn((rows, inputs), device="cuda").to(a.dtype)
            put(
                f"16 bits, cuBLAS, {name}",
                rows,
                timer(partial(torch.nn.functional.linear, x, weight)),
                weight.nbytes,
            )


def time_attention(a: argparse.Namespace, timer: Timer, left: Callable[[], bool]) -> None:
    """One layer of StarCoder-15B: 48 heads on one key-value head."""
    from pangu_server.backends.torch.kernels.triton_attention import attention

    for tokens in (512, 4096):
        for rows in a.rows if left() else ():
            for new in (1, 4):
                cache = paged(rows, tokens, 1, WIDTH, a.dtype, "cuda")
                q = torch.randn((rows * new, HEADS, WIDTH), device="cuda").to(a.dtype)
                lengths = torch.full((rows,), tokens, device="cuda", dtype=torch.int32)
                attend = partial(attention, q, cache[0], cache[1], cache[2], lengths, scale=WIDTH**-0.5)
                seconds = timer(in_graph(attend))
                put(
                    f"attention, {tokens} tokens, {new} new", rows, seconds, cache[0].nbytes + cache[1].nbytes
                )


def seconds(function: Callable[[], object], repeats: int = 7) -> float:
    """Median time of `function` on the GPU, with a cold cache. The host's own time does not count."""
    function()
    rubbish = torch.empty(64 << 20, dtype=torch.int32, device="cuda")
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--toy", action="store_true", help="only check, time nothing")
    add("--dtype", choices=("float16", "bfloat16"), default="bfloat16")
    add("--rows", default="1,8,16,64")
    add("--formats", default="4:128,8:128,8:0", help="bits:group of each format; group 0 is a scale a row")
    add("--layers", type=int, default=4, help="how many layers lie in memory; their time is scaled to 40")
    add("--budget", type=float, default=300, help="seconds after which no new timing begins")
    a = parser.parse_args()
    a.dtype = getattr(torch, a.dtype)
    a.rows = [int(rows) for rows in a.rows.split(",")]
    a.formats = [tuple(int(number) for number in each.split(":")) for each in a.formats.split(",")]
    if a.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    started = time.perf_counter()
    if find_spec("triton") is None:
        parser.error("pip install triton --constraint constraints.txt")
    torch.manual_seed(0)
    check_linear(a.device)
    check_attention(a.device)
    print(f"checked in {time.perf_counter() - started:.1f} s", flush=True)
    if a.toy or a.device == "cpu":
        return

    def left() -> bool:
        return time.perf_counter() < started + float(a.budget)

    time_attention(a, seconds, left)
    time_linear(a, seconds, left)
    time_cublas(a, seconds, left)


if __name__ == "__main__":
    main()
