"""Stage 4 of 4: what an artifact costs and what it solves."""
