"""What a user can do wrong. Each message says what, where, found, expected and the way out.

The command line prints such an error as one sentence and exits with status 2; any other exception is
a defect of ours and keeps its traceback in the log.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can put right, told in one sentence."""

    exit_status = 2

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        found: object = None,
        expected: object = None,
        way_out: str | None = None,
    ) -> None:
        self.what, self.where, self.found, self.expected, self.way_out = what, where, found, expected, way_out
        parts = [f"{where}: {what}" if where is not None else what]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        sentence = ", ".join(parts)
        super().__init__(f"{sentence}; {way_out}" if way_out else sentence)

    def __reduce__(self) -> tuple:
        # BaseException would rebuild from the finished sentence; errors cross from ranks to their launcher.
        return _rebuild, (type(self), self.what, self.where, self.found, self.expected, self.way_out)


def _rebuild(
    kind: type[UserError], what: str, where: object, found: object, expected: object, way_out: str
) -> UserError:
    return kind(what, where=where, found=found, expected=expected, way_out=way_out)


class ConfigError(UserError):
    """A recipe, a key or a value that is not valid."""


class TopologyError(ConfigError):
    """A number of ranks, TP or PP that the model or the launch does not allow."""


class CheckpointError(UserError):
    """A folder that is not a checkpoint, or a tensor that is missing or does not fit."""


class RowError(UserError):
    """A row of data that cannot be used; it is set aside with this reason."""


class StoreError(UserError):
    """A run folder that belongs to another config, is in use, or was damaged."""


class Stopped(UserError):
    """No mistake: the run was told to stop, has saved where it is, and the same command goes on from there.

    The status is EX_TEMPFAIL of sysexits.h, which tells a scheduler to start it again.
    """

    exit_status = 75


class HubError(UserError):
    """A repository on the Hugging Face hub that is not there, not open to us, or not to be had now."""
