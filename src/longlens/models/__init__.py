"""Finds models by name, loads them, and runs them."""

from longlens.models.checkpoint import Checkpoint as Checkpoint
from longlens.models.checkpoint import check_loading_info as check_loading_info
from longlens.models.checkpoint import identify as identify
from longlens.models.files import ADAPTER as ADAPTER
from longlens.models.files import hash_files as hash_files
from longlens.models.files import load_config as load_config
from longlens.models.files import load_decoder as load_decoder
from longlens.models.files import load_encoder as load_encoder
from longlens.models.files import load_max_length as load_max_length
from longlens.models.files import load_tokenizer as load_tokenizer
from longlens.models.files import loading_errors as loading_errors
from longlens.models.files import model_max_length as model_max_length
from longlens.models.load import UnloadedModel as UnloadedModel
from longlens.models.load import load_scorer as load_scorer
from longlens.models.load import load_transformers as load_transformers
from longlens.models.resolve import EMBEDDED as EMBEDDED
from longlens.models.resolve import Source as Source
from longlens.models.resolve import check_folder as check_folder
from longlens.models.resolve import resolve as resolve
