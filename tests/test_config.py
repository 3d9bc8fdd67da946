import dataclasses
import json
import logging
import re
from dataclasses import dataclass

import pytest
from conftest import mentions, refusal

import main
from config import PRESETS, Config
from methods import METHODS
from settings import (
    RETIRED,
    UserError,
    build_config,
    check_value,
    parse_text,
    preset_settings,
    read_settings,
    setting_comments,
    setting_types,
    warn_of_retired,
)


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
    message = refusal(build_config, Config, {"epoch": 3})
    assert re.search(r"'epoch'.*epochs\b.*ewc_alpha", message)
    assert re.search(r"'batchsize'.*batch_size", refusal(resolve, "--batchsize", "3"))


def test_an_unknown_preset_is_refused_with_all():
    message = refusal(resolve, "--preset", "dmeo")
    assert "'dmeo'" in message and all(name in message for name in PRESETS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "ten"), ("epochs", 1.5), ("epochs", True), ("lr", "fast"), ("lr", None), ("channels_last", 1),
     ("lr_milestones", 200), ("lr_milestones", ["a"]), ("method", 3), ("spacing", True), ("lr", float("nan")),
     ("lr", 10**400), ("height", 10**400)],
)  # fmt: skip
def test_a_mistyped_value_is_refused_by_the_settings_name(name, value):
    assert name in refusal(build_config, Config, {name: value})


def test_a_refusal_is_one_line_whatever_it_names():
    assert str(UserError("label 'a\nb\u2028\x1b\ud800' ä")) == r"label 'a\nb\u2028\x1b\ud800' ä"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("height", 700, "32 704"), ("width", 0, "32 64"), ("width", 32, "64"), ("num_landmarks", 0, "none 1"),
     ("batch_size", 0, "1"), ("sigma", 0, "0"), ("decode", "best", "argmax subpixel"),
     ("precision", "fp16", "fp32 bf16 auto"), ("spacing", -1, "mm 0"), ("spacing", "tape", "mm ruler none"),
     ("val_fraction", 1.0, "0 1"), ("seed", -1, "0"), ("split", "none", "auto same"), ("ruler", ["R1"], "two"),
     ("sdr_thresholds", [], "0"), ("ema", 1.0, "1"), ("folds", 1, "0 2"), ("crop", [0.5, 0, 0.2, 1], "left right"),
     ("crop", [0, 1], "left top right bottom"), ("crop_margin", -0.1, "none 0"), ("cutout", 1.5, "0 1"),
     ("crop_follows", True, "crop_margin")],
)  # fmt: skip
def test_an_impossible_value_is_refused_with_what_is_allowed(name, value, allowed):
    message = refusal(build_config, Config, {name: value})
    assert all(word in message for word in (name, *allowed.split()))


def test_settings_that_do_not_go_together_are_refused():
    assert "test_fraction" in refusal(Config, val_fraction=0.5, test_fraction=0.5)
    assert "fold" in refusal(Config, folds=2, fold=3)
    assert "folds" in refusal(Config, folds=2, split="same")
    assert "explain_landmarks" in refusal(Config, explain_landmarks=("A", "A"))


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
    message = refusal(parse_text, name, text, setting_types(Config)[name])
    assert name in message and text.split(",")[0] in message


