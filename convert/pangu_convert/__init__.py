"""Stage 2 of 4: from a checkpoint folder to an artifact that the server loads (`pangu-convert`)."""
