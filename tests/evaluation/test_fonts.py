"""Names of classes in figures: any script, where a font has it, and any length and number."""

import warnings

import numpy as np
import pytest
from inat_ft_figures import figures

from inat_ft.metrics.base import Predictions


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_warned", [])


def draw(tmp_path, names: list[str]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with figures.plotting():
            figure, axes = figures.new_figure(3, 2)
            axes.set_yticks(range(len(names)), names)
            axes.set_title(names[0])
        files = figures.save(figure, tmp_path / "figure")
    assert all(file.stat().st_size for file in files)
    assert names[0] in files[1].read_text()
    return [str(warning.message) for warning in caught]


def test_characters_without_a_font_give_one_warning(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_characters", lambda font: frozenset())
    messages = draw(tmp_path, ["狐狸", "兎", "ثعلب"]) + draw(tmp_path, ["蛇"])
    assert len(messages) == 1 and "boxes" in messages[0]


def test_a_font_that_has_the_characters_is_used(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    other = next(e for e in font_manager.fontManager.ttflist if e.name != "DejaVu Sans" and e.style == "normal")
    monkeypatch.setattr(figures, "_characters", lambda font: frozenset("狐") if font == other.fname else frozenset())
    assert draw(tmp_path, ["狐"]) == []
    assert other.name in (tmp_path / "figure.svg").read_text()


def test_latin_names_and_dollars_need_nothing(tmp_path) -> None:
    assert draw(tmp_path, ["Käfer", "$x_1$", "a^b {c}"]) == []


def test_the_font_that_draws_boxes_has_no_characters() -> None:
    from matplotlib import font_manager

    fonts = [each.fname for each in font_manager.fontManager.ttflist if each.name.startswith("Last Resort")]
    assert all(figures._characters(font) == frozenset() for font in fonts)
    assert figures._characters(font_manager.findfont("DejaVu Sans")) > set("abcé")


def test_long_names_are_shortened_and_many_classes_fit() -> None:
    assert figures.shorten("short", 10) == "short"
    assert figures.shorten("a-long-name-of-a-run-1", 11) == "a-lon…run-1"
    for number, names in ((2, 2), (150, 0)):
        with figures.plotting():
            classes = [f"species {each} with a long name, as in a field guide" for each in range(number)]
            figure = figures.draw_confusion(classes, np.eye(number, dtype=np.int64))
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels() if "species" in label.get_text()]
        assert len(labels) == names and all(len(label) <= 32 for label in labels)
        assert max(figure.get_size_inches()) < 40


def test_the_chart_of_classes_shows_those_with_the_lowest_recall() -> None:
    true = np.repeat(np.arange(300), 2)
    predicted = np.where(np.arange(600) < 40, 299 - true, true)
    paths = [f"{number}.png" for number in range(600)]
    with figures.plotting():
        figure = figures._per_class(Predictions(tuple(f"c{n}" for n in range(300)), paths, paths, true, predicted))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 60 and {f"c{n} (2)" for n in range(20)} <= set(names)
    assert figure.axes[0].get_title(loc="left").startswith("Lowest recall of 300 classes")
