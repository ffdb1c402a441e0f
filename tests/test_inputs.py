"""Tests of what is taken as embeddings and ids, and of what the refusals say."""

from typing import Any

import numpy as np
import pytest
import torch

from raremix.errors import EmbeddingShapeError
from raremix.inputs import as_embeddings, as_ids, as_scores, finite_rows, what_is_not_finite


def test_a_float32_tensor_is_handed_on_without_a_copy() -> None:
    rows = torch.zeros(3, 2)
    assert as_embeddings(rows, caller="f").data_ptr() == rows.data_ptr()
    array = np.zeros((3, 2), dtype=np.float32)
    assert as_embeddings(array, caller="f").data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", ">f4", ">f8", "g", "i1", "u2", ">i4", "i8", "u8"]
)
def test_every_real_dtype_of_numpy_becomes_float32(dtype: str) -> None:
    array = np.arange(6).reshape(3, 2).astype(dtype)
    found = as_embeddings(array, caller="f")
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.uint8]
)
def test_every_real_dtype_of_torch_becomes_float32(dtype: torch.dtype) -> None:
    found = as_embeddings(torch.arange(6).reshape(3, 2).to(dtype), caller="f")
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


def test_a_field_of_packed_records_is_taken() -> None:
    records = np.zeros(4, dtype=[("row", "f4", 3), ("flag", "i1")])
    records["row"][:, 1] = 5
    assert as_embeddings(records["row"], caller="f").tolist() == [[0.0, 5.0, 0.0]] * 4


def test_a_read_only_array_is_copied() -> None:
    array = np.zeros((3, 2), dtype=np.float32)
    array.flags.writeable = False
    assert as_embeddings(array, caller="f").data_ptr() != array.ctypes.data


def test_the_result_carries_no_gradient() -> None:
    rows = torch.zeros(3, 2, requires_grad=True)
    assert not as_embeddings(rows * 1, caller="f").requires_grad
    assert rows.requires_grad


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"f expects embeddings of shape \(batch, dim\), got \(3,\); flatten"),
        (np.zeros((1, 2, 3)), r"f expects embeddings of shape \(batch, dim\), got \(1, 2, 3\)"),
        (torch.zeros(0, 3), r"f got embeddings of shape \(0, 3\), which holds no numbers"),
        (torch.zeros(3, 0), r"f got embeddings of shape \(3, 0\), which holds no numbers"),
        (
            torch.zeros(3, 2, dtype=torch.complex64),
            r"real numbers, got a tensor of torch\.complex64",
        ),
        (torch.zeros(3, 2, dtype=torch.bool), r"real numbers, got a tensor of torch\.bool"),
        (np.zeros((3, 2), dtype=complex), "real numbers, got a numpy array of dtype complex128"),
        (np.zeros((3, 2), dtype=bool), "real numbers, got a numpy array of dtype bool"),
        (np.array([["a"]]), "real numbers, got a numpy array of dtype <U1"),
        (np.array([[None]]), "real numbers, got a numpy array of dtype object"),
        ([[1.0, 2.0]], r"a torch tensor or a numpy array of shape \(batch, dim\), got list; wrap"),
        (None, "got NoneType"),
        (torch.ones(3, 2).to_sparse(), r"as a dense tensor, got a sparse_coo one; call \.to_dense"),
        (torch.ones(3, 2, device="meta"), "on the meta device, which holds no numbers"),
    ],
)
def test_what_is_no_embedding_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(EmbeddingShapeError, match=message):
        as_embeddings(value, caller="f")


def test_another_width_names_both_and_says_what_to_do() -> None:
    with pytest.raises(EmbeddingShapeError) as caught:
        as_embeddings(torch.zeros(64, 768), caller="KNNDistance.score", dim=384)
    assert str(caught.value) == (
        "KNNDistance.score expects embeddings of shape (batch, 384), got (64, 768). What was seen "
        "before is 384 wide; pass embeddings from the same layer, or build a new one."
    )


def _read_only_ids() -> Any:
    ids = np.arange(3)
    ids.flags.writeable = False
    return ids


@pytest.mark.parametrize(
    "value",
    [
        [0, 1, 2],
        (0, 1, 2),
        range(3),
        np.arange(3, dtype=np.uint8),
        np.arange(3, dtype=np.uint64),
        np.arange(3, dtype=">i4"),
        np.arange(2, -1, -1)[::-1],
        _read_only_ids(),
        torch.arange(3),
        torch.arange(3, dtype=torch.int32),
        [np.int64(0), np.int64(1), np.int64(2)],
    ],
)
def test_whole_numbers_become_ids(value: Any) -> None:
    ids = as_ids(value, caller="f", length=3)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [0, 1, 2]
    assert ids.device.type == "cpu"


@pytest.mark.parametrize("value", [[], torch.empty(0), np.empty(0)])
def test_no_ids_are_ids_too(value: Any) -> None:
    ids = as_ids(value, caller="f")
    assert (ids.dtype, ids.tolist()) == (torch.int64, [])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.5, 1.0], r"f expects ids as whole numbers of shape \(batch,\), got dtype float64"),
        (torch.zeros(2), r"got torch\.float32 of shape \(2,\)"),
        (["a", "b"], "got dtype <U1"),
        ([True, False], "got dtype bool"),
        (torch.tensor([True, False]), r"got torch\.bool"),
        ([[0, 1]], r"of shape \(1, 2\); an id is a sample's place in the dataset"),
        (7, r"of shape \(\)"),
        ([0, 1, 2], "f got 3 ids for 2 rows; pass one id per row"),
    ],
)
def test_what_is_no_id_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(EmbeddingShapeError, match=message):
        as_ids(value, caller="f", length=2)


def test_finite_rows_hold_neither_nan_nor_infinity() -> None:
    rows = torch.zeros(4, 3)
    rows[0, 1], rows[2, 0], rows[3, 2] = torch.nan, torch.inf, -torch.inf
    assert finite_rows(rows).tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.ones(2, dtype=torch.float16), torch.float16),
        (torch.ones(2, dtype=torch.int32), torch.float64),
        (np.ones(2, dtype=">f4"), torch.float32),
        (np.ones(2, dtype=np.uint64), torch.float64),
        ([1, 1], torch.float64),
    ],
)
def test_scores_keep_their_precision(value: Any, dtype: torch.dtype) -> None:
    scores = as_scores(value, caller="f")
    assert (scores.dtype, scores.tolist()) == (dtype, [1.0, 1.0])


def test_only_what_float32_cannot_hold_is_called_too_large() -> None:
    wide = np.array([[1e200, 0.0], [1.0, 2.0]])
    for value in (wide, torch.from_numpy(wide)):
        found = what_is_not_finite(value, torch.as_tensor(value).float())
        assert found.startswith("numbers too large for float32")
    wide[1, 1] = np.nan
    found = what_is_not_finite(wide, torch.from_numpy(wide).float())
    assert found.startswith("NaN, infinity or numbers too large")
    wide[0, 0] = np.inf
    assert what_is_not_finite(wide, torch.from_numpy(wide).float()) == "NaN or infinity"
    narrow = torch.tensor([[torch.inf, torch.nan]])
    assert what_is_not_finite(narrow, narrow) == "NaN or infinity"
