"""The cache computes each output once, survives kills and truncation, and is never stale."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from torchvision import transforms

from fedkd.core.errors import FedKDError
from fedkd.data import Augmentation, ImageSet, Views
from fedkd.teachers import Teacher, TeacherCache
from fedkd.teachers.outputs.fingerprint import code_within
from fedkd.teachers.outputs.passes import Pass


class Counting(Teacher):
    """Notes every image that it looks at in a file, so that other processes' work is counted too."""

    checkpoint: str

    def __init__(self, log: Path, gain: float = 1.0, pause: float = 0.0) -> None:
        super().__init__()
        self.checkpoint = f"{log}|{pause}"  # not part of the fingerprint
        self.gain = gain

    def features(self, images: Tensor) -> Tensor:
        log, pause = self.checkpoint.split("|")
        time.sleep(float(pause))
        with open(log, "a") as file:
            file.writelines(f"{round(float(image.sum() * 255))}\n" for image in images)
        return self.gain * images.flatten(1)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def numbered(count: int = 40) -> ImageSet:
    """Return images of which each has its own sum: the number of the image."""
    images = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return ImageSet(images, torch.zeros(count, dtype=torch.int64), ("a",))


def seen(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()]


def get(folder: Path, teacher: Teacher, data: ImageSet, views: Views | None = None) -> np.ndarray:
    return TeacherCache(folder).get(teacher, data, views=views, batch_size=8, progress=False)


def test_holds_every_output_in_order_and_computes_it_once(tmp_path: Path, log: Path) -> None:
    data = numbered()
    first = get(tmp_path / "c", Counting(log), data)
    assert isinstance(first, np.memmap)
    assert first.shape == (40, 1, 4)
    assert first.dtype == np.float16
    np.testing.assert_allclose(first[:, 0, 0], np.arange(40) / 255, rtol=1e-3)
    assert seen(log) == list(range(40))
    again = get(tmp_path / "c", Counting(log), data)
    assert np.array_equal(first, again)
    assert len(seen(log)) == 40


def test_another_teacher_or_other_data_never_read_it(tmp_path: Path, log: Path) -> None:
    data = numbered()
    get(tmp_path / "c", Counting(log), data)
    doubled = get(tmp_path / "c", Counting(log, gain=2.0), data)
    np.testing.assert_allclose(doubled[:, 0, 0], 2 * np.arange(40) / 255, rtol=1e-3)
    other = ImageSet(data.images.flip(0), data.targets, data.classes)
    np.testing.assert_allclose(get(tmp_path / "c", Counting(log), other)[:, 0, 0], np.arange(40)[::-1] / 255, rtol=1e-3)
    assert len(seen(log)) == 120


def test_a_truncated_or_damaged_file_is_mended(tmp_path: Path, log: Path) -> None:
    data = numbered()
    whole = np.array(get(tmp_path / "c", Counting(log), data))
    (path,) = (tmp_path / "c").glob("*.npy")
    content = path.read_bytes()
    for damaged, computed in (
        (content[: len(content) - 3], 8),  # the last batch
        (content[: len(content) - 20 * 8 - 1], 24),  # 19 rows and a bit: from row 16 on
        (content[:60], 40),  # not even the header
        (b"", 40),
        (content + b"more", 40),
        (b"\x00" * len(content), 40),
    ):
        path.write_bytes(damaged)
        log.write_text("")
        assert np.array_equal(get(tmp_path / "c", Counting(log), data), whole)
        assert seen(log) == list(range(40 - computed, 40))
        assert path.read_bytes() == content


