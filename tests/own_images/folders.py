"""Small folders of images for tests."""

import numpy as np
from PIL import Image


def photographs():
    """Crops of real photographs that packages ship, upright and mirrored, by what they show."""
    from sklearn.datasets import load_sample_images

    return dict(zip(("temple", "flower"), load_sample_images().images))


def crops(folder, n=12, side=160, seed=0):
    """n crops of each photograph, in one folder; returns the files of each."""
    rng, files = np.random.default_rng(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in photographs().items():
        for i in range(n):
            top, left = (rng.integers(0, s - side) for s in pixels.shape[:2])
            part = Image.fromarray(pixels[top : top + side, left : left + side])
            files[f"{name}{i:02d}.png"] = name
            part.save(folder / f"{name}{i:02d}.png")
    return files


def blobs(k, n=40, d=16, seed=0):
    """Features of k groups of n images each, float32 ``[k n, d]``, in the groups' order."""
    rng = np.random.default_rng(seed)
    centres = 5 * rng.permutation(np.eye(d))[:k]
    return (centres.repeat(n, 0) + rng.normal(size=(k * n, d))).astype(np.float32)
