"""Nothing that a stranger wrote is executed."""

import ast
from pathlib import Path

import yaml

import nanolm
from nanolm.config import convert

PACKAGE = Path(nanolm.__file__).parent


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_torch_load_reads_weights_only_everywhere():
    found = 0
    for path in PACKAGE.rglob("*.py"):
        for name, words in calls(path):
            if name == "torch.load":
                found += 1
                assert words.get("weights_only") == "True", path
            assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "hydra.utils.instantiate"), (path, name)
            assert not (name == "np.load" and words.get("allow_pickle") == "True"), path
            assert name != "yaml.load" or words["Loader"] == "_Loader", path
    assert found >= 1
    assert issubclass(convert._Loader, yaml.SafeLoader)
