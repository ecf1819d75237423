"""Drop-in scaled-dot-product attention for stock MLX: any head dimension, any key length.

`attention.scaled_dot_product_attention` takes the place of `mx.fast.scaled_dot_product_attention`,
and `patch()` puts it there for mlx-lm and everybody else.
"""

from ._gate import load_ext

load_ext()

from . import attention  # noqa: E402  (the gate comes first)
from ._build_info import VERSION as __version__  # noqa: E402
from .patch import patch, patched, unpatch  # noqa: E402
from .stats import stats  # noqa: E402

__all__ = ["__version__", "attention", "patch", "patched", "stats", "unpatch"]
