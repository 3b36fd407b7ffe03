"""From a recipe's name or file and `key=value` words to one checked RunConfig.

YAML is data here: parsed by the safe loader, duplicate keys refused, no interpolation. Only a `.py`
recipe is code.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import re
import traceback
from pathlib import Path
from typing import Any, Iterable, Iterator, get_args, get_type_hints

import yaml

from nemo_sdg import resources
from nemo_sdg.config.checks import validate
from nemo_sdg.config.recipes import Recipe, rule_digests
from nemo_sdg.config.settings import RunConfig
from nemo_sdg.config.values import flatten, nearest
from nemo_sdg.errors import ConfigError

COMMAND_LINE = "command line"
_SUFFIXES = (".py", ".yaml", ".yml")
_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def load(recipe: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The settings of `load_recipe` without the rules that the recipe may bring."""
    return load_recipe(recipe, overrides).config


def load_recipe(recipe: str, overrides: Iterable[str] = ()) -> Recipe:
    """The checked settings of `recipe` (a name from recipes/, a .py or a .yaml file) with `key=value` words applied.

    Raises ConfigError for a recipe, a key or a value that does not exist or is not allowed, and for the run.yaml of a
    run with rules of its own: they are code, which no file of settings holds.
    """
    known = resources.recipes()
    if recipe in known:
        found = _from_python(known[recipe])
    elif recipe.endswith(_SUFFIXES) and Path(recipe).is_file():
        found = _from_python(Path(recipe)) if recipe.endswith(".py") else Recipe(_without_rules(recipe))
    else:
        raise ConfigError(
            "there is no recipe of this name",
            where=recipe,
            expected="one of " + ", ".join(known) + ", or a .py or .yaml file",
            way_out=f"the nearest is {nearest(recipe, known)}",
        )
    words = list(overrides)
    return dataclasses.replace(found, config=override(found.config, words)) if words else found


def override(config: RunConfig, words: Iterable[str]) -> RunConfig:
    """A checked copy of the config with `key=value` words applied. Raises ConfigError."""
    changes = []
    for word in words:
        key, sign, text = word.partition("=")
        if not sign:
            raise ConfigError("not a setting", where=COMMAND_LINE, found=word, expected="key=value")
        changes.append((key.strip(), _parse_word(key.strip(), text)))
    return validate(_apply([*_changed(config, _defaults()[0], COMMAND_LINE), *changes], COMMAND_LINE))


def from_yaml(path: str | Path) -> RunConfig:
    """The settings in a YAML file: a whole config, a part of one over the defaults, or a run's run.yaml."""
    tree = read_mapping(path, "settings")
    if "fingerprint" in tree and "config" in tree:  # the form that store.Run writes
        tree = _mapping_of(tree["config"], path, "settings")
    return validate(_apply([(str(key), value) for key, value in tree.items()], str(path)))


def _without_rules(path: str) -> RunConfig:
    tree = read_mapping(path, "settings")
    if "fingerprint" in tree and tree.get("rules"):
        raise ConfigError(
            "the run has rules of its own, which a file of settings does not hold", where=path,
            found=", ".join(tree["rules"]), way_out="give the Python recipe that brings them instead of this file",
        )  # fmt: skip
    return from_yaml(path)


def read_mapping(path: str | Path, what: str) -> dict[Any, Any]:
    """The mapping that a YAML file holds: plain data, a key once. Raises ConfigError, which calls it `what`."""
    try:
        tree = yaml.load(resources.resolve(path).read_text(encoding="utf-8"), Loader=_Strict)
    except UnicodeDecodeError as error:
        found = f"byte {error.start} is not UTF-8"
        raise ConfigError(f"cannot read the {what}", where=path, found=found, expected="UTF-8 text") from None
    except (yaml.YAMLError, OSError, RecursionError) as error:
        raise ConfigError(f"cannot read the {what}", where=path, found=" ".join(str(error).split())) from None
    return _mapping_of(tree, path, what)


def _mapping_of(tree: Any, path: str | Path, what: str) -> dict[Any, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"not a mapping of {what}", where=path, found=type(tree).__name__, expected="key: value")
    return tree


def _apply(changes: list[tuple[str, Any]], where: str | Path) -> RunConfig:
    """The defaults with (dotted key, value) pairs set; OmegaConf holds each value to its field's type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    tree = copy.deepcopy(_defaults()[1])
    for key, value in changes:
        for leaf, leaf_value in _known(key, value, where):
            try:
                OmegaConf.update(tree, leaf, leaf_value, merge=False)
            except (OmegaConfBaseException, OverflowError) as error:
                what = f"the value of {leaf} has the wrong type"
                raise ConfigError(what, where=where, found=repr(leaf_value), expected=_type_of(leaf)) from error
    return OmegaConf.to_object(tree)


@functools.cache
def _defaults() -> tuple[RunConfig, Any]:
    """The defaults, and OmegaConf's tree of them: to build one takes five times as long as to copy it."""
    from omegaconf import OmegaConf

    defaults = RunConfig()
    return defaults, OmegaConf.structured(defaults)


