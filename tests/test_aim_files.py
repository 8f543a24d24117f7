"""AIM's published sizes and format. The reference forward is written from the paper, apart from timm and from ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from patchcast.backbones import Backbone, Grid, wrap
from patchcast.backbones.aim_network import AIM_SIZES, ARCHITECTURE, aim_args, aim_vit
from patchcast.evaluation import extract_tokens
from patchcast.interop import load_aim, load_aim_probe
from patchcast.plans import RasterOrder
from patchcast.positions import sincos_positions

WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 32, 3, 4, 4, 16, 5
GRID = Grid(SIDE // PATCH, SIDE // PATCH)


@pytest.mark.parametrize(("size", "billions"), [("0.6B", 0.68), ("1B", 1.21), ("3B", 2.72), ("7B", 6.45)])
def test_published_sizes(size: str, billions: float) -> None:
    """12 * width^2 parameters a block: what the paper calls 0.6B has 0.68 billion, and what it calls 7B has 6.45."""
    with torch.device("meta"):
        vit = aim_vit(size)
        plain = timm.create_model(ARCHITECTURE, num_classes=0, **aim_args(size))
    assert plain.state_dict().keys() == vit.state_dict().keys()
    trained = sum(each.numel() for each in vit.parameters() if each.requires_grad)
    assert trained / 1e9 == pytest.approx(billions, abs=0.005)
    width = AIM_SIZES[size]["embed_dim"]
    assert trained == AIM_SIZES[size]["depth"] * (12 * width**2 + 4 * width) + (14 * 14 * 3 + 1 + 4) * width
    assert all(block.attn.head_dim == 128 for block in vit.blocks)
    assert {type(block).__name__ for block in vit.blocks} == {"Block"}
    with pytest.raises(ValueError, match=r"0\.6B, 1B, 3B, 7B"):
        aim_vit("2B")


def small() -> Backbone:
    vit = aim_vit("0.6B", embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, img_size=SIDE)
    return wrap(vit)


def checkpoint() -> dict[str, Tensor]:
    """A file of the published layout, with random values everywhere, norms included."""
    shapes = {
        "preprocessor.patchifier.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "preprocessor.patchifier.proj.bias": (WIDTH,),
        "head.cls_token": (1, 1, WIDTH),
        "head.k.weight": (WIDTH, WIDTH),
        "head.v.weight": (WIDTH, WIDTH),
        "head.linear.weight": (CLASSES, WIDTH),
        "head.bn.running_mean": (WIDTH,),
    }
    norms = ["preprocessor.patchifier.norm", "trunk.post_trunk_norm"]
    for block in range(DEPTH):
        name = f"trunk.blocks.{block}"
        norms += [f"{name}.norm_1", f"{name}.norm_2"]
        shapes |= {
            f"{name}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"{name}.attn.proj.weight": (WIDTH, WIDTH),
            f"{name}.mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"{name}.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        }
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["head.bn.running_var"] = torch.rand(WIDTH, generator=generator) + 0.5
    state["head.bn.num_batches_tracked"] = torch.tensor(7)
    return state


def reference(state: dict[str, Tensor], images: Tensor, prefix: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Raw outputs of the blocks, and the normed output; with prefix lengths, under the mask of section 3.3."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    patchifier = "preprocessor.patchifier"
    x = F.conv2d(images, state[f"{patchifier}.proj.weight"], state[f"{patchifier}.proj.bias"], stride=PATCH)
    x = norm(x.flatten(2).transpose(1, 2), f"{patchifier}.norm") + sincos_positions(GRID, WIDTH)
    units = x.shape[1]
    allowed = torch.ones(len(images), units, units, dtype=torch.bool)
    if prefix is not None:
        in_prefix = torch.arange(units) < prefix[:, None]
        allowed = allowed.tril() | in_prefix[:, None, :]
    outputs = []
    for block in range(DEPTH):
        name = f"trunk.blocks.{block}"
        qkv = norm(x, f"{name}.norm_1") @ state[f"{name}.attn.qkv.weight"].T
        q, k, v = qkv.view(len(x), units, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5
        weights = scores.masked_fill(~allowed[:, None], -torch.inf).softmax(dim=-1)
        x = x + (weights @ v).transpose(1, 2).flatten(2) @ state[f"{name}.attn.proj.weight"].T
        hidden = F.gelu(norm(x, f"{name}.norm_2") @ state[f"{name}.mlp.fc1.weight"].T)
        x = x + hidden @ state[f"{name}.mlp.fc2.weight"].T
        outputs.append(x)
    return outputs, norm(x, "trunk.post_trunk_norm")


def reference_probe(state: dict[str, Tensor], tokens: Tensor) -> Tensor:
    mean, var = state["head.bn.running_mean"], state["head.bn.running_var"]
    x = (tokens - mean) / (var + 1e-6).sqrt()

    def split(x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    query = split(state["head.cls_token"].expand(len(x), -1, -1))
    keys, values = split(x @ state["head.k.weight"].T), split(x @ state["head.v.weight"].T)
    weights = ((query @ keys.transpose(-1, -2)) * (WIDTH // HEADS) ** -0.5).softmax(dim=-1)
    return (weights @ values).transpose(1, 2).flatten(2).mean(dim=1) @ state["head.linear.weight"].T


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / "aim.pth")
    return tmp_path / "aim.pth"


def test_the_trunk_is_timms(file: Path) -> None:
    backbone, images = small(), torch.randn(3, 3, SIDE, SIDE)
    load_aim(backbone, file)
    backbone.eval()
    with torch.no_grad():
        _, expected = reference(checkpoint(), images, None)
        torch.testing.assert_close(backbone.units(images), expected, atol=1e-5, rtol=1e-5)
        plain = timm.create_model(
            ARCHITECTURE, num_classes=0, **aim_args("0.6B") | {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS},
            patch_size=PATCH, img_size=SIDE,
        ).eval()  # fmt: skip
        plain.load_state_dict(backbone.model.state_dict(), strict=True)
        assert torch.equal(plain.forward_features(images), backbone.units(images))


def test_the_prefix_mask_is_the_papers(file: Path) -> None:
    backbone, images = small(), torch.randn(4, 3, SIDE, SIDE)
    load_aim(backbone, file)
    plan = RasterOrder()(GRID, 4, torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = backbone.forward_stages(backbone.embed(images), can_see=plan.can_see(prefix_tokens=0))
        _, expected = reference(checkpoint(), images, plan.prefix)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_probe(file: Path) -> None:
    backbone, images = small(), torch.randn(3, 3, SIDE, SIDE)
    load_aim(backbone, file)
    probe = load_aim_probe(file, heads=HEADS)
    tokens = extract_tokens(backbone, [(images, torch.arange(3))], blocks=2)
    outputs, _ = reference(checkpoint(), images, None)
    expected = torch.stack(outputs[-2:]).mean(dim=0)
    torch.testing.assert_close(tokens.x, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(probe(tokens.x), reference_probe(checkpoint(), expected), atol=1e-5, rtol=1e-5)


def test_another_size_has_its_own_positions(file: Path) -> None:
    vit = aim_vit("0.6B", embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, img_size=(8, 24))
    backbone = wrap(vit)
    load_aim(backbone, file)
    assert torch.equal(vit.pos_embed[0], sincos_positions(Grid(2, 6), WIDTH))


def test_what_does_not_fit(file: Path, tmp_path: Path) -> None:
    wider = wrap(aim_vit("0.6B", embed_dim=64, depth=DEPTH, num_heads=HEADS, patch_size=PATCH, img_size=SIDE))
    with pytest.raises(ValueError, match="shapes differ"):
        load_aim(wider, file)
    with pytest.raises(ValueError, match="it lacks cls_token"):
        load_aim(wrap("test_vit", img_size=SIDE, patch_size=PATCH), file)
    parts = checkpoint()
    torch.save({name: value for name, value in parts.items() if name.startswith("head.")}, tmp_path / "head.pth")
    torch.save({name: value for name, value in parts.items() if not name.startswith("head.")}, tmp_path / "trunk.pth")
    with pytest.raises(ValueError, match="holds no trunk"):
        load_aim(small(), tmp_path / "head.pth")
    with pytest.raises(ValueError, match="holds no probe"):
        load_aim_probe(tmp_path / "trunk.pth", heads=HEADS)
