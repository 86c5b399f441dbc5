"""The folder of photographs that the guide tries its command on."""

from reproduce import data
from reproduce.config import Config
from reproduce.files import ROOT

EXAMPLE = ROOT / "notebooks" / "photographs"


def test_the_example_is_small_loads_and_says_whose_it_is(tmp_path):
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    config = Config.from_params(
        {"dataset": "folder", "folder": str(EXAMPLE), "image_size": 64, "data_dir": str(tmp_path)}
    )
    images = data.load(config)
    assert images.classes == ("brick", "cat", "coffee", "grass", "gravel")
    assert images.pixels.shape == (200, 3, 64, 64)
    assert images.labels.bincount().tolist() == [40] * 5
    told = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert "CC0" in told and all(f"`{name}`" in told for name in images.classes)
