"""GPU memory by NVML: what this process holds and what the device has. Nothing where there is no NVIDIA driver."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GpuMemory(Collector):
    """Asks NVML at each scrape."""

    def __init__(self) -> None:
        self._nvml = _open_nvml()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The two families; without samples when there is no GPU."""
        used = GaugeMetricFamily(
            "pangu_gpu_memory_used_bytes", "GPU memory that this process holds.", labels=["device"]
        )
        total = GaugeMetricFamily("pangu_gpu_memory_total_bytes", "Memory of the GPU.", labels=["device"])
        if self._nvml is not None:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                total.add_metric([str(index)], self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    # In a container without the host's process ids NVML does not tell the memory.
                    if process.pid == os.getpid() and process.usedGpuMemory is not None:
                        used.add_metric([str(index)], process.usedGpuMemory)
        yield used
        yield total


def _open_nvml() -> Any:
    with contextlib.suppress(ImportError):
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            return pynvml
    return None
