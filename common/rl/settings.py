"""Reading one opaque section of a config into the model that knows it; knows no section itself."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from common.errors import ConfigError, nearest

Model = TypeVar("Model", bound=BaseModel)


def read_settings(model: type[Model], values: Mapping[str, Any], section: str) -> Model:
    """Validates `values`; the ConfigError of a bad key or value names `section.key`, the value and what is allowed.

    A model whose `unread` maps keys to what leaves them unread refuses other values of these than their defaults.
    """
    try:
        settings = model.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        where = ".".join([section, *path])
        if first["type"] == "extra_forbidden":
            message = f"{where}: there is no such setting (value {first['input']!r:.100})"
            raise ConfigError(message, nearest(path[-1], model.model_fields)) from None
        raise ConfigError(f"{where}: {first['input']!r:.100} is refused", first["msg"]) from None
    _check_read(settings, section)
    return settings


def _check_read(settings: BaseModel, section: str) -> None:
    unread: Mapping[str, str] = getattr(settings, "unread", {})
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in unread and value != info.default:
            raise ConfigError(f"{section}.{name}={value} does nothing with {section}.{unread[name]}", "leave it out")
        if isinstance(value, BaseModel):
            _check_read(value, f"{section}.{name}")


def load_attribute(path: str, key: str) -> Any:
    """Imports `package.module:attr`; a ConfigError names `key`, the path and what is missing."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}: {path!r} cannot be loaded: {error}", "give package.module:attr") from error
