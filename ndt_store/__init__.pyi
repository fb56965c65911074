from .errors import (
    AlreadyExistsError,
    CaptureError,
    DimensionError,
    FormatVersionError,
    IncompleteStoreError,
    IntegrityError,
    InvalidInputError,
    MemoryBudgetError,
    NdtError,
    NotFoundError,
    ResumeMismatchError,
    SchemaError,
    StorageError,
    StoreLockedError,
)
from .reader import Store, open_store
from .schema import ArraySpec, Schema
from .verify import Finding, VerifyReport, verify
from .writer import StoreWriter

__all__ = [
    "AlreadyExistsError",
    "ArraySpec",
    "CaptureError",
    "DimensionError",
    "Finding",
    "FormatVersionError",
    "IncompleteStoreError",
    "IntegrityError",
    "InvalidInputError",
    "MemoryBudgetError",
    "NdtError",
    "NotFoundError",
    "ResumeMismatchError",
    "Schema",
    "SchemaError",
    "StorageError",
    "Store",
    "StoreLockedError",
    "StoreWriter",
    "VerifyReport",
    "open_store",
    "verify",
]
