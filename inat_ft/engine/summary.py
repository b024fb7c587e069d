"""What learns, stage by stage, for people to check before they train."""

from __future__ import annotations

from typing import Any

from torch import nn

from inat_ft.engine.plan import TrainingPlan


def stage_table(plan: TrainingPlan, lr: float) -> list[dict[str, Any]]:
    """One row for each stage, the head and the sum, for each stretch of epochs in which the same learns.

    Keys: epochs ("1-5"), stage, parameters, trained, state (trained, part or frozen), lr, batch_norm (train, frozen, part
    or - where there is none).
    """
    rows = []
    first = 0
    for epoch in range(1, len(plan.epochs) + 1):
        if epoch == len(plan.epochs) or plan.starts_phase(epoch):
            rows += _stretch(plan, first, lr, f"{first + 1}-{epoch}" if epoch > first + 1 else f"{epoch}")
            first = epoch
    return rows


def _stretch(plan: TrainingPlan, epoch: int, lr: float, epochs: str) -> list[dict[str, Any]]:
    scales = {id(parameter): scale for parameter, scale in plan.epochs[epoch].scales}
    modules = {**plan.net.stages, f"{plan.net.head_name} (head)": plan.net.head}
    rows = [{"epochs": epochs, "stage": name, **_row(plan, module, scales, lr)} for name, module in modules.items()]
    total = {"parameters": sum(row["parameters"] for row in rows), "trained": sum(row["trained"] for row in rows)}
    return [*rows, {"epochs": epochs, "stage": "total", **total, "state": "", "lr": "", "batch_norm": ""}]


def _row(plan: TrainingPlan, module: nn.Module, scales: dict[int, float], lr: float) -> dict[str, Any]:
    parameters = list(module.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if id(parameter) in scales)
    rates = sorted({scales[id(parameter)] * lr for parameter in parameters if id(parameter) in scales})
    norms = [any(id(p) in scales for p in norm.parameters()) for norm in plan.net.batch_norms(module)]
    state = "frozen" if not trained else "trained" if trained == count else "part"
    batch_norm = "-" if not norms else "train" if all(norms) else "part" if any(norms) else "frozen"
    shown = "" if not rates else f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    return {"parameters": count, "trained": trained, "state": state, "lr": shown, "batch_norm": batch_norm}
