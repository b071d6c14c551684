"""What the tests of position extrapolation share: a method of each kind, for heads of 8 dimensions and 64 tokens."""

import pytest
import torch

from longlens.rope import CLEX, EABF, NTK, DynamicNTK, Llama3, LongRoPE, PositionInterpolation, YaRN

LENGTH = 64
METHODS = {
    "pi": PositionInterpolation(factor=4),
    "ntk": NTK(factor=4),
    "ntk-theta": NTK(factor=4, theta=8e6),
    "dynamic-ntk": DynamicNTK(factor=4),
    "yarn": YaRN(factor=4),
    "longrope": LongRoPE(factor=4, short_factors=[1.0, 1.1, 1.2, 1.3], long_factors=[1.0, 2.0, 3.0, 4.0]),
    "llama3": Llama3(factor=4),
    "eabf": EABF(factor=4, theta=2e6),
    "clex": CLEX(max_factor=4, step=0.25),
}
KNOWN = [name for name in METHODS if name not in ("eabf", "clex")]
"""Those that transformers knows."""


@pytest.fixture
def ids():
    return torch.randint(256, (1, 100), generator=torch.Generator().manual_seed(0))


def logits(model, ids, **options):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits
