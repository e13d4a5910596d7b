"""Demo corpora: documents built from installed packages, with the licence of everything in them."""

from pardalis.corpora.drawings import DrawingsConfig, build_drawings, fetch_packages
from pardalis.corpora.encyclopedia import EncyclopediaConfig, build_encyclopedia
