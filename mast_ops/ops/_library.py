"""Registration with torch.library, so that operators compose with autograd, compile, export and fake tensors."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mast_ops._precision import no_autocast

_NAMESPACE = "mast_ops"
# Not torch.library.custom_op: its wrapper costs more than a kernel on a GPU takes.
_library = torch.library.Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]

Operator = Callable[..., Any]


def register(schema: str, implementation: Operator, fake: Operator) -> Operator:
    """Define an operator that autocast leaves alone; the callable that is returned is the way to call it."""
    name = schema.split("(", 1)[0]

    def run(first: Tensor, *args: object) -> object:
        with no_autocast(first):
            return implementation(first, *args)

    _library.define(schema)  # type: ignore[no-untyped-call]
    _library.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_library)
    operator: Operator = getattr(getattr(torch.ops, _NAMESPACE), name).default
    return operator


def without_none(grads: Iterable[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors: one of no elements stands for None."""
    return tuple(like.new_empty(0) if grad is None else grad for grad in grads)


def differentiate(operator: Operator, setup_context: Operator, backward: Operator) -> None:
    """Give an operator its gradient."""
    torch.library.register_autograd(
        operator._schema.name,  # type: ignore[attr-defined]
        backward,
        setup_context=setup_context,
        lib=_library,
    )


def differentiate_once(operator: Operator) -> None:
    """Let a gradient of a gradient say what to do, instead of being silently zero."""

    def refuse(ctx: object, *grads: object) -> None:
        raise RuntimeError(
            "mast_ops: got a gradient of a gradient, wanted only first ones of the fused operators; "
            "pass backend='eager', whose plain formulas can be differentiated any number of times"
        )

    differentiate(operator, lambda ctx, inputs, output: None, refuse)
