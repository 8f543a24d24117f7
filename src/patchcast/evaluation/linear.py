"""The linear probe: logistic regression to convergence, with its strength chosen on held-out training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from patchcast.data.splits import stratified_split
from patchcast.evaluation.features import Features, check_probe

STRENGTHS = tuple(10 ** (half / 2) for half in range(-10, 5))  # 1e-5 to 100, two per decade


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted linear classifier of standardized features.

    Attributes:
        mean, scale: of the training features, for standardization.
        classes: label of each output.
        strength: scikit-learn's C, the weight of the data against the penalty.
    """

    mean: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    weight: Float[Tensor, "D K"]
    bias: Float[Tensor, " K"]
    classes: Int[Tensor, " K"]
    strength: float

    def logits(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        return (x.to(self.mean) - self.mean) / self.scale @ self.weight + self.bias

    def predict(self, x: Float[Tensor, "N D"]) -> Int[Tensor, " N"]:
        return self.classes[self.logits(x).argmax(dim=1)]

    def accuracy(self, features: Features) -> float:
        """Share of images, in [0, 1], whose class is predicted."""
        return float((self.predict(features.x) == features.labels).double().mean())


@dataclass(frozen=True)
class LinearResult:
    """The result of the linear probe.

    Attributes:
        accuracy: on the test images, in [0, 1].
        strength: the chosen C.
        validation: held-out accuracy for each strength; empty if there was only one.
        probe: the classifier, fitted on all training images.
    """

    accuracy: float
    strength: float
    validation: dict[float, float]
    probe: LogisticProbe


def linear_probe(
    train: Features, test: Features, *, strengths: Sequence[float] = STRENGTHS, held_out: float = 0.2, seed: int = 0
) -> LinearResult:
    """Multinomial logistic regression on standardized features; the L2 strength is chosen on held-out training images.

    Minimizes C * sum of cross-entropies + ||w||^2 / 2, without a penalty on the intercept, as scikit-learn's
    `LogisticRegression`. Each strength is fitted on a stratified part of `train` and evaluated on the rest; the best
    (of equals, the smallest) is fitted again on all of `train`. `test` is used once.

    >>> generator = torch.Generator().manual_seed(0)
    >>> labels = torch.arange(60) % 3
    >>> x = F.one_hot(labels, 3) + 0.1 * torch.randn(60, 3, generator=generator)
    >>> linear_probe(Features(x[:30], labels[:30]), Features(x[30:], labels[30:])).accuracy
    1.0

    Args:
        strengths: values of C. With a single one, no images are held out.
        held_out: share of each class for choosing the strength.
        seed: of the held-out draw, the only random step.
    Raises:
        ValueError: if the features cannot be probed, or no class has two images, so that none can be held out.
    """
    check_probe(train, test)
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be positive numbers, at least one; got {tuple(strengths)}")
    validation: dict[float, float] = {}
    best = strengths[0]
    if len(strengths) > 1:
        fit, held = stratified_split(train.labels, held_out, generator=torch.Generator().manual_seed(seed))
        judge = train.take(held)
        validation = {probe.strength: probe.accuracy(judge) for probe in logistic_path(train.take(fit), strengths)}
        best = max(validation, key=lambda strength: (validation[strength], -strength))
    probe = next(logistic_path(train, [best]))
    return LinearResult(probe.accuracy(test), best, validation, probe)


def logistic_path(
    train: Features, strengths: Sequence[float], *, class_weights: Float[Tensor, " K"] | None = None
) -> Iterator[LogisticProbe]:
    """Fitted classifiers from the smallest strength to the largest, each initialized with the previous one.

    >>> train = Features(torch.tensor([[0.], [1.], [2.], [3.]]), torch.tensor([0, 0, 1, 1]))
    >>> [round(float(probe.weight[0, 1]), 3) for probe in logistic_path(train, (0.1, 1.0))]
    [0.149, 0.684]

    L-BFGS in double precision with preconditioning: features are rotated onto their principal axes, which does not
    change the penalty, and each axis is scaled by its expected curvature. This takes tens of evaluations instead of
    hundreds, and with few images there are fewer axes than features.

    Args:
        class_weights: of the loss of each label's images, by label; all 1 if None.
    """
    x, mean, scale = standardize(train.x)
    z, axes, variance = principal_axes(x)
    z = F.pad(z, (0, 1), value=1.0)  # the intercept is the last coordinate
    classes, targets = train.labels.unique(return_inverse=True)
    weight = z.new_zeros(z.shape[1], len(classes))
    of_class = None if class_weights is None else class_weights.to(z)[classes]
    for strength in sorted(strengths):
        weight = _minimize(z, targets, variance, strength, start=weight, class_weights=of_class)
        yield LogisticProbe(mean, scale, axes @ weight[:-1], weight[-1], classes, strength)


def standardize(
    x: Float[Tensor, "N D"],
) -> tuple[Float[Tensor, "N D"], Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Features with mean 0 and variance 1 in double precision, and the mean and scale that were used.

    >>> standardize(torch.tensor([[1., 5.], [3., 5.]]))[0].tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    x = x.double()
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    # A constant feature varies by rounding errors only, which must not be scaled up to variance 1.
    scale = torch.where(scale > 1e-12 * (1 + mean.abs()), scale, 1.0)
    return (x - mean) / scale, mean, scale


def principal_axes(
    x: Float[Tensor, "N D"],
) -> tuple[Float[Tensor, "N R"], Float[Tensor, "D R"], Float[Tensor, " R"]]:
    """Coordinates, directions and squared lengths along the principal axes of `x`.

    >>> principal_axes(torch.tensor([[3., 0., 4.]]))[2].tolist()
    [25.0]
    """
    images, width = x.shape
    if images >= width:
        squares, axes = torch.linalg.eigh(x.T @ x)
        return x @ axes, axes, squares.clamp(min=0)
    squares, sides = torch.linalg.eigh(x @ x.T)
    keep = squares > 1e-10 * squares[-1]
    lengths = squares[keep].sqrt()
    return sides[:, keep] * lengths, x.T @ sides[:, keep] / lengths, squares[keep]


def _minimize(
    z: Float[Tensor, "N R1"],
    targets: Int[Tensor, " N"],
    variance: Float[Tensor, " R"],
    strength: float,
    *,
    start: Float[Tensor, "R1 K"],
    class_weights: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "R1 K"]:
    images = len(z)
    # Curvature of the data term is strength * p(1-p) * variance. 0.03 for p(1-p) took the fewest evaluations over
    # 0.1, 0.03 and 0.01; it changes the path, not the minimum.
    curvature = torch.cat([variance * (0.03 * strength) + 1, variance.new_tensor([0.03 * strength * images])])
    step = curvature.rsqrt()[:, None]
    scaled = (start / step).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled],
        max_iter=2000,
        max_eval=8000,
        history_size=20,
        # Of a gradient in coordinates of curvature about one, so nearly the distance from the minimum.
        tolerance_grad=1e-4 * min(1.0, strength * images),
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        weight = scaled * step
        errors = F.cross_entropy(z @ weight, targets, weight=class_weights, reduction="sum")
        loss = strength * errors + weight[:-1].square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return (scaled * step).detach()
