"""One server that speaks the OpenAI chat-completions API, and its one model: rows go in, each comes out once.

Rows are taken from and handed to the caller in the caller's own thread, while the requests are under way in another.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from nemo_sdg.config import Endpoint, nearest
from nemo_sdg.config.endpoints import check_endpoint
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.engine.backends.faults import Everybody, Passing
from nemo_sdg.engine.backends.shape import take
from nemo_sdg.engine.backends.transport import Transport
from nemo_sdg.errors import RowError, UserError
from nemo_sdg.records import Response

OURS = "nemo_sdg"
"""Who owns the models of `nemo-sdg serve`, as /v1/models says; also the key of what only it understands."""
PATIENCE = 16
"""Rows one after the other without an answer, or first prompts that are all refused, after which the run stops."""


@dataclass(frozen=True)
class Job:
    """One row to ask for."""

    id: str
    prompt_id: str
    body: dict[str, Any]
    """Of the request, without the model's name."""
    read: Callable[[Any], Response]
    """The row that an answer is; raises RowError."""


class Server:
    """A server as the rows see it.

    Args:
        where: the setting that errors name, for example `generate.endpoint`.
        role: policy or reward; where the server tells the roles of its models, others are passed over.
    Raises:
        ConfigError: the endpoint has no URL or one that holds a secret, or the key is none.
    """

    def __init__(self, endpoint: Endpoint, where: str, role: str) -> None:
        check_endpoint(endpoint, where, used=True)
        self._endpoint, self._where, self._role = endpoint, where, role
        self.transport = Transport(endpoint, where)
        self._served: dict[str, str] | None = None
        self._answered = False
        self._unanswered = 0
        self._refused: set[str] = set()

    @property
    def model(self) -> str:
        """The model's name: the one that is set, or the only one that the server has."""
        if self._endpoint.model is not None:
            return self._endpoint.model
        names = list(self.served())
        if len(names) != 1:
            raise UserError(
                "the server has several models" if names else "the server does not say which model it has",
                where=f"{self._where}.model", found=", ".join(names)[:200] or "no list of models",
                expected="the name of one", way_out=f"set {self._where}.model",
            )  # fmt: skip
        return names[0]

    @property
    def ours(self) -> bool:
        """Whether it is `nemo-sdg serve`, which understands our own fields; others may refuse them."""
        return self.served().get(self.model) == OURS

    def served(self) -> dict[str, str]:
        """The server's models and their owners, asked once; empty if it keeps no list.

        Raises:
            UserError: nobody can be reached there, or the key is refused.
        """
        if self._served is None:
            self._served = self.transport.start(self._list()).result()
        return self._served

    def stream(self, jobs: Iterable[Job | Refusal]) -> Iterator[Response | Refusal]:
        """A row or a refusal per job, each once, in the order in which they come; refusals pass through.

        Takes a few more jobs than the server gets at a time, and no more until some are done.

        Raises:
            UserError: the server is gone, or refuses everybody.
        """
        done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        under_way: set[Future] = set()

        def finished() -> Response | Refusal:
            future = done.get()
            under_way.discard(future)
            row = future.result()
            if isinstance(row, UserError):
                raise row
            return row

        self.served()  # a key, an address or a name that is wrong shows before the first row
        model = self.model
        try:
            for job in jobs:
                if isinstance(job, Refusal):
                    yield job
                    continue
                future = self.transport.start(self._ask(job, model))
                under_way.add(future)
                future.add_done_callback(done.put)
                while len(under_way) >= 2 * self._endpoint.concurrency or not done.empty():
                    yield finished()
            while under_way:
                yield finished()
        finally:
            for future in under_way:
                future.cancel()

    def close(self) -> None:
        self.transport.close()

    async def _ask(self, job: Job, model: str) -> Response | Refusal | UserError:
        """A UserError is for the caller of `stream`: raised here, one that nobody waits for would be logged."""
        try:
            row = await self.transport.chat({"model": model, **job.body}, job.read)
        except Everybody as refusal:
            return self._refuses(refusal)
        except Passing as fault:
            self._unanswered += 1
            if fault.absent or self._unanswered >= PATIENCE:
                return self._gone(fault)
            return Refusal(job.id, RowError("the server gave no answer", found=self._tries(fault)))
        except RowError as error:
            self._unanswered = 0
            if not self._answered:
                self._refused.add(job.prompt_id)
                if len(self._refused) >= PATIENCE:
                    return self._hopeless(error)
            return Refusal(job.id, error)
        self._unanswered, self._answered = 0, True
        return row

    async def _list(self) -> dict[str, str]:
        def read(answer: Any) -> dict[str, str]:
            entries = take(answer, "data", kind=list)
            names = [take(answer, "data", index, "id", kind=str) for index in range(len(entries))]
            ours = [entry.get(OURS) for entry in entries]
            fits = [not isinstance(own, dict) or own.get("role") in (None, self._role) for own in ours]
            return {name: str(entry.get("owned_by")) for name, entry, fit in zip(names, entries, fits) if fit}

        try:
            return await self.transport.models(read)
        except RowError:
            return {}
        except Passing as fault:
            raise self._gone(fault) from None
        except Everybody as refusal:
            if refusal.status in (404, 405):  # it may do without the list
                return {}
            raise self._refuses(refusal) from None

    @property
    def _place(self) -> str:
        return f"{self._where} ({self._endpoint.url})"

    def _tries(self, fault: Passing) -> str:
        return f"{fault} in the last of {self._endpoint.retries + 1} tries"

    def _refuses(self, refusal: Everybody) -> UserError:
        key, names, wanted = self._endpoint.key_env, list(self._served or ()), self._endpoint.model
        what, way_out = "the server does not accept the key", f"set the environment variable {key} to a valid key"
        if not self.transport.has_key:
            what, way_out = "the server wants a key", f"{way_out}: it is not set"
        if refusal.status in (402, 403):
            what, way_out = "the server forbids it", f"see to the account of the key in {key}, then run this again"
        elif refusal.status != 401 and wanted and names and wanted not in names:
            what, way_out = f"the server has no model {wanted}", f"the nearest is {nearest(wanted, names)}"
        elif refusal.status != 401:
            what = "the server has no such address or model"
            way_out = f"correct the address in {self._where}, which ends in /v1 with most servers, or the model's name"
        expected = f"one of {', '.join(names)[:200]}" if "nearest" in way_out else None
        return UserError(what, where=self._place, found=str(refusal), expected=expected, way_out=way_out)

    def _gone(self, fault: Passing) -> UserError:
        return UserError(
            "the server no longer answers" if self._answered else "the server cannot be reached", where=self._place,
            found=self._tries(fault),
            way_out=f"start it, or correct its address in {self._where}, and run the same command again",
        )  # fmt: skip

    def _hopeless(self, error: RowError) -> UserError:
        return UserError(
            f"the server answered none of the first {PATIENCE} prompts", where=self._place,
            found=f"{error.what} ({error.found})", way_out="correct the settings that it does not understand",
        )  # fmt: skip
