"""The layout of packed weights that `triton_linear` reads.

The inputs are cut into blocks. A block of one output is `words` int32, each with two halves of 16 bits, each half with
two fields of 8 bits or four of 4. Field j of the halves of word w is the weight of inputs j * 2 * words + 2 * w and
the one after it. Blocks come first and outputs second, so what a program reads of a block is one piece of memory.
"""

import torch


def words_of_block(inputs: int, bits: int, group: int) -> int | None:
    """int32 words that an output has in a block, as many as fit; None if no block fits.

    A tensor core takes 16 inputs at a time, so a field needs at least as many. A group must be whole fields of one
    block, or whole blocks.
    """
    for run in (64, 32, 16):
        block = run * 16 // bits
        in_groups = group == inputs or group % block == 0 or (group % run == 0 and block % group == 0)
        if inputs % block == 0 and in_groups:
            return run // 2
    return None


def packed_words(integers: torch.Tensor, bits: int, words: int) -> torch.Tensor:
    """int8 (outputs, inputs) as int32 (blocks, outputs, words)."""
    outputs = len(integers)
    fields = integers.view(torch.uint8).view(outputs, -1, 2, 8 // bits, words, 2)
    if bits == 4:
        nibbles = (fields & 15).unbind(3)
        data = nibbles[0] | nibbles[1] << 4
    else:
        data = fields.squeeze(3)
    # outputs, blocks, byte of a half, word, half -> blocks, outputs, word, half, byte
    return data.permute(1, 0, 3, 4, 2).flatten(3).contiguous().view(torch.int32).squeeze(-1)
