"""The models that come with NePhi."""

from __future__ import annotations

from pathlib import Path

from ..errors import NephiError

WEIGHTS = Path(__file__).parent / "weights"  # the models that are shipped, by name


def shipped_models() -> list[str]:
    """Names of models that are accepted beside file paths."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def find_model(name: str | Path) -> Path:
    """The file of a shipped model or the path itself; raises NephiError if there is neither."""
    shipped, path = shipped_models(), Path(name)
    if str(name) in shipped:
        return WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        raise NephiError(f"no model '{name}': choose one of {', '.join(shipped) or 'none'}, or a model file")
    return path
