"""The waterfall from invented runs, and the page of the benchmark from invented measurements."""

import json

import matplotlib.pyplot as plt
import pytest
from fake_runs import write_run

from reproduce import campaign
from reproduce.report import speed, study, waterfall


def write_path(results, accs, seeds=(0, 1)):
    """Runs of the first path on digits, the step's accuracy plus a hundredth for the second seed."""
    star = {k: v for k, v in campaign.blocks()["digits"][0].items() if k != "grid"}
    for config, acc in zip(campaign.star_of(star, {}), accs):
        for seed in seeds:
            changed = {k: v for k, v in config.identity().items() if k != "seed"}
            write_run(results, acc + 0.01 * seed, **changed, seed=seed)


def test_a_path_is_drawn_when_each_of_its_steps_was_run(tmp_path):
    write_path(tmp_path, [0.6, 0.9, 0.92, 0.91, 0.95])  # the last of six steps is missing
    assert waterfall.paths(study.load(str(tmp_path)), "digits", "lowest_loss_head") == []
    assert "No path was run yet" in waterfall.read([], "lowest_loss_head").data


def test_bars_start_where_the_one_before_ended(tmp_path):
    write_path(tmp_path, [0.6, 0.9, 0.92, 0.91, 0.95, 0.96])
    (path,) = waterfall.paths(study.load(str(tmp_path)), "digits", "lowest_loss_head")
    assert list(path.groupby("step")["factor"].first()) == [
        "the course's settings", "entropy", "heads' initialisation and bias", "weight decay of weights only", "clamp of the logits", "normalisation"]
    figure, ax = plt.subplots()
    waterfall.draw(path, ax)
    bars = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    assert [end for _, end in bars] == pytest.approx([60.5, 90.5, 92.5, 91.5, 95.5, 96.5])
    assert [start for start, _ in bars] == pytest.approx([0, 60.5, 90.5, 92.5, 91.5, 95.5])
    assert len({p.get_facecolor() for p in ax.patches}) == 3  # the start, what helps, what costs
    plt.close(figure)
    assert "most is worth **entropy**, +30.0" in waterfall.read([path], "lowest_loss_head").data


def test_benchmarks_are_read_but_not_those_of_this_machine(tmp_path):
    row = {f"{part}_images_per_second": 100.0 for part in speed.PARTS} | {
        "precision": "float32", "layout": "channels_last", "augmentation_share": 0.1, "tflops": 0.5, "share_of_product": 0.4}
    content = {"settings": {"backbone": "resnet18", "batch_size": 64}, "image": [3, 32, 32], "device": "a processor", "threads": 2,
               "rows": [row, {**row, "precision": "bfloat16", "step_images_per_second": 300.0}], "plain_images_per_second": 50.0, "times_plain": 6.0}
    for folder in ("benchmarks", "local"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "benchmark-step.json").write_text(json.dumps(content))
    (tmp_path / "benchmarks" / "benchmark-kmeans.json").write_text(json.dumps({"rows": []}))
    (found,) = speed.benchmarks(str(tmp_path))
    assert "**6.0 times** the usual pipeline (50 images/s)" in speed.read([found]).data and "300 images/s in bfloat16" in speed.read([found]).data
    assert list(speed.table(found)["the whole step, images/s"]) == ["100", "300"]
    figure, ax = plt.subplots()
    speed.dots(found, ax)
    assert [list(line.get_xdata()) for line in ax.lines][2] == [100, 300]
    plt.close(figure)
    assert "Nothing measured yet" in speed.read([]).data
