"""Run by test_processes.py in a process of its own: the shape checks of the test suite break the stricter tracer."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from patchcast.interop.graph import save_onnx, save_torch
from tests.backbones.zoo import images_for, small

# onnxruntime does not load what the exporter makes of them; the user is told so.
WITHOUT_ONNX = {"gemma4_vit_167m_enc", "gemma4_vit_167m"}


def check(name: str) -> None:
    """Both files are compared with the backbone as they are written, on batches of two sizes."""
    backbone = small(name).eval()
    batches = [images_for(backbone, 1), images_for(backbone, 3)]
    with tempfile.TemporaryDirectory() as folder:
        save_torch(backbone, Path(folder, "encoder.pt2"), batches)
        if name in WITHOUT_ONNX:
            with pytest.raises(ValueError, match="cannot be exported by ONNX"):
                save_onnx(backbone, Path(folder, "encoder.onnx"), batches)
        else:
            save_onnx(backbone, Path(folder, "encoder.onnx"), batches)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for each in sys.argv[1:]:
        check(each)
        print(each, "exported", flush=True)
