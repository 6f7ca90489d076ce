"""What the documentation says is so: its code runs, its commands parse, its links lead somewhere.

A page's ```python blocks run in order, in one namespace and an empty folder. Before a block may stand, unseen by who
reads the page,

    <!-- not run: why -->            the block is left out, for want of a cluster or a data set
    <!-- run first: code -->         what the block takes for granted, such as a trained detector
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pirn.cli import _parser, main

from protoad.data import render_part, write_mask, write_rgb, write_xyz

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
EXAMPLE = ROOT / "examples" / "compose_detector.py"
REFERENCE = "docs/api/"

_PIECE = re.compile(
    r"^<!-- (?P<kind>not run|run first):\s+(?P<said>.*?)\s*-->|^```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """Python of a page, whether the reader sees it, and where it stands."""

    code: str
    shown: bool
    line: int


def read_blocks(text: str) -> tuple[list[Block], list[str]]:
    """The blocks to run, in order, and the reasons given for those that are left out."""
    blocks, reasons, skip = [], [], False
    for found in _PIECE.finditer(text):
        code, line = found["said"] or found["code"], text[: found.start()].count("\n") + 1
        if found["kind"] == "not run":
            assert not skip, f"line {line}: the reason before it belongs to no block"
            reasons.append(found["said"])
            skip = True
        elif skip:
            assert found["kind"] is None, f"line {line}: a block that is left out needs nothing to run first"
            skip = False
        else:
            blocks.append(Block(code, found["kind"] is None, line))
    assert not skip, "the last reason belongs to no block"
    return blocks, reasons


def run_page(name: str) -> dict[str, Any]:
    """Runs the blocks of a page; gives their names."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in read_blocks(PAGES[name].read_text())[0]:
        exec(compile("\n" * block.line + block.code, name, "exec"), names)
    return names


def read_commands(text: str) -> list[str]:
    """The lines of indented and of shell blocks, continued lines joined, without comments."""
    shell = "".join(re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = "\n".join(re.findall(r"^ {4}(\S.*)$", prose.replace("\\\n        ", ""), re.MULTILINE))
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in f"{shell}\n{indented}".splitlines()]
    return [line for line in lines if line]


COMMANDS = [(name, line) for name, path in PAGES.items() for line in read_commands(path.read_text())]


@pytest.mark.parametrize(
    "name", [name for name, path in PAGES.items() if name != "docs/compose.md" and read_blocks(path.read_text())[0]]
)
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(name)


def test_every_python_block_is_seen() -> None:
    """No fence that looks like Python escapes: neither by its name nor by being indented."""
    for name, path in PAGES.items():
        text = path.read_text()
        blocks, reasons = read_blocks(text)
        assert len(re.findall(r"^ *```py", text, re.MULTILINE)) == sum(b.shown for b in blocks) + len(reasons), name
        assert not re.findall(r"^ {4}(?:import|from) \w+", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)


def test_left_out_blocks_say_why() -> None:
    reasons = [reason for path in PAGES.values() for reason in read_blocks(path.read_text())[1]]
    assert len(reasons) <= 3
    assert all(len(reason) > 20 for reason in reasons)


def test_a_page_that_is_wrong_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setitem(PAGES, "page.md", page)
    fence = "```python\n{}\n```\n"
    left_out = f"<!-- not run: why -->\n{fence.format('1 / 0')}"
    page.write_text(f"<!-- run first:\nx = 1\n-->\n\n{fence.format('y = x + 1')}{left_out}")
    assert run_page("page.md")["y"] == 2
    page.write_text(fence.format("1 / 0"))
    with pytest.raises(ZeroDivisionError):
        run_page("page.md")


# Commands


def _subcommands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize(("page", "command"), [(p, c) for p, c in COMMANDS if re.match(r"(?:\S*/)?pirn ", c)])
def test_commands_parse(page: str, command: str) -> None:
    _parser().parse_args(shlex.split(command)[1:])


def test_flags_of_commands_named_in_passing_exist() -> None:
    for name, path in PAGES.items():
        for command in re.findall(r"`pirn (\w[^`]*)`", path.read_text()):
            word, *rest = shlex.split(command)
            if word in ("NAME", "COMMAND"):
                continue
            flags = _subcommands()[word]._option_string_actions
            assert {part for part in rest if part.startswith("--")} <= {*flags, "--help"}, f"{name}: pirn {command}"