def test_a_flipped_bit_is_never_read(tmp_path: Path, log: Path) -> None:
    data, rng = numbered(), random.Random(0)
    whole = np.array(get(tmp_path / "c", Counting(log), data))
    (path,) = (tmp_path / "c").glob("*.npy")
    content = path.read_bytes()
    for _ in range(30):
        flipped = bytearray(content)
        flipped[rng.randrange(128, len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        log.write_text("")
        with pytest.warns(UserWarning, match=f"{path.name}' is damaged"):
            again = get(tmp_path / "c", Counting(log), data)
        assert np.array_equal(again, whole)
        assert seen(log) == list(range(40))
        assert path.read_bytes() == content
    path.with_suffix(".sha256").write_text("x")
    with pytest.warns(UserWarning, match="is damaged"):
        assert np.array_equal(get(tmp_path / "c", Counting(log), data), whole)


FLIPPED = Views(3, Augmentation(0, True))  # no crop: the sum of an image, by which it is counted, stays


def test_holds_every_view_of_every_image(tmp_path: Path, log: Path) -> None:
    data = ImageSet(torch.randint(0, 256, (21, 3, 4, 4)).to(torch.uint8), torch.arange(21) % 2, ("a", "b"))
    views, index = Views(3, Augmentation(1, True), seed=7), torch.arange(21)
    rows = get(tmp_path / "c", Counting(log), data, views)
    assert rows.shape == (21, 3, 48)
    for v in range(3):
        seen_there = views.augmentation(data.images, index, torch.tensor(v), 7).float() / 255
        np.testing.assert_allclose(rows[:, v], seen_there.flatten(1), rtol=1e-3)
    assert not np.array_equal(rows[:, 0], rows[:, 1])
    for batch_size in (2, 64):  # fewer than an image's views, and more than all images
        store = TeacherCache(tmp_path / f"{batch_size}")
        again = store.get(Counting(log), data, views=views, batch_size=batch_size, progress=False)
        assert np.array_equal(again, rows)


def test_truncated_views_are_completed_by_whole_images(tmp_path: Path, log: Path) -> None:
    data = numbered()
    whole = np.array(get(tmp_path / "c", Counting(log), data, FLIPPED))
    (path,) = (tmp_path / "c").glob("*.npy")
    content = path.read_bytes()
    image_bytes = 3 * 4 * 2
    for removed, computed in ((1, 2), (2 * image_bytes, 2), (2 * image_bytes + 1, 4), (39 * image_bytes, 40)):
        path.write_bytes(content[: len(content) - removed])
        log.write_text("")
        assert np.array_equal(get(tmp_path / "c", Counting(log), data, FLIPPED), whole)
        assert seen(log) == [i for i in range(40 - computed, 40) for _ in range(3)]
        assert path.read_bytes() == content


class Darker(Augmentation):
    def apply(self, images: Tensor, draw: object) -> Tensor:
        return images // 2


def test_other_views_never_read_it(tmp_path: Path, log: Path) -> None:
    data = numbered()
    for number, views in enumerate(
        (
            None,
            FLIPPED,
            Views(1, Augmentation(0, True)),
            Views(3, Augmentation(1, True)),
            Views(3, Augmentation(0, True), seed=1),
            Views(3, Darker(0, True)),
        )
    ):
        get(tmp_path / "c", Counting(log), data, views)
        assert len(list((tmp_path / "c").glob("*.npy"))) == number + 1
    looked = len(seen(log))
    get(tmp_path / "c", Counting(log), data, Views(3, Augmentation(0, True)))
    assert len(seen(log)) == looked, "equal views are found again"


NOISE = """
class Noise:
    def __call__(self, image):
        return image + {0}

class Of:
    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        return self.transform(image)
"""


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda user: user.Noise(),
        lambda user: user.Noise().__call__,
        lambda user: user.Of(user.Noise()),
        lambda user: transforms.Compose([user.Noise()]),
        lambda user: closing_over(user.Noise()),
    ],
)
def test_the_code_of_an_ordinary_transform_counts(
    wrapped: Callable[[object], object], written: Callable[[str], object]
) -> None:
    def key(added: int) -> str:
        views = Views(2, Augmentation(transforms=[wrapped(written(NOISE.format(added)))]))
        return Pass(Pixels(), numbered(), views, False, 8).key

    assert key(1) == key(1) != key(2)


def closing_over(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda image: transform(image)


def test_a_librarys_transform_counts_by_its_settings() -> None:
    assert code_within(transforms.Compose([transforms.Resize(8), transforms.ToTensor()])) == ""


def test_clearing_frees_all_but_what_is_just_being_built(tmp_path: Path, log: Path) -> None:
    store, data = TeacherCache(tmp_path / "c"), numbered()
    get(store.folder, Counting(log), data)
    get(store.folder, Counting(log, gain=2.0), data, FLIPPED)
    sizes = [path.stat().st_size for path in store.folder.glob("*.npy")]
    busy = sorted(store.folder.glob("*.npy"))[0]
    with FileLock(store.folder / f"{busy.name.split('.')[0]}.lock"):
        assert store.clear() == sum(sizes) - busy.stat().st_size + 64  # and the checksum beside the other
    assert store.clear() > 0
    assert (store.clear(), list(store.folder.glob("*.npy"))) == (0, [])
    log.write_text("")
    get(store.folder, Counting(log), data)
    assert len(seen(log)) == 40


def test_a_folder_without_locks_is_used_with_a_warning(tmp_path: Path, log: Path, monkeypatch) -> None:
    def acquire(self, **_):
        raise OSError(errno.ENOLCK, "No locks available")

    data = numbered()
    monkeypatch.setattr("fedkd.teachers.outputs.cache.FileLock.acquire", acquire)
    with pytest.warns(UserWarning, match="cannot be locked"):
        found = get(tmp_path / "c", Counting(log), data)
    monkeypatch.undo()
    assert len(seen(log)) == 40
    assert np.array_equal(found, get(tmp_path / "c", Counting(log), data))
    assert len(seen(log)) == 40


@pytest.mark.parametrize("gain", [1e8, 1e-8])
def test_values_outside_float16_are_kept_in_float32(gain: float, tmp_path: Path, log: Path) -> None:
    data = numbered()
    for expected_work in (48, 0):  # one batch in vain, then never again
        log.write_text("")
        rows = get(tmp_path / "c", Counting(log, gain=gain), data)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows[:, 0, 0], gain * np.arange(40) / 255, rtol=1e-6)
        assert len(seen(log)) == expected_work


