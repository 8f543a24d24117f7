"""Teachers and codes."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from patchcast.backbones import wrap
from patchcast.collapse import CollapseWarning, diversity, warn_of_collapse
from patchcast.losses import cross_entropy
from patchcast.methods import beit, ijepa
from patchcast.pretrainer import Pretrainer
from patchcast.targets import Codes, EMAFeatures, FrozenFeatures, Pixels
from patchcast.tokenizers.base import Tokenizer
from patchcast.tokenizers.patches import PatchCodebook, PerUnit
from tests.backbones import zoo
from tests.contracts import check_no_leak
from tests.peers import wake


def small(**kwargs):
    return wrap("test_vit", img_size=32, patch_size=8, **kwargs)


def test_momentum_rises_linearly_and_stays_at_one() -> None:
    backbone = small()
    target = EMAFeatures(backbone, momentum=0.9, steps=4)
    seen = []
    for _ in range(6):
        seen.append(target.momentum)
        target.update(backbone)
    assert seen == pytest.approx([0.9, 0.925, 0.95, 0.975, 1.0, 1.0])
    constant = EMAFeatures(backbone, momentum=0.9)
    constant.update(backbone)
    assert constant.momentum == 0.9


def test_the_teacher_is_the_moving_average() -> None:
    backbone = small()
    target = EMAFeatures(backbone, momentum=0.75)
    before = copy.deepcopy(target.teacher.state_dict())
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in before.items())
    wake(backbone)
    target.update(backbone)
    for name, value in target.teacher.named_parameters():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * backbone.get_parameter(name))
        assert not value.requires_grad


def test_the_teacher_sees_the_whole_image_in_eval_mode() -> None:
    backbone = small(drop_path_rate=0.5)
    wake(backbone)
    target = EMAFeatures(backbone).train()
    images = torch.randn(2, 3, 32, 32)
    features = target(images)
    expected = backbone.eval().units(images)
    torch.testing.assert_close(features, nn.functional.layer_norm(expected, expected.shape[-1:]))
    torch.testing.assert_close(features.mean(dim=-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    assert not features.requires_grad


@pytest.mark.parametrize("layers", [None, 2])
def test_a_local_target_knows_neither_position_nor_image(layers: int | None) -> None:
    backbone = small()
    wake(backbone)
    target = EMAFeatures(backbone, layers=layers, local=True)
    images = torch.randn(2, 3, 32, 32)
    features = target(images)
    torch.testing.assert_close(features.mean(dim=1), torch.zeros(2, 64), atol=1e-4, rtol=0)
    assert torch.equal(target(torch.zeros(1, 3, 32, 32)), torch.zeros(1, 16, 64)), "of a gray image nothing is left"
    torch.testing.assert_close(
        target(images[:1]), features[:1], atol=1e-4, rtol=1e-4
    )  # no other image has a part in it
    if layers is None:
        own = backbone.eval().units(images) - backbone.units(torch.zeros(1, 3, 32, 32))
        own = own - own.mean(dim=1, keepdim=True)
        expected = own / (own.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert ijepa(backbone, layers=layers, local=True).target.local


def run(pretrainer: Pretrainer, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        output = pretrainer(torch.randn(4, 3, 32, 32, generator=generator), generator=generator)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        pretrainer.target.update(pretrainer.backbone)


def begin() -> tuple[Pretrainer, torch.optim.Optimizer]:
    pretrainer = ijepa(small(), predictor_depth=1, momentum=0.9, steps=8)
    trained = [each for each in pretrainer.parameters() if each.requires_grad]
    return pretrainer, torch.optim.AdamW(trained, lr=1e-3)


def test_a_training_resumed_is_the_same_training() -> None:
    """Four steps, a file, four more steps: to the bit what eight steps give, teacher and schedule included."""
    torch.manual_seed(0)
    pretrainer, optimizer = begin()
    run(pretrainer, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"model": pretrainer.state_dict(), "optimizer": optimizer.state_dict()}, file)
    run(pretrainer, optimizer, range(4, 8))

    torch.manual_seed(99)  # another initialization, of which nothing may remain
    resumed, other = begin()
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.load_state_dict(state["model"])
    other.load_state_dict(state["optimizer"])
    assert resumed.target.momentum == pytest.approx(0.95)
    run(resumed, other, range(4, 8))
    for name, value in pretrainer.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.target.momentum == 1.0


def test_collapse_is_seen() -> None:
    constant = torch.randn(1, 32).expand(64, -1)
    nearly = constant + 0.01 * torch.randn(64, 32)
    line = torch.randn(64, 1) * torch.randn(1, 32)
    for features in (constant, nearly, line, torch.zeros(64, 32)):
        with pytest.warns(CollapseWarning, match="features have collapsed"):
            warn_of_collapse(features)
    healthy = warn_of_collapse(torch.randn(64, 32))
    assert healthy.variance > 0.9
    assert 25 < healthy.effective_rank <= 32
    three = torch.randn(256, 3) @ torch.linalg.qr(torch.randn(32, 3)).Q.T
    assert diversity(three).effective_rank == pytest.approx(3, abs=0.05)
    with pytest.raises(ValueError, match="at least two features; got 1"):
        diversity(torch.randn(1, 4))


def test_a_method_whose_teacher_is_its_student_collapses() -> None:
    """What the warning is for: momentum 0 and a free choice of features end in features that are all alike."""
    torch.manual_seed(0)
    backbone = small()
    pretrainer = ijepa(backbone, predictor_depth=1, momentum=0.0)
    images = torch.randn(32, 3, 32, 32)
    before = diversity(backbone.units(images).flatten(0, 1).detach())
    optimizer = torch.optim.AdamW([each for each in pretrainer.parameters() if each.requires_grad], lr=3e-3)
    run(pretrainer, optimizer, range(60))
    after = diversity(backbone.units(images).flatten(0, 1).detach())
    assert not before.collapsed
    assert after.variance < before.variance / 3


# ---- codes ----------------------------------------------------------------------------------------------------------


def codebook(**kwargs) -> PatchCodebook:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(16, 3, 32, 32, generator=generator) for _ in range(4)]
    return PatchCodebook.fit(images, stride=(8, 8), vocabulary=32, **kwargs)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_unit_has_the_code_of_its_nearest_centre(normalize: bool) -> None:
    tokenizer, images = codebook(normalize=normalize), torch.rand(2, 3, 16, 24)
    units = Pixels((8, 8), channels=3, normalize=normalize)(images)
    expected = torch.cdist(units, tokenizer.centres.expand(2, -1, -1)).argmin(dim=-1)
    assert torch.equal(tokenizer.encode(images), expected)
    assert isinstance(tokenizer, Tokenizer)


def test_a_codebook_is_its_seed_and_its_file(tmp_path: Path) -> None:
    tokenizer = codebook(seed=3)
    assert torch.equal(tokenizer.centres, codebook(seed=3).centres)
    assert not torch.equal(tokenizer.centres, codebook(seed=4).centres)
    tokenizer.save(tmp_path / "codebook.safetensors")
    loaded, images = PatchCodebook.load(tmp_path / "codebook.safetensors"), torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert loaded.pixels.normalize
    assert loaded.vocabulary == 32


def test_codebooks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="16 units are too few for 32 codes"):
        PatchCodebook.fit([torch.rand(1, 3, 32, 32)], stride=(8, 8), vocabulary=32)
    with pytest.raises(ValueError, match="0 units are too few"):
        PatchCodebook.fit([], stride=(8, 8), vocabulary=32)
    with pytest.raises(ValueError, match="a center of 100 values is not a unit of 8x8 pixels"):
        PatchCodebook(torch.zeros(4, 100), (8, 8))


def test_a_palette_gives_the_code_of_a_units_mean_color() -> None:
    class Brightness:
        """A palette of two colors, dark and bright."""

        vocabulary = 2

        def encode(self, images: Tensor) -> Tensor:
            return (images.mean(dim=1) > 0).long().flatten(1)

    images = torch.tensor([[[[1.0, 1, -3, 1], [1, 1, 1, -1]]]])
    assert PerUnit(Brightness(), (2, 2)).encode(images).tolist() == [[1, 0]]


def test_a_tokenizer_that_is_a_module_is_frozen_and_saved() -> None:
    class Learned(nn.Module):
        vocabulary = 4

        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Conv2d(3, 4, 8, stride=8)
            self.drop = nn.Dropout(0.5)

        def encode(self, images: Tensor) -> Tensor:
            return self.drop(self.project(images)).flatten(2).argmax(dim=1)

    backbone = small()
    pretrainer = beit(backbone, Learned()).train()
    assert not any(each.requires_grad for each in pretrainer.target.parameters())
    assert "target.tokenizer.project.weight" in pretrainer.state_dict()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(pretrainer.target(images), pretrainer.target(images))  # no dropout
    output = pretrainer(images)
    assert output.predictions.shape[-1] == 4
    output.loss.backward()


def test_cross_entropy_is_torchs() -> None:
    logits, codes = torch.randn(2, 3, 5, 7), torch.randint(7, (2, 3, 5, 1))
    expected = nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy(logits, codes).flatten(), expected)


def test_codes_of_another_grid_are_refused() -> None:
    pretrainer = beit(small(), codebook())
    pretrainer.target = Codes(PatchCodebook(torch.randn(4, 4 * 4 * 3), (4, 4)))
    with pytest.raises(ValueError, match="64 rows for the 16 units of 4x4"):
        pretrainer(torch.randn(1, 3, 32, 32))


def frozen(**kwargs) -> FrozenFeatures:
    teacher = wrap("test_resnet", img_size=64)
    wake(teacher)
    return FrozenFeatures(teacher, (8, 8), **kwargs)


def test_a_frozen_teacher_is_averaged_to_the_units_and_standardized() -> None:
    """Stage 1 has 4 pixels per place: at its own size two by two of them are a unit of eight."""
    target, images = frozen(blocks=(1,)), torch.randn(6, 3, 32, 32)
    (maps,) = target.teacher.block_outputs(images, [1])
    expected = target(images).transpose(1, 2).unflatten(2, (4, 4))
    assert maps.shape[-2:] == (8, 8)
    inside = nn.functional.avg_pool2d(maps, 2)
    correlation = torch.corrcoef(torch.stack([expected.flatten(), inside.flatten()]))[0, 1]
    assert correlation > 0.95  # antialiased, not a plain mean
    values = target.fit(images)(images).flatten(0, 1)
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(target.outputs), atol=1e-4, rtol=0)
    varies = maps.std(dim=(0, 2, 3)) > 1e-3
    torch.testing.assert_close(values.std(dim=0)[varies], torch.ones(int(varies.sum())), atol=1e-2, rtol=0)


def test_a_frozen_teacher_sees_the_images_as_it_wants_them() -> None:
    theirs, wanted = ([0.3, 0.4, 0.5], [0.2, 0.2, 0.25]), ([0.5] * 3, [0.5] * 3)
    plain = frozen(size=(64, 64))
    told = FrozenFeatures(plain.teacher, (8, 8), size=(64, 64), statistics=(theirs, wanted))
    pixels = torch.rand(2, 3, 32, 32)

    def standardized(by: tuple[list[float], list[float]]) -> Tensor:
        mean, deviation = (torch.tensor(each)[:, None, None] for each in by)
        return (pixels - mean) / deviation

    torch.testing.assert_close(told(standardized(theirs)), plain(standardized(wanted)), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="takes 3 channels; got statistics of 1 and 1"):
        FrozenFeatures(plain.teacher, (8, 8), statistics=(([0.0], [1.0]), ([0.0], [1.0])))


def test_a_frozen_teacher_stays_frozen_and_goes_through_a_file() -> None:
    def build(seed: int) -> Pretrainer:
        torch.manual_seed(seed)
        pretrainer = ijepa(small(), predictor_depth=1)
        teacher = wrap("test_resnet", img_size=64)
        pretrainer.target = FrozenFeatures(teacher, (8, 8), blocks=(3,)).fit(torch.randn(4, 3, 32, 32))
        pretrainer.predictor.head = nn.Linear(32, pretrainer.target.outputs)
        return pretrainer

    pretrainer = build(0).train()
    before = copy.deepcopy(pretrainer.target.state_dict())
    parameters = [each for each in pretrainer.parameters() if each.requires_grad]
    run(pretrainer, torch.optim.SGD(parameters, lr=0.1), range(2))
    assert all(torch.equal(value, before[name]) for name, value in pretrainer.target.state_dict().items())
    assert not any(each.requires_grad for each in pretrainer.target.parameters())
    again = build(1)
    again.load_state_dict(pretrainer.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.target(images), pretrainer.target(images))
    check_no_leak(pretrainer)


@pytest.mark.parametrize("name", ["levit_256d", "tiny_vit_5m_224"])
def test_a_teacher_forgets_what_it_made_of_earlier_weights(name: str) -> None:
    """These attentions cache their biases in eval mode, which a teacher is always in."""
    student = copy.deepcopy(zoo.small(name))
    target, images = EMAFeatures(student, momentum=0.0), zoo.images_for(student)
    before = target(images)
    with torch.no_grad():
        for key, parameter in student.named_parameters():
            if "attention_biases" in key:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    target.update(student)
    assert torch.equal(target(images), EMAFeatures(student)(images))
    assert not torch.equal(target(images), before)
