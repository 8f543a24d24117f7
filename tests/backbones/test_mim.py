"""The names of timm's issue 2540, on every class that has a place for a mask token."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from torch import nn

from patchcast.backbones import CannotError
from patchcast.mim import MaskedImageModelingWrapper, backbone_of, patch_model_for_mim
from tests.backbones.zoo import BY_NAME, able, assert_same, build, flat, images_for, representative


@pytest.mark.parametrize("name", representative(able("replace")))
def test_every_class(name: str) -> None:
    """Whole images pass as through `forward_features`; masked pixels reach nothing, and the mask token is learned."""
    model = build(name, **BY_NAME[name]).model
    keys = list(model.state_dict())
    wrapper = MaskedImageModelingWrapper(model, 0.5, "learnable").eval()
    assert wrapper.backbone is model
    assert list(model.state_dict()) == keys
    backbone = backbone_of(model)
    images = images_for(backbone)
    with torch.no_grad():
        assert_same(model.forward_stages(model.embed(images)), model.forward_features(images))
    output, mask, ids_restore = wrapper(images, generator=torch.Generator().manual_seed(0))
    grid = backbone.grid(images)
    assert (mask.sum(dim=1) == max(1, int(grid.units * 0.5))).all()  # 1 where kept
    hidden = mask.view(len(images), 1, *grid) == 0
    other = torch.where(
        hidden.repeat_interleave(backbone.stride[0], 2).repeat_interleave(backbone.stride[1], 3), 5.0, images
    )
    again = wrapper(other, generator=torch.Generator().manual_seed(0))[0]
    for one, two in zip(flat(output), flat(again), strict=True):
        assert torch.equal(one, two)
    sum(each.square().sum() for each in flat(output)).backward()
    assert wrapper.mask_token.grad.abs().sum() > 0
    kept = torch.cat([(row == 1).nonzero()[:, 0] for row in mask]).view(len(images), -1)
    masked = torch.cat([(row == 0).nonzero()[:, 0] for row in mask]).view(len(images), -1)
    shuffled = torch.cat([kept, masked], dim=1)
    assert torch.equal(shuffled.gather(1, ids_restore), torch.arange(grid.units).expand_as(shuffled))


def test_a_copy_has_methods_of_its_own() -> None:
    model = patch_model_for_mim(timm.create_model("test_vit", img_size=32)).eval()
    images = torch.randn(1, 3, 32, 32)
    other = copy.deepcopy(model)
    nn.init.zeros_(other.norm.weight)
    nn.init.zeros_(other.norm.bias)
    assert not other.forward_stages(other.embed(images)).any()
    assert model.forward_stages(model.embed(images)).any()
    assert patch_model_for_mim(model) is model  # again, and nothing changes
    file = io.BytesIO()
    torch.save(model.state_dict(), file)


def test_zero_token_and_output_alone() -> None:
    wrapper = MaskedImageModelingWrapper(timm.create_model("test_vit", img_size=64), 0.75)
    assert not [name for name, _ in wrapper.named_parameters() if "mask" in name]
    output = wrapper(torch.randn(2, 3, 64, 64), return_mask=False)
    assert output.shape == (2, 17, 64)
    assert wrapper.mask_ratio == 0.75


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_token_init is 'zero' or 'learnable'; got 'ones'"):
        MaskedImageModelingWrapper(timm.create_model("test_vit"), 0.5, "ones")
    with pytest.raises(CannotError, match="'replace'"), pytest.warns(UserWarning, match="no adapter knows"):
        MaskedImageModelingWrapper(timm.create_model("test_convnext"), 0.5)
    model = timm.create_model("test_vit")
    model.embed = lambda images: images
    with pytest.raises(ValueError, match="already has a method 'embed'"):
        patch_model_for_mim(model)
