"""What multiplies and attends: kernels of our own for CPUs (numba) and CUDA (Triton), compiled at load without a compiler."""
