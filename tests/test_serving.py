"""mlx_lm.server and mlx-lm's commands with the patch: the suite soak in short, and what it sees.

Each server is a process; the whole load is `mlx-sdpa-ext bench soak`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import command_line
import pytest
import serving_table
from mlx_sdpa_ext.bench import soak
from mlx_sdpa_ext.bench.served_model import SERVED, write
from mlx_sdpa_ext.bench.server import OURS, STOCK

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory, threads and files are read in /proc"
)


@pytest.fixture(scope="module", params=SERVED)
def result(request):
    """Of 24 requests of eight clients to both servers."""
    return soak.compared(request.param, soak.QUICK_REQUESTS, soak.QUICK_WAVE)


def test_under_load_a_server_answers_as_stocks_and_leaves_nothing(result):
    assert result["faults"] == []
    assert sum(result["answers"].values()) >= soak.QUICK_REQUESTS - result["cancelled"] - 1
    assert result["answers"]["equal"] > 0
    assert result["cancelled"] == 2
    assert soak.row(result)[-1] == "no fault"


def test_each_fault_is_seen(result):
    """Each with a result in which nothing else is wrong."""
    wrong = {
        "answers differ from stock's": ("answers", "different", 1),
        "the memory grew": ("ours", "growth", "resident", 0.06),
        "threads were left": ("ours", "growth", "threads", 1),
        "files were left open": ("ours", "growth", "files", 1),
        "it works when nobody asks": ("ours", "busy_when_idle", 0.5),
        "attention calls are missing from stats()": ("ours", "stats", "expected_calls", 7),
        "calls were left to stock": ("ours", "stats", "fallbacks", 1),
        "kernels failed": ("ours", "stats", "failed_kernels", 1),
        "the prompt cache was used otherwise than it should": ("ours", "tokens", "cached", ...),
    }
    for fault, (*path, name, value) in wrong.items():
        changed = copy.deepcopy(result)
        place = changed
        for key in path:
            place = place[key]
        if value is ...:
            continued = SERVED[result["name"]].continued
            value = changed["stock"]["tokens"]["cached"] = 0 if continued else 1
        place[name] = value
        assert soak.faults(changed) == [fault]
    changed = copy.deepcopy(result)
    changed["ours"]["stats"]["routes"].pop()
    assert soak.faults(changed) == ["stats() does not add up"]


def test_the_table_is_up_to_date(capsys):
    assert serving_table.main(["--check"]) == 0, capsys.readouterr().out


def side(*answers):
    return soak.Side({(0, n): answer for n, answer in enumerate(answers)}, {})


@pytest.mark.parametrize(
    ("ours", "counted"),
    [
        ([(5, 1.0), (6, 0.5)], "equal"),
        ([(5, 1.0), (7, 0.5)], "different"),
        ([(5, 1.0)], "different"),  # too short
        ([(9, 1e-6), (6, 0.5)], "part_at_a_tie"),
    ],
)
def test_answers_are_compared_token_by_token(ours, counted):
    stock = [(5, 1e-5 if counted == "part_at_a_tie" else 1.0), (6, 0.5)]
    found = soak.agreement(side(ours), side(stock), clear=1e-3)
    assert found == {"equal": 0, "part_at_a_tie": 0, "different": 0} | {counted: 1}


def test_a_conversation_that_has_parted_is_not_compared_further():
    stock, ours = [[(5, 1e-5)], [(6, 1.0)]], [[(4, 1e-5)], [(7, 1.0)]]
    found = soak.agreement(side(*ours), side(*stock), clear=1e-3)
    assert found == {"equal": 0, "part_at_a_tie": 1, "different": 0}


def test_growth_is_the_largest_after_the_first_wave():
    names = ("resident_bytes", "threads", "files")
    rows = [(200, 9, 4), (220, 11, 4), (210, 9, 6)]
    samples = [{"requests": 50, **dict(zip(names, row))} for row in rows]
    grown = soak.growth(samples)
    assert grown == {"resident": pytest.approx(0.1), "threads": 2, "files": 2}


def test_a_saved_prompt_cache_is_that_of_stock(tmp_path):
    """mlx-lm's own commands: saved by either, continued by either, rotating layers among them."""
    model, _ = write("window", tmp_path)
    prompt, more = (" ".join(f"w{i}" for i in numbers) for numbers in (range(2, 170), (9, 8, 7)))

    def run(side, command, *arguments):
        arguments = [*side, "-m", "mlx_lm", command, "--trust-remote-code", *arguments]
        done = command_line.python(*arguments[1:], env={"SERVED_ATTENTION_CALLS": "/dev/null"})
        assert done.returncode == 0, done.stderr
        return done

    said = set()
    for name, first in {"ours": OURS, "stock": STOCK}.items():
        cache = tmp_path / f"{name}.safetensors"
        arguments = ["--model", model, "--prompt", prompt, "--prompt-cache-file", cache]
        saved = run(first, "cache_prompt", *arguments)
        assert ("attention calls" in saved.stderr) == (first is OURS)
        for second in (OURS, STOCK):
            arguments = ["--prompt-cache-file", cache, "--prompt", more, "--max-tokens", 12]
            answer = run(second, "generate", "--model", model, *map(str, arguments))
            said.add(answer.stdout.split("==========")[1].strip())
    assert len(said) == 1
    assert len(said.pop().split()) == 12
