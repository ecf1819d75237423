"""The user's own profile: it beats the shipped ones, on its machine alone, and never fails."""

from __future__ import annotations

import json
import warnings

import mlx.core as mx
import pytest
from command_line import call
from mlx_sdpa_ext import attention, device, folders, limits, router
from mlx_sdpa_ext.profiles import Value, user
from mlx_sdpa_ext.words import Device, Problem

HERE = device.cpu()
M4_MAX = Device.named("applegpu_g16s", memory=36 << 30, tiles=device.tiles())
STEP = Problem(1, 16, 2, 2048, 4096, 256, 256, "bfloat16", "causal")


def profile(values, **changed):
    """As `calibrate` writes it, for this machine's CPU."""
    entry = {"meaning": "what it is for", "source": "measured"}
    return {
        "for": user.identity(HERE, device.name("cpu")) | changed,
        "measured": "2026-11-26 16:40 UTC",
        "values": {name: {"value": value, **entry} for name, value in values.items()},
    }


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Writes a profile into the user's folder; read as a new process would."""

    def write(data):
        file = tmp_path / "mlx-sdpa-ext" / "profile-cpu.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(data if isinstance(data, str) else json.dumps(data))
        limits.refresh()
        return file

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("MLX_SDPA_EXT_PROFILE", raising=False)
    monkeypatch.setattr(user, "_said", set())
    limits.refresh()
    yield write
    monkeypatch.undo()
    limits.refresh()


def measured(**values):
    return {name: Value(value, "", "", "profile-metal.json") for name, value in values.items()}


def wide():
    """A call that is unfused with fused_dim and unfused_dim below 256."""
    q, k = mx.zeros((1, 2, 64, 256)), mx.zeros((1, 2, 64, 256))
    return q, k, k


def test_it_beats_the_shipped_one_and_the_reason_says_so(place):
    before = attention.explain(*wide())
    assert before.path == "fused" and "profile" not in before.reason
    place(profile({"fused_dim": 128, "unfused_dim": 128}))
    after = attention.explain(*wide())
    assert after.path == "unfused"
    assert "the unfused path is faster at this head dim, by your profile" in after.reason
    here = attention.place_of(None).limits
    assert here.calibrated == ("fused_dim", "unfused_dim") and here.fused_dim == 128
    out = attention.scaled_dot_product_attention(*wide(), scale=1.0)
    assert mx.array_equal(out, mx.zeros((1, 2, 64, 256)))


def test_each_threshold_that_decides_is_named():
    def reason(problem, mlx="0.32.4", **values):
        bounds = limits.of(M4_MAX, measured=measured(**values))
        return router.route(problem, M4_MAX._replace(mlx=mlx), bounds).reason

    few, narrow = STEP._replace(Lq=32), STEP._replace(D=128, Dv=128)
    decode = narrow._replace(Lq=1)
    cases = {
        "middle_rows": (few, 40, "among the heads of a GQA group, by your profile"),
        "fused_dim": (STEP, 256, "fastest path at this head dim, by your profile"),
        "unfused_dim": (STEP, 255, "unfused path is faster at this head dim, by your profile"),
        "fused_min_keys": (STEP, 4095, "bounds the memory, by your profile"),
        "prefill_over_stock": (narrow, 1, "the faster one here, by your profile"),
        "decode_over_stock": (decode, 1, "the faster one here, by your profile"),
    }
    assert cases.keys() == user.THRESHOLDS.keys()
    for name, (problem, value, words) in cases.items():
        assert words in reason(problem, **{name: value}), name
        assert "by your profile" not in reason(problem), name
    assert "unfused path is faster at this head dim, by" in reason(STEP, fused_min_keys=4096)
    assert "fuses it (full kernel), by your profile" in reason(narrow, prefill_over_stock=0)


def test_the_environment_beats_it():
    mine = measured(fused_min_keys=100, unfused_dim=128, middle_rows=0)
    assert limits.of(M4_MAX, measured=mine).fused_min_keys == 100
    bounds = limits.of(M4_MAX, limits.Settings(fused_min_keys=7), mine)
    assert (bounds.fused_min_keys, bounds.unfused_dim, bounds.middle_rows) == (7, 256, 0)
    assert bounds.calibrated == ("middle_rows",)


def test_a_file_may_be_named_or_none(place, tmp_path, monkeypatch):
    place(profile({"fused_dim": 128}))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(profile({"fused_dim": 64})))
    for named, dim in ((str(other), 64), ("none", limits.of(HERE).fused_dim), ("", 128)):
        monkeypatch.setenv("MLX_SDPA_EXT_PROFILE", named)
        limits.refresh()
        assert attention.place_of(None).limits.fused_dim == dim


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mlx", "0.31.2", "with MLX 0.31.2, and here is"),
        ("device", "Apple M9", "with the device Apple M9, and here is"),
        ("arch", "z80", "with the architecture z80, and here is"),
        ("mlx_sdpa_ext", "0.0.1", "with mlx-sdpa-ext 0.0.1, and here is"),
    ],
)
def test_one_of_another_machine_is_ignored_with_one_notice(key, value, words, place):
    place(profile({"fused_dim": 1}, **{key: value}))
    with pytest.warns(RuntimeWarning, match=words):
        assert attention.explain(*wide()).path == "fused"
    limits.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attention.place_of(None).limits == limits.of(HERE, limits.settings())._replace(
            memory_limit=attention.place_of(None).limits.memory_limit
        )


