"""The configuration of a run: every key with its range, its default and its documentation.

A docstring below a field is its documentation, which `--show-config` and, for a field with a `Flag`, `train --help` show.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from inat_ft.errors import ConfigError, PluginError, did_you_mean
from inat_ft.registry import BACKBONES, OPTIMIZERS, STRATEGIES, TRACKERS, get, plugins, split_backbone
from inat_ft.validation import LIST_KEYS, Allowed, Flag, format_validation_error


class Section(BaseModel):
    """A group of settings, frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PluginSection(Section):
    """A section whose further keys belong to a plugin, which validates them."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class DataConfig(Section):
    """The images and their preprocessing."""

    split: Annotated[str | None, Flag()] = None
    """Manifest from `inat-ft split`. Default: the newest in splits/."""
    root: Annotated[str | None, Flag()] = None
    """Folder of the images, if they moved after the split. Default: the folder in the manifest."""
    image_size: Annotated[int | None, Field(ge=16, le=1024), Flag()] = None
    """Width and height of the network's input, in pixels. Default: that of the pretrained weights, such as 224."""
    eval_image_size: Annotated[int | None, Field(ge=16, le=1024), Flag()] = None
    """The image size for validation and test, in pixels (FixRes). Default: the image size for training."""
    resize: Annotated[Literal["squash", "crop", "pad", "weights"], Flag()] = "squash"
    """Resizing to a square: squash stretches, crop keeps the center, pad adds bars, weights resizes as the weights expect."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation for resizing, with antialiasing. With weights, that of the weights."""
    augment: Annotated[Literal["none", "flip", "standard"], Flag()] = "none"
    """Augmentation of the training images; standard is a random resized crop, horizontal flip and color jitter."""
    views: Annotated[int, Field(ge=0, le=64), Flag()] = 0
    """Fixed variants of each image with standard augmentation, which can be cached; 0 draws new ones every epoch."""
    balance: Annotated[Literal["none", "weights", "sampler"], Flag()] = "none"
    """Handling of class imbalance: class weights in the loss, or a sampler that draws all classes equally often."""
    changed: Literal["error", "ignore"] = "error"
    """What to do if image files changed after the split."""


class ModelConfig(PluginSection):
    """The network. Further keys are the backbone's own options (`inat-ft train --backbone NAME --show-config`)."""

    backbone: Annotated[str, Flag()] = "resnet50"
    """Network: any torchvision classifier, timm:NAME, efficientnet_lite0, cnn, or a plugin."""
    weights: Annotated[str | None, Flag()] = None
    """Pretrained weights: imagenet, none, a torchvision weights name, or a file. Default: imagenet, if available."""
    dropout: Annotated[float, Field(ge=0, lt=1), Flag()] = 0.3
    """Dropout rate before the output layer."""


class StrategyConfig(PluginSection):
    """The fine-tuning strategy. Further keys are its own options (`inat-ft strategies NAME`)."""

    name: Annotated[str, Flag(("--mode", "-m"))] = "head"
    """Strategy: head, partial, full, or another one of `inat-ft strategies`. Default: head; full if weights are none."""


class OptimConfig(PluginSection):
    """Optimization. Further keys are the optimizer's own options."""

    epochs: Annotated[int, Field(ge=1, le=10_000), Flag()] = 5
    """Maximum number of epochs."""
    batch_size: Annotated[int, Field(ge=1, le=65_536), Flag()] = 64
    """Images per optimizer step, over all processes."""
    lr: Annotated[float, Field(gt=0, le=100), Flag(("--lr", "--learning-rate"))] = 1e-4
    """Learning rate."""
    optimizer: Annotated[str, Flag()] = "adam"
    """Optimizer: adam, adamw, sgd (with Nesterov momentum), or a plugin."""
    weight_decay: Annotated[float, Field(ge=0, le=10), Flag()] = 0.0
    """Weight decay. Biases, normalization layers, embeddings, tokens and layer scales are exempt."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), Flag()] = 0.0
    """Label smoothing."""
    schedule: Annotated[Literal["constant", "cosine"], Flag()] = "constant"
    """Learning rate schedule after the warm-up; cosine decays to zero."""
    warmup_epochs: Annotated[float, Field(ge=0, le=1000), Flag()] = 0.0
    """Epochs of linear learning rate warm-up."""
    restart: bool = False
    """Restart the schedule, with its warm-up, when other parameters become trainable."""
    layer_decay: Annotated[float, Field(gt=0, le=1), Flag()] = 1.0
    """Learning rate factor per block, from the output layer back; 0.75 is common, 1 disables it."""
    clip_norm: Annotated[float, Field(ge=0), Flag()] = 0.0
    """Maximum gradient norm; 0 disables clipping."""
    mixup: Annotated[float, Field(ge=0, le=100), Flag()] = 0.0
    """Mixup alpha, such as 0.2; 0 disables mixup."""
    cutmix: Annotated[float, Field(ge=0, le=100), Flag()] = 0.0
    """CutMix alpha, such as 1; 0 disables CutMix."""
    regularize: Annotated[Literal["none", "l2-sp"], Flag()] = "none"
    """Regularization; l2-sp penalizes the distance from the initial weights."""
    sp_backbone: Annotated[float, Field(ge=0, le=100)] = 0.1
    """Strength of l2-sp on the backbone."""
    sp_head: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Strength of l2-sp on the head, whose weights are pulled toward zero."""
    average: Annotated[Literal["none", "ema", "swa", "wise-ft"], Flag()] = "none"
    """Weight averaging: ema (moving average), swa (mean of the last epochs), wise-ft (mean with the initial weights)."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Decay of the moving average; lower in the first steps."""
    swa_from: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Fraction of the epochs after which swa starts to average. It averages the last two epochs at least."""
    alpha: Annotated[float, Field(ge=0, le=1), Flag()] = 0.5
    """WiSE-FT coefficient: 0 keeps the initial weights, 1 the fine-tuned ones. For lora, use strategy.alpha."""
    accumulate: Annotated[int, Field(ge=1, le=1024), Flag()] = 1
    """Gradient accumulation steps per batch; raised automatically when memory runs out."""


class StopConfig(Section):
    """Early stopping, and the epoch whose weights are kept."""

    patience: Annotated[int, Field(ge=0, le=10_000), Flag()] = 3
    """Epochs without improvement before training stops; 0 disables early stopping."""
    monitor: Annotated[Literal["val_accuracy", "val_loss", "train_accuracy", "train_loss"], Flag()] = "val_accuracy"
    """Metric for the best epoch and early stopping; the lower validation loss breaks ties."""
    min_delta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Minimum change of the monitored metric that counts as an improvement."""


