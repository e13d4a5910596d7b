"""English text without images: encyclopedia leads, recipes and a dictionary, from packages.

packages.py  the pinned packages, and what they hold
build.py     the folder with everything in it
"""

from pardalis.corpora.prose.build import ProseConfig, build_prose
from pardalis.corpora.prose.packages import PACKAGES
