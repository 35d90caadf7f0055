"""Change functions of a module in place, so that everything that has imported them sees the change."""

import importlib.util
import sys
from pathlib import Path
from types import FunctionType

import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction


def change(name: str, path: Path) -> None:
    """Give the functions, kernels and constants of the module `name` what the file at `path` says.

    Classes and their methods stay as they are.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    changed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(changed)
    for key, loaded in vars(sys.modules[name]).items():
        value = vars(changed).get(key)
        if value is loaded:  # imported by both
            continue
        if isinstance(loaded, InterpretedFunction):
            vars(loaded).clear()
            vars(loaded).update(vars(value))
        elif isinstance(loaded, FunctionType) and isinstance(value, FunctionType):
            loaded.__code__ = value.__code__
        elif isinstance(loaded, tl.constexpr) and isinstance(value, tl.constexpr):
            loaded.value = value.value
