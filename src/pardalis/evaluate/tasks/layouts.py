"""The layouts of items, of which a task names one by ``data.kind``."""

from pardalis.config import Kinds
from pardalis.evaluate.tasks.conversations import ConversationsConfig
from pardalis.evaluate.tasks.documents import DocumentsConfig
from pardalis.evaluate.tasks.records import RecordsConfig
from pardalis.evaluate.tasks.standard import STANDARD

LAYOUTS = Kinds(RecordsConfig, DocumentsConfig, ConversationsConfig, *STANDARD)
