"""Results as one HTML page that can be looked at anywhere, for ever."""

from raremix.reports.charts import BarChart, LineChart
from raremix.reports.driving import write_driving_report
from raremix.reports.files import write_text
from raremix.reports.layout import Section, Table, require_extra
from raremix.reports.pictures import Thumbnails
from raremix.reports.report import write_report
from raremix.reports.summary import score_quantiles

__all__ = [
    "BarChart",
    "LineChart",
    "Section",
    "Table",
    "Thumbnails",
    "require_extra",
    "score_quantiles",
    "write_driving_report",
    "write_report",
    "write_text",
]
