"""Who may import whom, and what importing protoad may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROTOAD = ROOT / "src" / "protoad"
HEAVY = {"triton", "timm", "cv2", "open3d", "scipy", "torchvision", "tifffile", "PIL", "tqdm", "matplotlib", "sklearn"}


def _imports(path: Path, *, top_only: bool = False) -> set[str]:
    """Dotted names a file imports; with `top_only`, those that run on import of the file."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise AssertionError(f"{path}: a relative import hides where it reaches; write it out")
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _ours(names: set[str]) -> set[str]:
    """The parts of protoad and its siblings among imported names: protoad.nn.graph -> nn."""
    parts = set()
    for name in names:
        package, _, rest = name.partition(".")
        if package == "protoad" and rest:
            parts.add(rest.partition(".")[0])
        elif package in ("protoad_kernels", "protoad_detectors", "pirn"):
            parts.add(package)
    return parts


# What each place may import of the project, beside itself; "errors", "_lazy" and "_atomic" are everybody's.
ALLOWED = {
    "ops": {"protoad_kernels"},
    "nn": {"ops"},
    "encoders": {"ops", "distributed"},
    "losses.py": {"ops", "distributed"},
    "scoring.py": {"ops"},
    "metrics.py": {"ops", "_ranks"},
    "_ranks.py": set(),
    "data": set(),
    "background.py": set(),
    "calibration.py": set(),
    "checkpoint.py": set(),
    "regions.py": set(),
    "report.py": {"metrics", "data"},
    "detection": {"background", "data", "distributed", "encoders", "scoring"},
    "viz": {"_ticks"},
    "html_report.py": {"_report_page", "_svg"},
    "training.py": {"checkpoint", "distributed"},
    "distributed.py": set(),
    "errors.py": set(),
    "_lazy.py": set(),
    "_atomic.py": set(),
    "_report_page.py": {"metrics", "_svg"},
    "_svg.py": {"_ticks"},
    "_ticks.py": set(),
    "__init__.py": {"nn", "ops", "__version__"},
}


def test_every_place_has_a_rule() -> None:
    assert {path.name for path in PROTOAD.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == set(
        ALLOWED
    )


@pytest.mark.parametrize("place", ALLOWED)
def test_layers_import_downwards_only(place: str) -> None:
    path = PROTOAD / place
    for file in [path] if path.is_file() else _files(path):
        found = _ours(_imports(file)) - {place.removesuffix(".py"), "errors", "_lazy", "_atomic"}
        known = {other.removesuffix(".py") for other in ALLOWED} | {"protoad_kernels", "protoad_detectors", "pirn"}
        assert found & known <= ALLOWED[place], f"{file.relative_to(ROOT)} imports {found}"


def test_kernels_know_only_torch_and_triton() -> None:
    for file in _files(ROOT / "kernels"):
        found = {name.partition(".")[0] for name in _imports(file)}
        assert found <= {"torch", "triton", "__future__", "protoad_kernels", *sys.stdlib_module_names}, file


@pytest.mark.parametrize("package", ["protoad_detectors", "pirn"])
def test_examples_use_public_names_only(package: str) -> None:
    for file in _files(ROOT / "examples" / package):
        private = {
            n for n in _imports(file) if n.startswith("protoad.") and any(p.startswith("_") for p in n.split("."))
        }
        assert not private - {"protoad.__version__"}, f"{file.relative_to(ROOT)} imports {private}"
    if package == "protoad_detectors":
        assert not any("pirn" in _ours(_imports(file)) for file in _files(ROOT / "examples" / package))


@pytest.mark.parametrize("file", _files(PROTOAD), ids=lambda p: str(p.relative_to(PROTOAD)))
def test_no_heavy_import_at_the_top_of_a_file(file: Path) -> None:
    top = {name.partition(".")[0] for name in _imports(file, top_only=True)}
    assert not top & HEAVY


def test_import_protoad_loads_nothing_heavy() -> None:
    """In a fresh interpreter: torch itself is there, and nothing of the extras that torch did not bring."""
    code = (
        "import sys, torch; before = set(sys.modules); import protoad; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src")
    assert not set(run.stdout.split()) & HEAVY


def test_a_missing_extra_is_one_sentence() -> None:
    from protoad import MissingExtraError
    from protoad._lazy import require

    with pytest.raises(
        MissingExtraError, match=r"no_such_module is needed here but not installed; run: pip install 'protoad\[data\]'"
    ):
        require("no_such_module", extra="data")
