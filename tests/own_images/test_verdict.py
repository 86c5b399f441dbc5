"""A verdict without labels, and new images that are unlike the run's."""

import numpy as np
import pytest
import torch

from reproduce.own_images import familiar
from reproduce.own_images.familiar import Familiar
from reproduce.own_images.verdict import judge


def votes(k, wrong, n=300, heads=5):
    """Heads that each put a share of the images anywhere."""
    rng, right = np.random.default_rng(0), np.arange(n) % k
    anywhere, lost = rng.integers(0, k, (heads, n)), rng.random((heads, n)) < wrong
    return np.where(lost, anywhere, right)


@pytest.mark.parametrize(
    "wrong, level, said",
    [(0.01, "sound", "stable"), (0.1, "mixed", "most images"), (0.6, "poor", "arbitrary")],
)
def test_agreement_says_what_clusters_are_worth(wrong, level, said):
    found = judge(np.array([100, 100, 100]), votes(3, wrong))
    assert found.level == level and said in found.sentence and found.sentence.endswith(".")
    assert "5 heads from random starts of their own agree by" in found.sentence


def test_sizes_say_what_agreement_does_not():
    together = np.zeros((4, 300), int)
    assert judge(np.array([300, 0, 0]), together).level == "collapsed"
    found = judge(np.array([150, 145, 5, 0]), votes(2, 0))
    assert (found.level, found.empty, found.small) == ("sound", 1, 1)
    assert "1 of 4 clusters are empty, K is too large; 1 is very small." in found.sentence
    assert judge(np.array([150, 150]), votes(2, 0)[:1]).json()["agreement"] is None


def test_an_image_is_unlike_where_the_run_s_own_rarely_are():
    rng = np.random.default_rng(0)
    own = (rng.normal(size=(400, 6)) + 4).astype(np.float32)
    known = Familiar(own)
    unit = own / np.linalg.norm(own, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(400)
    assert (cosine.max(1) < known.least).mean() == pytest.approx(familiar.RARE, abs=0.003)
    new = torch.from_numpy(
        np.concatenate([own[:5], rng.normal(size=(5, 6)) - 4]).astype(np.float32)
    )
    found = known.similarity(new)
    np.testing.assert_allclose(found[:5], 1, atol=1e-5)
    assert (found[5:] < known.least).all()
    nearest = (new[5:].numpy() / np.linalg.norm(new[5:], axis=1, keepdims=True)) @ unit.T
    np.testing.assert_allclose(found[5:], nearest.max(1), atol=1e-5)
    assert familiar.warning(5, 100) == [] and "11 of 100 images" in familiar.warning(11, 100)[0]
    assert familiar.warning(0, 0) == [] and Familiar(own[:1]).least == -1


@pytest.mark.parametrize("name", ["features.npy", "embeddings.npz"])
def test_some_axes_of_a_run_s_features_are_compared_with_nothing(tmp_path, name):
    kept = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    if name == "features.npy":
        np.save(tmp_path / name, kept)
    else:
        np.savez(tmp_path / name, embedding=kept)
    assert familiar.of_run(tmp_path, 6) and familiar.of_run(tmp_path, 8) is None
    assert familiar.of_run(tmp_path / "gone", 6) is None
