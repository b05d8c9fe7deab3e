"""The files of clients' states: which count after a crash at any moment, and which are left."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers import datamodule, module, same, weights

import fedkd
from fedkd.core.client_states import ClientStates
from fedkd.core.messages import ServerState, Weights
from fedkd.runs import directory
from fedkd.runs.client_files import ClientFiles
from fedkd.runs.directory import RunDirectory
from fedkd.strategies import SCAFFOLD, Compose, FedProx


def state(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.full((3,), value)}


def names(folder) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in folder.iterdir())


def values(states) -> dict[int, float]:
    return {client: float(own["x"][0]) for client, own in states.items()}


def test_a_client_keeps_the_files_that_the_checkpoints_need(tmp_path):
    files = ClientFiles(tmp_path)
    for round, cohort in [(1, (1, 2)), (2, (1,)), (3, (1, 3)), (4, (3,))]:
        files.write({client: state(10 * client + round) for client in cohort}, round)
        files.discard(cohort, keep=round - 1)
    # rounds 3 and 4 can be resumed from: 1 and 2 have one file each, 3 has one for either round
    assert names(tmp_path) == ["1.round_000002", "1.round_000003", "2.round_000001", "3.round_000003", "3.round_000004"]
    assert values(ClientFiles(tmp_path, 4)) == values(files) == {1: 13, 2: 21, 3: 34}
    assert values(ClientFiles(tmp_path, 3)) == {1: 13, 2: 21, 3: 33}
    assert len(names(tmp_path)) == 5
    assert values(ClientFiles(tmp_path, 3, discard=True)) == {1: 13, 2: 21, 3: 33}
    assert "3.round_000004" not in names(tmp_path)


def test_a_cleared_state_is_gone_also_after_a_resume(tmp_path):
    files = ClientFiles(tmp_path)
    files.write({1: state(1), 2: state(2)}, 1)
    files.write({1: {}}, 2)
    for found in (files, ClientFiles(tmp_path, 2)):
        assert values(found) == {2: 2}
        assert (1 in found, len(found), found.get(1)) == (False, 1, None)
    assert values(ClientFiles(tmp_path, 1)) == {1: 1, 2: 2}


def test_the_fingerprint_is_of_the_files_that_count_however_they_came_about(tmp_path):
    files = ClientFiles(tmp_path)
    seen = [files.fingerprint]
    for round, cohort in [(1, (1, 2)), (2, (2, 3)), (3, (1,))]:
        files.write({client: state(round) for client in cohort}, round)
        seen.append(files.fingerprint)
    assert [ClientFiles(tmp_path, round).fingerprint for round in range(4)] == seen
    assert len(set(seen)) == 4
    assert [each.partition(":")[0] for each in seen] == ["0", "2", "3", "3"]


@pytest.mark.parametrize("change", ["delete", "delete the newest", "rename", "add"])
def test_a_checkpoint_whose_client_states_changed_is_refused(tmp_path, change):
    federate(tmp_path / "run", 3)
    folder = tmp_path / "run" / "checkpoints" / "clients"
    newest = sorted(folder.glob("*.round_000003*"))[0]
    only = next(path for path in folder.iterdir() if len(list(folder.glob(path.name.split(".")[0] + ".*"))) == 1)
    if change == "delete":
        only.unlink()
    elif change == "delete the newest":
        newest.unlink()
    elif change == "rename":
        only.rename(folder / f"99.{only.name.partition('.')[2]}")
    else:
        shutil.copy(only, folder / f"99.{only.name.partition('.')[2]}")
    with pytest.raises(fedkd.FedKDError, match=r"is not as the checkpoint left it: it has states of \d clients"):
        federate(tmp_path / "run", 4, "last")


def test_a_commit_that_cannot_write_its_checkpoint_leaves_the_states_of_those_before(tmp_path, monkeypatch):
    whole = federate(tmp_path / "whole", 6)
    federate(tmp_path / "parts", 3)
    save = directory.save_checkpoint

    def full(path, state, *rest):
        if state.round == 5:
            raise OSError(28, "No space left on device")
        save(path, state, *rest)

    monkeypatch.setattr(directory, "save_checkpoint", full)
    with pytest.raises(fedkd.FedKDError, match=r"No space left.*3 finished|No space left.*4 finished"):
        federate(tmp_path / "parts", 6, "last")
    monkeypatch.undo()
    (tmp_path / "parts" / "checkpoints" / "round_000004.ckpt").unlink()  # the second is for disks that lie
    assert same(whole, federate(tmp_path / "parts", 6, "last"))


def test_a_damaged_file_is_named(tmp_path):
    ClientFiles(tmp_path).write({7: state(1)}, 1)
    path = tmp_path / "7.round_000001.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(fedkd.FedKDError, match=r"The state of client 7 cannot be read. .*7\.round_000001.* is damaged"):
        ClientFiles(tmp_path, 1)[7]


def test_a_commit_writes_the_cohorts_states_alone_and_hands_back_those_on_disk(tmp_path):
    run = RunDirectory(tmp_path)
    first = ServerState(
        1, Weights({"w": torch.zeros(1)}), client_states=ClientStates().changed({1: state(1), 2: state(2)})
    )
    committed = run.commit(first, {"round": 0}, {})
    assert committed.client_states.changes == {}
    second = ServerState(2, first.weights, client_states=committed.client_states.changed({2: state(3)}))
    assert values(run.commit(second, {"round": 1}, {}).client_states) == {1: 1, 2: 3}
    assert names(tmp_path / "checkpoints" / "clients") == ["1.round_000001", "2.round_000001", "2.round_000002"]
    state_and_history = RunDirectory(tmp_path, resume=True).load("last", {})
    assert values(state_and_history[0].client_states) == {1: 1, 2: 3}
    assert [row["round"] for row in state_and_history[1]] == [0, 1]


def federate(run_dir, rounds, ckpt_path=None):
    trained = module()
    federation = fedkd.Federation(
        rounds=rounds,
        clients_per_round=2,
        strategy=Compose([SCAFFOLD(), FedProx(0.1)]),
        trainer={"accelerator": "cpu"},
        run_dir=run_dir,
    )
    federation.fit(trained, datamodule(num_clients=4), ckpt_path)
    return weights(trained)


def test_work_of_a_round_that_was_never_committed_changes_nothing(tmp_path):
    whole = federate(tmp_path / "whole", 4)
    federate(tmp_path / "parts", 2)
    folder = tmp_path / "parts" / "checkpoints" / "clients"
    for client in range(4):  # as if the process died in the commit of round 2, after all but its checkpoint
        (folder / f"{client}.round_000003.safetensors").write_bytes(b"half of a file")
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("2,0.5,0.")
    assert same(whole, federate(tmp_path / "parts", 4, "last"))
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]]  # but the seconds


def test_a_branch_keeps_its_states_when_the_other_run_is_gone(tmp_path):
    whole = federate(tmp_path / "whole", 4)
    federate(tmp_path / "stem", 2)
    federate(tmp_path / "branch", 3, tmp_path / "stem" / "checkpoints" / "round_000002.ckpt")
    shutil.rmtree(tmp_path / "stem")
    assert same(whole, federate(tmp_path / "branch", 4, "last"))
    assert len((tmp_path / "branch" / "metrics.csv").read_text().splitlines()) == 5
