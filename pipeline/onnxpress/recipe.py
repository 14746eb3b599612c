"""Recipes: YAML to a chain of steps and back, typed by the steps' own dataclasses.

    steps:
      - greedy: {sparsity: 0.6}
      - only: {pattern: "head.*", step: {magnitude: {sparsity: 0.8}}}
      - repair: {method: adam}

A step is its name and its fields; one without fields may be its name alone, and a list in the place
of a step is a chain. ``recipe: smallest`` in the place of ``steps`` names a built-in recipe. Beside
them, the keys of a ``Job`` (model, tolerance, data, …) may stand
at the top, for ``onnxpress run``; paths are then relative to the recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from onnxpress.job import BuiltIn, Job
from onnxpress.search import Search
from onnxpress.step import Best, Budgeted, Chain, Only, Step, check_sparsity
from onnxpress.steps.gather import Gather
from onnxpress.steps.greedy import Greedy
from onnxpress.steps.iht import Iht
from onnxpress.steps.l0 import L0
from onnxpress.steps.magnitude import Magnitude
from onnxpress.steps.polish import Polish
from onnxpress.steps.refit import Refit
from onnxpress.steps.repair import Repair
from onnxpress.steps.store import Store
from onnxpress.steps.units import Units
from onnxpress_adapters.errors import MisuseError, OnnxpressError

STEPS: Mapping[str, type[Any]] = {
    "magnitude": Magnitude,
    "greedy": Greedy,
    "gather": Gather,
    "iht": Iht,
    "l0": L0,
    "refit": Refit,
    "repair": Repair,
    "polish": Polish,
    "store": Store,
    "units": Units,
    "only": Only,
    "chain": Chain,
    "best": Best,
    "search": Search,
}
"""What a recipe may name."""

HIDDEN = frozenset({"deadline", "guide", "times"})
"""Fields of steps that are no configuration: a moment of the clock, what it read, and what follows
from the other fields."""

MOST_BYTES = 1 << 20
STRICT = ConfigDict(strict=True)  # `sparsity: yes` is not 1.0


@dataclass(frozen=True)
class Recipe:
    """A recipe file, read.

    Attributes:
        steps: the chain, or the name of a built-in recipe; None where the choice of steps is left
            to onnxpress.
        settings: what else it says: field of ``Job`` (and ``report``) to value, paths resolved.
    """

    steps: Chain | BuiltIn | None
    settings: Mapping[str, Any]


def load_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        MisuseError: the file cannot be read, is not YAML, or says something no step understands;
            the message names the place.
    """
    try:
        top = _mapping(_parsed(path), "a recipe")
        known = {**_settings(), "steps": None, "recipe": None}
        _refuse_unknown(top, known, "")
        chain: Chain | BuiltIn | None = None
        if "recipe" in top:
            chain = built_in(top["recipe"])
            if chain is None or "steps" in top:
                raise MisuseError(
                    f"recipe: the name of a built-in one ({', '.join(get_args(BuiltIn))}) in the "
                    "place of steps"
                )
        elif "steps" in top:
            listed = top["steps"] if isinstance(top["steps"], list) else [top["steps"]]
            chain = Chain(_chain(listed, "steps"))
        settings = {
            name: _setting(value, known[name], name, path.parent)
            for name, value in top.items()
            if name not in ("steps", "recipe")
        }
    except OnnxpressError as error:
        told = MisuseError(f"{path}: {error}")
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from error
    return Recipe(chain, settings)


def built_in(name: Any) -> BuiltIn | None:
    """Give the built-in recipe of a name, None where there is none.

    >>> built_in("smallest"), built_in("steps.yaml")
    ('smallest', None)
    """
    return next((known for known in get_args(BuiltIn) if known == name), None)


def dump_recipe(chain: Chain) -> str:
    """Write a chain as a recipe that ``load_recipe`` reads back as an equal chain.

    Raises:
        MisuseError: a step is none that recipes know.
    """
    document = {"steps": [_dumped(step) for step in chain.steps]}
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=100)


