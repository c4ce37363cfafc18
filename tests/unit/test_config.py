"""Flags beat the environment, which beats the file; what is wrong is named by its key."""

import os
from pathlib import Path

import msgspec
import pytest

from dfs.core.config import Duration, Size, load_settings
from dfs.core.errors import ConfigError


class Cache(msgspec.Struct, frozen=True):
    size: Size = 256 << 20
    keep: Duration | None = None


class Settings(msgspec.Struct, frozen=True):
    listen: str = "127.0.0.1:9420"
    data: Path | None = None
    disk: tuple[Path, ...] = ()
    workers: int = 4
    sync: bool = True
    timeout: Duration = 60.0
    data_reserve: Size = 0
    cache: Cache = Cache()


class Strict(msgspec.Struct, frozen=True):
    data_dir: str
    level: int = 1

    def __post_init__(self) -> None:
        if self.level > 9:
            raise ValueError(f"level {self.level} is above 9")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "dfs.toml"


def load(
    file: Path | None = None, text: str = "", env: dict[str, str] | None = None, **flags: object
) -> Settings:
    if file is not None:
        file.write_text(text)
    return load_settings(Settings, flags=flags, environment=env or {}, file=file)


def test_without_anything_the_defaults_hold():
    assert load() == Settings()


def test_the_first_place_that_has_a_setting_wins(file: Path):
    text = 'listen = "a:1"\nworkers = 1\ntimeout = "1s"\n[cache]\nsize = "1M"\nkeep = "1m"\n'
    env = {"DFS_WORKERS": "2", "DFS_TIMEOUT": "2s", "DFS_CACHE_SIZE": "2M"}
    got = load(file, text, env, timeout="3s", cache={"size": 3 << 20}, listen=None)
    assert got == Settings(
        listen="a:1", workers=2, timeout=3.0, cache=Cache(size=3 << 20, keep=60.0)
    )


def test_each_place_writes_each_type_its_own_way(file: Path):
    text = 'data = "/d"\ndisk = ["/1", "/2"]\nsync = false\ntimeout = 5\n[cache]\nsize = 7\n'
    assert load(file, text) == Settings(
        data=Path("/d"), disk=(Path("/1"), Path("/2")), sync=False, timeout=5.0, cache=Cache(7)
    )
    env = {
        "DFS_DATA": "/d",
        "DFS_DISK": "/1, /2",
        "DFS_SYNC": "false",
        "DFS_TIMEOUT": "5",
        "DFS_CACHE_SIZE": "7",
    }
    assert load(env=env) == load(file, text)
    flags = {"data": Path("/d"), "disk": ["/1", "/2"], "sync": False, "timeout": 5.0}
    dotted = {**flags, "cache.size": 7}
    assert load_settings(Settings, flags=dotted, environment={}) == load(file, text)


def test_dashes_in_a_file_are_underscores(file: Path):
    assert load(file, 'data-reserve = "1G"').data_reserve == 1 << 30


def test_other_variables_are_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    assert load(env={"DFS_MASTER": "x:1", "PATH": "/bin", "DFS_CACHE": "?"}) == Settings()
    monkeypatch.setitem(os.environ, "DFS_WORKERS", "9")
    assert load_settings(Settings).workers == 9


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("wrokers = 1", "there is no setting 'wrokers'; there are: cache.keep, cache.size"),
        ("[cache]\nsice = 1", "there is no setting 'cache.sice'"),
        ("[cash]\nsize = 1", "there is no setting 'cash.size'"),
        ("[cash]\n", "there is no setting 'cash'"),
        ("cache = 5", "there is no setting 'cache'"),
        ("workers = 1.5", "workers in .*dfs.toml: Expected `int`, got `float`"),
        ('workers = "many"', "workers in .*: Expected `int`, got `str`"),
        ('[cache]\nsize = "big"', "cache.size in .*: 'big' is not a size; write for example"),
        ("[cache]\nsize = -1", "cache.size in .*: Expected `int` >= 0"),
        ("data = 3", "data in .*: expected a path, got `int`"),
        ("disk = [true]", "disk in .*: expected a path, got `bool`"),
        ("workers = ", "dfs.toml is not TOML"),
        ("workers = 1\nworkers = 2", "dfs.toml is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(file, text)
    assert "\n" not in str(caught.value)


def test_a_mistake_elsewhere_is_named_too(file: Path):
    with pytest.raises(ConfigError, match="DFS_WORKERS: Expected `int`"):
        load(env={"DFS_WORKERS": "many"})
    with pytest.raises(ConfigError, match="DFS_CACHE_KEEP: '5 parsecs' is not a duration"):
        load(env={"DFS_CACHE_KEEP": "5 parsecs"})
    with pytest.raises(ConfigError, match="--cache-size: 'big' is not a size"):
        load(cache={"size": "big"})
    with pytest.raises(ConfigError, match="--wrokers: there is no setting"):
        load(wrokers=5)
    with pytest.raises(ConfigError, match="cannot read .*nowhere: No such file"):
        load_settings(Settings, environment={}, file=file.parent / "nowhere")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_settings(Settings, environment={}, file=file)


def test_a_setting_that_must_be_given_and_one_that_checks_itself():
    with pytest.raises(ConfigError, match="data_dir is not set; give --data-dir"):
        load_settings(Strict, environment={})
    with pytest.raises(ConfigError, match="level 10 is above 9"):
        load_settings(Strict, environment={"DFS_LEVEL": "10", "DFS_DATA_DIR": "/d"})
