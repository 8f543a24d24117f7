"""Weights to start from, wherever they come from: a name, a hub, a folder, a file or a run."""

from patchcast.starts.fitting import StartReport, fit, fit_parts
from patchcast.starts.opening import Started, load_start
from patchcast.starts.reading import read_start
from patchcast.starts.start import Start

__all__ = ["Start", "StartReport", "Started", "fit", "fit_parts", "load_start", "read_start"]
