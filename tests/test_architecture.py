"""What holds for the source as a whole: how much a function may ask of its caller."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mast_ops"
MOST = 5
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def functions(tree: ast.AST, inside: ast.AST | None = None) -> Iterator[tuple[ast.FunctionDef, bool]]:
    """Every function, and whether it is a method that Python hands its object."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            static = any(isinstance(x, ast.Name) and x.id == "staticmethod" for x in node.decorator_list)
            yield node, isinstance(inside, ast.ClassDef) and not static
        yield from functions(node, node if isinstance(node, ast.FunctionDef | ast.ClassDef) else inside)


def runs_on_a_gpu(function: ast.FunctionDef) -> bool:
    """Kernels take pointers, sizes and strides one by one."""
    return any(ast.unparse(x) in ("triton.jit", "_kernel") for x in function.decorator_list)


def too_many(source: str) -> list[str]:
    return [
        function.name
        for function, bound in functions(ast.parse(source))
        if len(function.args.posonlyargs) + len(function.args.args) - bound > MOST and not runs_on_a_gpu(function)
    ]


@pytest.mark.parametrize("file", FILES)
def test_no_function_takes_more_than_five_positional_parameters(file):
    """What is registered with torch.library takes a flat list, and does so by ``*flat``."""
    assert too_many((PACKAGE / file).read_text()) == []


def test_the_count_sees_methods_and_kernels_as_they_are():
    assert too_many("def f(a, b, c, d, e, *, g): ...") == []
    assert too_many("def f(a, b, c, d, e, g): ...") == ["f"]
    assert too_many("class A:\n    def f(self, a, b, c, d, e): ...\n    def g(self, a, b, c, d, e, f): ...") == ["g"]
    assert too_many("@triton.jit\ndef kernel(a, b, c, d, e, f, g): ...") == []
