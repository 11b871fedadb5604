"""A hostile corpus: what somebody may put into a folder that others then convert, serve or train from.

Each attack is a function that changes one file of a good folder; none is larger on the disk than a few MB.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Attack = Callable[[Path], object]  # the file that is attacked
OUTSIDE = Path("/etc/passwd")


def replaced(data: bytes) -> Attack:
    def attack(file: Path) -> None:
        file.unlink(missing_ok=True)
        file.write_bytes(data)

    return attack


def linked(target: object) -> Attack:
    def attack(file: Path) -> None:
        file.unlink(missing_ok=True)
        file.symlink_to(str(target))

    return attack


def sparse(size_bytes: int) -> Attack:
    """Zeros that take no room on the disk."""

    def attack(file: Path) -> None:
        file.unlink(missing_ok=True)
        with file.open("wb") as stream:
            stream.truncate(size_bytes)

    return attack


def fifo(file: Path) -> None:
    """Who opens it to read waits for a writer."""
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to(file.name)


def folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def padded(file: Path) -> None:
    """Right, but for 100 MB of spaces."""
    with file.open("ab") as stream:
        stream.write(b" " * (100 << 20))


def with_key(key: str, value: str) -> Attack:
    """`value`, as it stands, becomes the first key of the object in the file."""

    def attack(file: Path) -> None:
        text = file.read_text().lstrip()
        assert text.startswith("{")
        rest = text[1:].lstrip()
        file.write_text(f'{{"{key}": {value}' + (rest if rest.startswith("}") else f", {rest}"))

    return attack


# A file of any kind in the place of one that is read.
PLACES: Mapping[str, Attack] = {
    "fifo": fifo,
    "endless device": linked("/dev/zero"),
    "waiting device": linked("/dev/tty"),
    "loop": loop,
    "folder": folder,
}
# Of a file with a JSON object.
BOMBS: Mapping[str, Attack] = {
    **PLACES,
    "outside": linked(OUTSIDE),
    "empty": replaced(b""),
    "not text": replaced(b"\xff\xfe\x00{}"),
    "no object": replaced(b"[1]"),
    "zeros": sparse(1 << 40),
    "padded": padded,
    "deep": replaced(b"[" * 1_000_000),
    "deep object": replaced(b'{"a":' * 1_000_000),
    "deep in a key": with_key("deep", "[" * 100_000 + "]" * 100_000),
    "wide": replaced(b"{" + b",".join(b'"a%d":[[],{}]' % n for n in range(1 << 20)) + b"}"),
    "wide list": with_key("wide", "[" + ",".join(["{}"] * (1 << 22)) + "]"),
    "long number": with_key("long", "1" * 1_000_000),
    "long power": with_key("power", "1" + "0" * 4000 + "e" + "9" * 4000),
    "not a number": with_key("nan", "NaN"),
    "infinite": with_key("most", "-Infinity"),
    "twice": with_key("twice", '1, "twice": 2'),
}


def header(entries: bytes | Mapping[str, Any], *, length: int | None = None, data: bytes = b"") -> Attack:
    """A safetensors file with this header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return replaced((len(text) if length is None else length).to_bytes(8, "little") + text + data)


def tensor(shape: Any, start: Any, stop: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


MANY = (
    b"{"
    + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % n for n in range(250_000))
    + b"}"
)
WEIGHTS: Mapping[str, Attack] = {
    **PLACES,
    "outside": linked(OUTSIDE),
    "empty": replaced(b""),
    "zeros": sparse(1 << 40),
    "pickle": replaced(b"\x80\x04cbuiltins\nexec\n"),
    "header of 2^63": header({}, length=1 << 63),
    "header of 2^64 - 8": header({}, length=(1 << 64) - 8),
    "header of 99 MB": sparse(1 << 30),
    "deep header": header(b"[" * 1_000_000),
    "overlapping": header({"a": tensor([1], 0, 4), "b": tensor([1], 2, 6)}, data=b"12345678"),
    "beyond the end": header({"a": tensor([1 << 40], 0, 4 << 40)}, data=b"1234"),
    "backwards": header({"a": tensor([1], 8, 4)}, data=b"12345678"),
    "shape of 2^63": header({"a": tensor([1 << 63, 2], 0, 0)}),
    "shape of 2^64 and 0": header({"a": tensor([1 << 64, 0], 0, 0)}),
    "shape of a million sizes": header({"a": tensor([1 << 62] * 1_000_000, 0, 4)}, data=b"1234"),
    "shape of no numbers": header({"a": tensor([None, "1", {}], 0, 4)}, data=b"1234"),
    "nested shape": header({"a": tensor([[[]]], 0, 4)}, data=b"1234"),
    "type of 10^9": header({"a": tensor([1], 0, 4, "F999")}, data=b"1234"),
    "type of no text": header({"a": tensor([1], 0, 4, ["F32"])}, data=b"1234"),
    "metadata of no kind": header({"__metadata__": 5, "a": tensor([1], 0, 4)}, data=b"1234"),
    "many tensors": header(MANY),
    "more tensors": header(MANY.replace(b"250", b"25")[:-1] + b"," + MANY[1:].replace(b'"', b'"x', 1)),
    "name of 10 MB": header({"a" * (10 << 20): tensor([1], 0, 4)}, data=b"1234"),
    "name of control characters": header({"\x1b[2J\n\r\u202e": tensor([1], 0, 4)}, data=b"1234"),
    "constants": header(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, Infinity]}}'),
}
# Values of every kind, in the place of any key's.
VALUES: tuple[Any, ...] = (
    None,
    [],
    {},
    -1,
    0,
    10**12,
    10**400,
    "",
    "x",
    True,
    0.5,
    [[["x"]]],
    {"x": {"x": None}},
    ["x", None, 10**12],
)


