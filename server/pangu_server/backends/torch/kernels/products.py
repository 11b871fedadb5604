"""What the kernels share: a matrix product that Triton's interpreter computes too."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(left, right, total):
    """total + left @ right, in single precision."""
    if (
        INTERPRETED
    ):  # it would take the bits of bfloat16 for integers; products of such numbers are exact here
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, total, input_precision="ieee")
