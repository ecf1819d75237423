"""How a result of the suites cpu, cpu-memory, metal and quick is shown: the cells of one row."""

from . import cpu_quantized

TITLES = ("case", "shape", "ours", "stock", "")
CPU_TITLES = ("case", "shape", "ours", "stock, PyTorch", "ratios")
MEMORY_TITLES = ("path", "shape", "added", "time", "")


def speed_row(result: dict) -> list[str]:
    return [
        f"{result['case']} {result['dtype']}",
        shape(result),
        f"{result['ours']['median_s'] * 1e3:.2f} ms  {result['ours_gflops']:.0f} GFLOP/s",
        f"{result['stock']['median_s'] * 1e3:.1f} ms  {result['stock_gflops']:.1f} GFLOP/s",
        f"{result['speedup']:.1f}x",
    ]


def cpu_row(result: dict) -> list[str]:
    """Also of what PyTorch has part in, of its matmul and of keys that grow."""
    if result["case"] == "torch":
        return ["torch", "", result.get("torch", result.get("error", "")), "", ""]
    if result["case"] == "ceiling":
        found = result.get("error") or f"{result['gflops']:.0f} GFLOP/s"
        return [f"{result['name']} {result['dtype']}", f"{result['n']}", found, result["by"], ""]
    if result["case"] == "growth":
        found = f"{result['ns_by_key']:.1f} ns a key, adds {result['added_bytes'] >> 10} KiB"
        return [f"growth {result['dtype']}", shape(result), found, "", ""]
    if result["case"].startswith("quantized"):
        return cpu_quantized.row(result, shape(result))
    row = speed_row(result)
    if "of_read" in result:
        row[2] += f"  {result['of_read']:.0%} of reading"
    if "over_torch" in result:
        side = result["torch"]
        row[3] += f"  torch {side['gflops']:.0f} GFLOP/s"
        row[4] += f"  {result['over_torch']:.2f}x"
    return row


def memory_row(result: dict) -> list[str]:
    added, taken = f"{result['added_mib']:.1f} MiB", f"{result['seconds']:.1f} s"
    return [result["path"], shape(result), added, taken, ""]


def shape(result: dict) -> str:
    return f"{result['q'][1]}/{result['k'][1]} {result['q'][2]}x{result['k'][2]} D{result['q'][3]}"
