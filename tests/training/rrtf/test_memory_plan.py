"""The memory plan counts what is known and says what does not fit."""

import json

import pytest

from pangu_training.rrtf.memory_plan import GIB, Plan, Shape, plan, table
from pangu_training.stage.checkpoint import Checkpoint

STARCODER = {
    "architectures": ["GPTBigCodeForCausalLM"],
    "model_type": "gpt_bigcode",
    "n_positions": 8192,
    "n_embd": 6144,
    "n_head": 48,
    "n_layer": 40,
    "n_inner": 24576,
    "vocab_size": 49152,
    "multi_query": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture(scope="module")
def starcoder_15b(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    folder = tmp_path_factory.mktemp("starcoder-15b")
    (folder / "config.json").write_text(json.dumps(STARCODER))
    return Shape.of(Checkpoint(path=folder, config=STARCODER, weight_files=()))


def plan_of(shape: Shape, lora_rank: int, shards: int) -> Plan:
    return plan(
        shape, lora_rank=lora_rank, shards=shards, bf16=True, tokens=4096, gradient_checkpointing=True
    )


def test_starcoders_15b(starcoder_15b: Shape) -> None:
    assert starcoder_15b.parameters == 15_517_456_384
    full, sharded = plan_of(starcoder_15b, 0, 1), plan_of(starcoder_15b, 0, 8)
    # Float32 weights with their bf16 copies, float32 gradients, two moments.
    assert full.fixed == (4 + 2 + 4 + 8) * starcoder_15b.parameters
    assert sharded.gradients + sharded.optimizer == (4 + 8) * starcoder_15b.parameters // 8
    assert sharded.total < 80e9 < full.total
    lora = plan_of(starcoder_15b, 16, 1)
    assert lora.weights / GIB == pytest.approx(28.9, abs=0.5), "bf16, and adapters"
    assert lora.total < 80e9


def test_the_table_marks_the_run_and_what_does_not_fit(starcoder_15b: Shape) -> None:
    full, sharded = plan_of(starcoder_15b, 0, 1), plan_of(starcoder_15b, 0, 8)
    lines = table([full, sharded], sharded, 80 * GIB).splitlines()
    assert lines[-2].endswith("does not fit")
    assert lines[-1].endswith("<- this run")
