"""Data: from any source of images to batches that are a function of (seed, step) only.

Reading order: `stores.py` (encoded images), `decode.py` (bytes to pixels), `images.py` (a dataset that skips
unreadable files), `transforms.py`, `sampling.py` (which image comes when). One file for each kind of source:
`folder.py`, `parquet.py`, `tar.py`, `hub.py`, `digits.py`; and `streamed.py` for what can only be read in order.
"""

from patchcast.data.batched import Cuts, Cutter, finish
from patchcast.data.images import Example, Images, Unreadable, open_images
from patchcast.data.journal import Journal
from patchcast.data.sampling import EpochSampler, EvalLoader, EvalSet, TrainSet, loader
from patchcast.data.source import Source, open_source
from patchcast.data.source_report import Report, check
from patchcast.data.statistics import channel_statistics
from patchcast.data.streamed import StreamSet
from patchcast.data.transforms import Augment, Evaluate, denormalise, denormalize

__all__ = [
    "Augment",
    "Cuts",
    "Cutter",
    "EpochSampler",
    "EvalLoader",
    "EvalSet",
    "Evaluate",
    "Example",
    "Images",
    "Journal",
    "Report",
    "Source",
    "StreamSet",
    "TrainSet",
    "Unreadable",
    "channel_statistics",
    "check",
    "denormalise",
    "denormalize",
    "finish",
    "loader",
    "open_images",
    "open_source",
]
