"""Training data: mixtures, packing, offline LongCE weights, conversations. Does not import torch."""

from longlens.data.chat import ChatCounts as ChatCounts
from longlens.data.chat import chat_dataset as chat_dataset
from longlens.data.mixture import mix as mix
from longlens.data.packing import BestFit as BestFit
from longlens.data.packing import Fill as Fill
from longlens.data.packing import pack as pack
from longlens.data.packing import pack_dataset as pack_dataset
from longlens.data.recipe import Mixture as Mixture
from longlens.data.recipe import MixtureSource as MixtureSource
from longlens.data.recipe import read_mixture as read_mixture
from longlens.data.weigh import weigh as weigh
