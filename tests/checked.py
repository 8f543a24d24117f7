"""Shapes and types are checked in every test, as jaxtyping's import hook does it, for a fifth less processor time.

The hook's own decorator makes two functions for each one that is defined, also where it is never called, and again
whenever an outer function is called; it notes the arguments of every call for the sizes in them, and checks them again
with the result. Here a function is decorated when it is first called, by beartype alone: inside a scope of jaxtyping if
it has shapes, so that a name stands for one size in all of them. A nested one without shapes is not decorated.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import AbstractArray
from jaxtyping._storage import pop_shape_memo, push_shape_memo

WITH_SHAPES = jaxtyping.jaxtyped
"""jaxtyping's own decorator. It is used for generators: beartype would check what they yield outside of any scope."""


def meaning(annotation: Any, names: dict[str, Any]) -> Any:
    """Of a string; Any if it names what is imported for type checkers only, as jaxtyping has it."""
    owner = types.SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(owner, names, include_extras=True)["it"]
    except Exception:
        return Any


def has_shape(hint: Any) -> bool:
    if isinstance(hint, list | tuple):
        return any(map(has_shape, hint))
    parts = typing.get_args(hint)
    return any(map(has_shape, parts)) if parts else inspect.isclass(hint) and issubclass(hint, AbstractArray)


def hints_of(function: types.FunctionType) -> dict[str, Any]:
    return {name: meaning(text, function.__globals__) for name, text in function.__annotations__.items()}


NESTED: dict[types.CodeType, bool] = {}
"""Whether a function that is defined anew at every call of another has shapes."""


def is_nested_without_shapes(function: types.FunctionType) -> bool:
    if "<locals>" not in function.__qualname__:
        return False
    if function.__code__ not in NESTED:
        NESTED[function.__code__] = any(map(has_shape, hints_of(function).values()))
    return not NESTED[function.__code__]


def in_scope(checked: Callable[..., Any]) -> Callable[..., Any]:
    """Each call gets a scope of jaxtyping, in which a name stands for one size."""

    def called(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo({})
        try:
            return checked(*args, **kwargs)
        except BeartypeCallHintViolation as problem:
            raise jaxtyping.TypeCheckError(str(problem)) from problem
        finally:
            pop_shape_memo()

    return called


def decorated(function: types.FunctionType, typechecker: Any) -> Callable[..., Any]:
    hints = hints_of(function)
    has_shapes = any(map(has_shape, hints.values()))
    if has_shapes and inspect.isgeneratorfunction(function):
        return WITH_SHAPES(function, typechecker=typechecker)
    code, defaults, closure = function.__code__, function.__defaults__, function.__closure__
    copy = types.FunctionType(code, function.__globals__, function.__name__, defaults, closure)
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, hints
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    try:
        return in_scope(beartype(copy)) if has_shapes else beartype(copy)
    except Exception:  # for `Self`, which beartype knows inside of classes only
        return WITH_SHAPES(function, typechecker=typechecker)


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`, with its import hook."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not inspect.isfunction(function):
        return WITH_SHAPES(function, typechecker=typechecker)
    if not function.__annotations__ or is_nested_without_shapes(function):
        return function
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def at_first_call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if checked is None:
            checked = decorated(function, typechecker)
        return checked(*args, **kwargs)

    return at_first_call
