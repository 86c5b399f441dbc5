"""What a person has changed by hand, and what is left of it when a run is made again."""

import json
from dataclasses import replace

import numpy as np
import pytest

from reproduce.own_images import edits
from reproduce.own_images.edits import Edits
from reproduce.settings import ConfigError

FILES = [f"{i:02d}.png" for i in range(30)]
FOUND = {file: i % 3 for i, file in enumerate(FILES)}  # by a run with K = 3
MADE = Edits(
    names={0: "cats", 1: "dogs", 3: "kittens"},
    merged={2: 1},
    moved={"00.png": 3, "03.png": 3, "05.png": 0, "gone.png": 0},
    known_by=edits.known_by(FILES, FOUND.values(), 3),
)


def by_name(made: Edits, found: dict[str, int]) -> dict[str, str]:
    where = made.clusters(found, found.values())
    return {file: made.title(k) for file, k in zip(found, where.tolist())}


EXPECTED = {file: "cats" if i % 3 == 0 else "dogs" for i, file in enumerate(FILES)} | {
    "00.png": "kittens",
    "03.png": "kittens",
    "05.png": "cats",
}


def test_names_merged_clusters_and_moved_images():
    assert by_name(MADE, FOUND) == EXPECTED
    assert [MADE.name(k) for k in range(5)] == ["cats", "dogs", "dogs", "kittens", ""]
    assert MADE.title(2) == "dogs" and MADE.title(4) == "cluster 4"


def test_a_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / "clusters.json").write_text(json.dumps(edits.to_json(MADE)))
    assert edits.read(tmp_path / "clusters.json") == MADE
    assert len(MADE.known_by[0]) == 10
    many = edits.known_by(map(str, range(1000)), [0] * 1000, 2)
    assert 30 < len(many[0]) <= 60 and many[1] == ()


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 1, 2)])
def test_a_run_made_again_has_other_numbers(order):
    """A few images are in other clusters, too: those moved by hand are where they were put."""
    again = {file: order[k] for file, k in FOUND.items()} | {"06.png": order[1]}
    made = edits.fitted(MADE, again, 3)
    assert by_name(made, again) == EXPECTED | {"06.png": "dogs"}
    assert made.notes == ("clusters.json: 1 of the images that it moves are gone: 'gone.png'",)
    assert edits.fitted(made, again, 3) == made, "nothing changes a second time"


def test_a_run_with_more_or_fewer_clusters():
    more = {file: i % 3 if i < 20 else 3 + i % 2 for i, file in enumerate(FILES)}
    made = edits.fitted(MADE, more, 5)
    named = by_name(made, more)
    assert named["06.png"] == "cats" and named["02.png"] == named["01.png"] == "dogs"
    assert {named[file] for file in FILES[20:]} == {"cluster 3", "cluster 4"}
    assert named["00.png"] == "kittens" and len({*made.clusters(more, more.values())}) == 5
    fewer = {file: int(k > 0) for file, k in FOUND.items()}  # dogs: two clusters, now one
    assert by_name(edits.fitted(MADE, fewer, 2), fewer) == EXPECTED


def test_a_name_that_fits_no_cluster_is_kept_and_said():
    one = dict.fromkeys(FILES, 0)  # a third of it are cats, two thirds dogs
    made = edits.fitted(MADE, one, 1)
    named = by_name(made, one)
    assert set(named.values()) == {"dogs", "kittens", "cats"} and "'cats'" in made.notes[1]
    made = edits.fitted(replace(MADE, merged={}), one, 1)
    named = by_name(made, one)
    assert named["00.png"] == named["03.png"] == "kittens" and named["05.png"] == "cats"
    assert {named[file] for file in FILES} == {"cluster 0", "kittens", "cats"}
    assert made.names[made.moved["05.png"]] == "cats" and "no cluster of this run" in made.notes[1]


def test_a_cluster_that_fell_apart_is_not_found_again():
    """In none of the four that hold cats alone are more than half of them."""
    apart = {file: (i // 3) % 4 if i % 3 == 0 else 4 for i, file in enumerate(FILES)}
    made = edits.fitted(MADE, apart, 5)
    named = by_name(made, apart)
    assert [file for file, title in named.items() if title == "cats"] == ["05.png"], "by hand"
    assert named["01.png"] == named["02.png"] == "dogs" and "'cats'" in made.notes[1]


def test_probabilities_of_merged_clusters_are_added():
    p = np.array([[0.4, 0.3, 0.3], [0.1, 0.5, 0.4], [0.2, 0.3, 0.5]])
    best, margin = MADE.sure(p)
    np.testing.assert_allclose(best, [0.4, 0.9, 0.8])
    np.testing.assert_allclose(margin, [-0.2, 0.8, 0.6])
    best, margin = Edits().sure(p)
    np.testing.assert_allclose(best, p.max(-1))
    np.testing.assert_allclose(margin, [0.1, 0.1, 0.2])


def test_names_yaml_goes_on_working_and_the_page_has_the_last_word(tmp_path):
    table = "file,kmeans_embedding\n" + "".join(f"{f},{k}\n" for f, k in FOUND.items())
    (tmp_path / "assignments.csv").write_text(table)
    (tmp_path / "names.yaml").write_text("0: Katzen\n1: Hunde\n2: Wölfe\n", encoding="utf-8")
    assert edits.of_run(tmp_path, 3).names == {0: "Katzen", 1: "Hunde", 2: "Wölfe"}
    content = edits.to_json(MADE) | {"names": {"0": "", "1": "dogs"}}
    (tmp_path / "clusters.json").write_text(json.dumps(content))
    made = edits.of_run(tmp_path, 3)
    assert made.names == {1: "dogs"} and made.merged == {2: 1} and made.moved["05.png"] == 0
    (tmp_path / "assignments.csv").write_text("file,kmeans_embedding\n./=1.png,0\n")
    assert edits.clusters_of(tmp_path) == {"=1.png": 0}


def test_what_was_there_is_kept_beside_what_is_taken(tmp_path):
    for name in ("cats", "dogs", "dogs", "foxes"):
        (tmp_path / "saved.json").write_text(json.dumps({"format": 1, "names": {"0": name}}))
        edits.take(tmp_path, str(tmp_path / "saved.json"))
    kept = {"clusters": "foxes", "clusters.before": "cats", "clusters.before.2": "dogs"}
    for file, name in kept.items():
        assert edits.read(tmp_path / f"{file}.json").names == {0: name}


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "cannot be read: JSONDecodeError"),
        ("[]", "must hold names and values, got a list"),
        ('{"names": {}}', 'must have "format": 1'),
        ('{"format": 1, "moved": []}', "moved must hold names and values"),
        ('{"format": 1, "names": {"cats": "0"}}', "names: a cluster must be a whole number"),
        ('{"format": 1, "names": {"0": 5}}', "the name of cluster 0 must be a text, got 5"),
        ('{"format": 1, "moved": {"a\\n.png": -1}}', r"moved, 'a\\n.png': a cluster must be"),
        ('{"format": 1, "moved": {"a.png": true}}', "a cluster must be"),
        ('{"format": 1, "merged": {"0": 1, "1": 0}}', "which is in another itself"),
        ('{"format": 1, "known_by": {"0": "a.png"}}', "known_by must list files"),
    ],
)
def test_wrong_files_end_in_a_sentence(tmp_path, content, said):
    (tmp_path / "clusters.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        edits.of_run(tmp_path, 3)
    assert said in str(error.value) and "\n" not in str(error.value)
