"""What users see when something is wrong: one line with what was received, what was expected, and the next step."""

from __future__ import annotations

import importlib
from types import ModuleType


class UserError(ValueError):
    """Something that the user can mend; the command line prints it as one line and ends with exit code 2."""


class LonglensWarning(UserWarning):
    """A result exists, and something about it has to be known before it is relied on."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports an optional dependency, or says which pip line brings it.

    Args:
        module: Name to import, such as ``"gguf"``.
        extra: The extra of this package that installs it.
        purpose: What needs it, for the message.

    Raises:
        UserError: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{purpose} needs the package {module!r}, which is not installed: pip install 'longlens[{extra}]'"
        ) from error
