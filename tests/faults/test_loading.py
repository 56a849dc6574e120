"""R11: nothing that a file holds is executed: read from the syntax trees of all code that a user runs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = [path for folder in ("nanolm", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
UNPICKLES = ("load", "loads", "Unpickler")
EXECUTES = {*(f"pickle.{name}" for name in UNPICKLES), "marshal.loads", "eval", "exec", "hydra.utils.instantiate"}
HIDDEN = {("torch", "load"), *(("pickle", name) for name in UNPICKLES)}


def faults(code):
    """Return what a source text does that could run what it reads, and the number of its calls of torch.load."""
    tree = ast.parse(code)
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    loaders = {node.name for node in classes if [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]}
    found, num_loads = [], 0
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [f"from {node.module} import {n.name}" for n in node.names if (node.module, n.name) in HIDDEN]
        if isinstance(node, ast.Import):  # under another name a call would not be found
            found += [f"{n.name} as {n.asname}" for n in node.names if n.name in ("torch", "pickle") and n.asname]
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe_torch = name == "torch.load" and words.get("weights_only") != "True"
        unsafe_array = name in ("np.load", "numpy.load") and words.get("allow_pickle", "False") != "False"
        unsafe_yaml = name in ("yaml.load", "yaml.load_all") and words.get("Loader") not in loaders
        if name in EXECUTES or name.startswith("yaml.unsafe_") or unsafe_torch or unsafe_array or unsafe_yaml:
            found.append(ast.unparse(node))
        num_loads += name == "torch.load"
    return found, num_loads


def test_torch_load_reads_weights_only_everywhere():
    num_loads = 0
    for path in CODE:
        found, loads = faults(path.read_text(encoding="utf-8"))
        assert not found, path
        num_loads += loads * path.is_relative_to(ROOT / "nanolm")
    assert num_loads >= 1


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "from torch import load",
        "import pickle as p",
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "class Loader(yaml.Loader): pass\nyaml.load(text, Loader=Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
    ],
)
def test_what_would_be_found(code):
    assert faults(code)[0]
