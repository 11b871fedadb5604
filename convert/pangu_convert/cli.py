"""`pangu-convert VERB …`: one function a verb, in a module of its own."""

import argparse
import sys
from collections.abc import Sequence

from pangu_convert import (
    adopt,
    card,
    ctranslate2,
    gptq,
    importer,
    inspection,
    push,
    transformers,
    verification,
)
from pangu_training.stage import command

VERBS: command.Verbs = {
    "import": (
        importer.import_checkpoint,
        "make a checkpoint folder from a catalogue name, GGUF file, folder or hub id",
    ),
    "ctranslate2": (ctranslate2.to_ctranslate2, "convert a checkpoint to CTranslate2, int8 by default"),
    "gptq": (gptq.to_gptq, "quantize a checkpoint to 4 or 8 bits with GPTQ, calibrated on code"),
    "transformers": (transformers.to_transformers, "make the unquantized artifact of a checkpoint"),
    "adopt": (adopt.adopt, "make an artifact of a quantized model that others made: GPTQ, AWQ, CTranslate2"),
    "verify": (verification.verify, "compare an artifact with the checkpoint it was made from"),
    "inspect": (inspection.inspect, "print an artifact's manifest, or verify its files"),
    "card": (
        card.card,
        "write the model card of an artifact: what it is, where it is from, what was measured",
    ),
    "push": (push.push, "upload an artifact with its card to a repository of a model hub, in one commit"),
}


def parser() -> argparse.ArgumentParser:
    """The command's argument parser."""
    return command.parser_of(
        "pangu-convert",
        "From a pretrained code model to an artifact that pangu-serve loads.",
        VERBS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `pangu-convert`."""
    return command.run(parser(), argv, extra="convert")


if __name__ == "__main__":
    sys.exit(main())
