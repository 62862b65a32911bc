"""What makes a module of ours stand in for one of SpikingJelly's: every public name comes through.

__getattr__, __dir__ = pass_through(__name__, "spikingjelly.activation_based.layer")
__all__ += public_names("spikingjelly.activation_based.layer")
"""

import dis
import importlib
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from sj_ottt.errors import InputError, suggest

__all__ = ["MisspeltImport", "MisspeltName", "pass_through", "public_names"]


class MisspeltName(AttributeError, InputError):
    """A module has no such name; an `AttributeError`, so that `hasattr` and `getattr` work."""


class MisspeltImport(ImportError, InputError):
    """The same in ``from module import name``, where Python replaces an `AttributeError`."""


def public_names(*modules: str) -> list[str]:
    """Return the names in the modules of these names that start with no underscore, sorted."""
    found = {name for module in modules for name in dir(importlib.import_module(module))}
    return sorted(name for name in found if not name.startswith("_"))


def pass_through(module: str, *theirs: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a module that passes other modules' names through.

    Python asks `__getattr__` only for what the module does not define, so our names win. Names
    that start with an underscore never come through. The other modules are imported when they are
    first asked, as some of SpikingJelly's take seconds.

    Args:
        module: Name of the module that gets the two functions.
        theirs: Names of the modules whose public names come through; the first that has one wins.
    """

    def get(name: str) -> Any:
        if name.startswith("_"):
            # Python and its tools ask for such names all the time.
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        for other in map(importlib.import_module, theirs):
            if hasattr(other, name):
                return getattr(other, name)
        message = f"{module} has no {name}{suggest(name, public_names(module))}"
        if _is_from_import(sys._getframe(1)):
            raise MisspeltImport(message)
        # With a name and no object, Python adds no suggestion of its own to ours.
        raise MisspeltName(message, name=name, obj=None)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module]), *public_names(*theirs)})

    return get, names


def _is_from_import(frame: FrameType) -> bool:
    """Whether a frame stands at ``from module import name``."""
    return frame.f_lasti >= 0 and (
        frame.f_code.co_code[frame.f_lasti] == dis.opmap.get("IMPORT_FROM")
    )
