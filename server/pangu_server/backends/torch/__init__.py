"""The torch engine: models of transformers with our weights, cache, kernels and schedule."""
