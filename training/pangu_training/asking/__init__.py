"""Asking servers: which ones there are, and many questions to them at a time."""
