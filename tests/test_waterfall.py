"""The waterfall from invented runs, and the page of the benchmark from invented measurements."""

import json

import matplotlib.pyplot as plt
import pytest
from fake_runs import write_run

from reproduce import campaign
from reproduce.config import Config
from reproduce.report import findings, speed, study, tables, waterfall


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
    assert "No path was run yet" in waterfall.read({"digits": []}, "lowest_loss_head").data


def test_bars_start_where_the_one_before_ended(tmp_path):
    write_path(tmp_path, [0.6, 0.9, 0.92, 0.91, 0.95, 0.96])
    (path,) = waterfall.paths(study.load(str(tmp_path)), "digits", "lowest_loss_head")
    assert list(path.groupby("step")["factor"].first()) == [
        "the course's settings",
        "entropy",
        "heads' initialisation and bias",
        "weight decay of weights only",
        "clamp of the logits",
        "normalisation",
    ]
    figure, ax = plt.subplots()
    waterfall.draw(path, ax)
    bars = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    assert [end for _, end in bars] == pytest.approx([60.5, 90.5, 92.5, 91.5, 95.5, 96.5])
    assert [start for start, _ in bars] == pytest.approx([0, 60.5, 90.5, 92.5, 91.5, 95.5])
    assert len({p.get_facecolor() for p in ax.patches}) == 3  # the start, what helps, what costs
    plt.close(figure)
    assert (
        "**digits**: from 60.5"
        in (said := waterfall.read({"digits": [path]}, "lowest_loss_head").data)
        and "most is worth **entropy**, +30.0" in said
    )


def write_block(results, name, acc):
    """Two seeds of each run of a block, ACC by a function of its configuration."""
    for config in campaign.block(name, {}):
        write_run(
            results,
            acc(config),
            **{
                k: v
                for k, v in config.identity().items()
                if v != getattr(Config(), k) or k == "seed"
            },
        )


def test_single_factors_from_both_ends(tmp_path):
    """An entropy that is worth 20 points from either end, a stem that is worth 5 only once the entropy is mended."""

    def acc(config):
        mended = config.entropy == "batch"
        return 0.4 + 0.2 * mended + 0.05 * (mended and config.stem == "cifar") + 0.001 * config.seed

    write_block(tmp_path, "cpu", acc)
    runs, data = study.load(str(tmp_path), limited=True), "CIFAR-10, 5,000 images"
    ends = waterfall.singles(runs, data, "lowest_loss_head")
    found = waterfall.singles_table(ends)
    added, taken = found.columns
    assert added.startswith("added to the course's settings (40.1") and taken.startswith(
        "taken from the authors' settings (65.1"
    )
    assert list(found.index) == [
        "entropy",
        "stem",
        "crop, jitter, normalisation",
        "heads, weight decay, clamp",
    ]
    number = {c: [float(v.split("\u00a0")[0].replace("−", "-")) for v in found[c]] for c in found}
    assert number[added] == pytest.approx([20, 0, 0, 0]) and number[taken] == pytest.approx(
        [-25, -5, 0, 0]
    )
    assert waterfall.read_singles(ends).data == (
        "Added to the course's settings, by more than two standard errors: *entropy*; taken from the authors' settings, "
        "by more than two standard errors: *entropy*, *stem*. From both ends: *entropy*."
    )
    (path,) = waterfall.paths(runs, data, "lowest_loss_head")
    assert [100 * part["acc"].mean() for _, part in path.groupby("step")] == pytest.approx(
        [40.1, 60.1, 65.1, 65.1, 65.1]
    )


def test_runs_on_a_part_of_a_data_set_are_called_that_and_stay_out_of_the_tables(tmp_path):
    for acc, limit in ((0.5, 0), (0.9, 300)):
        write_run(tmp_path, acc, limit=limit)
    assert list(study.load(str(tmp_path))["limit"]) == [0]
    both = study.load(str(tmp_path), limited=True)
    assert dict(zip(both["data"], both["limit"])) == {"digits": 0, "digits, 300 images": 300}
    assert list(study.load(str(tmp_path), "digits, 300 images")["limit"]) == [300]
    write_run(tmp_path / "other", 0.9, limit=300)
    assert list(study.load(str(tmp_path / "other"))["limit"]) == [
        300
    ]  # nothing else there: then they are what there is


