"""The new reading of runs beside the old, on the committed runs: the same means."""

import pandas as pd
import pytest

from reproduce import campaign, results
from reproduce.report import ablations, deepcluster, field, study, tables, waterfall

COLUMNS = ["lowest_loss_head_acc", "aligned_average_acc", "kmeans_embedding_acc", "knn_acc"]


@pytest.fixture(scope="module")
def both():
    return results.load(), study.load(limited=True)


def test_the_same_runs(both):
    new, old = (t.sort_values("path").reset_index(drop=True) for t in both)
    pd.testing.assert_frame_equal(new[COLUMNS], old[COLUMNS], check_dtype=False)
    assert list(new["path"]) == list(old["path"]) and list(new["data"]) == list(old["data"])
    assert new["setting"].nunique() == old.groupby(["data", "method", "setting"]).ngroups


def test_the_same_means(both):
    new, old = both
    digits = old[old["limit"] == 0]
    grid = results.select(new, "lambda1", "entropy").groupby(["lambda1", "entropy"])[COLUMNS].mean()
    theirs = study.load()
    theirs = theirs[theirs["grid"] & (theirs["method"] == "crlc")]
    pd.testing.assert_frame_equal(grid, theirs.groupby(["lambda1", "entropy"])[COLUMNS].mean())
    rows = field.methods(digits)
    ours = results.select(new, "method").groupby("method")
    ours = ours["lowest_loss_head_acc"].mean().fillna(ours["kmeans_embedding_acc"].mean())
    pd.testing.assert_series_equal(ours, rows.groupby("key")["acc"].mean(), check_names=False)
    for factor, part in ablations.ablations(digits).items():
        found = results.select(new, factor).groupby(factor)["aligned_average_acc"].mean()
        pd.testing.assert_series_equal(found, part.groupby(factor)["aligned_average_acc"].mean())
    k = results.select(new, "pseudo_clusters", method="deepcluster")
    assert len(k) == len(deepcluster.runs_of(digits))
    ends = ["lowest_loss_head_acc", "path"]
    for block, name in waterfall.BLOCKS.items():
        for star in campaign.blocks()[name]:
            theirs = waterfall.accuracies(old, star, "lowest_loss_head")
            mine = results.variants(new, star).values()
            assert [list(p[ends[0]].sort_values()) for p in mine] == [
                list(p["acc"].sort_values()) for p in theirs
            ]
    heads = results.heads(digits[(digits["method"] == "crlc") & (digits["n_heads"] == 10)])
    assert heads.groupby("rank")["acc"].mean().tolist() == pytest.approx(
        tables.heads(digits).groupby("rank")["acc"].mean().tolist()
    )
    assert len(results.probes(results.select(new, "method"))) == len(deepcluster.probes(digits))
    assert len(results.protocols(results.select(new, "method"))) == len(field.switched(rows))
