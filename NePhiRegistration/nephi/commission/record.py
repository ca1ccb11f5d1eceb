"""The record of a commissioning: its measures compared with limits, and a digest that reveals later changes."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..config import read_json, set_by_site
from ..device import devices, versions
from ..errors import NephiError
from ..limits import NotNegative, Positive
from ..settings import Settings

FORMAT = "nephi-commission-1"
_DIGEST = "sha256"


@dataclass(frozen=True)
class Limits:
    """The limits for every case of the battery; a limit in mm is at least the longest side of a voxel."""

    set_by: str = "NePhi's defaults, after AAPM TG-132"  # who is responsible for these numbers
    p95_mm: Positive = 2.0  # 95 % of points must be nearer to the truth
    max_mm: Positive = 5.0  # all of 2,000 points must be
    jacobian_rmse: Positive = 0.15  # error of the Jacobian determinant, root mean square
    inverse_mm: Positive = 0.1  # from itself a point may end after both maps, on average
    folded_percent: NotNegative = 0.0  # of the voxels in the mask


def read_limits(path: str | Path | None) -> Limits:
    """Limits from a JSON file (None: the defaults); missing entries keep their defaults. Raises NephiError."""
    return set_by_site(Limits, path, "limits")


def missed(measured: dict, limits: Limits) -> Iterator[str]:
    """The limits that a case misses, as text; as ``battery.run`` measured it."""
    voxel_mm = max(measured["spacing_mm"])
    for name in ("tre_mm", "file_tre_mm", "inverse_tre_mm"):
        if name in measured:
            words = {"tre_mm": "map", "file_tre_mm": "transform's file", "inverse_tre_mm": "inverse map"}[name]
            for which, limit in (("p95", limits.p95_mm), ("max", limits.max_mm)):
                found, most = measured[name][which], max(limit, voxel_mm)
                if not found <= most:
                    yield f"{words}: {which} of the error is {found:.2f} mm, above {most:.2f} mm"
    if "jacobian" in measured and not measured["jacobian"]["rmse"] <= limits.jacobian_rmse:
        yield f"|J| errs by {measured['jacobian']['rmse']:.3f} (root mean square), above {limits.jacobian_rmse:g}"
    if not measured["inverse_mm"]["mean"] <= limits.inverse_mm:
        yield f"forward and inverse map differ by {measured['inverse_mm']['mean']:.3f} mm, above {limits.inverse_mm:g}"
    if "jacobian" in measured and not measured["folds_percent"] <= limits.folded_percent:
        yield f"{measured['folds']} voxels fold ({measured['folds_percent']:.2g} %)"
    if not measured["verdict_right"]:
        yield f"the verdict is {measured['verdict']}, which is wrong"


def record(
    cases: list[dict], limits: Limits, settings: Settings, device: str, threads: int, quick: bool
) -> dict[str, Any]:
    """The complete record of a commissioning, signed; ``cases``: as measured."""
    judged = [case | {"missed": list(missed(case, limits))} for case in cases]
    return signed(
        {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "passed": not any(case["missed"] for case in judged),
            "quick": quick,
            "limits": asdict(limits),
            "cases": judged,
            "settings": json.loads(settings.to_json()),
            "versions": versions(),
            "machine": {
                "name": platform.node(),
                "system": platform.platform(),
                "processor": platform.processor() or platform.machine(),
                "devices": [one["label"] for one in devices()],
                "device": device,
                "threads": threads,
            },
        }
    )


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its digest: SHA-256 of its JSON with sorted keys, without blanks, in ASCII."""
    return {**content, _DIGEST: _digest(content)}


def _digest(content: dict[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != _DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def read_record(path: str | Path) -> dict[str, Any]:
    """A record from its file. Raises NephiError for any other file."""
    content = read_json(path)
    try:
        sound = content.get("format") == FORMAT and _DIGEST in content
        if sound and unchanged(content):  # whoever signed it
            sound = bool(isinstance(content["date"], str) and isinstance(content["passed"], bool))
            sound = sound and isinstance(content["versions"]["nephi"], str)
    except (KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise NephiError(f"{path} is not a commissioning record")
    return content


def unchanged(content: dict[str, Any]) -> bool:
    """Whether a record is unchanged since it was written."""
    return _digest(content) == content[_DIGEST]
