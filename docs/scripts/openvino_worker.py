"""OpenVINO GenAI behind standard input and output; `peers.py` runs it with the Python of OpenVINO's own environment.

    python docs/scripts/openvino_worker.py MODEL.gguf --threads 1

A line in is JSON: `{"clients": 4, "requests": [[token ids, new tokens], ...]}`, a closed loop of that many clients.
A line out is JSON: a list with a request's seconds from its submission to its first and to its last token each, in the
requests' order, and the seconds of all. The first line out says that the model is loaded.
"""

import argparse
import json
import os
import sys
import time
from collections import deque
from typing import Any


def main() -> None:
    """Load, then answer line by line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file, or a folder in OpenVINO's own format")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-gigabytes", type=int, default=2, help="of keys and values")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the library prints goes to the log

    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.cache_size = arguments.cache_gigabytes
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        arguments.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": arguments.threads}
    )
    print(json.dumps({"openvino-genai": openvino_genai.__version__}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answered(pipeline, **json.loads(line))), file=answers)


def answered(pipeline: Any, clients: int, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    """The times of `requests`; `clients` of them run at a time."""
    import numpy as np
    import openvino
    import openvino_genai

    waiting = deque(range(len(requests)))
    running: dict[int, tuple[Any, float]] = {}  # request -> (handle, submitted)
    firsts: dict[int, float] = {}
    lasts: dict[int, float] = {}
    counts = [0] * len(requests)
    started = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < clients:
            request = waiting.popleft()
            prompt, new_tokens = requests[request]
            wanted = openvino_genai.GenerationConfig()
            wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = new_tokens, True, False
            submitted = time.perf_counter()
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            running[request] = (pipeline.add_request(request, ids, wanted), submitted)
        pipeline.step()
        now = time.perf_counter()
        for request, (handle, submitted) in list(running.items()):
            while handle.can_read():
                counts[request] += sum(len(output.generated_ids) for output in handle.read().values())
                firsts.setdefault(request, now - submitted)
                lasts[request] = now - submitted
            if counts[request] >= requests[request][1]:
                del running[request]
    return {
        "seconds": time.perf_counter() - started,
        "requests": [[firsts[request], lasts[request]] for request in range(len(requests))],
    }


if __name__ == "__main__":
    main()
