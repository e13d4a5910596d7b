"""Documents and tokens are usable, and quick to import, without torch."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["pardalis", "pardalis.tokens", "pardalis.documents", "pardalis.cli.main"]
)
def test_does_not_import_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