def json_schema() -> dict[str, Any]:
    """Describe recipes as a JSON Schema, for editors that check YAML against one."""
    named = [
        {
            "type": "object",
            "properties": {name: {"$ref": f"#/$defs/{name}"}},
            "required": [name],
            "additionalProperties": False,
        }
        for name in STEPS
    ]
    chain = {"type": "array", "items": {"$ref": "#/$defs/step"}}
    one = {"anyOf": [*named, {"enum": list(STEPS)}, chain]}
    settings = {name: _setting_schema(hint) for name, hint in _settings().items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnxpress recipe",
        "type": "object",
        "properties": {"steps": chain, "recipe": {"enum": [*get_args(BuiltIn)]}, **settings},
        "additionalProperties": False,
        "$defs": {"step": one, **{name: _schema(cls) for name, cls in STEPS.items()}},
    }


class _Loader(yaml.SafeLoader):
    """Reads ``2:4`` as text, which YAML 1.1 takes for 2 times 60 and 4."""


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    return node.value if ":" in node.value else loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)


def _parsed(path: Path) -> Any:
    """Read YAML without aliases, which could make a small file endless, and without lost keys."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode()
    except OSError as error:
        names = ", ".join(get_args(BuiltIn))
        raise MisuseError(
            f"the recipe cannot be read: {error.strerror or error}; without a file there are "
            f"{names}"
        ) from error
    except UnicodeDecodeError:
        raise MisuseError("it is not text, so it is no recipe") from None
    if len(text) > MOST_BYTES:
        raise MisuseError("it is larger than a recipe can be (1 MB)")
    try:
        for token in yaml.scan(text, _Loader):
            if isinstance(token, yaml.AliasToken):
                line = token.start_mark.line + 1
                raise MisuseError(f"line {line} refers to an anchor; write the value out")
        _refuse_repeats(yaml.compose(text, _Loader))
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "it"
        raise MisuseError(f"{line} is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise MisuseError(f"it is not YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise MisuseError("it is nested too deeply to be a recipe") from None


def _refuse_repeats(node: yaml.Node | None) -> None:
    """Refuse a mapping that gives one key twice, of which YAML would drop the first."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeats(item)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise MisuseError(f"line {line} gives '{key.value}' a second time; keep one")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            _refuse_repeats(value)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    shown = "empty" if value is None else f"{value!r:.60}"
    raise MisuseError(f"{what} is made of lines `name: value`; this one is {shown}")


