"""MLX_SDPA_EXT_DEVICE=software-metal: the Metal kernels on this machine's CPU, for tests.

Arrays are those of MLX's CPU device. Calls of our kernels go through the Metal backend to the
emulator of this repository, which is thousands of times slower than a GPU; what the router sends to
stock MLX or to the unfused path runs on MLX's CPU operations. It shows whether kernels are right,
and nothing about speed.
"""

from __future__ import annotations

from importlib.util import find_spec

from . import _ext, cuda

_loaded: str | None = None  # the architecture that the loaded backend stands for


def use(arch: str | None) -> None:
    """Has the CPU stream evaluate our calls as the GPU `arch` would; None: as the CPU.

    Raises:
        ImportError: the emulator, or the compiler that it needs, is not installed; says what to do.
    """
    global _loaded
    if arch == _loaded:
        return
    _ext.load_gpu_backend(_library() if arch else cuda.library(), arch or "")
    _loaded = arch


def _library() -> str:
    """The path of the backend built for the emulator; built now if it was not yet."""
    wanted = "MLX_SDPA_EXT_DEVICE=software-metal needs"
    if find_spec("emulator") is None:
        raise ImportError(
            f"{wanted} the package `emulator`, which is in this package's repository and is not "
            "installed: add the folder of a checkout to PYTHONPATH"
        )
    if find_spec("ziglang") is None:
        raise ImportError(f"{wanted} a compiler: pip install ziglang")
    import emulator

    return str(emulator.backend())
