"""Fields of packed words as numbers, for Triton.

No conversion. A half-precision number whose bits are 0x6400 is 1024, and its last ten bits count in ones; a
bfloat16 of 0x4300 is 128, and its last seven count. A field in two's complement with its sign flipped is the weight
plus a constant: one exclusive or puts both in, one subtraction takes the constants out. All of it is exact.
"""

import triton
import triton.language as tl


@triton.jit
def unpacked(words, FIELD: tl.constexpr, BITS: tl.constexpr, TYPE: tl.constexpr):
    """Field `FIELD` of words (outputs, words) as exact numbers (outputs, 2 * words) of a type of 16 bits."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    shifted = words >> (FIELD * BITS)
    HALF: tl.constexpr = TYPE.is_fp16()
    if HALF or BITS == 4:
        ZERO: tl.constexpr = ((0x6400 if HALF else 0x4300) + SIGN) * 0x10001
        field = (shifted & (2 * SIGN - 1) * 0x10001) ^ ZERO
        zero = tl.full(words.shape, ZERO, tl.int32)
    else:  # seven bits count in ones; the sign makes 256 of 128
        field = (shifted & 0x7F * 0x10001) | 0x4300 * 0x10001
        zero = (shifted & 0x80 * 0x10001) | 0x4300 * 0x10001
    return (_halves(field, TYPE).to(tl.float32) - _halves(zero, TYPE).to(tl.float32)).to(TYPE)


@triton.jit
def _halves(words, TYPE: tl.constexpr):
    """The two halves of each word as numbers, one after the other. Costs nothing: registers are renamed."""
    pairs = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    return tl.reshape(pairs, (words.shape[0], 2 * words.shape[1])).to(TYPE, bitcast=True)
