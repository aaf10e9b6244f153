"""Figures of a process that serves Prometheus metrics, and of times that were taken."""

import re
import statistics
import urllib.request


def scrape(port: int) -> dict[str, float]:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    found = re.findall(r"^(dinoctl_[^ ]+) ([-+.\deE]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def percentile(before: dict[str, float], after: dict[str, float], name: str, share: float) -> float:
    """Upper bound of the bucket that holds it."""
    buckets = {
        float(key.split('le="')[1].split('"')[0]): value - before.get(key, 0.0)
        for key, value in after.items()
        if key.startswith(f"{name}_bucket")
    }
    total = buckets[float("inf")]
    return min((bound for bound, count in buckets.items() if count >= share * total), default=float("nan"))


def quantiles(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    if not values:
        return {}
    p99 = values[min(len(values) - 1, int(0.99 * len(values)))]
    return {
        "n": len(values),
        "median": round(statistics.median(values), 3),
        "p99": round(p99, 3),
        "max": round(values[-1], 3),
    }
