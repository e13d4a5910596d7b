"""Tasks with exact answers, made from the data of packages: for evaluation without other downloads.

    packages.py      what is fetched
    materials.py     what is read of it: emoji, countries, senses, articles; and their splits
    questions.py     what questions share: fields, images, wrong choices
    drawings.py      names in several languages, groups, odd ones out, styles
    flags.py         countries, capitals, regions
    scenes.py        counting, colours, positions, prompts for text-to-image
    dictionary.py    the word of a definition, kinds of things
    encyclopedia.py  titles, topics and names of articles
    stamps.py        captions in several languages; their package is large, and fetched apart
    build.py         the folder with everything in it

A family is a file with a tuple ``BENCHMARKS``, and one more entry in ``build.py``.
"""

from pardalis.corpora.benchmarks.build import BENCHMARKS, BenchmarksConfig, build_benchmarks
from pardalis.corpora.benchmarks.packages import PACKAGES, STAMPS
