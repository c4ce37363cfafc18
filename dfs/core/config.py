"""Settings from three places onto one typed struct: flags win, then environment, then a TOML file.

`load_settings` is called by the command line for each daemon. A settings type is a msgspec
Struct with defaults, whose fields may be Structs themselves (sections, tables in TOML):

    class Cache(Struct): size: Size = 1 << 29
    class Settings(Struct): listen: str = ":9420"; cache: Cache = Cache()

`size` in the section `cache` is `[cache] size = "512M"` in TOML, `DFS_CACHE_SIZE` in the
environment, and `{"cache": {"size": ...}}` or `{"cache.size": ...}` as a flag.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_type_hints

import msgspec

from dfs.core.errors import ConfigError
from dfs.core.units import parse_duration, parse_size

S = TypeVar("S", bound=msgspec.Struct)

Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0, extra={"unit": "size"})]
"""Bytes; as text with units: "512M"."""
Duration: TypeAlias = Annotated[float, msgspec.Meta(ge=0, extra={"unit": "duration"})]
"""Seconds; as text with units: "60s"."""

PREFIX: Final = "DFS_"

_Path: TypeAlias = tuple[str, ...]


def load_settings(
    kind: type[S],
    *,
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> S:
    """The settings of type `kind`, each from the first place that has it, else its default.

    `flags`: by name or dotted name; None means: not given. `environment`: `DFS_KEY` and
    `DFS_SECTION_KEY`, others in it are not looked at (default: the process's). `file`: TOML; a key
    it has and `kind` has not is an error.

    Raises ConfigError naming the key, where it came from, and what is wrong with it.
    """
    fields = dict(_fields(kind))
    values: dict[_Path, object] = {}
    origins: dict[_Path, str] = {}

    def take(path: _Path, value: object, origin: str) -> None:
        if path not in fields:
            raise _unknown(path, origin, fields)
        values[path] = _convert(fields[path], value, origin)
        origins[path] = origin

    if file is not None:
        for path, value in _leaves(_read(file), (), fields):
            take(path, value, f"{'.'.join(path)} in {file}")
    environment = os.environ if environment is None else environment
    for path in fields:
        name = PREFIX + "_".join(path).upper()
        if name in environment:
            take(path, environment[name], name)
    for path, value in _leaves(flags or {}, (), fields):
        if value is not None:
            path = tuple(part for key in path for part in key.split("."))
            take(path, value, f"--{'-'.join(path).replace('_', '-')}")
    return _build(kind, values, origins)


def _fields(kind: type[msgspec.Struct], above: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Path and type of each setting."""
    hints = get_type_hints(kind, include_extras=True)
    for name in kind.__struct_fields__:
        hint = hints[name]
        if _is_section(hint):
            yield from _fields(hint, (*above, name))
        else:
            yield (*above, name), hint


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error


def _leaves(
    table: Mapping[str, object], above: _Path, fields: Mapping[_Path, object]
) -> Iterator[tuple[_Path, object]]:
    """The settings in nested tables; a table that is a setting's own value stays whole."""
    for key, value in table.items():
        path = (*above, key.replace("-", "_"))
        if isinstance(value, Mapping) and path not in fields:
            if not value and not any(known[: len(path)] == path for known in fields):
                raise _unknown(path, ".".join(path), fields)
            yield from _leaves(value, path, fields)
        else:
            yield path, value


def _convert(hint: Any, value: object, origin: str) -> object:
    """A value as its field wants it: text is read by units, else as msgspec reads strings."""
    try:
        if isinstance(value, str):
            unit = _unit(hint)
            if unit == "size":
                value = parse_size(value)
            elif unit == "duration":
                value = parse_duration(value)
            elif _is_list(hint):
                value = [part.strip() for part in value.split(",") if part.strip()]
        return msgspec.convert(
            value, hint, strict=not isinstance(value, str | list), dec_hook=_to_path
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error.message}", hint=error.hint) from error


def _to_path(kind: type, value: object) -> object:
    if kind is Path:
        if not isinstance(value, str | Path):
            raise ValueError(f"expected a path, got `{type(value).__name__}`")
        return Path(value)
    raise NotImplementedError(f"no setting can be a {kind.__name__}")


def _unit(hint: Any) -> str | None:
    for each in (hint, *getattr(hint, "__args__", ())):
        for meta in getattr(each, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.extra is not None:
                unit = meta.extra.get("unit")
                return unit if isinstance(unit, str) else None
    return None


def _is_list(hint: Any) -> bool:
    return getattr(hint, "__origin__", hint) in (list, tuple)


def _build(kind: type[S], values: Mapping[_Path, object], origins: Mapping[_Path, str]) -> S:
    arguments: dict[str, object] = {}
    hints = get_type_hints(kind, include_extras=True)
    for name in kind.__struct_fields__:
        if _is_section(hints[name]):
            inside = {path[1:]: value for path, value in values.items() if path[0] == name}
            arguments[name] = _build(hints[name], inside, origins)
        elif (name,) in values:
            arguments[name] = values[(name,)]
    try:
        return kind(**arguments)
    except TypeError as error:
        missing = str(error).rpartition("'")[0].rpartition("'")[2] or str(error)
        raise ConfigError(
            f"{missing} is not set", hint=f"give --{missing.replace('_', '-')}"
        ) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _unknown(path: _Path, origin: str, fields: Mapping[_Path, object]) -> ConfigError:
    known = ", ".join(sorted(".".join(each) for each in fields))
    return ConfigError(
        f"{origin}: there is no setting {'.'.join(path)!r}", hint=f"there are: {known}"
    )
