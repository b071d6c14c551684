"""SmolLM2 in the forms that engines take: a folder of float32 safetensors, and .gguf files of other types."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from longlens import Document
from longlens.models import Checkpoint, load_tokenizer, resolve
from longlens.settings.options import Loading

CONTEXT, STRIDE, TOKENS = 512, 128, 1200


def documents() -> list[Document]:
    """Real text: one of several windows, one shorter than a window, one with characters of several bytes."""
    from pydoc_data.topics import topics

    return [
        Document(id="long", text=topics["specialnames"]),
        Document(id="short", text=topics["assert"][:600]),
        Document(id="bytes", text="Ein naïves Café, 漢字 und 🙂.\n" * 40),
    ]


def save_folder(path: Path) -> Path:
    """The embedded model, de-quantized."""
    model, _ = Checkpoint(resolve("smollm2"), Loading(dtype="float32")).load()
    model.save_pretrained(path)
    load_tokenizer("smollm2").save_pretrained(path)
    return path


def save_gguf(path: Path, *, half: bool = False) -> Path:
    """The embedded model as a .gguf file with float32 or float16 matrices."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
    from gguf.quants import dequantize

    source = resolve("smollm2")
    reader = GGUFReader(Path(source.path) / str(source.gguf))
    writer = GGUFWriter(path, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = {"sub_type": field.types[-1]} if field.types[0] == GGUFValueType.ARRAY else {}
        writer.add_key_value(field.name, field.contents(), field.types[0], **kind)
    writer.add_file_type(int(LlamaFileType.MOSTLY_F16 if half else LlamaFileType.ALL_F32))
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.astype(np.float16) if half and values.ndim > 1 else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
