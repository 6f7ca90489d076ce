"""Settings: checked when made, and every one a flag."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from pirn.cli import _parser
from pirn.config import PIRNConfig

from protoad import CheckpointError, ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"residual": "both"}, "residual: expected one of purified, none, got 'both'"),
        ({"num_prototypes": 0}, "num_prototypes: expected at least 1, got 0"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"epsilon": 0.0}, "epsilon: expected a finite value above 0"),
        ({"top_fraction": 2.0}, "top_fraction"),
        ({"sigma": float("nan")}, "sigma"),
        ({"lr": float("inf")}, "lr: expected a finite value above 0, got inf"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"guard": True, "aggregation": "none"}, "guard: expected off with aggregation none"),
    ],
)
def test_bad_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PIRNConfig(**values)


def test_every_field_is_a_flag_with_help_and_the_same_default() -> None:
    arguments = _parser().parse_args(["train", "--root", "r", "--category", "c", "--out", "o"])
    for spec in fields(PIRNConfig):
        assert getattr(arguments, spec.name) == spec.default
        assert spec.metadata["help"]


def test_flags_reach_the_config() -> None:
    argv = ["train", "--root", "r", "--category", "c", "--out", "o", "--weights", "w", "--score", "cosine"]
    arguments = _parser().parse_args([*argv, "--epsilon", "0.1", "--no-foreground", "--epochs", "3"])
    found = arguments.epsilon, arguments.foreground, arguments.epochs, arguments.score, arguments.weights
    assert found == (0.1, False, 3, "cosine", "w")


def test_round_trip_and_unknown_fields() -> None:
    config = PIRNConfig(epsilon=0.1, modality="rgb")
    assert PIRNConfig.from_dict(asdict(config)) == config
    with pytest.raises(CheckpointError, match="does not know temperature"):
        PIRNConfig.from_dict({"temperature": 1})
    with pytest.raises(CheckpointError, match="residual: expected one of"):
        PIRNConfig.from_dict({"residual": "x"})


def test_faithful_is_the_print() -> None:
    faithful = PIRNConfig(seed=7).faithful()
    assert (faithful.residual, faithful.prototype_init, faithful.score) == ("purified", "random", "cosine")
    assert (faithful.num_prototypes, faithful.num_layers, faithful.lr, faithful.foreground) == (10, 2, 1e-4, False)
    assert (faithful.epochs, faithful.epsilon, faithful.update_bias, faithful.top_fraction) == (None, 0.05, 0.0, 0.0)
    assert faithful.seed == 7
