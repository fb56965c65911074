"""Reader of IDX files, the format of MNIST and its relatives.

An IDX file is a magic number (two zero bytes, a type code, the number of dimensions), one big-endian uint32
length a dimension, and the values in C order, big-endian. A file may come from a stranger: the size is
decided from the header, held against a cap and read to the byte, so that a gzip bomb costs no more than the
cap.
"""

from __future__ import annotations

import gzip
import math
import zlib
from importlib.resources.abc import Traversable
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ndt_store.errors import IntegrityError, NotFoundError, StorageError

__all__ = ["MAX_IDX_NBYTES", "read_idx"]

MAX_IDX_NBYTES = 1 << 31
_TYPE_CODES: dict[int, np.dtype[Any]] = {0x08: np.dtype("u1"), 0x0C: np.dtype(">i4")}
_HOW_TO_GET = (
    "get it with torchvision.datasets.MNIST or FashionMNIST (download=True) where there is a network, "
    "or from the Debian package dataset-fashion-mnist"
)


def read_idx(
    folder: Traversable, name: str, dtype: npt.DTypeLike, ndim: int, length: int | None = None
) -> npt.NDArray[Any]:
    """Read ``folder/name`` or ``folder/name.gz``.

    Parameters
    ----------
    folder : Path or package resource
    name : str
        File name without ``.gz``; the plain file wins where both are there.
    dtype, ndim
        What the file must hold.
    length : int, optional
        What its first dimension must be.

    Returns
    -------
    ndarray
        In native byte order.

    Raises
    ------
    NotFoundError
        Neither file is there.
    StorageError
        The file cannot be read.
    IntegrityError
        It is not what was expected.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise NotFoundError(f"Neither {name}.gz nor {name} is in {folder}, expected one of them; {_HOW_TO_GET}.")
    try:
        with path.open("rb") as raw:
            if path.name.endswith(".gz"):
                with gzip.open(cast("BinaryIO", raw)) as unpacked:
                    return _parse(cast("BinaryIO", unpacked), str(path), np.dtype(dtype), ndim, length)
            return _parse(cast("BinaryIO", raw), str(path), np.dtype(dtype), ndim, length)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise IntegrityError(
            f"{path} is damaged or no gzip file ({error}), expected an IDX file; {_HOW_TO_GET}.", str(path)
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error}); check its permissions and the disk.") from error


def _parse(file: BinaryIO, path: str, dtype: np.dtype[Any], ndim: int, length: int | None) -> npt.NDArray[Any]:
    def refuse(got: str, expected: str) -> IntegrityError:
        return IntegrityError(f"{path} holds {got}, expected {expected}; {_HOW_TO_GET}.", path)

    magic = file.read(4)
    code = next(code for code, stored in _TYPE_CODES.items() if stored.newbyteorder("=") == dtype)
    if magic != bytes((0, 0, code, ndim)):
        raise refuse(f"the magic number {magic.hex() or 'nothing'}", f"IDX magic {bytes((0, 0, code, ndim)).hex()}")
    header = file.read(4 * ndim)
    if len(header) != 4 * ndim:
        raise refuse(f"{4 + len(header)} bytes", f"an IDX header of {4 + 4 * ndim} bytes")
    shape = tuple(int(n) for n in np.frombuffer(header, ">u4"))
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > MAX_IDX_NBYTES or 0 in shape:
        raise refuse(f"an array of shape {shape}", f"a non-empty one of at most {MAX_IDX_NBYTES} bytes")
    if length is not None and shape[0] != length:
        raise refuse(f"{shape[0]} entries", f"{length}, one an image")
    payload = file.read(nbytes + 1)
    if len(payload) != nbytes:
        got = f"more than {nbytes}" if len(payload) > nbytes else str(len(payload))
        raise refuse(f"{got} bytes after its header", f"{nbytes} for shape {shape}")
    values = np.frombuffer(payload, _TYPE_CODES[code]).reshape(shape)
    return values.astype(dtype)
