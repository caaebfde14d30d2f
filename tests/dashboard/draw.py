"""Draws a dashboard as Grafana would show it, from what Prometheus answers to its panels' expressions. Each panel has its expressions in
its <desc>, so that a picture of another dashboard is noticed.

usage: draw.py DASHBOARD PROMETHEUS SECONDS STEP PICTURE
"""

import json
import math
import sys
from html import escape

from ask import Prometheus
from units import steps, written

WIDTH, MARGIN, HEAD, ROW, GAP = 1000, 10, 44, 22, 6
COLORS = ["#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b58900", "#0b8a94", "#d44a8c", "#6b7280", "#7a4b1e", "#8ab8ff", "#a6d39a"]
TEXT, SOFT, LINE = "#1f2328", "#59636e", "#e4e7eb"


def label(x, y, words, size=10, color=SOFT, more=""):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{color}"{more}>{escape(words, quote=False)}</text>'


def wide(words, size):
    """About how wide words are, in a wide font."""
    return size * sum(0.95 if letter in "mwMW%" else 0.36 if letter in "fijlrt.:,' " else 0.64 for letter in words)


def wrapped(words, width, size):
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if wide(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def simpler(points, error=0.4):
    """Those of the points without which the line would be another by more than `error` (Ramer, Douglas, Peucker)."""
    if len(points) < 3:
        return points
    (x0, y0), (x1, y1) = points[0], points[-1]
    away = [abs(y - y0 - (y1 - y0) * (x - x0) / (x1 - x0)) for x, y in points]
    at = max(range(len(points)), key=away.__getitem__)
    if away[at] <= error:
        return [points[0], points[-1]]
    return simpler(points[: at + 1], error)[:-1] + simpler(points[at:], error)


def path(points):
    """From the first one to each next, by how far it is from the one before."""
    tenths = [(round(x * 10), round(y * 10)) for x, y in points]
    steps = [(x - x0, y - y0) for (x0, y0), (x, y) in zip(tenths, tenths[1:])]
    return "l".join(f"{x / 10:g},{y / 10:g}" for x, y in [tenths[0], *steps])


def is_used(series):
    return any(value for _, value in series[1])


class Panel:
    """One panel, and where it is on the picture."""

    def __init__(self, panel, asked, top):
        grid, column = panel["gridPos"], (WIDTH - 2 * MARGIN) / 24
        self.x, self.y = MARGIN + grid["x"] * column + GAP / 2, top + grid["y"] * ROW + GAP / 2
        self.width, self.height = grid["w"] * column - GAP, grid["h"] * ROW - GAP
        self.title, self.kind, self.asked = panel["title"], panel["type"], asked
        self.targets = panel.get("targets", [])
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        self.unit, self.most, custom = defaults.get("unit", "short"), defaults.get("max"), defaults.get("custom", {})
        self.is_stacked = custom.get("stacking", {}).get("mode") == "normal"
        self.fill = custom.get("fillOpacity", 0) / 100

    def svg(self):
        if self.kind == "row":
            return label(self.x, self.y + 15, self.title, 13, TEXT, ' font-weight="600"')
        box = f'<rect x="{self.x:.1f}" y="{self.y:.1f}" width="{self.width:.1f}" height="{self.height:.1f}" rx="3" fill="#fff" stroke="{LINE}"/>'
        titles = wrapped(self.title, self.width - 16, 12)
        out = [label(self.x + 8, self.y + 15 + 13 * number, line, 11, TEXT, ' font-weight="600"') for number, line in enumerate(titles)]
        self.top = self.y + 12 + 13 * len(titles)
        series = [one for target in self.targets for one in self.asked.series(target)]
        self.has_data = any(values for _, values in series)
        if self.has_data:
            out += {"timeseries": self.lines, "heatmap": self.cells, "stat": self.stats, "bargauge": self.bars}[self.kind](series)
        else:
            out.append(label(self.x + self.width / 2, self.y + self.height / 2 + 8, "No data", 13, SOFT, ' text-anchor="middle"'))
        expressions = escape("\n".join(target["expr"] for target in self.targets), quote=False)
        return f"<g><desc>{expressions}</desc>{box}\n" + "\n".join(out) + "</g>"

    def legend(self, names):
        """Below the plot, in two lines at most; what is always 0 comes last, and makes room for the rest."""
        lines, left = [[]], self.width - 20
        for number, (name, color) in enumerate(names):
            needs, rest = wide(name, 10) + 22, len(names) - number
            if needs > left and len(lines) == 2 or needs + 60 > left and len(lines) == 2 and rest > 1:
                lines[-1].append((self.width - 10 - left, f"+ {rest} more", None))
                break
            if needs > left:
                lines, left = lines + [[]], self.width - 20
            lines[-1].append((self.width - 10 - left, name, color))
            left -= needs
        bottom, out = self.y + self.height - 8, []
        for number, line in enumerate(lines):
            y = bottom - 13 * (len(lines) - 1 - number)
            for x, name, color in line:
                mark = f'<rect x="{self.x + x:.0f}" y="{y - 5:.0f}" width="9" height="3" fill="{color}"/>' if color else ""
                out.append(mark + label(self.x + x + (13 if color else 0), y, name))
        self.bottom = bottom - 13 * len(lines) - 16
        return out

    def axes(self, marks):
        """Lines at these heights, with what stands beside them, and one for each minute."""
        out = []
        for y, words in marks:
            out.append(f'<path d="M{self.left:.0f},{y:.1f}H{self.right:.0f}" stroke="{LINE}"/>')
            out.append(label(self.left - 5, y + 3, words, 9, SOFT, ' text-anchor="end"'))
        length = self.asked.end - self.asked.start
        for second in range(0, int(length) + 1, 60):
            x, anchor = self.across(second), "end" if second + 10 > length else "middle"
            out.append(f'<path d="M{x:.1f},{self.top:.0f}V{self.bottom:.0f}" stroke="{LINE}"/>')
            out.append(label(x, self.bottom + 12, f"{second // 60}:00", 9, SOFT, f' text-anchor="{anchor}"'))
        return out

    def across(self, second):
        return self.left + (self.right - self.left) * second / (self.asked.end - self.asked.start)

    def lines(self, series):
        # What is always 0 is named last, and drawn below the other lines.
        series = sorted((one for one in series if one[1]), key=lambda one: not is_used(one))
        series = [(name, values, COLORS[number % len(COLORS)]) for number, (name, values) in enumerate(series)]
        out = self.legend([(name, color) for name, _, color in series])
        below, drawn = {}, []
        for _, values, color in sorted(series, key=is_used):
            base = [(at, below.get(at, 0)) for at, _ in values]
            if self.is_stacked:
                values = [(at, value + under) for (at, value), (_, under) in zip(values, base)]
                below.update(values)
            drawn.append((color, values, base))
        highest = self.most or max(value for _, values, _ in drawn for _, value in values) or 1
        marks = steps(highest, self.unit)
        self.left, self.right = self.x + 12 + max(wide(written(mark, self.unit), 9) for mark in marks), self.x + self.width - 10

        def place(at, value):
            return self.across(at), self.bottom - (self.bottom - self.top) * min(value / marks[-1], 1)

        out += self.axes([(place(0, mark)[1], written(mark, self.unit)) for mark in marks])
        for color, values, base in drawn:
            for piece in self.pieces(values, base):
                points = simpler([place(*values[number]) for number in piece])
                if self.fill and len(points) > 1:
                    under = simpler([place(*base[number]) for number in piece])[::-1]
                    if points != under[::-1]:
                        out.append(f'<path d="M{path(points + under)}Z" fill="{color}" fill-opacity="{self.fill}"/>')
                if len(points) == 1:
                    out.append(f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="1.5" fill="{color}"/>')
                else:
                    out.append(f'<path d="M{path(points)}" fill="none" stroke="{color}" stroke-width="1.3" stroke-linejoin="round"/>')
        return out

    def pieces(self, values, base):
        """Numbers of values in a row: a line ends where one is missing, and where it would hide the one that it is stacked upon."""
        is_hidden = [value == under > 0 for (_, value), (_, under) in zip(values, base)]
        pieces = [[]]
        for number, (at, _) in enumerate(values):
            if number and at - values[number - 1][0] > self.asked.step * 1.5:
                pieces.append([])
            if not all(is_hidden[max(number - 1, 0) : number + 2]):
                pieces[-1].append(number)
            elif pieces[-1]:
                pieces.append([])
        return [piece for piece in pieces if piece]

    def cells(self, series):
        """A row for each bucket, the darker the more came into it than into the one below, as Prometheus counts them."""
        buckets = sorted((math.inf if name == "+Inf" else float(name), dict(values)) for name, values in series)
        self.bottom, self.left, self.right = self.y + self.height - 24, self.x + 60, self.x + self.width - 10
        height, width = (self.bottom - self.top) / len(buckets), self.across(self.asked.step) - self.left
        found, under = [], {}
        for number, (_, values) in enumerate(buckets):
            y = self.bottom - height * (number + 1)
            found += [(at, y, value - under.get(at, 0)) for at, value in values.items() if value - under.get(at, 0) > 0.01]
            under = values
        highest = max((value for *_, value in found), default=1)
        out = self.axes(
            (self.bottom - height * (number + 0.5), "more" if math.isinf(bound) else written(bound, self.unit))
            for number, (bound, _) in enumerate(buckets)
        )
        for at, y, value in found:
            out.append(
                f'<rect x="{self.across(at) - width:.1f}" y="{y + 0.5:.1f}" width="{width:.1f}" height="{height - 1:.1f}" '
                f'fill="{COLORS[0]}" fill-opacity="{0.2 + 0.8 * value / highest:.2f}"/>'
            )
        return out

    def stats(self, series):
        out, height = [], (self.y + self.height - self.top) / len(series)
        for number, (name, values) in enumerate(series):
            middle = self.top + height * (number + 0.5)
            out.append(label(self.x + self.width / 2, middle + 2, written(values[-1][1], self.unit), 26, COLORS[2], ' text-anchor="middle"'))
            out.append(label(self.x + self.width / 2, middle + 18, name, 10, SOFT, ' text-anchor="middle"'))
        return out

    def bars(self, series):
        out, height = [], min(30, (self.y + self.height - self.top - 8) / len(series))
        highest = max(values[-1][1] for _, values in series) or 1
        start = self.x + 16 + max(wide(name, 10) for name, _ in series)
        for number, (name, values) in enumerate(sorted(series, key=lambda one: -one[1][-1][1])):
            y, value = self.top + 6 + height * number, values[-1][1]
            length = (self.x + self.width - 70 - start) * value / highest
            out.append(label(self.x + 10, y + height / 2 + 3, name))
            out.append(f'<rect x="{start:.0f}" y="{y + 3:.0f}" width="{max(length, 1):.1f}" height="{height - 6:.0f}" fill="{COLORS[2]}"/>')
            out.append(label(start + length + 6, y + height / 2 + 3, written(value, self.unit), 10, TEXT))
        return out


def main(dashboard, url, seconds, step, picture):
    with open(dashboard, encoding="utf-8") as file:
        dashboard = json.load(file)
    asked = Prometheus(url, int(seconds), int(step))
    panels = [Panel(panel, asked, HEAD) for panel in dashboard["panels"]]
    drawn = [panel.svg() for panel in panels]
    height = int(max(panel.y + panel.height for panel in panels)) + MARGIN
    chosen = [f"{it['label']}: {it['current']['text']}" for it in dashboard["templating"]["list"] if "current" in it]
    chosen.append(f"Last {int(seconds) // 60} minutes, a sample every {step} seconds")
    about = f"The dashboard {dashboard['title']}, after {int(seconds) // 60} minutes of three nodes"
    with open(picture, "w", encoding="utf-8") as file:
        file.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
            f'font-family="system-ui, sans-serif">\n<title>{about}</title>\n<rect width="{WIDTH}" height="{height}" rx="6" fill="#f6f8fa"/>\n'
        )
        file.write(label(MARGIN + 3, 28, dashboard["title"], 18, TEXT, ' font-weight="600"') + "\n")
        file.write("".join(label(MARGIN + 90 + 110 * number, 28, words, 11) for number, words in enumerate(chosen)) + "\n")
        file.write("\n".join(drawn) + "\n</svg>\n")
    empty = [panel.title for panel in panels if panel.kind != "row" and not panel.has_data]
    print(f"{len(panels)} panels and rows, without data: {', '.join(empty) or 'none'}")


main(*sys.argv[1:])
