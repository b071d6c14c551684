"""Position extrapolation: methods as settings, extended configs, models and folders.

The methods do not need torch; functions that use a model import it when called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from longlens.rope.base import Method as Method
from longlens.rope.base import ScaledMethod as ScaledMethod
from longlens.rope.frequencies import Frequencies as Frequencies
from longlens.rope.frequencies import Rope as Rope
from longlens.rope.methods import CLEX as CLEX
from longlens.rope.methods import EABF as EABF
from longlens.rope.methods import NTK as NTK
from longlens.rope.methods import DynamicNTK as DynamicNTK
from longlens.rope.methods import Llama3 as Llama3
from longlens.rope.methods import LongRoPE as LongRoPE
from longlens.rope.methods import PositionInterpolation as PositionInterpolation
from longlens.rope.methods import YaRN as YaRN

if TYPE_CHECKING:
    from longlens.rope.folder import extend as extend
    from longlens.rope.load import load_model as load_model
    from longlens.rope.model import apply as apply
    from longlens.rope.model import check_model as check_model
    from longlens.rope.model import extend_config as extend_config

_HOME = {
    "apply": "model",
    "check_model": "model",
    "extend": "folder",
    "extend_config": "model",
    "load_model": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'longlens.rope' has no attribute {name!r}")
    return getattr(import_module(f"longlens.rope.{_HOME[name]}"), name)
