"""Complete code that loads an exported classifier and classifies a photo, one text for each format."""

from __future__ import annotations

import re
from pathlib import Path

from patchcast.files import write_text
from patchcast.interop.card import HUB_LIBRARIES, IMAGE_MODES, fenced

TRANSFORMERS = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
processor = AutoImageProcessor.from_pretrained("FOLDER")
with torch.no_grad():
    logits = model(**processor(Image.open("photo.jpg").convert(MODE), return_tensors="pt")).logits
print(model.config.id2label[int(logits.argmax())], float(logits.softmax(1).max()))"""
PREPARE = """\
import json

import numpy as np
LIBRARY
from PIL import Image, ImageOps

about = json.load(open("FOLDER/preprocessing.json"))
names = json.load(open("FOLDER/classes.json"))
channels, height, width = about["input_size"]


def prepare(file):
    image = Image.open(file).convert(MODE)
    if about["crop_mode"] == "squash":
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    else:
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
    return ((pixels - about["mean"]) / about["std"]).transpose(2, 0, 1)[None].astype(np.float32)

"""
ONNX = (
    PREPARE.replace("LIBRARY", "import onnxruntime")
    + """
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
[probabilities] = session.run(["probabilities"], {"images": prepare("photo.jpg")})
print(names[probabilities[0].argmax()], float(probabilities[0].max()))"""
)
TORCH = (
    PREPARE.replace("LIBRARY", "import torch")
    + """
model = torch.export.load("FOLDER/model.pt2").module()
logits, probabilities = model(torch.from_numpy(prepare("photo.jpg")))
print(names[int(probabilities[0].argmax())], float(probabilities[0].max()))"""
)
SERVING = {"transformers": TRANSFORMERS, "onnx": ONNX, "torch": TORCH}


def write_serving_card(readme: Path, out: Path, *, to: str, channels: int) -> None:
    """The classifier's README.md, with the code of another format."""
    text = readme.read_text(encoding="utf-8")
    code = SERVING[to].replace("MODE", repr(IMAGE_MODES.get(channels, "RGB")))
    block = fenced(code, "python")
    text = re.sub(r"```python\n.*?```", lambda _: block, text, count=1, flags=re.DOTALL)
    text = text.replace("library_name: timm", f"library_name: {HUB_LIBRARIES[to]}", 1)
    write_text(out / "README.md", text)
