"""Registration with torch.library, so that operators compose with autograd, compile, export and fake tensors."""

from collections.abc import Callable, Sequence
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


def with_gradient(
    name: str,
    inputs: str,
    forward: Operator,
    fake: Operator,
    backward: Operator,
    *,
    learned: Sequence[str],
    outputs: int = 1,
    saved: int = 0,
    needed: Sequence[str] | None = None,
) -> Operator:
    """Define an operator, and ``{name}_backward`` as its gradient, which is an operator too.

    Args:
        name: Of the operator.
        inputs: Its schema, tensors before constants.
        forward: What runs it: called with the inputs, gives ``outputs + saved`` tensors.
        fake: The same for shapes and dtypes.
        backward: Called with the gradients of the outputs, the saved ones, and the needed inputs; gives gradients of
            those that are learned, None for those that are missing.
        learned: Names of the inputs that have a gradient, which is in the input's own dtype.
        outputs: How many outputs there are.
        saved: How many more there are that only the gradient needs.
        needed: Names of the inputs that the gradient needs; all of them unless given.
    """
    declared = inputs.split(", ")
    names = [one.split()[-1] for one in declared]
    needed = names if needed is None else needed
    places = [names.index(one) for one in needed]
    tensors = [i for i in places if declared[i].startswith("Tensor")]
    constants = [i for i in places if i not in tensors]
    targets = [needed.index(one) for one in learned]
    operator = register(f"{name}({inputs}) -> {_tensors(outputs + saved)}", forward, fake)

    def run(*args: Any) -> tuple[Tensor, ...]:
        leaves = [args[outputs + saved + i] for i in targets]
        # An operator returns tensors: one of no elements stands for None.
        return tuple(
            args[0].new_empty(0) if x is None else grad.to(x.dtype)
            for x, grad in zip(leaves, backward(*args), strict=True)
        )

    def run_fake(*args: Any) -> tuple[Tensor, ...]:
        leaves = [args[outputs + saved + i] for i in targets]
        return tuple(args[0].new_empty(0) if x is None else x.new_empty(x.shape) for x in leaves)

    given = [*(f"Tensor g{i}" for i in range(outputs)), *(f"Tensor saved{i}" for i in range(saved))]
    schema = ", ".join([*given, *(declared[i] for i in places)])
    gradient = register(f"{name}_backward({schema}) -> {_tensors(len(learned))}", run, run_fake)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        extra = output[outputs:] if saved else ()
        ctx.save_for_backward(*extra, *(inputs[i] for i in tensors))
        ctx.mark_non_differentiable(*extra)
        ctx.constants = [inputs[i] for i in constants]

    def pull_back(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values = ctx.saved_tensors
        all_grads: list[Tensor | None] = [None] * len(names)
        found = gradient(*grads[:outputs], *values, *ctx.constants)
        for one, i, grad in zip(learned, targets, found, strict=True):
            all_grads[names.index(one)] = None if values[saved + i] is None else grad
        return tuple(all_grads)

    differentiate(operator, save, pull_back)
    _refuse_gradients(gradient)
    return operator


def differentiate(operator: Operator, setup_context: Operator, backward: Operator) -> None:
    """Give an operator its gradient."""
    torch.library.register_autograd(
        operator._schema.name,  # type: ignore[attr-defined]
        backward,
        setup_context=setup_context,
        lib=_library,
    )


def _refuse_gradients(operator: Operator) -> None:
    """Let a gradient of a gradient say what to do, instead of being silently zero."""

    def refuse(ctx: object, *grads: object) -> None:
        raise RuntimeError(
            "mast_ops: got a gradient of a gradient, wanted only first ones of the fused operators; "
            "pass backend='eager', whose plain formulas can be differentiated any number of times"
        )

    differentiate(operator, lambda ctx, inputs, output: None, refuse)


def _tensors(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"
