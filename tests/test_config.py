import json
from dataclasses import dataclass

import pytest

import main
from config import PRESETS, Config
from settings import UserError, build_config, check_value, parse_text, preset_settings, read_settings, setting_types


def refusal(**settings) -> str:
    with pytest.raises(UserError) as error:
        build_config(Config, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def resolve(*arguments: str) -> Config:
    return main.resolve_config(*main.parse_arguments(list(arguments)))


def test_the_defaults_are_the_papers_recipe():
    config = Config()
    assert (config.width, config.height, config.sigma, config.ewc_alpha) == (640, 800, 10, 40)
    assert (config.batch_size, config.lr, config.lr_milestones, config.epochs) == (1, 1e-4, (200,), 300)
    assert (config.rotation, config.scaling, config.shift, config.intensity) == (0, 0, 0, 0)
    assert (config.num_landmarks, config.backbone, config.decode, config.precision) == (
        None,
        "densenet121",
        "argmax",
        "fp32",
    )


def test_later_sources_win_defaults_presets_file_command_line(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"epochs": 7, "lr": 0.5}))
    assert resolve().epochs == 300
    assert resolve("--preset", "demo").epochs == PRESETS["demo"]["epochs"]
    assert resolve("--preset", "demo", "--config", str(file)).epochs == 7
    config = resolve("--preset", "demo", "--config", str(file), "--epochs", "9")
    assert (config.epochs, config.lr, config.width) == (9, 0.5, PRESETS["demo"]["width"])


def test_presets_combine_and_the_later_one_wins():
    assert resolve("--preset", "isbi2015", "modern").num_landmarks == 19
    assert resolve("--preset", "demo", "modern").epochs == PRESETS["demo"]["epochs"]
    assert resolve("--preset", "demo", "modern").rotation == PRESETS["modern"]["rotation"]
    assert resolve("--preset", "modern", "demo").rotation == PRESETS["demo"]["rotation"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_possible_configuration_and_says_only_what_differs(preset):
    before = ["modern"] if preset == "cpu" else []
    plain, config = (build_config(Config, preset_settings(Config, names)) for names in (before, [*before, preset]))
    for name in PRESETS[preset]:
        assert getattr(config, name) != getattr(plain, name), name


def test_an_unknown_setting_is_refused_with_the_nearest_and_all():
    message = refusal(epoch=3)
    assert "did you mean epochs?" in message and "ewc_alpha" in message
    with pytest.raises(UserError, match="did you mean batch_size"):
        resolve("--batchsize", "3")


def test_an_unknown_preset_is_refused_with_all():
    with pytest.raises(UserError, match="demo, isbi2015, hand, spine, cl2023, cl2024, aariz, legs, modern"):
        resolve("--preset", "dmeo")


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "ten"), ("epochs", 1.5), ("epochs", True), ("lr", "fast"), ("lr", None), ("channels_last", 1),
     ("lr_milestones", 200), ("lr_milestones", ["a"]), ("method", 3), ("spacing", True), ("lr", float("nan"))],
)  # fmt: skip
def test_a_mistyped_value_is_refused_by_the_settings_name(name, value):
    message = refusal(**{name: value})
    assert f"setting {name}" in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("height", 700, "multiple of 32"), ("width", 0, "multiple of 32"), ("width", 32, "from 64 on"),
     ("num_landmarks", 0, "at least 1"), ("batch_size", 0, "at least 1"), ("sigma", 0, "above 0"),
     ("decode", "best", "argmax, subpixel"), ("precision", "fp16", "fp32, bf16, auto"), ("spacing", -1, "above 0"),
     ("spacing", "tape", "ruler"), ("val_fraction", 1.0, "below 1"), ("seed", -1, "0 or above"),
     ("split", "none", "auto, same"), ("ruler", ["R1"], "two points"), ("sdr_thresholds", [], "one or more")],
)  # fmt: skip
def test_an_impossible_value_is_refused_with_what_is_allowed(name, value, allowed):
    message = refusal(**{name: value})
    assert f"setting {name}" in message and allowed in message


def test_fractions_that_leave_no_training_images_are_refused():
    assert "test_fraction" in refusal(val_fraction=0.5, test_fraction=0.5)


def test_values_are_read_from_text_by_their_types():
    hints = setting_types(Config)
    for name, text, value in [
        ("epochs", "3", 3), ("lr", "1e-3", 1e-3), ("channels_last", "yes", True), ("channels_last", "0", False),
        ("spacing", "0.1", 0.1), ("spacing", "ruler", "ruler"), ("spacing", "none", None), ("run_dir", "none", None),
        ("lr_milestones", "100,200", (100, 200)), ("report_exclude", "none", ()),
        ("report_exclude", "R1,R2", ("R1", "R2")),
    ]:  # fmt: skip
        assert check_value(name, parse_text(name, text, hints[name]), hints[name]) == value


@pytest.mark.parametrize(
    ("name", "text"), [("epochs", "3.5"), ("lr", "x"), ("channels_last", "maybe"), ("lr_milestones", "a,b")]
)
def test_text_of_the_wrong_type_is_refused(name, text):
    with pytest.raises(UserError, match=f"setting {name}"):
        parse_text(name, text, setting_types(Config)[name])


def test_settings_survive_a_round_trip_through_json():
    config = build_config(Config, preset_settings(Config, ["demo"]))
    assert build_config(Config, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("content", ["[1]", "{", ""])
def test_a_settings_file_that_holds_no_settings_is_refused(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match=r"settings\.json"):
        read_settings(tmp_path / "settings.json")


def test_a_method_adds_settings_and_changes_what_a_preset_means():
    @dataclass(frozen=True)
    class RivalConfig(Config):
        dilation: int = 65
        presets = {"demo": {"epochs": 3, "dilation": 5}}

    settings = preset_settings(RivalConfig, ["demo"])
    config = build_config(RivalConfig, settings)
    assert (config.epochs, config.dilation, config.width) == (3, 5, PRESETS["demo"]["width"])
    assert preset_settings(Config, ["demo"])["epochs"] == PRESETS["demo"]["epochs"]


def test_a_setting_without_a_value_or_a_stray_word_is_refused():
    with pytest.raises(UserError, match="epochs has no value"):
        resolve("--epochs")
    with pytest.raises(UserError, match="unexpected argument 'demo'"):
        resolve("demo")
    with pytest.raises(UserError, match="epochs has no value"):
        resolve("--epochs", "--lr", "1")
    assert resolve("--epochs=4").epochs == 4


def test_a_setting_that_is_true_or_false_is_true_without_a_value():
    assert resolve("--keep_aspect").keep_aspect and not resolve("--keep_aspect", "false").keep_aspect
    assert resolve("--keep_aspect", "--epochs", "3").keep_aspect
