"""The tests of honesty on the two libraries that offer autoregressive pretraining of images today.

    pip install lightly==1.6.0 stable-pretraining==0.1.8
    python benchmarks/peers_honesty.py --pictures docs/images

Each is run as it comes, through its own forward, and then with the one thing changed that the tests complain of. A peer
that is not installed is left out. stable-pretraining adds its callbacks to every Lightning training in the same
environment, so that one of its own is better.

- stable-pretraining: `stable_pretraining.methods.igpt.iGPT`, in training mode.
- lightly: the package has the attention and the head; the method itself is its example, `examples/pytorch/aim.py`, and
  its benchmark, `benchmarks/imagenet/vitb16/aim.py`, which are alike in what matters here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from patchcast.backbones import Grid, wrap
from patchcast.drawing.figures import draw_dependencies
from patchcast.honesty import dependencies, no_leak, noise_floor
from patchcast.losses import squared
from patchcast.plans import OrderPlan
from patchcast.pretrainer import Output, Pretrainer
from patchcast.targets import Pixels

SIZE, PATCH, CHANNELS = 48, 8, 3


class Peer(Pretrainer):
    """What the tests of honesty use of a `Pretrainer`, over somebody else's model: none of its parts but the target."""

    prefix = 0

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.backbone = wrap("test_vit", img_size=SIZE, patch_size=PATCH).requires_grad_(False)  # for its sizes only
        self.target, self.loss = Pixels((PATCH, PATCH), channels=CHANNELS), squared

    def draw(self, images: Tensor, generator: Any = None) -> OrderPlan:
        grid, batch = Grid(SIZE // PATCH, SIZE // PATCH), len(images)
        return OrderPlan(grid, torch.arange(grid.units).expand(batch, -1), torch.full((batch,), self.prefix))

    def forward(self, images: Tensor, plan: OrderPlan | None = None, *, generator: Any = None) -> Output:
        plan = plan or self.draw(images)
        predictions, targets, loss = self.run(images, plan)
        return Output(loss, predictions[:, None], targets[:, None], plan, self.backbone, images)

    def run(self, images: Tensor, plan: OrderPlan) -> tuple[Tensor, Tensor, Tensor]:
        """The peer's predictions, what it compares them with, and its loss."""
        raise NotImplementedError


class StablePretraining(Peer):
    """iGPT: its own forward, predictions and loss."""

    def __init__(self) -> None:
        from stable_pretraining.methods.igpt import iGPT

        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=6, num_heads=2
        )  # fmt: skip
        super().__init__(iGPT(vit, patch_size=PATCH, image_size=SIZE))

    def run(self, images: Tensor, plan: OrderPlan) -> tuple[Tensor, Tensor, Tensor]:
        from stable_pretraining.backbone import patchify

        self.model.train()  # in eval mode its forward predicts nothing, and its loss is 0
        output = self.model(images)
        patches = patchify(images, (CHANNELS, PATCH, PATCH))
        patches = (patches - patches.mean(dim=-1, keepdim=True)) / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        return output.predictions, patches[:, 1:], output.loss


