"""Import the public names of a package on first use (PEP 562)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_names(
    package: str, homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the module functions `__getattr__` and `__dir__` of a package with lazy names.

    A name is imported when it is first used, and then stored in the package. The package
    repeats its imports under `TYPE_CHECKING`, so that type checkers see them.

    Args:
        package: Name of the package, usually `__name__`.
        homes: Names by the module that defines them. A name must differ from every
            submodule of the package, because importing that would replace it.

    Raises:
        AttributeError: By `__getattr__`, for an unknown name.

    Example:
        >>> load, names = lazy_names("dermedge_runtime", {"dermedge_runtime.spec": ["Label"]})
        >>> load("Label").__name__
        'Label'
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def load(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return load, names
