"""A fit that is told to stop finishes its step, saves a restart point, and ends as one that can be continued."""

from __future__ import annotations

from nemo_sdg.parallel import stopping


class StopRequest:
    """What the parts of a fit know of it."""

    def __init__(self) -> None:
        self.agreed = False
        """Some rank was told to stop and all ranks know it: set once a step, on all of them in the same one."""

    @property
    def asked(self) -> bool:
        """This rank knows that the run is to stop."""
        return stopping.wanted() is not None
