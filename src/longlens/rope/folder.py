"""Model folders with extended context: written from a model's files."""

from __future__ import annotations

import fnmatch
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longlens.errors import UserError
from longlens.files import cannot_write
from longlens.rope.base import CLEX_TYPE, Method
from longlens.rope.config import custom_rope_type, layer_type, rope_parameters, shared_rotary_note, text_config
from longlens.rope.load import COPIED, local_folder
from longlens.settings.options import Loading

if TYPE_CHECKING:
    from longlens.models import Source

CLEX_FILE = "longlens_rope.safetensors"
"""File with CLEX's own weights, until training saves them with the others."""
NOT_COPIED = ("config.json", "adapter_config.json", "trainer_state.json", "*.bin.index.json")


@dataclass(frozen=True, kw_only=True)
class ExtendedModel:
    """Result of `extend`.

    Attributes:
        out: The new folder.
        method: Name of the method.
        before: ``rope_parameters`` of the full-attention layers, and ``max_position_embeddings``.
        after: The same for the new folder.
        notes: Notes for using the folder.
    """

    out: Path
    method: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    notes: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that ``longlens extend --json`` prints."""
        content = {"schema_version": 1, "out": str(self.out), "method": self.method}
        return content | {"before": dict(self.before), "after": dict(self.after), "notes": list(self.notes)}


def extend(name: str, method: Method, out: str | Path, *, trust_remote_code: bool = False) -> ExtendedModel:
    """Writes a model directory with extended context, ready to load.

    The files of a local or Hub model are copied in their dtype; weights of a ``.gguf`` file are written in float32.
    transformers can load the result, except for EABF and CLEX, which only longlens and `load_model` can load.

    Args:
        name: Name or path of the model, as for `longlens.load_scorer`.
        method: The method, such as ``YaRN(factor=4)``.
        out: The new folder; it must not exist.
        trust_remote_code: Allows configs that come with code.

    Raises:
        UserError: The model does not exist or cannot be extended by the method, ``out`` exists, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from longlens import models
    from longlens.rope.clex import ClexRotary
    from longlens.rope.model import build_rotary

    out = Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out} exists: use a new folder for the extended model")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out.parent} is not a folder: create it first")
    source = models.resolve(name)
    models.check_folder(source)
    if (Path(source.path) / models.ADAPTER).is_file():
        raise UserError(
            f"{name} is an adapter: extend its base model, or merge both with peft's merge_and_unload, save the result "
            "and extend that"
        )
    config = models.load_config(source, trust_remote_code=trust_remote_code)
    new, rotary = build_rotary(config, method)
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    clex_file = temporary / CLEX_FILE
    try:
        temporary.mkdir()
        if source.gguf is None:
            with models.loading_errors(source, "model"):
                files = local_folder(source.path)
            _copy(files, temporary, name)
        else:
            _save_gguf(source, temporary)
        new.save_pretrained(temporary)
        if custom_rope_type(new) == CLEX_TYPE:
            parameters = rope_parameters(text_config(new))
            states = {key: ClexRotary(module, parameters).state_dict() for key, module in rotary.items()}
            save_file({f"{key}.{part}": w for key, state in states.items() for part, w in state.items()}, clex_file)
        os.rename(temporary, out)
    except OSError as error:
        raise cannot_write(out, error) from error
    except SafetensorError as error:
        raise UserError(f"cannot write {out}: {error}: make room, or check the folder and its permissions") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExtendedModel(
        out=out, method=method.name, before=_described(config), after=_described(new), notes=_notes(config, new)
    )


def _copy(source: Path, target: Path, name: str) -> None:
    """Copies weights, tokenizer and other files of a model, but neither pickles nor training state."""
    if not any(source.glob("*.safetensors")):
        raise UserError(f"{name} has no weights in safetensors, and longlens does not copy pickles: convert them first")
    for file in sorted(source.iterdir()):
        wanted = any(fnmatch.fnmatch(file.name, pattern) for pattern in COPIED)
        if file.is_file() and wanted and not any(fnmatch.fnmatch(file.name, pattern) for pattern in NOT_COPIED):
            shutil.copyfile(file, target / file.name)


def _save_gguf(source: Source, target: Path) -> None:
    from longlens import models

    model, _ = models.Checkpoint(source, Loading(dtype="float32", device="cpu")).load()
    model.save_pretrained(target)
    models.load_tokenizer(source.name).save_pretrained(target)


def _notes(old: Any, new: Any) -> list[str]:
    notes = []
    before, after = text_config(old), text_config(new)
    kind = custom_rope_type(new)
    if kind is not None:
        notes.append(f"transformers without longlens rejects this directory (rope_type {kind!r})")
    if kind == CLEX_TYPE:
        notes.append("CLEX starts on the ntk-aware trajectory and must be trained")
    if getattr(before, "max_position_embeddings", None) == after.max_position_embeddings:
        length = f"{after.max_position_embeddings:,}"
        notes.append(f"max_position_embeddings stays {length}: longer documents need longlens score --extrapolate")
    if shared := shared_rotary_note(old):
        notes.append(shared)
    window = getattr(after, "sliding_window", None)
    if (
        isinstance(window, int)
        and window > 0
        and getattr(after, "use_sliding_window", True)
        and layer_type(after) is None
    ):
        notes.append(f"layers with a sliding window still attend to {window:,} tokens")
    return notes


def _described(config: Any) -> dict[str, Any]:
    text = text_config(config)
    return {**rope_parameters(text), "max_position_embeddings": getattr(text, "max_position_embeddings", None)}
