"""The digits and the features that ship with the package."""

import pytest

from anysigma.data.digits import Digits
from anysigma.metrics.features import ClassifierFeatures


@pytest.fixture(scope="module")
def features():
    return ClassifierFeatures("digits", (1, 8, 8))


@pytest.fixture(scope="module")
def digits():
    return Digits()
