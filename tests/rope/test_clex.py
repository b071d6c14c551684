"""CLEX: the equation, what training changes, gradients, and its weights in a folder."""

import numpy as np
import pytest
import torch
import transformers

from longlens import UserError
from longlens.rope import CLEX, apply, load_model
from longlens.rope.frequencies import Rope, clex_start
from tests.reference import rope as oracle
from tests.rope.conftest import LENGTH, logits
from tests.tiny import tiny_model


def clex(max_factor=4, step=0.05, trained=False, family="llama", **settings):
    method = CLEX(max_factor=max_factor, step=step, **settings)
    model = apply(tiny_model(family, max_position_embeddings=LENGTH), method)
    if trained:
        torch.manual_seed(1)
        torch.nn.init.normal_(model.model.rotary_emb.down, std=0.1)
    return model


def frequencies(rotary, t):
    with torch.no_grad():
        return rotary.frequencies(t).double().numpy()


@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_an_untrained_one_is_on_the_ntk_trajectory(t):
    rope = Rope(dim=8, theta=1e4, length=LENGTH)
    ours = frequencies(clex().model.rotary_emb, t)
    np.testing.assert_allclose(ours, clex_start(rope, t=t).inv_freq, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 2])
def test_a_trained_one_solves_the_published_equation(width):
    rotary = clex(trained=True, width=width).model.rotary_emb
    up, down = rotary.up.detach().tolist(), rotary.down.detach().tolist()
    assert (len(up), len(up[0])) == (4, 8 * width)
    for t in (1, 2, 4):
        ours = frequencies(rotary, t)
        # Euler's error is of the order of its step; two of them extrapolate to a much finer one.
        rough, fine = (np.array(oracle.clex(8, 1e4, t, up, down, steps)) for steps in (100, 200))
        np.testing.assert_allclose(ours, 2 * fine - rough, rtol=2e-4)
        if t > 1:
            assert np.abs(ours / frequencies(clex().model.rotary_emb, t) - 1).max() > 0.05


def test_a_finer_step_changes_little():
    coarse, fine = (frequencies(clex(step=step, trained=True).model.rotary_emb, 4) for step in (0.1, 0.01))
    np.testing.assert_allclose(coarse, fine, rtol=1e-4)


def test_t_follows_the_length_of_each_pass_and_stops_at_the_largest():
    model = clex(trained=True)
    rotary = model.model.rotary_emb
    with torch.no_grad():
        for n, t in ((1, 1), (64, 1), (65, 2), (128, 2), (129, 3), (256, 4), (999, 4)):
            cos, _ = rotary(torch.zeros(1, n, 1), torch.arange(n)[None])
            angles = torch.arange(n)[:, None] * rotary.frequencies(t)
            torch.testing.assert_close(cos[0, :, :4], angles.cos())


@pytest.mark.parametrize("family", ["llama", "cohere", "gpt-neox", "gpt-oss-sinks"])
def test_angles_are_laid_out_as_the_model_has_them(family, ids):
    """With t = 1 nothing changes."""
    changes = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}} if family == "gpt-oss-sinks" else {}
    if family == "gpt-neox":
        changes = {"rotary_pct": 0.5}
    model = tiny_model(family, max_position_embeddings=128, **changes)
    before = logits(model, ids)
    torch.testing.assert_close(logits(apply(model, CLEX(max_factor=2)), ids), before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_equation(checkpointing, ids):
    model = clex().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(3)  # draws t > 1
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    rotary = model.model.rotary_emb
    assert rotary.down.grad.abs().max() > 0
    assert rotary.up.grad.abs().max() == 0  # behind zeros, as in LoRA
    with torch.no_grad():
        rotary.down -= 0.1 * rotary.down.grad
    rotary.zero_grad()
    torch.manual_seed(3)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert rotary.up.grad.abs().max() > 0


def test_checkpointing_changes_no_gradient(ids):
    grads = []
    for checkpointing in (False, True):
        model = clex(trained=True).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        grads.append(model.model.rotary_emb.down.grad)
    torch.testing.assert_close(*grads)


def test_training_draws_lengths_and_sorted_positions():
    rotary = clex().model.rotary_emb
    for n, squeezed in ((32, 1), (64, 1), (130, 2)):
        for t in (1, 2, 4):
            drawn = rotary._drawn(n, t)
            assert drawn.shape == (n,)
            assert drawn[0] == 0
            assert drawn[-1] == pytest.approx((n * t - 1) / squeezed)
            assert (drawn[1:] > drawn[:-1]).all()
    torch.testing.assert_close(rotary._drawn(64, 1), torch.arange(64).float())
    rotary.train()
    positions = torch.arange(64)[None]
    with torch.no_grad():
        seen = {float(rotary(torch.zeros(1, 64, 1), positions)[0][0, -1, 2]) for _ in range(40)}
    assert len(seen) == 4  # one cosine of the last position for each t


def test_what_is_kept_between_passes_follows_the_weights(ids):
    model = clex()
    before = logits(model, ids)
    torch.testing.assert_close(logits(model, ids), before, rtol=0, atol=0)
    with torch.no_grad():
        model.model.rotary_emb.down.add_(0.1)
    assert (logits(model, ids) - before).abs().max() > 1e-3
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def test_a_trained_one_is_saved_and_loaded_as_any_model(ids, tmp_path):
    model = clex(trained=True)
    model.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"does not support this model's rotary embedding: load it with longlens\.rope\.load_model"
    ):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    torch.testing.assert_close(logits(again, ids), logits(model, ids))
    torch.testing.assert_close(again.model.rotary_emb.down, model.model.rotary_emb.down)
    half = load_model(str(tmp_path), dtype=torch.bfloat16)
    assert half.model.rotary_emb.down.dtype == torch.float32


def test_a_folder_that_lost_the_weights_of_clex_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    clex(trained=True).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if "rotary_emb.down" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"lacks weights of CLEX, 'model.rotary_emb.up': use the directory that longlens"
    ):
        load_model(str(tmp_path))


def test_weights_in_two_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    model = clex(trained=True)
    model.save_pretrained(tmp_path)
    old = {f"model.rotary_emb.{name}": tensor for name, tensor in model.model.rotary_emb.state_dict().items()}
    save_file(old, tmp_path / "longlens_rope.safetensors")
    with pytest.raises(UserError, match=r"in longlens_rope.safetensors and in model.safetensors: delete the older one"):
        load_model(str(tmp_path))


class Odd(torch.nn.Module):
    """A rotary embedding that lays out its angles in no known way."""

    def __init__(self, base):
        super().__init__()
        self.base, self.inv_freq, self.original_inv_freq = base, base.inv_freq, base.original_inv_freq

    def forward(self, x, position_ids):
        cos, sin = self.base(x, position_ids)
        return cos.flip(-1), sin


def test_an_unknown_layout_is_refused():
    from longlens.rope.clex import ClexRotary

    base = tiny_model("llama").model.rotary_emb
    parameters = {"original_max_position_embeddings": 64, "factor": 4.0, "width": 1, "step": 0.1}
    with pytest.raises(UserError, match="Odd uses a rotary embedding layout that CLEX does not support"):
        ClexRotary(Odd(base), parameters)
