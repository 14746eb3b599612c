"""The command line: flags, streams and exit codes. What it calls is tested elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from checkout import environment
from onnxpress import __version__
from onnxpress.cli import main, output
from onnxpress.job import Job
from onnxpress.report import Report
from onnxpress.step import Chain
from onnxpress.steps.magnitude import Magnitude
from onnxpress_adapters.errors import AdapterError, MisuseError
from onnxpress_adapters.weights import WeightKey
from onnxpress_exporters.write import patch
from reports import made
from small_models import perceptron, thinned

Calls = list[Job]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Jobs that reached the library, which answers each with a report within the tolerance."""
    seen: Calls = []

    def compress(job: Job, progress: output.Progress) -> Report:
        seen.append(job)
        progress("searching", 0.5, "60 % zeros")
        return made(0.0064)

    monkeypatch.setattr("onnxpress.press.compress", compress)
    return seen


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Report | BaseException], None]:
    """Set what the library answers."""

    def answer(with_this: Report | BaseException) -> None:
        def compress(job: Job, progress: output.Progress) -> Report:
            if isinstance(with_this, BaseException):
                raise with_this
            return with_this

        monkeypatch.setattr("onnxpress.press.compress", compress)

    return answer


def test_every_flag_reaches_the_job(jobs: Calls, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("steps: [magnitude: {sparsity: 0.5}]")
    out = tmp_path / "out.onnx"
    words = (
        "--tolerance 1% --sparsity 90% --data d.npz --domain x=ball:1 --domain y=ball:2 "
        "--shape x=1,2 --judge j.npz --sequence --sources s.csv --output a --output b=2% "
        "--flips 0.5% --form sparse --device cpu --include a* --include b* --exclude c* "
        "--effort best --time 10m --seed 7 --require size=-50%"
    )
    result = call("compress", "in.onnx", out, "--recipe", recipe, *words.split())
    assert result.exit_code == 0, result.output
    assert jobs == [
        Job(
            model=Path("in.onnx"),
            out=out,
            tolerance="1%",
            sparsity=0.9,
            data=Path("d.npz"),
            domain=("x=ball:1", "y=ball:2"),
            shape=("x=1,2",),
            judge=Path("j.npz"),
            sequence=True,
            sources=Path("s.csv"),
            recipe=Chain((Magnitude(sparsity=0.5),)),
            output=("a", "b=2%"),
            flips="0.5%",
            form="sparse",
            device="cpu",
            include=("a*", "b*"),
            exclude=("c*",),
            effort="best",
            time="10m",
            require=("size=-50%",),
            seed=7,
        )
    ]


def test_what_no_flag_says_is_the_jobs_own_default(jobs: Calls) -> None:
    """``compress in.onnx --tolerance 1%`` and ``Job(Path("in.onnx"), tolerance="1%")`` agree."""
    assert call("compress", "in.onnx", "--tolerance", "1%").exit_code == 0
    assert jobs == [Job(model=Path("in.onnx"), tolerance="1%")]


def test_every_field_of_a_job_has_a_flag() -> None:
    known = {parameter.name for parameter in main.commands["compress"].params}
    assert {field.name for field in fields(Job)} <= known


@pytest.mark.parametrize(("text", "share"), [(".9", 0.9), ("90%", 0.9), (" 5e-1 ", 0.5)])
def test_a_sparsity_is_a_share(jobs: Calls, text: str, share: float) -> None:
    assert call("compress", "in.onnx", "--sparsity", text).exit_code == 0
    assert jobs[0].sparsity == share


@pytest.mark.parametrize("text", ["0", "1", "90", "-0.5", "nan", "half", "120%"])
def test_what_is_no_share_is_misuse(jobs: Calls, text: str) -> None:
    result = call("compress", "in.onnx", "--sparsity", text)
    assert result.exit_code == 2
    assert f"'{text}'" in result.stderr
    assert jobs == []


def test_the_report_goes_to_stdout_and_the_rest_to_stderr(jobs: Calls) -> None:
    result = call("compress", "in.onnx", "--tolerance", "1%")
    assert result.stdout == made(0.0064).text() + "\n"
    assert result.stderr == "searching: 60 % zeros\n"


def test_quiet_leaves_stderr_empty(jobs: Calls) -> None:
    result = call("compress", "in.onnx", "--tolerance", "1%", "--quiet")
    assert result.stdout == made(0.0064).text() + "\n"
    assert result.stderr == ""


@pytest.mark.parametrize(("share", "code"), [(0.0064, 0), (0.04, 3)])
def test_json_goes_to_stdout_whatever_the_verdict(
    answers: Callable[[Report], None], share: float, code: int
) -> None:
    answers(made(share))
    result = call("compress", "in.onnx", "--tolerance", "1%", "--json")
    assert result.exit_code == code
    assert json.loads(result.stdout) == json.loads(json.dumps(made(share).json()))


def test_the_page_is_written_for_every_verdict(
    answers: Callable[[Report], None], tmp_path: Path
) -> None:
    answers(made(0.04))
    page = tmp_path / "r.html"
    assert call("compress", "in.onnx", "--tolerance", "1%", "--report", page).exit_code == 3
    assert page.read_text(encoding="utf-8") == made(0.04).html()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MisuseError("one sentence"), 2, "Error: one sentence\n"),
        (AdapterError("another"), 1, "Error: another\n"),
        (MemoryError(), 1, "Error: there is not enough memory; give fewer samples\n"),
        (KeyboardInterrupt(), 130, "Error: interrupted; nothing was written\n"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    answers: Callable[[BaseException], None], error: BaseException, code: int, message: str
) -> None:
    answers(error)
    result = call("compress", "in.onnx", "--tolerance", "1%")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_notes_of_an_error_are_shown(answers: Callable[[BaseException], None]) -> None:
    error = AdapterError("it broke")
    error.add_note("in step 2 of 3")
    answers(error)
    assert call("compress", "in.onnx").stderr == "Error: it broke\nin step 2 of 3\n"


