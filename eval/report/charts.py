"""Where the lines, bars and numbers of a chart stand: plain geometry, so that templates only print it.

Plots are SVG of one size with their own units; bars and whiskers of tables are per cent of their cell, so that they
follow the width of a phone.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

MAX_POINTS = 400
"""Points per curve; longer runs are averaged in bins."""
WIDTH, HEIGHT = 300, 176
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 10, 24  # margins of a plot, in its own units
_EDGES = {"left": _LEFT, "right": WIDTH - _RIGHT, "top": _TOP, "bottom": HEIGHT - _BOTTOM}


def curve(
    title: str,
    unit: str,
    training: Mapping[int, float],
    spread: Mapping[int, float],
    held_out: Mapping[int, float],
    span: tuple[float, float] | None,
) -> dict:
    """Geometry of one plot over steps: a training line with a band of one standard deviation, and held-out points.

    Args:
        title: of the plot.
        unit: of its values.
        training: value by step; NaN leaves a gap.
        spread: standard deviation by step; the band is cut at `span`.
        held_out: value by step.
        span: of the value axis; None takes it from the values.
    """
    size, xs, ys, stds = _binned(training, spread)
    low, high = span or value_span([*(value for value in ys if value is not None), *held_out.values()])
    largest = max(abs(low), abs(high)) if span is None else 0
    exponent = math.floor(math.log10(largest)) if largest and not 0.1 <= largest < 1e4 else 0
    last = max([*training, *held_out, 1])

    def x(step: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * step / last, 2)

    def y(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share, 2)

    points = [{"x": x(step), "y": y(value), "end": ""} for step, value in sorted(held_out.items())]
    if points:
        points[0]["end"] = "before"
    if len(points) > 1:
        points[-1]["end"] = "after"
    hover = {
        "training": [
            [x(s), number(s), number(v) or "not a number", number(d)] for s, v, d in zip(xs, ys, stds, strict=True)
        ],
        "held": [[x(step), str(step), number(value)] for step, value in sorted(held_out.items())],
        "binned": size,
    }
    return {
        "title": title,
        "unit": unit + (f" · ×10{_superscript(exponent)}" if exponent else ""),
        "binned": size,
        **_strokes(xs, ys, stds, x, y),
        "held_line": _path([(point["x"], point["y"]) for point in points]),
        "points": points,
        "y_ticks": [{"at": y(v), "text": tick(v / 10**exponent)} for v in ticks(low, high, 4)],
        "x_ticks": [{"at": x(v), "text": tick(v)} for v in ticks(0, last, 5) if float(v).is_integer()],
        **_EDGES,
        "hover": json.dumps(hover, separators=(",", ":"), ensure_ascii=False),
    }


def _binned(
    training: Mapping[int, float], spread: Mapping[int, float]
) -> tuple[int, list[float], list[float | None], list[float | None]]:
    """Steps per bin, and of each bin the mean step, value and standard deviation; None where there is none."""
    steps = sorted(training)
    size = math.ceil(len(steps) / MAX_POINTS) if steps else 1
    bins = [steps[k : k + size] for k in range(0, len(steps), size)]
    finite = [[training[step] for step in group if math.isfinite(training[step])] for group in bins]
    known = [[spread[step] for step in group if step in spread] for group in bins]
    values, deviations = (
        [math.fsum(group) / len(group) if group else None for group in groups] for groups in (finite, known)
    )
    return size, [float(np.mean(group)) for group in bins], values, deviations


def _strokes(
    xs: Sequence[float],
    ys: Sequence[float | None],
    stds: Sequence[float | None],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> dict[str, list]:
    """Lines between the gaps of a curve, dots where a value stands alone, and bands of one standard deviation."""
    lines: list[list[tuple[float, float]]] = [[]]
    bands: list[list[tuple[float, float, float]]] = [[]]
    for step, value, std in zip(xs, ys, stds, strict=True):
        if value is None:
            lines.append([])
            bands.append([])
            continue
        lines[-1].append((x(step), y(value)))
        if std is not None:
            bands[-1].append((x(step), y(value - std), y(value + std)))
    return {
        "lines": [_path(line) for line in lines if len(line) > 1],
        "dots": [line[0] for line in lines if len(line) == 1],
        "bands": [
            _path([(a, low) for a, low, _ in band] + [(a, high) for a, _, high in reversed(band)])
            for band in bands
            if len(band) > 1
        ],
    }


def histogram(title: str, series: Sequence[tuple[str, str, Sequence[float]]]) -> dict:
    """Geometry of a histogram of values in [0, 1], in ten bins, with the bars of several series side by side.

    Args:
        title: what is counted.
        series: of each its CSS class, its name and its values.
    """
    counts = [np.histogram(values, bins=10, range=(0.0, 1.0))[0] for _, _, values in series]
    top = max(max(int(count.max()) for count in counts), 1)
    step = max(1, int(_tick_step(0, top, 4)))
    top = math.ceil(top / step) * step
    slot = (WIDTH - _LEFT - _RIGHT) / 10
    height = HEIGHT - _TOP - _BOTTOM
    wide = 0.84 / len(series)
    bars = []
    for place, ((kind, name, _), count) in enumerate(zip(series, counts, strict=True)):
        for k, found in enumerate(count.tolist()):
            tall = height * found / top
            bars.append(
                {
                    "kind": kind,
                    "x": round(_LEFT + (k + 0.08 + place * wide) * slot, 2),
                    "y": round(HEIGHT - _BOTTOM - tall, 2),
                    "width": round(0.94 * wide * slot, 2),
                    "height": round(tall, 2),
                    "text": f"{name}: {found} clips with {title} {k / 10:.1f} to {(k + 1) / 10:.1f}",
                }
            )
    return {
        "title": title,
        "bars": bars,
        "x_ticks": [{"at": round(_LEFT + 2 * k * slot, 2), "text": f"{k / 5:.1f}"} for k in range(6)],
        "y_ticks": [
            {"at": round(HEIGHT - _BOTTOM - height * v / top, 2), "text": str(v)} for v in range(0, top + 1, step)
        ],
        **_EDGES,
    }


def value_span(values: Sequence[float]) -> tuple[float, float]:
    """Value axis for these values, from tick to tick; it starts at 0 unless they vary little."""
    low, high = min(values), max(values)
    if 0.0 <= low < 0.6 * high:
        low = 0.0
    if low == high == 0.0:
        high = 1.0
    elif high - low < (least := 0.05 * max(abs(low), abs(high))):  # noise in the last digits is no curve
        low, high = low - least, high + least
    step = _tick_step(low, high, 4)
    return math.floor(low / step) * step, math.ceil(high / step) * step


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from low to high, both included if they are round.

    Args:
        low: below `high`.
        high: above `low`.
        count: about as many; the step is at least a `count`-th of the range.
    """
    step = _tick_step(low, high, count)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_step(low: float, high: float, count: int) -> float:
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    return next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * (1 - 1e-9))


