"""mlx_lm.server under the load of eight clients, patched and not: the same answers, nothing left.

Both servers get the same requests, in the same order, eight at a time, in waves; between waves the
process is looked at: resident memory, threads, open files. Every tenth request hangs up midway.
"""

import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .served_model import FIRST_WORD, SERVED, VOCAB, WINDOW
from .server import IDLE, OURS, STOCK, Server, serving

REQUESTS, QUICK_REQUESTS = 500, 24
WAVE, QUICK_WAVE = 50, 8
CLIENTS = 8
CANCELLED_EVERY, STOPPED_EVERY = 10, 5
LONG = 3000  # tokens of an answer that nobody waits for
DRAFT_TOKENS = (8, 15, 31, 47)  # and one more: 9 to 48 rows at once
MOST_GROWTH = 0.05  # of the resident memory after the first wave
# Log-probabilities by which the first two tokens must differ for the choice to be no matter of
# rounding. In 8 bits a rounding moves a key to the next of 255 steps: tests/test_models.py.
CLEAR = {"window": 4e-4, "speculative": 4e-4, "quantized": 8e-2}
SIDES = {"ours": OURS, "stock": STOCK}


class Turn(NamedTuple):
    """One request, and whether the client hangs up midway."""

    body: dict[str, Any]
    cancelled: bool


def conversations(name: str, count: int) -> list[list[Turn]]:
    """Of one or two turns, `count` turns in all; the same for every server of a model.

    The prompt of a second turn is what it adds to the first prompt and its answer.
    """
    served = SERVED[name]
    chance = random.Random(count)

    def words(first: int, last: int) -> list[str]:
        return [
            f"w{chance.randrange(FIRST_WORD, VOCAB)}" for _ in range(chance.randint(first, last))
        ]

    shared = [words(0, 3 * WINDOW) for _ in range(6)]
    made: list[list[Turn]] = []
    for i in range(count):
        body: dict[str, Any] = {"max_tokens": chance.randint(4, 24), "temperature": 0.0}
        body |= {"logprobs": True, "top_logprobs": 2}
        cancelled = i % CANCELLED_EVERY == CANCELLED_EVERY - 1
        if cancelled:
            body["max_tokens"] = LONG
        if i % STOPPED_EVERY == 2:
            body["stop"] = words(2, 2)
        if served.draft:
            body["num_draft_tokens"] = DRAFT_TOKENS[i % len(DRAFT_TOKENS)]
        if served.continued and i % 2:
            made[-1].append(Turn(body | {"prompt": " ".join(words(4, WINDOW))}, cancelled))
            continue
        first = chance.choice(shared) if served.continued else [_first_word(i)]
        made.append([Turn(body | {"prompt": " ".join(first + words(4, 2 * WINDOW))}, cancelled)])
    return made


def _first_word(i: int) -> str:
    """Another one than those of the prompts that the server may still have in its cache."""
    return f"w{FIRST_WORD + i % (VOCAB - FIRST_WORD)}"


Answer = list[tuple[int, float]]  # tokens, and by how much each is likelier than the second choice


class Side(NamedTuple):
    """What one server did: its answers by conversation and turn, and its record."""

    answers: dict[tuple[int, int], Answer]
    record: dict[str, Any]


