"""NePhi: deformable registration with neural deformation fields (Tian et al., ECCV 2024)."""

__version__ = "0.1.0"

_PUBLIC = {
    "register": "registration",
    "Registration": "result",
    "Settings": "settings",
    "PRESETS": "settings",
    "NephiError": "errors",
    "read_image": "image",
    "read_landmarks": "landmarks",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    """Public names load what they need when first used: ``nephi --help`` need not wait for torch."""
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module 'nephi' has no attribute '{name}'")
