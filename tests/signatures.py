"""Enforces the shapes in the package's signatures while tests run.

Call `install()` before the first import of vidcourse.

A function that is handed an array its signature forbids must refuse it. So the check comes after
the call: an error that the function raises itself (a bad-input test, an example in a notebook)
passes through; a call that *succeeds* with a forbidden array is a `SignatureError`, and so is a
result of the wrong shape. Only arrays are checked; numbers and lists are converted freely.
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
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, tuple) and origin is tuple and Ellipsis not in options:
        return all(map(fits, value, options))
    if hint is typing.Any or not isinstance(value, (np.ndarray, torch.Tensor)):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in options)
    if not isinstance(hint, type) or isinstance(hint, types.GenericAlias):
        return not isinstance(hint, types.GenericAlias)
    if hint in (int, float):
        return value.ndim == 0
    try:
        return isinstance(value, hint)
    except jaxtyping.AnnotationError:
        return True  # an axis like n+1 before n is known: nothing to compare with


def tell(value) -> str:
    "An array's type and shape; of anything else its first 200 characters."
    if hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    return str(value)[:200]


def enforced(function):
    "The function with its signature enforced."
    annotations = getattr(function, "__annotations__", {})
    hints = {name: hint for name, hint in annotations.items() if not isinstance(hint, str)}
    if not hints:
        return function
    signature = inspect.signature(function)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    checked = {
        name
        for name, parameter in signature.parameters.items()
        if name in hints and parameter.kind not in variable
    }
    name = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        # before the call, so that axes get their sizes from the arguments
        wrong = [key for key in given if key in checked and not fits(given[key], hints[key])]
        result = function(*args, **kwargs)
        if wrong:
            key = wrong[0]
            raise SignatureError(
                f"{name} accepted {key} = {tell(given[key])}, its signature says {hints[key]}"
            )
        if not fits(result, hints.get("return", typing.Any)):
            raise SignatureError(
                f"{name} returned {tell(result)}, its signature says {hints['return']}"
            )
        return result

    return jaxtyping.jaxtyped(wrapper, typechecker=None)


class Loader(importlib.machinery.SourceFileLoader):
    "Loads a module with every function decorated by `enforced`; no cached byte code."

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                decorator = ast.parse("signatures_in_tests.enforced", mode="eval").body
                node.decorator_list.append(ast.copy_location(decorator, node))
        described = ast.get_docstring(tree) is not None
        line = ast.Import([ast.alias("signatures", "signatures_in_tests")])
        tree.body.insert(1 if described else 0, line)
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
    if any(name.split(".")[0] == "vidcourse" for name in sys.modules):
        raise ImportError("vidcourse was imported before its signatures could be enforced")
    sys.meta_path.insert(0, Finder)