class TrackConfig(PluginSection):
    """Experiment tracking. `NAME: {OPTION: VALUE}` logs the run to the tracker NAME, too."""

    wandb: Annotated[Literal["off", "offline", "online"], Flag()] = "off"
    """Log the run to Weights & Biases."""
    project: str | None = None
    """W&B project. Default: that of W&B."""
    entity: str | None = None
    """W&B user or team. Default: that of W&B."""
    files: bool = True
    """Write curves, the confusion matrix and a model card into the run's folder. Off in a sweep."""

    @property
    def trackers(self) -> dict[str, dict[str, Any]]:
        """The options of each tracker in use, by name."""
        wandb = {"mode": self.wandb, "project": self.project, "entity": self.entity}
        return ({"files": {}} if self.files else {}) | ({} if self.wandb == "off" else {"wandb": wandb}) | self.options

    @model_validator(mode="before")
    @classmethod
    def _tracker_options(cls, raw: Any) -> Any:
        """Complete the options of each tracker. `true` or `{}` selects its defaults, `null` removes it."""
        if not isinstance(raw, Mapping):
            return raw
        completed = {name: value for name, value in raw.items() if value is not None}
        if completed.get("wandb") in (True, {}):
            completed["wandb"] = "online"
        for name in completed.keys() - cls.model_fields.keys():
            options = {} if completed[name] is True else completed[name]
            if not isinstance(options, Mapping):
                near = did_you_mean(name, (*cls.model_fields, *plugins(TRACKERS)))
                raise ConfigError(f"unknown key '{name}' in track{near}", LIST_KEYS)
            completed[name] = build_tracker(name, options).model_dump(mode="json")
        return completed


