"""Functions that change tensors in place by name (``x.addcmul_(y, z)``), with code that makes new tensors instead.

``OutOfPlace`` sees such a call, but not who counts on it: Python binds no name anew. So the code itself is rewritten, for
functions that were read and pass on what they have changed: the statement ``x.addcmul_(y, z)`` as ``x = x.addcmul(y, z)``, a
change of a part of ``x`` on a copy of it. The numbers are the same, to the bit. A function keeps its identity, since only its
code changes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType

from torch import Tensor

_rewritten: dict[CodeType, CodeType | None] = {}
"""By the code that it stands for: the same for as long as Python runs, or what is compiled would be compiled again and again."""


def fresh_name(name: str) -> str | None:
    """``addcmul`` for ``addcmul_``; None for what is no tensor's method that changes it, or has no counterpart."""
    plain = name[:-1]
    is_one = name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name) and hasattr(Tensor, plain)
    return plain if is_one else None


def root_of(receiver: ast.expr) -> str | None:
    """The variable of which ``receiver`` is a part (``x`` for ``x[a:b]``), or a chain of changes of a part; None for others."""
    inner = receiver
    while isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and fresh_name(inner.func.attr):
        inner = inner.func.value
    while isinstance(inner, ast.Subscript):
        inner = inner.value
    return inner.id if isinstance(inner, ast.Name) else None


class Rewriter(ast.NodeTransformer):
    """Changes of variables, and of parts of them, in one function."""

    def __init__(self) -> None:
        self.changes = 0

    def visit_Expr(self, node: ast.Expr) -> ast.AST | list[ast.stmt]:
        call = node.value
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and fresh_name(call.func.attr)):
            return self.generic_visit(node)
        name, whole = root_of(call.func.value), isinstance(call.func.value, ast.Name)
        self.generic_visit(node)
        if name is None:
            return node
        place = ast.Name(name, ast.Store())
        if whole:
            return ast.copy_location(ast.Assign([place], node.value), node)
        copied = ast.Call(ast.Attribute(ast.Name(name, ast.Load()), "clone", ast.Load()), [], [])
        self.changes += 1
        return [ast.copy_location(ast.Assign([place], copied), node), node]

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        fresh = fresh_name(node.func.attr) if isinstance(node.func, ast.Attribute) else None
        if fresh is None or not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
            return node
        self.changes += 1
        changed = node.func.value
        made = ast.Call(ast.Attribute(changed, fresh, ast.Load()), node.args, node.keywords)
        kept = ast.Attribute(ast.Name(changed.id, ast.Load()), "dtype", ast.Load())
        return ast.copy_location(ast.Call(ast.Attribute(made, "to", ast.Load()), [kept], []), node)


def rewritten(function: FunctionType) -> CodeType | None:
    """Code of ``function`` without such changes; None where it has none, or where its source is not there to be read."""
    code = function.__code__
    if code not in _rewritten:
        _rewritten[code] = made = _made(function)
        if made is not None:
            _rewritten[made] = None  # for a model that is held while another is
    return _rewritten[code]


def _made(function: FunctionType) -> CodeType | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    defined = tree.body[0]
    if not isinstance(defined, ast.FunctionDef) or function.__code__.co_freevars:
        return None
    # What stands in the signature is on the function, and is not evaluated again.
    defined.decorator_list, defined.returns = [], None
    given = defined.args
    for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]:
        argument.annotation = None
    given.defaults = [ast.Constant(None) for _ in given.defaults]
    given.kw_defaults = [None if value is None else ast.Constant(None) for value in given.kw_defaults]
    rewriter = Rewriter()
    rewriter.visit(tree)
    if not rewriter.changes:
        return None
    ast.increment_lineno(ast.fix_missing_locations(tree), function.__code__.co_firstlineno - 1)
    module = compile(tree, function.__code__.co_filename, "exec", dont_inherit=True)
    return next(c for c in module.co_consts if isinstance(c, CodeType) and c.co_name == function.__name__)


@contextmanager
def rebound(functions: Iterable[FunctionType]) -> Iterator[None]:
    """While it lasts, none of ``functions`` changes a tensor that somebody else may have kept; afterwards they are as before."""
    before: list[tuple[FunctionType, CodeType]] = []
    try:
        for function in functions:
            code = rewritten(function)
            if code is not None:
                before.append((function, function.__code__))
                function.__code__ = code
        yield
    finally:
        for function, code in reversed(before):
            function.__code__ = code
