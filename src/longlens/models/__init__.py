"""Models: found by name, loaded, and run."""

from longlens.models.load import ADAPTER as ADAPTER
from longlens.models.load import Outline as Outline
from longlens.models.load import check_complete as check_complete
from longlens.models.load import explained as explained
from longlens.models.load import find_device as find_device
from longlens.models.load import find_dtype as find_dtype
from longlens.models.load import hash_files as hash_files
from longlens.models.load import identify as identify
from longlens.models.load import identify_unloaded as identify_unloaded
from longlens.models.load import load_config as load_config
from longlens.models.load import load_encoder as load_encoder
from longlens.models.load import load_scorer as load_scorer
from longlens.models.load import load_tokenizer as load_tokenizer
from longlens.models.load import load_weights as load_weights
from longlens.models.load import max_positions as max_positions
from longlens.models.load import positions_of as positions_of
from longlens.models.resolve import EMBEDDED as EMBEDDED
from longlens.models.resolve import Source as Source
from longlens.models.resolve import check_folder as check_folder
from longlens.models.resolve import resolve as resolve
