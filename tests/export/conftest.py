"""The trained model of the tests of inference."""

from tests.inference.conftest import run  # noqa: F401
