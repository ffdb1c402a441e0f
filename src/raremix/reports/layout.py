"""Lays out tables, charts and sections, and fills the templates of the pages with them.

It knows no scores. Every chart is drawn twice, for wide screens and for narrow ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from raremix.errors import MissingExtraError, OptionError
from raremix.reports.charts import BarChart, LineChart, draw_bars, draw_lines

__all__ = [
    "NARROW",
    "WIDE",
    "Cell",
    "Section",
    "Table",
    "fill_template",
    "laid_out",
    "laid_out_sections",
    "percent",
    "require_extra",
]

Cell: TypeAlias = str | int | float | None

WIDE, NARROW = 900, 350
"""Widths of a chart in pixels; the page shows one of the two."""


@dataclass(frozen=True)
class Table:
    """Rows under headers. Numbers are aligned right; None and NaN are shown as a dash.

    Attributes:
        headers: One per column.
        rows: As many cells each as there are headers.
        title: Above the table.
        note: A sentence below it.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.headers):
                raise OptionError(
                    f"Table {self.title!r} expects {len(self.headers)} cells in each row, one for "
                    f"each header, got {len(row)}."
                )


@dataclass(frozen=True)
class Section:
    """A part of the page that the caller brings.

    Attributes:
        title: Its heading.
        items: Tables and charts, in order.
        text: A paragraph above them.
    """

    title: str
    items: Sequence[Table | BarChart | LineChart] = ()
    text: str = ""


def require_extra() -> None:
    """Check that a page can be written, before the work that would come before it.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise MissingExtraError('A report needs jinja2: pip install "raremix[report]".') from error


def fill_template(name: str, **values: Any) -> str:
    """Fill a template that lies beside this module; what is put in is text, and never markup."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("raremix.reports", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def laid_out_sections(
    sections: Sequence[Section],
) -> list[tuple[Section, list[dict[str, Any]]]]:
    """Sections with their items as the templates take them."""
    return [(section, [laid_out(item) for item in section.items]) for section in sections]


def laid_out(item: Table | BarChart | LineChart) -> dict[str, Any]:
    """An item as the templates take it: its cells as text, or its two drawings."""
    if isinstance(item, Table):
        numeric = [
            all(not isinstance(c := row[column], str) or c.endswith(" %") for row in item.rows)
            for column in range(len(item.headers))
        ]
        return {
            "kind": "table",
            "item": item,
            "headers": list(zip(item.headers, numeric, strict=True)),
            "rows": [
                [(_cell(cell), n) for cell, n in zip(r, numeric, strict=True)] for r in item.rows
            ],
        }
    if isinstance(item, BarChart):
        drawn = [draw_bars(item, width=width) for width in (WIDE, NARROW)]
    else:
        drawn = [draw_lines(item, width=width) for width in (WIDE, NARROW)]
    return {"kind": "chart", "item": item, "drawn": drawn, "legend": list(item.series)}


def _cell(value: Cell) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"  # noqa: RUF001
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, (int, np.integer)) else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in percent, rounded so that what is less than all never reads as all."""
    if share < 0.99:
        return f"{100 * share:.3g} %"
    # Rounded up, the rarest of a million would be rarer than everything.
    return f"{math.floor(share * 1e5) / 1e3:.3f} %" if share < 1 else "100 %"
