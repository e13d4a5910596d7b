"""Retrieval augmentation: an index of documents, and what of it stands before a document."""

from pardalis.retrieval.embedders import (
    EMBEDDERS,
    ClipConfig,
    Embedder,
    EmbedderConfig,
    SeparateNetsConfig,
    TextNetConfig,
)
from pardalis.retrieval.index import Index, IndexConfig, build_index
from pardalis.retrieval.neighbours import Neighbours, write_neighbours
from pardalis.retrieval.retriever import Retrieved, Retriever, RetrieverConfig, laid_out
from pardalis.retrieval.rules import Candidate, RuleConfig, draw, drop_words, select
from pardalis.retrieval.search import ExactSearch, FaissSearch, search_of
from pardalis.retrieval.transform import Retrieval
