"""The subcommands of ``fedkd`` that LightningCLI parses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException

from fedkd import teachers
from fedkd.cli.arguments import expand
from fedkd.cli.help import section_asked_for, section_help
from fedkd.cli.parser import BaseCLI
from fedkd.cli.subcommands import SECTIONS
from fedkd.core.errors import FedKDError
from fedkd.core.storage import cache_dir, claim
from fedkd.partition.report.report import plot_file
from fedkd.server.backends import InProcess
from fedkd.server.setup import Connections
from fedkd.training.trainer_arguments import check_trainer


@contextmanager
def about(option: str) -> Iterator[None]:
    """Let an error begin with the option that it is about."""
    try:
        yield
    except FedKDError as error:
        raise FedKDError(f"{option}: {error}") from error


class FedKDCLI(BaseCLI):
    """Federated distillation from foundation models."""

    def fit(self) -> None:
        """Run a federation."""
        from fedkd.cli.display import print_clients, print_summary

        self.federation.config = self.reproducing_config()
        summary = self.federation.fit(self.model, self.datamodule, ckpt_path=self.chosen.ckpt_path)
        print_summary(summary)
        if "clients" in summary:
            print_clients(summary)

    def check(self) -> None:
        """Try all parts of a run, and tell its time, memory and bytes: fedkd check --config FILE."""
        from fedkd.cli.display import make_console

        forecast = self.federation.check(self.model, self.datamodule, ckpt_path=self.chosen.ckpt_path)
        make_console().print(forecast.table())
        forecast.check_disk()

    def test(self, which: str = "last") -> None:
        """Test a run's student on the global test set: fedkd test RUN_DIR.

        Args:
            which: last is the student of the last round, best that of the callback SaveBest.
        """
        from fedkd.cli.display import print_metrics
        from fedkd.runs.inference import evaluate_run

        print_metrics(evaluate_run(self.run_dir(), self.datamodule, self.trainer_arguments, self.student, which))

    def predict(
        self, images: str | None = None, output: str | None = None, which: str = "last", overwrite: bool = False
    ) -> None:
        """Write a run's predictions as CSV: fedkd predict RUN_DIR.

        Args:
            images: An image file, a folder of images, or a CSV of paths; the global test set if not given.
            output: The CSV file; RUN_DIR/predictions.csv if not given, or predictions_2.csv if that is there. Beside it
                comes a PNG of the images with the least certain predictions.
            which: last is the student of the last round, best that of the callback SaveBest.
            overwrite: Write over files that are there.
        """
        from fedkd.runs.inference import predict_run

        run_dir = self.run_dir()
        path = Path(output) if output else run_dir / "predictions.csv"
        if not output and not overwrite:
            path = free_file(path)
        with about("output"):
            if path.suffix.lower() != ".csv":
                raise FedKDError(f"{str(path)!r} must end in .csv; a .png comes beside it.")
            for each in (path, path.with_suffix(".png")):
                claim(each, overwrite)
        print(predict_run(run_dir, self.datamodule, self.trainer_arguments, images, path, self.student, which))

    def export(
        self,
        format: Literal["onnx", "torch", "safetensors"] = "onnx",
        output: str | None = None,
        which: str = "last",
        push: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Export a run's student, and compare what was exported with it: fedkd export RUN_DIR.

        Args:
            format: onnx is for ONNX Runtime; torch is a program that torch.export.load reads, with torch alone;
                safetensors is a folder for the HuggingFace hub, with weights, a model card and that program.
            output: The file or folder; student.onnx, student.pt2 or student_published in RUN_DIR if not given,
                with the name in which in place of student. Those are written again.
            which: last is the student of the last round, best that of the callback SaveBest.
            push: A repository of the HuggingFace hub to push the folder to, such as me/student.
            overwrite: Write over an output that is there.
        """
        from fedkd.runs.export import export_student

        if output is not None:
            with about("output"):
                claim(Path(output), overwrite, is_folder=format == "safetensors")
        exported = export_student(self.run_dir(), format, output, which, self.student, push)
        print(f"{exported.path} (logits differ from the student's by {exported.max_difference:.2g} at most)")
        if exported.url is not None:
            print(f"pushed: {exported.url}")

    def partition(
        self, output: str | None = None, kind: Literal["heat", "bubble"] = "heat", overwrite: bool = False
    ) -> None:
        """Show and plot how many images of each class each client holds, without training.

        Args:
            output: The plot's file (PNG, PDF or SVG). The numbers are written next to it, as JSON. If not given, it is
                partition_report.png, which is written again.
            kind: How a count is drawn: heat is a cell's color, bubble is a bubble's area.
            overwrite: Write over an output that is there.
        """
        from fedkd.cli.display import make_console

        with about("output"):
            path = plot_file(output or "partition_report.png")
            for each in (path, path.with_suffix(".json")) if output else ():
                claim(each, overwrite)
        self.datamodule.prepare_data()
        self.datamodule.setup()
        report = self.datamodule.partition_report()
        make_console().print(report.table(), report.skew_table())
        plot = report.plot(path, kind)
        print(plot, report.write_json(plot.with_suffix(".json")), sep="\n")

    def teachers(
        self, name: str | None = None, options: dict[str, Any] | None = None, clear_cache: bool = False
    ) -> None:
        """List the teachers with a short name, or measure one on the data: fedkd teachers NAME --config FILE.

        Args:
            name: A short name, a HuggingFace id or a local folder; if not given, the teacher in the configuration.
            options: The teacher's options, such as --options.image_size 98.
            clear_cache: Whether to delete the cached outputs of all teachers, and print their size.
        """
        from fedkd.cli.display import print_teacher_report, print_teachers
        from fedkd.core.units import format_bytes

        if clear_cache and name:
            raise FedKDError(f"--clear-cache takes no name, got {name!r}: it deletes the outputs of all teachers.")
        if options and not name:
            raise FedKDError("options need a teacher's name: fedkd teachers NAME --options.image_size 98.")
        if clear_cache:
            folders = [cache_dir("teachers"), cache_dir("adapters")]  # outputs, and what LoRA learned
            freed = sum(teachers.TeacherCache(folder).clear() for folder in folders)
            print(f"{' and '.join(map(str, folders))} were cleared of {format_bytes(freed)} ({freed} bytes).")
        elif not self.measures_teacher:
            print_teachers()
        else:
            teacher = teachers.create(name, **options or {}) if name else self.model.teacher
            device = check_trainer({key: value for key, value in self.trainer_arguments.items() if key != "logger"})
            connect = Connections(InProcess())
            report = teachers.measure_teacher(teacher, self.datamodule, connect=connect, device=device)
            print_teacher_report(name or type(teacher).__name__, report, connect.traffic.up, connect.traffic.down)

    @property
    def measures_teacher(self) -> bool:
        """Whether ``teachers`` has a teacher to measure, by name or from the configuration."""
        config = self.chosen
        return (
            self.config.subcommand == "teachers"
            and not config.clear_cache
            and bool(config.name or getattr(config.model, "teacher", None))
        )

    def sections(self) -> tuple[str, ...]:
        """Return the sections that the subcommand instantiates. A teacher given by name needs no model."""
        if self.measures_teacher:
            return ("data", "trainer") if self.chosen.name else ("data", "model", "trainer")
        return super().sections()

    def run_dir(self) -> Path:
        """Return the run directory from the arguments of the subcommand."""
        if self.chosen.run_dir is None:
            raise FedKDError(f"The run directory is missing: fedkd {self.config.subcommand} RUN_DIR.")
        return Path(self.chosen.run_dir)

    def reproducing_config(self) -> str:
        """Return the complete configuration as YAML, without ``run_dir`` and ``ckpt_path``, which belong to one run."""
        config = self.chosen.clone()
        config.run_dir = config.ckpt_path = None
        return self._parser(self.subcommand).dump(config, skip_unset=False)


