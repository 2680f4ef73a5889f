"""Every figure of an evaluation again, by another way: numpy, from what lies beside results.json and its cards alone."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits

from anysigma.metrics.features import ClassifierFeatures

ROOT = Path(__file__).parents[2]
WORDS = ("study=all", "debug=true", "logger=csv", "study.studies.fidelity.n=140", "study.studies.table.n=32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """study=all on a run of 300 steps: enough for images that are a little like digits."""
    place = tmp_path_factory.mktemp("recomputed")
    light = ("model.channels=16", "model.multipliers=[1]", "trainer.max_steps=300", "~callbacks.distance")
    first = ["train.py", "logger=csv", "run=small", "study=schedule", *light]
    for script, *words in (first, ["evaluate.py", "checkpoint=small", *WORDS]):
        done = subprocess.run([sys.executable, ROOT / script, *words], cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    (path,) = place.glob("logs/evaluate/small/all-*/results.json")
    return path.parent


@pytest.fixture(scope="module")
def content(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def real():
    """Training and held-out digits, uint8 `[N, 1, 8, 8]`, by the data set's own rule: the first 1,437, and the others."""
    images = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.RandomState(0).permutation(len(images))
    return images[order[:1437]], images[order[1437:]]


def rows(content, study, metric=None):
    """(row, its card) of a study."""
    mine = [row for row in content["rows"] if row["study"] == study and metric in (None, row["metric"])]
    return [(row, content["cards"][row["card"]]) for row in mine]


def arrays(folder, name):
    return dict(np.load(folder / f"{name}.npz"))


def mean_and_error(values):
    values = np.asarray(values, dtype=float)
    return values.mean(), values.std(ddof=1) / math.sqrt(len(values))


def same(row, values, rel=1e-6):
    assert (row["value"], row["error"]) == pytest.approx(mean_and_error(values), rel=rel, abs=1e-12)
    assert row["n"] == len(values)


def shards(folder, row):
    """The images that a row was measured on: the shards of its sampler, in their order."""
    for path in folder.glob("shards/*/setting.json"):
        sampler = json.loads(path.read_text())["sampler"]
        if {name: sampler.get(name) for name in row["params"]} == row["params"]:
            return np.concatenate([np.load(block) for block in sorted(path.parent.glob("*.npy"))])
    raise AssertionError(f"no images of {row['params']}")


def vectors(images):
    """Feature vectors by the shipped network; all that is done with them is done here."""
    return ClassifierFeatures("digits", (1, 8, 8))(torch.from_numpy(images)).double().numpy()


def frechet(x, y):
    difference = x.mean(0) - y.mean(0)
    a, b = np.cov(x.T), np.cov(y.T)
    return difference @ difference + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real


def kid(x, y, subsets=100):
    """Unbiased MMD² with the kernel (x·y/D + 1)³ over subsets (Bińkowski et al. 2018), those that torch-fidelity draws."""
    draw, m, found = np.random.RandomState(2020), min(1000, len(x), len(y)), []
    for _ in range(subsets):
        a, b = x[draw.choice(len(x), m, replace=False)], y[draw.choice(len(y), m, replace=False)]
        aa, bb, ab = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        inner = sum(k.sum() - np.trace(k) for k in (aa, bb)) / (m * (m - 1))
        found.append(inner - 2 * ab.mean())
    return np.mean(found)


def coverage(x, y, k=3):
    """The share of x within the k-th neighbour's distance of some y (Kynkäänniemi et al. 2019)."""
    apart = np.linalg.norm(y[:, None] - y[None], axis=2)
    radius = np.sort(apart, axis=1)[:, k]
    return (np.linalg.norm(x[:, None] - y[None], axis=2) <= radius).any(1).mean()


def few(x, n):
    """n rows in the seeded order that all counts are made equal by."""
    return x if len(x) == n else x[order(len(x), 0)[:n]]


def order(count, key):
    """The seeded order that the source draws for a key."""
    seed = int.from_bytes(hashlib.blake2b(repr((key,)).encode(), digest_size=8).digest(), "little") >> 1
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


def test_distances_and_what_stands_beside_them(folder, content, real):
    train, held_out = (vectors(images) for images in real)
    checked = 0
    for study in ("fidelity", "table"):
        for row, card in rows(content, study, "fd_digits"):
            n, sets = card["n"], card["sets"]
            images = shards(folder, row)[: n * sets].reshape(sets, n, 1, 8, 8)
            found = [vectors(one) for one in images]
            by = {r["metric"]: r for r, _ in rows(content, study) if r["params"] == row["params"]}
            reference, beside = few(train, n), few(held_out, n)
            expected = {
                "fd_digits": [frechet(x, train) for x in found], "kid_digits": [kid(x, train) for x in found],
                "precision_digits": [coverage(x, reference) for x in found],
                "recall_digits": [coverage(reference, x) for x in found],
                "fd_digits_held_out": [frechet(few(x, n), beside) for x in found],
            }  # fmt: skip
            for metric, values in expected.items():
                assert by[metric]["sets"] == pytest.approx(values, rel=2e-3, abs=1e-3), (study, metric)
                assert (by[metric]["value"], by[metric]["error"]) == pytest.approx(mean_and_error(by[metric]["sets"]))
            assert len(set(row["sets"])) == sets
            checked += 1
    assert checked == 1 + len({json.dumps(r["params"]) for r, _ in rows(content, "table")}) > 10


