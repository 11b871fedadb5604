"""The table of docs/models.md, from the table that the code goes by.

python docs/scripts/models.py
"""

import argparse

from pangu_convert.architectures import ARCHITECTURES, EVERY


def table() -> str:
    """A row an architecture."""
    lines = [f"| architecture | {' | '.join(EVERY)} |", f"| --- |{' --- |' * len(EVERY)}"]
    for name, formats in sorted(ARCHITECTURES.items()):
        cells = ("yes" if format in formats else "no" for format in EVERY)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print it."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(table())


if __name__ == "__main__":
    main()
