"""Taxonomic ranks in evaluation and prediction."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from inat_ft_taxa.taxonomy import load_taxonomy

from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.errors import UsageError
from inat_ft.evaluation.predictions import from_probabilities, read_predictions
from inat_ft.metrics.builtin import proportion
from inat_ft.training import train
from tests.conftest import make_images

CATS = ("Felis catus", "Felis silvestris", "Lynx lynx", "blank")
CSV = "label,family,genus\nFelis catus,Felidae,Felis\nFelis silvestris,Felidae,Felis\nLynx lynx,Felidae,Lynx\nblank,,\n"
FOLDERS = {
    "class0": "00001_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax",
    "class1": "00002_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corone",
    "class2": "00003_Plantae_Tracheophyta_Magnoliopsida_Rosales_Moraceae_Morus_alba",
}


def no_manifest() -> Manifest:
    raise AssertionError("the manifest is not needed")


@pytest.fixture
def cats(tmp_path: Path):
    (tmp_path / "taxa.csv").write_text(CSV)
    return load_taxonomy("taxa.csv", CATS, no_manifest)


@pytest.mark.parametrize(
    ("probabilities", "taxon"),
    [
        ([0.9, 0.05, 0.05, 0.0], ("Felis catus", "label", 0.9)),
        ([0.5, 0.35, 0.1, 0.05], ("Felis", "genus", 0.85)),
        ([0.4, 0.2, 0.3, 0.1], ("Felidae", "family", 0.9)),
        ([0.0, 0.0, 0.1, 0.9], ("blank", "label", 0.9)),
        ([0.2, 0.2, 0.2, 0.4], ("", "", 0.6)),
    ],
)
def test_a_prediction_is_reported_at_the_lowest_rank_that_is_sure(cats, probabilities, taxon) -> None:
    found = cats.roll_up(np.array(probabilities), 0.8)
    assert found[:2] == taxon[:2]
    assert found.probability == pytest.approx(taxon[2])


def test_accuracy_by_rank_and_of_reported_taxa(cats, manifest_file: Path) -> None:
    p = np.array([[0.9, 0.05, 0.05, 0.0], [0.5, 0.35, 0.1, 0.05], [0.4, 0.2, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]])
    true = np.array([0, 1, 3, 3])
    found = cats.evaluate(from_probabilities(CATS, (), (), true, p), 0.8, read_manifest(manifest_file), "test")
    ranks = {each["rank"]: each for each in found["ranks"]}
    assert list(ranks) == ["label", "genus", "family"]
    assert [each["num_taxa"] for each in ranks.values()] == [4, 3, 2]
    # The last image has 0.4 for blank, which is the most probable class and genus; as a family, Felidae has 0.6.
    assert [each["accuracy"]["value"] for each in ranks.values()] == [0.5, 0.75, 0.5]
    assert [(each["num_reported"], each["num_correct"]) for each in ranks.values()] == [(1, 1), (1, 1), (1, 0)]
    assert (found["num_unsure"], found["accuracy"]["value"]) == (1, pytest.approx(2 / 3))
    assert ranks["genus"]["accuracy"]["low"] == proportion(3, 4).low


def test_taxa_with_one_name_and_different_parents_are_different(tmp_path: Path) -> None:
    (tmp_path / "taxa.csv").write_text("label,family,genus\ngannet,Sulidae,Morus\nmulberry,Moraceae,Morus\n")
    found = load_taxonomy("taxa.csv", ("gannet", "mulberry"), no_manifest)
    assert [(rank.name, rank.taxa) for rank in found.ranks[1:]] == [
        ("genus", ("Morus", "Morus")),
        ("family", ("Sulidae", "Moraceae")),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,family\nFelis catus,Felidae\n", "no row for the class 'Felis silvestris'"),
        ("label,color\nFelis catus,gray\n", "at least one rank"),
        ("name,family\nFelis catus,Felidae\n", "needs the column label"),
        ("label,family\na,b\na,c\n", "line 3: the label 'a' has other taxa above"),
        ("label,family,family\na,b,c\n", "has the column family twice"),
        ("label,label,family\na,b,c\n", "has the column label twice"),
        ("label,family\na\n", "line 2: 1 values for 2 columns"),
        ("label,family\n" + "".join(f"{name},\n" for name in CATS), "has no taxa"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "taxa.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_taxonomy("taxa.csv", CATS, no_manifest)


@pytest.fixture
def taxon_folders(tmp_path: Path) -> Path:
    folder = make_images(tmp_path / "photos")
    for name, taxon in FOLDERS.items():
        shutil.move(folder / name, folder / taxon)
    return folder


@pytest.mark.slow
def test_eval_and_predict_with_taxa_from_folders(taxon_folders: Path, config, directories, cli) -> None:
    cli("split", taxon_folders, "--classes-from", "species", "--out", "m.csv", "--no-near")
    run = train(config(data__split="m.csv"), directories)[1]
    plain = cli("eval", run, "--json").json
    assert "taxa" not in plain
    found = cli("eval", run, "--taxa", "folders", "--rollup", "0.5", "--json").json
    assert {key: value for key, value in found.items() if key not in ("taxa", "look")} == {
        key: value for key, value in plain.items() if key != "look"
    }
    ranks = {each["rank"]: each for each in found["taxa"]["ranks"]}
    assert list(ranks) == ["label", "genus", "family", "order", "class", "phylum", "kingdom"]
    assert ranks["label"]["accuracy"]["value"] == found["metrics"]["accuracy"]["value"]
    p = read_predictions(run / "predictions-test.csv")
    birds = np.array([name.startswith("Corvus") for name in p.classes])
    both = np.stack([p.probabilities[:, birds].sum(1), p.probabilities[:, ~birds].sum(1)], 1)
    expected = np.equal(both[:, 0] >= both[:, 1], birds[p.true]).mean()
    assert ranks["genus"]["accuracy"]["value"] == pytest.approx(expected)
    assert "unsure at all ranks" in cli("eval", run, "--taxa", "folders").out
    shown = cli("predict", run, taxon_folders, "--taxa", "folders", "--rollup", "0.5", "--out", "p.csv", "--json")
    with open("p.csv") as file:
        rows = list(csv.DictReader(file))
    first, row = shown.json[0], rows[0]
    assert first["taxon"] == {
        "name": row["taxon"],
        "rank": row["rank"],
        "probability": pytest.approx(float(row["p_taxon"])),
    }
    assert "taxon" not in cli("predict", run, taxon_folders, "--json").json[0]
    assert "(label)" in cli("predict", run, taxon_folders, "--taxa", "folders", "--rollup", "0.1").out


def test_wrong_taxa_stop_eval_before_the_test_set_is_evaluated(config, directories, cli, manifest_file: Path) -> None:
    run = train(config(optim__epochs=1), directories)[1]
    ledger = manifest_file.with_name(f"{manifest_file.name}.looks.jsonl")
    before = ledger.read_text() if ledger.exists() else ""
    refused = cli("eval", run, "--taxa", "folders")
    assert (refused.code, "no folder of the images is named like" in refused.err) == (2, True)
    assert cli("eval", run, "--taxa", "missing.csv").code == 2
    assert (ledger.read_text() if ledger.exists() else "") == before


def test_classes_from_a_column_of_a_csv(tmp_path: Path, cli) -> None:
    make_images(tmp_path, each=6)
    lines = [
        f"class{label}/{number:03d}.png,class{label},{'Felidae' if label < 2 else 'Canidae'}"
        for label in range(3)
        for number in range(6)
    ]
    (tmp_path / "images.csv").write_text("\n".join(["path,label,family", *lines]) + "\n")
    found = cli("split", "images.csv", "--classes-from", "family", "--out", "m.csv", "--json").json
    assert found["classes"] == ["Canidae", "Felidae"]
    assert sum(found["counts"]["Felidae"].values()) == 12
    refused = cli("split", "images.csv", "--classes-from", "genus", "--out", "n.csv")
    assert (refused.code, "requires the columns path and genus" in refused.err) == (1, True)


def manifest_of(folders: dict[str, tuple[int, ...]], **made: str) -> Manifest:
    """A manifest with one image in each folder of each class."""
    rows = [(f"{folder}/{label}.png", label) for folder, labels in folders.items() for label in labels]
    labels = np.array([label for _, label in rows])
    classes = tuple(f"c{label}" for label in range(labels.max() + 1))
    paths, subsets = [path for path, _ in rows], np.full(len(rows), 2, np.uint8)
    hashes, groups = [f"{n:064x}" for n in range(len(rows))], [path[:1] for path in paths]
    return Manifest(Path("m.csv"), Path("/"), classes, paths, labels, subsets, hashes, groups, made=dict(made))


def test_a_class_of_several_folders_has_the_ranks_at_which_they_agree() -> None:
    crow, hooded, tree = FOLDERS.values()
    manifest = manifest_of({f"x/{crow}": (0,), f"{hooded}/more": (0,), tree: (1,), "other": (2,)})
    taxonomy = load_taxonomy("folders", manifest.classes, lambda: manifest)
    names = {rank.name: rank.taxa for rank in taxonomy.ranks}
    assert set(names["genus"]) == {"Corvus", "Morus", "c2"}
    assert "species" not in names  # of c0 it is unknown, and so every class would be one of its own
    with pytest.raises(UsageError, match="no folder of the images is named like"):
        load_taxonomy("folders", ("c0",), lambda: manifest_of({"other": (0,)}))


def test_intervals_of_ranks_are_wider_when_images_are_grouped() -> None:
    manifest = manifest_of({**{f"a{n}": (0,) for n in range(12)}, **{f"b{n}": (1,) for n in range(12)}}, group_by="x")
    Path("taxa.csv").write_text("label,genus\nc0,A\nc1,B\n")
    taxonomy = load_taxonomy("taxa.csv", ("c0", "c1"), no_manifest)
    p = np.tile([[0.9, 0.1]], (24, 1))  # right on the whole group a, and wrong on b
    predictions = from_probabilities(("c0", "c1"), manifest.paths, manifest.hashes, manifest.labels, p)
    grouped = taxonomy.evaluate(predictions, 0.8, manifest, "test")
    alone = taxonomy.evaluate(predictions, 0.8, manifest_of({"a": (0,), "b": (1,)}), "test")
    for a, b in zip((*grouped["ranks"], grouped), (*alone["ranks"], alone), strict=True):
        assert a["accuracy"]["value"] == b["accuracy"]["value"] == 0.5
        assert a["accuracy"]["high"] - a["accuracy"]["low"] > b["accuracy"]["high"] - b["accuracy"]["low"]
