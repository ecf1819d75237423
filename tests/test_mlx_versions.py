"""The package is built for the MLX that an environment has, for each MLX that it supports.

One environment, two builds: from the sdist beside the oldest MLX, then, after the user changes MLX,
by the command that the ImportError prints. The newest MLX is the one that all other tests run on.
"""

import os
import shlex
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
from build.util import project_wheel_metadata
from mlx_sdpa_ext._mlx_versions import DEFAULT_MLX, NANOBIND_FOR_MLX

TESTS = Path(__file__).parent
OLDEST, MIDDLE = "0.31.2", "0.32.2"
# The builds run one at a time on few cores; a hang must not take the whole CI run with it.
LIMIT_SECONDS = 900


def run(*command, **how):
    """The finished process, whatever its exit code; its output is in the report if a test fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.pop("MLX_SDPA_EXT_BUILD_MLX", None)
    environment.update(how.pop("env", {}))
    how.setdefault("cwd", "/")
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
        **how,
    )
    print(f"$ {shlex.join(map(str, command))}\n{done.stdout}")
    return done


def succeed(*command, **how):
    done = run(*command, **how)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}: exit {done.returncode}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    succeed(sys.executable, "-m", "build", "--sdist", "--outdir", folder, TESTS.parent)
    (archive,) = folder.glob("mlx_sdpa_ext-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def oldest(sdist, tmp_path_factory):
    """The Python of an environment with the oldest MLX and this package, built beside it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    succeed(python, "-m", "pip", "install", f"mlx[cpu]=={OLDEST}", "numpy")
    succeed(python, "-m", "pip", "install", "--no-cache-dir", f"{sdist}[cpu]")
    return python


@pytest.fixture(scope="module")
def refusal(oldest):
    """What `import mlx_sdpa_ext` prints after MLX was upgraded under it."""
    succeed(oldest, "-m", "pip", "install", f"mlx[cpu]=={MIDDLE}")
    done = run(oldest, "-c", "import mlx_sdpa_ext")
    assert done.returncode == 1
    return done.stdout


def test_every_supported_mlx_is_tested():
    assert {OLDEST, MIDDLE, DEFAULT_MLX} == set(NANOBIND_FOR_MLX)


def test_the_sdist_holds_all_that_a_build_and_its_tests_need(sdist):
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"}
    for folder in ("build_backend", "kernels", "python", "src", "tests", "tools"):
        for file in (TESTS.parent / folder).rglob("*"):
            name = file.relative_to(TESTS.parent).as_posix()
            if file.is_file() and "/." not in name and "__pycache__" not in name:
                needed.add(name)
    assert needed - held == set()


@pytest.mark.parametrize("variable", [OLDEST, None])
def test_the_variable_names_the_mlx_where_the_environment_is_hidden(monkeypatch, variable):
    monkeypatch.delenv("MLX_SDPA_EXT_BUILD_MLX", raising=False)
    if variable:
        monkeypatch.setenv("MLX_SDPA_EXT_BUILD_MLX", variable)
    metadata = project_wheel_metadata(TESTS.parent)
    assert f"mlx=={variable or DEFAULT_MLX}" in metadata.get_all("Requires-Dist")


def test_build_beside_the_oldest_mlx(oldest):
    installed = succeed(oldest, "-m", "pip", "freeze")
    assert f"mlx=={OLDEST}" in installed.split()
    assert f"works on MLX {OLDEST}" in smoke(oldest)


def test_another_mlx_is_refused_before_the_module_loads(refusal):
    assert (
        "ImportError: mlx-sdpa-ext is built for MLX 0.31.2, and MLX 0.32.2 is installed" in refusal
    )
    assert "undefined symbol" not in refusal


def test_the_printed_command_mends_it(oldest, refusal):
    (command,) = [line for line in refusal.splitlines() if "-m pip install" in line]
    succeed(*shlex.split(command))
    assert f"works on MLX {MIDDLE}" in smoke(oldest)


def smoke(python):
    return succeed(python, TESTS / "smoke.py")
