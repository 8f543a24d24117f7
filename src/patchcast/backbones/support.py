"""What each timm architecture can do: a table written by `measure`, so that a look-up builds no model.

python -m patchcast.backbones.support measure   # writes the table again, for the installed timm
python -m patchcast.backbones.support page      # prints docs/backbones.md
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from patchcast.backbones.capabilities import CAPABILITIES, NEEDS, Capability
from patchcast.files import write_text

IN_TIMM = [capability for capability in CAPABILITIES if capability != "shift"]  # ImageGPT's, which is not timm's
TABLE = Path(__file__).with_name("support.csv")
TABLE_COLUMNS = ["name", "model_class", "can", "pixels_stay_in_unit", "takes_any_size", "image_size", "stride", "width"]


@dataclass(frozen=True)
class Support:
    """What one architecture can do, as its `Backbone` declares it.

    Attributes:
        pixels_stay_in_unit: where False, "drop" needs hidden pixels blanked, and no mask is causal for pixels.
        image_size, stride: nominal (height, width), and pixels per unit.
    """

    name: str
    model_class: str
    can: frozenset[Capability]
    pixels_stay_in_unit: bool
    takes_any_size: bool
    image_size: tuple[int, int]
    stride: tuple[int, int]
    width: int

    @property
    def is_causal_for_pixels(self) -> bool:
        """Whether under a causal mask no unit's feature depends on the pixels of a later one."""
        return "attend" in self.can and self.pixels_stay_in_unit

    def suits(self, method: str) -> bool:
        """Whether a method can use this architecture; AIM needs a stem that does not mix pixels of units."""
        return any(need in self.can and (need != "attend" or self.is_causal_for_pixels) for need in NEEDS[method])


def support(pattern: str = "*", needs: Capability | None = None) -> list[Support]:
    """The architectures whose name matches and which have a capability.

    >>> [row.name for row in support("vit_tiny_patch16_224*", needs="attend")]
    ['vit_tiny_patch16_224']
    >>> support("swin_*", needs="drop")
    []

    Args:
        pattern: as in `timm.list_models`: `*` and `?` stand for anything.
        needs: "drop" for MAE, "attend" for AIM. The other methods need "paint", which all have; they work better with
            "replace" or "drop".
    """
    return [row for row in table() if fnmatch(row.name, pattern) and (needs is None or needs in row.can)]


@cache
def table() -> tuple[Support, ...]:
    """Every architecture in the table, by name."""
    with TABLE.open(newline="") as file:
        return tuple(_from_text(row) for row in csv.DictReader(file))


def made_for() -> str:
    """The version of timm in which the table was measured."""
    return TABLE.with_name("support_version.txt").read_text().strip()


def measure(name: str) -> Support:
    """Build an architecture on the meta device, without weights, and read what its backbone can do."""
    import torch

    from patchcast.backbones.adapters import wrap

    errors = []
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for size in (None, 378, 320, 352):  # some nominal sizes are no multiple of the units
            try:
                backbone = wrap(name, **({} if size is None else {"img_size": size}))
            except (ValueError, RuntimeError) as error:
                errors.append(error)
                continue
            return Support(
                name=name,
                model_class=backbone.name,
                can=backbone.can,
                pixels_stay_in_unit=backbone.pixels_stay_in_unit,
                takes_any_size=backbone.takes_any_size,
                image_size=backbone.image_size,
                stride=backbone.stride,
                width=backbone.width,
            )
    raise ValueError(f"{name} fits none of the sizes tried") from errors[0]


def _from_text(row: Mapping[str, str]) -> Support:
    def pair(text: str) -> tuple[int, int]:
        height, width = text.split("x")
        return int(height), int(width)

    return Support(
        name=row["name"],
        model_class=row["model_class"],
        can=frozenset(capability for capability in CAPABILITIES if capability in row["can"].split()),
        pixels_stay_in_unit=row["pixels_stay_in_unit"] == "yes",
        takes_any_size=row["takes_any_size"] == "yes",
        image_size=pair(row["image_size"]),
        stride=pair(row["stride"]),
        width=int(row["width"]),
    )


def _to_text(row: Support) -> dict[str, str]:
    return {
        "name": row.name,
        "model_class": row.model_class,
        "can": " ".join(capability for capability in CAPABILITIES if capability in row.can),
        "pixels_stay_in_unit": "yes" if row.pixels_stay_in_unit else "no",
        "takes_any_size": "yes" if row.takes_any_size else "no",
        "image_size": "{}x{}".format(*row.image_size),
        "stride": "{}x{}".format(*row.stride),
        "width": str(row.width),
    }


def write_table() -> None:
    """Measure every architecture of the installed timm; prints those for which no size works."""
    import timm

    write_text(TABLE.with_name("support_version.txt"), timm.__version__ + "\n")
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, TABLE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for name in timm.list_models():
            try:
                writer.writerow(_to_text(measure(name)))
            except (ValueError, RuntimeError) as error:
                print(f"{name}: {error} ({error.__cause__})", file=sys.stderr)


