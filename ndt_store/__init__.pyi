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
from .views.indexing import IndexReport, index_store
from .views.shelf import ViewWarning
from .writer import StoreWriter

__all__ = [
    "AlreadyExistsError",
    "ArraySpec",
    "CaptureError",
    "DimensionError",
    "Finding",
    "FormatVersionError",
    "IncompleteStoreError",
    "IndexReport",
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
    "ViewWarning",
    "index_store",
    "open_store",
    "verify",
]
