"""Runs the tests marked `metal` where the device is a Metal device: in software, or a Mac's GPU.

On Linux they run in worker processes whose device is the software Metal device. On a Mac, which has
no software device, they run in pytest's own process, on the GPU, if MLX_SDPA_EXT_DEVICE=metal asks
for it; those marked `emulator`, which look into the software device, are skipped there. All other
tests run on the CPU everywhere. The rest of this is about the software device.

A marked test looks like any other. When the tests are collected, all marked ones are handed to as
many workers as there are cores, those that share compiled kernels to one worker; a test then waits
for its own result and fails with the worker's traceback. pytest's own process stays on the CPU.
Whatever a test asserts, it also fails if a kernel or the host did anything that the device forbids.
pytest's summary ends with the lines of kernels/metal that were executed.
"""

from __future__ import annotations

import inspect
import os
import queue
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

GPU = mx.gpu
ARCHITECTURE = "applegpu_g15s"  # an M3 Max
DEVICE = f"software-metal:{ARCHITECTURE}"
# What the environment asks of the tests marked `metal`; the other tests do not see it.
ON_GPU = os.environ.get("MLX_SDPA_EXT_DEVICE") == "metal"
if ON_GPU:
    del os.environ["MLX_SDPA_EXT_DEVICE"]
# Of one test, in seconds: ten times the slowest. A worker that hangs is ended.
TIMEOUT = 300
ROOT = Path(__file__).parents[1]


class Task(NamedTuple):
    """A test to run: what a worker needs to know of it."""

    module: str
    function: str
    indices: dict[str, int]  # of the values of its parameters, which need not be picklable
    nodeid: str
    seed: int


# --- In a worker ------------------------------------------------------------------------------


def _fixture(name: str, task: Task, patch: pytest.MonkeyPatch, folder: str):
    if name == "rng":
        conftest = import_module("conftest")
        return conftest.generator(task.seed, task.nodeid)
    return {"monkeypatch": patch, "tmp_path": Path(folder)}[name]


def parametrized(function: Callable) -> Iterator[tuple[list[str], list[tuple]]]:
    """The names and the rows of values of each parametrize."""
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            names, rows = mark.args
            names = names.replace(",", " ").split() if isinstance(names, str) else list(names)
            yield names, [(row,) if len(names) == 1 else tuple(row) for row in rows]


def _parameters(function: Callable, indices: dict[str, int]) -> dict[str, Any]:
    values = {}
    for names, rows in parametrized(function):
        values |= zip(names, rows[indices[names[0]]])
    return values


def run(task: Task) -> None:
    """Runs the test and asserts that the device has nothing to object."""
    import emulator

    emulator.take_report()
    function = getattr(import_module(task.module), task.function)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        params = _parameters(function, task.indices)
        values = {
            name: params[name] if name in params else _fixture(name, task, patch, folder)
            for name in inspect.signature(function).parameters
        }
        function(**values)
    assert_clean(emulator.take_report())


def executed() -> set[str]:
    """The kernels that ran since this was last asked, or since the test began."""
    import emulator

    report = emulator.take_report()
    assert_clean(report)
    return set(report.kernels)


def assert_clean(report) -> None:
    assert not report.findings, "the device objects:\n" + "\n".join(map(str, report.findings))


def worker(connection, coverage: str) -> None:
    """Runs tasks until there are no more. Answers each with (outcome, text)."""
    os.environ["MLX_SDPA_EXT_DEVICE"] = DEVICE
    os.environ["SOFTMETAL_COVERAGE"] = coverage
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools"), str(ROOT)]
    import_module("conftest")  # MLX's default device
    import_module("mlx_sdpa_ext.software").use(ARCHITECTURE)
    try:
        while True:
            connection.send(outcome(connection.recv()))
    except (EOFError, OSError):  # pytest has no more tasks, or is gone
        return


def outcome(task: Task) -> tuple[str, str]:
    try:
        run(task)
    except pytest.skip.Exception as skipped:
        return "skipped", str(skipped)
    except BaseException:
        return "failed", traceback.format_exc()
    return "passed", ""


# --- In pytest's process ----------------------------------------------------------------------


def not_here(marks: set[str], platform: str, on_gpu: bool) -> str:
    """Why a test with these marks cannot run; empty if it can."""
    if platform != "darwin":
        return ""
    if "emulator" in marks:
        return "the software Metal device is for Linux"
    if "metal" in marks and not on_gpu:
        return "on a Mac, MLX_SDPA_EXT_DEVICE=metal runs it on the GPU"
    return ""


@contextmanager
def gpu() -> Iterator[None]:
    """MLX and this package on the GPU, as a Mac has them by itself."""
    limits = import_module("mlx_sdpa_ext.limits")  # not before a worker's environment is set
    before = mx.default_device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_SDPA_EXT_DEVICE", "metal")
        mx.set_default_device(GPU)
        limits.refresh()
        try:
            yield
        finally:
            patch.undo()
            mx.set_default_device(before)
            limits.refresh()


