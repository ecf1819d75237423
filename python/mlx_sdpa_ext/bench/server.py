"""mlx_lm.server in a process, patched by `mlx-sdpa-ext run` or as it is, and what it takes."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .served_model import EXPECTED, SERVED, write

START_SECONDS, STOP_SECONDS, REQUEST_SECONDS = 120, 60, 300
SETTLE_SECONDS = 10
IDLE = 0.1  # of a core: a server without requests looks for some ten times a second
OURS = (sys.executable, "-m", "mlx_sdpa_ext_cli", "run", "--stats")
STOCK = (sys.executable,)
# Resident memory that is memory in use: else glibc keeps what is freed in arenas of threads that
# are gone, and it wanders by 20 % in 500 requests, patched or not; by 1 % with this (2026-11-26).
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
PREFILL_STEP = 128
CACHED_PROMPTS = 10


class Server:
    """One that runs; of one model."""

    def __init__(self, process: subprocess.Popen, port: int) -> None:
        self.process, self.port = process, port
        # From its end on: what it wrote to standard error, and the calls that its passes made.
        self.errors, self.expected_calls = "", 0

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a completion request."""
        with self._sent(body) as response:
            answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"the server answered {response.status}: {answer}")
        return answer

    def cancel(self, body: dict[str, Any], events: int = 2) -> None:
        """Reads the first events of a streamed answer and hangs up."""
        with self._sent({**body, "stream": True}) as response:
            for _ in range(2 * events):  # each is followed by an empty line
                if not response.readline():
                    return

    @contextmanager
    def _sent(self, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            yield response
        finally:
            response = None
            connection.close()

    def taken(self) -> dict[str, int]:
        """Resident bytes, threads and open files of the process, once its requests are over.

        Its prompt cache holds the last prompts, long and short ones by chance, and slices of the
        batches that they were in: they are driven out by prompts of one word.
        """
        for i in range(2 * CACHED_PROMPTS):
            self.post({"prompt": f"w{3 + i}", "max_tokens": 1})
        deadline = time.monotonic() + SETTLE_SECONDS
        found = self._now()
        while time.monotonic() < deadline:
            time.sleep(0.2)
            last, found = found, self._now()
            if (last["threads"], last["files"]) == (found["threads"], found["files"]):
                break
        return found

    def _now(self) -> dict[str, int]:
        process = Path("/proc") / str(self.process.pid)
        status = dict(
            line.split(":", 1) for line in (process / "status").read_text().splitlines() if line
        )
        return {
            "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
            "threads": int(status["Threads"]),
            "files": len(os.listdir(process / "fd")),
        }

    def busy(self) -> float:
        """Share of one core that it takes while nobody asks anything.

        It learns of a client that hung up when it writes to it, and works on until then: up to
        SETTLE_SECONDS are given to it.
        """
        deadline, share = time.monotonic() + SETTLE_SECONDS, 1.0
        while share > IDLE and time.monotonic() < deadline:
            before = self._seconds_used()
            time.sleep(1)
            share = self._seconds_used() - before
        return share

    def _seconds_used(self) -> float:
        fields = (Path("/proc") / str(self.process.pid) / "stat").read_text().rpartition(")")[2]
        return sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")

    def stats(self) -> dict[str, Any]:
        """What `run --stats` printed at the end, and the calls that there had to be."""
        calls = re.search(r"^attention calls: (\d+)$", self.errors, re.MULTILINE)
        routes = re.findall(r"^  (\d+) (\w+) by (\w+): (.*)$", self.errors, re.MULTILINE)
        fallbacks = re.search(r"^fallbacks: (\d+)$", self.errors, re.MULTILINE)
        return {
            "calls": int(calls[1]),
            "expected_calls": self.expected_calls,
            "routes": [
                {"path": path, "provider": provider, "reason": reason, "calls": int(count)}
                for count, path, provider, reason in routes
            ],
            "fallbacks": int(fallbacks[1]),
            "failed_kernels": self.errors.count("kernel not used:"),
        }


@contextmanager
def serving(name: str, command: tuple[str, ...]) -> Iterator[Server]:
    """A server of the model `name`, started by `command` and asked to end as by Ctrl-C.

    Raises:
        RuntimeError: it does not start, or ends by itself; with what it said.
        subprocess.TimeoutExpired: it does not end when it is asked to.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, draft = write(name, folder)
        port, expected, errors = _free_port(), folder / "expected", folder / "errors"
        arguments = ["-m", "mlx_lm.server", "--model", model, "--port", port]
        arguments += ["--trust-remote-code", "--log-level", "ERROR"]
        arguments += ["--prefill-step-size", PREFILL_STEP, "--prompt-cache-size", CACHED_PROMPTS]
        arguments += [*SERVED[name].arguments, *(["--draft-model", draft] if draft else [])]
        kept = {k: v for k, v in os.environ.items() if not k.startswith("MLX_SDPA")}
        with errors.open("w") as said:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                env={**kept, **ALLOCATOR, "HF_HUB_OFFLINE": "1", EXPECTED: str(expected)},
                stdout=subprocess.DEVNULL,
                stderr=said,
                # A shell has its background jobs, and so their children, ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        server = Server(process, port)
        try:
            _wait(server, errors)
            yield server
            if process.poll() is not None:
                raise RuntimeError(f"the server ended by itself: {errors.read_text()[-2000:]}")
            process.send_signal(signal.SIGINT)
            process.wait(STOP_SECONDS)
            server.errors, server.expected_calls = errors.read_text(), int(expected.read_text())
        finally:
            process.kill()
            process.wait()


def _wait(server: Server, errors: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            break
        try:
            server.post({"prompt": "w2", "max_tokens": 1})
            return
        except ConnectionError:
            time.sleep(0.2)
    raise RuntimeError(f"the server does not answer: {errors.read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
