"""What every stage stands on: how commands end, how folders and lines are written, checkpoints, hashes, errors."""