def _changed(group: Any, default: Any, where: str | Path, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what differs from the defaults in a config, or in a group of one, that Python has made.

    Raises ConfigError for an attribute that is no setting, which nobody would read, and for another object in a group's place.
    """
    if type(group) is not type(default):
        what = f"{prefix[:-1] or 'the config'} is a group of settings"
        raise ConfigError(what, where=where, found=repr(group)[:120], expected=f"a {type(default).__name__}")
    for name, value in vars(group).items():
        key = f"{prefix}{name}"
        if name not in _hints(type(default)):
            raise _unknown(key, where)
        usual = getattr(default, name)
        if dataclasses.is_dataclass(usual):
            yield from _changed(value, usual, where, f"{key}.")
        elif type(value) is not type(usual) or value != usual:  # 1 is True and 1.0 to Python
            yield key, value


def _known(key: str, value: Any, where: str | Path) -> Iterator[tuple[str, Any]]:
    """The key itself, or the keys below it when it names a whole group. Raises ConfigError for an unknown one."""
    kind: Any = RunConfig
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if kind is dict:  # its keys are the user's to choose
            if depth + 1 < len(parts):
                raise _unknown(key, where)
            break
        if not dataclasses.is_dataclass(kind) or part not in _hints(kind):
            raise _unknown(key, where)
        kind = _hints(kind)[part]
        kind = dict if getattr(kind, "__origin__", None) is dict else kind
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is a group of settings", where=where, found=repr(value), expected=f"{key}.NAME")
        for name, below in value.items():
            yield from _known(f"{key}.{name}", below, where)
        return
    missing = any(isinstance(one, str) and one == "???" for one in (value if isinstance(value, list) else [value]))
    if missing or "${" in str(value):  # OmegaConf's words for none yet, and for another value
        raise ConfigError(f"{key} holds an interpolation", where=where, found=repr(value), expected="a plain value")
    yield key, value


# It compiles each annotation anew, which was half of the time that a run's settings take to be read.
_hints = functools.cache(get_type_hints)


def _unknown(key: str, where: str | Path) -> ConfigError:
    keys = list(flatten(RunConfig()))
    return ConfigError(f"unknown key {key!r}", where=where, way_out=f"the nearest valid key is {nearest(key, keys)}")


def _type_of(key: str) -> str:
    """What a setting holds, in words."""
    kind: Any = RunConfig
    for part in key.split("."):
        hints = _hints(kind) if dataclasses.is_dataclass(kind) else {}
        kind = hints.get(part, float)  # below a dict there are only numbers
    if getattr(kind, "__origin__", None) is dict:
        return "names with numbers"
    if getattr(kind, "__origin__", None) is list:
        return "a list of texts"
    types = get_args(kind) or (kind,)
    return " or ".join(_TYPES[one] for one in types)


def _parse_word(key: str, text: str) -> Any:
    """A word's value as YAML; where the setting is text it stays as typed, so that a name may be `2026-01-01`."""
    try:
        value = yaml.load(text, Loader=_Strict)
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"cannot read the value of {key}", where=COMMAND_LINE, found=text, expected="YAML") from None
    textual = key in flatten(RunConfig()) and _type_of(key).startswith("text")
    return text if textual and value is not None and not isinstance(value, str) else value


def _from_python(path: Path) -> Recipe:
    """What the function named like the file returns; a number before the name (`01_mine.py`) does not belong to it.

    A recipe is trusted code, so it is simply run.
    """
    name = re.sub(r"^\d+_", "", path.stem.replace("-", "_"))
    spec = importlib.util.spec_from_file_location(f"nemo_sdg_recipe_{name}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        function = getattr(module, name, None)
        if not callable(function):
            raise ConfigError("the recipe has no function of its file's name", where=path, expected=f"def {name}()")
        made = function()
    except ConfigError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            "the recipe raised an exception",
            where=f"{line.filename}:{line.lineno}",
            found=f"{type(error).__name__}: {error}",
        ) from error
    recipe = Recipe(made) if isinstance(made, RunConfig) else made
    if not isinstance(recipe, Recipe) or not isinstance(recipe.config, RunConfig):
        expected = "a RunConfig, or a Recipe with one"
        raise ConfigError("the recipe returns no settings", where=path, found=type(made).__name__, expected=expected)
    rule_digests(recipe.rules)
    config = _apply(list(_changed(recipe.config, _defaults()[0], path)), path)
    return dataclasses.replace(recipe, config=validate(config))


class _Strict(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """The safe loader (libyaml's, the faster one, where PyYAML has it), which also refuses a key that stands twice: the last
    would win without a word."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict:
    seen = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for key in seen:
        if not isinstance(key, (str, int)) or seen.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice or is no name", node.start_mark
            )
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
