"""An illustrated encyclopedia made from installed packages, offline: the corpus of the quickstart.

Drawings come from OpenMoji, their names from the ``emoji`` package, lead paragraphs from Wikipedia.
The packages are the extra ``demo``; their data is read, and never becomes part of this library.

    packages.py  what is installed: drawings, names, articles, and their licences
    concepts.py  which drawings take part, which article belongs to each, and its split
    prose.py     cutting paragraphs at sentences
    pages.py     concepts and articles as documents
    build.py     the folder with everything in it
"""

from pardalis.corpora.encyclopedia.build import EncyclopediaConfig, build_encyclopedia
from pardalis.corpora.encyclopedia.packages import package_versions
