from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxpress.domain import Box, Domain, Tokens
from onnxpress.samples import Samples, count, from_data, from_domains, load_data
from onnxpress.sources import Sources
from onnxpress_adapters.errors import MisuseError
from onnxpress_adapters.specs import InputSpec

F32, I64 = np.dtype("float32"), np.dtype("int64")
X = InputSpec("x", (None, 3), F32, ("batch", None))
IDS = InputSpec("net/ids:0", (1, 2), I64)
FIXED = InputSpec("fixed", (2, 3), F32)

Arrays = Mapping[str, NDArray[Any]]


def numbered(samples: int, repeats: int = 1) -> dict[str, NDArray[Any]]:
    """Samples that hold their own number, each ``repeats`` times."""
    numbers = np.repeat(np.arange(samples, dtype=np.float32), repeats)
    return {"x": numbers.reshape(-1, 1, 1) * np.ones((1, 1, 3), np.float32)}


def numbers(arrays: Arrays) -> list[int]:
    return [int(value) for value in arrays["x"][:, 0, 0]]


def parts(samples: Samples) -> tuple[list[int], list[int], list[int]]:
    return numbers(samples.fit), numbers(samples.choose), numbers(samples.judge)


def saved(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path / "data.npz", allow_pickle=True, **arrays)
    return path / "data.npz"


# Reading


def test_npz_with_the_whole_shape(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.ones((5, 1, 3), np.float32))
    found = load_data(path, (X,))
    assert list(found) == ["x"]
    assert found["x"].shape == (5, 1, 3)


def test_a_sample_may_leave_out_the_batch(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        **{"net/ids:0": np.arange(10).reshape(5, 2), "x": np.arange(15.0).reshape(5, 3)},
    )
    found = load_data(path, (X, IDS))
    assert list(found) == ["x", "net/ids:0"]
    assert found["x"].shape == (5, 1, 3)
    assert found["net/ids:0"].shape == (5, 1, 2)
    assert found["x"].dtype == np.float32
    assert found["net/ids:0"][2].tolist() == [[4, 5]]


def test_a_fixed_first_size_is_no_batch(tmp_path: Path) -> None:
    path = saved(tmp_path, fixed=np.ones((5, 3), np.float32))
    with pytest.raises(MisuseError) as caught:
        load_data(path, (FIXED,))
    assert str(caught.value) == (
        f"{path}: 'fixed' has shape [5, 3]; the model takes fixed float32[2,3], "
        "so give it as [samples, 2, 3]"
    )


def test_open_sizes_come_from_the_data_unless_they_are_fixed(tmp_path: Path) -> None:
    spec = InputSpec("x", (None, None), F32)
    path = saved(tmp_path, x=np.ones((5, 7), np.float32))
    assert load_data(path, (spec,))["x"].shape == (5, 1, 7)
    assert load_data(path, (spec,), {"x": (1, 7)})["x"].shape == (5, 1, 7)
    with pytest.raises(MisuseError, match=r"so give it as \[samples, 1, 8\] or \[samples, 8\]"):
        load_data(path, (spec,), {"x": (1, 8)})


def test_a_scalar_input_and_one_of_any_shape(tmp_path: Path) -> None:
    specs = (InputSpec("scale", (), F32), InputSpec("loose", (), F32, ranked=False))
    path = saved(tmp_path, scale=np.ones(5, np.float32), loose=np.ones((5, 2, 2), np.float32))
    found = load_data(path, specs)
    assert found["scale"].shape == (5,)
    assert found["loose"].shape == (5, 2, 2)


def test_folder_of_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), np.float32))
    np.save(tmp_path / "net_ids_0.npy", np.ones((5, 2), np.int32))
    found = load_data(tmp_path, (X, IDS))
    assert found["x"].shape == (5, 1, 3)
    assert found["net/ids:0"].dtype == np.int64


