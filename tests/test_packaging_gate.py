"""`import mlx_sdpa_ext` beside every MLX but the one that it was built for.

Each case is a folder before all others on sys.path: a copy of the package with a record of a build
for MLX 9.9.9, a stand-in for mlx.core, and the metadata that an installer would have written.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import mlx_sdpa_ext
import pytest
from mlx_sdpa_ext import _build_info

BUILT = "9.9.9"
SUPPORTED = "0.32.2"
EXECUTABLE = os.path.abspath(sys.executable)
PYTHON = shlex.quote(EXECUTABLE)
PIP = f"{PYTHON} -m pip install --force-reinstall"
UV = f"uv pip install --python {PYTHON} --reinstall"


class Site:
    """A folder of installed packages."""

    def __init__(self, folder: Path):
        self.folder = folder
        package = folder / "mlx_sdpa_ext"
        source = Path(mlx_sdpa_ext.__file__).parent
        shutil.copytree(source, package, ignore=shutil.ignore_patterns("_ext*", "__pycache__"))
        record = Path(_build_info.__file__).read_text()
        self.record = package / "_build_info.py"
        self.record.write_text(record.replace(f'"{_build_info.MLX_VERSION}"', f'"{BUILT}"'))
        assert f'MLX_VERSION = "{BUILT}"' in self.record.read_text()
        self.distribution("mlx-sdpa-ext", "0.1.0")

    def distribution(self, name, version, installer="pip", **direct_url):
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "INSTALLER").write_text(f"{installer}\n")
        if direct_url:
            (info / "direct_url.json").write_text(json.dumps(direct_url))

    def mlx(self, version, core="", **backends):
        """An installed MLX whose mlx.core runs `core`, with backend wheels such as cpu="0.32.2"."""
        self.distribution("mlx", version)
        for name, backend_version in backends.items():
            self.distribution(f"mlx-{name.replace('_', '-')}", backend_version)
        (self.folder / "mlx").mkdir()
        (self.folder / "mlx/__init__.py").touch()  # a namespace package would find the real core
        (self.folder / "mlx/core.py").write_text(f"{core}\n__version__ = {version!r}\n")

    def compiled(self, source):
        """A stand-in for the compiled module."""
        (self.folder / "mlx_sdpa_ext/_ext.py").write_text(source)

    def import_error(self, package="mlx_sdpa_ext") -> str:
        """What the import says, from a Python that sees this folder and the standard library."""
        code = f"import sys; sys.path.insert(0, {str(self.folder)!r}); import {package}"
        command = [EXECUTABLE, "-S", "-E", "-c", code]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done
        assert "\nImportError: " in done.stderr, done.stderr
        return done.stderr.split("\nImportError: ")[-1]


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path / "site")


def test_an_mlx_that_can_be_built_for(site, tmp_path):
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    source = tmp_path / "mlx sdpa"
    source.mkdir()
    site.distribution("mlx-sdpa-ext", "0.1.0", url=source.as_uri(), dir_info={})
    site.compiled("raise SystemExit('the gate let _ext load')")
    core = site.folder / "mlx/core.py"
    assert site.import_error() == (
        f"mlx-sdpa-ext is built for MLX 9.9.9, and MLX 0.32.2 is installed ({core}). "
        "To mend it:\n\n"
        f"    {PIP} --no-cache-dir --no-deps '{source}'\n\n"
    )


def test_an_mlx_that_cannot_be_built_for(site):
    site.mlx("0.30.6", cpu="0.30.6")
    error = site.import_error()
    assert "is built for MLX 9.9.9, and MLX 0.30.6 is installed" in error
    assert f"    {PIP} mlx==9.9.9 mlx-cpu==9.9.9\n" in error


def test_no_mlx(site):
    error = site.import_error()
    assert "is built for MLX 9.9.9, and no MLX is installed" in error
    backend = "mlx-metal" if sys.platform == "darwin" else "mlx-cpu"
    assert f"    {PIP} mlx==9.9.9 {backend}==9.9.9\n" in error


BROKEN = "raise ImportError('undefined symbol: _ZN3mlx4core5arrayE')"


def test_a_backend_wheel_of_another_version(site):
    site.mlx(BUILT, core=BROKEN, cuda_13="9.9.8")
    error = site.import_error()
    assert "there are mlx 9.9.9, mlx-cuda-13 9.9.8, which work in step only" in error
    assert f"    {PIP} mlx==9.9.9 mlx-cuda-13==9.9.9\n" in error


def test_no_backend_wheel(site):
    site.mlx(BUILT, core="raise ImportError('libmlx.so: cannot open shared object file')")
    assert "there is mlx 9.9.9 without a backend (mlx-cpu, ...)" in site.import_error()


def test_an_mlx_that_does_not_load(site):
    site.mlx(BUILT, core=BROKEN, cpu=BUILT)
    error = site.import_error()
    assert "there are mlx 9.9.9, mlx-cpu 9.9.9, which do not load: undefined symbol" in error
    assert f"    {PIP} mlx==9.9.9 mlx-cpu==9.9.9\n" in error


def test_no_compiled_module(site):
    site.mlx(BUILT, cpu=BUILT)
    error = site.import_error()
    assert "mlx-sdpa-ext has no compiled module for this Python (found: none)" in error
    assert (
        f"    {PIP} --no-cache-dir --no-deps --no-binary mlx-sdpa-ext mlx-sdpa-ext==0.1.0\n"
        in error
    )


def test_a_compiled_module_that_does_not_load(site):
    site.mlx(BUILT, cpu=BUILT)
    site.compiled("raise ImportError('libstdc++.so.6: version GLIBCXX_3.4.99 not found')")
    assert "has a compiled module that does not load: libstdc++.so.6: ver" in site.import_error()


def test_a_module_compiled_for_another_python(site):
    site.mlx(BUILT, cpu=BUILT)
    (site.folder / "mlx_sdpa_ext/_ext.cpython-39-x86_64-linux-gnu.so").touch()
    assert "(found: _ext.cpython-39-x86_64-linux-gnu.so)" in site.import_error()


def test_no_record_of_the_build(site):
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    site.record.unlink()
    error = site.import_error()
    assert "is not built: its _build_info.py is missing" in error
    assert (
        f"    {PIP} --no-cache-dir --no-deps --no-binary mlx-sdpa-ext mlx-sdpa-ext==0.1.0\n"
        in error
    )


COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIT = {"vcs": "git", "commit_id": COMMIT}


@pytest.mark.parametrize(
    ("direct_url", "target"),
    [
        ({}, "--no-binary mlx-sdpa-ext mlx-sdpa-ext==0.1.0"),
        ({"url": "{folder}", "dir_info": {"editable": True}}, "-e {path}"),
        ({"url": "{folder}/x.tar.gz", "archive_info": {}}, "{path}/x.tar.gz"),
        (
            {"url": "https://a.b/x.git", "vcs_info": GIT},
            f"'mlx-sdpa-ext @ git+https://a.b/x.git@{COMMIT}'",
        ),
        (
            {"url": "https://a.b/x.tar.gz", "archive_info": {}},
            "'mlx-sdpa-ext @ https://a.b/x.tar.gz'",
        ),
    ],
    ids=["index", "editable", "sdist", "repository", "address"],
)
def test_the_command_follows_how_it_was_installed(site, tmp_path, direct_url, target):
    (tmp_path / "x.tar.gz").touch()
    if direct_url:
        url = direct_url["url"].format(folder=tmp_path.as_uri())
        direct_url = direct_url | {"url": url}
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    site.distribution("mlx-sdpa-ext", "0.1.0", **direct_url)
    target = target.format(path=tmp_path)
    assert f"    {PIP} --no-cache-dir --no-deps {target}\n" in site.import_error()


@pytest.mark.parametrize("name", ["x.whl", "no longer there"])
def test_what_cannot_be_built_again(site, tmp_path, name):
    (tmp_path / "x.whl").touch()
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    url = (tmp_path / name).as_uri()
    site.distribution("mlx-sdpa-ext", "0.1.0", url=url, archive_info={})
    assert f"    {PIP} mlx==9.9.9 mlx-cpu==9.9.9\n" in site.import_error()


def test_uv_is_told_the_mlx_that_it_hides(site, tmp_path):
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    site.distribution("mlx-sdpa-ext", "0.1.0", "uv", url=tmp_path.as_uri(), dir_info={})
    command = f"    MLX_SDPA_EXT_BUILD_MLX=0.32.2 {UV} --no-cache --no-deps {tmp_path}\n"
    assert command in site.import_error()


def test_a_folder_that_was_never_installed(site):
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    shutil.rmtree(site.folder / "mlx_sdpa_ext-0.1.0.dist-info")
    assert f"    {PIP} --no-cache-dir --no-deps mlx-sdpa-ext\n" in site.import_error()


def test_the_command_line_prints_it_without_a_traceback(site):
    site.mlx(SUPPORTED, cpu=SUPPORTED)
    paths = [str(site.folder), *sys.path]
    code = f"import sys; sys.path[:] = {paths!r}; import mlx_sdpa_ext_cli as c; sys.exit(c.main())"
    command = [sys.executable, "-E", "-c", code, "doctor"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done
    assert "9.9.9" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
