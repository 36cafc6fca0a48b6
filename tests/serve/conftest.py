"""A real server for the tests of a file."""

import pytest

from serving_tools import serving


@pytest.fixture(scope="module")
def served():
    with serving() as found:
        yield found
