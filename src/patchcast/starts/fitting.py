"""Load a start's weights into a backbone; reports what was loaded, resampled, adapted, left out and new."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from patchcast.backbones.backbone import Backbone
from patchcast.backbones.imagegpt_network import ImageGPT
from patchcast.backbones.start_positions import start_from_sincos
from patchcast.backbones.tiled import Tiled
from patchcast.pretrainer import Pretrainer
from patchcast.starts.reading import prefix_of
from patchcast.starts.start import STEP, Start

LEAST = 0.5
"""Minimum share of a backbone's weights, and of a file's, that must match; below it the file is another model's."""


@dataclass
class StartReport:
    """A report of how a start's weights were used.

    Attributes:
        words: the words of the start.
        format: the format that was read.
        digest: hash of the weights that were read.
        loaded: number of values loaded, including resampled and adapted ones.
        tensors: number of tensors loaded.
        resampled: tensors that were resized, with their shapes before and after.
        adapted: tensors that were fitted to another number of channels, and how.
        left_out: names in the start that the model does not have.
        new: names in the model that the start does not have; they keep their initial values.
    """

    words: str
    format: str
    digest: str
    loaded: int = 0
    tensors: int = 0
    resampled: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """A short table."""
        found = [("start", f"{self.words} ({self.format})")]
        found.append(("loaded", f"{self.tensors} tensors, {self.loaded / 1e6:.3g} M numbers"))
        found += [("resampled", f"{name} {tuple(old)} to {tuple(new)}") for name, (old, new) in self.resampled.items()]
        found += [("adapted", f"{name}: {how}") for name, how in self.adapted.items()]
        found += [("left out", _grouped(self.left_out))] * bool(self.left_out)
        found += [("new", _grouped(self.new))] * bool(self.new)
        return found

    def __str__(self) -> str:
        return "\n".join(f"{name:10} {text}" for name, text in self.rows())

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@torch.no_grad()
def fit(backbone: Backbone, start: Start, *, bands: Sequence[int] | None = None) -> StartReport:
    """Load a start's encoder into a backbone. Parameters that the start does not have keep their initial values.

    Position tables and patch embeddings of another size are resampled by timm's functions.

    Args:
        backbone: the backbone; for a tiled one, the weights are loaded into the tile's network.
        bands: which of the images' channels, counted from 0, are red, green and blue; see `adapt_stem`.
    Raises:
        ValueError: if the weights are another model's; nothing is loaded then.
    """
    if isinstance(backbone, Tiled):
        backbone = backbone.tile
    if start.has_computed_positions and not start_from_sincos(backbone):
        raise ValueError(f"{start.words} ({start.format}) needs sine-cosine positions, which {backbone.name} has not")
    model = backbone.model
    report = StartReport(start.words, start.format, start.digest(), left_out=list(start.left_out))
    _check_heads(model, start)
    raw = _own_names(start, model)
    state = _translated(raw, model, start)
    own = model.state_dict()
    unused = backbone.unused()
    heads = [name for name in state if _is_in(name, unused)]
    for name in heads:
        del state[name]
    report.left_out += heads
    new_stem = _fit_stem(model, state, own, report, bands)
    misfits = [name for name in state if name in own and own[name].shape != state[name].shape]
    places = {name: value.numel() for name, value in own.items() if not _is_in(name, unused) and name not in new_stem}
    matching = {name: places[name] for name in state if name in places and name not in misfits}
    surplus = [name for name in state if name not in own]
    read = sum(state[name].numel() for name in state)
    given = sum(state[name].numel() for name in matching)
    if misfits or given < LEAST * sum(places.values()) or given < LEAST * read:
        raise ValueError(_refusal(start, backbone, state, own, misfits, surplus, given / max(1, sum(places.values()))))
    for name, value in state.items():
        before = raw.get(name, value)
        is_changed = before.shape != value.shape or not torch.equal(before, value)
        if name in matching and name not in report.adapted and is_changed:
            report.resampled[name] = (list(before.shape), list(value.shape))
    model.load_state_dict({name: state[name] for name in matching}, strict=False)
    report.left_out += surplus
    report.new = [name for name in places if name not in matching] + sorted(new_stem)
    report.loaded, report.tensors = given, len(matching)
    return report


