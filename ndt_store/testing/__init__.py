"""Tools to test with a store: simulated stores, fault injection, hypothesis strategies.

`ndt_store.testing.strategies` needs hypothesis and is imported by name.
"""

from ndt_store.testing.faults import DAMAGES, FaultyStorage, data_files, delete, flip_bit, kill, no_room, truncate
from ndt_store.testing.simulate import Simulated, simulate_store

__all__ = [
    "DAMAGES",
    "FaultyStorage",
    "Simulated",
    "data_files",
    "delete",
    "flip_bit",
    "kill",
    "no_room",
    "simulate_store",
    "truncate",
]
