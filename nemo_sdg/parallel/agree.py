"""One rank decides or writes, and all ranks learn the answer, also when the answer is a mistake of the user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from nemo_sdg import errors

if TYPE_CHECKING:
    from nemo_sdg.parallel.mesh import Mesh


def on_writer(mesh: Mesh, work: Callable[[], Any]) -> Any:
    """Does `work` on rank 0 and gives every rank its answer, which is JSON.

    A user's mistake found there is raised on every rank, or the others would wait for rank 0 in vain. What a
    shared file system shows may differ between nodes for a while, so what it shows to one rank decides.
    """
    return _told(mesh.writer, mesh.broadcast_object, work)


def on_lead(mesh: Mesh, work: Callable[[], Any]) -> Any:
    """The same for the lead rank of this replica and the others of the replica."""
    return _told(mesh.replica_lead, mesh.broadcast_in_replica, work)


def on_all(mesh: Mesh, work: Callable[[], Any]) -> list[Any]:
    """Does `work` on every rank and gives every rank all the answers, which are JSON.

    A user's mistake that any rank finds is raised on all of them; of several that of the lowest rank.
    """
    raised, answer = None, None
    try:
        answer = {"done": work()}
    except errors.UserError as error:
        raised, answer = error, _mistake(error)
    answers = mesh.gather_objects(answer)
    first = next((found for found in answers if "mistake" in found), None)
    if first is not None:
        raise _error(first) from raised
    return [found["done"] for found in answers]


def _told(mine: bool, tell: Callable[[Any], Any], work: Callable[[], Any]) -> Any:
    answer, raised = None, None
    if mine:
        try:
            answer = {"done": work()}
        except errors.UserError as error:
            raised, answer = error, _mistake(error)
    answer = tell(answer)
    if raised is not None:
        raise raised
    if "mistake" in answer:
        raise _error(answer)
    return answer["done"]


def _mistake(error: errors.UserError) -> dict[str, Any]:
    told = [error.what, *map(_text, (error.where, error.found, error.expected)), error.way_out]
    return {"mistake": [type(error).__name__, told]}


def _error(answer: dict[str, Any]) -> errors.UserError:
    name, (what, where, found, expected, way_out) = answer["mistake"]
    return getattr(errors, name)(what, where=where, found=found, expected=expected, way_out=way_out)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
