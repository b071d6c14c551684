"""What a collator gives is read right or refused."""

import pytest
import torch

from longlens.errors import UserError
from longlens.train.batch import OfflineCollator, read_batch
from tests.train.runs import pad_right

IDS = torch.arange(1, 9)[None]


def test_positions_come_from_whatever_says_where_documents_begin():
    expected = [0, 1, 2, 0, 1, 0, 1, 2]
    for given in (
        {"position_ids": torch.tensor([expected])},
        {"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]], dtype=torch.int32)},
        {"cu_seq_lens_q": torch.tensor([0, 3, 5, 8], dtype=torch.int32), "max_length_q": 3},
    ):
        batch = read_batch({"input_ids": IDS, **given})
        assert batch.position_ids.tolist() == [expected]
        assert int(batch.num_scored) == 5
    assert read_batch({"input_ids": IDS}).position_ids is None


def test_the_mask_takes_padding_out_of_the_labels_and_goes_no_further():
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    batch = read_batch({"input_ids": IDS, "labels": IDS, "attention_mask": mask})
    assert batch.labels.tolist() == [[1, 2, 3, 4, 5, -100, -100, -100]]
    assert int(batch.num_scored) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])}, "padded on the left"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 0, 1, 1, 1, 1]])}, "padded on the left or between tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2, 3, 3]])}, "expected (1, 8) of 0 and 1"),
        ({"attention_mask": torch.ones(1, 1, 8, 8)}, "attention_mask has shape (1, 1, 8, 8)"),
        ({"pixel_values": 1, "shift_labels": 2}, "the batch has pixel_values, shift_labels, which longlens does not"),
        (
            {"position_ids": torch.arange(8)[None], "seq_idx": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])},
            "position_ids and seq_idx of the batch disagree on where documents begin (1 and 2 of them)",
        ),
        ({"position_ids": torch.zeros(3, 1, 8)}, "position_ids have shape (3, 1, 8)"),
    ],
)
def test_what_is_not_known_is_refused(given, message):
    with pytest.raises(UserError) as caught:
        read_batch({"input_ids": IDS, **given})
    assert message in str(caught.value)


def test_offline_columns_are_padded_like_their_tokens():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3], "token_weights": [1.0, 2.0, 0.5]},
        {"input_ids": [4, 5], "labels": [4, 5], "token_weights": [1.0, 3.0]},
    ]
    assert OfflineCollator(pad_right)(rows)["token_weights"].tolist() == [[1.0, 2.0, 0.5], [1.0, 3.0, 1.0]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 2.0], "a row has 2 token_weights for 3 tokens"),
        (None, "a row has 0 token_weights for 3 tokens"),
        ([1.0, float("nan"), 1.0], "not a finite number of at least 0"),
        ([1.0, -1.0, 1.0], "not a finite number of at least 0"),
        ([1.0, None, 1.0], "not a finite number of at least 0"),
    ],
)
def test_offline_columns_that_do_not_fit_are_refused(values, message):
    row = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}
    rows = [row | {"token_weights": [1.0, 1.0, 1.0]}, row | ({} if values is None else {"token_weights": values})]
    with pytest.raises(UserError) as caught:
        OfflineCollator(pad_right)(rows)
    assert message in str(caught.value)
