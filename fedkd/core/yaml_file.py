"""Read a YAML file that a user wrote: a configuration, or a grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedkd.core.errors import FedKDError


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping: YAML would drop the first in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)  # a key may be a list
            if key.tag != "tag:yaml.org,2002:merge" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, kind: str) -> Any:
    """Read a YAML file.

    Args:
        path: The file.
        kind: The kind of file, such as ``"grid"``, for the message.

    Raises:
        FedKDError: If it is no YAML, or a key stands in it twice; the message names the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except UnicodeDecodeError as error:
        raise FedKDError(f"The {kind} {str(path)!r} is not text.") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise FedKDError(f"The {kind} {str(path)!r} is wrong{where}: {problem or type(error).__name__}.") from error
