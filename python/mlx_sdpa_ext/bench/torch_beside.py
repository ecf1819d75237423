"""PyTorch in a process of its own: it and MLX load the same CUDA libraries in different versions.

It is asked for a case while MLX waits, so that both are measured within the same seconds.
"""

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

WORKER = Path(__file__).with_name("torch_worker.py")
BACKENDS = ("flash", "cudnn")


@contextmanager
def beside(python: str | None, limit: float = 120) -> Iterator[tuple[dict, "Torch | None"]]:
    """The first result of a suite, which says what torch is, and the worker if there is one.

    python: of an environment with torch; None where it was not asked for
    """
    if python is None:
        yield {"case": "torch", "error": "not asked for: --torch PYTHON"}, None
        return
    with Torch(python, limit=limit) as worker:
        yield {"case": "torch"} | worker.about, worker if worker.gone is None else None


class Torch:
    """A worker that was started with `python`; once it is gone, each answer is an error."""

    def __init__(self, python: str, worker: Sequence[str] = (str(WORKER),), limit: float = 120):
        self.limit = limit  # seconds for one answer
        self.gone: str | None = None
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.answers: queue.Queue[str] = queue.Queue()
        try:
            self.process = subprocess.Popen(
                [python, *worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                text=True,
            )
        except OSError as error:
            self.gone = f"{python}: {error.strerror}"
            self.about = {"error": self.gone}
            return
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.about = self._answer()  # torch, cuda, cudnn, device; or error

    def attention(self, **case) -> dict[str, dict]:
        """By backend, what the worker's `attention` answers."""
        return {
            backend: self.ask(what="attention", backend=backend, **case) for backend in BACKENDS
        }

    def ask(self, **request) -> dict:
        """The answer to one request, or {"error": ...}."""
        if self.gone is None:
            with suppress(OSError):  # the answer says what happened
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        if self.gone is None:
            self._end("closed")
        self.errors.close()

    def __enter__(self) -> "Torch":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def _answer(self) -> dict:
        if self.gone is None:
            try:
                line = self.answers.get(timeout=self.limit)
                if line:
                    return json.loads(line)
                self._end(self._last_words())
            except queue.Empty:
                self._end(f"no answer in {self.limit:g} s")
            except json.JSONDecodeError as error:
                self._end(f"not an answer: {error.doc.strip()}")
        return {"error": self.gone}

    def _last_words(self) -> str:
        self.process.wait(10)
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        return f"ended with {self.process.returncode}" + (f": {said[-1]}" if said else "")

    def _end(self, why: str) -> None:
        self.gone = why
        self.process.kill()
        self.process.wait()
        self.reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was asked last may be in it still
                pipe.close()
