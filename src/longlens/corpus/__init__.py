"""Defines documents, and reads them from files, folders, rows and datasets."""

from longlens.corpus.document import Document as Document
from longlens.corpus.document import text_sha256 as text_sha256
from longlens.corpus.files import Sources as Sources
from longlens.corpus.files import read_documents as read_documents
from longlens.corpus.rows import to_documents as to_documents
