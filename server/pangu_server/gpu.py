"""GPUs by NVML, and their memory as metrics. Nothing where there is no NVIDIA driver."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class GpuMemory(Collector):
    """Asks NVML at each scrape."""

    def __init__(self) -> None:
        self._nvml = open_nvml()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The two families; without samples when there is no GPU."""
        used = GaugeMetricFamily(
            "pangu_gpu_memory_used_bytes", "GPU memory that this process holds.", labels=["device"]
        )
        total = GaugeMetricFamily("pangu_gpu_memory_total_bytes", "Memory of the GPU.", labels=["device"])
        if self._nvml is not None:
            for index, handle in enumerate(device_handles(self._nvml)):
                total.add_metric([str(index)], self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
                held = process_bytes(self._nvml, handle, os.getpid())
                if held is not None:
                    used.add_metric([str(index)], held)
        yield used
        yield total


def device_handles(nvml: Any) -> list[Any]:
    """NVML's handles of this machine's GPUs."""
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]


def process_bytes(nvml: Any, handle: Any, process_id: int) -> int | None:
    """What a process holds on a GPU; None where NVML does not tell, as in a container with ids of its own."""
    sizes = [
        process.usedGpuMemory
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if process.pid == process_id and process.usedGpuMemory is not None
    ]
    return sum(sizes) if sizes else None


def open_nvml() -> Any:
    """The NVML module, started; None without a driver or `nvidia-ml-py`."""
    with contextlib.suppress(ImportError):
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            return pynvml
    return None
