"""The list of commands, in the order in which a user meets them."""

import typer

from inat_ft.cli import (
    cache,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    fetch,
    predict,
    record,
    split,
    strategies,
    sweep,
    train,
)


def add_to(app: typer.Typer) -> None:
    """Give the app its commands."""
    app.command()(demo.demo)
    app.command()(fetch.fetch)
    app.command()(split.split)
    app.command()(train.train)
    app.add_typer(sweep.app)
    app.command("eval")(evaluate.evaluate)
    app.command()(compare.compare)
    app.command()(predict.predict)
    app.command()(export.export)
    app.add_typer(record.app)
    app.command()(strategies.strategies)
    app.command()(cache.cache)
    app.command()(doctor.doctor)
