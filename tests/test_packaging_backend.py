"""The build backend's choice of MLX (build_backend/mlx_pin.py), without a build."""

import importlib.util
import re
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import pytest

FOLDER = Path(__file__).parents[1] / "build_backend"


@pytest.fixture
def pin(monkeypatch):
    spec = importlib.util.spec_from_file_location("mlx_pin", FOLDER / "mlx_pin.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delenv(module.VARIABLE, raising=False)
    return module


@pytest.fixture
def build_environment(monkeypatch):
    """Sets what the build environment has installed: `build_environment(mlx="0.32.4")`."""

    def install(**versions):
        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)

    return install


def test_the_mlx_of_the_target_environment(pin):
    assert pin.wanted_mlx() == mx.__version__
    assert pin.build_requires() == [
        f"mlx[cpu]=={mx.__version__}",
        f"nanobind{pin.NANOBIND_FOR_MLX[mx.__version__]}",
    ]


def test_the_variable_goes_before_it(pin, monkeypatch):
    monkeypatch.setenv(pin.VARIABLE, "0.31.2")
    assert pin.build_requires() == ["mlx[cpu]==0.31.2", "nanobind==2.12.0"]


def test_the_default_says_that_it_is_one(pin, monkeypatch, capsys):
    monkeypatch.setattr(pin, "_target_mlx", lambda: None)
    assert pin.wanted_mlx() == pin.DEFAULT_MLX
    assert f"no MLX in sight, building for MLX {pin.DEFAULT_MLX}" in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0.30.6", "0.33.0", "newest"])
def test_an_mlx_that_is_not_supported(pin, monkeypatch, version):
    monkeypatch.setenv(pin.VARIABLE, version)
    with pytest.raises(
        SystemExit, match=rf"asks for MLX {version}; .* 0\.31\.2, 0\.32\.2, 0\.32\.4"
    ):
        pin.wanted_mlx()
    monkeypatch.delenv(pin.VARIABLE)
    monkeypatch.setattr(pin, "_target_mlx", lambda: version)
    with pytest.raises(SystemExit, match=f"the environment has MLX {version}; .* pip install 'mlx"):
        pin.wanted_mlx()


def test_the_wheel_is_pinned_to_what_it_was_built_against(pin, build_environment):
    build_environment(mlx="0.32.2", nanobind="2.15.0")
    provider = pin.Provider()
    provider.build_state("wheel")
    assert provider.dynamic_metadata({}, {}) == {"dependencies": ["mlx==0.32.2"]}
    assert provider.dynamic_wheel({}) == {"dependencies": True}


@pytest.mark.parametrize(
    ("installed", "variable", "message"),
    [
        ({"mlx": "0.32.2"}, None, "the build environment lacks nanobind"),
        ({"nanobind": "2.15.0"}, None, "the build environment lacks mlx"),
        (
            {"mlx": "0.32.2", "nanobind": "3.1.0"},
            None,
            "MLX 0.32.2 works with nanobind==2.15.0 alone",
        ),
        ({"mlx": "0.30.6", "nanobind": "2.10.2"}, None, "the build environment has MLX 0.30.6"),
        ({"mlx": "0.32.2", "nanobind": "2.15.0"}, "0.31.2", "asks for MLX 0.31.2, but the build"),
    ],
    ids=["no nanobind", "no mlx", "other nanobind", "other mlx", "variable"],
)
def test_a_build_environment_that_cannot_work(
    pin, build_environment, monkeypatch, installed, variable, message
):
    build_environment(**installed)
    if variable:
        monkeypatch.setenv(pin.VARIABLE, variable)
    with pytest.raises(SystemExit, match=re.escape(message)) as refusal:
        pin.found_mlx()
    assert "pip install 'mlx[cpu]==0.3" in str(refusal.value)
