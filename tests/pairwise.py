"""A small table in which every pair of values of any two factors appears together at least once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations


def pairwise(
    factors: Mapping[str, Sequence],
    allowed: Callable[[dict], bool] = lambda row: True,
    seed: int = 0,
) -> Iterator[dict]:
    """Rows {factor: value}, greedily: each row starts from an uncovered pair and adds many more.

    allowed(row) refuses combinations; it is asked about complete rows only. A pair that no allowed
    row holds is left out. The same factors and seed give the same rows.
    """
    chance = random.Random(seed)
    names = list(factors)
    todo = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }

    def pairs(row: dict) -> set:
        return set(combinations(((name, row[name]) for name in names), 2)) & todo

    while todo:
        seedling = dict(min(todo))
        best, covered = None, set()
        for _ in range(40):
            row = {n: seedling.get(n, chance.randrange(len(factors[n]))) for n in names}
            if allowed({n: factors[n][i] for n, i in row.items()}):
                gain = pairs(row)
                if len(gain) > len(covered):
                    best, covered = row, gain
        if best is None:
            todo.discard(min(todo))
            continue
        todo -= covered
        yield {n: factors[n][i] for n, i in best.items()}