def percent(share: float) -> float:
    """A place in per cent of its cell: inside of it, whatever the number is."""
    return round(100 * min(max(0.0, share), 1.0), 2)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


# --- text of numbers --------------------------------------------------------------------------------------------------


def tick(value: float) -> str:
    """A round number as an axis says it."""
    return f"{value + 0.0:.6g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def number(value: float | None) -> str:
    """Three significant digits, or nothing for None."""
    if value is None:
        return ""
    digits, _, exponent = f"{value:.3g}".partition("e")
    return digits.replace("-", "−") + (f"×10{_superscript(int(exponent))}" if exponent else "")


def fixed(value: float | None) -> str:
    """Two decimals."""
    return "–" if value is None else f"{value:.2f}".replace("-", "−")


def signed(value: float | None) -> str:
    """Two decimals and a sign."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def hundredths(value: float | None) -> str:
    """A fraction as per cent, one decimal, without the sign of per cent."""
    return "–" if value is None else f"{100 * value + 0.0:.1f}".replace("-", "−")


def points(value: float | None) -> str:
    """A difference of fractions in points of per cent, one decimal and a sign."""
    return "–" if value is None else f"{100 * value + 0.0:+.1f}".replace("-", "−")


def seconds(value: float) -> str:
    """Seconds of a time line, two decimals."""
    return "∞" if math.isinf(value) else f"{value:.2f}" if value < 1e4 else f"{value:.1e}"


def thousands(value: int) -> str:
    """A whole number with commas."""
    return f"{value:,}"


def clock(value: float) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _superscript(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
