"""Whether a response follows an instruction: as it stands (strict), or after small repairs (loose)."""

from __future__ import annotations

from nemo_sdg.config import nearest
from nemo_sdg.errors import RowError
from nemo_sdg.synthesis.instructions import amounts, keywords, layout, wording
from nemo_sdg.synthesis.instructions.kind import AT_LEAST, AT_MOST, EXACTLY, Kind, Spec

KINDS: dict[str, Kind] = {
    kind.name: kind for module in (amounts, keywords, layout, wording) for kind in module.KINDS
}
"""All kinds, by name."""
_VALUES = {"relation": (AT_LEAST, AT_MOST, EXACTLY), "what": tuple(keywords.PATTERNS)}


def check(spec: Spec, response: str, strict: bool = True) -> bool:
    """Whether the response follows the instruction; an empty one follows none.

    Args:
        strict: the response as it is. Otherwise any of `relaxed` will do (IFEval's loose accuracy).
    Raises:
        RowError: the spec is of no known kind, or lacks a parameter.
    """
    holds = KINDS[checked(spec)["kind"]].holds
    return any(text.strip() and holds(text, spec) for text in ([response] if strict else relaxed(response)))


def relaxed(response: str) -> list[str]:
    """The response, without its first, its last, and both lines, each also without asterisks.

    IFEval, instruction_following_eval/evaluation_lib.py, test_instruction_following_loose.
    """
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [text.replace("*", "") for text in cut]


def checked(spec: Spec, where: str = "instruction") -> Spec:
    """The spec, once its kind and parameters are found right. Raises RowError."""
    name = spec.get("kind")
    if name not in KINDS:
        way_out = f"the nearest is {nearest(str(name), KINDS)}"
        raise RowError("unknown kind of instruction", where=where, found=repr(name), way_out=way_out)
    parameters = KINDS[name].parameters
    where = f"{where} {name}"
    if set(spec) != {"kind", *parameters}:
        found, expected = sorted(set(spec) - {"kind"}), sorted(parameters)
        raise RowError("the parameters are others", where=where, found=found, expected=expected)
    for key, kind in parameters.items():
        value = spec[key]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise RowError(f"{key} has the wrong type", where=where, found=repr(value))
        if isinstance(value, list) and not all(isinstance(entry, str) and entry for entry in value):
            raise RowError(f"{key} is not a list of texts", where=where, found=repr(value))
        if key in _VALUES and value not in _VALUES[key]:
            raise RowError(f"{key} is unknown", where=where, found=value, expected="one of " + ", ".join(_VALUES[key]))
        if kind is int and value < (1 if key == "paragraph" else 0):
            raise RowError(f"{key} is out of range", where=where, found=value)
    if spec.get("paragraph", 1) > spec.get("count", 1) and "paragraph" in spec:
        raise RowError("there is no such paragraph", where=where, found=spec["paragraph"], expected=spec["count"])
    return spec
