"""The CUDA backend: a library beside this module, loaded where MLX has a CUDA GPU.

It calls MLX's own CUDA backend, the driver and NVRTC, all of which MLX has loaded; where one of
them is missing, calls take the paths that need no kernel of ours, and one warning says why.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from . import _ext, folders

_LIBRARY = Path(__file__).with_name("_ext_cuda.so")
_loaded = False


def library() -> str:
    """The library where it is in use, else nothing: what goes back to it after another backend."""
    return str(_LIBRARY) if _loaded else ""


@lru_cache(maxsize=1)
def refusal() -> str | None:
    """Why there are no CUDA kernels of ours in this process, after trying to load them; or None."""
    global _loaded
    if not _LIBRARY.exists():
        return "this build of mlx_sdpa_ext has no CUDA backend: it is built on Linux"
    try:
        _ext.load_gpu_backend(str(_LIBRARY))
    except RuntimeError as error:
        warnings.warn(
            f"mlx_sdpa_ext: no CUDA kernels of ours, stock MLX instead: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return str(error)
    _loaded = True
    with suppress(RuntimeError):  # no home folder: kernels are compiled again in each process
        _ext.set_cache_folder(str(kernel_cache()))
    return None


def kernel_cache() -> Path:
    """The folder of the compiled kernels of this user. It may be deleted at any time.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return folders.cache() / "cuda"
