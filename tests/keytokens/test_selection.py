import subprocess
import sys

import numpy as np
import pytest

from longlens.errors import LonglensWarning, UserError
from longlens.keytokens import select_key_tokens
from longlens.keytokens.selection import near_threshold_message, warn_near_threshold
from longlens.scoring.scores import ShortContext, identity_of
from tests.toys import NAN, scores, token_scores

PIECES = ["The ", "code ", "is ", "45", "129", ".", " Bye"]
LONG = [NAN, -1, -1, -0.5, -0.5, -1, -3]
SHORT = [NAN, NAN, -1, -5, -5, -1.5, -9]


def run(**settings):
    short_document = token_scores(["a", "b"], [NAN, -1], [NAN, NAN], id="short")
    return scores(token_scores(PIECES, LONG, SHORT, id="code"), short_document, **settings)


def test_key_tokens_are_likely_and_need_the_long_context_and_adjacent_ones_make_a_run():
    keys = select_key_tokens(run())
    found = keys[0]
    assert found.token_indices.tolist() == [3, 4]  # " Bye" has LSD 6 and is below beta
    assert found.char_runs.tolist() == [[12, 17]]
    assert "".join(PIECES)[12:17] == "45129"
    assert found.num_key_tokens == 2
    assert found.num_near_threshold == 0


def test_without_lcl_the_unlikely_token_is_key_too():
    assert select_key_tokens(run(), use_lcl=False).get("code").token_indices.tolist() == [3, 4, 6]


def test_a_document_shorter_than_the_short_context_has_none():
    found = select_key_tokens(run()).get("short")
    assert found.char_runs.shape == (0, 2)
    assert found.num_key_tokens == 0


def test_the_view_is_a_sequence_in_the_order_of_the_scores():
    keys = select_key_tokens(run())
    assert len(keys) == 2
    assert [key.id for key in keys] == list(keys.ids) == [key.id for key in keys[:]] == ["code", "short"]
    assert keys[-1].id == "short"
    with pytest.raises(KeyError):
        keys.get("other")


def test_settings_say_how_they_were_selected():
    scored = run(dtype="bfloat16")
    keys = select_key_tokens(scored, alpha=1, use_lcl=False)
    assert keys.settings == {
        "evaluator": "toy",
        "evaluator_sha256": identity_of(scored).sha256,
        "alpha": 1,
        "beta": -2,
        "lcl": False,
        "context": 4,
        "stride": 2,
        "bos": "window",
        "dtype": "bfloat16",
    }


def test_another_short_context_can_be_chosen():
    row = token_scores(PIECES, LONG, SHORT)
    row.short[ShortContext(2, 1)] = np.full(7, -9, dtype=np.float32)
    keys = select_key_tokens(scores(row), context=2)
    assert keys[0].token_indices.tolist() == [1, 2, 3, 4, 5]
    assert (keys.settings["context"], keys.settings["stride"]) == (2, 1)
    assert select_key_tokens(scores(row))[0].token_indices.tolist() == [3, 4]


def test_a_run_without_short_scores_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="score it again with short contexts into the same run directory"):
        select_key_tokens(scores(token_scores(PIECES, LONG)))


def test_a_threshold_that_is_no_number_is_refused_before_anything_is_read():
    with pytest.raises(UserError, match="`alpha` is nan"):
        select_key_tokens(run(), alpha=NAN)


def test_tokens_near_a_threshold_are_counted_with_the_error_of_the_dtype():
    row = token_scores(["a", "b", "c"], [NAN, -1, -1], [NAN, -3.05, -2.95])
    counts = {dtype: select_key_tokens(scores(row, dtype=dtype))[0].num_near_threshold for dtype in DTYPES}
    assert counts == {"float32": 0, "bfloat16": 2}


DTYPES = ("float32", "bfloat16")


def test_the_warning_has_the_numbers_the_dtype_and_the_next_step():
    with pytest.warns(LonglensWarning, match=r"^3 tokens .* 0\.1 nats .* bfloat16 \(40 key .* `dtype=float32`$"):
        warn_near_threshold(3, 40, "bfloat16")
    assert near_threshold_message(3, 40, "float32").endswith("consider them undecided")
    of_a_server = near_threshold_message(3, 40, "unknown")
    assert " in an unknown dtype (40 key tokens" in of_a_server
    assert of_a_server.endswith("consider them undecided")  # `dtype` is refused with a server
    warn_near_threshold(0, 40, "bfloat16")  # an error in these tests if it warned


def test_no_torch_is_imported():
    code = "import sys, longlens.keytokens, longlens.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, torch; sys.exit('torch' in sys.modules)"  # and the test can fail
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
