"""Recipes: what reads, what is refused and how, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onnxpress.gates import HardConcrete
from onnxpress.recipe import STEPS, Recipe, dump_recipe, json_schema, load_recipe
from onnxpress.search import Search
from onnxpress.step import Best, Chain, Only
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.iht import Iht
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store
from onnxpress_adapters.errors import MisuseError, OnnxpressError


def read(folder: Path, text: str | bytes) -> Recipe:
    path = folder / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe(path)


def refused(folder: Path, text: str | bytes) -> str:
    """Give the message, without the path it begins with."""
    with pytest.raises(MisuseError) as raised:
        read(folder, text)
    start = f"{folder / 'r.yaml'}: "
    assert str(raised.value).startswith(start)
    assert "\n" not in str(raised.value)
    return str(raised.value).removeprefix(start)


def test_steps_read(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        steps:
          - greedy: {sparsity: 0.6, between: {work: 1}}
          - only: {pattern: "head.*", step: {magnitude: {sparsity: 0.8, scope: global}}}
          - only: {pattern: "*", step: [magnitude, {repair: }]}
          - repair: {method: adam, rate: 1e-3}
          - search: {step: {greedy: {}}, rounds: 3}
          - store: {values: int8, feedback: false}
          - store: {values: palette, entries: 256}
        """,
    )
    assert recipe.settings == {}
    assert recipe.steps == Chain(
        (
            Greedy(sparsity=0.6, between=Repair(work=1.0)),
            Only("head.*", Magnitude(sparsity=0.8, scope="global")),
            Only("*", Chain((Magnitude(), Repair()))),
            Repair(method="adam", rate=0.001),
            Search(Greedy(), rounds=3),
            Store("int8", feedback=False),
            Store("palette", entries=256),
        )
    )


@pytest.mark.parametrize(
    "chain",
    [
        Chain((Greedy(sparsity=0.6), Repair(method="adam", rate=1e-9))),
        Chain((Greedy(score="exact", per_round=8, hours=0.5),)),
        Chain((Magnitude(scope="theorem", alpha=0.125), Magnitude(scope="theorem"))),
        Chain((Only("a: [b]", Chain((Magnitude(sparsity=0.5), Magnitude(scope="global")))),)),
        Chain((Greedy(pattern="2:4"), Magnitude(pattern="rows:8"), Iht(pattern="block:2x3"))),
        Chain((Search(Chain((Greedy(), Repair())), floor=0.25, deadline=None),)),
        Chain(
            (L0(penalty=0.5, gates="unit", distribution=HardConcrete(0.5)), L0(0.9, within=None))
        ),
        Chain((Best((Greedy(0.9, spare=0.15), Chain((Magnitude(0.9), Repair())))), Repair())),
        Chain((Only("a", Store("fp16")), Store("palette", entries=256, feedback=False))),
        Chain(()),
    ],
    ids=str,
)
def test_the_way_back(tmp_path: Path, chain: Chain) -> None:
    assert read(tmp_path, dump_recipe(chain)) == Recipe(chain, {})


