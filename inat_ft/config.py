"""The configuration of a run: every key, its range, its default and what it means.

Values of plugins (backbones, strategies) stand in the sections `model` and `strategy` and are validated by the plugin.
How a file, flags and `--set` become one RunConfig is told in settings.py.
"""

import re
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inat_ft.errors import ConfigError, PluginError, did_you_mean
from inat_ft.registry import BACKBONES, OPTIMIZERS, STRATEGIES, TRACKERS, Plugin, get, plugins


class Section(BaseModel):
    """A group of settings: frozen, with no key that it does not know. A string below a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PluginSection(Section):
    """A section whose further keys belong to a plugin, which validates them."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that belong to the plugin."""
        return dict(self.__pydantic_extra__ or {})


class DataConfig(Section):
    """Which images, and how they are shown to the network."""

    split: str | None = None
    """The manifest that `inat-ft split` wrote. Default: the one written last under splits/."""
    root: str | None = None
    """Folder of the images, when they have moved since the split."""
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = None
    """Side of the square images, in pixels. Default: what the weights were made for (224 for ResNet50)."""
    eval_image_size: Annotated[int, Field(ge=16, le=1024)] | None = None
    """Side of the images of validation and test, where it is to differ (FixRes). Default: that of the training."""
    resize: Literal["squash", "crop", "pad"] = "squash"
    """How an image becomes a square, for training and evaluation: squash (whole image, its proportions changed); crop
    (shorter side to 256/224 of the size, then the centre); pad (whole image on black)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Of resizing, with antialiasing."""
    augment: Literal["none", "flip", "standard"] = "none"
    """none; flip (left-right at random); standard (random resized crop, flip, colour jitter). Training images only."""
    views: Annotated[int, Field(ge=0, le=64)] = 0
    """With augment=standard: number of fixed variations of each image, cached or not; 0: new ones in every epoch."""
    balance: Literal["none", "weights", "sampler"] = "none"
    """Against class imbalance: weights in the loss, or a sampler that draws every class equally often."""
    changed: Literal["error", "ignore"] = "error"
    """What to do when image files changed since the split."""


class ModelConfig(PluginSection):
    """The network; further keys are the backbone's own options (`inat-ft train --backbone NAME --show-config`)."""

    backbone: str = "resnet50"
    """resnet50, any torchvision classifier, timm:NAME, efficientnet_lite0, cnn, or a plugin's name."""
    weights: str | None = None
    """imagenet, none, a torchvision weights name, or a file. Default: imagenet where the backbone has them."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the features dropped before the last layer."""


class StrategyConfig(PluginSection):
    """What learns; further keys are the strategy's own options (`inat-ft strategies NAME`)."""

    name: str = "head"
    """head, partial, full, or a plugin's name. Default: full for a network without pretrained weights."""


class OptimConfig(PluginSection):
    """How it learns; further keys are the optimizer's own options."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Passes over the training images, at most."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Images per step."""
    lr: Annotated[float, Field(gt=0, le=100)] = 1e-4
    """Learning rate."""
    optimizer: str = "adam"
    """adam, adamw, sgd (with Nesterov momentum), or the name of an installed plugin."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay; biases, normalization, position embeddings, tokens and layer scales are spared."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine that reaches zero after the last step."""
    warmup_epochs: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Epochs over which the learning rate rises linearly; the last of their steps has the full rate."""
    restart: bool = False
    """Begin the schedule anew, warm-up included, whenever something else begins to learn."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate for each layer (block) further from the head, such as 0.75."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Longest gradient, as one vector, that a step takes as it is; longer ones are shortened. 0 never does."""
    mixup: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Blend each image and label with another's, by shares drawn from Beta(mixup, mixup); 0 is off."""
    cutmix: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Paste a box of another image into each, of an area drawn from Beta(cutmix, cutmix); 0 is off."""
    regularize: Literal["none", "l2-sp"] = "none"
    """l2-sp pulls the backbone's weights back to where they started, and the head's to zero."""
    sp_backbone: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Strength of l2-sp on the backbone."""
    sp_head: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Strength of l2-sp on the head."""
    average: Literal["none", "ema", "swa", "wise-ft"] = "none"
    """Weights to validate and keep instead of the last: moving mean, mean of the last epochs, or mixed with the start."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the moving mean that stays at each step; less in the first steps."""
    swa_from: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of the epochs after which those that follow are averaged by swa; the last two are in any case."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the fine-tuned weights in wise-ft; the rest are the weights it started from."""
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    """Parts that a batch is split into, one after the other, to save memory; more when memory runs out all the same."""


