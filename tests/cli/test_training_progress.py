"""The progress of a training in a terminal."""

import io

import pytest
from rich.console import Console

from inat_ft.cli import render
from inat_ft.cli.train import callbacks
from inat_ft.records import Epoch
from inat_ft.settings import load_config


def test_each_epoch_has_a_bar_that_is_removed_at_its_end(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    drawn = io.StringIO()
    terminal = Console(file=drawn, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr(render, "console", lambda stderr=False: terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = callbacks(load_config(None, [("optim.epochs", 2)]))
    for number in (1, 2):
        shown.on_step(1, 2, None, None)
        shown.on_step(2, 2, 0.25, 0.5)
        shown.on_epoch(
            Epoch(epoch=number, train_loss=0.25, train_accuracy=0.5, val_loss=None, val_accuracy=0.75, seconds=1.0)
        )
        assert f"epoch {number}/2" in drawn.getvalue()
    assert "loss 0.2500  accuracy 0.5000" in drawn.getvalue()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert "val loss not finite acc 0.7500" in lines[0]
