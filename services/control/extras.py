"""Which optional packages come with which extra, and what is said where one is missing."""

from __future__ import annotations

from importlib.util import find_spec

from common.errors import ConfigError

EXTRAS = {
    **dict.fromkeys(("torch", "safetensors", "tensorboard"), "train"),
    **dict.fromkeys(("typer", "rich", "matplotlib", "imageio", "imageio_ffmpeg", "psutil"), "cli"),
}


def missing(module: str) -> ConfigError:
    """Gives the error that says how to get a module of EXTRAS."""
    extra = EXTRAS[module]
    return ConfigError(f"this needs {module}, which is not installed", f"in the clone: pip install -e '.[{extra}]'")


def require(*modules: str) -> None:
    """Raises ConfigError for the first of `modules` that cannot be found; imports none of them."""
    for module in modules:
        if find_spec(module) is None:
            raise missing(module)
