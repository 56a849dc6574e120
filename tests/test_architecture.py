"""The arrows of ARCHITECTURE.md, read from the syntax tree: a room imports only from the rooms below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nanolm"

# A room may import from those before it, and from itself. `loss` stands alone but for errors.
ROOMS = [
    {"errors", "seeds"},
    {"files", "device"},
    {"config"},
    {"loss", "model", "data", "tracking"},
    {"optim", "metrics"},
    {"calibration"},
    {"evaluation", "sampling"},
    {"training", "classifiers", "comparison"},
    {"report"},
    {"inference"},
    {"lessons"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

# Libraries that one room alone may know.
OWNERS = {
    "hydra": {"config"},
    "omegaconf": {"config"},
    "wandb": {"tracking"},
    "rich": {"tracking"},
    "datasets": {"data"},
    "transformers": {"interop"},
    "sklearn": {"classifiers"},
    "scipy": {"metrics"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "nanolm"}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_from_below(path):
    room = room_of(path)
    for name in imports(path):
        if not name.startswith("nanolm."):
            continue
        other = name.split(".")[1]
        assert other == room or LEVEL[other] < LEVEL[room], f"{room} imports {name}"
        if room == "loss":
            assert other in ("loss", "errors"), "nanolm.loss can be lifted out with errors alone"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_known_to_its_room_alone(path):
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or room_of(path) in owners, f"{path} imports {name}"


def test_datasets_is_known_to_one_module():
    knowing = [path.name for path in FILES if any(name.split(".")[0] == "datasets" for name in imports(path))]
    assert len(knowing) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
