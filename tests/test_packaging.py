"""The installed package: its metadata, its files, its import."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import mlx_sdpa_ext
import pytest
from mlx_sdpa_ext import _build_info, _ext
from mlx_sdpa_ext._mlx_versions import NANOBIND_FOR_MLX
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distribution():
    return metadata.distribution("mlx-sdpa-ext")


def requirements(distribution, extra):
    """Requirements of the extra alone: `{"mlx": Requirement}`."""
    found = [Requirement(line) for line in distribution.requires]
    return {
        r.name: r
        for r in found
        if (r.marker.evaluate({"extra": extra}) if r.marker else extra == "")
        and not (extra and r.marker.evaluate({"extra": ""}))
    }


def test_versions_agree(distribution):
    assert mlx_sdpa_ext.__version__ == distribution.version
    assert mx.__version__ == _build_info.MLX_VERSION == _ext.mlx_version
    assert Requirement(f"x{NANOBIND_FOR_MLX[mx.__version__]}").specifier.contains(
        _build_info.NANOBIND_VERSION
    )
    assert f"## {distribution.version}" in (ROOT / "CHANGELOG.md").read_text()


def test_mlx_and_its_backends_are_pinned_in_step(distribution):
    assert str(requirements(distribution, "")["mlx"]) == f"mlx=={_build_info.MLX_VERSION}"
    assert str(requirements(distribution, "cpu")["mlx"].extras) == "{'cpu'}"
    assert str(requirements(distribution, "cuda13")["mlx"].extras) == "{'cuda13'}"
    # The other half of the pin is MLX's own metadata.
    pins = [Requirement(line) for line in metadata.requires("mlx")]
    for backend, extra in (("mlx-cpu", "cpu"), ("mlx-cuda-13", "cuda13")):
        (pin,) = [r for r in pins if r.name == backend and f'extra == "{extra}"' in str(r.marker)]
        assert str(pin.specifier) == f"=={mx.__version__}"


def test_the_test_extra_has_all_that_the_command_line_needs(distribution):
    test = requirements(distribution, "test")
    for extra in ("cli", "lm", "bench"):
        assert requirements(distribution, extra).keys() <= test.keys()


def test_the_wheel_names_its_mlx(distribution):
    assert f"Build: 1mlx{_build_info.MLX_VERSION}" in distribution.read_text("WHEEL").splitlines()


def test_import_is_light():
    heavy = ["mlx_lm", "transformers", "typer", "rich", "matplotlib", "numpy"]
    code = f"import sys, mlx_sdpa_ext; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stubs_describe_the_compiled_module():
    stub = Path(_ext.__file__).with_name("_ext.pyi").read_text()
    names = {
        node.target.id if isinstance(node, ast.AnnAssign) else node.name
        for node in ast.parse(stub).body
        if isinstance(node, ast.AnnAssign | ast.FunctionDef | ast.ClassDef)
    }
    assert names >= {name for name in vars(_ext) if not name.startswith("_")}
    assert "mlx.core.array" in stub
    assert "mlx::core" not in stub  # how nanobind names a type that it does not know
    assert Path(mlx_sdpa_ext.__file__).with_name("py.typed").exists()
