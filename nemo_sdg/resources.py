"""Paths as people write them: `package:` for what travels with the package, `hf://` for what the hub holds.

`package:examples/tiny/base` is a path below the package's data folder.
In a checkout (also an editable install) that folder is the repository itself; in a wheel it is
`nemo_sdg/_data`, where the build puts recipes/, conf/ and examples/tiny.
"""

from __future__ import annotations

from pathlib import Path

from nemo_sdg.errors import ConfigError
from nemo_sdg.hub.address import Address, is_address

SCHEME = "package:"
_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds recipes/, conf/ and examples/."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent


def resolve(path: str | Path, *, metadata_only: bool = False) -> Path:
    """A real path for a setting; what an `hf://` path means is downloaded into the cache if it is not there.

    Args:
        metadata_only: of a model on the hub that is not in the cache, only what `plan` needs is downloaded.
    Raises:
        ConfigError: a `package:` path that is absent or leaves the package.
        HubError: the hub does not give what an `hf://` path means.
    """
    text = str(path)
    if is_address(text):
        from nemo_sdg.hub import cache, planning

        return (planning.metadata_path if metadata_only else cache.local_path)(Address.parse(text))
    if not text.startswith(SCHEME):
        return Path(text).expanduser()
    real = (root() / text[len(SCHEME) :]).resolve()
    if not real.is_relative_to(root().resolve()) or not real.exists():
        raise ConfigError(
            "no such file in the package",
            where=text,
            expected=f"a path below {root()}",
            way_out="write a path without 'package:' for files of your own",
        )
    return real


def commit(path: str | Path) -> str | None:
    """The commit that an `hf://` path means, once it was resolved; None for other paths."""
    if not is_address(str(path)):
        return None
    from nemo_sdg.hub import cache

    return cache.commit(Address.parse(str(path)))


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {file.stem: file for file in sorted((root() / "recipes").glob("*.py")) if not file.stem.startswith("_")}
