"""A table of what is trainable, stage by stage, for `train --dry-run`."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from inat_ft.engine.plan import TrainingPlan


def stage_table(plan: TrainingPlan, lr: float) -> list[dict[str, Any]]:
    """Return one row for each stage, the head and the total, for each phase of the plan.

    Keys: epochs ("1-5"), stage, parameters, trained, state (trained, part or frozen), lr, batch_norm (train, frozen, part,
    or - without BatchNorm).
    """
    return [row for first, last in plan.phases for row in _phase(plan, first, last, lr)]


def _phase(plan: TrainingPlan, first: int, last: int, lr: float) -> list[dict[str, Any]]:
    epochs = f"{first + 1}-{last}" if last > first + 1 else f"{last}"
    scales = plan.epochs[first].scales
    modules = {**plan.net.stages, f"{plan.net.head_name} (head)": plan.net.head}
    rows = [{"epochs": epochs, "stage": name, **_row(plan, module, scales, lr)} for name, module in modules.items()]
    total = {"parameters": sum(row["parameters"] for row in rows), "trained": sum(row["trained"] for row in rows)}
    return [*rows, {"epochs": epochs, "stage": "total", **total, "state": "", "lr": "", "batch_norm": ""}]


def _row(plan: TrainingPlan, module: nn.Module, scales: Mapping[nn.Parameter, float], lr: float) -> dict[str, Any]:
    parameters = list(module.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter in scales)
    rates = sorted({scales[parameter] * lr for parameter in parameters if parameter in scales})
    norms = [any(p in scales for p in norm.parameters()) for norm in plan.net.batch_norms(module)]
    state = "frozen" if not trained else "trained" if trained == count else "part"
    batch_norm = "-" if not norms else "train" if all(norms) else "part" if any(norms) else "frozen"
    shown = "" if not rates else f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g} to {rates[-1]:g}"
    return {"parameters": count, "trained": trained, "state": state, "lr": shown, "batch_norm": batch_norm}
