"""The results of a demo: one record, the table made from it, the JSON file written from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from .. import folders
from .console import bytes_text, seconds_text
from .prefill import Prefill, combine

LABELS = {"ours": "ours", "stock": "stock"}
LEGEND = (
    "by: whose attention. prefill: time since the first token. attention: time of its calls. "
    "memory: peak above the weights, KV cache included. gain: stock's prefill time over ours. "
    "logits differ: at most, of the largest logit."
)
# A difference between two passes that is smaller than this share of the longer one says nothing.
NOISE = 0.02


@dataclass
class Report:
    """What a demo was asked, what it ran on and what it measured so far."""

    facts: dict[str, Any]  # date, versions, device, model, settings
    contexts: Sequence[int]
    passes: dict[str, list[Prefill]] = field(default_factory=dict)  # of "rest", "ours", "stock"
    routes: list[dict[str, Any]] = field(default_factory=list)  # which paths our attention took
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False
    failed: bool = False

    @property
    def runs(self) -> dict[str, Prefill]:
        """The passes of each kind in one, with median step times."""
        return {name: combine(passes) for name, passes in self.passes.items() if passes}

    def attention_seconds(self, name: str, context: int) -> float | None:
        """Seconds of attention up to `context`: with it less without it; None if not known."""
        run, rest = self.runs.get(name), self.runs.get("rest")
        point = run.at(context) if run else None
        floor = rest.at(context) if rest else None
        return max(point.seconds - floor.seconds, 0.0) if point and floor else None

    def logit_difference(self, context: int) -> dict[str, Any] | None:
        """The largest difference of the next token's logits between stock and ours."""
        points = [self.runs[n].at(context) if n in self.runs else None for n in LABELS]
        if None in points:
            return None
        ours, stock = (p.logits for p in points)
        return {
            "max_abs": float(np.abs(ours - stock).max()),
            "max_abs_logit": float(np.abs(stock).max()),
            "same_next_token": bool(ours.argmax() == stock.argmax()),
        }

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data; bytes and seconds, `seconds` since the start of a prefill."""
        rows = []
        for context in self.contexts:
            row: dict[str, Any] = {"context": context}
            for name, run in self.runs.items():
                if (point := run.at(context)) is not None:
                    row[name] = {
                        "seconds": point.seconds,
                        "tokens_per_second": context / point.seconds,
                        "peak_bytes": point.peak_bytes,
                        "cache_bytes": point.cache_bytes,
                    }
                    if name != "rest":
                        row[name]["attention_seconds"] = self.attention_seconds(name, context)
                elif context in run.expected:
                    row[name] = {"not_run_expected_seconds": run.expected[context]}
            row["logit_difference"] = self.logit_difference(context)
            rows.append(row)
        return {
            **self.facts,
            "interrupted": self.interrupted,
            "failed": self.failed,
            "contexts": rows,
            "step_seconds": {
                name: [run.step_seconds for run in passes] for name, passes in self.passes.items()
            },
            "routes": self.routes,
            "notes": self.notes,
        }

    def write_json(self, path: Path) -> None:
        """Writes the record; a reader sees the old file or the new one, never half of one."""
        folders.write(path, json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n")

    def table(self) -> Table:
        """A row for each context and attention that was measured or had to be left out."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for title in (
            "context", "by", "prefill", "tokens/s", "attention", "memory", "gain", "logits differ",
        ):  # fmt: skip
            table.add_column(title, justify="left" if title == "by" else "right", no_wrap=True)
        for context in self.contexts:
            cells = [r for name in ("stock", "ours") if (r := self._row(name, context))]
            for i, row in enumerate(cells):
                table.add_row(f"{context:,}" if i == 0 else "", *row)
            if cells:
                table.add_section()
        return table

    def _row(self, name: str, context: int) -> list[str] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        if (point := run.at(context)) is None:
            if context not in run.expected:
                return None
            return [LABELS[name], f"(~{seconds_text(run.expected[context])})", "not run"]
        other = self.runs["stock"].at(context) if "stock" in self.runs else None
        difference = self.logit_difference(context) if name == "ours" else None
        gain = f"{other.seconds / point.seconds:.3g}x" if name == "ours" and other else ""
        return [
            LABELS[name],
            seconds_text(point.seconds),
            f"{context / point.seconds:,.0f}",
            self._attention_text(name, context, point.seconds),
            bytes_text(point.peak_bytes),
            gain,
            f"{difference['max_abs']:.1g} of {difference['max_abs_logit']:.2g}"
            if difference
            else "",
        ]

    def _attention_text(self, name: str, context: int, seconds: float) -> str:
        attention = self.attention_seconds(name, context)
        noise = NOISE * seconds
        if attention is None or attention >= noise:
            return seconds_text(attention)
        return f"< {seconds_text(noise)}"
