"""Muon against torch's, for the matrices of blocks and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from patchcast.backbones import wrap
from patchcast.methods import METHODS, mae, simmim
from patchcast.pretrainer import Pretrainer
from patchcast.recipe import Recipe
from patchcast.runs.costs import LiveBytes, step_memory
from patchcast.runs.defaults import choose_defaults
from patchcast.training import muon
from patchcast.training.muon import Muon, orthogonalized
from patchcast.training.optimization import Optimization, block_matrices, make_optimizer, muon_matrices
from tests.backbones.zoo import NAMES, small
from tests.training.test_run import curve, killed_at, run, tiny

MUON = Optimization(lr=1e-3, clip=1.0, optimizer="muon")
SHAPES = [(6, 4), (4, 6), (6, 4), (5, 5)]


def moved(optimizers: list[torch.optim.Optimizer], parameters: list[nn.Parameter], steps: int = 5) -> None:
    torch.manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float32, 0.05)])
def test_it_is_torchs_muon(dtype: torch.dtype, tolerance: float) -> None:
    """torch's computes in bfloat16; a step moves values by about `lr * 0.2`."""
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    theirs = [copy.deepcopy(each) for each in mine]
    settings = {"lr": 0.1, "weight_decay": 0.5}
    moved([Muon([{"params": mine, "is_matrix": True}], dtype=dtype, **settings)], mine)
    moved([torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)], theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert float((one - other).detach().abs().max()) < tolerance * 0.1


