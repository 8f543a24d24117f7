"""JPEGs that a GPU decodes: everything around its decoder, with torchvision's on the CPU in its place."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import decode_jpeg

from patchcast.cli import main
from patchcast.data import Augment, Cuts, Cutter, EpochSampler, TrainSet, loader, open_images
from patchcast.data.batched import EncodedCut, EncodedCuts
from patchcast.data.decode import baseline_jpeg
from patchcast.data.jpeg_batches import JPEGSet
from patchcast.training.stream import Stream

AUGMENT = Augment((16, 24), (0.3, 1.0), True, (0.5,) * 3, (0.2,) * 3)
CPU = torch.device("cpu")
TURNED = Image.Exif()
TURNED[0x0112] = 6


def photo(rows: int = 40, cols: int = 60, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(rows)
    return Image.fromarray(random.integers(256, size=(rows, cols, 3), dtype=np.uint8)).convert(mode)


def jpeg(image: Image.Image, **how: Any) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **how)
    return file.getvalue()


FILES: dict[str, tuple[bytes, bool]] = {
    "plain.jpg": (jpeg(photo()), True),
    "colors in full.jpg": (jpeg(photo(41), subsampling=0), True),
    "other size.jpg": (jpeg(photo(50, 33)), True),
    "progressive.jpg": (jpeg(photo(42), progressive=True), False),
    "turned.jpg": (jpeg(photo(43), exif=TURNED), False),
    "gray.jpg": (jpeg(photo(44, mode="L")), False),
    "cmyk.jpg": (jpeg(photo(45, mode="CMYK")), False),
    "large.jpg": (jpeg(photo(500, 600)), True),
    "png.jpg": (b"", False),
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, (content, _) in FILES.items():
        if content:
            (folder / name).write_bytes(content)
    photo(46).save(folder / "png.jpg", "PNG")
    return folder


def on_cpu(files: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
    """What torchvision does with a list on the CPU."""
    return decode_jpeg(files, mode, device)


def sets(folder: Path, decode: Any = on_cpu, **how: Any) -> tuple[TrainSet, JPEGSet]:
    """Each with images of its own: what one finds to be unreadable, the other must find too."""
    plain, files = (open_images(str(folder), channels=3, **how) for _ in range(2))
    return TrainSet(plain, Cutter(AUGMENT), seed=3), JPEGSet(files, Cutter(AUGMENT), seed=3, decode=decode)


def assert_same(plain: TrainSet, files: JPEGSet, workers: int = 0) -> None:
    """All images of two epochs, as a run's loader gives them."""
    count = len(plain)
    batches, encoded = (
        loader(one, EpochSampler(count, count, seed=0, steps=2), workers) for one in (plain, files)
    )  # fmt: skip
    for (cuts, labels), batch in zip(batches, encoded, strict=True):
        moved, same = files.move(batch, CPU)
        assert torch.equal(labels, same)
        assert torch.equal(cuts.sizes, moved.sizes)
        assert torch.equal(cuts.is_flipped, moved.is_flipped)
        assert torch.equal(cuts.pixels, moved.pixels)
        assert cuts.size == moved.size


@pytest.mark.parametrize("name", FILES)
def test_which_files_stay_encoded(name: str) -> None:
    content, is_encoded = FILES[name]
    assert (baseline_jpeg(bytearray(content), 3) is not None) == is_encoded


def test_what_does_not_end_as_a_jpeg_is_decoded_on_the_cpu() -> None:
    content = FILES["plain.jpg"][0]
    assert baseline_jpeg(bytearray(content), 3) == (40, 60)
    assert baseline_jpeg(bytearray(content + bytes(3)), 3) == (40, 60)
    assert baseline_jpeg(bytearray(content[:-100]), 3) is None
    assert baseline_jpeg(bytearray(jpeg(photo(44, mode="L"))), 1) == (44, 60)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_the_ordinary_loader(photos: Path, workers: int) -> None:
    plain, files = sets(photos)
    kinds = {open_name(files, index): type(files[0, index][0]) for index in range(len(files))}
    assert {name for name, kind in kinds.items() if kind is EncodedCut} >= {"plain.jpg", "other size.jpg"}
    assert all(kind is not EncodedCut for name, kind in kinds.items() if not FILES[name][1])
    assert kinds["large.jpg"] is not EncodedCut, "its crop is more than sixteen times as large as what comes out"
    assert_same(plain, files, workers)


def open_name(files: JPEGSet, index: int) -> str:
    return Path(files.images.store.path(int(files.images.positions[index]))).name


def test_a_batch_without_files_is_a_plain_one(tmp_path: Path) -> None:
    photo().save(tmp_path / "one.png")
    photo(46).save(tmp_path / "two.png")
    plain, files = sets(tmp_path)
    [batch, _] = loader(files, EpochSampler(2, 2, seed=0, steps=2), 0)
    assert isinstance(batch[0], Cuts)
    assert_same(plain, files)


def refuses(files: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
    raise RuntimeError("Error while decoding JPEG images: 5")


def turns(files: list[Tensor], mode: Any, device: torch.device) -> list[Tensor]:
    return [image.transpose(1, 2) for image in on_cpu(files, mode, device)]


@pytest.mark.parametrize("decode", [refuses, turns])
def test_what_the_decoder_refuses_is_decoded_on_the_cpu(photos: Path, decode: Any) -> None:
    assert_same(*sets(photos, decode))


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_damaged_file_is_replaced_by_the_next_readable_one(photos: Path) -> None:
    """Its header and its end are whole, so that only the decoder finds out; without a decoder that does, so does the
    CPU's."""
    content = bytearray(FILES["plain.jpg"][0])
    start = content.index(b"\xff\xda")
    del content[start + 14 : -2]
    (photos / "plain.jpg").write_bytes(content)
    plain, files = sets(photos, refuses)
    assert baseline_jpeg(content, 3) == (40, 60)
    assert_same(plain, files)


def test_too_many_pixels(photos: Path) -> None:
    plain, files = sets(photos, max_pixels=3000)
    assert len(files) < len(FILES)
    assert_same(plain, files)


def test_a_stream_decodes_ahead(photos: Path) -> None:
    plain, files = sets(photos)
    count = len(plain)
    decoding = Stream(files, batch_size=count, steps=4, seed=0, workers=0, ahead=True, move=files.move)
    usual = Stream(plain, batch_size=count, steps=4, seed=0, workers=0)
    for (cuts, _), (others, _) in zip(decoding, usual, strict=True):
        assert torch.equal(cuts.pixels, others.pixels)


def test_files_travel_in_one_tensor(photos: Path) -> None:
    _, files = sets(photos)
    [(batch, _)] = loader(files, EpochSampler(len(files), len(files), seed=0, steps=1), 0)
    assert isinstance(batch, EncodedCuts)
    assert batch.pin_memory() is batch
    assert sum(batch.lengths) == len(batch.contents)
    assert [cut.content for cut in batch.cuts if isinstance(cut, EncodedCut)] == [None] * len(batch.lengths)


def test_without_a_gpu_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    command = ["pretrain", "--method", "mae", "--model", "test_vit", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*command, "--decode", "gpu"]) == 2
    assert "decode gpu needs a GPU of NVIDIA's that torch can use: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
