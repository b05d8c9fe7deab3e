"""`MutualFederation`: different students on different clients, which learn from each other's logits.

Li and Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", arXiv 1910.03581, algorithm 1: clients
send their class scores on public images, the server averages them to a consensus, and each client digests it. No
weights travel, so clients need not hold the same student.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fedkd.client.works import ClientContext
from fedkd.core.errors import FedKDError, check_range
from fedkd.core.messages import ClientTask, ClientUpdate, Metrics, ServerState
from fedkd.core.progress import progress_bar
from fedkd.core.seeding import seeded
from fedkd.core.tensors import num_bytes
from fedkd.data import FederatedDataModule
from fedkd.runs.directory import RunDirectory
from fedkd.runs.summary import round_row, summarise
from fedkd.server.backends import Backend, InProcess
from fedkd.server.context import ServerContext, client_model
from fedkd.server.federation import Federation, Loaded
from fedkd.server.mutual_clients import MEASURES, Models, MutualClients, mean, table
from fedkd.server.sampling import sample_cohort
from fedkd.strategies import FedAvg
from fedkd.strategies.refinement.images import Which, choose_images
from fedkd.strategies.refinement.server_distillation import mixed_logits
from fedkd.students import students as known_students
from fedkd.teachers import TeacherSignal
from fedkd.training.common_images import CommonImages
from fedkd.training.module import DistillationModule


class MutualFederation(Federation):
    r"""Trains a student for each client: ``MutualFederation(["resnet8", "resnet20"]).fit(module, datamodule)``.

    In every round each client trains on its own shard, as in a `Federation`, and sends its logits on common images,
    4 K bytes each (for every view of them where judgements are of views); the server answers with a consensus, as many
    bytes; each client digests it without a label:

    .. math:: T^2 \, KL(p \| \sigma(s / T)), \quad
              p = \frac{w_e \sigma(\bar z / T) + w_t \sigma(t / T)}{w_e + w_t}

    for the mean :math:`\bar z` of the clients' logits and the foundation model's t. The paper's round has the same
    three parts, but ends where ours has trained on the shard; a client is better on all classes where it has digested.
    Its first training on labelled public images is left out. Clients without images take no part.

    Args:
        students: Names out of ``fedkd.students``: client k trains ``students[k % len(students)]``.
        rounds: Number of rounds in all, those before a resume counted in.
        ensemble_weight: w_e, of the clients' mean logits, >= 0.
        teacher_weight: w_t, of the foundation model's logits, >= 0. It teaches on the shards in any case.
        digest_epochs: Passes over the common images in a round; with 0 every client is alone.
        digest_lr: The first learning rate of Adam, which goes down along a cosine in every round.
        temperature: T > 0.
        images: The common images: "public" is the public split, "shared" what ``data.shared`` gives to all clients.
        backend: Where clients train on their shards.
        teaching: As for `Federation`.
        trainer: As for `Federation`.
        run_dir: Where the run is kept; None takes the next free ``runs/version_N``. Client k's student is in its
            ``clients/k``, for `fedkd.load_student`.
        seed: The students' first weights and all that clients draw come from it.

    Raises:
        FedKDError: For values out of range, or a student that is not known.
    """

    def __init__(
        self,
        students: list[str],
        rounds: int = 10,
        ensemble_weight: float = 1.0,
        teacher_weight: float = 0.0,
        digest_epochs: int = 1,
        digest_lr: float = 1e-3,
        temperature: float = 2.0,
        images: Which = "public",
        backend: Backend = InProcess(),  # noqa: B008
        teaching: Literal["fixed", "consistent"] = "fixed",
        trainer: Mapping[str, Any] | None = None,
        run_dir: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        arguments: dict[str, Any] = {"teaching": teaching, "trainer": trainer, "run_dir": run_dir, "seed": seed}
        super().__init__(rounds, strategy=FedAvg(), backend=backend, **arguments)
        if not students:
            raise FedKDError("students is empty: name at least one, such as ['resnet8', 'resnet20'].")
        for name in students:
            known_students[name]
        check_range("ensemble_weight", ensemble_weight, low=0)
        check_range("teacher_weight", teacher_weight, low=0)
        if not ensemble_weight + teacher_weight:
            raise FedKDError("ensemble_weight and teacher_weight are both 0: give one of them a number above.")
        check_range("digest_epochs", digest_epochs, low=0, whole=True)
        check_range("digest_lr", digest_lr, low=0, low_open=True)
        check_range("temperature", temperature, low=0, low_open=True)
        self.students = list(students)
        self.ensemble_weight, self.teacher_weight, self.temperature = ensemble_weight, teacher_weight, temperature
        self.digest_epochs, self.digest_lr, self.images = digest_epochs, digest_lr, images

    def fit(
        self, module: DistillationModule, datamodule: FederatedDataModule, ckpt_path: str | Path | None = None
    ) -> dict[str, Any]:
        """Run the rounds; each is on disk when it is done.

        Args:
            module: What all clients have in common: teacher, loss, optimizer and the options of students. Its own
                student is not used.
            datamodule: The clients' shards, the common images and the global test set.
            ckpt_path: As for `Federation.fit`.

        Returns:
            The summary, as in ``summary.json``: accuracies are means over the clients, ``clients`` has each one's own,
            ``ensemble`` that of their mean logits.
        """
        start = time.perf_counter()
        modules = {name: self._module(name, module) for name in self.students}
        first = modules[self.students[0]]  # the others share its teacher, its loss and its optimizer
        device = self._set_up(first, datamodule)
        run, identity, found = self._open_run(first, datamodule, ckpt_path)
        signal = self._ask_teacher(first, datamodule, device)
        clients = self._gather(modules, datamodule, signal)
        models, history = self._begin(run, clients, module, found)
        images = clients.contexts[self.students[0]].common_images(self.images)

        with self._finalised_loggers(), progress_bar("Rounds", self.rounds, done=len(history)) as bar:
            for round in range(len(history), self.rounds):
                began = time.perf_counter()
                tasks = [ClientTask(round, client, *model) for client, model in models.items()]
                updates = self._train(clients, tasks)
                models = {update.client: client_model(models[update.client], update) for update in updates}
                said = clients.ask(models, images)
                models = self._teach(round, clients, models, said, images)
                scores, together = clients.test(models, datamodule)
                history.append(
                    round_row(tasks, updates, mean(scores), seconds=time.perf_counter() - began)
                    | dict.fromkeys(
                        ("bytes_up", "bytes_down"), num_bytes(*({"logits": each} for each in said.values()))
                    )
                    | {f"ensemble/{name}": together[name] for name in MEASURES}
                    | {f"client_{k}/{name}": score[name] for k, score in scores.items() for name in MEASURES}
                )
                states = {client: {**parameters, **buffers} for client, (parameters, buffers) in models.items()}
                run.commit(ServerState(round + 1, {}, {}, states), {}, history, identity)
                self._log(history[-1])
                bar.advance(note=f"mean balanced accuracy {history[-1]['balanced_accuracy']:.1%}")

        for client, model in models.items():
            own = clients.module(client)
            run.save_student(ServerState(self.rounds, *model), own.describe(), own.constants(), client=client)
        summary = summarise(first, history, signal, identity, seconds=time.perf_counter() - start, run_dir=run.path)
        summary["ensemble"] = {name: history[-1][f"ensemble/{name}"] for name in MEASURES}
        summary["clients"] = table(clients, models, datamodule, history[-1])
        run.write_json("summary.json", summary)
        return summary

    def _set_up(self, module: DistillationModule, datamodule: FederatedDataModule) -> torch.device:
        device = super()._set_up(module, datamodule)
        choose_images(self.images, datamodule)
        if self.teacher_weight and module.teacher is None:
            raise FedKDError(f"teacher_weight {self.teacher_weight:g} needs a teacher: set model.teacher.")
        return device

    def _identity(self) -> dict[str, Any]:
        names = ("ensemble_weight", "teacher_weight", "digest_epochs", "digest_lr", "temperature", "images")
        mutual = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return {**super()._identity(), "students": ", ".join(self.students), "mutual": mutual}

    def _module(self, name: str, common: DistillationModule) -> DistillationModule:
        """Return a module like the common one, with another student."""
        given = {"name", "num_classes", "in_channels", "image_size"}
        options = {key: value for key, value in (common.student_spec or {}).items() if key not in given}
        return DistillationModule(name, common.teacher, common.loss, common.optimizer, options, common.label_loss)

    def _gather(
        self, modules: Mapping[str, DistillationModule], data: FederatedDataModule, signal: TeacherSignal | None
    ) -> MutualClients:
        """Say who holds what, and prepare the modules for it."""
        contexts, said = {}, signal.for_clients() if signal else {}
        for name, module in modules.items():
            with seeded(self.seed, "student"):
                module.build(data.classes, data.image_shape)
            if signal is not None:
                module.calibrate_to(signal, data.shards)
            context = ClientContext(module, data, self.trainer, self.strategy, self.seed, **said)
            contexts[name] = ServerContext.of(context, start=ServerState(0, {}, {}))
        clients = sample_cohort([k for k, shard in enumerate(data.shards) if len(shard)], None, seed=self.seed, round=0)
        return MutualClients({k: self.students[k % len(self.students)] for k in clients}, contexts)

    def _begin(
        self, run: RunDirectory, clients: MutualClients, common: DistillationModule, found: Loaded | None
    ) -> tuple[Models, list[Metrics]]:
        """Return the clients' models and the history to go on from: first weights are each client's own."""
        if found is not None:
            state, _, history = found
            run.write_metrics(history)
            for row in history:
                self._log(row)
            return {client: clients.model(client, tensors) for client, tensors in state.client_states.items()}, history
        models: Models = {}
        for client, name in clients.names.items():
            with seeded(self.seed, "student", client):
                models[client] = clients.first_model(client, self._module(name, common))
        return models, []

    def _train(self, clients: MutualClients, tasks: list[ClientTask]) -> list[ClientUpdate]:
        """Let all clients train on their shards, those with one kind of student together."""
        updates = []
        for name, context in clients.contexts.items():
            if own := [task for task in tasks if clients.names[task.client] == name]:
                updates += self._run_clients(context, own)
        return sorted(updates, key=lambda update: update.client)

    def _teach(
        self, round: int, clients: MutualClients, models: Models, said: Mapping[int, Tensor], images: CommonImages
    ) -> Models:
        """Make a consensus of what clients said, and let all digest it."""
        ensemble = torch.stack(list(said.values())).mean(0)
        sources = [(self.ensemble_weight, ensemble), (self.teacher_weight, images.teacher_logits)]
        consensus = mixed_logits([(w, logits) for w, logits in sources if w and logits is not None], self.temperature)
        return clients.digest(
            round,
            models,
            images,
            consensus,
            epochs=self.digest_epochs,
            lr=self.digest_lr,
            temperature=self.temperature,
        )
