"""Know which module is running, by hooks on every module of a model."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["ModuleStack"]


class ModuleStack:
    """The paths of the modules that are running, outermost first, while it is entered.

    Parameters
    ----------
    model : torch.nn.Module
        Its own path is "".
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._paths: list[str] = []
        self._handles: list[RemovableHandle] = []

    def innermost(self) -> str:
        """Return the path of the module that runs right now, "" outside all submodules."""
        return self._paths[-1] if self._paths else ""

    def __enter__(self) -> ModuleStack:
        for path, module in self._model.named_modules():

            def push(_module: nn.Module, _args: Any, path: str = path) -> None:
                self._paths.append(path)

            def pop(_module: nn.Module, _args: Any, _output: Any) -> None:
                self._paths.pop()

            self._handles.append(module.register_forward_pre_hook(push, prepend=True))
            # A module may catch an exception of a submodule and go on, so the way out is counted in any case.
            self._handles.append(module.register_forward_hook(pop, always_call=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()
        self._paths.clear()