def serve(
    name: str, asked: list[list[Turn]], wave: int, command: tuple[str, ...], clients: int = CLIENTS
) -> Side:
    """All conversations with one server, eight at a time, in waves of `wave` requests."""
    answers: dict[tuple[int, int], Answer] = {}
    tokens = dict.fromkeys(("prompt", "cached", "completion"), 0)
    lock = threading.Lock()

    def talk(server: Server, i: int) -> None:
        said = ""
        for n, turn in enumerate(asked[i]):
            body = turn.body | {"prompt": f"{said} {turn.body['prompt']}".strip()}
            if turn.cancelled:
                server.cancel(body)
                return
            answer = server.post(body)
            content = answer["choices"][0]
            said = f"{body['prompt']} {content['text']}"
            usage = answer["usage"]
            with lock:
                answers[i, n] = [choice(row) for row in content["logprobs"]["content"]]
                tokens["prompt"] += usage["prompt_tokens"]
                tokens["completion"] += usage["completion_tokens"]
                tokens["cached"] += usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)

    samples, step = [], max(1, wave // len(asked[0]))
    with serving(name, command) as server, ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        for first in range(0, len(asked), step):
            numbers = range(first, min(first + step, len(asked)))
            list(pool.map(lambda i: talk(server, i), numbers))
            done = sum(map(len, asked[: numbers.stop]))
            samples.append({"requests": done, **server.taken()})
        record = {"seconds": time.perf_counter() - began, "tokens": tokens, "samples": samples}
        record["busy_when_idle"] = server.busy()
    if command is OURS:
        record["stats"] = server.stats()
    return Side(answers, record | {"growth": growth(samples)})


def choice(row: dict[str, Any]) -> tuple[int, float]:
    """The likeliest token and by how much it is likelier than the second."""
    first, second = sorted(row["top_logprobs"], key=lambda token: -token["logprob"])
    return first["id"], first["logprob"] - second["logprob"]


def growth(samples: list[dict[str, int]]) -> dict[str, float]:
    """From the first wave to the largest after it: a part of the memory, threads and files."""
    first, later = samples[0], samples[1:] or samples
    largest = {name: max(s[name] for s in later) for name in first}
    return {
        "resident": largest["resident_bytes"] / first["resident_bytes"] - 1,
        "threads": largest["threads"] - first["threads"],
        "files": largest["files"] - first["files"],
    }


def agreement(ours: Side, stock: Side, clear: float) -> dict[str, int]:
    """Answers that are equal; that part where stock's choice was one of rounding; that differ.

    What follows in a conversation that has parted is not compared.
    """
    found = {"equal": 0, "part_at_a_tie": 0, "different": 0}
    parted: set[int] = set()  # conversations whose second turn is another one
    for (i, n), answer in sorted(stock.answers.items()):
        if i in parted:
            continue
        mine, its = [t for t, _ in ours.answers[i, n]], [t for t, _ in answer]
        apart = next((k for k, pair in enumerate(zip(mine, its)) if pair[0] != pair[1]), None)
        if apart is None:
            found["equal" if len(mine) == len(its) else "different"] += 1
        else:
            parted.add(i)
            found["part_at_a_tie" if answer[apart][1] < clear else "different"] += 1
    return found


def faults(result: dict[str, Any]) -> list[str]:
    """What a result must not show; none of it is a matter of speed."""
    ours, stats = result["ours"], result["ours"]["stats"]
    found = {
        "answers differ from stock's": result["answers"]["different"],
        "the memory grew": ours["growth"]["resident"] > MOST_GROWTH,
        "threads were left": ours["growth"]["threads"] > 0,
        "files were left open": ours["growth"]["files"] > 0,
        "it works when nobody asks": ours["busy_when_idle"] > IDLE,
        "attention calls are missing from stats()": stats["calls"] != stats["expected_calls"],
        "stats() does not add up": stats["calls"] != sum(r["calls"] for r in stats["routes"]),
        "calls were left to stock": stats["fallbacks"],
        "kernels failed": stats["failed_kernels"],
        "the prompt cache was used otherwise than it should": SERVED[result["name"]].continued
        != any(result[side]["tokens"]["cached"] for side in SIDES),
    }
    return [fault for fault, there in found.items() if there]


def suite(quick: bool, only: str | None = None) -> Iterator[dict]:
    """A result for each model.

    Raises:
        RuntimeError: this system has no /proc, where memory, threads and files are read.
    """
    if not Path("/proc/self/status").exists():
        raise RuntimeError("the suite soak reads /proc, which this system does not have")
    for name in SERVED:
        if only is None or re.search(only, name):
            yield compared(name, *((QUICK_REQUESTS, QUICK_WAVE) if quick else (REQUESTS, WAVE)))


def compared(name: str, count: int, wave: int) -> dict:
    """One model on both sides."""
    asked = conversations(name, count)
    sides = {side: serve(name, asked, wave, command) for side, command in SIDES.items()}
    result = {"case": "soak", "name": name, "module": SERVED[name].module, "clients": CLIENTS}
    result |= {
        "requests": count,
        "cancelled": sum(turn.cancelled for turns in asked for turn in turns),
    }
    result["answers"] = agreement(sides["ours"], sides["stock"], CLEAR[name])
    result |= {side: found.record for side, found in sides.items()}
    result["faults"] = faults(result)
    return result


def row(result: dict) -> list[str]:
    said = result["answers"]
    same = f"{said['equal']} equal, {said['part_at_a_tie']} part at a tie"
    cells = [f"{result['name']}, {result['requests']} requests", *map(_side, (result["ours"],))]
    return [*cells, _side(result["stock"]), same, ", ".join(result["faults"]) or "no fault"]


def _side(record: dict) -> str:
    last, grown = record["samples"][-1], record["growth"]
    return (
        f"{record['seconds']:.0f} s, {last['resident_bytes'] / 2**20:.0f} MiB "
        f"({grown['resident']:+.1%}, threads {grown['threads']:+d}, files {grown['files']:+d})"
    )


TITLES = ("server", "ours", "stock", "answers", "")
