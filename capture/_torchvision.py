"""The torchvision module, also where its compiled operators do not match the installed torch.

torchvision declares the operators ``nms`` and ``qnms`` in its compiled extension, which it loads without
complaint or not at all when it was built against another torch; registering their Python counterparts then
stops the import with "operator torchvision::nms does not exist". No classification model uses either
operator, so declaring the two schemas is enough to import everything else; calling them still raises.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from ndt_store.errors import CaptureError

__all__ = ["import_torchvision"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING_OPERATOR = "operator torchvision::nms does not exist"

# A Library takes its operators back when it is collected.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Import torchvision.

    The plain import is tried first; only when it fails for want of the operator ``nms`` are the operators
    declared and the import repeated.

    Raises
    ------
    CaptureError
        torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise CaptureError(
            "torchvision is not installed and this model or data set needs it; "
            'install it with: pip install ".[capture]" in a clone of ndt-activations.'
        ) from error
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
    _declare_operators()
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    # The failed import leaves submodules behind that would be half initialised at the second try.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS.values():
        library.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(library)
