"""``python -m pardalis``, the form in which ``torchrun`` starts it."""

from pardalis.cli.main import main

raise SystemExit(main())
