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
from .experiments import write_experiment
from .reader import Store, open_store, open_training
from .runs import Runs, open_runs
from .schema import ArraySpec, Schema
from .series import SeriesWriter
from .series_plan import Column
from .verify import Finding, VerifyReport, verify
from .views.indexing import IndexReport, index_store
from .views.shelf import ViewWarning
from .writer import StoreWriter

__all__ = [
    "AlreadyExistsError",
    "ArraySpec",
    "CaptureError",
    "Column",
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
    "Runs",
    "Schema",
    "SchemaError",
    "SeriesWriter",
    "StorageError",
    "Store",
    "StoreLockedError",
    "StoreWriter",
    "VerifyReport",
    "ViewWarning",
    "index_store",
    "open_runs",
    "open_store",
    "open_training",
    "verify",
    "write_experiment",
]
