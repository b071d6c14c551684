"""The model of a recipe: its config extended before it is loaded, its sliding window off, adapters on it."""

from __future__ import annotations

import copy
from typing import Any

from longlens.errors import UserError, require
from longlens.settings.options import Loading
from longlens.train.recipe import Recipe


def plan_config(recipe: Recipe) -> Any:
    """The config that the model is loaded with, None for its own; weights are not needed.

    Raises:
        UserError: No such model, one that the method does not extend, or one without a sliding window to turn off.
    """
    from longlens import models
    from longlens.rope.config import extend_config
    from longlens.rope.model import build_rotary

    source = models.resolve(recipe.model)
    models.check_folder(source)
    config = models.load_config(source, trust_remote_code=recipe.load.trust_remote_code)
    plain, extend, after = config, recipe.method("extend"), recipe.method("after")
    if recipe.load.full_attention:
        config = without_sliding_window(config)
    if extend is not None:
        config, _ = build_rotary(config, extend)
    if after is not None:
        extend_config(config, after)
    return None if config is plain else config


def without_sliding_window(config: Any) -> Any:
    """A new config in which all layers attend to everything.

    Raises:
        UserError: It has no sliding window, or in some layers alone, which belongs to how the model was made.
    """
    new = copy.deepcopy(config)
    text = new.get_text_config(decoder=True)
    is_off = not getattr(text, "sliding_window", None) or getattr(text, "use_sliding_window", True) is False
    if is_off:
        raise UserError(f"load.full_attention: {text.model_type} has no sliding window to turn off: leave it out")
    types = getattr(text, "layer_types", None) or []
    if len(set(types)) > 1:
        raise UserError(
            f"load.full_attention: {text.model_type} has a sliding window in some layers alone, beside layers that "
            "attend to everything: it is made for long context as it is, leave it out"
        )
    text.sliding_window = None
    if hasattr(text, "use_sliding_window"):
        text.use_sliding_window = False
    if types:
        text.layer_types = ["full_attention"] * len(types)
    return new


def load_for_training(recipe: Recipe, config: Any) -> Any:
    """The model, with adapters where the recipe has them.

    Args:
        recipe: Says which, and how.
        config: Of `plan_config`.

    Raises:
        UserError: It cannot be loaded, or lacks weights.
    """
    from longlens import models

    load = recipe.load
    loading = Loading(
        dtype=load.dtype,
        device="cpu",  # the trainer moves it
        attention=load.attention,
        trust_remote_code=load.trust_remote_code,
        allow_pickle=load.allow_pickle,
    )
    model, loading_info = models.load_weights(models.resolve(recipe.model), loading, config=config)
    models.check_loading_info(
        recipe.model, model, loading_info, "give a causal language model with its vocabulary head"
    )
    return model if recipe.lora is None else _with_adapters(model, recipe)


def _with_adapters(model: Any, recipe: Recipe) -> Any:
    peft: Any = require("peft", extra="train", purpose="lora")
    lora = recipe.lora
    assert lora is not None
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules,
        modules_to_save=list(lora.modules_to_save) or None,
    )
    try:
        adapted = peft.get_peft_model(model, config)
    except ValueError as error:  # peft: no module has such a name
        raise UserError(f"lora: {' '.join(str(error).split())[:300]}: check target_modules") from error
    if recipe.training.gradient_checkpointing:
        # Else nothing that the first checkpointed layer gets has a gradient.
        adapted.enable_input_require_grads()
    return adapted
