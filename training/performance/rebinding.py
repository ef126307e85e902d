"""Functions that change tensors in place by name (``x.addcmul_(y, z)``), with code that makes new tensors instead.

``OutOfPlace`` sees such a call, but not who counts on it: Python binds no name anew. So the code itself is rewritten, for
functions that were read and pass on what they have changed: the statement ``x.addcmul_(y, z)`` as ``x = x.addcmul(y, z)``, a
change of a part of ``x`` on a copy of it. The numbers are the same, to the bit. A function keeps its identity, since only its
code changes.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType

from torch import Tensor

# What of a compiled function does not depend on where it stands in which file.
COMPARED = (
    "co_name", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_posonlyargcount",
    "co_kwonlyargcount", "co_flags", "co_exceptiontable",
)  # fmt: skip

_rewritten: dict[CodeType, CodeType | None] = {}
"""By the code that it stands for: the same for as long as Python runs, or what is compiled would be compiled again and again."""


def fresh_name(name: str) -> str | None:
    """``addcmul`` for ``addcmul_``; None for what is no tensor's method that changes it, or has no counterpart."""
    plain = name[:-1]
    is_one = name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name) and hasattr(Tensor, plain)
    return plain if is_one else None


def unchained(receiver: ast.expr) -> ast.expr:
    """What the first of several changes, one after the other, is done to: ``x`` for ``x.mul_(y).add_(z)``."""
    while isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Attribute) and fresh_name(receiver.func.attr):
        receiver = receiver.func.value
    return receiver


def root_of(receiver: ast.expr) -> str | None:
    """The variable of which ``receiver`` is a part (``x`` for ``x[a:b]``), or a chain of changes of a part; None for others."""
    inner = unchained(receiver)
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
        name, whole = root_of(call.func.value), isinstance(unchained(call.func.value), ast.Name)
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
    if code not in _rewritten and (found := _definition(function)) is not None:
        tree, defined = found
        rewriter = Rewriter()
        rewriter.visit(defined)
        _rewritten[code] = made = _compiled(ast.fix_missing_locations(tree), code) if rewriter.changes else None
        if made is not None:
            _rewritten[made] = None  # for a model that is held while another is
    return _rewritten.get(code)


def is_lost(function: FunctionType) -> bool:
    """Whether ``function`` may change tensors by name, and its source cannot be read or is no longer that of what runs."""
    rewritten(function)
    return function.__code__ not in _rewritten and any(map(fresh_name, function.__code__.co_names))


def meaning(code: CodeType) -> tuple[object, ...]:
    """What a function does, wherever it stands in whichever file."""
    return *(getattr(code, name, None) for name in COMPARED), _key(code.co_consts)


def _key(constant: object) -> object:
    """Equal for constants that are the same, of which 1 and True, or 0.0 and -0.0, are not."""
    if isinstance(constant, CodeType):
        return meaning(constant)
    if isinstance(constant, (tuple, frozenset)):
        return type(constant), type(constant)(map(_key, constant))
    return type(constant), repr(constant)


def _definition(function: FunctionType) -> tuple[ast.Module, ast.FunctionDef] | None:
    """The file in which ``function`` is defined, and its definition there; None where the file does not say what runs.

    It may have been exchanged since it was imported, and something else stand at the function's lines. So it is compiled as it
    is, as a whole, since what a compiler makes of a function depends on what is imported around it, and only believed where that
    gives the very code that runs.
    """
    code = function.__code__
    try:
        tree = ast.parse("".join(inspect.findsource(function)[0]))
        same = _compiled(tree, code)
    except (OSError, TypeError, ValueError, SyntaxError):
        return None
    if same is None or meaning(same) != meaning(code) or code.co_freevars:
        return None
    return next(((tree, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _begins(node, code)), None)


def _begins(node: ast.FunctionDef, code: CodeType) -> bool:
    first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
    return (node.name, first) == (code.co_name, code.co_firstlineno)


def _compiled(tree: ast.Module, code: CodeType) -> CodeType | None:
    """What is at the place of ``code`` in a file."""
    found = [compile(tree, code.co_filename, "exec", dont_inherit=True)]
    for one in found:
        found += [inner for inner in one.co_consts if isinstance(inner, CodeType)]
    place = code.co_name, code.co_firstlineno
    return next((one for one in found if (one.co_name, one.co_firstlineno) == place), None)


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
