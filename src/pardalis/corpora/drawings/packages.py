"""The packages of npm that the drawings come from."""

from pardalis.corpora.packages import Package

OPENMOJI = Package(
    "openmoji",
    "17.0.0",
    "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "CC BY-SA 4.0",
    "All emojis designed by OpenMoji, the open-source emoji and icon project "
    "(https://openmoji.org). License: CC BY-SA 4.0.",
)
FLUENT_3D = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
    "Fluent Emoji, by Microsoft Corporation (https://github.com/microsoft/fluentui-emoji); "
    "packaged by LobeHub.",
)
FLUENT_FLAT = Package(
    "@iconify-json/fluent-emoji-flat",
    "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    "MIT",
    "Fluent Emoji, by Microsoft Corporation (https://github.com/microsoft/fluentui-emoji); "
    "packaged by Iconify.",
)
NOTO = Package(
    "@iconify-json/noto",
    "1.2.9",
    "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "Apache-2.0",
    "Noto Emoji, by Google Inc (https://github.com/googlefonts/noto-emoji); packaged by Iconify.",
)
TWEMOJI = Package(
    "@iconify-json/twemoji",
    "1.2.5",
    "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    "CC BY 4.0",
    "Twemoji, by Twitter, Inc and other contributors (https://github.com/jdecked/twemoji); "
    "packaged by Iconify. License: CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/).",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
    "Emojibase, by Miles Johnson (https://emojibase.dev); the names follow Unicode CLDR (Unicode "
    "License v3).",
)

PACKAGES = (OPENMOJI, FLUENT_3D, FLUENT_FLAT, NOTO, TWEMOJI, EMOJIBASE)