def free_file(path: Path) -> Path:
    """Return a path, or the next one with a number that is free, with the PNG beside it: ``predictions_2.csv``."""
    number, free = 1, path
    while free.exists() or free.with_suffix(".png").exists():
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


class _Found(Exception):  # noqa: N818 (no error: it ends the parser's set-up)
    """Carries the parser of each subcommand."""

    def __init__(self, parsers: dict[str, Any]) -> None:
        super().__init__()
        self.parsers = parsers


class _Listing(FedKDCLI):
    """Stops where the arguments would be parsed."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Found(self._subcommand_parsers)


def parsers(args: Sequence[str] = ()) -> dict[str, Any]:
    """Return the parsers of the subcommands that have sections; of one alone if it is the first argument."""
    try:
        _Listing(list(args))
    except _Found as found:
        return found.parsers
    raise AssertionError("the parser was not set up")


def run_command(args: Sequence[str]) -> None:
    """Parse the arguments of ``fedkd`` and run the subcommand.

    Raises:
        FedKDError: If the arguments are wrong, also if Lightning reports it.
    """
    section = section_asked_for(args)
    if section is not None and args[0] in SECTIONS:
        print(section_help(parsers([args[0]])[args[0]], section), end="")
        return
    try:
        FedKDCLI(expand(args))
    except MisconfigurationException as error:
        raise FedKDError(str(error)) from error