def test_the_anchors_of_the_distance(folder, content, real):
    train, held_out = (vectors(images) for images in real)
    ((row, card),) = rows(content, "fidelity", "fd_digits")
    both, n, found = np.concatenate([train, held_out]), card["n"], []
    for split in range(card["anchor_draws"]):
        drawn = order(len(both), split)
        found.append(frechet(both[drawn[:n]], both[drawn[n:]]))
    anchor = row["anchors"]["real images"]
    assert (anchor["value"], anchor["error"]) == pytest.approx(mean_and_error(found), rel=1e-3)
    assert anchor["sd"] == pytest.approx(np.std(found, ddof=1), rel=1e-3) and anchor["draws"] == len(found) == 4
    drawn = order(len(held_out), 0)
    sets = [frechet(held_out[drawn[i : i + n]], train) for i in range(0, n * (len(held_out) // n), n)]
    assert row["anchors"]["held-out images"]["value"] == pytest.approx(np.mean(sets), rel=1e-3)


def test_the_limit_of_infinitely_many_images(content, folder, real):
    ((row, card),) = rows(content, "fidelity", "fd_digits_infinite")
    ((distance, _),) = rows(content, "fidelity", "fd_digits")
    if row["value"] is None:
        assert "not linear" in card["no_limit"]
        return
    assert row["value"] < distance["value"]
    assert (row["value"], row["error"]) == pytest.approx(mean_and_error(row["sets"]))


def test_likelihood(folder, content):
    found = arrays(folder, "likelihood")
    scale = 64 * math.log(2)
    for row, card in rows(content, "likelihood"):
        if row["metric"] == "L_T":
            same(row, found["prior"] / scale)
            continue
        nats = found["nats_clipped" if row["params"]["clip"] else "nats_unclipped"] / scale
        steps = (nats[:, 1:] * found["lengths"][1:]).sum(1)
        every = {"L_0": nats[:, 0], "L_1 to L_{T-1}": steps, "of which L_{T-1}": nats[:, -1]}
        every["bits_per_dim"] = found["prior"] / scale + steps + nats[:, 0]
        same(row, every[row["metric"]])
        assert card["n"] == len(nats) and found["lengths"][1:].sum() == 999
    assert len(rows(content, "likelihood")) == 9


def test_objective(folder, content):
    found = arrays(folder, "objective")
    etas, networks = [1.0, 0.5, 0.2], ["the checkpoint's", "perturbed"]
    for row, _ in rows(content, "objective"):
        J, L = found["J_and_L"][:, etas.index(row["params"]["eta"]), networks.index(row["params"]["network"])].T
        same(row, {"J_sigma": J, "L_gamma": L, "J_sigma - L_gamma": J - L, "C": found["C"]}[row["metric"]], rel=1e-5)
    assert len(rows(content, "objective")) == 24


def test_consistency_interpolation_speed(folder, content):
    found = list(arrays(folder, "consistency").values())
    for (row, _), values in zip(rows(content, "consistency"), found, strict=True):
        same(row, values)
    images = arrays(folder, "interpolation")["images"].astype(float)
    apart = np.sqrt(((images[:, 1:] - images[:, :-1]) ** 2).mean((2, 3, 4)))
    ends = np.sqrt(((images[:, 0] - images[:, -1]) ** 2).mean((1, 2, 3)))
    expected = {"rmse_ends": ends, "rmse_neighbours": apart.mean(1), "rmse_largest_step": apart.max(1)}
    for row, _ in rows(content, "interpolation"):
        same(row, expected[row["metric"]])
    seconds = arrays(folder, "speed")
    for row, _ in rows(content, "speed"):
        times, block = seconds[f"seconds_S{row['params']['S']}"].astype(float), row["params"]["block"]
        same(row, block / times if row["metric"] == "images_per_second" else times / block, rel=1e-5)


def test_memorisation(folder, content, real):
    """Nearest distances again from the images, by brute force over the 18 views."""
    train, held_out = real
    some = rows(content, "memorisation", "nearest_median")
    n = some[0][0]["n"]
    ((fidelity, _),) = rows(content, "fidelity", "fd_digits")
    made = shards(folder, fidelity)[:n]
    found = arrays(folder, "memorisation")
    yardstick = held_out[: len(found["pixels_held_out"])]
    for images, kept in ((made, found["pixels_made"]), (yardstick, found["pixels_held_out"])):
        assert kept == pytest.approx(nearest(images, train), rel=1e-4, abs=1e-5)
    for row, _ in rows(content, "memorisation"):
        word = "pixels" if row["params"]["space"] == "pixels" else "features"
        near, yard = found[f"{word}_made"].astype(float), np.sort(found[f"{word}_held_out"].astype(float))
        k = max(1, round(0.01 * (len(yard) + 1)))
        expected = {
            "nearest_median": np.quantile(near, 0.5), "nearest_q05": np.quantile(near, 0.05),
            "too_near": (near < yard[k - 1]).mean(), "too_far": (near > yard[-k]).mean(), "copies": (near < 1e-6).mean(),
        }  # fmt: skip
        assert row["value"] == pytest.approx(expected[row["metric"]], rel=1e-5, abs=1e-9), row["metric"]
        if row["interval"]:
            z, p, m = 1.959963984540054, row["value"], row["n"]
            half = z / (1 + z * z / m) * math.sqrt(p * (1 - p) / m + z * z / (4 * m * m))
            middle = (p + z * z / (2 * m)) / (1 + z * z / m)
            assert row["interval"] == pytest.approx([max(0, middle - half), min(1, middle + half)], abs=1e-9)


def nearest(images, train):
    """Root mean squared difference on [-1, 1] to the nearest training image, over shifts by a pixel and mirrors."""
    best = np.full(len(images), np.inf)
    for mirrored in (False, True):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                seen = images[..., ::-1] if mirrored else images
                a = seen[..., max(down, 0) : 8 + min(down, 0), max(right, 0) : 8 + min(right, 0)]
                b = train[..., max(-down, 0) : 8 + min(-down, 0), max(-right, 0) : 8 + min(-right, 0)]
                for i, image in enumerate(a / 127.5):
                    best[i] = min(best[i], np.sqrt(((b / 127.5 - image) ** 2).mean((1, 2, 3))).min())
    return best


def test_reconstruction(folder, content):
    found = arrays(folder, "reconstruction")
    for row, _ in rows(content, "reconstruction"):
        same(row, found[f"squared_error_S{row['params']['S']}"])
    assert [row["key"] for row, _ in rows(content, "reconstruction")] == [False, True]


def test_one_step(folder, content, real):
    found = arrays(folder, "one_step")
    jump, images = found["jump"].astype(float), real[0] / 127.5 - 1
    assert found["mean"] == pytest.approx(images.mean(0), abs=1e-6)
    alpha = math.cos(math.pi / 2 * (0.999 + 0.008) / 1.008) ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2 * (1 - 0.999)
    off = ((jump - images.mean(0)) ** 2).mean((1, 2, 3))
    expected = {
        "amplification": math.sqrt((1 - alpha) / alpha), "one_step_rmse_to_mean": math.sqrt(off.mean()),
        "output_rmse_at_T": math.sqrt(found["squared_error_of_output"].mean()),
        "eps_rmse_at_T": math.sqrt(found["squared_error_of_eps"].mean()),
        "one_step_saturated": (np.abs(jump) > 1).mean(), "one_step_sd": math.sqrt(jump.var(0, ddof=1).mean()),
        "data_sd": math.sqrt(((images - images.mean(0)) ** 2).mean()),
    }  # fmt: skip
    assert {row["metric"]: row["value"] for row, _ in rows(content, "one_step")} == pytest.approx(expected, rel=1e-4)


def test_two_sample(folder, content):
    """The forest on the pixels again, by its card; the null from what was kept."""
    for row, card in rows(content, "two_sample"):
        word = row["params"]["space"].split()[-1]
        halves = arrays(folder, "two_sample")[f"{word}_halves"]
        anchor = row["anchors"]["real halves"]
        assert (anchor["value"], anchor["error"]) == pytest.approx(mean_and_error(halves))
        assert anchor["sd"] == pytest.approx(np.std(halves, ddof=1)) and anchor["draws"] == card["anchor_draws"]
        assert (row["value"] * 2 * row["n"]) % 1 == pytest.approx(0, abs=1e-9) and row["n"] == card["n"]


def test_no_figure_is_left_out(content):
    known = {"fidelity", "table", "likelihood", "objective", "consistency", "interpolation", "speed", "memorisation",
             "one_step", "reconstruction", "two_sample"}  # fmt: skip
    closed = {"schedule"}  # closed forms, no measurement: tests/studies/test_schedule_study.py
    assert {row["study"] for row in content["rows"]} == known | closed
