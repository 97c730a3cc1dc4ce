"""Plots as SVG: bars side by side, and lines over logarithmic axes. Written by hand, since that is less than a plotting library."""

import html
import math

COLOURS = ("#d1495b", "#8d96a3", "#2e4057", "#66a182", "#edae49", "#7a5195", "#00798c")
FONT = 'font-family="sans-serif" font-size="12"'
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 56, 40
HEIGHT, WIDTH_MIN = 360, 720
LETTER = 7  # Of a label, about.


def text(x, y, content, anchor="start", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT} {more}>{html.escape(str(content))}</text>'


def short(value):
    """0.1, 10, 1,000, 1e+06: the marks of an axis."""
    return f"{value:,.0f}" if 1 <= value < 1e5 else f"{value:g}"


class Axis:
    """Powers of ten between `low` and `high`, from pixel `begin` to `end`."""

    def __init__(self, values, begin, end):
        self.low, self.high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        self.high = max(self.high, self.low + 1)
        self.begin, self.end = begin, end

    def __call__(self, value):
        return self.begin + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def marks(self):
        return [10.0**power for power in range(self.low, self.high + 1)]


def legend(name):
    """Pixels that a name takes in the legend."""
    return 30 + LETTER * len(name)


def frame(title, unit, width, series, upright):
    """Title, legend and the marks of the upright axis."""
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" viewBox="0 0 {width} {HEIGHT}">']
    parts += [f'<rect width="{width}" height="{HEIGHT}" fill="white"/>', text(LEFT, 18, f"{title}: {unit}, logarithmic", more='font-weight="bold"')]
    place = LEFT
    for number, name in enumerate(series):
        parts += [f'<rect x="{place}" y="28" width="10" height="10" fill="{COLOURS[number % len(COLOURS)]}"/>', text(place + 14, 37, name)]
        place += legend(name)
    for mark in upright.marks():
        parts += [f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{upright(mark):.1f}" y2="{upright(mark):.1f}" stroke="#ddd"/>', text(LEFT - 6, upright(mark) + 4, short(mark), "end")]
    return parts


def bars(title, unit, labels, series):
    """For each label a bar of each series: {name: [value or None for each label]}."""
    label = max(12 + 8 * len(series), 10 + LETTER * max(map(len, labels)))
    width = LEFT + RIGHT + max(WIDTH_MIN, len(labels) * label, sum(map(legend, series)))
    found = [value for values in series.values() for value in values if value]
    if not found:
        return None
    upright = Axis(found, HEIGHT - BOTTOM, TOP)
    parts, group = frame(title, unit, width, series, upright), (width - LEFT - RIGHT) / len(labels)
    bar = (group - 12) / len(series)
    for place, label in enumerate(labels):
        left = LEFT + place * group + 6
        for number, values in enumerate(series.values()):
            if values[place]:
                top = upright(values[place])
                parts.append(f'<rect x="{left + number * bar:.1f}" y="{top:.1f}" width="{bar:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(text(left + (group - 12) / 2, HEIGHT - BOTTOM + 18, label, "middle"))
    return "\n".join([*parts, "</svg>\n"])


def lines(title, unit, series):
    """{name: [(x, y), ...]}"""
    points = [(x, y) for values in series.values() for x, y in values if x and y]
    if not points:
        return None
    width = LEFT + RIGHT + max(WIDTH_MIN, sum(map(legend, series)))
    upright, across = Axis([y for _, y in points], HEIGHT - BOTTOM, TOP), Axis([x for x, _ in points], LEFT, width - RIGHT - 8)
    parts = frame(title, unit, width, series, upright)
    parts += [text(across(mark), HEIGHT - BOTTOM + 18, short(mark), "middle") for mark in across.marks()]
    for number, values in enumerate(series.values()):
        places = " ".join(f"{across(x):.1f},{upright(y):.1f}" for x, y in values if x and y)
        parts.append(f'<polyline points="{places}" fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>\n"])
