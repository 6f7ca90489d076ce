"""The README's code runs, and its commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pirn.cli import _parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^    (pirn .*?)(?:\s+#.*)?$", README, re.MULTILINE)


def test_compose_your_own_in_fifteen_lines() -> None:
    block = BLOCKS[0]
    lines = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 15
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["score"].shape == (2, 196)
    assert names["assign"].extra_repr()


def test_converged_transport() -> None:
    names: dict = {}
    exec(compile("import torch\n" + BLOCKS[1], "README.md", "exec"), names)
    assert names["transport"].marginal_error.max() < 1e-5
    assert names["transport"].iterations <= 15
    assert names["prototypes"].grad.isfinite().all()


def test_there_are_commands_to_check() -> None:
    assert {command.split()[1] for command in COMMANDS} >= {"check", "train", "evaluate", "detect"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str) -> None:
    _parser().parse_args(shlex.split(command)[1:])


def test_every_place_named_exists() -> None:
    root = Path(__file__).resolve().parents[1]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (root / target).exists(), target