@torch.no_grad()
def fit_parts(pretrainer: Pretrainer, start: Start, method: str, report: StartReport) -> None:
    """Load a start's decoder, predictor or teacher into a pretrainer of the same method, and add them to the report.

    A part is loaded only if all of it fits. A teacher that does not fit stays a copy of the backbone.
    """
    encoder = "backbone.model.tile." if isinstance(pretrainer.backbone, Tiled) else "backbone."
    own = {name: value for name, value in pretrainer.state_dict().items() if not name.startswith(encoder)}
    groups: dict[str, list[str]] = {}
    for name in own:
        groups.setdefault(_part(name), []).append(name)
    same_target = all(
        torch.equal(own[name], value)
        for name, value in start.parts.items()
        if name in own and _part(name) == "target" and own[name].shape == value.shape
    )
    taken: set[str] = set()
    for group, names in groups.items():
        wanted = [name for name in names if not STEP.fullmatch(name)]
        if group == "teacher":
            unused = pretrainer.backbone.unused()
            wanted = [name for name in wanted if not _is_in(TEACHER.sub("", name), unused)]
        fits = all(name in start.parts and start.parts[name].shape == own[name].shape for name in wanted)
        is_same = group == "backbone" or (method == start.method and same_target)  # positions of tiles are any method's
        if wanted and fits and is_same:
            pretrainer.load_state_dict({name: start.parts[name] for name in wanted}, strict=False)
            taken |= set(wanted)
            report.loaded += sum(own[name].numel() for name in wanted)
            report.tensors += len(wanted)
        elif group not in ("teacher", "target"):
            report.new += wanted
    report.left_out += [name for name in start.parts if name not in taken]


TEACHER = re.compile(r"target\.(targets\.\w+\.)?teacher\.(model\.)?")
"""How names of a teacher's weights begin: of the target itself, or of one of several."""


def _part(name: str) -> str:
    return "teacher" if TEACHER.match(name) else name.partition(".")[0]


def adapt_stem(weight: Tensor, channels: int, bands: Sequence[int] | None = None) -> tuple[Tensor, str] | None:
    """Adapt a stem's weight (O, I, H, W) to another number of channels: (weight, how), or None if it must be new.

    For one channel the three are summed, so that a gray image gives the same output as its RGB version. A fourth
    channel (RGBA), and channels other than the named bands, start from zero: the output is at first that of the RGB
    channels alone. For other channels it is not known what they show, so the stem starts anew; repeating the three
    channels lost 3.9 points on average in published comparisons.

    >>> weight = torch.arange(3.0).view(1, 3, 1, 1)
    >>> adapt_stem(weight, 1)[0].flatten().tolist(), adapt_stem(weight, 4)[0].flatten().tolist()
    ([3.0], [0.0, 1.0, 2.0, 0.0])
    >>> adapt_stem(weight, 13, bands=(3, 2, 1))[0].flatten().tolist()[:5], adapt_stem(weight, 13)
    ([0.0, 2.0, 1.0, 0.0, 0.0], None)
    """
    have = weight.shape[1]
    if bands is not None and have == 3:
        wide = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
        wide[:, list(bands)] = weight
        return wide, f"red, green and blue are channels {list(bands)} of {channels}; the others start from zero"
    if have == channels:
        return weight, ""
    if channels == 1:
        return weight.sum(dim=1, keepdim=True), f"sum of {have} channels, so that gray gives what its copy gave"
    if have == 1 and channels == 3:
        return weight.expand(-1, 3, -1, -1) / 3, "a third for each of 3 channels, so that gray as RGB gives the same"
    if have == 3 and channels == 4:
        return torch.cat([weight, torch.zeros_like(weight[:, :1])], dim=1), "the fourth channel starts from zero"
    return None


def _fit_stem(
    model: Any, state: dict[str, Tensor], own: Mapping[str, Tensor], report: StartReport, bands: Sequence[int] | None
) -> set[str]:
    """Adapt the stem's weight in place; returns the names of stems that stay new."""
    new: set[str] = set()
    for stem in _stems(model):
        name = f"{stem}.weight"
        given, wanted = state.get(name), own.get(name)
        if given is None or wanted is None or given.ndim != 4 or given.shape[0] != wanted.shape[0]:
            continue
        if given.shape[1] == wanted.shape[1] and bands is None:
            continue
        adapted = adapt_stem(given, wanted.shape[1], bands)
        if adapted is None:
            new |= {parameter for parameter in (name, f"{stem}.bias") if parameter in own}
            report.adapted[name] = f"new for {wanted.shape[1]} channels (the start has {given.shape[1]})"
            for parameter in new:
                state.pop(parameter, None)
        else:
            state[name], report.adapted[name] = adapted
    return new


def _stems(model: Any) -> tuple[str, ...]:
    config = getattr(model, "pretrained_cfg", None) or {}  # torchvision's models and ImageGPT have none
    stems = config.get("first_conv") or ()
    return (stems,) if isinstance(stems, str) else tuple(stems)


def _own_names(start: Start, model: Any) -> dict[str, Tensor]:
    """The start's weights, without a prefix that the model's names do not have."""
    for stem in _stems(model):
        prefix = prefix_of(start.encoder, f"{stem}.weight")
        if prefix:
            return {
                name.removeprefix(prefix): value for name, value in start.encoder.items() if name.startswith(prefix)
            }
    return dict(start.encoder)


def _translated(raw: Mapping[str, Tensor], model: Any, start: Start) -> dict[str, Tensor]:
    """By the model's names and sizes: by the filter that its family has in timm, which resamples too."""
    if isinstance(model, ImageGPT):
        return _fit_imagegpt(dict(raw), model, start)
    state = dict(raw)
    # AIM's positions are computed, and no part of its files: those of the model's own grid, which `fit` has set.
    if start.has_computed_positions:
        state["pos_embed"] = model.pos_embed.detach().clone()
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)  # timm's convention
    if translate is None:
        return state
    try:
        with _source_size(model, start.size):
            return dict(translate(state, model))
    except Exception as problem:  # filters take the layout of their own family's files for granted
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise ValueError(f"{start.words} does not fit {type(model).__name__}: {reason[:200]}") from problem


