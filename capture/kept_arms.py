"""Finished arms of interventions in a folder, one small file each, so that a study that was killed goes on.

``seed-0-normal.npz``, ``seed-0-step-000036-frozen.npz``. A file appears whole or not at all, and says which settings
its values belong to; it holds numbers and text only and nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.files import replace_file
from capture.moments import Moment
from ndt_store.errors import IntegrityError, ResumeMismatchError, StorageError
from ndt_store.resume import json_mapping

__all__ = ["MEASURES", "Arm", "KeptArms"]

MEASURES: Final = ("participation_ratio", "stable_rank")
"""What is measured of each layer."""

_SETTINGS: Final = "settings"
_FINAL: Final = ("step", "final_loss", "final_accuracy", "weights_digest")


@dataclass(frozen=True, slots=True)
class Arm:
    """What one arm gave.

    Parameters
    ----------
    step : ndarray of int64 (step,)
        Where it was measured, increasing, the last at the end.
    series : mapping of str to ndarray of float64 (step,) or (step, layer)
        ``validation_loss``, ``validation_accuracy`` and `MEASURES` of each layer.
    final_loss, final_accuracy : float
        Of the final weights on the whole test split.
    weights_digest : str
        Of the final weights.
    """

    step: npt.NDArray[np.int64]
    series: Mapping[str, npt.NDArray[np.float64]]
    final_loss: float
    final_accuracy: float
    weights_digest: str


class KeptArms:
    """The files of one seed in a folder.

    Parameters
    ----------
    folder : Path
        That is there.
    seed : int
    settings : mapping of str to JSON value
        What makes an arm this one and no other; each file holds them, and has to agree.

    Raises
    ------
    ResumeMismatchError
        The folder holds an arm of this seed with other settings; names the first that differs, with both values.
    IntegrityError
        A file is damaged.
    """

    def __init__(self, folder: Path, seed: int, settings: Mapping[str, Any]) -> None:
        self._folder, self._seed, self._settings = folder, seed, json_mapping(settings, _SETTINGS)
        for path in sorted(folder.glob(f"seed-{seed}-*.npz")):
            _read(path, self._settings)

    def path(self, arm: str, moment: Moment | None = None) -> Path:
        """Return where an arm is kept; that without a moment is the undisturbed training."""
        where = "" if moment is None else f"step-{moment.step:06d}-"
        return self._folder / f"seed-{self._seed}-{where}{arm}.npz"

    def holds(self, arm: str, moment: Moment | None = None) -> bool:
        """Whether an arm is kept."""
        return self.path(arm, moment).is_file()

    def keep(self, result: Arm, arm: str, moment: Moment | None = None) -> None:
        """Write an arm, durably.

        Raises
        ------
        StorageError
            The file system refuses.
        """
        content = io.BytesIO()
        scalars = {name: np.array(getattr(result, name)) for name in _FINAL}
        arrays: dict[str, Any] = {**scalars, **result.series, _SETTINGS: np.array(json.dumps(self._settings))}
        np.savez(content, **arrays)
        replace_file(self.path(arm, moment), content.getvalue())

    def load(self, arm: str, moment: Moment | None = None) -> Arm:
        """Read an arm that is kept."""
        return _read(self.path(arm, moment), self._settings)


def _read(path: Path, settings: Mapping[str, Any]) -> Arm:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error}): mend what the system names, and run again.") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        stored = json.loads(str(found.pop(_SETTINGS)))
        step, loss, accuracy, digest = (found.pop(name) for name in _FINAL)
        arm = Arm(step, found, float(loss), float(accuracy), str(digest))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise IntegrityError(
            f"{path} cannot be read as an arm of interventions ({error}); remove it and run the same command again.",
            str(path),
        ) from error
    for name in [*settings, *(name for name in stored if name not in settings)]:
        if stored.get(name) != settings.get(name):
            raise ResumeMismatchError(
                f"{path} holds an arm with {name} = {json.dumps(stored.get(name))}, and this study has "
                f"{json.dumps(settings.get(name))}; repeat the first command, or choose another folder (--arms).",
                name,
            )
    return arm
