"""Class names in any script: drawn where a font has them, else one warning."""

import warnings

import pytest

from inat_ft.evaluation import figures


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_warned", [])
    figures._fonts_for.cache_clear()


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
    assert figures._fonts_for("狐") == ("DejaVu Sans", other.name)


def test_latin_names_and_dollars_need_nothing(tmp_path) -> None:
    assert draw(tmp_path, ["Käfer", "$x_1$", "a^b {c}"]) == []
