"""Batches of rows of several lengths."""

import torch

from longlens.train.batch import OfflineCollator, pad_right, read_batch


def test_padding_is_no_label_and_no_document():
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8], "position_ids": [0, 1, 0, 1]},
        {"input_ids": [9, 4], "labels": [-100, 4], "position_ids": [0, 1]},
    ]
    batch = pad_right(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [9, 4, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, -100, 8], [-100, 4, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 3]]
    assert read_batch(batch).num_scored == 3


def test_labels_are_the_tokens_where_there_are_none():
    batch = pad_right([{"input_ids": [5, 6, 7]}, {"input_ids": [9]}])
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["labels"].tolist() == [[5, 6, 7], [9, -100, -100]]
    assert all(tensor.dtype == torch.long for tensor in batch.values())


def test_offline_weights_go_along():
    rows = [{"input_ids": [5, 6, 7], "token_weights": [1, 2, 3]}, {"input_ids": [9], "token_weights": [4]}]
    assert OfflineCollator(pad_right)(rows)["token_weights"].tolist() == [[1, 2, 3], [4, 1, 1]]
