"""Ranked rows whose two texts are short: for training on a small machine. Writes them to stdout.

python docs/scripts/short_pairs.py CHECKPOINT ranked.jsonl --tokens 384 --count 256 > train.jsonl
"""

import argparse
from itertools import islice
from pathlib import Path

from pangu_training.data.ranked import RankedRow, read_ranked
from pangu_training.rrtf.pairs import PairTokenizer
from pangu_training.stage.checkpoint import read_checkpoint


def main() -> None:
    """Print the first rows that fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("ranked", type=Path)
    parser.add_argument("--tokens", type=int, required=True, help="of prompt and answer together, at most")
    parser.add_argument("--count", type=int, required=True, help="rows")
    arguments = parser.parse_args()
    tokenizer = PairTokenizer(read_checkpoint(arguments.checkpoint))
    lines = list(filter(str.strip, arguments.ranked.read_text(encoding="utf-8").split("\n")))
    rows = read_ranked(arguments.ranked).rows

    limit: int = arguments.tokens

    def fits(row: RankedRow) -> bool:
        pair = tokenizer.pair(row, 1 << 20)
        assert pair is not None
        return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= limit

    short = (line for line, row in zip(lines, rows, strict=True) if fits(row))
    print("\n".join(islice(short, arguments.count)))


if __name__ == "__main__":
    main()
