"""Equal to torchtune 0.6.1, number by number: outputs, hidden states, gradients, and positions resampled on load."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchcast.interop.torchtune_weights import TorchtuneViT, load_torchtune, to_torchtune
from tests.peers import wake

SMALL = {"tile_size": 32, "patch_size": 8, "embed_dim": 24, "num_layers": 3, "num_heads": 3}
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "hidden states": {"out_indices": [0, 2]},
    "like Llama 3.2": {"attn_bias": False, "activation": nn.GELU, "out_indices": [1]},
    "projection": {"output_cls_projection": True, "cls_output_dim": 7},
    "class token last": {"append_cls_token": True, "out_indices": [0]},
    "no positions of tiles": {"use_tile_pos_embed": False},
    "one tile": {"max_num_tiles": 1},
    "two tiles, gray": {"max_num_tiles": 2, "in_channels": 1},
}


def peer(**kwargs: Any) -> nn.Module:
    """torchtune's; imported here, because it takes seconds."""
    clip = pytest.importorskip("torchtune.models.clip._component_builders", reason="needs the peers extra")
    return clip.clip_vision_encoder(**{**SMALL, **kwargs})


def pair(**kwargs: Any) -> tuple[TorchtuneViT, nn.Module]:
    """Ours with the weights of theirs, in which no gate is shut."""
    theirs = wake(peer(**kwargs))
    ours = TorchtuneViT(**{**SMALL, **kwargs})
    load_torchtune(ours, theirs.state_dict())
    return ours.eval(), theirs.eval()


def batch(kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two samples of three images, with padded tiles that are not zero, and one padded image."""
    most, channels = kwargs.get("max_num_tiles", 4), kwargs.get("in_channels", 3)
    shapes = {4: [[2, 2], [1, 3], [1, 1], [4, 1], [3, 1], [0, 0]], 2: [[1, 2], [2, 1], [1, 1]] * 2, 1: [[1, 1]] * 6}
    return torch.randn(2, 3, most, channels, 32, 32), torch.tensor(shapes[most]).view(2, 3, 2)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers(way: str) -> None:
    ours, theirs = pair(**WAYS[way])
    tiles, shapes = batch(WAYS[way])
    (x, hidden), (their_x, their_hidden) = ours(tiles, shapes), theirs(tiles.clone(), shapes)
    assert len(hidden) == len(their_hidden) == len(WAYS[way].get("out_indices", []))
    for one, two in zip([x, *hidden], [their_x, *their_hidden], strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_the_same_gradients() -> None:
    ours, theirs = pair(out_indices=[1])
    tiles, shapes = batch({})
    for model in (ours, theirs):
        x, hidden = model(tiles.clone(), shapes)
        (x.square().mean() + hidden[0].square().mean()).backward()
    with torch.no_grad():  # gradients go by the names of weights when they take their place
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)
    found = to_torchtune(ours)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_one_tile_needs_no_aspect_ratio() -> None:
    ours, theirs = pair()
    tiles = torch.randn(2, 1, 1, 3, 32, 32)
    torch.testing.assert_close(ours(tiles)[0], theirs(tiles)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_there_and_back(way: str) -> None:
    ours, theirs = pair(**WAYS[way])
    state = to_torchtune(ours)
    fresh = peer(**WAYS[way])
    fresh.load_state_dict(state, strict=True)
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], each) for name, each in theirs.state_dict().items())


@pytest.mark.parametrize(
    "other", [{"tile_size": 48}, {"tile_size": 16}, {"max_num_tiles": 3}, {"tile_size": 48, "max_num_tiles": 6}]
)
def test_positions_are_resampled_on_load_as_torchtune_does(other: dict[str, int]) -> None:
    saved = wake(peer()).state_dict()
    theirs = peer(**other)
    theirs.load_state_dict(dict(saved))
    ours = TorchtuneViT(**{**SMALL, **other})
    load_torchtune(ours, saved)
    found = to_torchtune(ours)
    for name, each in theirs.state_dict().items():
        torch.testing.assert_close(found[name], each, atol=1e-6, rtol=0, msg=name)


def test_resampling_with_the_class_token_last_keeps_it_apart() -> None:
    """torchtune takes the first row for the class token's, which is a patch's there."""
    saved = TorchtuneViT(**SMALL, append_cls_token=True)
    ours = TorchtuneViT(**{**SMALL, "tile_size": 48}, append_cls_token=True)
    load_torchtune(ours, to_torchtune(saved))
    name = "token_pos_embedding.local_token_positional_embedding"
    assert torch.equal(to_torchtune(ours)[name][-1], to_torchtune(saved)[name][-1])


def test_the_projection_reads_the_class_token_where_it_is_last() -> None:
    ours, theirs = pair(append_cls_token=True, output_cls_projection=True, cls_output_dim=5)
    tiles, shapes = batch({})
    weight = theirs.cls_projection.weight
    theirs.cls_projection = None
    every = theirs(tiles.clone(), shapes)[0]
    torch.testing.assert_close(ours(tiles, shapes)[0][..., 0, :], every[..., -1, :] @ weight, atol=1e-5, rtol=0)


def test_padding_can_be_masked_out_of_the_same_weights() -> None:
    ours, theirs = pair()
    masked = TorchtuneViT(**SMALL, sees_padding=False).eval()
    load_torchtune(masked, theirs.state_dict())
    tiles, shapes = torch.randn(1, 1, 4, 3, 32, 32), torch.tensor([[[1, 3]]])
    other = tiles.clone()
    other[:, :, 3] = torch.randn(3, 32, 32)
    assert (ours(tiles, shapes)[0] - ours(other, shapes)[0])[:, :, :3].abs().max() > 1e-3
    assert torch.equal(masked(tiles, shapes)[0][:, :, :3], masked(other, shapes)[0][:, :, :3])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tile_size": 0}, "tile_size must be > 0"),
        ({"patch_size": 0}, "patch_size must be > 0"),
        ({"tile_size": 36}, "tile_size must be divisible by patch_size; got 36 and 8"),
        ({"num_heads": 5}, "embed_dim must be divisible by num_heads; got 24 and 5"),
        ({"out_indices": [0, 1, 2, 3, 4]}, r"len\(out_indices\) must be <= num_layers; got \[0, 1, 2, 3, 4\] and 3"),
        ({"out_indices": [-1]}, "out_indices must be in 0..3"),
    ],
)
def test_what_is_wrong_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TorchtuneViT(**{**SMALL, **wrong})


def test_states_of_other_models_are_refused() -> None:
    model = TorchtuneViT(**SMALL)
    state = to_torchtune(model)
    with pytest.raises(ValueError, match=r"it lacks conv\.weight, and has other in addition"):
        load_torchtune(model, {**{k: v for k, v in state.items() if k != "conv.weight"}, "other": state["conv.weight"]})
    local = "token_pos_embedding.local_token_positional_embedding"
    with pytest.raises(ValueError, match="its 14 patches per tile are not a square"):
        load_torchtune(model, {**state, local: torch.zeros(15, 24)})
    with pytest.raises(ValueError, match=r"conv\.weight has the shape"):
        load_torchtune(model, {**state, "conv.weight": torch.zeros(24, 3, 4, 4)})
    with pytest.raises(ValueError, match=r"has the shape \(17, 12\), and the model \(17, 24\)"):
        load_torchtune(model, {**state, local: torch.zeros(17, 12)})
