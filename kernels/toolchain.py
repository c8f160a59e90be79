"""Which assembler Triton uses, and what is known to be wrong with it."""

import functools
import os
import re
import subprocess
from pathlib import Path

import torch

SOUND = (13, 3)  # the first ptxas that keeps Hopper's products with a side in registers apart


def bundled(name="ptxas"):
    """An assembler that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


@functools.cache
def release_of(path):
    """(major, minor) of an assembler; None where it cannot be asked."""
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else None


def ptxas_release():
    """(major, minor) of the ptxas that Triton runs; None where it cannot be asked."""
    return release_of(os.environ.get("TRITON_PTXAS_PATH", bundled()))


def complaint(capability=None):
    """What speaks against this toolchain on this card (its compute capability); "" for nothing."""
    if capability is None:
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    release = ptxas_release() if capability[0] == 9 else None
    if release is None or release >= SOUND:
        return ""
    newer = "pip install nvidia-cuda-nvcc brings nvidia/cu13/bin/ptxas"
    if (release_of(beside := bundled("ptxas-blackwell")) or (0, 0)) >= SOUND:
        newer = f"{beside}, which comes with Triton, is one"
    return (
        f"Triton's ptxas is {release[0]}.{release[1]}; on Hopper one before {SOUND[0]}.{SOUND[1]} "
        "can miscompile kernels like ours without a word. Point TRITON_PTXAS_PATH at a newer one "
        f"({newer}), or use --backend torch"
    )
