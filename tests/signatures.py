"""Enforces the shapes in the package's signatures while tests run: `install()` before the first import of vidcourse.

A function that is handed an array its signature forbids must refuse it. So the check comes after the call: an error that the function raises itself (a bad-input test, an example
in a notebook) passes through, a call that *succeeds* with a forbidden array is a `SignatureError`, and so is a result of the wrong shape. Only arrays are checked; numbers and lists are converted freely.
"""

import ast
import functools
import importlib.machinery
import inspect
import sys
import types
import typing

import jaxtyping
import numpy as np
import torch


class SignatureError(AssertionError):
    "A function broke its own signature."


def fits(value, hint) -> bool:
    "Is a value, as far as it is an array or a tuple of arrays, what the hint says?"
    if (
        isinstance(value, tuple)
        and typing.get_origin(hint) is tuple
        and Ellipsis not in typing.get_args(hint)
    ):
        return all(map(fits, value, typing.get_args(hint)))
    if hint is typing.Any or not isinstance(value, (np.ndarray, torch.Tensor)):
        return True
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(hint))
    if not isinstance(hint, type) or isinstance(hint, types.GenericAlias):
        return not isinstance(hint, types.GenericAlias)
    try:
        return isinstance(value, hint) or hint in (int, float) and value.ndim == 0
    except (
        jaxtyping.AnnotationError
    ):  # an axis like n+1 before n is known: nothing to compare with
        return True


def enforced(function):
    "The function with its signature enforced."
    hints = {
        name: hint
        for name, hint in getattr(function, "__annotations__", {}).items()
        if not isinstance(hint, str)
    }
    signature = inspect.signature(function)
    plain = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        wrong = [
            name
            for name, value in given.items()
            if name in hints and name in plain and not fits(value, hints[name])
        ]
        result = function(*args, **kwargs)

        def tell(value):
            return (
                f"{value.dtype} {tuple(value.shape)}"
                if hasattr(value, "shape")
                else str(value)[:200]
            )

        if wrong:
            raise SignatureError(
                f"{function.__module__}.{function.__qualname__} accepted {wrong[0]} = {tell(given[wrong[0]])}, its signature says {hints[wrong[0]]}"
            )
        if not fits(result, hints.get("return", typing.Any)):
            raise SignatureError(
                f"{function.__module__}.{function.__qualname__} returned {tell(result)}, its signature says {hints['return']}"
            )
        return result

    return jaxtyping.jaxtyped(wrapper, typechecker=None) if hints else function


class Loader(importlib.machinery.SourceFileLoader):
    "Loads a module with every function decorated by `enforced`; no cached byte code."

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.decorator_list.append(
                    ast.copy_location(
                        ast.Attribute(
                            ast.Name("signatures_in_tests", ast.Load()), "enforced", ast.Load()
                        ),
                        node,
                    )
                )
        at = (
            1
            if tree.body
            and isinstance(tree.body[0], ast.Expr)
            and isinstance(tree.body[0].value, ast.Constant)
            else 0
        )
        tree.body.insert(at, ast.Import([ast.alias("signatures", "signatures_in_tests")]))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class Finder:
    "Finds vidcourse's modules as usual, but hands them to `Loader`."

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] != "vidcourse":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(name, spec.loader.path)
        return spec


def install() -> None:
    "From now on, modules of vidcourse are imported with their signatures enforced."
    assert not any(name.split(".")[0] == "vidcourse" for name in sys.modules), (
        "vidcourse was imported before its signatures could be enforced"
    )
    sys.meta_path.insert(0, Finder)