def test_a_late_overflow_is_noticed(tmp_path: Path, log: Path) -> None:
    data = numbered()
    rows = get(tmp_path / "c", Counting(log, gain=65504 / 30 * 255), data)  # image 31 and on are beyond float16
    assert np.isfinite(rows).all()
    assert rows.dtype == np.float32


class Broken(Teacher):
    def __init__(self, value: float, dims: int) -> None:
        super().__init__()
        self.value, self.dims = value, dims

    def features(self, images: Tensor) -> Tensor:
        return torch.full((len(images),) + (2,) * self.dims, self.value)


def test_bad_outputs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FedKDError, match="not finite"):
        get(tmp_path, Broken(float("nan"), 1), numbered())
    with pytest.raises(FedKDError, match=r"one vector per image, \(B, D\)\. For 8 images it returned \(8, 2, 2\)"):
        get(tmp_path, Broken(1.0, 2), numbered())
    with pytest.raises(FedKDError, match="no images"):
        get(tmp_path, Broken(1.0, 1), numbered(0))


class Logits(Teacher):
    """Its forward is its own, so its logits are cached, and depend on its head."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.head.weight, scale)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        assert self.head is not None
        return self.head(self.features(images)) + 1


def test_logits_are_cached_where_forward_is_overridden(tmp_path: Path) -> None:
    data = numbered()
    for scale in (1.0, 2.0):
        rows = get(tmp_path, Logits(scale), data)
        np.testing.assert_allclose(rows[:, 0, 0], 1 + scale * np.arange(40) / 255, rtol=1e-3)
    features = TeacherCache(tmp_path).get(Logits(2.0), data, features=True, progress=False)
    assert features.shape == (40, 1, 4)
    np.testing.assert_allclose(features[:, 0, 0], np.arange(40) / 255, rtol=1e-3)


BUILDER = """
import sys
sys.path[:0] = [{here!r}]
from test_cache import Counting, get, numbered
from pathlib import Path
folder, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
rows = get(folder, Counting(log, pause=pause), numbered())
print(rows.shape, float(rows.astype("float64").sum()))
"""


def builder(folder: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    script = BUILDER.format(here=str(Path(__file__).parent))
    arguments = [sys.executable, "-c", script, str(folder), str(log), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_killed_halfway_goes_on_and_two_processes_share_the_work(tmp_path: Path, log: Path) -> None:
    killed = builder(tmp_path / "c", log, pause=0.5)
    deadline = time.monotonic() + 60
    while len(seen(log)) < 16 and time.monotonic() < deadline:  # the second batch is computed: the first is written
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = len(seen(log))
    assert 16 <= before < 40
    (path,) = (tmp_path / "c").glob("*.npy")
    written = path.read_bytes()

    both = [builder(tmp_path / "c", log, pause=0.05) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1] != ""

    assert path.read_bytes().startswith(written)
    numbers = seen(log)
    assert set(numbers) == set(range(40))
    assert len(numbers) <= 40 + 8, "only the batch that was under way when it was killed may be computed again"
    alone = get(tmp_path / "fresh", Counting(log), numbered())
    assert np.array_equal(np.load(path), alone), "the same as a build that nothing disturbed"


class Pixels(Teacher):
    """Has a weight, and so a device."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def features(self, images: Tensor) -> Tensor:
        return self.gain * images.flatten(1)


@pytest.mark.gpu
def test_what_cuda_works_ahead_arrives_whole_and_in_order(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (301, 3, 64, 64)).to(torch.uint8)
    data = ImageSet(images, torch.zeros(301, dtype=torch.int64), ("a",))
    for views in (None, Views(3, Augmentation(4, True))):
        cpu = get(tmp_path / "cpu", Pixels(), data, views)
        cuda = get(tmp_path / "cuda", Pixels().to("cuda"), data, views)
        np.testing.assert_allclose(cuda, cpu, rtol=1e-3, atol=1e-6)
