"The choice of device, number format and profile; where data and weights lie."

import pytest
import torch

from vidcourse import course
from vidcourse.files import FETCHERS


@pytest.fixture
def machine(monkeypatch):
    "A function that pretends what is in this machine."
    monkeypatch.delenv("VIDCOURSE_DEVICE", raising=False)

    def have(cuda=False, mps=False, capability=(8, 0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    return have


def test_the_best_device_that_is_there(machine):
    for there, best in (
        (dict(cuda=True, mps=True), "cuda"),
        (dict(mps=True), "mps"),
        ({}, "cpu"),
    ):
        machine(**there)
        assert course.choose_device().type == best
        assert course.choose_device("auto").type == best


def test_the_environment_overrides_and_a_name_overrides_both(machine, monkeypatch):
    machine(cuda=True)
    monkeypatch.setenv("VIDCOURSE_DEVICE", " cpu ")
    assert course.choose_device().type == "cpu" and course.choose_profile() == "laptop"
    monkeypatch.setenv("VIDCOURSE_DEVICE", "cudo")
    assert course.choose_device("cpu") == course.choose_device(torch.device("cpu"))
    monkeypatch.setenv("VIDCOURSE_DEVICE", "")
    assert course.choose_device().type == "cuda"


@pytest.mark.parametrize("name", ["cudo", "cuda:x", "meta", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_one_clear_error(name, monkeypatch):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    monkeypatch.setenv("VIDCOURSE_DEVICE", name)
    with pytest.raises(ValueError) as caught:
        course.start("smoke")
    said = str(caught.value)
    assert said.startswith(f"VIDCOURSE_DEVICE {name!r}") and "\n" not in said and "cpu" in said
    with pytest.raises(ValueError, match="^device "):
        course.choose_device(name)


@pytest.mark.parametrize(
    "capability, precision",
    [((6, 1), "no"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_precision_of_gpus(machine, capability, precision):
    machine(cuda=True, capability=capability)
    assert course.choose_precision("cuda") == precision


@pytest.mark.parametrize("has", [True, False])
def test_precision_of_processors(monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(course, "_cpu_fact", lambda name: "fp asimd")
    assert course.choose_precision("cpu") == ("bf16" if has else "no")
    monkeypatch.setattr(course, "_cpu_fact", lambda name: "fp asimd bf16")  # a Graviton 3
    assert course.choose_precision("cpu") == "bf16"
    assert course.choose_precision("mps") == "no"


def test_profiles(machine):
    machine(mps=True)
    assert course.choose_profile() == "laptop" and course.choose_profile("gpu") == "gpu"
    machine()
    with pytest.raises(ValueError, match="VIDCOURSE_DEVICE"):
        course.choose_profile("gpu")
    with pytest.raises(ValueError, match="unknown"):
        course.choose_profile("large")


def test_the_opening_line_says_device_and_precision(machine, capsys, monkeypatch):
    machine()
    monkeypatch.setattr(course, "cpu_has_bfloat16", lambda: False)
    settings = course.start("smoke", 3)
    assert (settings.device.type, settings.precision) == ("cpu", "no")
    said = capsys.readouterr().out
    assert said.startswith("profile smoke, device cpu, precision float32, seed 3\n")


def test_every_data_set_that_can_be_fetched_is_known(tmp_path, monkeypatch):
    import vidcourse.pixel_art  # noqa: F401  it adds its own way of fetching

    assert set(FETCHERS) == set(course.FETCHED) <= set(course.DATA_SETS)
    monkeypatch.setenv("VIDCOURSE_DATA", str(tmp_path))
    for name, file in course.DATA_SETS.items():
        way = f"vidcourse data {name}" if name in course.FETCHED else "put it there"
        with pytest.raises(FileNotFoundError, match=way):
            course.data_file(file)