def test_settings_survive_a_round_trip_through_json():
    config = build_config(Config, preset_settings(Config, ["demo"]))
    assert build_config(Config, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("content", ["[1]", "{", ""])
def test_a_settings_file_that_holds_no_settings_is_refused(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    assert "settings.json" in refusal(read_settings, tmp_path / "settings.json")


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
    assert "epochs" in refusal(resolve, "--epochs")
    assert "'demo'" in refusal(resolve, "demo")
    assert "epochs" in refusal(resolve, "--epochs", "--lr", "1")
    assert resolve("--epochs=4").epochs == 4


def test_a_setting_that_is_true_or_false_is_true_without_a_value():
    assert resolve("--keep_aspect").keep_aspect and not resolve("--keep_aspect", "false").keep_aspect
    assert resolve("--keep_aspect", "--epochs", "3").keep_aspect


@pytest.mark.parametrize(("text", "written"), [("0,2", "0.2"), ("-1,5", "-1.5")])
def test_a_decimal_comma_is_refused_with_the_decimal_point(text, written):
    for name in ("spacing", "lr", "crop_margin"):
        message = refusal(parse_text, name, text, setting_types(Config)[name])
        assert all(word in message for word in (name, text, written))
    assert "0.2" in refusal(resolve, "--spacing", "0,2")
    assert resolve("--sdr_thresholds", "1,2").sdr_thresholds == (1.0, 2.0)  # a list has commas


# --- Settings of older runs ---


def test_a_config_json_of_an_older_run_loads_with_one_note_of_what_is_ignored(tmp_path, caplog):
    logging.getLogger("farnet").propagate = True
    warn_of_retired.cache_clear()
    older = Config(epochs=7).to_dict() | {name: True for name in RETIRED}
    (tmp_path / "config.json").write_text(json.dumps({"settings": older}), encoding="utf-8")
    for _ in range(3):
        assert build_config(Config, read_settings(tmp_path / "config.json")) == Config(epochs=7)
    (note,) = caplog.messages
    assert len(RETIRED) == 7 and all(name in note for name in RETIRED)
    assert resolve("--config", str(tmp_path / "config.json")).epochs == 7
    (tmp_path / "config.json").write_text(json.dumps({"settings": older | {"compose_head": True}}), encoding="utf-8")
    assert "compose_head" in refusal(resolve, "--config", str(tmp_path / "config.json"))
    assert "gif" in refusal(resolve, "--gif", "true")  # a new run has no such setting


# --- Presets over config.py ---


@pytest.mark.parametrize(("name", "value"), [("sigma", "4"), ("height", 700), ("decode", "best")])
def test_the_values_in_config_py_are_checked_even_where_a_preset_replaces_them(monkeypatch, name, value):
    monkeypatch.setattr(Config, name, value)
    monkeypatch.setattr(Config.__init__, "__defaults__", edited_defaults(**{name: value}))
    assert name in PRESETS["demo"]
    assert name in refusal(resolve, "--preset", "demo") and repr(value) in refusal(resolve, "--preset", "demo")


def edited_defaults(**settings) -> tuple:
    """The defaults of Config's constructor, as if somebody had edited config.py."""
    return tuple(settings.get(field.name, field.default) for field in dataclasses.fields(Config))


def test_what_a_preset_or_a_method_replaces_is_told_with_both_values(monkeypatch):
    config = resolve("--preset", "demo")
    told = main.describe_replaced(config, ["demo"]).split(", ")
    assert "sigma: 10.0 -> 2.5" in told and "backbone_weights: imagenet -> none" in told
    assert {text.split(":")[0] for text in told} == set(PRESETS["demo"])
    config = resolve("--preset", "demo", "--sigma", "10", "--epochs", "7")
    told = main.describe_replaced(config, ["demo"])
    assert not {"sigma", "epochs"} & {text.split(":")[0] for text in told.split(", ")}  # the command line has these
    monkeypatch.setattr(Config, "sigma", 4.0)
    monkeypatch.setattr(Config.__init__, "__defaults__", edited_defaults(sigma=4.0))
    assert "sigma: 4.0 -> 2.5" in main.describe_replaced(resolve("--preset", "demo"), ["demo"])
    assert main.describe_replaced(resolve(), []) == ""
    told = main.describe_replaced(resolve("--method", "posenet"), [])
    assert "lr: 0.0001 -> 0.00025" in told and "method" not in told and "stacks" not in told  # not in config.py


# --- Help ---


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_a_comment_beside_it(method):
    cls = METHODS[method].Config
    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            for comments in setting_comments(base).values():
                found |= comments
    assert found.keys() == setting_types(cls).keys()
    assert all(found.values())


def test_the_help_shows_every_setting_with_its_default_and_its_comment(capsys):
    with pytest.raises(SystemExit):
        main.parse_arguments(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "isbi2015" in text and "faithful" in text
    for cls in {method.Config for method in METHODS.values()}:
        for comments in setting_comments(cls).values():
            for name, comment in comments.items():
                assert f"--{name} {main.value_text(getattr(cls, name))} {' '.join(comment.split())}" in text


@pytest.mark.parametrize(
    "method, name, text",
    [
        ("farnet", "views", "1000000000"), ("farnet", "sdr_thresholds", ",".join(map(str, range(1, 200)))),
        ("farnet", "sdr_thresholds", "1e300"), ("farnet", "sigma", "1e308"), ("farnet", "height", "3200000"),
        ("farnet", "spacing", "1e9"), ("farnet", "spacing", "1e-9"), ("farnet", "workers", "100000"),
        ("posenet", "channels", "4000000"), ("posenet", "stacks", "1000000"), ("unet", "label_radius", "1000000"),
        ("unet", "positive_weight_limit", "1e300"), ("noothout", "local_size", "1000000"),
        ("farnet", "lr", "1" + "0" * 400), ("farnet", "run_dir", "a\0b"),
    ],
)  # fmt: skip
def test_an_absurd_setting_is_refused_with_its_limit(method, name, text):
    assert name in refusal(resolve, "--method", method, f"--{name}", text)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"epochs": ' + "9" * 5000 + "}", '{"epochs": NaN}', '{"epochs"', "1"])
def test_a_settings_file_that_is_damaged_is_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    assert mentions(refusal(resolve, "--config", str(tmp_path / "settings.json")), "set")


def test_a_settings_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "settings.json").write_text('{"epochs": 7}', encoding="utf-8-sig")
    assert resolve("--config", str(tmp_path / "settings.json")).epochs == 7
