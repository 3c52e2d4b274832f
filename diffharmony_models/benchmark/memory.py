"""Peak memory of a process, and of the work that it has just done."""

import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> str:
    """Starts the measurement of memory anew where the system can, and says what `peak_bytes` will then tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return "the GPU's, most that was allocated during the work, weights included"
    try:
        forget_peak("self")
    except OSError:
        return "the process's peak, loading included"
    return "the process's peak during the work, weights included"


def peak_bytes(device: torch.device) -> int | None:
    """This process's peak memory on a device, in bytes; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    known = peak_memory("self")
    if known is not None:
        return known
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_memory(process: int | str) -> int | None:
    """Peak memory in bytes of a running process, by its id or "self"; None where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    if not status.is_file():
        return None
    lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return int(lines[0][1]) * 1024 if lines else None


def forget_peak(process: int | str) -> None:
    """From now on the peak of a process's memory is that of what comes; see proc(5). OSError where it cannot be."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
