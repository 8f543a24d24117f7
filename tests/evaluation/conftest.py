from __future__ import annotations

import pytest
import timm
import torch
from sklearn.datasets import load_digits

from patchcast.backbones.sequence import ViT
from patchcast.evaluation import Features


@pytest.fixture(scope="session")
def digits() -> tuple[Features, Features]:
    """Pixels of scikit-learn's digits, shuffled: 1,200 to train on and 597 to test on."""
    source = load_digits()
    order = torch.randperm(len(source.target), generator=torch.Generator().manual_seed(0))
    x, labels = torch.tensor(source.data).float()[order], torch.tensor(source.target)[order]
    return Features(x[:1200], labels[:1200]), Features(x[1200:], labels[1200:])


@pytest.fixture
def backbone() -> ViT:
    torch.manual_seed(0)
    return ViT(timm.create_model("test_vit", img_size=32, patch_size=8))


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ten images in batches of 4, 4 and 2."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(10, 3, 32, 32, generator=generator), torch.arange(10) % 3
    return list(zip(images.split(4), labels.split(4), strict=True))