def test_what_else_is_called_exists() -> None:
    """Files that `python` and `pytest` are given, and targets of `make`."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, command in COMMANDS:
        words = command.split()
        if words[0] == "make":
            assert set(words[1:]) <= targets, f"{name}: {command}"
        for word in words:
            if re.fullmatch(r"(?:examples|benchmarks|tests)/[\w/]+\.py", word):
                assert (ROOT / word).is_file(), f"{name}: {command}"


def test_the_main_commands_are_shown() -> None:
    shown = {command.split()[1] for name, command in COMMANDS if command.startswith("pirn ")}
    assert shown == set(_subcommands())


# Links


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", PAGES[name].read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = PAGES[name].parent / path if path else PAGES[name]
        assert found.exists(), f"{name}: {target}"
        assert not anchor or anchor in _anchors(found), f"{name}: {target}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


# The reference


def _public_modules() -> list[str]:
    """Modules of protoad that are for users: packages, and files without an underscore."""
    places = sorted((ROOT / "src" / "protoad").iterdir())
    names = [path.stem for path in places if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return [f"protoad.{name}" for name in names if not name.startswith("_")]


def test_every_module_has_a_page() -> None:
    pages = "\n".join(PAGES[page].read_text() for page in PAGES if page.startswith(REFERENCE))
    described = re.findall(r"^::: (\S+)", pages, re.MULTILINE)
    assert {*_public_modules(), "pirn", "protoad_detectors"} <= set(described)
    assert len(described) == len(set(described))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="pip install 'protoad[docs]'")
    pytest.importorskip("material", reason="pip install 'protoad[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    out = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(out)))
    return out


@pytest.mark.parametrize("module", [*_public_modules(), "pirn", "protoad_detectors"])
def test_every_public_name_is_described(module: str, site: Path) -> None:
    shown = {name for page in (site / "api").rglob("*.html") for name in re.findall(r'id="([\w.]+)"', page.read_text())}
    names = importlib.import_module(module).__all__
    assert {f"{module}.{name}" for name in names} <= shown


def test_the_site_asks_for_nothing(site: Path) -> None:
    """Fonts, scripts, styles and pictures come with it: it reads the same without a network."""
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|img|link)\b[^>]*(?:src|href)="?(?:https?:)?//[^">]*', page.read_text())
        assert not fetched, page


# From photographs to decisions


@pytest.fixture
def bracket(tmp_path: Path) -> Path:
    """A folder as docs/your-parts.md describes it, in millimetres."""
    text = PAGES["docs/your-parts.md"].read_text()
    toml = re.search(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[1]
    folder, tables = tmp_path / "parts" / "bracket", tomllib.loads(toml)
    seeds = iter(range(100))
    for table, count, defect in (("train", 30, None), ("test.good", 3, None), ("test.scratch", 3, "cut")):
        patterns = tables
        for key in table.split("."):
            patterns = patterns[key]
        for index in range(count):
            _write_part(folder, patterns, f"{index:03}", next(seeds), defect)
    (folder / "protoad.toml").write_text(toml)
    for place in ("new", "arriving"):
        _write_part(tmp_path / place, {"rgb": "rgb/*.png", "xyz": "xyz/*.tiff"}, "031", next(seeds), None)
    return tmp_path


def _write_part(folder: Path, patterns: dict[str, str], name: str, seed: int, defect: str | None) -> None:
    part = render_part("gland", seed=seed, defect=defect, size=64)
    for kind, pattern in patterns.items():
        path = folder / pattern.replace("*", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "rgb":
            write_rgb(path, part.rgb)
        elif kind == "xyz":
            write_xyz(path, 1000 * part.xyz)
        else:
            write_mask(path, part.mask)


# so that it takes seconds; the commands are otherwise those of the page
_QUICKLY = {
    "train": ["--image-size", "64", "--epochs", "1", "--num-prototypes", "4"],
    "prepare": ["--size", "64", "--jobs", "1"],
    "check": ["--jobs", "1"],
    "watch": ["--until-idle", "0.3", "--interval", "0.05"],
    "update": ["--more-epochs", "1"],
}


def test_your_parts_from_photographs_to_decisions(
    bracket: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(bracket)
    commands = [shlex.split(line)[1:] for name, line in COMMANDS if name == "docs/your-parts.md" and "pirn" in line]
    expected = ["check", "prepare", "train", "evaluate", "calibrate", "detect", "watch", "update"]
    assert [command[0] for command in commands] == expected
    for command in commands:
        if command[0] == "update":  # the part that has come since
            for arrived in (bracket / "parts" / "bracket" / "good").glob("029_*"):
                shutil.copy(arrived, arrived.with_name(arrived.name.replace("029", "030")))
        assert main([*command, *_QUICKLY.get(command[0], [])]) == 0, capsys.readouterr().err
    said, complaints = capsys.readouterr()
    assert "millimetres" not in complaints
    assert "nothing wrong" in said
    assert "20 good parts held out" in said
    assert "at most 0.05 of good parts rejected" in said
    for made in (
        "cache/bracket/foreground.png",
        "runs/bracket/checkpoint.safetensors",
        "runs/bracket/previous.checkpoint.safetensors",
        "runs/bracket/measured/bracket.html",
        "inspected/scores.csv",
        "inspected/report.html",
        "watched/watch.jsonl",
    ):
        assert (bracket / made).is_file(), made


# Particular pages


def test_compose_your_own_in_fifteen_lines() -> None:
    """The README's promise; that its blocks run is tested above."""
    code = read_blocks(PAGES["README.md"].read_text())[0][0].code
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 15
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["score"].shape == (2, 196)


def test_the_readme_transport_has_converged() -> None:
    names = run_page("README.md")
    assert names["transport"].marginal_error.max() < 1e-5
    assert names["transport"].iterations <= 15
    assert names["prototypes"].grad.isfinite().all()


def test_the_composed_detector_is_shown_whole() -> None:
    """The page holds the file, piece by piece, and nothing else."""
    shown = [block.code.strip() for block in read_blocks(PAGES["docs/compose.md"].read_text())[0]]
    tree = ast.parse(EXAMPLE.read_text())
    assert ast.get_docstring(tree)
    file = EXAMPLE.read_text().split('"""', 2)[2]
    assert "\n\n\n".join(shown).split() == file.split()
    for piece in shown:
        assert piece in file


def test_the_composed_detector_gives_what_its_page_says(tmp_path: Path) -> None:
    names = run_page("docs/compose.md")
    found = names["run"]("cookie", tmp_path)
    row = re.search(r"^\| cookie \|(.*)\|$", PAGES["docs/compose.md"].read_text(), re.MULTILINE)[1]
    measured = [value for metrics in found.values() for value in (metrics.image_auroc, metrics.aupro)]
    np.testing.assert_allclose(measured, [float(cell) for cell in row.split("|")], atol=0.01)
    assert (tmp_path / "cookie.png").stat().st_size > 100_000


def _imported(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("protoad"):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_import_public_names(path: Path) -> None:
    for module, name in _imported(path):
        assert name in importlib.import_module(module).__all__, f"{path.name}: {module}.{name}"
