"""Why a result is limited, as data: enums with parameters, and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

Kind = TypeVar("Kind", bound=Enum)
WAY_OUT = "To have it checked, make a record from its predictions: inat-ft record new predictions.csv --name NAME"


class CaveatKind(Enum):
    """What limits the result of one classifier; the value is the text, with the parameters in braces."""

    UNREADABLE_PREDICTIONS = "has predictions that cannot be read: {error}"
    NOT_EVALUATED = "has no test_accuracy: it has not been evaluated on a test set{command}"
    NO_PREDICTIONS_FOR_METRIC = "has no predictions, so its {metric} cannot be computed"
    NO_PROBABILITIES = "has predictions without probabilities, so its {metric} cannot be computed"
    UNKNOWN_TEST_SIZE = "does not state its number of test images (num_test), so its accuracy cannot be checked"
    NO_PREDICTIONS = "has no predictions: only an unpaired interval is possible, and its accuracy is unverified"
    IMPOSSIBLE_ACCURACY = "reports an accuracy of {claimed}, which no number of {number:,} images gives"
    CONTRADICTED_ACCURACY = "reports an accuracy of {claimed:.4f}, but its predictions give {computed:.4f}"
    NOT_MOST_PROBABLE = "predicts another class than the most probable one for {count:,} images"
    RARE_CLASSES = (
        "has fewer than {limit} test images in {count:,} of {classes:,} classes, {least} in the rarest: its macro metrics "
        "have wide intervals"
    )
    MEAN_OF_SEEDS = "is the mean of {count} runs with the seeds {seeds}"
    EXCLUDES_WITHOUT_PREDICTIONS = "excludes {other}, which has no predictions on the test set"
    EXCLUDES_DUPLICATE_SEED = "excludes {other}, which has the same seed as {first}"
    EXCLUDES_NOT_COMPARABLE = "excludes {other}: {reason}"
    UNKNOWN_TRAINING_IMAGES = "does not state its training images: whether test images are among them is unknown"
    MISSING_MANIFEST = "was trained with {manifest}, which is missing or has changed: overlap cannot be checked"
    TRAINED_ON_OWN_TEST_IMAGES = "was trained on {count:,} of its own test images: its test accuracy is invalid"
    TRAINED_ON_OTHER_TEST_IMAGES = (
        "was trained on {count:,} of the test images of {other}: its result on them is invalid"
    )
    SAME_ACCURACIES = "has the same validation and test accuracy as {other}: check that they are not the same run"
    TEST_TIME_AUGMENTATION = "averages predictions over mirrored images (--tta flip); others do not"
    REPEATED_TEST_EVALUATIONS = (
        "has a test set that was evaluated {count} times: its result is optimistically biased if these evaluations were "
        "used to choose the model"
    )
    UNVERIFIED = "is unverified: it has neither predictions nor a training history"


class Reason(Enum):
    """Why two classifiers cannot be compared, or only roughly; the value is the text."""

    NO_SCORE = "the {metric} of {name} is unknown"
    DIFFERENT_IMAGES = "they were tested on different images ({shared:,} in common)"
    DIFFERENT_FINGERPRINTS = "they were tested on different images (their fingerprints differ)"
    DIFFERENT_CLASSES = "they have different classes ({classes})"
    DIFFERENT_LABELS = "{count:,} of their test images have different labels"
    NO_PREDICTIONS = "predictions of {names} are missing"
    UNKNOWN_SIZE = "the number of test images of {names} is unknown, so the difference cannot be checked"
    SINGLE_SEED = (
        "{name} has a single seed, so its variance over seeds is unknown; train it with at least one more seed "
        "(inat-ft train ... --seed N), or compare without --group"
    )
    NO_VARIATION = "all test images give the same difference in {metric}, so its error cannot be estimated"


_DIFFERENT_DATA = (
    Reason.DIFFERENT_IMAGES,
    Reason.DIFFERENT_FINGERPRINTS,
    Reason.DIFFERENT_CLASSES,
    Reason.DIFFERENT_LABELS,
)
_JSON_NAMES = {
    **dict.fromkeys(_DIFFERENT_DATA, "different images"),
    Reason.NO_SCORE: "no score",
    Reason.NO_PREDICTIONS: "no predictions",
    Reason.UNKNOWN_SIZE: "unknown size",
    Reason.SINGLE_SEED: "single seed",
    Reason.NO_VARIATION: "no variation",
}


@dataclass(frozen=True)
class _Statement(Generic[Kind]):
    """A kind with its parameters."""

    kind: Kind
    parameters: dict[str, Any]

    @property
    def text(self) -> str:
        """The statement in words."""
        return str(self.kind.value).format(**{key: _shown(value) for key, value in self.parameters.items()})


class Caveat(_Statement[CaveatKind]):
    """What limits the result of one classifier. Its text continues the classifier's name."""

    @classmethod
    def of(cls, kind: CaveatKind, **parameters: Any) -> Caveat:
        """Return a caveat with its parameters."""
        return cls(kind, parameters)

    @property
    def is_leak(self) -> bool:
        """Whether a classifier was trained on test images, so that nothing can be concluded."""
        return self.kind in (CaveatKind.TRAINED_ON_OWN_TEST_IMAGES, CaveatKind.TRAINED_ON_OTHER_TEST_IMAGES)


class NotComparable(_Statement[Reason]):
    """Why two classifiers cannot be compared, or only roughly."""

    @classmethod
    def of(cls, reason: Reason, **parameters: Any) -> NotComparable:
        """Return a reason with its parameters."""
        return cls(reason, parameters)

    @property
    def different_data(self) -> bool:
        """Whether they were tested on different images, labels or classes."""
        return self.kind in _DIFFERENT_DATA

    @property
    def is_unverified(self) -> bool:
        """Whether predictions would make the comparison possible."""
        return self.kind in (Reason.NO_SCORE, Reason.NO_PREDICTIONS, Reason.UNKNOWN_SIZE)

    @property
    def json_name(self) -> str:
        """The reason in the JSON output."""
        return _JSON_NAMES[self.kind]


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(value: Any) -> Any:
    if isinstance(value, _Statement):
        return value.text
    return ", ".join(map(str, value)) if isinstance(value, list) else value
