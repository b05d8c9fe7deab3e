"""What the command line does before the parser: short forms, and configurations that cannot be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedkd.cli.arguments import expand
from fedkd.cli.main import main
from fedkd.core.errors import FedKDError


def test_a_configuration_needs_no_option(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: {num_clients: 3}")
    given = ["--data.batch_size", "4"]
    assert expand(["fit", str(path), *given]) == ["fit", "--config", str(path), *given]
    assert expand(["partition", str(path)]) == ["partition", "--config", str(path)]
    assert expand(["fit", *given]) == ["fit", *given]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"data:\n  num_clients: 3\nmodel: {}\ndata:\n  batch_size: 2\n", "wrong in line 4: 'data' stands there twice"),
        (b"data:\n  seed: 1\n  seed: 2\n", "wrong in line 3: 'seed' stands there twice"),
        (b"data: [\n", "wrong in line 2: expected"),
        (b"? [1, 2]\n: x\n", "wrong in line 1: found unhashable key"),
        (b"\x7fELF\xff\xfe", "is not text"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    for given in (
        ["fit", str(path)],
        ["fit", "--config", str(path)],
        ["fit", f"--config={path}"],
        ["fit", "-c", str(path)],
    ):
        with pytest.raises(FedKDError, match=message) as found:
            expand(given)
        assert "\n" not in str(found.value)


def test_nothing_in_a_checkpoint_reaches_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """LightningCLI would read the file, and merge what it calls hyper_parameters into the options."""
    path, config = tmp_path / "foreign.ckpt", Path(__file__).parents[2] / "examples" / "quickstart.yaml"
    torch.save({"hyper_parameters": {"no_such_option": 1}, "state_dict": {}}, path)
    given = ["--run_dir", str(tmp_path / "run"), "--ckpt_path", str(path), "--model.teacher", "null"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), *given])
    assert ended.value.code == 2
    assert "foreign.ckpt' is damaged, or fedkd did not write it" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_keys_of_merged_mappings_may_repeat(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1}\nb: &b {y: 1}\nc:\n  <<: [*a, *b]\n  x: 2\n")
    expand(["fit", str(path)])
