"""What a server's process holds, by meters that are the same for every artifact.

    pss          main memory; pages that several processes share are divided among them (/proc/PID/smaps_rollup)
    rss          main memory; shared pages count whole
    nvml         GPU memory of the process
    nvml_device  GPU memory in use, less what was in use before the process began: where the driver does not tell
                 the processes apart, as in a container with process ids of its own

`torch.cuda.max_memory_allocated` is none of them: CTranslate2's memory does not pass through torch.
"""

import contextlib
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from pangu_server.gpu import device_handles, open_nvml, process_bytes
from pangu_training.stage.command import free_memory_bytes

TICK_SECONDS = 0.05
GREATEST_SHARE = 0.1  # of the time that reading may take: it holds up a process with many pages


class Meters:
    """All meters that this machine has. Made before the process that is to be measured."""

    def __init__(self) -> None:
        self._nvml = open_nvml()
        self._used_before = sum(self._used())

    def read(self, process_id: int) -> dict[str, int]:
        """Bytes by meter, of a process that is alive."""
        text = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii")
        sizes = {
            name.lower(): int(kilobytes) << 10
            for name, kilobytes in re.findall(r"^(Pss|Rss): +(\d+) kB$", text, re.MULTILINE)
        }
        if self._nvml is not None:
            sizes["nvml_device"] = sum(self._used()) - self._used_before
            held = [process_bytes(self._nvml, handle, process_id) for handle in device_handles(self._nvml)]
            own = [size for size in held if size is not None]
            if own:
                sizes["nvml"] = sum(own)
        return sizes

    def _used(self) -> list[int]:
        if self._nvml is None:
            return []
        return [self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in device_handles(self._nvml)]


class Peak:
    """The largest readings of a process while the context lasts, up to 20 a second, in `sizes`."""

    def __init__(self, meters: Meters, process_id: int) -> None:
        self.sizes: dict[str, int] = {}
        self._meters, self._process_id = meters, process_id
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        over, took_seconds = False, 0.0
        while not over:
            over = self._over.wait(
                max(TICK_SECONDS, took_seconds / GREATEST_SHARE)
            )  # and once more at the end
            started = time.perf_counter()
            with contextlib.suppress(OSError):  # it ended: whoever waits for it says why
                for meter, size_bytes in self._meters.read(self._process_id).items():
                    self.sizes[meter] = max(size_bytes, self.sizes.get(meter, 0))
            took_seconds = time.perf_counter() - started


def free_bytes(device: str) -> int:
    """What a new process can take: of the first GPU (`cuda`), or of main memory within a container's limit."""
    if device == "cuda" and (nvml := open_nvml()):
        return int(nvml.nvmlDeviceGetMemoryInfo(device_handles(nvml)[0]).free)
    return free_memory_bytes()


def gpu_names() -> list[str]:
    """The NVIDIA GPUs of this machine."""
    nvml = open_nvml()
    return [str(nvml.nvmlDeviceGetName(handle)) for handle in device_handles(nvml)] if nvml else []