class StablePretrainingTurned(StablePretraining):
    """The same with its mask the other way round: timm takes True for "may look", and it gives True for "must not"."""

    def __init__(self) -> None:
        super().__init__()
        units = (SIZE // PATCH) ** 2 + 1
        self.model._mask_cache[units] = torch.ones(units, units, dtype=torch.bool).tril()


class AtItsOwnPlace(OrderPlan):
    """The output at each unit is compared with that unit, and all units count."""

    @property
    def predict(self) -> Tensor:
        return self.order[:, None]

    source = predict

    @property
    def weight(self) -> Tensor:
        return torch.ones(self.predict.shape)

    def may_use(self) -> Tensor:
        turn = torch.arange(self.grid.units)
        return (turn <= turn[:, None]).expand(len(self.order), 1, -1, -1) | (turn < self.prefix[:, None])[:, None, None]


class Lightly(Peer):
    """AIM as in the example: its attention, its head, its targets and its comparison."""

    prefix = 9

    def __init__(self) -> None:
        from lightly.models import utils
        from lightly.models.modules import AIMPredictionHead, MaskedCausalVisionTransformer

        vit = MaskedCausalVisionTransformer(
            img_size=SIZE, patch_size=PATCH, embed_dim=64, depth=6, num_heads=2, qk_norm=False, class_token=False,
            no_embed_class=True, num_classes=0, global_pool="avg", fc_norm=False,
        )  # fmt: skip
        utils.initialize_2d_sine_cosine_positional_embedding(pos_embedding=vit.pos_embed, has_class_token=False)
        head = AIMPredictionHead(input_dim=64, output_dim=CHANNELS * PATCH**2, hidden_dim=128, num_blocks=1)
        super().__init__(nn.ModuleDict({"vit": vit, "head": head}))

    def draw(self, images: Tensor, generator: Any = None) -> OrderPlan:
        plan = super().draw(images)
        return AtItsOwnPlace(plan.grid, plan.order, plan.prefix)

    def run(self, images: Tensor, plan: OrderPlan) -> tuple[Tensor, Tensor, Tensor]:
        from lightly.models import utils

        mask = torch.arange(plan.grid.units) >= plan.prefix[:, None]
        features = self.model.vit.forward_features(images, mask=mask)
        predictions = self.model.head(self.model.vit._pos_embed(features))
        targets = utils.normalize_mean_var(utils.patchify(images, PATCH), dim=-1)
        return predictions, targets, nn.functional.mse_loss(predictions, targets)


class LightlyShifted(Lightly):
    """The same attention and head, with each output compared with the next patch, after the prefix."""

    def draw(self, images: Tensor, generator: Any = None) -> OrderPlan:
        return Peer.draw(self, images)

    def run(self, images: Tensor, plan: OrderPlan) -> tuple[Tensor, Tensor, Tensor]:
        predictions, targets, _ = super().run(images, plan)
        predictions, targets = predictions[:, :-1], targets[:, 1:]
        losses = squared(predictions[:, None], targets[:, None])
        return predictions, targets, (losses * plan.weight).sum() / plan.weight.sum()


PEERS = {
    "stable-pretraining": (("iGPT as it comes", StablePretraining), ("mask turned round", StablePretrainingTurned)),
    "lightly": (("AIM as in its example", Lightly), ("outputs shifted by one", LightlyShifted)),
}


@dataclass(frozen=True)
class Found:
    """`leak` is how far predictions moved with pixels that they must not use; `floor` is 1 for an honest method."""

    package: str
    version: str
    what: str
    leak: float
    allowed: float
    floor: float


def examine() -> Iterator[tuple[Found, Peer]]:
    for package, variants in PEERS.items():
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            continue
        for what, build in variants:
            torch.manual_seed(0)
            peer = build()
            images = torch.randn(2, CHANNELS, SIZE, SIZE)
            leak = no_leak(peer, images, peer.draw(images))
            floor = noise_floor(build())
            yield Found(package, importlib.metadata.version(package), what, leak.worst, leak.allowed, floor), peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder for the dependency matrices of the peers as they come")
    parser.add_argument("--json", type=Path, help="write what was found into this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"torch {torch.__version__}, timm {timm.__version__}")
    for found, peer in examine():
        rows.append(asdict(found))
        print(
            f"{found.package} {found.version}, {found.what}: predictions moved by {found.leak:.2g} with pixels that "
            f"they must not use, by {found.allowed:.2g} with the others; after 100 steps on noise the loss is "
            f"{found.floor:.2f} of the variance"
        )
        if args.pictures and found.what == PEERS[found.package][0][0]:
            torch.manual_seed(0)
            images = torch.randn(1, CHANNELS, SIZE, SIZE)
            matrices = dependencies(peer, images, peer.draw(images))
            figure = draw_dependencies(*matrices, title=f"{found.package} {found.version}")
            figure.savefig(args.pictures / f"honesty-{found.package}.png", dpi=110, metadata={"Software": None})
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
