"""What the CPU tests ask of masks, layouts, chunks and specials, asked of the Metal backend.

The tests are the same functions; here they run where the device is the software Metal device.
"""

from importlib import import_module

import pytest

pytestmark = pytest.mark.metal

for module in ("chunks", "empty", "layouts", "masks", "merge", "specials"):
    contents = vars(import_module(f"test_{module}")).items()
    tests = {name: test for name, test in contents if name.startswith("test_")}
    assert not tests.keys() & globals().keys(), "two tests of one name"
    globals().update(tests)
