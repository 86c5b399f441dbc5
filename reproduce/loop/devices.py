"""Where a run computes: the device, its precision, and the memory that was used there."""

import resource
import sys

import torch

from reproduce.config import Config
from reproduce.settings import ConfigError


def find_device(config: Config) -> torch.device:
    """The device that ``device`` names; 'auto' is CUDA where there is such a device, else the CPU.

    Raises ConfigError where torch does not find it."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if config.device == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if not there[config.device]:
        none = f"torch finds no {config.device.upper()} device here"
        raise ConfigError(f"device is {config.device!r}, but {none}: use 'auto' or 'cpu'")
    return torch.device(config.device)


def uses_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the network computes in bfloat16: 'auto' takes it where it is known to be faster. The
    small backbone's layers are too small to gain on a CPU."""
    if config.precision == "auto" and device.type == "cpu":
        native = torch.cpu.get_capabilities()
        has = native.get("avx512_bf16", False) or native.get("amx_bf16", False)
        return has and config.backbone != "small"
    if config.precision == "auto":
        return device.type == "cuda"
    return config.precision == "bfloat16"


def peak_memory(device: torch.device) -> float:
    """The most memory that torch had on a GPU, or this process in the machine, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
