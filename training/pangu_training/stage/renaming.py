"""What checkpoints store under other names than transformers' models have, and experts that they store one by one.

transformers does the same when it loads (`conversion_mapping`), numbers included; here only names are known.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

# `model_type` -> what is replaced in the names, in this order.
RENAMED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "gpt_neox": ((r"^embed_out\.", "lm_head."),),
    "granitemoe": (
        (r"\.input_linear\.weight$", ".experts.gate_up_proj"),
        (r"\.output_linear\.weight$", ".experts.down_proj"),
        (r"\.router\.layer\.", ".router."),
    ),
    "mixtral": (
        (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.w1\.weight$", ".gate_proj.weight"),
        (r"\.w2\.weight$", ".down_proj.weight"),
        (r"\.w3\.weight$", ".up_proj.weight"),
    ),
}
EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d{0,5})\.(gate|up|down)_proj\.weight")
# What a parameter consists of: for each expert its stored matrices, one below the other; or one tensor, `((name,),)`.
Parts: TypeAlias = tuple[tuple[str, ...], ...]


def single(parts: Parts) -> str | None:
    """The name of the only tensor."""
    return parts[0][0] if len(parts) == len(parts[0]) == 1 else None


def parts_by_name(kind: str, lengths: Mapping[str, int], names: Iterable[str]) -> dict[str, Parts]:
    """What the stored `names` are in a model of type `kind`.

    Args:
        lengths: the model's names, and the first size of each: of experts, how many.

    Returns:
        Parts by the model's names, or for a tensor that it does not have by its own. What lacks of stored experts is
        named like the others.
    """
    names = set(names)
    renamed = {name: _renamed(kind, name) for name in sorted(names)}
    taken = {own for name, own in renamed.items() if own == name or own not in names}
    found: dict[str, Parts] = {}
    experts: dict[str, dict[tuple[int, str], str]] = defaultdict(dict)
    for name, own in renamed.items():
        if expert := EXPERT.fullmatch(own):
            target = f"{expert[1]}.{'down' if expert[3] == 'down' else 'gate_up'}_proj"
            place = int(expert[2]), expert[3]
            if place[0] < lengths.get(target, 0) and target not in taken and place not in experts[target]:
                experts[target][place] = name
                continue
        # What is there twice keeps its own name.
        found[name if own in found or (own != name and own in names) else own] = ((name,),)
    for target, stored in experts.items():
        matrices = ("down",) if target.endswith(".down_proj") else ("gate", "up")
        found[target] = tuple(
            tuple(_named(stored, target, number, matrix) for matrix in matrices)
            for number in range(lengths[target])
        )
    return found


def _renamed(kind: str, name: str) -> str:
    for pattern, replacement in RENAMED.get(kind, ()):
        name = re.sub(pattern, replacement, name)
    return name


def _named(stored: Mapping[tuple[int, str], str], target: str, number: int, matrix: str) -> str:
    """The matrix of an expert as it is stored, or would be."""
    if (number, matrix) in stored:
        return stored[number, matrix]
    for (other, same), name in stored.items():
        if same == matrix:
            return name.replace(f".experts.{other}.", f".experts.{number}.")
    return f"{target.rpartition('.')[0]}.{number}.{matrix}_proj.weight"
