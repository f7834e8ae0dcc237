"""Prints what published implementations say, for `published_values.json`; not run by the tests.

It needs an environment of its own, because savvi brings solvers that the platform has no use for:

    python -m venv oracle && oracle/bin/pip install savvi==0.3.1 ville==0.1.0 matplotlib
    oracle/bin/python tests/serving/published_values.py > tests/serving/published_values.json
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np


def dirichlet_mixtures() -> list[dict[str, Any]]:
    """savvi: odds of the multinomial tests on (canary, stable) events, prior around the weight."""
    savvi: Any = import_module("savvi.multinomial")
    rows = []
    for weight, concentration, canary, stable in (
        *((0.05, 100.0, 0, 20), (0.05, 100.0, 9, 50), (0.05, 20.0, 12, 60)),
        *((0.25, 100.0, 30, 40), (0.5, 10.0, 40, 12)),
    ):
        null = np.array([weight, 1.0 - weight])
        for test in (
            savvi.Multinomial(0.01, null, k=concentration),
            savvi.InhomogeneousPoissonProcess(
                0.01, null, weights=np.array([[1, -1]]), k=concentration
            ),
        ):
            test.update(np.array([canary, stable]))
            found = {"weight": weight, "concentration": concentration, "odds": float(test.odds)}
            rows.append({"test": type(test).__name__, "canary": canary, "stable": stable, **found})
    return rows


def bernoulli_mixtures() -> list[dict[str, Any]]:
    """ville: e-values of the beta mixture of Bernoulli likelihood ratios."""
    ville: Any = import_module("ville")
    rows = []
    for weight, prior, canary, stable in (
        *((0.05, (5.0, 95.0), 9, 50), (0.25, (2.0, 6.0), 20, 20), (0.5, (1.0, 1.0), 30, 10)),
    ):
        test = ville.BernoulliTest(weight, prior=prior)
        test.fit(np.array([1] * canary + [0] * stable))
        found = {"weight": weight, "prior": prior, "e_value": float(test.e_values_[-1])}
        rows.append({"canary": canary, "stable": stable, **found})
    return rows


def boundaries() -> list[dict[str, Any]]:
    """ville: Robbins' boundary at a precision in closed form for the time 1 / 0.02², and its best.

    The closed form is that of the sequence's paper (Waudby-Smith and others, appendix).
    """
    found: Any = import_module("ville._boundaries")
    rows = []
    for alpha in (0.05, 0.01, 0.001):
        doubt = -2.0 * np.log(alpha)
        tightest = 0.02**-2
        rho = tightest / (doubt + np.log1p(doubt))
        best = found.best_rho(tightest, alpha)
        for variance in (0.1**2, 0.02**2, 0.004**2):
            time = 1.0 / variance
            radii = {
                name: float(found.normal_mixture(time, alpha, precision)) / time
                for name, precision in (("radius", rho), ("best", best))
            }
            rows.append({"alpha": alpha, "variance": variance, **radii})
    return rows


def sequences() -> list[dict[str, Any]]:
    """ville: the asymptotic sequence of the mean of 10,000 graded rewards, after 2,500 and all."""
    ville: Any = import_module("ville")
    values = [(i * 37 % 101) / 128 for i in range(10_000)]
    tuned = round(float(np.var(values)) * 0.02**-2)
    rows = []
    for alpha in (0.05, 0.001):
        sequence = ville.AsymptoticCS(alpha=alpha, t_opt=tuned)
        sequence.fit(np.array(values))
        rows += [
            {
                "alpha": alpha,
                "rewards": count,
                "lower": float(sequence.lower_[count - 1]),
                "upper": float(sequence.upper_[count - 1]),
            }
            for count in (2_500, 10_000)
        ]
    return rows


if __name__ == "__main__":
    packages = {name: version(name) for name in ("savvi", "ville", "numpy", "scipy")}
    values = {
        "packages": packages,
        "dirichlet_mixtures": dirichlet_mixtures(),
        "bernoulli_mixtures": bernoulli_mixtures(),
        "boundaries": boundaries(),
        "sequences": sequences(),
    }
    json.dump(values, sys.stdout, indent=1)
    sys.stdout.write("\n")
