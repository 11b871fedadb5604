"""Attention over pages, computed by Triton's interpreter, against plain attention over each row's own tokens."""

import pytest
import support.interpreted  # noqa: F401
import torch

from pangu_server.backends.torch.kernels.triton_attention import CHUNK, attention, store

# NumPy 1.25 warns of what the interpreter does with a loop's bounds.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

LENGTHS = [CHUNK + 20, 37, 0, 2]  # two chunks, one, a row that pads a graph, fewer tokens than are new
MAX_LENGTH = CHUNK + 64


class Pages:
    """Random keys and values of the rows of LENGTHS, in pages that lie in any order."""

    def __init__(self, page: int, kv_heads: int, width: int, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        count = MAX_LENGTH // page
        pages = 1 + len(LENGTHS) * count
        self.keys, self.values = (torch.randn((pages, page, kv_heads, width)).to(dtype) for _ in range(2))
        self.keys[0] = self.values[0] = float("nan")  # nobody's page
        self.table = (torch.randperm(pages - 1)[: len(LENGTHS) * count] + 1).view(-1, count).int()
        for row, length in enumerate(LENGTHS):  # nor are the pages that a row has not reached
            self.table[row, -(-length // page) :] = 0
        self.lengths = torch.tensor(LENGTHS, dtype=torch.int32)

    def of(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The row's keys and values (tokens, kv_heads, width)."""
        pages, length = self.table[row].long(), LENGTHS[row]
        keys, values = (each[pages].flatten(0, 1)[:length].float() for each in (self.keys, self.values))
        return keys, values


def plain(q: torch.Tensor, pages: Pages, window: int, softcap: float) -> torch.Tensor:
    """Attention of all rows, token by token."""
    heads, width = q.shape[1:]
    found, new = torch.zeros(q.shape), len(q) // len(LENGTHS)
    for row, length in enumerate(LENGTHS):
        keys, values = pages.of(row)
        for token in range(new):
            position = length - new + token
            first = max(0, position - window + 1) if window else 0
            if position < 0:
                continue
            key, value = (
                each[first : position + 1].repeat_interleave(heads // each.shape[1], 1)
                for each in (keys, values)
            )
            scores = torch.einsum("hd,khd->hk", q[row * new + token].float(), key) * width**-0.5
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            found[row * new + token] = torch.einsum("hk,khd->hd", scores.softmax(-1), value)
    return found


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "new", "window", "softcap", "dtype", "most"),
    [
        (20, 1, 64, 1, 0, 0.0, torch.float32, 1e-5),  # multi-query
        (6, 2, 80, 3, 0, 0.0, torch.float32, 1e-5),  # a width that is padded
        (2, 2, 128, 2, 0, 5.0, torch.float32, 1e-5),  # a head of keys for each
        (2, 1, 256, 1, 40, 0.0, torch.float32, 1e-5),
        (6, 1, 64, 16, 7, 0.0, torch.float32, 1e-5),  # more queries than one program takes
        (4, 2, 96, 2, 270, 5.0, torch.float16, 1e-3),  # a window over two chunks
        (4, 2, 64, 1, 0, 0.0, torch.bfloat16, 1e-2),
    ],
)
def test_it_is_attention(
    heads: int,
    kv_heads: int,
    width: int,
    new: int,
    window: int,
    softcap: float,
    dtype: torch.dtype,
    most: float,
) -> None:
    pages = Pages(16, kv_heads, width, dtype)
    q = torch.randn((len(LENGTHS) * new, heads, width)).to(dtype)
    found = attention(
        q,
        pages.keys,
        pages.values,
        pages.table,
        pages.lengths,
        scale=width**-0.5,
        window=window,
        softcap=softcap,
    )
    right = plain(q, pages, window, softcap)
    assert found.dtype == dtype
    for token in range(len(q)):  # each for itself: a row of zeros must be one
        assert (found[token].float() - right[token]).norm() <= most * right[token].norm()


def test_a_row_does_not_depend_on_the_others() -> None:
    pages = Pages(32, 2, 64, torch.float16)
    q = torch.randn((len(LENGTHS) * 2, 4, 64)).half()
    together = attention(q, pages.keys, pages.values, pages.table, pages.lengths, scale=0.125)
    for row in (0, 1):
        alone = attention(
            q[row * 2 : row * 2 + 2],
            pages.keys,
            pages.values,
            pages.table[row : row + 1],
            pages.lengths[row : row + 1],
            scale=0.125,
            max_length=LENGTHS[row],
        )
        assert torch.equal(alone, together[row * 2 : row * 2 + 2])


def test_queries_may_be_part_of_a_wider_tensor() -> None:
    pages = Pages(16, 1, 64, torch.float16)
    fused = torch.randn((len(LENGTHS), 6 * 64)).half()
    view = fused[:, : 4 * 64].view(-1, 4, 64)
    arguments = pages.keys, pages.values, pages.table, pages.lengths
    assert torch.equal(
        attention(view, *arguments, scale=0.125), attention(view.contiguous(), *arguments, scale=0.125)
    )


def test_new_keys_and_values_are_written_to_their_slots() -> None:
    torch.manual_seed(0)
    keys, values = torch.zeros((3, 16, 2, 80)), torch.zeros((3, 16, 2, 80))
    fused = torch.randn((4, 4 * 80))
    new_keys, new_values = fused[:, :160].view(4, 2, 80), fused[:, 160:].view(4, 2, 80)
    store(new_keys, new_values, keys, values, torch.tensor([17, -1, 0, 47]))
    for pages, new in ((keys, new_keys), (values, new_values)):
        flat = pages.view(48, 2, 80)
        assert torch.equal(flat[[17, 0, 47]], new[[0, 2, 3]])
        flat[[17, 0, 47]] = 0
        assert not flat.any(), "nothing else is written"
