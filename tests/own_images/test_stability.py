"""K from the features, and how sure it is."""

import numpy as np
import pandas as pd
import pytest
from folders import blobs

from reproduce.own_images.stability import AS_STABLE, agreement, choose_k, stability
from reproduce.settings import ConfigError


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr("reproduce.own_images.stability.STEPS", 60)


def test_k_is_that_of_the_groups():
    table = stability(blobs(4), each=range(2, 7))
    found, said = choose_k(table)
    assert found == 4 and "may be right" not in said and "the next best is" in said, table
    assert table["heads"].between(-1, 1).all() and table["K"].tolist() == [*range(2, 7)]


def test_images_without_groups_are_said_to_have_none():
    table = stability(np.random.default_rng(0).normal(size=(120, 16)), each=(2, 3, 4))
    assert any(word in choose_k(table)[1] for word in ("may be right", "no clear groups")), table


def test_how_sure_it_is():
    def said(*heads):
        return choose_k(pd.DataFrame({"K": range(2, 2 + len(heads)), "heads": heads}))

    assert said(0.4, 0.9, 0.6)[0] == 3 and "next best is K = 4 with 0.60" in said(0.4, 0.9, 0.6)[1]
    close = said(0.4, 0.9, 0.91 - AS_STABLE)
    assert close[0] == 3 and "with K = 4: any of these may be right" in close[1]
    assert "no clear groups" in said(0.1, 0.3, 0.2)[1]


def test_few_images_and_few_clusterings():
    assert stability(blobs(2, 3))["K"].tolist() == [2, 3]
    with pytest.raises(ConfigError, match="there are 3 images: at least 4"):
        stability(blobs(3, 1))
    assert agreement([[0, 0, 1, 1], [1, 1, 0, 0]]) == 1 and np.isnan(agreement([[0, 1]]))
