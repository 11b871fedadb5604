"""Stage 1 of 4: from problems to a checkpoint folder.

Holds what every later stage needs of a checkpoint: its reader, the errors, the way an output folder is
written. RRTF training itself (`pangu-train`) is not written yet.
"""
