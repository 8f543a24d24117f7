"""Images whose every pixel has a class: files, boxes and collages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchcast.data import Evaluate
from patchcast.data.masks import Collages, MaskedImages, fit_mask, open_masked

EVALUATE = Evaluate((16, 16), (0.5,) * 3, (0.5,) * 3)


def opened(folder: Path, split: str = "train") -> MaskedImages:
    return open_masked(folder, split=split, channels=3, transform=EVALUATE, size=(16, 16))


def draw(folder: Path, names: list[str], *, mode: str = "L") -> None:
    """Images whose left half is dark and whose right is bright, and masks that say so."""
    for name in names:
        image, mask = folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png"
        for file in (image, mask):
            file.parent.mkdir(parents=True, exist_ok=True)
        halves = np.repeat(np.repeat(np.array([[0, 1]], dtype=np.uint8), 24, axis=0), 24, axis=1)
        Image.fromarray(halves * 200).convert("RGB").save(image, quality=95)
        Image.fromarray(halves).convert(mode).save(mask)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_cut_and_resized_with_their_images(mode: str, tmp_path: Path) -> None:
    draw(tmp_path, ["train/a", "train/b", "test/c"], mode=mode)
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert (len(train), len(test)) == (2, 1)
    image, mask = train[1]
    assert image.shape == (3, 16, 16)
    assert torch.equal(mask, (image[0] > 0).long()), "48x24 is cut to its middle, half of which is bright"


def test_a_folder_without_splits_is_split_by_name(tmp_path: Path) -> None:
    draw(tmp_path, list("abcdefghij"))
    assert [file.stem for file, _ in opened(tmp_path).files] == list("abcdefgh")
    assert [file.stem for file, _ in opened(tmp_path, "test").files] == ["i", "j"]


def test_boxes_in_cocos_format(tmp_path: Path) -> None:
    draw(tmp_path, list("abcde"))
    for mask in (tmp_path / "masks").iterdir():
        mask.unlink()
    (tmp_path / "masks").rmdir()
    found = {
        "images": [{"id": 9, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 9, "category_id": 70, "bbox": [24, 0, 24, 24]}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 70, "name": "bright"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(found))
    images = opened(tmp_path)
    assert images.class_names == ["background", "cat", "bright"]
    image, mask = images[0]
    assert torch.equal(mask, 2 * (image[0] > 0).long())
    assert int(images[1][1].sum()) == 0, "no box, nothing but background"
    (tmp_path / "boxes.json").write_text("[]")
    with pytest.raises(ValueError, match="is not in COCO's format"):
        opened(tmp_path)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a folder 'images', and next to it"):
        opened(tmp_path)
    draw(tmp_path, ["a", "b"])
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"the image b.jpg has no mask"):
        opened(tmp_path)
    Image.new("RGB", (48, 24)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(ValueError, match="a mask has one channel"):
        opened(tmp_path)[1]
    Image.new("L", (10, 10)).save(tmp_path / "masks" / "b.png")
    with pytest.raises(ValueError, match="a mask has its image's size"):
        opened(tmp_path)[1]


def test_masks_follow_evaluate_at_any_size() -> None:
    """A mask that is drawn as an image goes the same way, but for the borders that resizing blurs."""
    for rows, cols in ((40, 40), (33, 57), (12, 10)):
        mask = torch.zeros(rows, cols, dtype=torch.long)
        mask[rows // 3 :, cols // 4 :] = 1
        image = (255 * mask).to(torch.uint8).expand(3, -1, -1)
        for squash in (False, True):
            evaluate = Evaluate((16, 16), (0.5,) * 3, (0.5,) * 3, squash=squash)
            agree = (evaluate(image)[0] > 0).long() == fit_mask(mask, (16, 16), squash=squash)
            assert agree.double().mean() > 0.9


def test_collages_hold_the_pixels_of_their_classes() -> None:
    images = [(torch.full((3, 12, 12), float(place)), place % 5) for place in range(20)]
    collages = Collages(images, count=6, pieces=3)
    for image, mask in (collages[place] for place in range(len(collages))):
        assert len(mask.unique()) == 3
        assert torch.equal(image[0].long() % 5, mask)
        assert torch.equal(image[0], image[2])
    assert not torch.equal(collages[0][1], collages[1][1])
    assert torch.equal(collages[3][0], Collages(images, count=6, pieces=3)[3][0])
    assert not torch.equal(collages[3][1], Collages(images, count=6, pieces=3, seed=1)[3][1])
