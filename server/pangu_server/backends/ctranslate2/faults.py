"""Why the library cannot load or run here, in one line that says what to do."""

import re

REMEDIES = {
    r"libcublas": (
        "install CUDA 12's cuBLAS with pip install nvidia-cublas-cu12, or run in an image with CUDA 12; "
        "--device cpu needs none"
    ),
    r"out of memory|bad_alloc|failed to allocate": (
        "take fewer --max-batch, an artifact of fewer bits, or a card or machine with more memory"
    ),
}


def explained(error: Exception) -> str:
    """The error's text on one line, with its remedy where one is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    found = [remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, text)]
    return ": ".join([text, *found])