def changed_keys(source: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each key with each of `VALUES`, one at a time, also one level down; what it is called, and the whole."""
    for key, old in source.items():
        for value in VALUES:
            if value != old or type(value) is not type(old):
                yield f"{key} = {str(value)[:20]!r}", {**source, key: value}
        if isinstance(old, dict):
            for name, inner in changed_keys(old):
                yield f"{key}.{name}", {**source, key: inner}


def gguf(keys: bytes = b"", *, num_keys: int = 0, num_tensors: int = 0, tensors: bytes = b"") -> Attack:
    """A GGUF file, version 3."""
    return replaced(b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_keys) + keys + tensors)


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_key(name: bytes, kind: int, *numbers: tuple[str, int]) -> bytes:
    return gguf_text(name) + struct.pack("<I", kind) + b"".join(struct.pack(f"<{c}", n) for c, n in numbers)


NUMBERS, TEXT, ARRAY, BYTES = 4, 8, 9, 0
GGUFS: Mapping[str, Attack] = {
    "counts": gguf(num_keys=1 << 63, num_tensors=1 << 63),
    "keys": gguf(num_keys=1 << 40),
    "tensors": gguf(num_tensors=1 << 40),
    "name": gguf(struct.pack("<Q", 1 << 63), num_keys=1),
    "text": gguf(gguf_key(b"a", TEXT, ("Q", 1 << 63)), num_keys=1),
    "array": gguf(gguf_key(b"a", ARRAY, ("I", NUMBERS), ("Q", 1 << 62)), num_keys=1),
    "texts": gguf(gguf_key(b"a", ARRAY, ("I", TEXT), ("Q", 1 << 40)) + bytes(1 << 20), num_keys=1),
    "nested": gguf(gguf_key(b"a", ARRAY, *[("I", ARRAY), ("Q", 1)] * 100_000), num_keys=1),
    "dimensions": gguf(num_tensors=1, tensors=gguf_text(b"a") + struct.pack("<I", 1 << 31) + bytes(100)),
    "sizes": gguf(
        num_tensors=1,
        tensors=gguf_text(b"a") + struct.pack("<IQQIQ", 2, (1 << 64) - 32, (1 << 64) - 32, 0, 0) + bytes(100),
    ),
    "alignment": gguf(gguf_key(b"general.alignment", NUMBERS, ("I", 0)), num_keys=1),
    "alignment of 2^31": gguf(gguf_key(b"general.alignment", NUMBERS, ("I", 1 << 31)), num_keys=1),
    "control characters": gguf(gguf_key(b"general.architecture", TEXT) + gguf_text(b"\x1b[2J\n"), num_keys=1),
}


def gguf_of_bytes(file: Path) -> None:
    """An array of 512 million bytes, which take no room on the disk."""
    gguf(gguf_key(b"a", ARRAY, ("I", BYTES), ("Q", 1 << 29)), num_keys=1)(file)
    with file.open("r+b") as stream:
        stream.truncate(1 << 30)


def index(**places: str) -> Attack:
    """The index of shards, in the place of one whole file."""

    def attack(file: Path) -> None:
        (file.parent / "model.safetensors").unlink()
        file.write_text(json.dumps({"weight_map": places}))

    return attack


INDICES: Mapping[str, Attack] = {
    "parent": index(a="../../../etc/passwd"),
    "absolute": index(a=str(OUTSIDE)),
    "itself": index(a="."),
    "above": index(a=".."),
    "no text": index(a=5),  # type: ignore[arg-type]
    "control characters": index(a="\x1b[2J\n"),
    "zero": index(a="a\0b"),
    "long name": index(a="a" * 100_000),
}


def changed_tokenizer(**changes: Any) -> Attack:
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def doubled(text: str, times: int) -> dict[str, Any]:
    one = {"type": "Replace", "pattern": {"String": text}, "content": 2 * text}
    return {"type": "Sequence", "normalizers": [one] * times}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


A: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
B: dict[str, Any] = {"Sequence": {"id": "B", "type_id": 1}}
TOKENIZERS: Mapping[str, Attack] = {
    "backtracking": changed_tokenizer(pre_tokenizer=split(r"(x+x+)+\x00")),
    "growing": changed_tokenizer(normalizer=doubled("f", 40)),
    "repeated": changed_tokenizer(
        post_processor={
            "type": "TemplateProcessing",
            "single": [A] * 1000,
            "pair": [A, B],
            "special_tokens": {},
        }
    ),
    "no kind": changed_tokenizer(model={"type": "Nothing"}),
}
TEMPLATES: Mapping[str, str] = {
    "loops": "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "text": "{{ 'x' * 10**10 }}",
    "deep": "{{ " + "(" * 5000,
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "escape sequence": "{{ raise_exception('no\n\x1b[2J') }}",
}