def _refuse_unknown(given: Mapping[str, Any], known: Iterable[str], place: str) -> None:
    names = list(known)
    for key in given:
        if key not in names:
            close = get_close_matches(key, names, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else ""
            at = f"{place}: " if place else ""
            raise MisuseError(f"{at}unknown key '{key}'{meant} ({', '.join(names)} are known)")


def _chain(values: Iterable[Any], place: str) -> tuple[Step, ...]:
    return tuple(_step(value, f"{place}[{index}]") for index, value in enumerate(values))


def _step(value: Any, place: str) -> Step:
    """Read what stands in the place of a step."""
    if isinstance(value, list):
        return Chain(_chain(value, place))
    named = {value: None} if isinstance(value, str) else value
    if not isinstance(named, dict) or len(named) != 1:
        raise MisuseError(
            f"{place}: a step is one name with its fields, such as `greedy: {{sparsity: 0.6}}`, "
            f"not {value!r:.60}"
        )
    ((name, given),) = named.items()
    if name not in STEPS:
        close = get_close_matches(str(name), STEPS, n=1)
        meant = f"; did you mean '{close[0]}'?" if close else ""
        raise MisuseError(f"{place}: unknown step '{name}'{meant} ({', '.join(STEPS)} are known)")
    made: Step = _made(STEPS[name], {} if given is None else given, f"{place}.{name}")
    return made


def _made(cls: type[Any], given: Any, place: str) -> Any:
    """Make a dataclass from what a recipe gives its fields."""
    taken = _fields(cls)
    values = _mapping(given, f"{place}: a step")
    _refuse_unknown(values, taken, place)
    for name, (field, _) in taken.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise MisuseError(f"{place}: '{name}' is missing")
    arguments = {
        name: _field(value, taken[name][1], f"{place}.{name}") for name, value in values.items()
    }
    try:
        made = cls(**arguments)
        if isinstance(made, Budgeted) and made.sparsity is not None:
            check_sparsity(made.sparsity)
    except OnnxpressError as error:
        error.add_note(f"at {place}")
        raise
    return made


def _fields(cls: type[Any]) -> dict[str, tuple[Field[Any], Any]]:
    """Give the fields of a dataclass that are configuration, with their resolved types."""
    hints = get_type_hints(cls)
    return {f.name: (f, hints[f.name]) for f in fields(cls) if f.name not in HIDDEN}


def _field(value: Any, hint: Any, place: str) -> Any:
    if hint is Step:
        return _step(value, place)
    if hint == tuple[Step, ...]:
        return _chain(value if isinstance(value, list) else [value], place)
    if isinstance(hint, type) and is_dataclass(hint):
        return _made(hint, {} if value is None else value, place)
    return _checked(value, hint, place)


def _checked(value: Any, hint: Any, place: str) -> Any:
    """Hold a plain value to its type."""
    if isinstance(value, str) and float in (hint, *get_args(hint)):
        value = _number(value)
    value = tuple(value) if isinstance(value, list) else value
    try:
        return TypeAdapter(hint, config=STRICT).validate_python(value)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        message = f"{message[0].lower()}{message[1:]}"
        raise MisuseError(f"{place}: {message}, not {value!r:.60}") from error


def _number(text: str) -> float | str:
    """Read ``1e-3``, which YAML 1.1 takes for text because it has no point."""
    return float(text) if re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", text) else text


def _dumped(step: Any) -> dict[str, Any]:
    names = {cls: name for name, cls in STEPS.items()}
    if type(step) not in names:
        raise MisuseError(f"{step} is no step that recipes know")
    return {names[type(step)]: _values(step)}


def _values(made: Any) -> dict[str, Any]:
    return {
        name: _value(getattr(made, name), hint) for name, (_, hint) in _fields(type(made)).items()
    }


def _value(value: Any, hint: Any) -> Any:
    if hint is Step:
        return _dumped(value)
    if hint == tuple[Step, ...]:
        return [_dumped(step) for step in value]
    if is_dataclass(hint):
        return _values(value)
    return list(value) if isinstance(value, tuple) else value


def _schema(hint: Any) -> dict[str, Any]:
    if hint is Step:
        return {"$ref": "#/$defs/step"}
    if hint == tuple[Step, ...]:
        return {"type": "array", "items": {"$ref": "#/$defs/step"}}
    if isinstance(hint, type) and is_dataclass(hint):
        return _object_schema(hint)
    return TypeAdapter(hint, config=STRICT).json_schema()


def _object_schema(cls: type[Any]) -> dict[str, Any]:
    taken = _fields(cls)
    needed = [
        name
        for name, (field, _) in taken.items()
        if field.default is MISSING and field.default_factory is MISSING
    ]
    return {
        "type": ["object", "null"],
        "description": (cls.__doc__ or "").partition("\n")[0],
        "properties": {name: _schema(inner) for name, (_, inner) in taken.items()},
        "required": needed,
        "additionalProperties": False,
    }


def _settings() -> dict[str, Any]:
    """Give the keys that may stand beside ``steps``, with their types."""
    hints = get_type_hints(Job)
    taken = {field.name: hints[field.name] for field in fields(Job) if field.name != "recipe"}
    return {**taken, "report": Path | None}


def _setting(value: Any, hint: Any, place: str, folder: Path) -> Any:
    """Read one setting the way the flag of that name would be read."""
    kinds = {hint, *get_args(hint)}
    if Path in kinds and value is not None:
        text = _checked(value, str, place)
        words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
        return text if text in words else folder / text
    if hint == tuple[str, ...]:
        texts = [str(item) for item in (value if isinstance(value, list) else [value])]
        return (
            tuple(_rebased(text, folder) for text in texts) if place == "domain" else tuple(texts)
        )
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if str in kinds and is_number:
        return str(value)  # `tolerance: 0.001` and `tolerance: 1%` alike
    return _checked(value, hint, place)


def _rebased(domain: str, folder: Path) -> str:
    """Make the .npy files in ``NAME=KIND:VALUES`` relative to a folder."""
    read = re.fullmatch(r"(.+=[^=:]*:)(.+)", domain)
    if read is None:
        return domain
    pieces = (piece.strip() for piece in read[2].split(","))
    return read[1] + ",".join(str(folder / p) if p.endswith(".npy") else p for p in pieces)


def _setting_schema(hint: Any) -> dict[str, Any]:
    if hint == tuple[str, ...]:
        return {"type": ["string", "array"], "items": {"type": "string"}}
    kinds = {hint, *get_args(hint)}
    if Path in kinds:
        return {"type": "string"}
    if str in kinds:
        return {"type": ["string", "number"]}
    return TypeAdapter(hint, config=STRICT).json_schema()
