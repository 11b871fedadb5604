"""Runs untrusted Python programs against tests; the verdict is made where the program cannot reach.

    parent (execution.py)          starts both, keeps the time, reads the judge's verdict
      |- judge (judge.py)          runs the tests; calls the program's function by proxy
      `- candidate (candidate.py)  runs the program, answers calls; never sees an expected value

Judge and candidate are separate processes, each confined (confinement.py), joined by two pipes that carry
plain data (wire.py). checks.py makes the tests from the rows of data sets. docs/sandbox.md has the threat
model. This file imports nothing: the confined processes import it, and their start is paid for every run.
"""
