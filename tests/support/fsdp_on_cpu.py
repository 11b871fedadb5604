"""`pangu-train` in one of several gloo processes, sharded by accelerate's FSDP2 on a CPU.

accelerate 1.15 reads its FSDP settings for GPUs only; torch's FSDP2 itself runs on gloo.
"""

import sys
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from pangu_training import cli

initialize = AcceleratorState.__init__


def initialize_for_fsdp(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
    if PartialState(cpu=True).distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    initialize(self, *arguments, **options)


AcceleratorState.__init__ = initialize_for_fsdp
sys.exit(cli.main(sys.argv[1:]))
