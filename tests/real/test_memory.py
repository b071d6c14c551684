"""Peak memory of the whole process on real models and a long text, loading included."""

import pytest
from benchmarks.memory import measure

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("model", "dtype", "length", "gigabytes"),
    [("smollm2", "float32", 8191, 2.0), ("gemma3-270m", "bfloat16", 32767, 4.0)],
)
def test_a_long_document_fits(model, dtype, length, gigabytes):
    found = measure(model, dtype, length)
    print(model, dtype, found)
    assert found["tokens"] == length
    assert found["peak_gb"] < gigabytes
