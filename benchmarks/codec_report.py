"""Figures of codecs, what they cost in seconds, and the tables of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ["Figure", "Machine", "as_rows", "report"]

KERNEL_GBS: Final = 5.0
N_SCANS: Final = 10
NONE: Final = "none"


@dataclass(frozen=True)
class Figure:
    """What one codec does on one kind of data.

    Speeds are GB of float32 a second, medians and quartiles of the rounds, infinite where there is nothing to do.
    """

    codec: str
    kind: str
    step: int
    ratio: float
    encode_gbs: float = math.inf
    decode_gbs: float = math.inf
    encode_quartiles: tuple[float, float] = (math.inf, math.inf)
    decode_quartiles: tuple[float, float] = (math.inf, math.inf)
    max_relative_error: float = 0.0


@dataclass(frozen=True)
class Machine:
    """Speeds in GB/s of what surrounds a codec, measured in the same run."""

    crc32c: float
    write_fsync: float
    read_cold: float
    read_warm: float

    def capture_seconds(self, figure: Figure) -> float:
        """Seconds to encode, checksum and write a GB of float32."""
        return 1 / figure.encode_gbs + figure.ratio * (1 / self.crc32c + 1 / self.write_fsync)

    def scan_seconds(self, figure: Figure, read: float) -> float:
        """Seconds to read at `read` GB/s, checksum, decode and reduce a GB of float32."""
        return figure.ratio * (1 / read + 1 / self.crc32c) + 1 / figure.decode_gbs + 1 / KERNEL_GBS


def as_rows(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """Return JSON objects, numbers to four digits, what was not measured left out."""
    return [{key: _short(value) for key, value in asdict(f).items() if _measured(value)} for f in figures]


def report(
    figures: Sequence[Figure],
    machine: Machine,
    relu: Mapping[str, float],
    profiles: Mapping[str, str],
    nonzero: Mapping[str, float],
    step: int,
) -> str:
    """Render the tables as Markdown.

    Parameters
    ----------
    figures : sequence of Figure
    machine : Machine
    relu : mapping of str to float
        Share of raw float32 that every block of the trained ReLU layers takes, by codec.
    profiles : mapping of str to str
        Codec by name of profile.
    nonzero : mapping of str to float
        Share of values that are not zero, by kind.
    step : int
        The step that counts as trained.
    """
    kinds = list(nonzero)
    trained, fresh = (_by_codec(figures, kinds, at) for at in (step, 0))
    marked = {codec: f"{codec} (**{name}**)" for name, codec in profiles.items()}
    errors = [f"{kind} {max(row[kind].max_relative_error for row in trained.values()):.2g}" for kind in kinds]
    middle, most = _spreads(trained)
    lines = [
        f"Disk and checksum in the same run, GB/s: write and fsync {machine.write_fsync:.2f}, read from the disk "
        f"{machine.read_cold:.2f}, from the page cache {machine.read_warm:.1f}, crc32c {machine.crc32c:.1f}.",
        "",
        f"Values that are not zero: {', '.join(f'{kind} {share:.2f}' for kind, share in nonzero.items())}.",
        "",
        f"Trained to step {step}: share of the raw bytes, then GB/s encoding / decoding. The middle half of a cell's "
        f"rounds spans {middle:.0%} of its value in the median cell, at most {most:.0%} in nine of ten.",
        "",
        *_table(trained, kinds, marked, lambda f: f"{f.ratio:.2f} {_speed(f.encode_gbs)}/{_speed(f.decode_gbs)}"),
        "",
        f"Scan of blocks in memory, GB/s: checksum, decode, and a kernel at {KERNEL_GBS:g} GB/s, one after the other.",
        "",
        *_table(trained, kinds, marked, lambda f: f"{1 / machine.scan_seconds(f, math.inf):.2f}"),
        "",
        "At step 0: share of the raw bytes.",
        "",
        *_table(fresh, kinds, marked, lambda f: f"{f.ratio:.2f}"),
        "",
        f"Largest relative error of float16: {', '.join(errors)}.",
        "",
        f"Share of the raw bytes and seconds for each GB of float32, means of the {len(kinds)} kinds; share of all "
        "ReLU layers; and the disk, in GB/s, below which scans are faster than without compression.",
        "",
        *_cost_table(trained, machine, marked, relu),
    ]
    return "\n".join(lines)


def _cost_table(
    trained: Mapping[str, Mapping[str, Figure]],
    machine: Machine,
    marked: Mapping[str, str],
    relu: Mapping[str, float],
) -> list[str]:
    lines = [
        f"| codec | share | ReLU layers | capture | scan, disk | scan, page cache | capture and {N_SCANS} scans, disk "
        f"| capture and {N_SCANS} scans, page cache | pays below |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    costs = {codec: _Cost.of(list(row.values()), machine) for codec, row in trained.items()}
    plain = costs[NONE]
    for codec, cost in sorted(costs.items(), key=lambda item: item[1].total(cold=True)):
        layers = f"{relu[codec]:.3f}" if codec in relu else ""
        pays = "" if codec == NONE else f"{(plain.share - cost.share) / (cost.in_memory - plain.in_memory):.2f}"
        lines.append(
            f"| {marked.get(codec, codec)} | {cost.share:.2f} | {layers} | {cost.capture:.2f} | {cost.cold:.2f} "
            f"| {cost.warm:.2f} | {cost.total(cold=True):.1f} | {cost.total(cold=False):.1f} | {pays} |"
        )
    return lines


@dataclass(frozen=True)
class _Cost:
    """Means over the kinds: share of the raw bytes, and seconds for each GB of float32."""

    share: float
    capture: float
    cold: float
    warm: float
    in_memory: float

    @classmethod
    def of(cls, found: Sequence[Figure], machine: Machine) -> _Cost:
        scans = [
            statistics.mean(machine.scan_seconds(f, read) for f in found)
            for read in (machine.read_cold, machine.read_warm, math.inf)
        ]
        capture = statistics.mean(machine.capture_seconds(f) for f in found)
        return cls(statistics.mean(f.ratio for f in found), capture, *scans)

    def total(self, *, cold: bool) -> float:
        return self.capture + N_SCANS * (self.cold if cold else self.warm)


def _by_codec(figures: Iterable[Figure], kinds: Sequence[str], step: int) -> dict[str, dict[str, Figure]]:
    table = {NONE: {kind: Figure(NONE, kind, step, 1.0) for kind in kinds}}
    for figure in figures:
        if figure.step == step:
            table.setdefault(figure.codec, {})[figure.kind] = figure
    return table


def _spreads(table: Mapping[str, Mapping[str, Figure]]) -> tuple[float, float]:
    """Return the median and the ninth decile of quartile distance over median."""
    found = [
        (high - low) / median
        for row in table.values()
        for f in row.values()
        for median, (low, high) in ((f.encode_gbs, f.encode_quartiles), (f.decode_gbs, f.decode_quartiles))
        if math.isfinite(median)
    ]
    deciles = statistics.quantiles(found, n=10)
    return deciles[4], deciles[8]


def _table(
    figures: Mapping[str, Mapping[str, Figure]],
    kinds: Sequence[str],
    marked: Mapping[str, str],
    cell: Callable[[Figure], str],
) -> list[str]:
    head = [f"| codec | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    rows = [
        f"| {marked.get(codec, codec)} | {' | '.join(cell(by_kind[kind]) for kind in kinds)} |"
        for codec, by_kind in figures.items()
    ]
    return head + rows


def _speed(gbs: float) -> str:
    return f"{gbs:.2g}" if math.isfinite(gbs) else "-"


def _measured(value: Any) -> bool:
    return not (value == math.inf or value == (math.inf, math.inf))


def _short(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_short(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
