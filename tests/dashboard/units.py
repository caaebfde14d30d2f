"""Numbers with the units that panels have, as Grafana writes them, and the steps of an axis."""

import math

BINARY, DECIMAL = (1024, ["B", "KiB", "MiB", "GiB", "TiB"]), (1000, ["B/s", "kB/s", "MB/s", "GB/s"])
SHORT = (1000, ["", " K", " Mil", " Bil"])
SCALES = {"bytes": BINARY, "Bps": DECIMAL, "short": SHORT}


def digits(value):
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def written(value, unit):
    if unit == "percentunit":
        return f"{digits(value * 100)}%"
    if unit == "reqps":
        return f"{digits(value)} req/s"
    if unit == "s":
        return "0 s" if value == 0 else f"{digits(value * 1000)} ms" if value < 1 else f"{digits(value)} s"
    base, names = SCALES[unit]
    power = min(int(math.log(value, base)), len(names) - 1) if value >= 1 else 0
    name = names[power]
    return digits(value / base**power) + (f" {name.strip()}" if name else "")


def steps(highest, unit, most=4):
    """Where the lines of an axis are from 0 to at least `highest`: at round numbers, and no more than `most` above 0."""
    base = 1024 if unit == "bytes" else 1000
    scale = base ** int(math.log(highest, base)) if highest >= 1 else 1
    goal = highest / scale / most
    if base == 1024:
        step = 2 ** math.ceil(math.log2(goal)) * scale
    else:
        size = 10 ** math.floor(math.log10(goal))
        step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= goal * 0.9999) * scale
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]
