"vidcourse.perceptual: small classifiers, their files, scores made of them, I3D."

import numpy as np
import pytest
import torch
from torch import nn

from vidcourse import perceptual as p
from vidcourse.checkpoints import load_weights
from vidcourse.course import data_file, weights_file
from vidcourse.data import Clips, load
from vidcourse.metrics import frechet_distance
from vidcourse.video import to_float

try:
    from jaxtyping import (
        TypeCheckError as ShapeError,
    )  # raised earlier where the shape checks of jaxtyping are switched on
except ImportError:
    ShapeError = TypeError
REFUSED = (ValueError, ShapeError)


def ramps(n=12, lengths=(20, 23), size=16, seed=0):
    """Labelled clips in which a bright bar runs down (label 0) or to the right (label 1)."""
    rng, clips, labels = np.random.default_rng(seed), [], np.arange(n) % 2
    for label in labels:
        length, start = rng.integers(lengths[0], lengths[1] + 1), rng.integers(size)
        frames = np.zeros((length, size, size, 3), np.uint8)
        for t in range(length):
            at = (start + t) % size
            frames[t, at if label == 0 else slice(None), at if label == 1 else slice(None)] = (
                rng.integers(150, 255)
            )
        clips.append(frames)
    return Clips.from_list(clips, labels, ("down", "right"))


@pytest.fixture(scope="module")
def trained():
    return p.train_classifier(ramps(), ramps(6, seed=1), steps=40, size=16, width=4, batch=8)


