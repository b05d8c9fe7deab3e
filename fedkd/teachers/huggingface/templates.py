"""Prompt templates for the text tower of a zero-shot teacher.

The class names identify CIFAR-10 and CIFAR-100, which get the prompts that CLIP's authors wrote for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedkd.core.errors import FedKDError, unknown_name

GENERAL = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The plain prompt and the seven that CLIP's authors found most important on ImageNet."""

_PHOTOS = ("photo", "blurry photo", "black and white photo", "low contrast photo", "high contrast photo")
CIFAR = tuple(
    prompt
    for article in ("a", "the")
    for prompt in (
        *(f"a {photo} of {article} {{}}." for photo in (*_PHOTOS, "bad photo", "good photo")),
        *(f"a photo of {article} {size} {{}}." for size in ("small", "big")),
    )
)
"""The 18 prompts that CLIP's authors used for CIFAR-10 and CIFAR-100 (data/prompts.md in CLIP's repository)."""

SIGLIP = ("This is a photo of {}.",)
"""The prompt that SigLIP's authors recommend."""

TEMPLATES = {"general": GENERAL, "cifar": CIFAR, "siglip": SIGLIP}

_CIFAR10 = frozenset(("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"))
_CIFAR100_NAMES = (
    "apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, "
    "butterfly, camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, "
    "crocodile, cup, dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, "
    "lamp, lawn mower, leopard, lion, lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, "
    "oak tree, orange, orchid, otter, palm tree, pear, pickup truck, pine tree, plain, plate, poppy, porcupine, "
    "possum, rabbit, raccoon, ray, road, rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, "
    "spider, squirrel, streetcar, sunflower, sweet pepper, table, tank, telephone, television, tiger, tractor, "
    "train, trout, tulip, turtle, wardrobe, whale, willow tree, wolf, woman, worm"
)
_CIFAR100 = frozenset(_CIFAR100_NAMES.split(", "))


def plain_name(name: str) -> str:
    """Return a class name for comparison: lower case, with single spaces in place of spaces and underscores."""
    return " ".join(name.replace("_", " ").lower().split())


def is_cifar(classes: Iterable[str]) -> bool:
    """Whether these are the classes of CIFAR-10 or CIFAR-100, in any order."""
    return {plain_name(name) for name in classes} in (_CIFAR10, _CIFAR100)


def check_templates(templates: str | Sequence[str]) -> None:
    """Raise an error unless ``templates`` is "auto", a name in `TEMPLATES`, or a list of prompts with "{}".

    Raises:
        FedKDError: If it is none of these, or the list is empty.
    """
    if isinstance(templates, str):
        if templates not in ("auto", *TEMPLATES):
            raise unknown_name("set of templates", templates, ("auto", *TEMPLATES))
        return
    if not templates:
        raise FedKDError("templates is empty: give at least one prompt with '{}' in it, or 'auto'.")
    for template in templates:
        if "{}" not in template:
            raise FedKDError(f"Template {template!r} has no '{{}}' for the class name, as in 'a photo of a {{}}.'.")


def choose_templates(templates: str | Sequence[str], classes: Iterable[str], model_type: str) -> tuple[str, ...]:
    """Return the prompts to use.

    Args:
        templates: See `check_templates`. "auto" is "cifar" for the classes of CIFAR, else "siglip" for a SigLIP model,
            else "general".
        classes: The class names.
        model_type: The checkpoint's model type in transformers, such as ``"siglip2"``.
    """
    if templates == "auto":
        templates = "cifar" if is_cifar(classes) else "siglip" if "siglip" in model_type else "general"
    return TEMPLATES[templates] if isinstance(templates, str) else tuple(templates)