class StopConfig(Section):
    """When to stop before the last epoch, and which epoch's weights to keep."""

    monitor: Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"] = "val_accuracy"
    """Metric that decides which epoch is best; ties are broken by the lower validation loss."""
    patience: Annotated[int, Field(ge=0, le=10_000)] = 3
    """Epochs without improvement of the monitored metric before training stops; 0 never stops."""
    min_delta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Change of the monitored metric beyond which it counts as improved."""


class TrackConfig(PluginSection):
    """Where the run is logged; `NAME: {OPTION: VALUE}` logs it to the tracker NAME as well."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Log the run to Weights & Biases."""
    project: str | None = None
    """W&B project. Default: W&B's own."""
    entity: str | None = None
    """W&B user or team. Default: W&B's own."""

    @property
    def trackers(self) -> dict[str, dict[str, Any]]:
        """The options of each tracker in use, by name."""
        wandb = {"mode": self.wandb, "project": self.project, "entity": self.entity}
        return self.options if self.wandb == "off" else {"wandb": wandb, **self.options}

    @model_validator(mode="before")
    @classmethod
    def _tracker_options(cls, raw: Any) -> Any:
        """Validate and complete the options of each tracker. `true` or `{}` selects its defaults, `null` removes it."""
        if not isinstance(raw, Mapping):
            return raw
        section = {name: value for name, value in raw.items() if value is not None}
        if section.get("wandb") in (True, {}):
            section["wandb"] = "online"
        for name in section.keys() - cls.model_fields.keys():
            options = {} if section[name] is True else section[name]
            if not isinstance(options, Mapping):
                known = (*cls.model_fields, *plugins(TRACKERS))
                near = did_you_mean(name, known) or f": it has {', '.join(known)}"
                raise ConfigError(f"unknown key '{name}' in track{near}", "every key: inat-ft train --show-config")
            section[name] = build_tracker(name, dict(options)).model_dump(mode="json")
        return section


class ComputeConfig(Section):
    """Where and how the arithmetic is done."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto, fp32 (exact on a CPU), or bf16 (faster where the hardware has it)."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads that decode images; 0 is one a core."""
    cache: Literal["auto", "none", "packed", "prefix"] = "auto"
    """Keep decoded images (packed), the frozen layers' output (prefix), whichever pays (auto), or nothing."""
    compile: bool = False
    """Compile what learns with torch.compile: worth its minute for long trainings on a GPU."""
    deterministic: bool = False
    """Use only deterministic algorithms: the same bits in every run, on a GPU too (slower there; a CPU always does)."""


class RunConfig(Section):
    """All that decides what a run computes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] | None = None
    """Name of the run and of its folder. Default: backbone, strategy and a number."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides the new head's start, the order of images, dropout and augmentation."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    strategy: StrategyConfig = StrategyConfig()
    optim: OptimConfig = OptimConfig()
    stop: StopConfig = StopConfig()
    track: TrackConfig = TrackConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="before")
    @classmethod
    def _plugin_defaults(cls, raw: Any) -> Any:
        """Fill in what depends on the backbone: its weights, and the strategy that makes sense with them."""
        if not isinstance(raw, Mapping):
            return raw
        model, chosen = _mapping(raw.get("model")), _mapping(raw.get("strategy"))
        if model is None or chosen is None:
            return raw  # of a wrong type, which the field itself reports
        if model.get("weights") is None:
            named = model.get("backbone", ModelConfig().backbone)
            model["weights"] = "imagenet" if backbone_class(str(named)).pretrained else "none"
        chosen.setdefault("name", "full" if model["weights"] == "none" else "head")
        return {**raw, "model": model, "strategy": chosen}

    @field_validator("model")
    @classmethod
    def _backbone_options(cls, section: ModelConfig) -> ModelConfig:
        return section.model_copy(update=build_backbone(section).model_dump(mode="json", exclude={"variant"}))

    @field_validator("strategy")
    @classmethod
    def _strategy_options(cls, section: StrategyConfig) -> StrategyConfig:
        return section.model_copy(update=build_strategy(section).model_dump(mode="json"))

    @field_validator("optim")
    @classmethod
    def _optimizer_options(cls, section: OptimConfig) -> OptimConfig:
        return section.model_copy(update=build_optimizer(section).model_dump(mode="json"))

    @model_validator(mode="after")
    def _warmup_fits(self) -> "RunConfig":
        if self.optim.warmup_epochs > self.optim.epochs:
            raise ValueError(f"optim.warmup_epochs is longer than optim.epochs, {self.optim.epochs}")
        return self

    @model_validator(mode="after")
    def _start_is_worth_keeping(self) -> "RunConfig":
        for key, wanted in (("average", "wise-ft"), ("regularize", "l2-sp")):
            if self.model.weights == "none" and getattr(self.optim, key) == wanted:
                raise ConfigError(
                    f"optim.{key}: {wanted} keeps to the weights it starts from, and those are random here: "
                    f"{self.model.backbone} has weights none",
                    f"leave out --{key} {wanted}, or start from pretrained weights: --weights imagenet, or a file",
                )
        return self


def _mapping(section: Any) -> dict[str, Any] | None:
    if section is None:
        return {}
    if isinstance(section, BaseModel):
        return section.model_dump(exclude_unset=True)
    return dict(section) if isinstance(section, Mapping) else None


def _family(name: str) -> tuple[str, str | None]:
    """A backbone's entry point and variant: `timm:resnet10t` has both, torchvision's go by their own names."""
    family, colon, variant = name.partition(":")
    if colon:
        return family, variant
    claims = plugins(BACKBONES).get(name, [])
    others_alone = claims and not any(plugin.is_builtin for plugin in claims)
    if not claims or (others_alone and backbone_class("torchvision").stands_for(name)):
        return "torchvision", name
    return name, None


