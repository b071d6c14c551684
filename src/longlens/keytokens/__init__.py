"""Key tokens: their selection, their position in the text, and their exchange format. Does not import torch."""

from longlens.keytokens.exchange import Keys, import_upstream, read_keys, write_keys
from longlens.keytokens.selection import KeySource, KeyTokens, KeyTokensView, select_key_tokens

__all__ = [
    "KeySource",
    "KeyTokens",
    "KeyTokensView",
    "Keys",
    "import_upstream",
    "read_keys",
    "select_key_tokens",
    "write_keys",
]
