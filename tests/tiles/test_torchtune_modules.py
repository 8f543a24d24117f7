"""torchtune's constructor of parts, with torchtune's parts and with others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchcast.interop.torchtune_modules import TorchtuneVisionTransformer
from tests.peers import wake


def layer() -> nn.Module:
    return nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True, norm_first=True)


class Positions(nn.Module):
    """Of tokens, or of tiles: nothing that depends on the aspect ratio but a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor, aspect_ratio: Tensor) -> Tensor:
        return x + self.table * aspect_ratio.sum(dim=1).view(-1, 1, 1, 1)


SMALL: dict[str, Any] = {"patch_size": 8, "tile_size": 32, "num_layers": 3, "embed_dim": 24}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"out_indices": [2, 0]},
        {"append_cls_token": True, "in_channels": 1},
        {"pre_tile_pos_embed": True, "post_tile_pos_embed": True, "cls_projection": True, "out_indices": [1]},
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", ["torchtune's", "others"])
def test_the_same_numbers_and_gradients(parts: str, more: dict[str, Any]) -> None:
    pytest.importorskip("torchtune", reason="the peer here: pip install patchcast[peers]")
    from torchtune.models.clip._component_builders import clip_vision_encoder
    from torchtune.modules.vision_transformer import CLSProjection, VisionTransformer

    built = clip_vision_encoder(32, 8, 24, 1, 3)
    if parts == "others":
        given = {"layer": layer(), "token_pos_embedding": Positions()}
        tiles = {"pre_tile_pos_embed": Positions(), "post_tile_pos_embed": Positions()}
    else:
        given = {"layer": built.layers[0], "token_pos_embedding": built.token_pos_embedding}
        tiles = {name: getattr(built, name) for name in ("pre_tile_pos_embed", "post_tile_pos_embed")}
    tiles["cls_projection"] = CLSProjection(24, 5)
    given |= {name: tiles.get(name, value) for name, value in more.items()}
    theirs, ours = VisionTransformer(**SMALL, **given), TorchtuneVisionTransformer(**SMALL, **given)
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    wake(theirs)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 2, 4, more.get("in_channels", 3), 32, 32)
    aspect_ratio = torch.tensor([[[2, 2], [1, 3]], [[4, 1], [1, 1]]])
    (x, hidden), (their_x, their_hidden) = ours(images, aspect_ratio), theirs(images, aspect_ratio)
    for one, two in zip([x, *hidden], [their_x, *their_hidden], strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
    mine, peers = dict(ours.named_parameters()), dict(theirs.named_parameters())
    gradients = torch.autograd.grad(x.square().mean(), list(mine.values()), allow_unused=True)
    expected = torch.autograd.grad(their_x.square().mean(), [peers[name] for name in mine], allow_unused=True)
    for name, one, two in zip(mine, gradients, expected, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4, msg=name)


def test_the_last_hidden_state_and_one_tile() -> None:
    model = TorchtuneVisionTransformer(**SMALL, layer=layer(), token_pos_embedding=Positions(), out_indices=[3])
    x, (last,) = model(torch.randn(1, 1, 1, 3, 32, 32))
    torch.testing.assert_close(model.ln_post(last), x)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tile_size": 0}, "tile_size must be > 0"),
        ({"patch_size": -1}, "patch_size must be > 0"),
        ({"tile_size": 36}, "divisible by patch_size; got 36 and 8"),
        ({"out_indices": [0, 1, 2, 3]}, r"len\(out_indices\) must be <= num_layers; got \[0, 1, 2, 3\] and 3"),
        ({"out_indices": [5]}, "out_indices must be in 0..3"),
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TorchtuneVisionTransformer(**{**SMALL, "layer": layer(), "token_pos_embedding": Positions(), **wrong})


def test_several_tiles_need_their_aspect_ratio() -> None:
    model = TorchtuneVisionTransformer(**SMALL, layer=layer(), token_pos_embedding=Positions())
    with pytest.raises(ValueError, match="aspect_ratio is needed"):
        model(torch.zeros(1, 1, 2, 3, 32, 32))
