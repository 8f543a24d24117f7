"""Whether a model still computes what its library's class does: an adapter reimplements some of its methods."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

LIBRARIES = frozenset({"timm", "torchvision"})
KNOWN = LIBRARIES | {"torch", "patchcast"}

# Methods of timm's models that `forward_features` does not depend on.
HARMLESS = frozenset(
    {
        *("__init__", "forward", "forward_head", "forward_intermediates", "get_intermediate_layers", "pool", "_pool"),
        *("prune_intermediate_layers", "get_classifier", "reset_classifier", "init_weights", "_init_weights"),
        *("_initialize_weights", "fix_init_weight", "load_pretrained", "group_matcher", "no_weight_decay"),
        *("no_weight_decay_keywords", "set_grad_checkpointing", "set_input_size", "set_distilled_training"),
        *("freeze_patch_emb", "fuse"),
    }
)


def changed_methods(module: nn.Module) -> set[str]:
    """Methods of a library's class that a subclass, the instance or a patch of the class has replaced.

    For a module whose class derives from no library class, this is `forward`.

    >>> import timm
    >>> model = timm.create_model("test_vit")
    >>> model._pos_embed = model._pos_embed
    >>> changed_methods(model), changed_methods(model.blocks[0])
    ({'_pos_embed'}, set())
    """
    if top(type(module)) == "torch":
        return {"forward"} & vars(module).keys()
    own = [cls for cls in type(module).__mro__ if top(cls) in LIBRARIES]
    if not own:
        return set() if top(type(module)) in KNOWN else {"forward"}
    names = {name for cls in own for name, value in vars(cls).items() if callable(value)}
    return {name for name in names if name in vars(module) or not _is_the_librarys(type(module), name)}


def _is_the_librarys(cls: type, name: str) -> bool:
    owner = next(base for base in cls.__mro__ if name in vars(base))
    function = vars(owner)[name]
    # A function that was patched into the library's class comes from another module, whatever its name.
    home = getattr(function, "__globals__", {}).get("__name__", owner.__module__)
    return top(owner) == "patchcast" or (top(owner) in KNOWN and home.split(".")[0] in KNOWN)


def top(cls: type) -> str:
    """The package that a class is from."""
    return cls.__module__.split(".")[0]


def check_methods(model: Any, written_out: Mapping[str, frozenset[str]], harmless: frozenset[str] = HARMLESS) -> None:
    """Raise an error for a model that computes something else than the class that its adapter was written for.

    Args:
        written_out: paths of modules whose `forward` or `forward_features` the adapter reimplements ("" for the
            model), each with the methods that it still calls.
        harmless: methods of the model that may be replaced.
    Raises:
        ValueError: if a method that the adapter reimplements was replaced.
    """
    for path, called in written_out.items():
        part = model
        for name in path.split(".") if path else ():
            part = getattr(part, name, None)
        if part is None:
            continue
        changed = changed_methods(part) - called - (harmless if path == "" else harmless - {"forward"})
        if changed:
            base = next((cls for cls in type(part).__mro__ if top(cls) in LIBRARIES), type(part))
            raise ValueError(
                f"{path or type(model).__name__} is no plain {base.__name__} of {top(base)}: it has a "
                f"{', '.join(sorted(changed))} that this backbone would not call; change the modules "
                f"that it is made of instead{_or_called(called)}, or add an adapter: docs/add-a-backbone.md"
            )


def _or_called(called: frozenset[str]) -> str:
    return f" (or {', '.join(sorted(called))})" if called else ""


def is_plain(module: Any) -> bool:
    """Whether the module computes what its library's class does, so that another class may take its place."""
    return not changed_methods(module) - {"__init__"}


def foreign_parts(blocks: Iterable[nn.Module]) -> set[str]:
    """Classes of blocks, attention and MLPs that are not from a library: they may depend on token positions."""
    found = set()
    for block in blocks:
        inside = [part for name, part in block.named_children() if any(kind in name for kind in ("att", "mlp", "ffn"))]
        found |= {type(part).__name__ for part in [block, *inside] if not is_plain(part)}
    return found


def warn_of_foreign(name: str, parts: set[str]) -> None:
    warnings.warn(
        f"{name} has parts that are not its library's ({', '.join(sorted(parts))}), which may depend on where tokens "
        'stand: it can "replace" and "paint"; if they do not, add "drop" or "attend" to `backbone.can`',
        stacklevel=2,
    )
