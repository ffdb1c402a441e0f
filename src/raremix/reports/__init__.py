"""Results as one HTML page that can be looked at anywhere, for ever."""

from raremix.reports.charts import BarChart, LineChart
from raremix.reports.files import write_text
from raremix.reports.report import Section, Table, write_report

__all__ = ["BarChart", "LineChart", "Section", "Table", "write_report", "write_text"]
