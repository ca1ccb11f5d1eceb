"""The models that come with NePhi."""

from __future__ import annotations

from pathlib import Path

from ..errors import NephiError

WEIGHTS = Path(__file__).parent / "weights"  # the models that are shipped, by name


def shipped_models() -> list[str]:
    """Names that are accepted for a model besides file paths."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_model(name: str | Path) -> Path:
    """The file of a shipped model or the path itself; raises NephiError if there is neither."""
    named, path = WEIGHTS / f"{name}.safetensors", Path(name)
    if named.is_file():
        return named
    if not path.is_file():
        raise NephiError(f"no model '{name}': give one of {', '.join(shipped_models()) or 'none'}, or a model file")
    return path
