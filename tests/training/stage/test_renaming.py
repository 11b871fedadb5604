"""Names of checkpoints that transformers' models call otherwise: each is taken once, and what is there twice is not."""

import pytest

from pangu_training.stage.renaming import parts_by_name, single

EXPERTS = "model.layers.0.mlp.experts"
LENGTHS = {f"{EXPERTS}.gate_up_proj": 2, f"{EXPERTS}.down_proj": 2, "lm_head.weight": 400}
NAMES = [f"{EXPERTS}.{number}.{matrix}_proj.weight" for number in (0, 1) for matrix in ("gate", "up", "down")]


def test_experts_are_put_together() -> None:
    assert parts_by_name("qwen3_moe", LENGTHS, NAMES) == {
        f"{EXPERTS}.gate_up_proj": ((NAMES[0], NAMES[1]), (NAMES[3], NAMES[4])),
        f"{EXPERTS}.down_proj": ((NAMES[2],), (NAMES[5],)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_that_is_not_there_is_named(name: str) -> None:
    parts = parts_by_name("qwen3_moe", LENGTHS, [other for other in NAMES if other != name])
    assert name in {part for grid in parts.values() for row in grid for part in row}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gpt_neox", ["embed_out.weight", "lm_head.weight"]),
        ("qwen3_moe", [*NAMES, f"{EXPERTS}.down_proj"]),
        ("qwen3_moe", [*NAMES, f"{EXPERTS}.2.down_proj.weight"]),
        ("mixtral", [*NAMES, "model.layers.0.block_sparse_moe.experts.1.w1.weight"]),
    ],
)
def test_none_is_dropped(kind: str, names: list[str]) -> None:
    parts = parts_by_name(kind, LENGTHS, names)
    assert {part for grid in parts.values() for row in grid for part in row} >= set(names)
    assert any(single(grid) == name and name not in LENGTHS for name, grid in parts.items())