class Lost(Exception):
    """A worker died or hung."""


class Workers:
    """One thread for each worker process hands it batches of tasks, one task at a time."""

    def __init__(self, batches: list[list[tuple[Task, Future]]], processes: int, coverage: str):
        self._coverage = coverage
        self._batches: queue.SimpleQueue = queue.SimpleQueue()
        for batch in batches:
            self._batches.put(batch)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._serve) for _ in range(processes)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        process = None
        try:
            while not self._stopped.is_set():
                batch = self._batches.get_nowait()
                for task, future in batch:
                    if self._stopped.is_set():
                        future.cancel()
                        continue
                    process = process or _Process(self._coverage)
                    try:
                        future.set_result(process.run(task, self._stopped))
                    except Exception as error:
                        future.set_exception(error)
                        process.end()
                        process = None
        except queue.Empty:
            pass
        finally:
            if process:
                process.end()


class _Process:
    def __init__(self, coverage: str):
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker, args=(theirs, coverage), daemon=True)
        self._process.start()
        theirs.close()

    def run(self, task: Task, stopped: threading.Event) -> tuple[str, str]:
        self._connection.send(task)
        for _ in range(TIMEOUT):
            if self._connection.poll(1.0):
                try:
                    return self._connection.recv()
                except EOFError:
                    self._process.join()
                    raise Lost(f"the worker ended with {self._process.exitcode}") from None
            if stopped.is_set():
                break
        raise Lost(f"no answer within {TIMEOUT} s")

    def end(self) -> None:
        self._connection.close()
        self._process.join(10.0)  # it writes its coverage
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def params_of(item: pytest.Function) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def indices_of(item: pytest.Function) -> dict[str, int]:
    """Which values the parameters have, of those that each parametrize lists."""
    params = params_of(item)
    found = {}
    for names, rows in parametrized(item.function):
        for i, row in enumerate(rows):
            if all(params[name] is value for name, value in zip(names, row)):
                found[names[0]] = i
                break
    return found


def unfused(item: pytest.Function) -> bool:
    params = params_of(item)
    path = params.get("path")
    words = (params.get("shape"), path, *(path.values() if isinstance(path, dict) else ()))
    return "unfused" in words


def affinity(item: pytest.Function) -> tuple:
    """Tests of the same affinity need the same kernels."""
    for value in params_of(item).values():
        if hasattr(value, "affinity"):
            return value.affinity
    return (item.nodeid,)


class Plugin:
    def __init__(self):
        self._futures: dict[str, Future] = {}
        self._workers: Workers | None = None
        self._coverage = tempfile.TemporaryDirectory(prefix="coverage-")
        self._covered: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list) -> None:
        """Leaves out what runs on stock operations: no kernel of ours, nothing of Metal."""
        out = {item for item in items if item.get_closest_marker("metal") and unfused(item)}
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]
        for item in items:
            marks = {mark.name for mark in item.iter_markers()}
            if reason := not_here(marks, sys.platform, ON_GPU):
                item.add_marker(pytest.mark.skip(reason=reason))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        if ON_GPU and item.get_closest_marker("metal"):
            with gpu():
                return (yield)
        return (yield)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        items = [item for item in session.items if item.get_closest_marker("metal")]
        if not items or session.config.option.collectonly or sys.platform == "darwin":
            return
        batches: dict[tuple, list] = {}
        for item in items:
            task = Task(
                item.module.__name__, item.originalname, indices_of(item), item.nodeid,
                session.config.getoption("seed"),
            )  # fmt: skip
            future = self._futures[item.nodeid] = Future()
            batches.setdefault(affinity(item), []).append((task, future))
        processes = min(os.cpu_count() or 1, len(batches))
        # the longest first, so that the workers end together
        batches = sorted(batches.values(), key=len, reverse=True)
        self._workers = Workers(batches, processes, self._coverage.name)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        future = self._futures.get(pyfuncitem.nodeid)
        if future is None:
            return None
        outcome, text = future.result()
        if outcome == "skipped":
            pytest.skip(text)
        if outcome == "failed":
            pytest.fail(text, pytrace=False)
        return True

    def pytest_sessionfinish(self) -> None:
        if self._workers:
            self._workers.stop()
            self._covered = self._table()
        self._coverage.cleanup()

    def _table(self) -> list[str]:
        from emulator import coverage

        lines = coverage.read(Path(self._coverage.name))
        return coverage.table({f: found for f, found in lines.items() if f.startswith("kernels/")})

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self._covered:
            terminalreporter.section("lines executed on the software Metal device")
            terminalreporter.write_line("\n".join(self._covered))
