"""Stage 3 of 4: an OpenAI-style completion server over an artifact (`pangu-serve`)."""
