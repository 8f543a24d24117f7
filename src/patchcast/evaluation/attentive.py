"""The attentive probe: one learnt query looks at the units of the frozen backbone (El-Nouby et al. 2024, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from patchcast.evaluation.features import TokenFeatures, check_probe


class AttentiveProbe(nn.Module):
    """Attention pooling and a linear classifier: 2 * width^2 + width * (1 + classes) parameters.

    What autoregressive and masked methods learn sits in the units, and is lost on their plain mean.

    >>> AttentiveProbe(width=64, heads=4, classes=10)(torch.zeros(2, 16, 64)).shape
    torch.Size([2, 10])

    Raises:
        ValueError: if width is not divisible by heads.
    """

    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"the attentive probe needs its width divisible by its heads; got {width} and {heads}")
        self.heads = heads
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.query = nn.Parameter(0.02 * torch.randn(1, width))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.classify = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B K"]:
        x = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        query = self._split(self.query.expand(len(x), 1, -1))  # the query is learnt as it is: no projection
        pooled = F.scaled_dot_product_attention(query, self._split(self.key(x)), self._split(self.value(x)))
        return self.classify(pooled.transpose(1, 2).flatten(2).mean(dim=1))

    def _split(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B heads M d"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


@dataclass(frozen=True)
class AttentiveResult:
    """What the attentive probe found: accuracy on the test images, in [0, 1]; which were right; the probe itself."""

    accuracy: float
    correct: Bool[Tensor, " N"]
    probe: AttentiveProbe


def attentive_probe(
    train: TokenFeatures,
    test: TokenFeatures,
    *,
    heads: int,
    epochs: int = 30,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AttentiveResult:
    """Train an attentive probe on cached units, with AdamW and a cosine to 0.

    >>> units, labels = torch.randn(40, 4, 8), torch.arange(40) % 2
    >>> units[:, 2] += 4 * labels[:, None]
    >>> tokens = TokenFeatures(units, labels)
    >>> attentive_probe(tokens, tokens, heads=2, epochs=20, batch_size=20, lr=1e-2).accuracy > 0.9
    True

    Args:
        train, test: from `extract_tokens`, which averages raw block outputs as AIM does.
        heads: AIM takes as many as the backbone has.
        seed: of the weights and of the order of the images; global random states are left alone.
        device: where the probe is trained; the features may stay where they are, batches travel.
    Raises:
        ValueError: if the features cannot be probed.
    """
    check_probe(train, test)
    classes, targets = train.labels.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        probe = AttentiveProbe(train.x.shape[2], heads, len(classes)).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * -(-len(train) // batch_size))
    for _ in range(epochs):
        for index in torch.randperm(len(train), generator=generator).split(batch_size):
            if len(index) == 1 and train.x.shape[1] == 1:
                continue  # batch norm needs two tokens
            index = index.to(train.x.device)
            loss = F.cross_entropy(probe(train.x[index].to(device)), targets[index].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    correct = _predict(probe, test.x, classes, batch_size, device) == test.labels
    return AttentiveResult(float(correct.double().mean()), correct, probe)


@torch.no_grad()
def _predict(
    probe: AttentiveProbe,
    x: Float[Tensor, "N L D"],
    classes: Int[Tensor, " K"],
    batch_size: int,
    device: torch.device | str,
) -> Int[Tensor, " N"]:
    probe.eval()
    rows = [probe(part.to(device)).argmax(dim=1).to(classes.device) for part in x.split(batch_size)]
    return classes[torch.cat(rows)]
