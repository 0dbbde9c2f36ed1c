"""The faults that `make mutation` puts into the library, which must fit the code."""

import pytest
from tools import mutation


# Among the default tests it would catch every fault.
pytestmark = pytest.mark.thorough

_faults = mutation.faults()


def test_there_are_many():
    assert len({fault.file for fault in _faults}) > 20
    assert len(set(_faults)) == len(_faults) >= 60


@pytest.mark.parametrize("fault", _faults, ids=lambda fault: fault.file)
def test_fault_fits(fault):
    compile(fault.mutated(), fault.file, "exec")
    for name in fault.tests:
        assert (mutation.ROOT / "tests" / f"{name}.py").exists()
