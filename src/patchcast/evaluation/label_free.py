"""Measures of an embedding without labels. Each describes its spectrum; none replaces a probe."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rankme(x: Float[Tensor, "N D"], *, epsilon: float = 1e-7) -> float:
    """RankMe: the effective number of directions of the embeddings, 1 to min(N, D) (Garrido et al. 2023, eq. 1 and 2).

    exp of the entropy of p_k = sigma_k / sum(sigma) + epsilon, where sigma are the singular values of the embeddings
    as they are, not centered. The paper uses 25,600 images, and shows that fewer give less.

    >>> round(rankme(torch.eye(8)), 3)
    8.0
    """
    return effective_rank(torch.linalg.svdvals(x.double()), epsilon)


def lidar(x: Float[Tensor, "N Q D"], *, delta: float = 1e-4, epsilon: float = 1e-7) -> float:
    """LiDAR: the effective number of directions that separate images and not views (Thilak et al. 2024, section 3).

    The entropy rank of S_w^-1/2 S_b S_w^-1/2. S_b is the covariance of the images' mean embeddings, S_w that of the
    views around their image's mean, plus `delta` on the diagonal. At most N - 1, so take more images than D; the paper
    takes 1,000 images and 50 views, or 10,000 and 10.

    >>> generator = torch.Generator().manual_seed(0)
    >>> images = torch.cat([torch.eye(4), -torch.eye(4)])
    >>> round(lidar(images[:, None] + 1e-3 * torch.randn(8, 50, 4, generator=generator)), 1)
    4.0

    Args:
        x: Q augmented views of each of N images, for example `torch.stack` of Q calls of `extract` on loaders that
            augment.
        delta: keeps S_w invertible.
    Raises:
        ValueError: if there is only one image, or one view per image.
    """
    images, views, width = x.shape
    if images < 2 or views < 2:
        raise ValueError(f"LiDAR needs at least 2 images and 2 views of each; got {images} and {views}")
    x = x.double()
    means = x.mean(dim=1)
    between, within = means - means.mean(dim=0), (x - means[:, None]).flatten(0, 1)
    s_between = between.T @ between / images
    s_within = within.T @ within / len(within) + delta * torch.eye(width, dtype=x.dtype, device=x.device)
    # With S_w = L L^T, L^-1 S_b L^-T has the eigenvalues of S_w^-1/2 S_b S_w^-1/2.
    factor = torch.linalg.cholesky(s_within)
    half = torch.linalg.solve_triangular(factor, s_between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    return effective_rank(torch.linalg.eigvalsh((whitened + whitened.T) / 2).clamp(min=0), epsilon)


def alpha_req(x: Float[Tensor, "N D"], *, ranks: tuple[int, int] = (4, 100)) -> float:
    """alpha-ReQ: the power-law decay of the covariance eigenvalues, lambda_i ~ i^-alpha (Agrawal et al. 2022).

    In the paper, values near 1 go with good probes; much larger means few directions, much smaller means noise.

    >>> axes = torch.linalg.qr(torch.randn(500, 60, generator=torch.Generator().manual_seed(0)).double()).Q
    >>> axes = torch.linalg.qr(axes - axes.mean(dim=0)).Q
    >>> round(alpha_req(axes * torch.arange(1, 61) ** -0.75), 3)
    1.5

    Args:
        ranks: first and last eigenvalue, counted from 1, of the straight line through log(lambda) over log(i), each
            weighted by 1 / i. The paper gives no range; this one is from the authors' published code. Eigenvalues that
            are zero up to rounding are left out.
    Raises:
        ValueError: if fewer than 3 eigenvalues are left.
    """
    x = x.double()
    squares = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    squares = squares[squares > squares[0] * 1e-14][: min(len(x) - 1, x.shape[1])]
    first, last = ranks[0], min(ranks[1], len(squares))
    if last - first < 2:
        raise ValueError(f"alpha-ReQ fits eigenvalues {first} to {ranks[1]}; these features have {len(squares)}")
    index = torch.arange(first, last + 1, dtype=x.dtype, device=x.device)
    weight, log_index, log_value = 1 / index, index.log(), squares[first - 1 : last].log()
    log_index = log_index - (weight * log_index).sum() / weight.sum()
    return -float((weight * log_index * log_value).sum() / (weight * log_index.square()).sum())


def effective_rank(spectrum: Float[Tensor, " K"], epsilon: float = 0.0) -> float:
    """exp of the entropy of the spectrum divided by its sum (Roy and Vetterli 2007).

    >>> round(effective_rank(torch.tensor([2.0, 2.0, 0.0])), 6)
    2.0
    """
    return float(torch.special.entr(spectrum / spectrum.sum() + epsilon).sum().exp())
