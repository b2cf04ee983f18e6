"""Settings of merging: what each method needs and reads."""

import pytest

from bloomery.components.core.config import parameters, parse
from bloomery.components.core.errors import ConfigError
from bloomery.components.merging.config import MergingConfig

A, B = {"stage": "a"}, {"model": "org/b"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "linear", "models": [A]}, ["m: models: found 1; linear needs 2 or more"]),
        (
            {"method": "linear", "models": [{**A, "weight": 1}, {**B, "weight": -1}], "t": 0.5},
            ["m: t: linear does not read it; leave it out", "m: models: the weights add up to 0"],
        ),
        ({"method": "slerp", "models": [A, B]}, ["m: t: missing; slerp needs it (usual is 0.5)"]),
        ({"method": "slerp", "models": [A, B, A], "t": 1}, ["m: models: found 3; slerp takes 2"]),
        ({"method": "ties", "models": [A, B]}, ["m: density: missing; ties needs it (usual is 0.2 for ties"]),
        (
            {"method": "dare_ties", "models": [A, {**B, "weight": 0}], "density": 0.5},
            ["m: models: weights of dare_ties are shares of a mean; expected numbers above 0"],
        ),
        ({"method": "passthrough"}, ["m: slices: found none"]),
        ({"method": "passthrough", "slices": [{"layers": [2, 2]}]}, ["m.slices.0: found", "layers [2, 2] hold none"]),
        (
            {"method": "depth_up_scaling", "models": [A]},
            ["m: models: depth_up_scaling does not read it", "removed_lay"],
        ),
        ({"method": "linear", "models": [A, {"stage": "a", "model": "org/b"}]}, ["expected one of `stage`"]),
        ({"method": "task_arithmetic", "models": [A], "scale": 1e300}, ["m.scale: found 1e+300", "equal to 1000"]),
        ({"method": "tie", "models": [A]}, ['m.method: found "tie"']),
    ],
)
def test_every_mistake_is_told(settings, told):
    with pytest.raises(ConfigError) as error:
        parse(MergingConfig, settings, where="m")
    assert all(part in str(error.value) for part in told), str(error.value)


def test_settings_survive_the_way_to_their_step():
    config = MergingConfig.model_validate({"method": "passthrough", "slices": [{"layers": [0, 2], "of": B}]})
    assert MergingConfig.model_validate(parameters(config)) == config
