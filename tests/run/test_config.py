"""The configuration: flat options in, sections to read, each check in one place."""

import dataclasses

import pytest

from sj_ottt import InputError
from sj_ottt.run import finetune
from sj_ottt.run.config import TrainConfig
from sj_ottt.run.sections import FrameOptions, LearningOptions, NetworkOptions


def test_flat_options_reach_their_sections_and_come_back():
    cfg = TrainConfig(model="m", lr="1e-3", size=[8, 9], rule="fptt", parts=2, out="o")
    assert cfg.network.model == "m" and cfg.optimisation.lr == 1e-3 and cfg.run.out == "o"
    assert cfg.frames == FrameOptions(size=(8, 9))
    assert (cfg.learning.rule, cfg.fptt.parts) == ("fptt", 2)
    flat = cfg.flat()
    assert list(flat) == TrainConfig.option_names()
    assert (flat["model"], flat["size"], flat["fptt_alpha"]) == ("m", (8, 9), 0.1)
    assert TrainConfig(**flat) == cfg != TrainConfig()
    assert cfg.replace({"parts": 3}).flat() == {**flat, "parts": 3}


def test_each_option_is_in_one_section_with_a_default_that_passes_its_check():
    names = TrainConfig.option_names()
    assert len(set(names)) == len(names)
    for section in TrainConfig.sections().values():
        for field in dataclasses.fields(section):
            value = field.metadata["check"](field.default)
            assert value == field.default and type(value) is type(field.default)
            assert field.metadata["help"]


def test_optimizer_and_rate_go_together_where_they_are_not_given(tmp_path):
    def found(cfg):
        return cfg.optimisation.optimizer, cfg.optimisation.lr

    recipe = tmp_path / "recipe.yaml"
    for given, expected in (
        ({}, ("sgd", 0.05)),
        ({"optimizer": "adamw"}, ("adamw", 0.002)),
        ({"lr": 0.3}, ("sgd", 0.3)),
        ({"pretrained": "some/run"}, ("adam", 0.001)),
        ({"pretrained": True, "optimizer": "sgd"}, ("sgd", 0.005)),
        ({"pretrained": True, "lr": "3e-4"}, ("adam", 3e-4)),
        ({"pretrained": False}, ("sgd", 0.05)),
    ):
        cfg = TrainConfig(**given)
        assert found(cfg) == expected
        assert TrainConfig(**cfg.flat()) == cfg  # as a checkpoint keeps it
        assert TrainConfig.from_sources(None, {"lr": 3}, base=cfg).optimisation.lr == 3
        recipe.write_text("".join(f"{name}: {value}\n" for name, value in given.items()))
        assert TrainConfig.from_sources(recipe) == cfg
    recipe.write_text("optimizer: sgd")
    assert found(TrainConfig.from_sources(recipe, {"pretrained": "some_tag"})) == ("sgd", 0.005)
    for name, words in finetune.USUAL.items():
        for pretrained in (False, True):
            assert str(finetune.usual_options(None, pretrained)[name]) in words
    with pytest.raises(InputError, match="optimizer must be one of"):
        TrainConfig(optimizer="lion")


def test_a_configuration_does_not_change():
    cfg = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.run = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.optimisation.lr = 1.0


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        (NetworkOptions, {"pull_to": "a", "pretrained": True}, "both say where to start"),
        (FrameOptions, {"tau_us": 9.0}, 'tau_us goes with frames="surface" only'),
        (LearningOptions, {"rule": "bptt", "update": "online"}, "update=online does not go"),
        (LearningOptions, {"rule_variant": "code"}, "rule_variant=code does not go"),
    ],
)
def test_a_section_owns_the_checks_between_its_options(section, options, message):
    with pytest.raises(InputError, match=message):
        section(**options)
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "fptt", "amp": "float16"}, "use bfloat16"),
        ({"parts": 2}, 'parts=2 does not go with rule="ottt"'),
        ({"rule": "fptt", "parts": 7}, "parts must be at most steps=6, not 7"),
        ({"backward_steps": 7}, "backward_steps must be at most steps=6, not 7"),
        ({"rule": "fptt", "accumulate": 2}, 'accumulate=2 does not go with rule="fptt"'),
        ({"rule": "fptt", "clip_norm": 2}, r"clip_norm=2.0 does not go .*fptt_clip"),
        ({"rule": "fptt", "ema": 0.9}, 'ema=0.9 does not go with rule="fptt"'),
        ({"update": "online", "accumulate": 2}, "accumulate=2 does not go with update=online"),
        ({"early_stop": 2, "val_fraction": 0}, "set val_fraction above 0"),
        ({"time_jitter": 0.5, "frames": "surface"}, 'time_jitter goes with frames="counts" only'),
        ({"epochz": 1}, r"unknown key 'epochz'; did you mean epochs\?"),
        ({"self": 1}, "unknown key 'self'"),
    ],
)
def test_what_must_hold_between_sections(options, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


def test_steps_of_images_may_be_more_than_the_option_says():
    cfg = TrainConfig(encoding="rows", backward_steps=9)
    assert cfg.frames.steps_from_image and cfg.learning.backward_steps == 9
    assert TrainConfig(encoding="rows", rule="fptt", parts=9).fptt.parts == 9


def test_chunks_are_numbers_or_auto_and_do_not_go_with_online_updates():
    assert TrainConfig(chunk="4").run.chunk == 4 and TrainConfig(chunk="auto").run.chunk == "auto"
    for wrong in (0, "many", 2.5):
        with pytest.raises(InputError, match="chunk must be a whole number of time steps"):
            TrainConfig(chunk=wrong)
    with pytest.raises(InputError, match="chunk=4 does not go with update=online"):
        TrainConfig(chunk=4, update="online")
