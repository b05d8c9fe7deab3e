"""The ``fedkd`` command: LightningCLI with a section for the federation.

``fedkd fit --config run.yaml --data.num_clients 20 --federation.rounds 3 --trainer.precision bf16-mixed``
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from fedkd import __version__
from fedkd.client import TRAINER_DEFAULTS
from fedkd.data import FederatedDataModule
from fedkd.distillation import DistillationModule
from fedkd.errors import FedKDError, MissingResourceError
from fedkd.server.federation import Federation

SECTIONS = {  # what each subcommand makes out of the configuration
    "fit": ("data", "model", "federation", "trainer"),
    "test": ("data", "model", "trainer"),
    "predict": ("data", "model", "trainer"),
    "partition": ("data",),
    "teachers": (),
}


class Parser(LightningArgumentParser):
    """Reports a wrong value in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error for `main` to print."""
        from fedkd.cli_errors import explain

        raise FedKDError(explain(self, message)) from None


class FedKDCLI(LightningCLI):
    """The command line. Its subcommands are this class's methods; their parameters are options."""

    def __init__(self, args: ArgsType = None) -> None:
        super().__init__(
            DistillationModule,
            FederatedDataModule,
            save_config_callback=None,
            trainer_defaults={key: value for key, value in TRAINER_DEFAULTS.items() if key != "logger"},
            parser_kwargs={"prog": "fedkd", "description": __doc__, "version": __version__, "allow_abbrev": False},
            parser_class=Parser,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # -- subcommands -------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Run a federation."""
        from fedkd.server.display import print_summary

        self.federation.config = self.reproducing_config()
        print_summary(self.federation.fit(self.model, self.datamodule, ckpt_path=self.chosen.ckpt_path))

    def test(self) -> None:
        """Test a run's student on the global test set: fedkd test RUN_DIR."""
        from fedkd.server.display import print_metrics
        from fedkd.server.inference import evaluate_run

        print_metrics(evaluate_run(self.run_dir(), self.datamodule, self.trainer_arguments, self.student))

    def predict(self, images: str | None = None, output: str | None = None) -> None:
        """Write a run's predictions as CSV: fedkd predict RUN_DIR.

        Args:
            images: An image file, or a folder of them; the global test set if not given.
            output: The CSV file; RUN_DIR/predictions.csv if not given.
        """
        from fedkd.server.inference import predict_run

        run_dir = self.run_dir()
        path = Path(output) if output else run_dir / "predictions.csv"
        print(predict_run(run_dir, self.datamodule, self.trainer_arguments, images, path, self.student))

    def partition(self, output: str = "partition.png") -> None:
        """Show which client holds how many images of which class, and plot it; nothing trains.

        Args:
            output: The plot's file (PNG, PDF or SVG).
        """
        from fedkd.server.display import make_console

        self.datamodule.prepare_data()
        self.datamodule.setup()
        report = self.datamodule.partition_report()
        make_console().print(report.table())
        report.plot(output)
        print(output)

    def teachers(self) -> None:
        """List the teachers that are known by a short name; any HuggingFace id or local folder works too."""
        from fedkd.server.display import print_teachers

        print_teachers()

    # -- how LightningCLI is bent --------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the subcommands; none of their parameters is hidden."""
        return {name: set() for name in SECTIONS}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: always a number, so that every run can be run again."""
        text = "Decides the partition, the cohorts, the student's first weights and all that clients draw."
        parser.add_argument("--seed_everything", type=NonNegativeInt, default=0, help=text)

    def _set_seed(self) -> None:
        seed_everything(self.chosen.seed_everything, workers=True, verbose=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections that Lightning does not have, and let one seed govern all."""
        parser.add_class_arguments(
            Federation, "federation", skip={"trainer", "run_dir", "seed"}, instantiate=False, sub_configs=True
        )
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="The run's folder (default: runs/version_N)."
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="For fit: 'last' goes on from run_dir's newest round; or the path of a round checkpoint.",
        )
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; LightningCLI's own warns when it is handed arguments, as `main` does."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    @property
    def chosen(self) -> Namespace:
        """The configuration of the subcommand that was chosen."""
        return self.config[self.config.subcommand]

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        # as LightningCLI's, with this class's methods in place of the Trainer's
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        group = parser.add_subcommands()
        for name in self.subcommands():
            description = (getattr(type(self), name).__doc__ or "").strip().splitlines()[0]
            usage = f"fedkd {name} [--config FILE] [--SECTION.OPTION VALUE ...]"  # not a page of all there are
            subparser = self._prepare_subcommand_parser(
                type(self), name, description=description, usage=usage, allow_abbrev=False
            )
            self._subcommand_parsers[name] = subparser
            group.add_subcommand(name, subparser, help=description)

    def instantiate_classes(self) -> None:
        """Make only what the subcommand uses: ``partition`` loads no teacher."""
        config = self.chosen
        wanted = SECTIONS[self.config.subcommand]
        for section in wanted:
            if not isinstance(config.get(section), Namespace):
                raise FedKDError(f"{section}: a section of options is needed, got {config.get(section)!r}.")
        if self.config.subcommand in ("test", "predict"):
            config.model.teacher = None  # the student works alone
        try:
            made = self._parser(self.subcommand).instantiate(
                type(config)(**{key: config[key] for key in wanted if key in config})
            )
        except ValueError as error:
            from fedkd.cli_errors import own_error

            raise own_error(error) from error
        self.trainer_arguments = {
            key: value for key, value in dict(made.get("trainer") or {}).items() if value is not None
        }
        self.datamodule, self.model = made.get("data"), made.get("model")
        self.student = self.model.student if self.model else None
        if "federation" in wanted:
            self.federation = Federation(
                **made.federation, trainer=self.trainer_arguments, run_dir=config.run_dir, seed=config.seed_everything
            )

    def _run_subcommand(self, subcommand: str) -> None:
        names = self._subcommand_method_arguments[subcommand]
        getattr(self, subcommand)(**{name: self.chosen[name] for name in names})

    def run_dir(self) -> Path:
        """Return the run directory that a subcommand was given."""
        if self.chosen.run_dir is None:
            raise FedKDError(f"Say which run: fedkd {self.config.subcommand} RUN_DIR.")
        return Path(self.chosen.run_dir)

    def reproducing_config(self) -> str:
        """Return the complete configuration as YAML, without what makes it this very run."""
        config = self.chosen.clone()
        config.run_dir = config.ckpt_path = None
        return self._parser(self.subcommand).dump(config, skip_unset=False)


def expand_run_dir(args: Sequence[str]) -> list[str]:
    """Turn ``test RUN_DIR ...`` into ``test --config RUN_DIR/config.yaml --run_dir RUN_DIR ...``."""
    if len(args) < 2 or args[0] not in ("test", "predict") or args[1].startswith("-"):
        return list(args)
    config = Path(args[1]) / "config.yaml"
    if not config.is_file():
        raise MissingResourceError(f"No run at {args[1]!r}: there is no {str(config)!r}. 'fedkd fit' writes it.")
    return [args[0], "--config", str(config), "--run_dir", args[1], *args[2:]]


def main(args: Sequence[str] | None = None) -> None:
    """Run the ``fedkd`` command. A mistake of the caller's is one line on standard error and exit status 2."""
    try:
        FedKDCLI(expand_run_dir(sys.argv[1:] if args is None else args))
    except (FedKDError, MisconfigurationException, OSError) as error:
        print(f"fedkd: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
