"""``fedkd students``: the students that have a name, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.cli.plain import PlainParser
from fedkd.core.errors import FedKDError, in_one_line

EPILOG = """timm/NAME is any network of timm (pip install fedkd[timm]); with the option pretrained: true it starts from
timm's weights.
In a configuration: model.student NAME, model.student_options {norm: group}."""


def make_parser() -> PlainParser:
    """Return the parser of ``fedkd students``."""
    parser = PlainParser(
        "students",
        epilog=EPILOG,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="students to measure (default: all but those of timm)")
    parser.add_argument("--image_size", type=int, default=32, metavar="PIXELS", help="height and width (default: 32)")
    parser.add_argument("--in_channels", type=int, default=3, metavar="C", help="1 is gray, 3 is color (default: 3)")
    parser.add_argument("--num_classes", type=int, default=10, metavar="K", help="number of classes (default: 10)")
    return parser


def run(args: Sequence[str]) -> None:
    """Parse the arguments after ``fedkd students`` and print the table.

    Raises:
        FedKDError: If an argument is wrong.
    """
    options = make_parser().parse_args(list(args))
    from rich.table import Table

    from fedkd import students
    from fedkd.cli.display import make_console
    from fedkd.students.cost import measure_cost

    for name in options.names:
        students.find(name)
    shape = (options.in_channels, options.image_size, options.image_size)
    table = Table(title=f"students for {options.num_classes} classes, images {shape}", title_justify="left")
    table.add_column("name")
    for column in ("parameters", "MACs an image", "CPU ms an image"):
        table.add_column(column, justify="right")
    for name in options.names or sorted(students.students):
        try:
            student = students.create(name, options.num_classes, options.in_channels, options.image_size)
            cost = measure_cost(student, shape)
        except (FedKDError, RuntimeError) as error:  # a network that needs larger images
            if options.names:
                raise FedKDError(f"{name} cannot be measured on images {shape}: {in_one_line(error)}") from error
            table.add_row(name, f"(not for such images) {in_one_line(error)}")
            continue
        table.add_row(name, f"{cost.parameters:,}", f"{cost.macs:,}", f"{cost.milliseconds:.1f}")
    make_console().print(table)
