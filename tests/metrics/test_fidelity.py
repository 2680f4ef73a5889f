"""Distances: two libraries agree, a set is at distance 0 of itself, unequal n is refused."""

import hashlib
import os

import pytest
import torch
from torch.nn import functional as F

from anysigma.metrics import inception
from anysigma.metrics.features import ClassifierFeatures, NoFeatures, none
from anysigma.metrics.fidelity import Monitor, at_most, distance, measures, registered
from anysigma.metrics.inception import InceptionFeatures, fitting
from anysigma.metrics.resnet import CifarResNet56, ResNet
from anysigma.metrics.vectors import cached_vectors, vectors
from anysigma.studies.quality import RealImages


def test_torchmetrics_and_torch_fidelity_agree_on_the_same_images(features, digits):
    monitor = Monitor(features, (1, 8, 8), torch.device("cpu"))
    monitor.update(digits.train, real=True)
    for images in (digits.held_out, 255 - digits.held_out):  # the second time with real statistics kept
        monitor.update(images, real=False)
        assert monitor.compute() == pytest.approx(distance(images, digits.train, features), abs=1e-3)


def test_a_set_is_at_distance_zero_of_itself_and_far_from_noise(features, digits):
    noise = torch.randint(0, 256, digits.held_out.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert distance(digits.train, digits.train, features) == pytest.approx(0, abs=1e-6)
    assert distance(noise, digits.train, features) > 20 * distance(digits.held_out, digits.train, features)


def test_the_distance_of_two_gaussians_has_its_closed_form(digits):
    class Pixels:
        name, metric, sha256, num_features = "pixels", "fd_pixels", "0" * 64, 2

        def __call__(self, images):
            return images[:, 0, 0, :2].float()

    a = torch.randint(0, 40, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    # moved by 5 and 7 with the same covariance: the distance is 5² + 7²
    b = a.clone()
    b[:, 0, 0, 0] += 5
    b[:, 0, 0, 1] += 7
    assert distance(a, b, Pixels()) == pytest.approx(74, abs=1e-3)


def test_vectors_are_kept_by_what_they_were_made_of_and_refused_for_other_data(features, digits, tmp_path):
    held_out = cached_vectors(digits.held_out, features, tmp_path)
    (path,) = tmp_path.iterdir()
    assert torch.equal(cached_vectors(digits.held_out, features, tmp_path), held_out)
    cached_vectors(digits.train, features, tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    os.replace(other, path)
    with pytest.raises(ValueError, match="belongs to other data: images is"):
        cached_vectors(digits.held_out, features, tmp_path)
    path.write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        cached_vectors(digits.held_out, features, tmp_path)


def test_unequal_n_is_refused(features, digits):
    with pytest.raises(ValueError, match="a set of 100 generated images cannot stand beside 360 real ones"):
        RealImages(digits, features, 360, 2, None).sets(vectors(digits.train[:460], features))


def test_the_shipped_features_name_themselves(features):
    card = features.card()
    assert card["features"] == "digits" and len(card["features_sha256"]) == 64
    assert card["held_out_accuracy"] > 0.95 and card["trained_on"] == "1437 training images"


def test_the_stated_accuracy_is_the_one_measured(features, digits):
    predicted = features.network(digits.held_out).argmax(1)
    measured = (predicted == digits.labels[1437:]).double().mean().item()
    assert measured == pytest.approx(features.facts["held_out_accuracy"], abs=1e-4)


def test_features_do_not_change_under_autocast(features, digits):
    plain = features(digits.held_out)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(digits.held_out), plain)


def test_absent_weights_foreign_shapes_and_no_features_say_so():
    with pytest.raises(FileNotFoundError, match="no weights at"):
        ClassifierFeatures("digits", (1, 8, 8), weights_path="/nowhere.safetensors")
    with pytest.raises(ValueError, match="were made for shape"):
        ClassifierFeatures("digits", (3, 8, 8))
    with pytest.raises(NoFeatures, match="no feature network"):
        none()


def measured_images(generated, reference, features):
    found = measures(vectors(generated, features), vectors(reference, features), features)
    return {measure.metric: value for measure, value in found.items()}


def test_kid_precision_and_recall_are_those_of_torch_fidelitys_own_functions(features, digits):
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = measured_images(digits.held_out, digits.train, features)
    assert found.keys() == {"fd_digits", "kid_digits", "precision_digits", "recall_digits"}
    both = features(digits.held_out), features(digits.train)
    kid = kid_features_to_metric(*both, verbose=False, kid_subset_size=360, kid_subsets=100, rng_seed=2020)
    prc = prc_features_to_metric(both[0], at_most(both[1], 360), verbose=False)
    assert found["kid_digits"] == pytest.approx(kid["kernel_inception_distance_mean"], abs=1e-9)
    assert (found["precision_digits"], found["recall_digits"]) == (prc["precision"], prc["recall"])
    assert min(prc["precision"], prc["recall"]) > 0.8


def test_distances_are_taken_from_the_features_and_the_inception_score_from_the_logits_behind_them():
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    FEATURE_EXTRACTORS_REGISTRY.pop("anysigma-vectors-3", None)
    extractor, rows = FEATURE_EXTRACTORS_REGISTRY[registered(3)], torch.arange(10).reshape(2, 5)
    layer = extractor.get_default_feature_layer_for_metric
    assert layer("isc") == "logits" and {layer(metric) for metric in ("fid", "kid", "prc")} == {"features"}
    features, logits = extractor("vectors", ["features", "logits"])(rows)
    assert torch.equal(features, rows[:, :3]) and torch.equal(logits, rows[:, 3:])


def test_memorised_images_are_precise_and_one_image_recalls_nothing(features, digits):
    copies = measured_images(digits.train[:360], digits.train[:360], features)
    same = measured_images(digits.train[:1].expand(360, -1, -1, -1), digits.train, features)
    assert copies["precision_digits"] == 1.0
    assert same["recall_digits"] < 0.05


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """Inception's real architecture with random weights from a file: plumbing alone, no figure of it means a thing."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    original = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    try:
        torch.save({}, path)
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(path))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), path)
    return path


def test_the_inception_path_works_and_says_that_its_weights_are_foreign(random_inception, digits):
    features = InceptionFeatures(str(random_inception), sha256=None)
    assert features.metric == "fid" and features.card()["features_weights"] == "not the published ones"
    found = measured_images(digits.train[:8], digits.train[8:16], features)
    assert found.keys() == {"fid", "kid_inception", "precision_inception", "recall_inception", "inception_score_inception"}
    assert found["fid"] > 0
    with pytest.raises(ValueError, match="expected 6726825d"):
        InceptionFeatures(str(random_inception))


def test_inception_takes_one_or_three_channels_and_the_file_whose_digits_are_given(random_inception):
    digits = hashlib.sha256(random_inception.read_bytes()).hexdigest()[:8]
    features = fitting((3, 8, 9), str(random_inception), digits)
    grey = torch.randint(0, 256, (2, 1, 8, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(features(grey), features(grey.repeat(1, 3, 1, 1)))
    assert features(grey).shape == (2, 2048) and features.both(grey)[1].shape == (2, 1008)
    with pytest.raises(ValueError, match="takes 1 or 3 channels, these images have 2"):
        features(grey.expand(-1, 2, -1, -1))
    with pytest.raises(NoFeatures, match="takes 1 or 3 channels, these images have 2"):
        fitting((2, 3, 3), str(random_inception), digits)


def test_inceptions_weights_are_fetched_once_and_an_absent_network_is_one_line(tmp_path, monkeypatch):
    fetched = []

    def fetch(url, path, hash_prefix):
        fetched.append(hash_prefix)
        with open(path, "w") as file:
            file.write("weights")

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(inception, "FOLDER", tmp_path / "cache" / "torch")
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    path = inception.downloaded()
    assert inception.downloaded() == path and path.read_text() == "weights" and fetched == ["6726825d"]
    path.unlink()
    assert inception.downloaded() == path and len(fetched) == 2
    path.unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched \(no network\)"):
        inception.downloaded()


def test_weights_that_are_no_state_dict_run_no_code(tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "hostile.pth"

    class Hostile:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    torch.save(Hostile(), path)
    with pytest.raises(ValueError, match="no plain state dict"):
        InceptionFeatures(str(path), sha256=None)
    assert not canary.exists()


def test_the_cifar_resnet_has_its_published_error():
    import os
    import pickle
    from pathlib import Path

    root = Path(os.environ.get("ANYSIGMA_DATA", Path(__file__).parents[3] / "shared" / "data"))
    weights, batch = root / "cifar10-resnets/resnet56-4bfd9763.th", root / "cifar-10-batches-py/test_batch"
    if not (weights.is_file() and batch.is_file()):
        pytest.skip(f"no {weights.name} and CIFAR-10 below {root}")
    features = CifarResNet56(str(weights))
    content = pickle.loads(batch.read_bytes(), encoding="bytes")  # the checked official file
    images = torch.from_numpy(content[b"data"]).reshape(-1, 3, 32, 32)[:2000]
    logits = torch.cat([features.network.linear(features(piece)) for piece in images.split(250)])
    wrong = (logits.argmax(1) != torch.tensor(content[b"labels"])[:2000]).double().mean().item()
    assert wrong == pytest.approx(0.0661, abs=3 * (0.0661 * 0.9339 / 2000) ** 0.5)
    with pytest.raises(ValueError, match="take 3x32x32"):
        features(images[:1, :1])


def resnet56_by_hand(state, images):
    """He et al. 2016, section 4.2, over the tensors of the file."""

    def conv(x, at, norm, stride=1):
        x = F.conv2d(x, state[f"{at}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    h = F.relu(conv((images / 255 - mean) / std, "conv1", "bn1"))
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for i in range(9):
            at, more = f"layer{stage}.{i}", (width - h.shape[1]) // 2
            stride = 2 if more else 1
            inner = F.relu(conv(h, f"{at}.conv1", f"{at}.bn1", stride))
            shortcut = F.pad(h[:, :, ::stride, ::stride], (0, 0, 0, 0, more, more))
            h = F.relu(conv(inner, f"{at}.conv2", f"{at}.bn2") + shortcut)
    return h.mean((2, 3))


def test_the_cifar_resnet_is_the_published_architecture(tmp_path):
    torch.manual_seed(0)
    state, path = ResNet(9).state_dict(), tmp_path / "random.th"
    for name, tensor in state.items():
        if name.endswith(("running_mean", "bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape))
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    assert sum(tensor.dim() > 1 for tensor in state.values()) == 56
    features = CifarResNet56(str(path), hashlib.sha256(path.read_bytes()).hexdigest()[:8])
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    torch.testing.assert_close(features(images), resnet56_by_hand(state, images))
    with torch.autocast("cpu", torch.bfloat16):
        assert features(images).dtype == torch.float32
    with pytest.raises(ValueError, match="take 3x32x32 images, not 1x32x32"):
        features(images[:, :1])
    with pytest.raises(ValueError, match="expected 4bfd9763"):
        CifarResNet56(str(path))


def test_the_cifar_resnet_without_weights_says_what_it_needs():
    with pytest.raises(FileNotFoundError, match=r"needs features\.weights_path"):
        CifarResNet56()
