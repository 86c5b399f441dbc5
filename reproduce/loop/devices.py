"""Where a run computes: the device, its precision, and the memory that was used there."""

import resource
import sys

import torch

from reproduce.config import Config
from reproduce.settings import ConfigError


def find_device(config: Config) -> torch.device:
    """CUDA or the CPU, as ``device`` says. Raises ConfigError where CUDA is asked for and not
    found."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        none = "torch finds no CUDA device here"
        raise ConfigError(f"device is 'cuda', but {none}: use 'auto' or 'cpu'")
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def uses_bfloat16(config: Config, device: torch.device) -> bool:
    """Whether the network computes in bfloat16: 'auto' takes it where it is known to be faster. The
    small backbone's layers are too small to gain on a CPU."""
    if config.precision == "auto" and device.type == "cpu":
        native = torch.cpu.get_capabilities()
        has = native.get("avx512_bf16", False) or native.get("amx_bf16", False)
        return has and config.backbone != "small"
    return config.precision in ("auto", "bfloat16")


def peak_memory(device: torch.device) -> float:
    """The most memory that torch had on a GPU, or this process in all, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
