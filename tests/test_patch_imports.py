"""In fresh interpreters: what is imported when, and modules that are imported after patch()."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SITES = """
import sys
import mlx.core as mx
import mlx_sdpa_ext

def is_ours(function):
    return function.__module__ == "mlx_sdpa_ext.lm"

def functions():
    from mlx_lm.models import base, gear, gemma2
    return [
        base.quantized_scaled_dot_product_attention,
        gear._softcap_attention,
        gemma2.Attention.__call__,
    ]
"""


def run(script: str) -> None:
    code = SITES + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_nothing_of_mlx_lm_is_imported():
    run("""
        mlx_sdpa_ext.patch()
        assert not any(name.startswith("mlx_lm") for name in sys.modules)
        mlx_sdpa_ext.unpatch()
        assert not any(name.startswith("mlx_lm") for name in sys.modules)
    """)


def test_modules_imported_later_are_patched_and_restored():
    run("""
        mlx_sdpa_ext.patch()
        found = functions()
        assert all(map(is_ours, found))
        mlx_sdpa_ext.unpatch()
        assert not any(map(is_ours, functions()))
        assert [f.__module__.split(".")[0] for f in functions()] == ["mlx_lm"] * 3
    """)


def test_modules_keep_their_own_loader():
    run("""
        import importlib.machinery, inspect
        mlx_sdpa_ext.patch()
        from mlx_lm.models import gear
        assert type(gear.__loader__) is importlib.machinery.SourceFileLoader
        assert gear.__spec__.loader is gear.__loader__
        assert "class GearModel" in inspect.getsource(gear)
    """)


def test_modules_imported_after_unpatch_are_left_alone():
    run("""
        finders = list(sys.meta_path)
        mlx_sdpa_ext.patch()
        assert sys.meta_path != finders
        mlx_sdpa_ext.unpatch()
        assert sys.meta_path == finders
        assert not any(map(is_ours, functions()))
    """)


def test_modules_imported_before_the_package():
    run("""
        del sys.modules["mlx_sdpa_ext"]
        found = functions()
        import mlx_sdpa_ext
        mlx_sdpa_ext.patch()
        assert all(map(is_ours, functions()))
        mlx_sdpa_ext.unpatch()
        assert functions() == found
    """)


def test_module_that_another_thread_is_importing():
    """patch() waits for it, whatever the import has come to."""
    run("""
        import threading, time
        for pause in (0, 1e-3, 5e-3, 2e-2, 5e-2):
            for name in [name for name in sys.modules if name.startswith("mlx_lm.models")]:
                del sys.modules[name]
            thread = threading.Thread(target=functions)
            thread.start()
            time.sleep(pause)
            mlx_sdpa_ext.patch()
            thread.join()
            assert all(map(is_ours, functions())), pause
            mlx_sdpa_ext.unpatch()
            assert not any(map(is_ours, functions())), pause
    """)


def test_disabled_from_outside():
    run("""
        import os
        os.environ["MLX_SDPA_EXT_DISABLE"] = "1"
        stock, finders = mx.fast.scaled_dot_product_attention, list(sys.meta_path)
        assert mlx_sdpa_ext.patch() is False
        assert mx.fast.scaled_dot_product_attention is stock
        assert sys.meta_path == finders
        assert not any(map(is_ours, functions()))
    """)


@pytest.mark.parametrize(
    "how", ["from mlx.core import fast", "import mlx.core as mx; fast = mx.fast"]
)
def test_every_way_to_reach_the_function(how):
    run(f"""
        {how}
        mlx_sdpa_ext.patch()
        assert is_ours(fast.scaled_dot_product_attention)
    """)
