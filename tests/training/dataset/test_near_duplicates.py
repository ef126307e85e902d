"""Pictures that may be the same one: copies are found, different products on one white background are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from lora_atelier.training.dataset.near_duplicates import alike, duplicates, look_of
from PIL import Image, ImageDraw, ImageEnhance

NUMBER = 200


def product(seed: int, side: int = 256) -> Image.Image:
    """An ellipse, a box, a bottle or some polygon with up to three labels, in the middle of a white picture."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (2 * side, 2 * side), "white")
    draw = ImageDraw.Draw(image)
    x, y = side + rng.normal(0, 0.04, 2) * side
    width, height = rng.uniform(0.3, 0.76, 2) * side
    box = (x - width, y - height, x + width, y + height)

    def colour():
        return tuple(int(level) for level in rng.integers(20, 220, 3))

    if seed % 4 == 0:
        draw.ellipse(box, fill=colour())
    elif seed % 4 == 1:
        draw.rounded_rectangle(box, radius=rng.uniform(0, 0.4) * min(width, height), fill=colour())
    elif seed % 4 == 2:
        draw.rectangle((x - width, y - height / 2, x + width, y + height), fill=colour())
        draw.rectangle((x - width * 0.3, y - height, x + width * 0.3, y - height / 2), fill=colour())
    else:
        angles = np.linspace(0, 2 * np.pi, rng.integers(3, 9), endpoint=False)
        draw.polygon(
            [tuple((x, y) + np.array([width * np.cos(a), height * np.sin(a)]) * rng.uniform(0.6, 1)) for a in angles],
            fill=colour(),
        )
    for _ in range(rng.integers(0, 4)):
        left, top = (x, y) + rng.uniform(-0.5, 0.5, 2) * (width, height)
        across, down = rng.uniform(0.05, 0.3, 2) * min(width, height)
        draw.rectangle((left - across, top - down, left + across, top + down), fill=colour())
    return image.resize((side, side), Image.Resampling.LANCZOS)


def scene(seed: int, side: int = 256) -> Image.Image:
    """Coloured patches all over, like a photo without a background."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(5, 14))
    return Image.fromarray(rng.integers(0, 255, (count, count, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def cropped(image: Image.Image, share: float) -> Image.Image:
    cut = round(image.width * share)
    return image.crop((cut, cut, image.width - cut, image.height - cut))


CHANGES = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "larger": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC),
    "jpeg": as_jpeg,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.07),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.08),
    "cropped by 2 %": lambda image: cropped(image, 0.02),
    "all together": lambda image: as_jpeg(ImageEnhance.Brightness(cropped(image, 0.01)).enhance(1.04).resize((170, 170))),
}


@pytest.mark.parametrize("kind", [product, scene])
def test_different_pictures_are_no_duplicates(kind):
    assert len(duplicates([look_of(kind(seed)) for seed in range(NUMBER)])) <= NUMBER // 100


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [product, scene])
def test_copies_are_found_among_all_the_others(kind, change):
    looks = [look_of(kind(seed)) for seed in range(NUMBER)]
    copies = [look_of(CHANGES[change](kind(seed))) for seed in range(0, NUMBER, 4)]
    found = set(duplicates([*looks, *copies]))
    expected = {(seed, NUMBER + place) for place, seed in enumerate(range(0, NUMBER, 4))}
    assert len(found & expected) >= 0.96 * len(expected)
    assert len(found - expected) <= NUMBER // 100


def test_one_product_in_two_colours_is_two():
    def plate(colour):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).ellipse((30, 30, 98, 98), fill=colour)
        return look_of(image)

    assert not alike(plate("red"), plate("blue")) and alike(plate("red"), plate((250, 5, 3)))


def test_one_product_small_and_large_is_two():
    def plate(radius):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).ellipse((64 - radius, 64 - radius, 64 + radius, 64 + radius), fill="red")
        return look_of(image)

    assert not alike(plate(20), plate(40))


def test_plain_pictures_are_told_apart_by_their_colours():
    red, green = (look_of(Image.new("RGB", (64, 64), colour)) for colour in ("red", "green"))
    assert not alike(red, green) and duplicates([red, green, "", "", red]) == [(0, 4)]


def test_a_third_copy_belongs_to_the_first_and_blocks_change_nothing(monkeypatch):
    looks = [look_of(scene(seed)) for seed in (1, 2, 1, 3, 1, 2)]
    expected = [(0, 2), (0, 4), (1, 5)]
    assert duplicates(looks) == expected
    monkeypatch.setattr("lora_atelier.training.dataset.near_duplicates.BLOCK", 2)
    assert duplicates(looks) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 2)])
def test_a_picture_of_hardly_any_pixels_has_a_look(size):
    look = look_of(Image.new("RGB", size, "red"))
    assert alike(look, look)


def test_a_look_of_an_older_index_is_passed_over():
    assert duplicates(["ff00ffffffffffff808080", "ff00ffffffffffff808080"]) == []