def test_targets_are_checked_before_any_work(jobs: Calls, tmp_path: Path) -> None:
    model = tmp_path / "in.onnx"
    model.write_bytes(b"")
    beside = tmp_path / "x" / ".." / "in.onnx"
    (tmp_path / "x").mkdir()
    for words, message in (
        ([model, model], f"{model} would be written over the original; give it another name"),
        ([model, beside], f"{beside} would be written over the original"),
        ([model, tmp_path / "no" / "o.onnx"], f"there is no folder {tmp_path / 'no'}; make it"),
        ([model, tmp_path], f"cannot write {tmp_path}: it is a folder"),
        ([model, "--report", model], "would be written over the original"),
        ([model, "--report", tmp_path / "no" / "r.html"], "there is no folder"),
    ):
        result = call("compress", *words, "--tolerance", "1%")
        assert result.exit_code == 2
        assert message in result.stderr
    assert jobs == []


def test_a_recipe_with_settings_belongs_to_run(jobs: Calls, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("tolerance: 1%\nseed: 3\nsteps: [magnitude]")
    result = call("compress", "in.onnx", "--recipe", recipe)
    assert result.exit_code == 2
    assert f"{recipe} says tolerance, seed as well as steps; leave that to" in result.stderr
    assert jobs == []


def test_run_takes_everything_from_the_recipe(jobs: Calls, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: in.onnx\ntolerance: 1%\ndomain: x=uniform:0,1\nseed: 3\nreport: r.html\n"
        "steps: [magnitude: {sparsity: 0.5}]"
    )
    result = call("run", recipe)
    assert result.exit_code == 0, result.stderr
    assert jobs == [
        Job(
            model=tmp_path / "in.onnx",
            tolerance="1%",
            domain=("x=uniform:0,1",),
            seed=3,
            recipe=Chain((Magnitude(sparsity=0.5),)),
        )
    ]
    assert (tmp_path / "r.html").exists()


def test_run_needs_a_model(jobs: Calls, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("tolerance: 1%")
    result = call("run", recipe)
    assert result.exit_code == 2
    assert f"{recipe} names no model; add a line such as `model: model.onnx`" in result.stderr


def test_run_of_a_broken_recipe_names_the_place(jobs: Calls, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a.onnx\nsteps: [greedy: {sparsty: 1}]")
    result = call("run", recipe)
    assert result.exit_code == 2
    assert "steps[0].greedy: unknown key 'sparsty'; did you mean 'sparsity'?" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["press"],
        ["compress"],
        ["compress", "a.onnx", "--effort", "some"],
        ["compress", "a.onnx", "--seed", "-1"],
        ["compress", "a.onnx", "b.onnx", "c.onnx"],
        ["verify", "a.onnx", "b.onnx"],
        ["densify", "a.onnx"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_misuse(words: list[str]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_flag_is_explained(name: str) -> None:
    command = main.commands[name]
    assert command.help
    assert not command.get_short_help_str(limit=80).endswith("...")
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_the_version() -> None:
    assert call("--version").stdout == f"onnxpress, version {__version__}\n"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.onnx"
    path.write_bytes(perceptron().SerializeToString())
    return path


@pytest.fixture
def thin(tmp_path: Path) -> Path:
    """The same with one sparse weight."""
    path = tmp_path / "thin.onnx"
    changed = patch(perceptron(), {WeightKey((), "w1"): thinned(16, 32)}, "sparse")
    path.write_bytes(changed.model.SerializeToString())
    return path


def test_verify_passes_its_flags_on(original: Path) -> None:
    words = "--tolerance 1e-9 --domain x=uniform:0,1 --seed 3 --flips 1% --output y --json"
    result = call("verify", original, original, *words.split())
    assert result.exit_code == 0, result.stderr
    read = json.loads(result.stdout)
    assert read["verdict"] == "within"
    assert (read["seed"], read["tolerance"]["flips"]) == (3, 0.01)
    assert read["tolerance"]["outputs"] == {"y": None}


def test_verify_outside_the_tolerance_exits_3(original: Path, thin: Path, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    words = ["--tolerance", "1%", "--domain", "x=normal:0,1", "--report"]
    result = call("verify", original, thin, *words, page)
    assert result.exit_code == 3
    assert f"{original} -> {thin}: outside the tolerance of 1 %\n" in result.stdout
    assert "nothing was written" not in result.stdout
    assert page.read_text().startswith("<!doctype html>")


def test_inspect_shows_text_and_json(original: Path) -> None:
    text = call("inspect", original)
    assert text.exit_code == 0
    assert "onnxpress compress" in text.stdout
    assert json.loads(call("inspect", original, "--json").stdout)["pressable"] is True


def test_densify_writes_the_same_bits(thin: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    result = call("densify", thin, plain)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{plain}: {plain.stat().st_size:,} bytes\n"
    dense = onnx.load_model(str(plain))
    assert len(dense.graph.sparse_initializer) == 0
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in dense.graph.initializer}
    assert np.array_equal(held["w1"], thinned(16, 32))


def test_densify_does_not_write_over_its_input(thin: Path) -> None:
    before = thin.read_bytes()
    assert call("densify", thin, thin).exit_code == 2
    assert thin.read_bytes() == before


@pytest.mark.parametrize(
    "words", [["inspect"], ["densify", "-", "out.onnx"], ["verify", "-", "-", "--tolerance", "1%"]]
)
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "there is no such file; check the path"),
        (b"", "it is empty (0 bytes); copy or export it again"),
        (b"not a model", "it is not an ONNX model"),
    ],
    ids=["missing", "empty", "text"],
)
def test_what_cannot_be_read_fails_with_one_sentence(
    tmp_path: Path, words: list[str], data: bytes | None, message: str
) -> None:
    path = tmp_path / "m.onnx"
    if data is not None:
        path.write_bytes(data)
    name, *rest = words or ["inspect"]
    rest = [str(path) if word == "-" else word for word in rest] or [str(path)]
    rest = [str(tmp_path / word) if word == "out.onnx" else word for word in rest]
    result = call(name, *rest)
    assert result.exit_code == 1
    assert result.stderr == f"Error: cannot read {path}: {message}\n"
    assert result.stdout == ""


class Terminal:
    """A stderr that says it is a terminal."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written.append(text)
        return len(text)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        raise OSError("no file")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with output.progress(quiet=False) as show:
        show("search[ing]", 0.5, "60 % zeros")
    assert "search[ing]: 60 % zeros" in "".join(terminal.written)


def test_without_a_terminal_each_stage_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress(quiet=False) as show:
        for done in (0.0, 0.1, 0.2):
            show("reading", done, "")
        show("searching", 0.3, "60 % zeros")
    assert capsys.readouterr().err == "reading\nsearching: 60 % zeros\n"


def test_a_closed_pipe_is_no_traceback(original: Path) -> None:
    code = "from onnxpress.cli import main; main()"
    words = [sys.executable, "-c", code, "inspect", str(original)]
    with subprocess.Popen(
        words, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1
