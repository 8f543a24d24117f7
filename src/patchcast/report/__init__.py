"""One run as one HTML file: `page.py` (the page), `charts.py` (curves as SVG), `pictures.py` (images as PNG inside it).

Nothing here depends on runs: `patchcast.commands.report` reads a run and assembles the page.
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