class ComputeConfig(Section):
    """Device, precision and caches."""

    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$"), Allowed("auto, cpu, cuda, cuda:N or mps"), Flag()
    ] = "auto"
    """Device: auto, cpu, cuda, cuda:N, or mps."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], Flag()] = "auto"
    """Numeric precision; auto selects bf16, fp16 or fp32 by the hardware. fp32 is exact on a CPU."""
    workers: Annotated[int, Field(ge=0, le=256), Flag()] = 0
    """Threads that decode images; 0 uses one per core."""
    decode: Annotated[Literal["cpu", "cuda"], Flag()] = "cpu"
    """Where JPEGs are decoded; cuda uses nvJPEG, whose pixels differ slightly, with caches of its own."""
    cache: Annotated[Literal["auto", "none", "packed", "prefix"], Flag()] = "auto"
    """Caches to use: packed (decoded images), prefix (outputs of frozen layers), none, or auto (each one that saves time)."""
    compile: Annotated[bool, Flag()] = False
    """Compile the trainable layers with torch.compile; worthwhile for long training runs on a GPU."""
    deterministic: Annotated[bool, Flag()] = False
    """Use deterministic algorithms only, which is slower on a GPU. Training on a CPU is always deterministic."""


class RunConfig(Section):
    """Everything that decides what a run computes."""

    name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"),
        Allowed("letters, digits, dots, hyphens and underscores, at most 100, with a letter or digit first"),
        Flag(),
    ] = None
    """Name of the run and its folder. Default: backbone, strategy and a number."""
    seed: Annotated[int, Field(ge=0, lt=2**32), Flag()] = 0
    """Random seed of the new output layer, the order of images, dropout and augmentation."""
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
        """Fill in the defaults that depend on the backbone: its weights, and the strategy."""
        if not isinstance(raw, Mapping):
            return raw
        model, chosen = _mapping(raw.get("model")), _mapping(raw.get("strategy"))
        if model is None or chosen is None:
            return raw  # the field reports its wrong type
        if model.get("weights") is None:
            named = str(model.get("backbone", ModelConfig().backbone))
            model["weights"] = "imagenet" if get(BACKBONES, split_backbone(named)[0]).load().pretrained else "none"
        chosen.setdefault("name", "full" if model["weights"] == "none" else "head")
        return {**raw, "model": model, "strategy": chosen}

    @field_validator("model", "strategy", "optim")
    @classmethod
    def _plugin_options(cls, section: Any, info: ValidationInfo) -> Any:
        plugin = BUILDERS[str(info.field_name)](section)
        exclude = {"variant"} if info.field_name == "model" else None
        return section.model_copy(update=plugin.model_dump(mode="json", exclude=exclude))

    @model_validator(mode="after")
    def _is_possible(self) -> "RunConfig":
        if self.optim.warmup_epochs > self.optim.epochs:
            raise ValueError(f"optim.warmup_epochs is greater than optim.epochs, {self.optim.epochs}")
        own = (self.optim.average, "wise-ft"), (self.optim.regularize, "l2-sp"), (self.data.resize, "weights")
        for key, (value, wanted) in zip(("optim.average", "optim.regularize", "data.resize"), own, strict=True):
            if self.model.weights == "none" and value == wanted:
                raise ConfigError(
                    f"{key}: {wanted} needs pretrained weights, but the weights of {self.model.backbone} are none",
                    f"remove --{key.partition('.')[2]} {wanted}, or add --weights imagenet or --weights FILE",
                )
        if self.data.resize == "weights" and self.data.interpolation != "bilinear":
            raise ConfigError("data.interpolation: bicubic has no effect with --resize weights", "remove one of them")
        return self


def _mapping(section: Any) -> dict[str, Any] | None:
    given = section.model_dump(exclude_unset=True) if isinstance(section, BaseModel) else section
    return dict(given or {}) if given is None or isinstance(given, Mapping) else None


def build_backbone(section: ModelConfig) -> Any:
    """Return the backbone that a section names, with its options. Raises ConfigError or PluginError."""
    family, variant = split_backbone(section.backbone)
    if not variant and "variant" in get(BACKBONES, family).load().model_fields:
        raise ConfigError(f"backbone '{family}' needs the name of a network", f"for example: --backbone {family}:NAME")
    options = section.options if variant is None else {**section.options, "variant": variant}
    return _create(BACKBONES, family, options, "model", ModelConfig, section.backbone)


def build_strategy(section: StrategyConfig) -> Any:
    """Return the strategy that a section names, with its options. Raises ConfigError or PluginError."""
    for key in section.options.keys() - get(STRATEGIES, section.name).load().model_fields.keys():
        builtin = [claims[0] for claims in plugins(STRATEGIES).values() if claims[0].is_builtin]
        if modes := ", ".join(plugin.name for plugin in builtin if key in plugin.load().model_fields):
            option = "--unfreeze-from" if key == "unfreeze_from" else f"strategy.{key}"
            raise ConfigError(f"--mode {section.name} has no option {option}", f"modes with {option}: {modes}")
    return _create(STRATEGIES, section.name, section.options, "strategy", StrategyConfig)


def build_tracker(name: str, options: Mapping[str, Any]) -> Any:
    """Return the tracker of that name with its options. Raises ConfigError or PluginError."""
    return _create(TRACKERS, name, options, f"track.{name}")


def build_optimizer(section: OptimConfig) -> Any:
    """Return the optimizer that a section names, with its options. Raises ConfigError or PluginError."""
    plugin = get(OPTIMIZERS, section.optimizer)
    if taken := sorted(set(plugin.load().model_fields) & set(OptimConfig.model_fields)):
        raise PluginError(f"{plugin} has an option '{taken[0]}', but optim.{taken[0]} is already a key of inat-ft")
    return _create(OPTIMIZERS, section.optimizer, section.options, "optim", OptimConfig)


BUILDERS: dict[str, Any] = {"model": build_backbone, "strategy": build_strategy, "optim": build_optimizer}
"""The functions that make the plugin of a section."""


def _create(
    group: str, name: str, options: Mapping[str, Any], where: str, section: type[Section] = Section, shown: str = ""
) -> Any:
    plugin = get(group, name).load()
    try:
        return plugin(**options)
    except ValidationError as error:
        raise format_validation_error(error, plugin, where, tuple(section.model_fields), f"'{shown or name}'") from None