INTRODUCTION = """\
# Backbones

`wrap(name)` makes a backbone of any architecture of timm, `wrap(model)` of a model that you have. This page is printed
by `python -m patchcast.backbones.support page` from a table of what every backbone declares, for timm {version}; in
Python, `patchcast.backbones.support.support("vit_*", needs="drop")` looks names up in it without building anything.

| capability | the backbone can | needed by |
|---|---|---|
{capabilities}

**Causal for pixels** says whether, under a causal mask, no unit depends on the pixels of a later one. Where the stem's
kernels reach over the border of a unit it does, whatever attention does. For the same reason hidden pixels are blanked
before their tokens are replaced (`embed(images, is_hidden=...)` always does) or dropped.

**Any size**: images of any height and width that the stride divides. The others take the size that they were built
for: `wrap(name, img_size=(H, W))`. Plain ViTs and Eva take any size when they are built with `dynamic_img_size=True`,
Swins with `strict_img_size=False`. With `pretrained=True`, timm resamples position tables to another size; where it
does not (CaiT, ConViT, CrossViT, EfficientFormerV2, GCViT, Hiera without `abswin`, LeViT, Nest, PiT, Visformer, VOLO),
the first that does not fit is named. The number of channels is free, `wrap(name, in_chans=13)`, but for CSATv2, whose
stem makes YCbCr of RGB.

```python
import torch
from patchcast import wrap

backbone = wrap("vit_small_patch16_dinov3", img_size=64)  # and pretrained=True, for timm's weights
images, visible = torch.randn(2, 3, 64, 64), torch.tensor([[0, 5, 9], [1, 2, 3]])
tokens = backbone.embed(images)  # after positions, before the first block
tokens = backbone.keep(tokens, visible)  # (B, V) unit indices: the others are not computed
features = backbone.forward_stages(tokens)  # whole: equal to timm's forward_features(images), bit for bit
prefix, units = backbone.split(features, tokens)  # class and register tokens, and one row per unit
```

Gradient checkpointing (`backbone.model.set_grad_checkpointing()`), `torch.compile(fullgraph=True)`, DDP and FSDP2 work
through it. For DDP, freeze `backbone.unused_parameters()`. For FSDP2, shard a module whose `forward` makes these calls
(`Pretrainer`, or the backbone), not the timm model itself, whose own `forward` is never called.

In addition, torchvision's `VisionTransformer` can drop, replace and paint, and its `SwinTransformer` (V1 and V2)
replace and paint, at any size. A class that is not listed can be added: see [add-a-backbone.md](add-a-backbone.md).
"""


def docs_page() -> list[str]:
    """The lines of docs/backbones.md: one row for each class of timm, and for each of its kinds where they differ."""
    methods = {capability: asked_by(capability) for capability in IN_TIMM}
    capabilities = [
        f"| `{capability}` | {what} | {methods[capability]} |"
        for capability in IN_TIMM
        for what in [CAPABILITIES[capability]]
    ]
    lines = [*INTRODUCTION.format(version=made_for(), capabilities="\n".join(capabilities)).splitlines(), ""]
    entered = [row for row in table() if row.can > {"paint"}]
    painted = [row for row in table() if row.can == {"paint"}]
    counts = ", ".join(f"{sum(capability in row.can for row in table())} `{capability}`" for capability in IN_TIMM)
    lines += [f"{len(table())} architectures in all: {counts}.", "", "## Entered between embedding and blocks", ""]
    lines += ["| class | architectures | drop | attend | causal for pixels | replace | any size | for example |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for rows in _groups(entered):
        first = rows[0]
        marks = ["drop" in first.can, "attend" in first.can, first.is_causal_for_pixels, "replace" in first.can]
        cells = " | ".join("yes" if mark else "" for mark in [*marks, first.takes_any_size])
        lines.append(f"| {first.model_class} | {len(rows)} | {cells} | `{first.name}` |")
    lines += ["", "## Painted only", "", "Everything else in timm: hidden units are painted over in the image.", ""]
    classes = sorted({row.model_class for row in painted}, key=str.lower)
    per_class = [f"{name} {sum(row.model_class == name for row in painted)}" for name in classes]
    lines.append(", ".join(per_class) + ".")
    return lines


def asked_by(capability: Capability) -> str:
    """The methods that need a capability, as text: first those that prefer it, then those that fall back on it.

    >>> asked_by("replace")
    '`beit`, `maskfeat`, `simmim`; `data2vec`, `distill`, `ijepa` where it cannot drop'
    """
    wanted, instead = [], dict[str, list[str]]()
    for method, needs in NEEDS.items():
        if capability not in needs:
            continue
        before = needs[: needs.index(capability)]
        if before:
            instead.setdefault(" or ".join(before), []).append(f"`{method}`")
        else:
            wanted.append(f"`{method}`")
    others = [f"{', '.join(methods)} where it cannot {before}" for before, methods in instead.items()]
    return "; ".join([*([", ".join(wanted)] if wanted else []), *others])


def _groups(rows: list[Support]) -> list[list[Support]]:
    """The rows grouped by class and by what differs within a class."""
    kinds: dict[tuple[object, ...], list[Support]] = {}
    for row in rows:
        kind = (row.model_class.lower(), -len(row.can), not row.pixels_stay_in_unit, not row.takes_any_size)
        kinds.setdefault(kind, []).append(row)
    return [kinds[kind] for kind in sorted(kinds, key=str)]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure"]:
            write_table()
        case ["page"]:
            print("\n".join(docs_page()))
        case _:
            sys.exit(__doc__)
