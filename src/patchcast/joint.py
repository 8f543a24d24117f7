"""Classify and generate at once: fine-tuning with both losses (Chen et al. 2020, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Real
from torch import Tensor, nn

from patchcast.backbones.backbone import CannotError
from patchcast.geometry import take
from patchcast.pretrainer import Pretrainer, weighted_mean


@dataclass
class JointOutput:
    """The output of a `JointClassifier`.

    Attributes:
        loss: the sum of both.
        generation: the pretrainer's own loss.
        classification: cross-entropy of the labels, in nats.
    """

    loss: Float[Tensor, ""]
    generation: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    logits: Float[Tensor, "B classes"]


class JointClassifier(nn.Module):
    """A linear classifier on the mean feature, trained together with the pretraining task.

    One pass gives both losses, and all weights are trained. The paper found L_GEN + L_CLF better than L_CLF alone, the
    head at the final layer better than at the best one, and a learning rate of a tenth of the pretraining's, constant.

    >>> from patchcast.geometry import Grid
    >>> from patchcast.backbones.imagegpt_network import ImageGPT, ImageGPTBackbone
    >>> from patchcast.methods.imagegpt import imagegpt
    >>> from patchcast.tokenizers.palette import Palette
    >>> palette = Palette(torch.tensor([[-1.0], [1.0]]))
    >>> network = ImageGPT(Grid(4, 4), 2, depth=1, width=8, heads=2)
    >>> model = JointClassifier(imagegpt(ImageGPTBackbone(network, palette, channels=1)), classes=10)
    >>> output = model(torch.zeros(3, 1, 4, 4), torch.tensor([1, 2, 3]))
    >>> f"{output.classification:.3f} {output.generation:.3f}"  # ln 10 and ln 2: both heads start from zero
    '2.303 0.693'

    Args:
        pretrainer: a method whose view holds every unit (ImageGPT, AIM).
        classes: of the labels.
    Raises:
        CannotError: if the pretrainer's view leaves units out.
    """

    def __init__(self, pretrainer: Pretrainer, classes: int) -> None:
        super().__init__()
        if not pretrainer.view.holds_hidden:
            raise CannotError(
                f"{type(pretrainer.view).__name__} leaves units out; their mean is not a feature of the image"
            )
        self.pretrainer = pretrainer
        self.head = nn.Linear(pretrainer.backbone.width, classes, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Real[Tensor, "B C H W"], labels: Int[Tensor, " B"]) -> JointOutput:
        parts = self.pretrainer
        plan = parts.draw(images)
        context = parts.view(parts.backbone, images, plan)
        predictions = parts.predictor(context, plan).float()
        with torch.no_grad():
            targets = take(parts.target(images), plan.predict)
        generation = weighted_mean(parts.loss(predictions, targets), plan.weight)
        logits = self.head(context.units.mean(dim=1)).float()
        classification = F.cross_entropy(logits, labels)
        return JointOutput(generation + classification, generation, classification, logits)

    @torch.no_grad()
    def classify(self, images: Real[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits of whole images. Does not change train or eval mode."""
        return self.head(self.pretrainer.backbone.units(images).mean(dim=1)).float()
