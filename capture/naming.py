"""What a tap is attached to: which modules a pattern names, and the description of one tapped output.

A module path is the dotted name of ``Module.named_modules``. Patterns are globs over its components: ``*``, ``?`` and
``[...]`` stay inside one component, ``**`` stands for any number of components, none included.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

import torch
from torch import nn

from capture._describe import described
from ndt_store.dims import ATTENTIONS, EXAMPLE, SUMMARY_KINDS
from ndt_store.errors import CaptureError, InvalidInputError

__all__ = ["HEADS", "Site", "as_names", "match_layers", "path_matches", "split_heads"]

HEADS: Final = "@heads"
"""What a layer pattern, and the name of such a layer, ends in when it means what each head of attention puts out."""


@dataclass(frozen=True, slots=True)
class Site:
    """One kind of tensor at one firing of one module, as discovery found it.

    Parameters
    ----------
    name : str
        Layer name: the module path, with ``#0``, ``#1``, ... appended when the module fires several times a pass, and
        with ``@heads`` where it is what each head of attention puts out.
    kind : str
        ``"activations"``, ``"gradients"``, ``"attentions"``, or a summary of attention.
    module_type : str
        Class name of the module.
    dims : tuple of str
        Names of the axes of the tensor handed out, ``"example"`` first, without ``checkpoint``. The mean pattern of
        attention has no examples: what is handed out is the sum over those of the batch.
    shape : tuple of int
        Sizes of ``dims`` without ``"example"``.
    dtype : str
        NumPy name of the type handed out. float16, float32 and float64 stay what they are; bfloat16, which NumPy
        lacks, becomes float32, which holds each of its values exactly. Attention probabilities are float32, or
        float64 in a float64 model.
    path : str
        Module path.
    call, calls : int
        Which firing of the module this is, and how often it fires in one pass.
    axes : tuple of int
        Permutation that brings the module's own output into the order of ``dims``.
    clone : bool
        Whether something later in the pass writes into the output, so that the model goes on with a copy of it.
    hands_on : bool
        Whether the output is the module's very input, unchanged (``nn.Identity``, dropout in evaluation mode), so
        that its gradient has to be told from that of the input's other uses.
    of_heads : bool
        Whether it is what each head of attention puts out before they are mixed, rather than the module's output.
    """

    name: str
    kind: str
    module_type: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    path: str
    call: int
    calls: int
    axes: tuple[int, ...]
    clone: bool = False
    hands_on: bool = False
    of_heads: bool = False

    @property
    def of_attention(self) -> bool:
        """Whether it comes from a call of attention rather than from what the module returned."""
        return self.of_heads or self.kind == ATTENTIONS or self.kind in SUMMARY_KINDS

    def hand_out(self, tensor: torch.Tensor, count: int) -> torch.Tensor:
        """Bring what the module emitted into the dims and dtype of the site, without a copy where there need be none.

        Parameters
        ----------
        tensor : torch.Tensor
            With the axes in the module's own order.
        count : int
            Number of examples.

        Raises
        ------
        CaptureError
            When the shape is not that of the site.
        """
        ordered = tensor.detach().permute(self.axes)
        expected = (count, *self.shape) if EXAMPLE in self.dims else self.shape
        if tuple(ordered.shape) != expected:
            raise CaptureError(
                f"{self.kind} of {self.name!r} have shape {tuple(ordered.shape)} where {expected} was "
                "expected from discovery; give every batch examples of one size"
            )
        return ordered.float() if ordered.dtype == torch.bfloat16 else ordered

    def module_in(self, model: nn.Module) -> nn.Module:
        """Return the module of the site.

        Raises
        ------
        InvalidInputError
            When the model has none at that path.
        """
        try:
            return model.get_submodule(self.path)
        except AttributeError:
            raise InvalidInputError(
                f"site {self.path!r} is no module of {type(model).__name__}; discover the sites on the model that is "
                "tapped"
            ) from None


def as_names(given: Iterable[str], what: str) -> list[str]:
    """Sort names and drop repetitions: neither changes what is captured. A generator is read once, here.

    Raises
    ------
    InvalidInputError
        They are no names; begins with `what` they are.
    """
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"{what} is {described(given)}: expected names, as in {what}=['...'].")
    return sorted(set(names))


def split_heads(patterns: Sequence[str] | str) -> tuple[list[str], list[str]]:
    """Return the patterns that mean modules' outputs, and without their ending those that mean heads.

    Examples
    --------
    >>> split_heads(["classifier", "layers.*.self_attn@heads"])
    (['classifier'], ['layers.*.self_attn'])
    """
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    plain = [pattern for pattern in given if not pattern.endswith(HEADS)]
    return plain, [pattern.removesuffix(HEADS) for pattern in given if pattern.endswith(HEADS)]


def path_matches(path: str, pattern: str) -> bool:
    """Tell whether a glob names a module path.

    Examples
    --------
    >>> path_matches("encoder.layers.0", "encoder.*"), path_matches("encoder.layers.0", "encoder.**")
    (False, True)
    """
    return _components_match(path.split("."), pattern.split("."))


def _components_match(path: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not path
    head, *rest = pattern
    if head == "**":
        return any(_components_match(path[skipped:], rest) for skipped in range(len(path) + 1))
    return bool(path) and fnmatchcase(path[0], head) and _components_match(path[1:], rest)


def match_layers(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the module paths that the patterns name, in module order, each once.

    Parameters
    ----------
    model : torch.nn.Module
        The model; itself it has no path and is never matched.
    patterns : sequence of str
        Globs over module paths. A module registered under several paths is found by each of them and goes by the
        first.

    Returns
    -------
    tuple of str

    Raises
    ------
    InvalidInputError
        When there is no pattern, or one that names nothing; the message offers close names.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    >>> match_layers(net, ["*"]), match_layers(net, ["1.?"])
    (('0', '1'), ('1.0', '1.1'))
    """
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise InvalidInputError(
            "layers names no pattern where at least one is needed; give layers=['**'] to tap every module"
        )
    first_path: dict[int, str] = {}
    paths: list[str] = []
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            first_path.setdefault(id(module), path)
            paths.append(path)
    canonical = {path: first_path[id(model.get_submodule(path))] for path in paths}
    chosen: set[str] = set()
    for pattern in wanted:
        found = {canonical[path] for path in paths if path_matches(path, pattern)}
        if not found:
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4) or paths[:3]
            hint = f"; close names are {', '.join(near)}" if near else " and has no submodules at all"
            raise InvalidInputError(
                f"layer pattern {pattern!r} names none of the {len(paths)} modules of {type(model).__name__}{hint}"
            )
        chosen |= found
    return tuple(path for path in first_path.values() if path in chosen)
