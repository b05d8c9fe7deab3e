"""`ServerContext`: what a strategy works with on the server, after the updates were joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedkd.client.works import ClientContext
from fedkd.core.errors import FedKDError
from fedkd.core.messages import ClientUpdate, ServerState
from fedkd.core.seeding import derive_seed, seeded
from fedkd.core.tensors import add_scaled
from fedkd.strategies.refinement.images import Which, choose_images
from fedkd.training.batch_norm import reestimate_batch_norm
from fedkd.training.common_images import CommonImages
from fedkd.training.unlabelled import Model, distill, logits_of


@dataclass(frozen=True)
class ServerContext(ClientContext):
    """What the run's clients share, and what the server can do with the student on images that nobody owns.

    All that it draws comes from (run seed, "server", round). It trains and looks in the clients' precision and on
    their device, and with none of their other Trainer arguments: no callback, no clipping.

    Attributes:
        start: The state that the round's updates started from.
    """

    start: ServerState = field(kw_only=True)

    @classmethod
    def of(cls, context: ClientContext, start: ServerState) -> ServerContext:
        """Return the server's side of what clients share."""
        return cls(**vars(context), start=start)

    def common_images(self, which: Which = "public") -> CommonImages:
        """Return the public split or the shared images, and what the foundation model says of them.

        They are augmented as clients' images are. A judgement is of what the foundation model judges, the image itself
        or its fixed views; where nobody teaches, of the fixed views if there are any.
        """
        data = self.datamodule
        images, views = choose_images(which, data), data.image_views
        logits = self.teacher_logits if which == "public" else self.shared_logits
        return CommonImages(
            images,
            batch_size=data.batch_size,
            eval_batch_size=data.eval_batch_size,
            augmentation=views or data.augmentation,
            views=views if logits is None or logits.ndim == 3 else None,
            teacher_logits=None if logits is None else logits[torch.from_numpy(images.indices)],
        )

    def client_models(self, updates: Sequence[ClientUpdate]) -> Iterator[Model]:
        """Yield each client's own model, as it ended the round."""
        for update in updates:
            yield client_model((self.start.parameters, self.start.buffers), update)

    def ensemble_logits(self, updates: Sequence[ClientUpdate], images: CommonImages) -> Tensor:
        """Return the mean of the logits of the clients' models, (P, K), or (P, V, K) over the images' views."""
        assert self.module.student is not None
        return logits_of(self.module.student, self.client_models(updates), images, self.trainer)

    def distill(
        self,
        state: ServerState,
        images: CommonImages,
        logits: Tensor,
        *,
        epochs: int,
        lr: float,
        temperature: float,
        weight: float = 1.0,
    ) -> ServerState:
        """Teach the global student what the logits say of images; see `fedkd.training.unlabelled.distill`."""
        assert self.module.student is not None
        keys = (self.seed, "server", self.start.round)
        with seeded(*keys):
            parameters, buffers = distill(
                self.module.student,
                (state.parameters, state.buffers),
                images,
                logits,
                epochs=epochs,
                lr=lr,
                temperature=temperature,
                weight=weight,
                trainer=self.trainer,
                seed=derive_seed(*keys, "batches"),
            )
        if not all(bool(value.isfinite().all()) for value in parameters.values()):
            raise FedKDError(
                f"Round {self.start.round}: the student became infinite or NaN in distillation on the server. Lower "
                "the strategy's lr."
            )
        return replace(state, parameters=parameters, buffers=buffers)

    def reestimate_batch_norm(self, state: ServerState, images: CommonImages) -> ServerState:
        """Measure the global student's BatchNorm statistics on images."""
        assert self.module.student is not None
        model = (state.parameters, state.buffers)
        _, buffers = reestimate_batch_norm(self.module.student, model, images, self.trainer)
        return replace(state, buffers=buffers)


def client_model(start: Model, update: ClientUpdate) -> Model:
    """Return a client's model, in the dtypes of what it started from."""
    parameters, buffers = start
    found = {name: value.to(buffers[name].dtype) for name, value in update.buffers.items()}
    return add_scaled(parameters, update.delta), found