def test_all_else_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(2, 3, 3, 3))]
    theirs = [copy.deepcopy(each) for each in mine]
    matrix = nn.Parameter(torch.randn(4, 4))
    groups = [{"params": [matrix], "is_matrix": True}, {"params": mine, "is_matrix": False, "weight_decay": 0.3}]
    moved([Muon(groups, lr=0.01, betas=(0.8, 0.9))], [*mine, matrix])
    moved([torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.9), weight_decay=0.3, fused=True)], [*theirs, matrix])
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(2, 8, 3), (2, 3, 8), (1, 5, 5)])
def test_singular_vectors_stay(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ orthogonalized(matrices) @ right.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert float((inner - torch.diag_embed(values)).abs().max()) < 1e-4
    assert ((values > 0.5) & (values < 1.5)).all()


def test_gradients_of_zero_do_no_harm() -> None:
    assert torch.equal(orthogonalized(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4))


def test_a_gpu_does_not_wait_for_it() -> None:
    """Tensors without values: reading one would fail."""
    matrix = nn.Parameter(torch.empty(4, 6, device="meta"))
    matrix.grad = torch.empty_like(matrix)
    Muon([{"params": [matrix], "is_matrix": True}], lr=0.1).step()


def test_copies_and_later_groups_are_complete() -> None:
    torch.manual_seed(0)
    first = nn.Parameter(torch.randn(4, 4))
    optimizer = Muon([{"params": [first], "is_matrix": True}], lr=0.1, dtype=torch.bfloat16)
    later = nn.Parameter(torch.randn(3))
    optimizer.add_param_group({"params": [later], "is_matrix": False})
    assert {group["dtype"] for group in optimizer.param_groups} == {torch.bfloat16}
    model, copied = copy.deepcopy(([first, later], optimizer))
    for parameters, each in (([first, later], optimizer), (model, copied)):
        moved([each], parameters)
    assert torch.equal(first, model[0])
    assert torch.equal(later, model[1])


@pytest.mark.parametrize(
    ("groups", "lr", "sentence"),
    [
        ([{"params": [nn.Parameter(torch.zeros(2, 2))]}], 0.1, "says is_matrix, True or False; got one of params"),
        ([{"params": [nn.Parameter(torch.zeros(2, 2))], "is_matrix": True}], -1.0, "0 or more; got -1.0"),
    ],
)
def test_what_it_is_not_given_is_said(groups: list[Any], lr: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Muon(groups, lr=lr)


def test_memory_of_an_update_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "MOST_VALUES", 2 * 64 * 48)
    matrices = [nn.Parameter(torch.randn(64, 48)) for _ in range(7)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    optimizer = Muon([{"params": matrices, "is_matrix": True}], lr=0.1)
    optimizer.step()
    with LiveBytes([*matrices, *(state["momentum_buffer"] for state in optimizer.state.values())]) as live:
        optimizer.step()
    assert live.most <= muon.update_bytes(matrices) == 5 * 2 * matrices[0].nbytes
    assert live.most > 0.6 * muon.update_bytes(matrices)


@pytest.mark.parametrize("name", ["levit_conv_128s", "efficientvit_m0", "fastvit_t8", "volo_d1_224", "pit_ti_224"])
def test_models_without_known_matrices_take_adamw(name: str) -> None:
    recipe = Recipe("simmim", name, "data", Path("out"))
    assert choose_defaults(recipe, METHODS["simmim"], 100)["optimizer"].value == "adamw"


def test_only_matrices_are_moved_by_it() -> None:
    vector = {"params": [nn.Parameter(torch.zeros(3))], "is_matrix": True}
    with pytest.raises(ValueError, match=r"matrices; got a parameter of shape \(3,\)"):
        Muon([vector], lr=0.1)


def names_of(pretrainer: Pretrainer) -> set[str]:
    chosen = muon_matrices(pretrainer)
    return {name for name, parameter in pretrainer.named_parameters() if parameter in chosen}


def test_matrices_are_those_of_blocks() -> None:
    pretrainer = mae(wrap("test_vit", img_size=32, patch_size=8, depth=1), decoder_depth=1, decoder_width=32)
    inside = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    parts = ("backbone.model.blocks.0", "predictor.blocks.0")
    assert names_of(pretrainer) == {f"{part}.{each}.weight" for part in parts for each in inside}


def test_tables_of_positions_and_kernels_are_none() -> None:
    swin = wrap(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=2, depths=(1, 1), embed_dim=24, num_heads=(1, 2)
    )
    names = names_of(simmim(swin, head_kernel=3))
    assert names
    assert not [name for name in names if "relative_position" in name or "patch_embed" in name or "predictor" in name]


FOURTH = [pytest.param(name, marks=[pytest.mark.slow] * (place % 4 > 0)) for place, name in enumerate(NAMES)]


@pytest.mark.parametrize("name", FOURTH)
def test_of_every_family_only_weights_of_linear_layers(name: str) -> None:
    backbone = small(name)
    weights = {module.weight for module in backbone.modules() if isinstance(module, nn.Linear)}
    weights |= {each.in_proj_weight for each in backbone.modules() if isinstance(each, nn.MultiheadAttention)}
    assert block_matrices(backbone) <= weights


def test_layers_keep_their_own_rates() -> None:
    settings = Optimization(lr=1e-3, optimizer="muon", layer_decay=0.5, freeze_first=2)
    pretrainer = tiny("mae")
    optimizer = make_optimizer(pretrainer, settings)
    matrices = muon_matrices(pretrainer)
    assert {each for group in optimizer.param_groups if group["is_matrix"] for each in group["params"]} == matrices
    everything = [each for group in optimizer.param_groups for each in group["params"]]
    assert (
        len(everything) == len({*everything}) == len([each for each in pretrainer.parameters() if each.requires_grad])
    )
    assert len({group["lr_scale"] for group in optimizer.param_groups if group["is_matrix"]}) > 1


@pytest.mark.parametrize("kill_at", [7, 10])
def test_a_killed_run_goes_on_to_the_bit(kill_at: int, tmp_path: Path) -> None:
    trained, broken, resumed = (tiny("mae") for _ in range(3))
    run(trained, tmp_path / "whole", optimization=MUON)
    with killed_at(2 * kill_at):  # AdamW's step is counted too
        run(broken, tmp_path / "broken", optimization=MUON)
    run(resumed, tmp_path / "broken", optimization=MUON)
    for (name, one), two in zip(trained.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert curve(tmp_path / "whole" / "metrics.csv", "loss") == curve(tmp_path / "broken" / "metrics.csv", "loss")


def test_its_state_is_smaller() -> None:
    pretrainer = tiny("mae")
    adamw, muon = (step_memory(pretrainer, 2, optimizer=each) for each in ("adamw", "muon"))
    assert adamw.moments - muon.moments == 4 * sum(each.numel() for each in muon_matrices(pretrainer))


def test_shared_out_matrices_are_refused() -> None:
    recipe = Recipe("mae", "test_vit", "digits", Path("runs/a"), sharded=True, optimizer="muon")
    with pytest.raises(ValueError, match="cannot be sharded: leave out sharded"):
        recipe.check()
