"""Hostile files of an artifact whose manifest agrees with them: hashes prove nothing about who wrote both."""

import hashlib
import json
import struct
from pathlib import Path

from pangu_convert.model_bin import read_model_bin
from support.corpus import Attack, replaced, sparse


def written(value: object) -> Attack:
    return lambda file: file.write_text(json.dumps(value))


def sealed(name: str, attack: Attack) -> Attack:
    """`attack` on the file `name`, of which the manifest then says what it is."""

    def both(manifest: Path) -> None:
        file = manifest.parent / name
        attack(file)
        small = file.is_file() and file.stat().st_size < 1 << 28
        size = file.stat().st_size if file.is_file() else 0
        sha256 = hashlib.sha256(file.read_bytes() if small else b"").hexdigest()
        fields = json.loads(manifest.read_text())
        fields["files"][name] = {"sha256": sha256, "size_bytes": size}
        manifest.write_text(json.dumps(fields))

    return both


def not_a_number(file: Path) -> None:
    """In a norm of a `model.bin`: no library looks for it."""
    variables = read_model_bin(file).variables
    norm = next(variable for name, variable in variables.items() if name.endswith("gamma"))
    data = bytearray(file.read_bytes())
    data[norm.offset : norm.offset + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(data)


ONE_VARIABLE = struct.pack("<IH", 6, 1) + b"\0" + struct.pack("<I", 1)
MODEL_BINS: dict[str, Attack] = {
    "nan": not_a_number,
    "variables": replaced(ONE_VARIABLE + struct.pack("<I", 0xFFFFFFFF)),
    "dimensions": replaced(ONE_VARIABLE + struct.pack("<IH", 1, 2) + b"a\0" + b"\xff" * 2000),
    "zeros": sparse(1 << 26),
}
