"""`PublishedStudent`: a student as HuggingFace models are saved, pushed and loaded, with a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, PyTorchModelHubMixin, hf_hub_download, metadata_load
from safetensors.torch import load, save
from torch import Tensor, nn
from yaml import YAMLError

from fedkd.core.errors import MissingResourceError
from fedkd.core.sealed import read_record, read_sealed, sealed
from fedkd.core.storage import write_atomically
from fedkd.runs.layout import run_of
from fedkd.runs.program import as_program
from fedkd.runs.report.page import percent
from fedkd.runs.student_file import restore_student
from fedkd.students import ProjectedStudent
from fedkd.teachers.catalogue import teachers

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROGRAM = "student.pt2"
MAX_CLASSES = 100
"""The card lists the accuracy of each class up to so many."""

CARD = """---
{{ card_data }}
---

# {{ title | default("A student trained with fedkd", true) }}

An image classifier that several clients trained together by federated distillation, with
fedkd. Clients sent no images.

{{ facts | default("", true) }}

## Use

```python
from fedkd.runs.published import PublishedStudent

student = PublishedStudent.from_pretrained("THIS FOLDER OR REPOSITORY"{{ student | default("", true) }})
```

With torch alone:

```python
import torch

student = torch.export.load("student.pt2").module()
```

Both map float32 images (B, C, H, W) with values in [0, 1] to logits (B, K). The student normalizes the images itself.
`config.json` has the names of the classes and the shape of an image.
"""


class PublishedStudent(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="fedkd",
    pipeline_tag="image-classification",
    tags=["federated-learning", "knowledge-distillation"],
    model_card_template=CARD,
):
    """A run's student for others: ``save_pretrained``, ``push_to_hub`` and ``from_pretrained`` of ``huggingface_hub``.

    A folder has the weights (``model.safetensors``), ``config.json``, a model card, and the student as a program that
    needs torch alone (``student.pt2``).

    Args:
        spec: As `fedkd.runs.student_file.read_spec` returns it.
        student: The run's student. For `from_pretrained` a module like it, where it was not made by name.

    Attributes:
        classes: Their names, in the order of the logits.
    """

    def __init__(self, spec: dict[str, Any], student: nn.Module) -> None:
        super().__init__()
        self.spec, self.student, self.classes = spec, student, tuple(spec["classes"])

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) in [0, 1] to logits (B, K)."""
        return self.student(images)

    def _save_pretrained(self, save_directory: Path) -> None:
        constants = self.student.constants() if isinstance(self.student, ProjectedStudent) else {}
        tensors = {**self.student.state_dict(), **constants}
        content = save({name: value.contiguous() for name, value in tensors.items()})
        write_atomically(save_directory / WEIGHTS, sealed(content))
        write_atomically(save_directory / PROGRAM, as_program(self.student, self.spec))
        write_atomically(save_directory / CONFIG, json.dumps({"spec": self.spec}, indent=2) + "\n")

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls, *, model_id: str, spec: dict[str, Any], student: nn.Module | None = None, **options: Any
    ) -> PublishedStudent:
        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            given: Any = {name: options[name] for name in known if name in options}
            path = Path(hf_hub_download(model_id, WEIGHTS, **given))
        restored = restore_student(spec, load(read_sealed(path)), student, model_id)
        return cls(spec, restored).eval()


def push_folder(folder: Path, repo_id: str) -> str:
    """Push what `PublishedStudent.save_pretrained` wrote, as it is there, and return the address of the commit.

    Unlike `PublishedStudent.push_to_hub`, which makes the files anew, it pushes those that were compared with the
    student.

    Args:
        folder: Of the files; others in it are not pushed.
        repo_id: The repository, such as me/student. It is made if it is not there.
    """
    api = HfApi()
    repo = api.create_repo(repo_id, exist_ok=True).repo_id
    files = [WEIGHTS, PROGRAM, CONFIG, "README.md"]
    message = "Push a student that fedkd trained"
    return str(api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=files, commit_message=message))


def card_facts(run_dir: str | Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model card says of a run: its data, clients, teacher, and accuracy by class.

    Args:
        run_dir: The run directory. Without a summary the card has the classes alone.
        spec: The student's.
    """
    path = run_of(Path(run_dir).expanduser()) / "summary.json"
    # one that was not made by name is made by its own code
    student = ", student=A_MODULE_LIKE_IT" if spec["student"] is None else ""
    if not path.is_file():
        return {"facts": f"Classes: {', '.join(spec['classes'])}.", "student": student}
    summary = read_record(path)
    settings, teacher = summary["settings"], summary["teacher"]
    rows = {
        "student": (spec["student"] or {}).get("name", settings.get("architecture")),
        "images": f"{spec['image_shape']} (C, H, W)",
        "data": settings.get("data"),
        "clients": f"{settings.get('num_clients')}, partitioned by {settings.get('partitioner')}",
        "strategy": settings.get("strategy"),
        "loss": settings.get("loss"),
        "rounds": summary["rounds"],
        "teacher": "none" if teacher is None else f"{teacher['name']} (license: {teacher_license(teacher['name'])})",
        "balanced accuracy on the test set": percent(summary["balanced_accuracy"]),
        "accuracy on the test set": percent(summary["accuracy"]),
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in rows.items())]
    if "round" in spec:
        lines += [
            "",
            f"These weights are those of round {spec['round'] + 1}; the accuracies are those of the last round.",
        ]
    lines += ["", "A student may inherit restrictions of its teacher's license, and of the data's."]
    accuracies = summary["per_class_accuracy"]
    if len(accuracies) <= MAX_CLASSES:
        of_teacher = {} if teacher is None else teacher["per_class_accuracy"]
        lines += ["", "## Accuracy by class", "", "| class | student | teacher |", "|---|---|---|"]
        lines += [
            f"| {cell(name)} | {percent(value)} | {percent(of_teacher.get(name))} |"
            for name, value in accuracies.items()
        ]
    return {"facts": "\n".join(lines), "student": student}


def teacher_license(name: str) -> str:
    """Return the license of a teacher by its checkpoint: that of the catalogue, or of the model card in its folder."""
    for known in teachers:
        try:
            entry = teachers[known]
        except MissingResourceError:  # of a package that cannot be imported
            continue
        if name in (known, entry.checkpoint):
            return entry.license
    card = Path(name) / "README.md"
    if card.is_file():
        try:
            found = (metadata_load(card) or {}).get("license")
        except (YAMLError, ValueError):  # a card that is none says nothing
            found = None
        if found:
            return str(found)
    return "see its own page"


def cell(value: object) -> str:
    """Return a value for a cell of a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
