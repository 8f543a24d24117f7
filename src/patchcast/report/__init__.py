"""A run, a fine-tuned model, or several of them as one HTML file.

`run_page.py`, `model_page.py` and `several_page.py` compose a page; `page.py`, `charts.py` and `pictures.py` are its
parts, whose HTML is in Jinja templates.
"""

from patchcast.report.charts import Curve, line_chart
from patchcast.report.page import Html, Section, Tile, commands, definitions, html_table, page
from patchcast.report.pictures import data_uri, strips

__all__ = [
    "Curve",
    "Html",
    "Section",
    "Tile",
    "commands",
    "data_uri",
    "definitions",
    "html_table",
    "line_chart",
    "page",
    "strips",
]
