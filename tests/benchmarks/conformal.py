"""Coverage of prediction sets, and accuracy of accepted images, by simulation.

    python -m tests.benchmarks.conformal [--repetitions N]

In each repetition, sets are calibrated on n images and measured on other images. `calibrated` and `overconfident` draw labels
from known probabilities: 10 equally frequent classes, and 50 classes of very different frequencies with a network that
neglects the rare ones and exaggerates. `digits` are the embedded digits with a classifier that was fitted to 100 of them.
Two more show what the guarantee does not include: `chosen`, a network that was chosen on the calibration images, and
`shifted`, images of another distribution.
"""

import argparse
from functools import partial

import numpy as np
from inat_ft_conformal.selective import risk_coverage, select
from inat_ft_conformal.sets import fit_thresholds, in_set
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from inat_ft.metrics.base import Predictions
from tests.benchmarks.reporting import report

SIZES = (200, 500, 2000)
COVERAGES = (0.9, 0.95)
TEST = 1000


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def sample(rng, images: int, prior: np.ndarray, sharpness: float, neglect: float, noise: float):
    """Return the probabilities of a network and the labels. neglect: weight of the log prior that the network adds."""
    logits = rng.normal(0, sharpness, (images, len(prior))) + np.log(prior)
    true = (softmax(logits).cumsum(1) > rng.uniform(size=(images, 1))).argmax(1)
    said = logits + neglect * np.log(prior) + rng.normal(0, noise, logits.shape)
    return softmax((1 + 2 * neglect) * said), true.astype(np.int64)


def calibrated(rng, n: int, sharpness: float = 4.0):
    draw = partial(sample, rng, prior=np.full(10, 0.1), neglect=0.0, noise=0.0)
    return draw(n, sharpness=4.0), draw(TEST, sharpness=sharpness)


def overconfident(rng, n: int):
    prior = 1 / np.arange(1, 51)
    draw = partial(sample, rng, prior=prior / prior.sum(), sharpness=5.0, neglect=0.3, noise=1.0)
    return draw(n), draw(TEST)


def digits(rng, n: int):
    values, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    model = LogisticRegression(C=0.01, max_iter=5000).fit(values[order[:100]], labels[order[:100]])
    rows = order[100:]
    p = model.predict_proba(values[rows])
    if n > len(rows) - 500 or len(model.classes_) < 10:
        return None
    return (p[:n], labels[rows[:n]]), (p[n:], labels[rows[n:]])


def chosen(rng, n: int, networks: int = 20):
    """The network with the highest accuracy on the calibration images, of several equally good ones."""
    prior, best = np.full(10, 0.1), None
    logits = rng.normal(0, 4.0, (n + TEST, 10))
    true = (softmax(logits).cumsum(1) > rng.uniform(size=(n + TEST, 1))).argmax(1)
    for _ in range(networks):
        p = softmax(logits + rng.normal(0, 1.0, logits.shape) + np.log(prior))
        accuracy = (p[:n].argmax(1) == true[:n]).mean()
        if best is None or accuracy > best[0]:
            best = accuracy, p
    return (best[1][:n], true[:n]), (best[1][n:], true[n:])


def shifted(rng, n: int):
    """Images that are harder to tell apart than those of the calibration, for a network that does not notice."""
    calibration, _ = calibrated(rng, n)
    logits = rng.normal(0, 4.0, (TEST, 10))
    true = (softmax(0.5 * logits).cumsum(1) > rng.uniform(size=(TEST, 1))).argmax(1)
    return calibration, (softmax(logits), true)


DATA = {
    "calibrated": calibrated,
    "overconfident": overconfident,
    "digits": digits,
    "chosen": chosen,
    "shifted": shifted,
}


def predictions(p: np.ndarray, true: np.ndarray) -> Predictions:
    return Predictions(tuple(map(str, range(p.shape[1]))), (), (), true, p.argmax(1), p)


def one(draw, n: int, coverage: float, rng: np.random.Generator) -> dict[str, float] | None:
    drawn = draw(rng, n)
    if drawn is None:
        return None
    (p, true), (test, labels) = drawn
    rows, found = np.arange(len(labels)), {}
    for by_class in (False, True):
        members = in_set(test, fit_thresholds(p, true, coverage, by_class))
        name = "by_class" if by_class else "marginal"
        found[name] = float(members[rows, labels].mean())
        if not by_class:
            alone = members.sum(1) == 1
            right = labels == test.argmax(1)
            found |= {"size": float(members.sum(1).mean()), "accepted": float(alone.mean())}
            found["accepted_right"] = float((right & alone).sum())
            found["accepted_images"] = float(alone.sum())
    chosen_95 = select(risk_coverage(predictions(p, true)), predictions(test, labels), 0.95)
    if chosen_95.share.value:
        found |= {"share_95": chosen_95.share.value, "reached_95": chosen_95.reached.value}
    found["accuracy"] = float((labels == test.argmax(1)).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=500)
    parser.add_argument("--only", nargs="*", choices=list(DATA), default=list(DATA))
    given = parser.parse_args()
    results = []
    for name in given.only:
        for n in SIZES:
            for coverage in COVERAGES:
                rng = np.random.default_rng([n, round(100 * coverage)])
                rows = [one(DATA[name], n, coverage, rng) for _ in range(given.repetitions)]
                kept = [row for row in rows if row is not None]
                if not kept:
                    continue
                keys = dict.fromkeys(key for row in kept for key in row)
                mean = {key: float(np.nanmean([row.get(key, np.nan) for row in kept])) for key in keys}
                mean["accepted_accuracy"] = mean.pop("accepted_right") / mean.pop("accepted_images")
                spread = float(np.std([row["marginal"] for row in kept]))
                result = {"data": name, "n": n, "coverage": coverage, **mean, "spread": spread}
                results.append(result | {"repetitions": len(kept)})
                print({key: round(each, 4) if isinstance(each, float) else each for key, each in result.items()})
    report(results=results)


if __name__ == "__main__":
    main()
