"""Buckets: the rules as properties, and sizes known from the established trainers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lora_atelier.training.config import SubsetConfig
from lora_atelier.training.dataset.buckets import aspect_error, assign, bucket_sizes, crop_box, own_bucket
from lora_atelier.training.dataset.plan import bucket_of
from lora_atelier.training.errors import AtelierError

STEPS = st.sampled_from([8, 16, 32, 64, 128])
SIDES = st.integers(1, 20_000)


@st.composite
def grids(draw):
    step = draw(STEPS)
    resolution = step * draw(st.integers(max(1, 64 // step), 2048 // step))
    return resolution, step, bucket_sizes(resolution, step)


@given(grids())
def test_sides_are_on_the_step_and_no_area_is_above_the_limit(grid):
    resolution, step, sizes = grid
    assert (resolution, resolution) in sizes
    assert len(set(sizes)) == len(sizes)
    for width, height in sizes:
        assert width % step == 0 and height % step == 0
        assert width * height <= resolution**2
        assert min(width, height) >= step
        assert max(width, height) <= 2 * resolution
        assert (height, width) in sizes


@given(grids(), SIDES, SIDES)
def test_a_picture_is_never_enlarged_for_a_bucket_of_its_own(grid, width, height):
    resolution, step, _ = grid
    bucket = own_bucket(width, height, resolution, step)
    assert all(side % step == 0 and side >= step for side in bucket)
    placed = crop_box(width, height, bucket)
    scale = min(1.0, resolution / math.sqrt(width * height))
    if step not in bucket:
        assert bucket[0] * bucket[1] <= resolution**2 and placed.scaled[0] <= width and placed.scaled[1] <= height
        assert all(side * scale - b < step + 1e-6 for side, b in zip((width, height), bucket, strict=True)), "and no more is cut"


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((300, 500), (256, 448)),
        ((512, 512), (512, 512)),
        ((100, 90), (64, 64)),
        ((1200, 1200), (512, 512)),
        ((40, 700), (64, 640)),
    ],
)
def test_small_pictures_keep_their_size_where_none_is_enlarged(size, bucket):
    """The small ones as kohya's trainer has them; what is large enough goes where it always went."""
    assert bucket_of(*size, SubsetConfig("x", resolution=512, bucket_no_upscale=True)) == bucket


def test_without_buckets_there_is_one_size_of_any_shape():
    config = SubsetConfig("x", resolution=768, fixed_height=1024, buckets=False)
    assert bucket_of(3000, 2000, config) == (768, 1024) == config.fixed_size
    assert bucket_of(3000, 2000, SubsetConfig("x", resolution=768, buckets=False)) == (768, 768)


@given(grids())
def test_buckets_are_as_large_as_the_limit_allows(grid):
    """One more step on a longer side would be over the area or over the maximum."""
    resolution, step, sizes = grid
    for width, height in sizes:
        longer, shorter = max(width, height), min(width, height)
        assert (
            (longer + step) * shorter > resolution**2
            or longer + step > 2 * resolution
            or (shorter + step) * longer > resolution**2
        )


def test_the_sizes_of_a_512_run_with_the_usual_limits():
    """The rule of the established trainers carried out by hand for 512 with minimum 256, maximum 1024 and step 64."""
    expected = {
        (256, 1024), (320, 768), (384, 640), (448, 576), (512, 512), (576, 448), (640, 384), (704, 320), (768, 320),
        (832, 256), (896, 256), (960, 256), (1024, 256), (320, 704), (256, 832), (256, 896), (256, 960),
    }  # fmt: skip
    assert set(bucket_sizes(512, 64, 256, 1024)) == expected
    assert bucket_sizes(512, 64) == bucket_sizes(512, 64, 256, 1024)


def test_long_pictures_keep_their_area_at_1024():
    """With the usual fixed maximum of 1024 the widest bucket would be 1024 x 1024 / aspect; here 2:1 keeps a megapixel."""
    width, height = assign(2000, 1000, bucket_sizes(1024, 64))
    assert (width, height) == (1408, 704)
    assert width * height > 0.94 * 1024**2
    assert max(max(size) for size in bucket_sizes(1024, 64, 256, 1024)) == 1024


def test_a_small_resolution_has_buckets_too():
    sizes = bucket_sizes(128, 64)
    assert sizes == ((64, 192), (64, 256), (128, 128), (192, 64), (256, 64))
    assert bucket_sizes(64, 64) == ((64, 64),)


@given(grids(), SIDES, SIDES)
def test_no_bucket_is_nearer_than_the_assigned_one(grid, width, height):
    _, _, sizes = grid
    chosen = assign(width, height, sizes)
    assert chosen in sizes
    error = abs(math.log(width / height) - math.log(chosen[0] / chosen[1]))
    assert error <= min(abs(math.log(width / height) - math.log(w / h)) for w, h in sizes) + 1e-9


@given(grids(), SIDES, SIDES)
def test_a_picture_and_its_transpose_are_treated_alike(grid, width, height):
    _, _, sizes = grid
    wide, tall = assign(width, height, sizes), assign(height, width, sizes)
    assert aspect_error((width, height), wide) == pytest.approx(aspect_error((height, width), tall), abs=1e-9)


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [((600, 1000), (384, 640)), ((700, 900), (448, 576)), ((900, 900), (512, 512)), ((1000, 600), (640, 384))],
)
def test_known_aspect_ratios_at_512(picture, bucket):
    assert assign(*picture, bucket_sizes(512, 64)) == bucket


@given(
    grids(),
    SIDES,
    SIDES,
    st.sampled_from(["center", "random"]),
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_the_cut_lies_inside_the_scaled_picture_and_only_one_side_overflows(grid, width, height, crop, draw):
    _, _, sizes = grid
    target = assign(width, height, sizes)
    placed = crop_box(width, height, target, crop, draw)
    free = (placed.scaled[0] - target[0], placed.scaled[1] - target[1])
    assert 0 <= placed.left <= free[0] and 0 <= placed.top <= free[1]
    assert min(free) == 0


@given(st.integers(64, 8000), st.integers(64, 8000))
def test_scaling_keeps_the_aspect_ratio_to_a_pixel(width, height):
    placed = crop_box(width, height, (512, 512))
    assert abs(placed.scaled[0] - width * placed.scaled[1] / height) <= 0.5 * (1 + width / height)


def test_where_the_cut_lies():
    assert crop_box(200, 100, (64, 64)) == crop_box(200, 100, (64, 64), "center", (0.9, 0.9))
    assert (crop_box(200, 100, (64, 64)).scaled, crop_box(200, 100, (64, 64)).left) == ((128, 64), 32)
    assert crop_box(200, 100, (64, 64), "random", (0.0, 0.0)).left == 0
    assert crop_box(200, 100, (64, 64), "random", (0.999999, 0.5)).left == 64
    none = crop_box(200, 100, (64, 64), "none")
    assert (none.scaled, none.left, none.top) == ((64, 64), 0, 0)


def test_a_resolution_off_the_step_is_refused():
    with pytest.raises(AtelierError, match="resolution: 500 is not a multiple of the bucket step 64"):
        bucket_sizes(500, 64)
