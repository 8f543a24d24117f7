"""The tests' own decorator finds what jaxtyping's finds."""

from __future__ import annotations

from typing import Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from tests.checked import jaxtyped


def product(left: Float[Tensor, "A B"], right: Float[Tensor, "B C"]) -> Float[Tensor, "A C"]:
    return left @ right if left.shape[0] > 1 else right


def named(name: str, count: int = 1) -> list[str]:
    return [name] * count if count else name  # type: ignore[return-value]


CHECKED: tuple[Any, Any] = (jaxtyped(product, typechecker=beartype), jaxtyped(named, typechecker=beartype))


@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        (0, (torch.ones(2, 3), torch.ones(3, 4)), (torch.ones(2, 3), torch.ones(4, 3))),
        (0, (torch.ones(2, 3), torch.ones(3, 4)), (torch.ones(1, 3), torch.ones(3, 4))),
        (1, ("a", 2), ("a", "2")),
        (1, ("a",), ("a", 0)),
    ],
    ids=["shape of an argument", "shape of the result", "type of an argument", "type of the result"],
)
def test_what_is_wrong_is_found(
    place: int, right: tuple[Any, ...], wrong: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    CHECKED[place](*right)
    with pytest.raises(Exception, match=r"(?i)type"):
        CHECKED[place](*wrong)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    CHECKED[place]("a" if place else torch.ones(2, 3), 2 if place else torch.ones(3, 4))


def test_a_nested_function_with_shapes_is_checked() -> None:
    @jaxtyped(typechecker=beartype)
    def inner(x: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return x[1:]

    with pytest.raises(jaxtyping.TypeCheckError):
        inner(torch.ones(3))


def test_the_library_is_checked() -> None:
    from patchcast.geometry import take

    with pytest.raises(jaxtyping.TypeCheckError):
        take(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.long))