BROKEN = {
    "": "no JSON",
    "{": "no JSON",
    "[1]": "not a JSON object",
    "{}": "has no 'for'",
    json.dumps(profile({}) | {"measured": 3}): "has no 'measured'",
    json.dumps(profile({}) | {"for": {"mlx": "0"}}): "for which 'backend' it is",
    json.dumps(profile({"speed": 3})): "got 'speed', allowed are fused_dim",
    json.dumps(profile({"fused_dim": "wide"})): "fused_dim: got 'wide', allowed is a whole number",
    json.dumps(profile({"fused_dim": -1})): "fused_dim: got -1",
    json.dumps(profile({"prefill_over_stock": 2})): "got 2, allowed is a whole number from 0 to 1",
    json.dumps(profile({}) | {"values": {"fused_dim": {"value": 3}}}): "has no 'meaning'",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_is_ignored_with_a_warning(text, place):
    file = place(text)
    with pytest.warns(RuntimeWarning, match=BROKEN[text]) as said:
        out = attention.scaled_dot_product_attention(*wide(), scale=1.0)
    assert str(file) in str(said[0].message) and len(said) == 1
    mx.eval(out)


def test_files_that_cannot_be_read(place, tmp_path, monkeypatch):
    place(profile({})).write_bytes(b"\xff\xfe\x00")
    with pytest.warns(RuntimeWarning, match="UTF-8"):
        attention.explain(*wide())
    for named, words in (
        (tmp_path / "no.json", "No such file"),
        (tmp_path / "d.json", "directory"),
    ):
        (tmp_path / "d.json").mkdir(exist_ok=True)
        monkeypatch.setenv("MLX_SDPA_EXT_PROFILE", str(named))
        limits.refresh()
        with pytest.warns(RuntimeWarning, match=words):
            attention.explain(*wide())


def test_without_a_home_folder_there_is_none(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(folders.Path, "home", homeless)
    assert user.find(HERE, lambda: "x") == user.Found()


def test_the_folder_of_each_system(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert folders.config() == tmp_path / "xdg" / "mlx-sdpa-ext"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(folders.Path, "home", lambda: tmp_path)
    for system, parts in {
        "linux": (".config",),
        "darwin": ("Library", "Application Support"),
    }.items():
        monkeypatch.setattr(folders.sys, "platform", system)
        assert folders.config() == tmp_path.joinpath(*parts, "mlx-sdpa-ext")


def test_a_software_device_has_none(place):
    place(profile({"fused_dim": 1}))
    assert user.find(HERE._replace(software=True), lambda: device.name("cpu")) == user.Found()


def doctor(tmp_path, *args, **env):
    done = call("doctor", *args, env={"XDG_CONFIG_HOME": str(tmp_path), **env})
    assert done.stderr == ""
    return done


def test_doctor_shows_which_counts(place, tmp_path):
    said = " ".join(doctor(tmp_path).stdout.split())
    assert "profile as shipped; mlx-sdpa-ext calibrate measures" in said
    file = place(profile({"fused_dim": 512}))
    done = doctor(tmp_path)
    assert done.returncode == 0
    assert f"{file}, measured 2026-11-26 16:40 UTC: fused_dim 512" in " ".join(done.stdout.split())
    found = json.loads(doctor(tmp_path, "--json").stdout)["profile"]
    assert found["values"] == {"fused_dim": 512} and not found["ignored"]

    place(profile({"fused_dim": 512}, mlx="0.0.1"))
    done = doctor(tmp_path)
    assert done.returncode == 0 and "note: the profile" in done.stdout
    place("{")
    done = doctor(tmp_path)
    assert done.returncode == 1 and "to mend it: delete it" in done.stdout
    done = doctor(tmp_path, MLX_SDPA_EXT_PROFILE=str(tmp_path / "gone.json"))
    assert done.returncode == 1 and "unset MLX_SDPA_EXT_PROFILE" in done.stdout
    assert doctor(tmp_path, MLX_SDPA_EXT_PROFILE="none").returncode == 0


def test_explain_names_the_file(place, tmp_path):
    file = place(profile({"fused_dim": 128, "unfused_dim": 128}))
    asked = ("explain", "--q", "1,2,64,256", "--k", "1,2,64,256", "--backend", "cpu")
    done = call(*asked, env={"XDG_CONFIG_HOME": str(tmp_path)})
    said = " ".join(done.stdout.split())
    assert f"profile {file}, measured 2026-11-26 16:40 UTC" in said and "by your profile" in said
    done = call(*asked, "--arch", "avx512", env={"XDG_CONFIG_HOME": str(tmp_path)})
    assert "profile" not in done.stdout  # another machine, though it may be like this one
