"""Which assembler Triton uses, and what is known to be wrong with it."""

import functools
import os
import re
import subprocess
from pathlib import Path

import torch

SOUND = (13, 3)  # the first ptxas that keeps Hopper's products with a side in registers apart


@functools.cache
def ptxas_release():
    """(major, minor) of the ptxas that Triton runs; None where it cannot be asked."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    path = os.environ.get("TRITON_PTXAS_PATH", bundled)
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else None


def complaint(capability=None):
    """What speaks against this toolchain on this card (its compute capability); "" for nothing."""
    if capability is None:
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    release = ptxas_release() if capability[0] == 9 else None
    if release is None or release >= SOUND:
        return ""
    return (
        f"Triton's ptxas is {release[0]}.{release[1]}; on Hopper one before {SOUND[0]}.{SOUND[1]} "
        "can miscompile kernels like ours without a word. Point TRITON_PTXAS_PATH at a newer one "
        "(pip install nvidia-cuda-nvcc brings nvidia/cu13/bin/ptxas), or use --backend torch"
    )
