"""Threads of what is done with one's own images, on a laptop that is never idle."""

import numpy as np
import pytest
import torch
from folders import blobs
from PIL import Image

from reproduce.kmeans import KMeans
from reproduce.loop import threads
from reproduce.methods import METHODS
from reproduce.own_images import features, grouping, stability
from reproduce.own_images.grouping import Grouping


@pytest.fixture(autouse=True)
def two(monkeypatch):
    """As on two cores whose owner says nothing."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    with threads.as_before():
        torch.set_num_threads(2)
        yield


def watched(monkeypatch, cls, name) -> set[int]:
    """The numbers of threads at which a method of a class was called."""
    seen, real = set(), getattr(cls, name)

    def watch(self, *words, **named):
        seen.add(torch.get_num_threads())
        return real(self, *words, **named)

    monkeypatch.setattr(cls, name, watch)
    return seen


def test_heads_and_the_choice_of_k_take_one(monkeypatch):
    steps = watched(monkeypatch, METHODS["crlc"], "loss")
    x = blobs(3)
    grouping.trained_heads(torch.from_numpy(x).float(), torch.zeros(120, 1, dtype=int), SHORT)
    assert steps == {1} and torch.get_num_threads() == 2
    starts = watched(monkeypatch, KMeans, "fit_predict")
    stability.starts_agree(torch.from_numpy(x).float(), 3)
    assert starts == {1} and torch.get_num_threads() == 2


SHORT = Grouping(n_clusters=3, n_heads=2, steps=3)


class Network:
    """As much of a network as features are taken by."""

    read_side = 8
    net = torch.nn.Linear(1, 1)

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(torch.get_num_threads())
        return images.float().mean((2, 3))


@pytest.mark.parametrize("quicker", [1, 2])
def test_features_take_as_many_as_are_quicker_on_this_machine(tmp_path, monkeypatch, quicker):
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i:02d}.png")
    asked = []
    monkeypatch.setattr(threads, "measured", lambda step, most: asked.append(most) or quicker)
    network, files = Network(), sorted(tmp_path.iterdir())
    taken = features.taken_by(network, tmp_path, files)
    assert network.seen == [quicker] * 2 and asked == [2] and torch.get_num_threads() == 2
    np.testing.assert_array_equal(taken.values, np.arange(40)[:, None].repeat(3, 1))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    features.taken_by(network, tmp_path, files)
    assert network.seen[2:] == [2, 2] and asked == [2]
