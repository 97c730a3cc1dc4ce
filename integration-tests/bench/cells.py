"""What the sections of docs/performance.md are made of: cells and tables of a race."""

import contenders
from lab import table
from race import median, ratio


def cell(row, name):
    """A contender's median, and its ratio to Updraft's; or why it has none."""
    value = median(row, name)
    if value is None:
        return next(iter(row["times"].get(name, {"-": ""})))
    against = ratio(row, name)
    return time_of(value) + (f" ({against:.2f})" if against and name != "updraft" else "")


def time_of(value):
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def names_in(rows):
    return [name for name in contenders.NAMES if any(name in row["times"] for row in rows)]


def races(rows, what, last):
    """A table of statements and contenders. `last` gives the cell of a contender in a last line, which says `what`."""
    names = names_in(rows)
    lines = [[row["statement"], *(cell(row, name) for name in names)] for row in rows]
    lines.append([f"*{what}*", *(last(name) for name in names)])
    return table(["", *(contenders.NAMES[name] for name in names)], lines)


def others(figures):
    """A hint where the machine was not quiet."""
    return f"Meanwhile other processes used {figures['foreign_cores']:.2f} cores.\n" if figures["foreign_cores"] >= 0.05 else ""


def holes(figures):
    return "".join(f"{contenders.NAMES.get(name, name)} is missing: {why}.\n" for name, why in figures["absent"].items())
