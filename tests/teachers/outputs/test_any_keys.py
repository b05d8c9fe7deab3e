"""The name of a cache's file is another one where any ingredient is, and the same where none is."""

from __future__ import annotations

import random
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedkd.data import Augmentation, ImageSet, Views
from fedkd.teachers import Teacher
from fedkd.teachers.outputs.passes import Pass


class Anything(Teacher):
    """Has a weight, a buffer and a setting of any kind."""

    def __init__(self, weight: float, buffer: list[int], setting: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.layer.weight, weight)
        self.register_buffer("table", torch.tensor(buffer, dtype=torch.int64))
        self.setting = setting

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Other(Anything):
    """Another class with the same settings."""


CHOICES = {
    "teacher": [
        (kind, weight, table, setting)
        for kind in (Anything, Other)
        for weight in (0.0, 1.0)
        for table in ([], [0], [0, 1])
        for setting in (None, "None", True, 1, 1.0, "1", [1], {"1": 0, 1: 1}, {"1": 1, 1: 0}, {"a": {"b": 1}})
    ],
    "pixels": [[0, 1], [1, 0]],
    "targets": [[0, 1], [1, 0]],
    "classes": [("a", "b"), ("b", "a"), ("a", 'b", "c')],
    "views": [None, (1, 0, False, 0), (2, 0, False, 0), (1, 1, False, 0), (1, 0, True, 0), (1, 0, False, 1)],
    "logits": [False, True],
}


def key(made: dict[str, Any]) -> str:
    kind, *arguments = made["teacher"]
    images = torch.tensor(made["pixels"], dtype=torch.uint8).view(2, 1, 1, 1)
    data = ImageSet(images, torch.tensor(made["targets"]), made["classes"])
    views = made["views"] and Views(made["views"][0], Augmentation(*made["views"][1:3]), seed=made["views"][3])
    return Pass(kind(*arguments), data, views, made["logits"], batch_size=8).key


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 0.5, 1.0])
    | st.sampled_from(["", "1", "None"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(lambda made: dict(sorted(made.items())))
    ),
    max_leaves=4,
)
ingredients = st.fixed_dictionaries(
    {
        **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
        "teacher": st.tuples(st.sampled_from([Anything, Other]), st.sampled_from([0.0, 1.0]), st.just([0]), plain),
    }
)


# without the phase that explains a failure, which traces every line that the key's hash of the code reads
@settings(phases=[Phase.explicit, Phase.generate, Phase.shrink])
@given(ingredients, ingredients, st.sampled_from(sorted(CHOICES)))
def test_any_two_keys_are_the_same_exactly_where_all_ingredients_are(one, other, changed):
    for second in (other, {**one, changed: other[changed]}, dict(one)):
        assert (key(one) == key(second)) == (repr(one) == repr(second))


def test_keys_are_the_same_exactly_where_all_ingredients_are():
    rng = random.Random(0)
    first = {name: choices[0] for name, choices in CHOICES.items()}
    made = [first, *({**first, name: each} for name, choices in CHOICES.items() for each in choices[1:])]
    made += [{name: rng.choice(choices) for name, choices in CHOICES.items()} for _ in range(40)]
    by_content = {repr(each): key(each) for each in made}
    assert len(set(by_content.values())) == len(by_content)
    assert all(key(each) == by_content[repr(each)] for each in made[:10])


def test_a_set_counts_by_what_is_in_it_and_not_by_its_order():
    base = {"pixels": [0, 1], "targets": [0, 1], "classes": ("a", "b"), "views": None, "logits": False}
    # 0 and 8 fall into one place of a set's table, so the order is that in which they came
    sets = ({0, 8}, {8, 0}, frozenset([0, 8]), {0, 9})
    assert list(sets[0]) != list(sets[1])
    one, turned, frozen, other = (key({**base, "teacher": (Anything, 1.0, [], each)}) for each in sets)
    assert one == turned == frozen != other
