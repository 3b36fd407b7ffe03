"""What can run code that came as data is not used anywhere outside of training/, nor is what unpacks archives.

Asked of the syntax tree: comments and messages may speak of these things.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "nemo_sdg"

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "jsonpickle",
    "code",
    "runpy",
}
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
"""As plain names; `re.compile` is another one."""
ATTRIBUTES = {
    "extractall", "unpack_archive", "load_module", "exec_module", "run_path", "run_module", "find_class",
    "unsafe_load", "full_load", "load_all", "unsafe_load_all", "full_load_all", "UnsafeLoader", "FullLoader", "Unpickler",
}  # fmt: skip
DOTTED = {"torch.load", "yaml.load", "np.load", "numpy.load", "yaml.Loader", "torch.jit.load", "torch.package"}
WORDS = {"allow_pickle", "trust_remote_code", "weights_only"}
"""As keywords of calls, and as parameters."""
OBJECTS_BETWEEN_RANKS = {"broadcast_object_list", "gather_object", "all_gather_object", "scatter_object_list"}

ALLOWED = {
    # The recipe is the user's own program: a path that they type. No path from a checkpoint or from rows comes here.
    ("config/loading.py", "exec_module"): "a recipe that is a .py file runs, as its user asked",
    # A loader of our own on yaml.SafeLoader, which makes plain data only and refuses keys that stand twice.
    ("config/loading.py", "yaml.load"): "with a subclass of SafeLoader",
    ("engine/backends/hf.py", "trust_remote_code"): "False: transformers' own classes alone are loaded",
    # The name of a field in OpenAI's error shape.
    ("engine/backends/faults.py", "'code'"): "read from a server's error",
    ("serve/refusals.py", "'code'"): "written into our own",
}


def found(source: str) -> list[tuple[int, str]]:
    """(line, word) of everything that is forbidden."""
    words = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            words += [(line, alias.name) for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            words += [(line, module)] if module.split(".")[0] in MODULES else []
            words += [(line, f"{module}.{a.name}") for a in node.names if f"{module}.{a.name}" in DOTTED]
            words += [(line, a.name) for a in node.names if a.name in ATTRIBUTES | OBJECTS_BETWEEN_RANKS]
        elif isinstance(node, ast.Name) and node.id in CALLS:
            words.append((line, node.id))
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            if dotted in DOTTED or dotted.startswith("builtins."):
                words.append((line, dotted))
            elif node.attr in ATTRIBUTES | OBJECTS_BETWEEN_RANKS:
                words.append((line, node.attr))
        elif isinstance(node, (ast.keyword, ast.arg)) and node.arg in WORDS:
            words.append((line or node.value.lineno, node.arg))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in CALLS | WORDS | MODULES:
            words.append((line, repr(node.value)))  # of getattr, import_module, a dictionary of keywords
    return words


def sources() -> dict[str, str]:
    return {
        str(file.relative_to(PACKAGE)): file.read_text(encoding="utf-8")
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.relative_to(PACKAGE).parts[0] not in ("training", "_data")
    }


def test_no_code_runs_what_came_as_data():
    everything = {(name, word): line for name, text in sources().items() for line, word in found(text)}
    assert len(sources()) > 60 and any(name.startswith("checkpoints/") for name in sources())
    wrong = [f"{name}:{line}: {word}" for (name, word), line in everything.items() if (name, word) not in ALLOWED]
    assert not wrong, "\n".join(wrong)
    assert set(ALLOWED) <= set(everything), "an exception that nothing needs any more"


def test_modules_are_imported_by_names_of_our_own():
    """import_module takes literals, or names that this package wrote down itself."""
    takers = {
        f"{name}: {ast.unparse(node)}"
        for name, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
        if not (node.args and isinstance(node.args[0], ast.Constant))
    }
    # `modules` are those that a verb needs, written down in the verb.
    assert takers == {"session.py: importlib.import_module(name)"}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "import dill", "from cloudpickle import load",
        "import marshal", "import shelve", "torch.load(f)", "from torch import load", "np.load(f)", "eval('1')", "exec(c)",
        "run = eval", "compile(c, 'x', 'exec')", "__import__('os')", "yaml.load(t)", "yaml.unsafe_load(t)",
        "from yaml import load", "from yaml import UnsafeLoader", "tar.extractall(p)", "shutil.unpack_archive(a)",
        "f(allow_pickle=True)", "f(trust_remote_code=x)", "torch_load(f, weights_only=False)", "builtins.exec(c)",
        "getattr(builtins, 'eval')", "f(**{'trust_remote_code': True})", "def f(allow_pickle): pass",
        "importlib.import_module('pickle')", "dist.all_gather_object(a, b)",
    ],
)  # fmt: skip
def test_the_test_sees(line):
    assert found(line), line


@pytest.mark.parametrize(
    "line", ["re.compile('x')", "yaml.safe_load(t)", "# pickle, eval", "'''never torch.load'''", "model.eval()"]
)
def test_and_not_what_is_allowed(line):
    assert not found(line), line