def shadowed_plugins(config: RunConfig) -> list[Plugin]:
    """Return the plugins of other packages with the name of the run's backbone, strategy or optimizer that are not used."""
    names = {BACKBONES: config.model.backbone, STRATEGIES: config.strategy.name, OPTIMIZERS: config.optim.optimizer}
    used = [get(group, _family(name)[0] if group == BACKBONES else name) for group, name in names.items()]
    claims = [plugin for group, name in names.items() for plugin in plugins(group).get(name, [])]
    return [plugin for plugin in claims if plugin not in used]


def backbone_class(name: str) -> type[Any]:
    """The plugin class of a backbone's name. Raises ConfigError when unknown, PluginError when broken."""
    return get(BACKBONES, _family(name)[0]).load()


def build_backbone(section: ModelConfig) -> Any:
    """The backbone of a model section, holding its options. Raises ConfigError or PluginError."""
    family, variant = _family(section.backbone)
    plugin = get(BACKBONES, family).load()
    if not variant and "variant" in plugin.model_fields:
        raise ConfigError(f"backbone '{family}' stands for many", f"name one of them: --backbone {family}:NAME")
    options = section.options if variant is None else {**section.options, "variant": variant}
    return _build(plugin, options, "model", ModelConfig, section.backbone)


def build_strategy(section: StrategyConfig) -> Any:
    """The strategy of a strategy section, holding its options. Raises ConfigError or PluginError."""
    return _build(get(STRATEGIES, section.name).load(), section.options, "strategy", StrategyConfig, section.name)


def build_tracker(name: str, options: dict[str, Any]) -> Any:
    """Return the tracker of that name with its options. Raises ConfigError or PluginError."""
    return _build(get(TRACKERS, name).load(), options, f"track.{name}", Section, f"'{name}'")


def build_optimizer(section: OptimConfig) -> Any:
    """Return the optimizer plugin that an optim section names, with its options. Raises ConfigError or PluginError."""
    plugin = get(OPTIMIZERS, section.optimizer)
    loaded = plugin.load()
    if taken := sorted(set(loaded.model_fields) & set(OptimConfig.model_fields)):
        raise PluginError(f"{plugin} has an option '{taken[0]}', but optim.{taken[0]} is already a key of inat-ft")
    return _build(loaded, section.options, "optim", OptimConfig, section.optimizer)


def _build(plugin: type[Section], options: dict[str, Any], where: str, section: type[Section], name: str) -> Section:
    try:
        return plugin(**options)
    except ValidationError as error:
        raise format_validation_error(error, plugin, where, tuple(section.model_fields), f"'{name}'") from None


def format_validation_error(
    error: ValidationError, model: type[BaseModel], where: str = "", also: tuple[str, ...] = (), owner: str = "it"
) -> ConfigError:
    """Pydantic's findings as one ConfigError: each with its key, its value and the nearest right one.

    where: dotted key of `model` in the whole; also: further keys that are known at its top level; owner: who has them.
    """
    lines = []
    for finding in error.errors():
        *sections, key = [str(part) for part in finding["loc"]] or [""]
        expand_key = ".".join(part for part in (where, *sections, key) if part)
        got = finding["input"]
        if finding["type"] == "extra_forbidden":
            home = ".".join(part for part in (where, *sections) if part)
            known = (*_fields(model, sections), *(also if not sections else ()))
            own = _fields(model, sections)
            near = did_you_mean(key, known) or f": {owner} has {', '.join(own) or 'no options'}"
            lines.append(f"unknown key '{key}'{f' in {home}' if home else ''}{near}")
        elif finding["type"] == "literal_error":
            choices = tuple(word.strip("'") for word in re.findall(r"'[^']*'", finding["ctx"]["expected"]))
            near = did_you_mean(str(got), choices)
            lines.append(f"{expand_key}: {got!r} is not one of {', '.join(choices)}{near}")
        elif finding["type"] == "missing":
            lines.append(f"{expand_key}: field required")
        elif finding["type"] == "value_error":
            lines.append(f"{finding['ctx']['error']}")
        else:
            lines.append(f"{expand_key}: {finding['msg'][0].lower()}{finding['msg'][1:]} (got {got!r})")
    return ConfigError("\n".join(lines), "every key: inat-ft train --show-config")


def _fields(model: type[BaseModel], sections: list[str]) -> tuple[str, ...]:
    """The keys of the section at a path, through optional sections and mappings of sections."""
    here: Any = model
    for name in sections:
        if get_origin(here) is dict:
            here = get_args(here)[1]
        else:
            field = here.model_fields.get(name) if hasattr(here, "model_fields") else None
            here = field.annotation if field else None
        if get_origin(here) in (Union, UnionType):
            here = next((inner for inner in get_args(here) if hasattr(inner, "model_fields")), None)
    return tuple(here.model_fields) if hasattr(here, "model_fields") else ()
