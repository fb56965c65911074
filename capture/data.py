"""Labelled images for training and probing: one value, `ImageData`, and the loaders that make it.

Four data sets are known by name to `load_data`: ``mnist`` and ``fashion-mnist`` (the original IDX files, from
a folder), ``digits`` (scikit-learn's 8x8 digits) and ``fashion-mnist-mini`` (a part of Fashion-MNIST that
ships with the package, so that a first run needs no download). Pixels are float32 in [0, 1] everywhere;
normalisation belongs to the recipe (`ImageData.standardised`). `ImageData.examples` always holds indices into
the *original* data set and split, whatever was selected, so that ``example`` means the same image in every
store.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capture._idx import read_idx
from capture._images import ImageData
from capture._suggest import expected_one_of
from ndt_store.errors import InvalidInputError, NotFoundError

__all__ = [
    "DATASET_NAMES",
    "DATA_DIR_VARIABLE",
    "SPLITS",
    "ImageData",
    "load_data",
    "load_digits",
    "load_embedded",
    "load_idx",
]

DATASET_NAMES = ("digits", "fashion-mnist", "fashion-mnist-mini", "mnist")
SPLITS = ("train", "test")
DATA_DIR_VARIABLE = "NDT_DATA_DIR"

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CLASS_NAMES = {"mnist": DIGITS, "fashion-mnist": FASHION}
_PREFIX = {"train": "train", "test": "t10k"}
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
"""Class in torchvision.datasets whose downloader leaves the files in a folder of its name, under ``raw``."""
_N_TRAIN_DIGITS = 1437


def load_data(name: str, split: str, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
    """Load one split of a data set by name.

    Parameters
    ----------
    name : {"digits", "fashion-mnist", "fashion-mnist-mini", "mnist"}
    split : {"train", "test"}
    data_dir : path, optional
        Folder with the sub-folders ``mnist/`` and ``fashion-mnist/``, or ``MNIST/raw/`` and ``FashionMNIST/raw/`` as
        torchvision's downloader makes them; default: environment variable ``NDT_DATA_DIR``. The other two data sets
        need none.

    Returns
    -------
    ImageData
        Pixels float32 in [0, 1].

    Raises
    ------
    InvalidInputError
        No data set or split of that name.
    NotFoundError
        The files are not there; the message names them, the folders they were looked for in, and where to get them.
    IntegrityError
        A file is damaged.

    Examples
    --------
    >>> load_data("fashion-mnist-mini", "test").inputs.shape
    (1000, 1, 28, 28)
    """
    if name not in DATASET_NAMES:
        raise InvalidInputError(f"No data set is called {name!r}, {expected_one_of(name, DATASET_NAMES)}.")
    if name == "digits":
        return load_digits(split)
    if name == "fashion-mnist-mini":
        return load_embedded(split)
    data = load_idx(_folder(name, _checked_split(split), data_dir or os.environ.get(DATA_DIR_VARIABLE)), split)
    return replace(data, name=name, class_names=_CLASS_NAMES[name])


def _folder(name: str, split: str, root: str | os.PathLike[str] | None) -> Path:
    wanted = [f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"]
    places = [Path(root) / name, Path(root) / _TORCHVISION[name] / "raw"] if root else []
    missing = [[file for file in wanted if not _is_there(place, file)] for place in places]
    for place, absent in zip(places, missing, strict=True):
        if not absent:
            return place
    files_there = " and ".join(f"{file}[.gz]" for file in min(missing, key=len, default=wanted))
    where = f"looked for in {' and in '.join(map(str, places))}" if places else "and no data folder was given"
    command = f"python -c \"import torchvision; torchvision.datasets.{_TORCHVISION[name]}('DIR', download=True)\""
    debian = " and Debian's package dataset-fashion-mnist puts them under DIR = /usr/share/datasets"
    raise NotFoundError(
        f"Data set {name!r} ({split}) lacks {files_there}, {where}: where there is a network, {command} fetches "
        f"them{debian if name == 'fashion-mnist' else ''}; then set {DATA_DIR_VARIABLE}=DIR or pass --data-dir DIR "
        "(data_dir in Python), or use 'fashion-mnist-mini', which needs no files."
    )


def _is_there(folder: Path, name: str) -> bool:
    return any((folder / file).is_file() for file in (name, f"{name}.gz"))


def load_idx(folder: str | os.PathLike[str], split: str) -> ImageData:
    """Load one split from IDX files with MNIST's standard names, gzip-compressed or plain.

    Class names are the label numbers as text, from 0 to the largest label. See `load_data` for known data
    sets.

    Parameters
    ----------
    folder : path
        Holds ``train-images-idx3-ubyte[.gz]``, ``train-labels-idx1-ubyte[.gz]`` and the same with ``t10k``.
    split : {"train", "test"}

    Raises
    ------
    NotFoundError
        A file is missing; the message names it and says how to get it.
    IntegrityError
        A file is truncated, too long, not IDX, or its images and labels differ in number.

    References
    ----------
    The IDX format: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits".
    """
    prefix = _PREFIX[_checked_split(split)]
    source = Path(folder)
    pixels = read_idx(source, f"{prefix}-images-idx3-ubyte", np.uint8, 3)
    labels = read_idx(source, f"{prefix}-labels-idx1-ubyte", np.uint8, 1, length=len(pixels))
    classes = tuple(str(label) for label in range(int(labels.max(initial=0)) + 1))
    return _images(pixels, labels, np.arange(len(pixels)), source.name, classes, split)


def load_digits(split: str = "train") -> ImageData:
    """Load scikit-learn's 8x8 digits: the first 1,437 images (80%) to train, the last 360 to test.

    `ImageData.examples` are positions in scikit-learn's array of 1,797.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # half a second that no other data set needs

    half = slice(0, _N_TRAIN_DIGITS) if _checked_split(split) == "train" else slice(_N_TRAIN_DIGITS, None)
    bunch = sklearn_digits()
    where = np.arange(len(bunch.target))[half]
    return _images(bunch.images[half], bunch.target[half], where, "digits", DIGITS, split, top=16.0)


def load_embedded(split: str = "train") -> ImageData:
    """Load the part of Fashion-MNIST that ships with the package: 5,000 training or 1,000 test images.

    The first 500 (100) of each class in file order; `ImageData.examples` are indices into the whole
    Fashion-MNIST.

    References
    ----------
    H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", arXiv:1708.07747. MIT licence, Copyright (c) 2017 Zalando SE; see ``capture/embedded``.
    """
    prefix = _PREFIX[_checked_split(split)]
    source = files("capture") / "embedded"
    pixels = read_idx(source, f"{prefix}-images-idx3-ubyte", np.uint8, 3)
    labels = read_idx(source, f"{prefix}-labels-idx1-ubyte", np.uint8, 1, length=len(pixels))
    examples = read_idx(source, f"{prefix}-examples-idx1-int", np.int32, 1, length=len(pixels))
    return _images(pixels, labels, examples, "fashion-mnist-mini", FASHION, split)


def _images(
    pixels: npt.NDArray[np.generic],
    labels: npt.NDArray[np.generic],
    examples: npt.NDArray[np.generic],
    name: str,
    class_names: tuple[str, ...],
    split: str,
    top: float = 255.0,
) -> ImageData:
    inputs = pixels[:, np.newaxis].astype(np.float32)
    inputs /= np.float32(top)
    return ImageData(inputs, labels.astype(np.int64), class_names, name, examples.astype(np.int64), split)


def _checked_split(split: str) -> str:
    if split not in SPLITS:
        raise InvalidInputError(f"No split is called {split!r}, expected one of {', '.join(SPLITS)}.")
    return split