def test_folder_of_test_data_sets(tmp_path: Path) -> None:
    for place in range(11):
        folder = tmp_path / f"test_data_set_{place}"
        folder.mkdir()
        x = np.full((1, 3), place, np.float32)
        # The second one carries no name: its number counts the inputs.
        ids = np.full((1, 2), place, np.int64)
        onnx.save_tensor(numpy_helper.from_array(x, "x"), folder / "input_0.pb")
        onnx.save_tensor(numpy_helper.from_array(ids), folder / "input_1.pb")
        onnx.save_tensor(numpy_helper.from_array(x), folder / "output_0.pb")
    found = load_data(tmp_path, (X, IDS))
    assert found["x"][:, 0, 0].tolist() == list(range(11))
    assert found["net/ids:0"][:, 0, 0].tolist() == list(range(11))


def test_types_are_converted_within_a_family_only(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.ones((5, 3), ">f8"))
    assert load_data(path, (X,))["x"].dtype == F32
    for wrong in (np.ones((5, 3), np.int64), np.ones((5, 3), bool), np.ones((5, 3), complex)):
        with pytest.raises(MisuseError, match=rf"'x' holds {wrong.dtype}, the model takes float32"):
            load_data(saved(tmp_path, x=wrong), (X,))
    half = np.ones((5, 2), np.float32)
    with pytest.raises(MisuseError, match="holds float32, the model takes int64"):
        load_data(saved(tmp_path, **{"net/ids:0": half}), (IDS,))


def test_whole_numbers_must_fit(tmp_path: Path) -> None:
    pixels = InputSpec("x", (1, 3), np.dtype("uint8"))
    fine = load_data(saved(tmp_path, x=np.full((5, 3), 255)), (pixels,))
    assert fine["x"].dtype == np.uint8
    with pytest.raises(MisuseError, match="goes from 256 to 256, and the model's uint8 only from"):
        load_data(saved(tmp_path, x=np.full((5, 3), 256)), (pixels,))


def test_inputs_of_strings_are_refused(tmp_path: Path) -> None:
    words = InputSpec("x", (1, 3), np.dtype(object))
    with pytest.raises(MisuseError, match=r"the input x string\[1,3\] holds neither numbers"):
        load_data(saved(tmp_path, x=np.full((5, 3), "a")), (words,))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, bad: float) -> None:
    x = np.ones((5, 3))
    x[3, 1] = bad
    with pytest.raises(MisuseError, match="NaN or infinity in 1 of 5 samples, first in sample 3"):
        load_data(saved(tmp_path, x=x), (X,))


def test_values_too_large_for_the_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="too large for float32, first in sample 0"):
        load_data(saved(tmp_path, x=np.full((5, 3), 1e300)), (X,))


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.ones((5, 3)), labels=np.ones(5))
    with pytest.raises(MisuseError, match=r"data.npz: the model has no input 'labels'; it takes x"):
        load_data(path, (X,))


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.ones((5, 3)))
    with pytest.raises(MisuseError, match=r"has no data for net/ids:0 int64\[1,2\]; add an array"):
        load_data(path, (X, IDS))


def test_unequal_counts_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, **{"x": np.ones((5, 3)), "net/ids:0": np.ones((4, 2), int)})
    with pytest.raises(MisuseError, match=r"number of samples \(x 5, net/ids:0 4\)"):
        load_data(path, (X, IDS))


def test_no_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="holds no samples; the first axis of each array"):
        load_data(saved(tmp_path, x=np.ones((0, 3), np.float32)), (X,))


def test_a_single_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"'x' has shape \[\]"):
        load_data(saved(tmp_path, x=np.asarray(np.float32(1))), (X,))


def test_objects_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.array([{}, {}], dtype=object))
    with pytest.raises(MisuseError, match="Object arrays cannot be loaded"):
        load_data(path, (X,))


def test_every_cut_of_an_npz_is_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, x=np.arange(15.0).reshape(5, 3)).read_bytes()
    torn = tmp_path / "torn.npz"
    for cut in range(0, len(whole), 7):
        torn.write_bytes(whole[:cut])
        with pytest.raises(MisuseError, match=r"torn.npz is not a sound .npz file: "):
            load_data(torn, (X,))


