"""What goes wrong between us and the hub, in one sentence each. No address of a request is shown: it may be signed."""

from __future__ import annotations

import errno

import requests
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nemo_sdg.errors import HubError, UserError
from nemo_sdg.hub.address import Address

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AGAIN = "the same command continues"
_LINE = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


def real(error: BaseException) -> BaseException:
    """huggingface_hub says "not in the cache" of every failure to ask for a file; the cause says why."""
    while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def passing(error: BaseException) -> bool:
    """Whether to try again: the line broke, the server is overloaded, or fewer bytes came than were announced."""
    error = real(error)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code >= 500
    # With older urllib3 a line that breaks ends the body without an error; the library then misses bytes.
    return isinstance(error, _LINE) or (type(error) is OSError and error.errno is None)


def refusal(error: BaseException, address: Address, where: object = None) -> UserError:
    """The sentence for a failure.

    Args:
        where: the file on the hub, or on the disk, that it happened with; by default the repository.
    """
    error = real(error)
    if isinstance(error, UserError):
        return error
    where = address.label if where is None else where
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            "the cache does not hold it, and the hub may not be asked", where=where, found="HF_HUB_OFFLINE=1",
            way_out="unset HF_HUB_OFFLINE, or download it where there is a network and the same HF_HOME",
        )  # fmt: skip
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _answered(error, address, where)
    if isinstance(error, HFValidationError):
        return HubError("not the name of a repository on the hub", where=where, way_out="write OWNER/NAME")
    if isinstance(error, (requests.RequestException, LocalEntryNotFoundError)):
        return HubError(
            "the hub cannot be reached", where=where, found=_kind(error), expected=f"an answer of {_host()}",
            way_out=f"check the network, HF_ENDPOINT and the proxy; {_AGAIN}",
        )  # fmt: skip
    if isinstance(error, OSError):
        if error.errno in FULL:
            way_out = f"make room, or choose another folder or HF_HOME; {_AGAIN}"
            return HubError("the disk is full", where=where, found=error.strerror, way_out=way_out)
        if error.errno is None:
            return HubError("the line to the hub breaks again and again", where=where, way_out=_AGAIN)
        return HubError(
            "cannot write", where=error.filename or where, found=error.strerror, way_out="choose another folder"
        )
    return HubError(
        "the server does not answer as the hub does", where=where, found=_kind(error), expected=f"the hub at {_host()}",
        way_out="check HF_ENDPOINT",
    )  # fmt: skip


def _answered(error: requests.HTTPError, address: Address, where: object) -> HubError:
    """The sentence for a status that is not 2xx."""
    status = error.response.status_code
    page = f"{_host()}/{'datasets/' if address.kind == 'dataset' else ''}{address.repo}"
    found = f"status {status}"
    if isinstance(error, GatedRepoError):
        return HubError(
            "the repository is gated", where=where, found=found,
            way_out=f"accept its terms at {page} and set HF_TOKEN to a token of that account",
        )  # fmt: skip
    if isinstance(error, RevisionNotFoundError):
        return HubError("the repository has no such revision", where=where, found=found, way_out=f"see {page}")
    if isinstance(error, EntryNotFoundError):
        return HubError("the repository has no such file", where=where, found=found, way_out=f"see {page}/tree/main")
    if isinstance(error, DisabledRepoError):
        return HubError("the hub has disabled the repository", where=where, found=found, way_out=f"see {page}")
    if status == 401 and get_token() is not None and not isinstance(error, RepositoryNotFoundError):
        return HubError(
            "the hub does not accept the token", where=where, found=found,
            way_out="set HF_TOKEN to a valid token, or unset it for a public repository",
        )  # fmt: skip
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return HubError(
            "there is no such repository, or it is private", where=where, found=found,
            way_out="check the name (datasets/OWNER/NAME for a dataset); for a private one set HF_TOKEN",
        )  # fmt: skip
    if status == 403:
        way_out = f"set HF_TOKEN to a token that may read {page}"
        return HubError("the hub forbids it", where=where, found=found, way_out=way_out)
    if status == 429:
        return HubError("the hub asks for fewer requests", where=where, found=found, way_out=f"wait a while; {_AGAIN}")
    return HubError("the hub failed", where=where, found=found, way_out=f"try again later; {_AGAIN}")


def _host() -> str:
    """The hub's address, without a name and password that somebody may have put into it."""
    scheme, sign, rest = constants.ENDPOINT.partition("://")
    return scheme + sign + rest.rpartition("@")[2]


def _kind(error: BaseException) -> str:
    return type(error).__name__
