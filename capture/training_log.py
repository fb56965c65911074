"""The log of a training: loss and accuracy of each logged batch, as a CSV file that is whole at any moment."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from capture.files import replace_file
from ndt_store.errors import IntegrityError, NotFoundError

__all__ = ["TrainingLog", "load_training_log"]

LOG_NAME = "training-log.csv"
_COLUMNS = ("step", "loss", "accuracy")


@dataclass(slots=True)
class TrainingLog:
    """Batch loss and accuracy as trained, one row a logged step.

    Step n is the n-th update; its loss (mean cross-entropy in nats) and accuracy (0 to 1) are those of its
    batch before the update.
    """

    rows: list[tuple[int, float, float]] = field(default_factory=list)

    @property
    def step(self) -> npt.NDArray[np.int64]:
        """Logged steps, ascending."""
        return np.array([row[0] for row in self.rows], np.int64)

    @property
    def loss(self) -> npt.NDArray[np.float64]:
        """Loss at each logged step."""
        return np.array([row[1] for row in self.rows], np.float64)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """Accuracy at each logged step."""
        return np.array([row[2] for row in self.rows], np.float64)

    def save(self, folder: Path) -> None:
        """Write ``training-log.csv``; numbers are written so that they read back exactly."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(self.rows)
        replace_file(folder / LOG_NAME, text.getvalue().encode())


def load_training_log(folder: str | Path, last_step: int | None = None) -> TrainingLog:
    """Read the log of a training folder.

    Parameters
    ----------
    folder : path
    last_step : int, optional
        Leave out later rows.

    Raises
    ------
    NotFoundError
        There is no log.
    IntegrityError
        The file is not such a log.
    """
    path = Path(folder) / LOG_NAME
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(f"No training log at {path}, expected one; train first.") from error
    try:
        header, *rows = csv.reader(lines)
        if tuple(header) != _COLUMNS:
            raise ValueError(f"columns {header}")
        log = TrainingLog([(int(step), float(loss), float(accuracy)) for step, loss, accuracy in rows])
    except ValueError as error:
        raise IntegrityError(
            f"{path} is not a training log ({error}), expected the columns {', '.join(_COLUMNS)}; "
            "remove the training folder and train again.",
            str(path),
        ) from error
    if last_step is not None:
        log.rows = [row for row in log.rows if row[0] <= last_step]
    return log