class Answers(nn.Module):
    """A classifier whose logits are written in the first pixel of each clip."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes, self.weight = classes, nn.Parameter(torch.zeros(1))

    def forward(self, clips):
        return (
            nn.functional.one_hot(clips[:, 0, 0, 0, 0].long(), self.classes).float()
            + self.weight
        )


def told(classes):
    """Clips from which `Answers` reads these classes."""
    return torch.tensor(classes).float().view(-1, 1, 1, 1, 1).expand(-1, 3, 2, 4, 4)


def test_a_missing_file_names_the_command_only_where_one_fetches_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDCOURSE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="`vidcourse data weizmann`"):
        data_file("weizmann64.npz")
    for name in ("i3d_kinetics400_fp16.npz", "sky64.npz"):
        with pytest.raises(FileNotFoundError, match="no command fetches it") as caught:
            data_file(name)
        assert "vidcourse data" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(FileNotFoundError, match="optional and no command fetches them"):
        p.load_i3d(tmp_path / "i3d_kinetics400_fp16.npz")


# The classifier


def test_resize():
    x = torch.rand(2, 3, 4, 12, 10)
    assert p.resize(x, 6).shape == (2, 3, 4, 6, 6) and p.resize(x[..., :10, :], 10) is not None
    square = x[..., :10, :10]
    assert p.resize(square, 10).data_ptr() == square.data_ptr()  # untouched where it fits
    edge = torch.zeros(1, 3, 2, 8, 8)
    edge[..., 0] = 1
    assert p.resize(edge, 2)[..., 0].min() > 0.1  # smoothed: sampling would miss the column
    frames = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 3, 4, 8, 8)
    assert torch.allclose(
        p.resize(frames, 4)[0, 0, :, 0, 0], torch.arange(4.0)
    )  # time is left alone


def test_classifier_takes_any_size_and_length():
    network = p.VideoClassifier(("a", "b", "c"), size=16, width=4).eval()
    for shape in ((2, 3, 16, 16, 16), (1, 3, 5, 40, 24), (3, 3, 1, 16, 16)):
        clips = torch.zeros(shape)
        assert network(clips).shape == (shape[0], 3)
        assert network.features(clips).shape == (shape[0], 16)


def test_augment_draws_once_a_clip_and_repeats_by_seed():
    frame = torch.rand(4, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    clip = frame.expand(4, 3, 6, 16, 16)

    def g():
        return torch.Generator().manual_seed(5)

    out = p.augment(clip, g(), flip=True)
    assert torch.equal(out, p.augment(clip, g(), flip=True)) and not torch.allclose(out, clip)
    assert torch.allclose(out, out[:, :, :1].expand_as(out), atol=1e-6)  # no shake, no flicker
    assert out.min() >= -1 and out.max() <= 1
    assert torch.allclose(p.augment(clip, g(), shift=0.0, zoom=0.0, light=0.0), clip, atol=1e-5)


def test_augment_mirrors_only_when_told():
    left = -torch.ones(64, 3, 2, 16, 16)
    left[..., :4] = 1

    def side(x):
        left_half, right_half = (half.mean((1, 2, 3, 4)) for half in x.chunk(2, -1))
        return (left_half < right_half).float().mean().item()

    def g():
        return torch.Generator().manual_seed(0)

    assert side(p.augment(left, g())) == 0 and 0.3 < side(p.augment(left, g(), flip=True)) < 0.7


def test_windows_are_evenly_spaced_and_know_their_clip():
    numbers = np.arange(30, dtype=np.uint8)[:, None, None, None]
    frames = np.broadcast_to(numbers, (30, 4, 4, 3)).copy()
    clips = Clips.from_list([frames, frames[:9]], np.array([1, 0]), ("a", "b"))
    x, labels, owner = p.windows(clips, 4, step=2, each=3)
    starts = ((x[:, 0, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    assert starts == [0, 11, 23, 0, 1, 2]
    assert owner.tolist() == [0, 0, 0, 1, 1, 1] and labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert ((x[0, 0, :, 0, 0] + 1) * 127.5).round().int().tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="clip 1 has 9 frames"):
        p.windows(clips, 10)


def test_training_learns_and_repeats_by_seed(trained):
    network, record = trained
    assert record["held_out_accuracy"] > 0.9 and record["held_out_clips"] == 6
    assert not network.training

    def short(seed):
        options = dict(steps=3, size=16, width=4, batch=4, seed=seed)
        return p.train_classifier(ramps(), **options)[0].state_dict()

    a = short(1)
    torch.manual_seed(99)  # whatever happened in between
    before = torch.random.get_rng_state()
    b, c = short(1), short(2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    # nobody else's randomness is touched
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_needs_labels():
    with pytest.raises(ValueError, match="a classifier needs labelled clips"):
        p.train_classifier(Clips.from_array(np.zeros((2, 20, 8, 8, 3), np.uint8)), steps=1)


def test_in_batches_is_eval_mode_and_leaves_the_mode_alone(trained):
    network, _ = trained
    x = torch.randn(7, 3, 16, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    network.train()
    got = p.in_batches(network, x, batch=3)
    assert network.training
    network.eval()
    with torch.no_grad():
        assert torch.allclose(got, network(x), atol=1e-5)
        features = p.in_batches(network.features, x, 2)
        assert torch.allclose(features, network.features(x), atol=1e-5)
    assert torch.equal(p.in_batches(lambda c: c.flatten(1), x, 2), x.flatten(1))


# Files


def test_a_saved_classifier_comes_back(trained, tmp_path):
    network, record = trained
    path = p.save_classifier(
        tmp_path / "deep" / "classifier.safetensors", network, data="ramps", **record
    )
    again, facts = p.load_classifier(path)
    assert facts["data"] == "ramps" and again.classes == network.classes
    assert facts["held_out_accuracy"] == record["held_out_accuracy"]
    state = again.state_dict()
    assert all(  # as 16-bit numbers
        torch.equal(v.half().to(v.dtype) if v.is_floating_point() else v, state[k])
        for k, v in network.state_dict().items()
    )
    assert not again.training and all(t.device.type == "cpu" for t in state.values())
    # nothing half-written is left
    assert [f.name for f in path.parent.iterdir()] == ["classifier.safetensors"]
    assert load_weights(path)[1] == facts  # the loop's reader agrees


def test_files_that_are_no_classifier(trained, tmp_path):
    network, _ = trained
    with pytest.raises(FileNotFoundError, match="nowhere"):
        p.load_classifier(tmp_path / "nowhere.safetensors")
    torch.save(network.state_dict(), tmp_path / "pickle.safetensors")
    whole = p.save_classifier(tmp_path / "whole.safetensors", network).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    p.save_classifier(tmp_path / "newer.safetensors", network, format=2)
    p.save_classifier(tmp_path / "other.safetensors", network, system="mocogan")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "bare.safetensors")
    for name in ("pickle", "cut", "newer", "other", "bare"):
        with pytest.raises(ValueError, match=name):
            p.load_classifier(tmp_path / f"{name}.safetensors")


BAD_CONFIGS = {
    "no table": [],
    "missing": {},
    "unknown field": {"colour": 3},
    "other sizes": {"width": 5},
    "would take 7 TB": {"width": 200_000},
    "negative": {"width": -4},
    "text": {"width": "4"},
    "classes of another type": {"classes": 2},
}


@pytest.mark.parametrize("change", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_what_a_file_says_of_itself_is_not_believed(change, trained, tmp_path):
    network, _ = trained
    config = {**network.config, **change} if change else change
    path = p.save_classifier(tmp_path / "evil.safetensors", network, config=config)
    with pytest.raises(ValueError, match="evil.safetensors"):
        p.load_classifier(path)


def test_deep_json_and_numbers_that_are_none(trained, tmp_path):
    from safetensors.torch import save_file

    network, _ = trained
    state = network.state_dict()
    save_file(state, tmp_path / "deep.safetensors", {"vidcourse": "[" * 100_000})
    with pytest.raises(ValueError, match="deep.safetensors"):
        p.load_classifier(tmp_path / "deep.safetensors")
    broken = p.VideoClassifier(**network.config)
    broken.head.bias.data[0] = float("nan")
    path = p.save_classifier(tmp_path / "nan.safetensors", broken)
    with pytest.raises(ValueError, match="nan.safetensors holds numbers that are not finite"):
        p.load_classifier(path)


def test_an_archive_that_is_no_i3d(tmp_path):
    np.savez(tmp_path / "other.npz", frames=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes(b"PK torn")
    for name in ("other.npz", "torn.npz"):
        with pytest.raises(ValueError, match=f"{name} holds no I3D weights"):
            p.load_i3d(tmp_path / name)


@pytest.mark.parametrize("name", ["classifier_shapes32", "classifier_weizmann32"])
def test_shipped_classifiers_say_what_they_are(name):
    network, facts = p.load_classifier(weights_file(name))
    told = {"data", "held_out_accuracy", "held_out_clips", "steps", "seconds", "hardware"}
    assert told <= set(facts)
    assert facts["held_out_accuracy"] > 0.9 and network.size == 32 and network.length == 16


def test_the_shipped_shapes_classifier_is_right_on_new_shapes():
    clips = load("shapes", n=60, size=32, seed=77)
    network, _ = p.load_classifier(weights_file("classifier_shapes32"))
    assert network.classes == clips.label_names
    x, y, _ = p.windows(clips, 16)
    assert p.accuracy(network, x, y) > 0.95
    assert p.accuracy(network, x[:, :, :1].expand_as(x), y) < 0.5


def test_the_shipped_weizmann_classifier_on_people_it_never_saw(real_data):
    clips = Clips.from_npz(real_data("weizmann64.npz"))
    network, facts = p.load_classifier(weights_file("classifier_weizmann32"))
    assert network.classes == clips.label_names and network.step == 2
    out = clips.select(np.isin(clips.extra["person"], facts["held_out_people"])).resize(32)
    x, y, _ = p.windows(out, 16, 2)
    assert abs(p.accuracy(network, x, y) - facts["held_out_accuracy"]) < 0.05


# Scores


def test_motion_control_score():
    seen = [2, 2, 0, 1, 1, 1]
    score = p.motion_control_score(told(seen), torch.tensor([2, 2, 0, 0, 1, 1]), Answers())
    assert abs(score.score - 5 / 6) < 1e-6
    assert score.seen.tolist() == seen and score.classes.tolist() == [0, 1, 2]
    assert score.table.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 2]]
    renamed = torch.tensor([0, 0, 1, 1, 2, 2])
    assert abs(p.motion_control_score(told(seen), renamed, Answers()).score - 1 / 6) < 1e-6
    matched = p.motion_control_score(told(seen), renamed, Answers(), match=True)
    assert abs(matched.score - 5 / 6) < 1e-6 and matched.classes.tolist() == [2, 0, 1]


def test_motion_control_score_with_more_categories_than_classes():
    score = p.motion_control_score(
        told([0, 1, 2, 2]), torch.tensor([4, 0, 1, 3]), Answers(), match=True
    )
    assert score.score == 0.75 and sorted(score.classes.tolist()) == [-1, -1, 0, 1, 2]


def test_fvd_is_the_distance_of_the_features_with_its_protocol(trained):
    network, _ = trained
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(9, 3, 16, 16, 16, generator=g), torch.rand(7, 3, 12, 20, 20, generator=g)
    score = p.fvd(a, b, network.features, batch=4)
    with torch.no_grad():
        want = frechet_distance(network.features(a), network.features(b))
    assert abs(score.value - want) < 1e-4 * want + 1e-6
    assert score.protocol == {
        "network": "VideoClassifier",
        "clips": "9 real, 7 fake",
        "frames": "16 and 12",
        "pixels": "16 and 20",
        "resized_to": 16,
    }
    assert "9 real, 7 fake" in str(score) and p.fvd(a, a, network.features).value < 1e-6


# I3D


def test_same_padding_equals_tensorflows_rule():
    for length in range(1, 12):
        for kernel in (1, 2, 3, 7):
            for stride in (1, 2, 3):
                ones = torch.ones(1, 1, length, 1, 1)
                padded = p.same_padding(ones, (kernel, 1, 1), (stride, 1, 1)).flatten()
                places = (len(padded) - kernel) // stride + 1
                assert places == -(-length // stride)
                front = int((padded == 1).int().argmax())
                back = int((padded.flip(0) == 1).int().argmax())
                assert back - front in (0, 1) and len(padded) == front + length + back


def test_i3d_has_the_published_shapes():
    with torch.device("meta"):
        network = p.I3D()
        # batch normalisation folded in
        assert sum(q.numel() for q in network.parameters()) == 12_689_984
        for shape in ((1, 3, 16, 64, 64), (2, 3, 9, 50, 70)):
            assert network(torch.zeros(shape)).shape == (shape[0], 400)
        network.size = 112
        assert network(torch.zeros(1, 3, 16, 64, 64)).shape == (1, 400)


def test_i3d_without_weights_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="VideoClassifier"):
        p.load_i3d(tmp_path / "i3d.npz")


def test_i3d_answers_as_stored(real_data):
    network = p.load_i3d(real_data("i3d_kinetics400_fp16.npz"))
    clips = Clips.from_npz(real_data("weizmann64.npz"))
    check = np.load(real_data("i3d_check.npz"))
    x = to_float(np.stack([clips.clip(int(i))[:16] for i in check["clip_index"]]))
    logits = p.in_batches(network, x)
    assert (logits - torch.from_numpy(check["logits"])).abs().max() < 1e-3
    assert logits.argmax(1).tolist() == [164, 333, 248]
