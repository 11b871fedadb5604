"""Stage 1 of 4: from problems to a checkpoint folder.

RRTF (PanGu-Coder2, arXiv 2307.14936) as `pangu-train`, and what every later stage needs of a checkpoint: its
reader, the errors, the way an output folder is written.
"""
