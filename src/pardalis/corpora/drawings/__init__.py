"""Emoji in five styles of drawing, with captions: a corpus made from packages of npm.

The same concept is drawn in each style ("a 3D rendering of a deer", "a flat drawing of a deer"), so
that a concept can be held out, and also a combination of a seen concept with a seen style.

    packages.py      the pinned packages
    styles.py        the drawings of each style
    concepts.py      what is drawn, its name and its split
    build.py         the folder with everything in it
    instructions.py  the same with conversations about it
    cookbook.py      the same with recipes whose ingredients are drawn
"""

from pardalis.corpora.drawings.build import DrawingsConfig, build_drawings
from pardalis.corpora.drawings.cookbook import CookbookConfig, build_cookbook
from pardalis.corpora.drawings.instructions import InstructionsConfig, build_instructions
from pardalis.corpora.drawings.packages import PACKAGES
