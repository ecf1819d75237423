"""Two records of one suite side by side: which case became faster, and by more than its noise."""


def case(result: dict) -> str:
    """What was measured, without what was found."""
    named = ("case", "name", "dtype", "q", "k", "v")
    return " ".join(str(result[key]) for key in named if key in result)


def ratios(before: dict, after: dict) -> list[tuple[str, float, bool]]:
    """Per case of both: the time before over the time after, and whether it is noise.

    It is noise where the ranges of the repeats overlap.
    """
    old = {case(result): result["ours"] for result in before["results"] if timed(result)}
    rows = []
    for result in filter(timed, after["results"]):
        if (was := old.get(case(result))) is not None:
            now = result["ours"]
            noise = was["best_s"] <= now["worst_s"] and now["best_s"] <= was["worst_s"]
            rows.append((case(result), was["median_s"] / now["median_s"], noise))
    return rows


def timed(result: dict) -> bool:
    ours = result.get("ours")
    return isinstance(ours, dict) and {"median_s", "best_s", "worst_s"} <= ours.keys()