@contextmanager
def _source_size(model: Any, size: tuple[int, int] | None) -> Iterator[None]:
    """Set the image size in the model's configuration, from which timm reads the shape of a position table."""
    before = getattr(model, "pretrained_model_args", None)
    if size is not None:
        model.pretrained_model_args = {**(before or {}), "img_size": size}
    try:
        yield
    finally:
        if before is not None:
            model.pretrained_model_args = before
        elif size is not None:
            del model.pretrained_model_args


def _fit_imagegpt(state: dict[str, Tensor], model: ImageGPT, start: Start) -> dict[str, Tensor]:
    positions, own = state.get("positions"), model.state_dict()["positions"]
    if positions is not None and start.size is not None and positions.shape != own.shape:
        grid = [model.grid.rows, model.grid.cols]
        resample = partial(resample_abs_pos_embed, new_size=grid, old_size=list(start.size), num_prefix_tokens=0)
        state["positions"] = resample(positions[None])[0]
    return state


def _check_heads(model: Any, start: Start) -> None:
    blocks = getattr(model, "blocks", None)
    if start.heads is None or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        return
    own = getattr(getattr(blocks[0], "attn", None), "num_heads", None)
    if own is not None and own != start.heads:
        raise ValueError(
            f"{start.words} has {start.heads} attention heads and the model {own}: with the same shapes it would "
            f"compute something else; {fitting_model(start)}"
        )


def _is_in(name: str, parts: Sequence[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _refusal(
    start: Start,
    backbone: Backbone,
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    misfits: Sequence[str],
    surplus: Sequence[str],
    share: float,
) -> str:
    if misfits:
        shown = [f"{name} is {_shape(state[name])} there and {_shape(own[name])} here" for name in misfits[:3]]
    else:
        unused = backbone.unused()
        lacking = [name for name in own if name not in state and not _is_in(name, unused)]
        shown = [f"it has {100 * share:.0f} % of this model's weights"]
        shown += [f"lacks {', '.join(lacking[:3])}"] * bool(lacking)
        shown += [f"has no place here for {', '.join(surplus[:3])}"] * bool(surplus)
    return f"{start.words} ({start.format}) does not fit {backbone.name}: {', '.join(shown)}; {fitting_model(start)}"


def fitting_model(start: Start) -> str:
    """A description of the model that a start's weights belong to."""
    if start.architecture is not None:
        args = {name: value for name, value in start.model_args.items() if name not in ("img_size", "in_chans")}
        typed = f" --model_args '{json.dumps(args)}'" if args else ""
        return f"it is of --model {start.architecture}{typed}"
    names = models_for(start)
    return f"--model {' or '.join(names[:2])} fits it" if names else "give the --model that it was trained as"


def models_for(start: Start) -> list[str]:
    """timm's plain vision transformers whose weights have the names and shapes of a start's; the simplest first."""
    stem = next((value for name, value in start.encoder.items() if name.endswith("patch_embed.proj.weight")), None)
    if stem is None or stem.ndim != 4:
        return []
    prefix = prefix_of(start.encoder, "patch_embed.proj.weight") or ""
    shapes = {
        name.removeprefix(prefix): value.shape
        for name, value in start.encoder.items()
        if name.startswith(prefix) and not name.removeprefix(prefix).startswith(("head", "pos_embed", "mask_token"))
    }
    words = SIZES.get(stem.shape[0], ())
    listed = [name for word in words for name in timm.list_models(f"{word}*", module="vision_transformer")]
    listed += [name for word in words for name in timm.list_models(f"{word}*", module="eva")]
    found = []
    for name in listed:
        if f"patch{stem.shape[-1]}" in name or "test" in name:
            with torch.device("meta"):
                own = timm.create_model(name, num_classes=0, in_chans=stem.shape[1]).state_dict()
            if {name: value.shape for name, value in own.items() if name != "pos_embed"} == shapes:
                found.append(name)
    return sorted(found, key=lambda name: (not name.endswith("_224"), len(name)))


SIZES = {
    64: ("test_vit",),
    192: ("vit_tiny_",),
    384: ("vit_small_",),
    768: ("vit_base_",),
    1024: ("vit_large_",),
    1280: ("vit_huge_",),
    1408: ("vit_giant_",),
    1536: ("vit_giant_",),
}
"""Beginnings of the names of timm's vision transformers, by width."""


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "one number"


def _grouped(names: Sequence[str]) -> str:
    """Names grouped by their first parts, with counts."""
    counts: dict[str, int] = {}
    for name in names:
        first = ".".join(name.split(".")[:2]) if name.startswith(("target.", "blocks.")) else name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    shown = [first if count == 1 else f"{first} ({count} tensors)" for first, count in counts.items()]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
