"""`hf://[datasets/]OWNER/NAME[@REVISION][/path/inside]`, spelled as huggingface_hub's own file system spells it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from nemo_sdg.errors import HubError

_SCHEME = re.compile(r"hf:/{1,2}(?=[^/])")
# A revision with slashes is one that the hub makes itself (refs/pr/1), or is written with %2F.
_FORM = re.compile(
    r"(?:(?P<kind>models|datasets)/)?(?P<owner>\w[\w.-]*)/(?P<name>\w[\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<inside>.*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WAY_OUT = "write OWNER/NAME or datasets/OWNER/NAME, with @REVISION behind it if need be"


@dataclass(frozen=True)
class Address:
    """A repository at a revision, and a path inside it."""

    repo: str
    """OWNER/NAME."""
    kind: str | None = "model"
    """model or dataset; None where it was not said."""
    revision: str = "main"
    inside: str = ""
    """A file or folder of the repository; empty for all of it."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """An `hf://` path. Raises HubError for what is none."""
        return cls._parse(_SCHEME.sub("", text, count=1), text, "model")

    @classmethod
    def parse_name(cls, text: str) -> Address:
        """What a person names to download: with or without `hf://`; the kind is None when it is not said."""
        said = bool(_SCHEME.match(text))
        return cls._parse(_SCHEME.sub("", text, count=1), text, "model" if said else None)

    @classmethod
    def _parse(cls, rest: str, text: str, kind: str | None) -> Address:
        found = _FORM.fullmatch(rest.removesuffix("/"))
        # Spaces are not ours; -- and .. are not allowed in names by the hub.
        names = found["owner"] + "/" + found["name"] if found else ".."
        if re.search(r"--|\.\.|^(spaces|models|datasets)/", names):
            raise HubError("not the name of a repository on the hub", found=text, way_out=_WAY_OUT)
        revision, inside = unquote(found["revision"] or "main"), found["inside"] or ""
        if not is_safe(revision) or (inside and not is_safe(inside)):
            raise HubError("a path on the hub has no . or .. or empty parts", found=text, way_out=_WAY_OUT)
        kinds = {"models": "model", "datasets": "dataset", None: kind}
        return cls(names, kinds[found["kind"]], revision, inside)

    @property
    def commit(self) -> str | None:
        """The revision, if it is a whole commit id: 40 hex digits."""
        return self.revision if is_commit(self.revision) else None

    @property
    def label(self) -> str:
        """What messages call it: OWNER/NAME@REVISION."""
        return f"{'datasets/' if self.kind == 'dataset' else ''}{self.repo}@{self.revision}"

    def covers(self, name: str) -> bool:
        """Whether a file of the repository lies under the path inside."""
        return not self.inside or name == self.inside or name.startswith(self.inside + "/")


def is_address(text: str) -> bool:
    """Whether a path is on the hub. `Path` makes one slash of two, so one is enough."""
    return _SCHEME.match(text) is not None


def is_commit(text: object) -> bool:
    return isinstance(text, str) and _COMMIT.fullmatch(text) is not None


def is_safe(name: object) -> bool:
    """Whether a relative path stays below its folder: what a server calls a file is not to be trusted."""
    if not isinstance(name, str) or not name.isprintable() or "\\" in name:
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))