def test_a_step_recipes_do_not_know_cannot_be_written() -> None:
    def strange(state: Any, problem: Any, /) -> Any:
        return state

    with pytest.raises(MisuseError, match="is no step that recipes know"):
        dump_recipe(Chain((strange,)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "steps: [l0: {sparsity: 0.5, penalty: 1.0}]",
            "L0 is told by sparsity and by penalty how far to go; keep one",
        ),
        (
            "steps: [l0: {distribution: {low: 0.1}}]",
            "HardConcrete(temperature=0.6666666666666666, low=0.1, high=1.1) is no gate: its "
            "temperature lies above 0, and the interval reaches from below 0 to above 1",
        ),
        (
            "steps: [greedy: {sparsty: 0.5}]",
            "steps[0].greedy: unknown key 'sparsty'; did you mean 'sparsity'? "
            "(sparsity, layerwise, block, trust, between, spare, rehearsal, pattern, score, "
            "per_round, hours are known)",
        ),
        (
            "steps: [magnitude, gredy: {}]",
            "steps[1]: unknown step 'gredy'; did you mean 'greedy'? "
            f"({', '.join(STEPS)} are known)",
        ),
        (
            "steps: [magnitude, magnitude: {sparsity: much}]",
            "steps[1].magnitude.sparsity: input should be a valid number, not 'much'",
        ),
        (
            "steps: [magnitude: {sparsity: yes}]",
            "steps[0].magnitude.sparsity: input should be a valid number, not True",
        ),
        (
            "steps: [magnitude: {scope: row}]",
            "steps[0].magnitude.scope: input should be 'layer', 'global' or 'theorem', not 'row'",
        ),
        (
            "steps: [store: {values: int7}]",
            "steps[0].store.values: input should be 'fp32', 'fp16', 'int8', 'int6', "
            "'int5', 'int4' or 'palette', not 'int7'",
        ),
        (
            "steps: [store: {entries: 32}]",
            "steps[0].store.entries: input should be 16 or 256, not 32",
        ),
        (
            "steps: [greedy: {between: {work: [1]}}]",
            "steps[0].greedy.between.work: input should be a valid number, not (1,)",
        ),
        ("steps: [only: {pattern: a}]", "steps[0].only: 'step' is missing"),
        (
            "steps: [only: {pattern: a, step: {only: {pattern: b, step: {iht2: }}}}]",
            "steps[0].only.step.only.step: unknown step 'iht2'",
        ),
        (
            "steps: [{greedy: , repair: }]",
            "steps[0]: a step is one name with its fields, such as `greedy: {sparsity: 0.6}`, not",
        ),
        (
            "steps: [greedy: 0.5]",
            "steps[0].greedy: a step is made of lines `name: value`; this one is 0.5",
        ),
        ("steps: [magnitude: {sparsity: 1.5}]", "a sparsity lies between 0 and 1, not at 1.5"),
        ("steps: [search: {step: repair}]", "nothing to search in Repair("),
        ("steps: [search: {step: greedy, deadline: 1.0}]", "steps[0].search: unknown key 'dead"),
        ("stepps: []", "unknown key 'stepps'; did you mean 'steps'? ("),
        ("tolerance: [1]", "tolerance: input should be a valid string, not (1,)"),
        ("seed: 1.5", "seed: input should be a valid integer, not 1.5"),
        ("model: 3", "model: input should be a valid string, not 3"),
        ("", "a recipe is made of lines `name: value`; this one is empty"),
        ("[a, b]", "a recipe is made of lines `name: value`; this one is ['a', 'b']"),
        ("1: a", "a recipe is made of lines `name: value`; this one is {1: 'a'}"),
        ("steps:\n  - greedy: {\n  - b", "line 3, column 3 is not YAML: "),
        ("seed: 1\ntolerance: 1%\nseed: 2", "line 3 gives 'seed' a second time; keep one"),
        ("a: &x [1]\nb: *x", "line 2 refers to an anchor; write the value out"),
        ("a: !!python/object/apply:os.getcwd []", "line 1, column 4 is not YAML: could not deter"),
        ("a: \x07", "it is not YAML: unacceptable character"),
        (b"\xff\xfe\x00", "it is not text, so it is no recipe"),
        ("a: " + "[" * 5000, "it is nested too deeply to be a recipe"),
        ("#" * 1_100_000, "it is larger than a recipe can be (1 MB)"),
        ("a: 2020-99-99", "it is not YAML: month must be in 1..12"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_one_sentence_with_the_place(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    assert refused(tmp_path, text).startswith(message)


def test_the_place_of_what_a_step_itself_refuses_is_noted(tmp_path: Path) -> None:
    with pytest.raises(OnnxpressError) as raised:
        read(tmp_path, "steps: [repair, magnitude: {sparsity: -1}]")
    assert raised.value.__notes__ == ["at steps[1].magnitude"]


def test_a_missing_recipe_is_a_misuse(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"no\.yaml: the recipe cannot be read: No such file"):
        load_recipe(tmp_path / "no.yaml")


def test_settings_are_those_of_a_job(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        model: in.onnx
        out: /elsewhere/out.onnx
        tolerance: 1e-3
        flips: 0.005
        sparsity: 5e-1
        data: inputs
        labels: y.csv
        domain: ["x=uniform:lo.npy,1", "y=ball:2"]
        include: conv*
        output: [logits=2%]
        sequence: true
        sources: sources.csv
        seed: 3
        effort: quick
        require: size=-50%
        report: r.html
        """,
    )
    assert recipe.steps is None
    assert recipe.settings == {
        "model": tmp_path / "in.onnx",
        "out": Path("/elsewhere/out.onnx"),
        "tolerance": "1e-3",
        "flips": "0.005",
        "sparsity": 0.5,
        "data": tmp_path / "inputs",
        "labels": tmp_path / "y.csv",
        "domain": (f"x=uniform:{tmp_path / 'lo.npy'},1", "y=ball:2"),
        "include": ("conv*",),
        "output": ("logits=2%",),
        "sequence": True,
        "sources": tmp_path / "sources.csv",
        "seed": 3,
        "effort": "quick",
        "require": ("size=-50%",),
        "report": tmp_path / "r.html",
    }


@pytest.mark.parametrize("word", ["auto", "none"])
def test_a_word_in_the_place_of_a_file_stays_a_word(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, f"sources: {word}").settings == {"sources": word}


def test_n_of_m_is_no_time_of_day(tmp_path: Path) -> None:
    found = read(tmp_path, "pattern: 2:4\nsteps: [greedy: {pattern: 16:32}]")
    assert found == Recipe(Chain((Greedy(pattern="16:32"),)), {"pattern": "2:4"})
    message = "seed: input should be a valid integer, not '1:30'"
    assert refused(tmp_path, "seed: 1:30") == message
    assert "'6:5' is no pattern" in refused(tmp_path, "steps: [iht: {pattern: 6:5}]")


def test_a_number_may_be_a_tolerance(tmp_path: Path) -> None:
    assert read(tmp_path, "tolerance: 0.001").settings == {"tolerance": "0.001"}


def test_the_schema_names_every_step_and_field() -> None:
    schema = json_schema()
    assert set(schema["$defs"]) == {"step", *STEPS}
    greedy = schema["$defs"]["greedy"]
    fields = ["sparsity", "layerwise", "block", "trust", "between", "spare", "rehearsal", "pattern"]
    fields += ["score", "per_round", "hours"]
    assert list(greedy["properties"]) == fields
    assert greedy["additionalProperties"] is False
    assert greedy["properties"]["between"]["properties"]["method"]["enum"] == [
        "auto",
        "adam",
        "lbfgs",
    ]
    assert schema["$defs"]["only"]["required"] == ["pattern", "step"]
    assert schema["$defs"]["only"]["properties"]["step"] == {"$ref": "#/$defs/step"}
    assert "deadline" not in schema["$defs"]["search"]["properties"]
    assert {"steps", "model", "tolerance", "seed"} <= set(schema["properties"])