def test_an_npz_that_is_a_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "data.npz").open("wb") as file:
        np.save(file, np.ones((5, 3)))
    with pytest.raises(MisuseError, match="it holds a single array"):
        load_data(tmp_path / "data.npz", (X,))


def test_other_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"none.npz does not exist; check the path of the data"):
        load_data(tmp_path / "none.npz", (X,))
    with pytest.raises(MisuseError, match=r"holds no data; put one .npy per input in it"):
        load_data(tmp_path, (X,))
    (tmp_path / "data.csv").write_text("1,2,3")
    with pytest.raises(MisuseError, match=r"data.csv is not data onnxpress reads; give an .npz"):
        load_data(tmp_path / "data.csv", (X,))


def test_wrong_test_data_sets_are_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "test_data_set_0", tmp_path / "test_data_set_1"
    for folder, width in ((first, 3), (second, 4)):
        folder.mkdir()
        tensor = numpy_helper.from_array(np.ones((1, width), np.float32))
        onnx.save_tensor(tensor, folder / "input_0.pb")
    with pytest.raises(
        MisuseError, match=r"samples of 'x' differ in shape \(\[1, 3\] and \[1, 4\]"
    ):
        load_data(tmp_path, (X,))
    (second / "input_0.pb").rename(second / "input_7.pb")
    with pytest.raises(MisuseError, match=r"input_7.pb: the model has no input 'input_7'"):
        load_data(tmp_path, (X,))
    (second / "input_7.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(MisuseError, match=r"input_7.pb is not a sound ONNX tensor: "):
        load_data(tmp_path, (X,))
    outside = numpy_helper.from_array(np.ones((1, 3), np.float32))
    outside.data_location = onnx.TensorProto.EXTERNAL
    onnx.save_tensor(outside, second / "input_7.pb")
    with pytest.raises(MisuseError, match="its values lie in another file"):
        load_data(tmp_path, (X,))


# Sharing out


def test_shares_are_60_20_20_and_disjoint() -> None:
    samples = from_data(numbered(100), seed=0)
    fit, choose, judge = parts(samples)
    assert (len(fit), len(choose), len(judge)) == (60, 20, 20)
    assert sorted(fit + choose + judge) == list(range(100))
    assert samples.duplicates == 0
    assert samples.fit["x"].shape == (60, 1, 3)


def test_the_seed_decides() -> None:
    again, other = from_data(numbered(50), seed=0), from_data(numbered(50), seed=1)
    assert parts(from_data(numbered(50), seed=0)) == parts(again)
    assert parts(other) != parts(again)


def test_repeats_stay_together() -> None:
    samples = from_data(numbered(50, repeats=2), seed=0)
    fit, choose, judge = map(set, parts(samples))
    assert not fit & choose
    assert not fit & judge
    assert not choose & judge
    assert samples.duplicates == 50
    assert [count(part) for part in (samples.fit, samples.choose, samples.judge)] == [60, 20, 20]


def test_a_large_group_of_repeats_goes_to_fit() -> None:
    arrays = numbered(60)
    arrays["x"][:41] = 0
    samples = from_data(arrays, seed=3)
    fit, choose, judge = parts(samples)
    assert fit.count(0) == 41
    assert samples.duplicates == 40
    assert [len(set(part)) for part in (fit, choose, judge)] == [12, 4, 4]


def test_samples_are_equal_only_in_all_inputs() -> None:
    arrays: Arrays = {"x": np.zeros((20, 1, 3), np.float32), "ids": np.arange(20).reshape(20, 1)}
    assert from_data(arrays, seed=0).duplicates == 0


def test_a_sequence_is_cut_in_blocks() -> None:
    samples = from_data(numbered(20), seed=5, sequence=True)
    assert parts(samples) == (list(range(12)), [12, 13, 14, 15], [16, 17, 18, 19])


def test_repeats_in_a_sequence_leave_the_earlier_block() -> None:
    arrays = numbered(20)
    arrays["x"][[0, 13]] = arrays["x"][17]
    samples = from_data(arrays, seed=0, sequence=True)
    assert parts(samples) == (list(range(1, 12)), [12, 14, 15], [16, 17, 18, 19])
    assert samples.duplicates == 2


def test_a_judge_from_elsewhere() -> None:
    judge = numbered(5)
    samples = from_data(numbered(25), seed=0, judge=judge)
    fit, choose, seen = parts(samples)
    assert seen == list(range(5))
    assert (len(fit), len(choose)) == (15, 5)
    assert sorted(fit + choose) == list(range(5, 25))
    assert samples.duplicates == 5


def test_too_few_samples_are_refused() -> None:
    from_data(numbered(15), seed=0)
    with pytest.raises(MisuseError) as caught:
        from_data(numbered(14), seed=0)
    assert str(caught.value) == (
        "the data has 14 different samples; at least 15 are needed (9 to fit, 3 to choose, "
        "3 to judge)"
    )
    with pytest.raises(MisuseError, match="the data has 14 different samples"):
        from_data(numbered(14, repeats=3), seed=0)


def test_too_few_samples_beside_a_judge_are_refused() -> None:
    with pytest.raises(MisuseError, match="11 different samples beside the judge; at least 12"):
        from_data(numbered(16), seed=0, judge=numbered(5))
    with pytest.raises(MisuseError, match="the judge's data has 2 different samples; at least 3"):
        from_data(numbered(25), seed=0, judge=numbered(2))


def test_repeats_that_starve_a_block_are_refused() -> None:
    arrays = numbered(100)
    arrays["x"][:55] = arrays["x"][99]
    with pytest.raises(MisuseError, match=r"exact repeats.* leave 5 different samples to fit on"):
        from_data(arrays, seed=0, sequence=True)


def test_draws_are_fresh_and_repeatable() -> None:
    domains: dict[str, Domain] = {
        "x": Box((1, 3), F32, np.asarray(0.0), np.asarray(1.0)),
        "ids": Tokens((1, 2), I64, np.asarray(0), np.asarray(9)),
    }
    first, again = (from_domains(domains, (6, 4, 5), seed=0) for _ in range(2))
    assert [count(part) for part in (first.fit, first.choose, first.judge)] == [6, 4, 5]
    assert first.judge["x"].tobytes() == again.judge["x"].tobytes()
    assert first.judge["ids"].tobytes() == again.judge["ids"].tobytes()
    rows = np.concatenate([part["x"] for part in (first.fit, first.choose, first.judge)])
    assert len(np.unique(rows.reshape(15, 3), axis=0)) == 15
    other = from_domains(domains, (6, 4, 5), seed=1)
    assert other.fit["x"].tobytes() != first.fit["x"].tobytes()


@pytest.mark.parametrize("seed", [-1, -100])
def test_a_negative_seed_is_refused(seed: int) -> None:
    with pytest.raises(MisuseError, match="give one from 0 on"):
        from_data(numbered(20), seed)
    with pytest.raises(MisuseError, match="give one from 0 on"):
        from_domains({}, (1, 1, 1), seed)


@pytest.mark.parametrize("sequence", [False, True])
def test_labels_go_where_their_samples_go(sequence: bool) -> None:
    arrays, labels = numbered(50, repeats=2), 7 * np.repeat(np.arange(50), 2)
    arrays_only = from_data(arrays, seed=0, sequence=sequence)
    samples = from_data(arrays, seed=0, sequence=sequence, labels=labels)
    assert parts(samples) == parts(arrays_only)
    assert arrays_only.labels is None
    assert samples.labels is not None
    fit, choose, _ = parts(samples)
    assert [part.tolist() for part in samples.labels] == [
        [7 * x for x in fit],
        [7 * x for x in choose],
    ]


# Sources


def by_source(of: list[int], *, given: bool = True) -> Sources:
    return Sources(np.asarray(of), "as a test says", given=given)


def sources_in(samples: Samples, of: list[int]) -> list[set[int]]:
    return [{of[place] for place in part} for part in parts(samples)]


def alone_in(samples: Samples, of: list[int]) -> list[set[int]]:
    """Give the sources of fit, those only choose has, and those only judge has."""
    fit, choose, judge = sources_in(samples, of)
    return [fit, choose - fit, judge - fit]


def test_the_judge_sees_a_source_nothing_was_fitted_on() -> None:
    of = [place % 6 for place in range(120)]
    samples = from_data(numbered(120), seed=0, sources=by_source(of))
    fit, choose, judge = alone_in(samples, of)
    assert [len(each) for each in (fit, choose, judge)] == [4, 1, 1]
    assert fit | choose | judge == set(range(6))
    # And of the sources that are fitted on, each of them sees an eighth.
    assert [count(part) for part in (samples.fit, samples.choose, samples.judge)] == [60, 30, 30]
    assert sorted(place for part in parts(samples) for place in part) == list(range(120))
    assert samples.sources is not None
    assert samples.sources.few
    assert str(samples.sources) == (
        "the samples come from 6 sources (as a test says): 1 only to choose with, 1 only to judge "
        "on, and samples of the others in each set"
    )
    other = [from_data(numbered(120), seed=s, sources=by_source(of)) for s in range(1, 6)]
    assert any(alone_in(each, of)[2] != judge for each in other)


@pytest.mark.parametrize(
    ("sources", "shares"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (50, [30, 10, 10])]
)
def test_each_set_gets_its_share_of_the_sources(sources: int, shares: list[int]) -> None:
    of = [place % sources for place in range(200)]
    samples = from_data(numbered(200), seed=3, sources=by_source(of))
    assert [len(each) for each in alone_in(samples, of)] == shares
    assert samples.sources is not None
    assert samples.sources.few == (sources < 20)


def test_of_two_sources_the_judge_has_one() -> None:
    of = [place % 2 for place in range(80)]
    samples = from_data(numbered(80), seed=0, sources=by_source(of))
    fit, choose, judge = alone_in(samples, of)
    assert (len(fit), choose, judge) == (1, set(), {0, 1} - fit)
    assert [count(part) for part in (samples.fit, samples.choose, samples.judge)] == [30, 5, 45]
    assert "1 only to judge on, and samples of the others" in str(samples.sources)


def test_a_large_source_is_fitted_on() -> None:
    of = [0] * 60 + [1 + place % 4 for place in range(60)]
    for seed in range(5):
        samples = from_data(numbered(120), seed=seed, sources=by_source(of))
        assert 0 in alone_in(samples, of)[0]


def test_sources_beside_a_judge_from_elsewhere() -> None:
    of = [place % 2 for place in range(40)]
    samples = from_data(numbered(40), seed=0, sources=by_source(of), judge=numbered(3))
    fit, choose, _ = sources_in(samples, of)
    assert (len(fit), choose - fit) == (1, {0, 1} - fit)
    assert str(samples.sources).endswith(
        ": 1 only to choose with, and samples of the others in each set"
    )


@pytest.mark.parametrize("seed", range(8))
def test_sources_with_a_sample_in_common_are_one(seed: int) -> None:
    arrays, of = numbered(60), [place % 6 for place in range(60)]
    arrays["x"][6] = arrays["x"][1]  # of source 0, and now also of source 1
    samples = from_data(arrays, seed=seed, sources=by_source(of))
    of[6] = of[1]  # as what is read back says
    for each in alone_in(samples, of):
        assert (0 in each) == (1 in each)


def test_sources_that_cannot_be_kept_apart() -> None:
    arrays, of = numbered(60), [0] * 30 + [1] * 30
    arrays["x"][30] = arrays["x"][0]
    with pytest.raises(MisuseError, match="every source of the data has samples of another one"):
        from_data(arrays, seed=0, sources=by_source(of))
    of = [0] * 12 + [1] * 6
    with pytest.raises(
        MisuseError, match=r"kept apart, leave 1 .* to choose on.*--sources none sh"
    ):
        from_data(numbered(18), seed=0, sources=by_source(of))
    # What was only found does not stand in the way.
    samples = from_data(numbered(18), seed=0, sources=by_source(of, given=False))
    assert parts(samples) == parts(from_data(numbered(18), seed=0))
    assert samples.sources is None
