"""LightningCLI with fedkd's subcommands, a section for the federation, and errors of one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import seed_everything
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import nn

from fedkd import __version__, teachers
from fedkd.cli.arguments import POSITIONAL
from fedkd.cli.errors import explain, refuse_class_path, with_type
from fedkd.cli.subcommands import DESCRIPTION, PLAIN, SECTIONS, SUBCOMMANDS
from fedkd.core.errors import FedKDError, check_range
from fedkd.core.lazy import import_all
from fedkd.data import FederatedDataModule
from fedkd.server.federation import Federation
from fedkd.training.module import DistillationModule
from fedkd.training.trainer import TRAINER_DEFAULTS

MAX_SEED = 2**32 - 1
"""The largest seed that NumPy takes."""

import_all(teachers)  # a class may be given by its short name


class Parser(LightningArgumentParser):
    """Reports a wrong value in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error for `main` to print."""
        raise FedKDError(with_type(explain(self, message), ex)) from ex

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return one screen where the options have sections; the rest is in the help of each section."""
        from fedkd.cli.help import short_help

        name = self.prog.split()[-1]
        if not SECTIONS.get(name) or not any(action.dest == "run_dir" for action in self._actions):
            return super().format_help(*args, **kwargs)
        return short_help(self, str(self.usage), SUBCOMMANDS[name])


class BaseCLI(LightningCLI):
    """A command line with the subcommands of `SECTIONS`. A subclass implements each as a method with its options."""

    _adding: str = ""  # the subcommand whose options are being added

    def __init__(self, args: ArgsType = None) -> None:
        first = args[0] if isinstance(args, list) and args else None
        # the options of the others would be built for nothing
        self._wanted = [first] if first in SECTIONS else list(SECTIONS)
        super().__init__(
            DistillationModule,
            FederatedDataModule,
            save_config_callback=None,
            trainer_defaults={
                key: value for key, value in TRAINER_DEFAULTS.items() if key not in ("logger", "max_epochs")
            },
            parser_kwargs={
                "prog": "fedkd",
                "description": DESCRIPTION,
                "version": __version__,
                "allow_abbrev": False,
            },
            parser_class=Parser,
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, each with the set of parameters that are not options: none."""
        return {name: set() for name in SECTIONS}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed. It is always a number, so that every run can be repeated."""
        text = "Determines the partition, the cohorts, the student's initial weights and the clients' randomness."
        parser.add_argument("--seed_everything", type=int, default=0, help=text)

    def _set_seed(self) -> None:
        check_range("seed_everything", self.chosen.seed_everything, low=0, high=MAX_SEED, whole=True)
        seed_everything(self.chosen.seed_everything, workers=True, verbose=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the sections that Lightning does not have, and link the data's seed to the global one."""
        if "federation" in SECTIONS[self._adding]:
            parser.add_class_arguments(
                Federation, "federation", skip={"trainer", "run_dir", "seed"}, instantiate=False, sub_configs=True
            )
        else:
            parser.add_argument("--federation", type=dict[str, Any] | None, default=None, help="Not used here.")
        parser.add_argument(
            "--run_dir", type=str | None, default=None, help="The run's folder (default: runs/version_N)."
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="For fit: 'last' resumes from run_dir's newest round; or the path of a round checkpoint.",
        )
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments. LightningCLI's own method warns if it is given arguments, as in `main`."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        if self.config.subcommand in PLAIN:
            name = self.config.subcommand
            raise FedKDError(f"{name} must be the first argument: {SUBCOMMANDS[name].rpartition(': ')[2]}")
        if self.config.subcommand == "completion":
            raise FedKDError("completion takes no arguments: fedkd completion.")

    def _parse_ckpt_path(self) -> None:
        """Leave the checkpoint to the run. LightningCLI would read it, and merge its content into the options."""

    @property
    def chosen(self) -> Namespace:
        """The configuration of the subcommand that was chosen."""
        return self.config[self.config.subcommand]

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        # As in LightningCLI, but with the methods of this class in place of the Trainer's.
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        group = parser.add_subcommands()
        for name in self._wanted:
            self._adding = name  # `add_arguments_to_parser` does not receive it
            description = SUBCOMMANDS[name]
            first = f"{name} {POSITIONAL[name]}" if name in POSITIONAL else name
            usage = f"fedkd {first} [--config FILE] [--SECTION.OPTION VALUE ...]"  # instead of a page with all options
            subparser = self._prepare_subcommand_parser(
                type(self), name, description=description, usage=usage, allow_abbrev=False
            )
            self._subcommand_parsers[name] = subparser
            group.add_subcommand(name, subparser, help=description)
        # Not what this parser runs; `main` runs some without it. They appear in error messages.
        for name in [each for each in SUBCOMMANDS if each not in self._wanted]:
            group.add_subcommand(name, Parser(), help=SUBCOMMANDS[name])

    def sections(self) -> tuple[str, ...]:
        """Return the sections of the configuration that the subcommand instantiates."""
        return SECTIONS[self.config.subcommand]

    def instantiate_classes(self) -> None:
        """Instantiate only what the subcommand uses: ``partition`` loads no teacher."""
        config = self.chosen
        wanted = self.sections()
        for section in wanted:
            if not isinstance(config.get(section), Namespace):
                raise FedKDError(f"{section}: must be a section of options, got {config.get(section)!r}.")
        if self.config.subcommand in ("test", "predict", "export"):
            config.model.teacher = None  # inference uses only the student
        if "model" in wanted:
            refuse_class_path("model.student", config.model.get("student"), nn.Module)
            refuse_class_path("model.teacher", config.model.get("teacher"), teachers.Teacher)
        with self.located(ValueError):
            made = self._parser(self.subcommand).instantiate(
                type(config)(**{key: config[key] for key in wanted if key in config})
            )
            self.trainer_arguments = {
                key: value for key, value in dict(made.get("trainer") or {}).items() if value is not None
            }
            self.datamodule, self.model = made.get("data"), made.get("model")
            self.student = self.model.student if self.model else None
            if "federation" in wanted:
                arguments = {"run_dir": config.run_dir, "seed": config.seed_everything}
                self.federation = Federation(**made.federation, trainer=self.trainer_arguments, **arguments)

    @contextmanager
    def located(self, kind: type[ValueError] = FedKDError) -> Iterator[None]:
        """Let an error about the configuration name the place of the value in it.

        Args:
            kind: The errors that are the caller's mistake.
        """
        try:
            yield
        except kind as error:
            from fedkd.cli.places import locate

            raise locate(error, self.chosen) from error

    def _run_subcommand(self, subcommand: str) -> None:
        names = self._subcommand_method_arguments[subcommand]
        with self.located():
            getattr(self, subcommand)(**{name: self.chosen[name] for name in names})
