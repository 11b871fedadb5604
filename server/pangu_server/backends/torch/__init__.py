"""Models in torch as a backend: transformers' own, and GPTQ ones."""