def test_benchmarks_are_read_but_not_those_of_this_machine(tmp_path):
    row = {f"{part}_images_per_second": 100.0 for part in speed.PARTS} | {
        "precision": "float32",
        "layout": "channels_last",
        "augmentation_share": 0.1,
        "tflops": 0.5,
        "share_of_product": 0.4,
        "first_step_seconds": 38.2,
    }
    content = {
        "settings": {"backbone": "resnet18", "batch_size": 64},
        "image": [3, 32, 32],
        "device": "a processor",
        "threads": 2,
        "compile": True,
        "rows": [row, {**row, "precision": "bfloat16", "step_images_per_second": 300.0}],
        "plain_images_per_second": 50.0,
        "times_plain": 6.0,
    }
    for folder in ("benchmarks", "local"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "benchmark-step.json").write_text(json.dumps(content))
    (tmp_path / "benchmarks" / "benchmark-kmeans.json").write_text(json.dumps({"rows": []}))
    (found,) = speed.benchmarks(str(tmp_path))
    assert (
        "**6.0 times** the usual pipeline (50 images/s)" in speed.read([found]).data
        and "300 images/s in bfloat16" in speed.read([found]).data
    )
    assert list(speed.table(found)["the whole step, images/s"]) == ["100", "300"] and list(
        speed.table(found).iloc[:, -1]
    ) == ["38", "38"]
    assert found["name"] == "resnet18, 32 pixels, batch 64, compiled\na processor, 2 threads"
    figure, ax = plt.subplots()
    speed.dots(found, ax)
    assert [list(line.get_xdata()) for line in ax.lines][2] == [100, 300]
    plt.close(figure)
    assert "Nothing measured yet" in speed.read([]).data


def test_the_time_at_which_a_number_was_crossed(tmp_path):
    for seed, accs in enumerate(([0.5, 0.81, 0.79], [0.79, 0.78, 0.7989], [0.8, 0.7, 0.7])):
        path = write_run(tmp_path, accs[-1], dataset="cifar10", backbone="resnet18", seed=seed)
        lines = [f"{10 * (i + 1)},{60 * (seed + 1)},{acc}" for i, acc in enumerate(accs)]
        (path / "history.csv").write_text(
            "epoch,seconds,lowest_loss_head_acc\n" + "\n".join(lines) + "\n"
        )
    said = findings.crossed(study.load(str(tmp_path)))
    assert said.startswith(
        "CIFAR-10 reached 79.9 % by the lowest-loss head in 2 runs; resnet18, seed 0: epoch 20, 2.0 minutes"
    )
    assert "seed 2: epoch 10, 3.0 minutes" in said and "seed 1" not in said
    assert "No run on CIFAR-10 has reached 95 %" in findings.crossed(
        study.load(str(tmp_path)), acc=95
    )


def test_how_decided_the_predictions_are(tmp_path):
    """The invented traces end at 0.96; a run of another weight is not asked, nor one that has kept no traces."""
    write_run(tmp_path, arrays=True)
    write_run(tmp_path, arrays=True, entropy="sample", lambda1=0.1)
    write_run(tmp_path, entropy="sample")
    runs = study.load(str(tmp_path))
    assert waterfall.read_certainty(runs, "digits").data == (
        "digits, mean largest probability of an image at the end, λ1 = 1: "
        "0.54 to 0.54 with the entropy of the batch mean (n = 1 settings). One seed a setting."
    )
    assert waterfall.read_certainty(runs, "CIFAR-10").data == ""


def test_steps_of_a_path_are_no_single_factors(tmp_path):
    """What changes two details at once is left to the waterfall; one of them alone is a factor."""
    write_path(tmp_path, [0.6, 0.9, 0.92, 0.91, 0.95, 0.96])
    course = campaign.star_of({"settings": "digits-course"}, {})[0]
    for change in ({"decay": "weights"}, {"logit_clamp": 25.0}):
        config = course.replace(**change)
        write_run(tmp_path, 0.6, **{k: v for k, v in config.identity().items() if k != "seed"})
    factors = list(tables.factors(study.load(str(tmp_path)))["factor"].unique())
    assert factors == [
        "digits-course, as it is",
        "decay weights",
        "logit_clamp 25",
        "entropy batch, entropy_smoothed False",
    ]
    assert (
        len(tables.halfway()) == 8
    )  # three on each path of digits; of blocks 1 and cpu, where singles start from both ends, one
