"""Every error the software raises on purpose, by what a caller would do about it.

::

    NdtError
    ├── InvalidInputError (ValueError)     mend the argument
    │   ├── SchemaError                    mend what a store is said to hold
    │   └── DimensionError                 mend the dimensions or their names
    ├── NotFoundError (KeyError)           ask for something that is there
    ├── AlreadyExistsError                 choose another path
    ├── StoreLockedError                   wait for the holder, or stop it
    ├── StorageError (OSError)             make room, mend the disk, then resume
    ├── IncompleteStoreError               finish the capture
    ├── FormatVersionError                 upgrade the software
    ├── IntegrityError                     restore the block, or capture it again
    ├── ResumeMismatchError                repeat the first command, or start a new store
    ├── MemoryBudgetError                  raise the budget, or select less
    └── CaptureError                       mend the model, the taps or the data

Each message is one sentence that says what, where, got, expected and what to do next. All of them pickle, because
worker processes raise them too.
"""

from __future__ import annotations

__all__ = [
    "AlreadyExistsError",
    "CaptureError",
    "DimensionError",
    "FormatVersionError",
    "IncompleteStoreError",
    "IntegrityError",
    "InvalidInputError",
    "MemoryBudgetError",
    "NdtError",
    "NotFoundError",
    "ResumeMismatchError",
    "SchemaError",
    "StorageError",
    "StoreLockedError",
]


class NdtError(Exception):
    """Root of every expected error."""

    def __str__(self) -> str:
        # KeyError would show repr(message) and OSError a tuple; a sentence is a sentence everywhere.
        return str(self.args[0]) if self.args else ""


class InvalidInputError(NdtError, ValueError):
    """An argument cannot be used as given."""


class SchemaError(InvalidInputError):
    """A description of a store contradicts itself or the format."""


class DimensionError(InvalidInputError):
    """A dimension is missing, misnamed or of the wrong size."""


class NotFoundError(NdtError, KeyError):
    """A store, layer, checkpoint, example or unit is not there."""


class AlreadyExistsError(NdtError):
    """Something would be overwritten."""


class StoreLockedError(NdtError):
    """Another writer holds the store."""


class StorageError(NdtError, OSError):
    """The file system refused: no room, no permission, a broken disk."""


class IncompleteStoreError(NdtError):
    """Blocks are missing that the question or the commit needs."""


class FormatVersionError(NdtError):
    """The store was written in a format this version cannot read."""


class IntegrityError(NdtError):
    """What lies on disk is not what was committed.

    Parameters
    ----------
    message : str
        The sentence for the user.
    array : str
        Path of the array inside the store, or of the file when no array is concerned.
    block : str
        Key of the damaged block, "" when the damage is not in a block.
    """

    def __init__(self, message: str, array: str = "", block: str = "") -> None:
        super().__init__(message, array, block)
        self.array = array
        self.block = block


class ResumeMismatchError(NdtError):
    """A resumed capture is not the capture that was begun.

    Parameters
    ----------
    message : str
        The sentence for the user.
    field : str
        What differs, for example ``"dataset_digest"``.
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message, field)
        self.field = field


class MemoryBudgetError(NdtError):
    """A query would need more memory than it may take.

    Parameters
    ----------
    message : str
        The sentence for the user.
    projected_nbytes, allowed_nbytes : int
        What the query was projected to need and what it was allowed, in bytes.
    """

    def __init__(self, message: str, projected_nbytes: int = 0, allowed_nbytes: int = 0) -> None:
        super().__init__(message, projected_nbytes, allowed_nbytes)
        self.projected_nbytes = projected_nbytes
        self.allowed_nbytes = allowed_nbytes


class CaptureError(NdtError):
    """The model, its taps or its data do not allow the capture that was asked for."""
