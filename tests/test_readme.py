"""What the README says about the command line is true of the command line."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from checkout import ROOT
from onnxpress.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
CALLS = re.findall(r"^onnxpress (.+)$", "".join(BLOCKS), flags=re.MULTILINE)


def test_every_command_has_an_example() -> None:
    assert isinstance(main, click.Group)
    assert sorted(main.commands) == sorted({call.split()[0] for call in CALLS})


@pytest.mark.parametrize("call", CALLS)
def test_every_call_parses(call: str) -> None:
    assert isinstance(main, click.Group)
    name, *words = shlex.split(call)
    command = main.commands[name]
    known = {flag for parameter in command.params for flag in parameter.opts}
    assert [word for word in words if word.startswith("--") and word not in known] == []


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, flags=re.MULTILINE))
def test_every_make_target_exists(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"examples/[\w.]+", README))))
def test_every_example_exists(path: str) -> None:
    assert (ROOT / path).exists()
