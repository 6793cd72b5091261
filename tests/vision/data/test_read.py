import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_znorm.vision.data._read import read_image, read_mask

SIDE = 16
COLORS = np.random.default_rng(0).integers(1, 256, size=(SIDE, SIDE, 3), dtype=np.uint8)
RAMP = np.linspace(0, 4095, SIDE * SIDE).reshape(SIDE, SIDE)
SHAPE = np.zeros((SIDE, SIDE), bool)
SHAPE[3:7, 2:12] = True


def saved(array, name="image.png", mode=None, **arguments):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(name, **arguments)
    return name


def channels(array):
    """What an image of 8 bits must be read as."""
    return torch.from_numpy(np.array(array, order="C")).permute(2, 0, 1)


class TestImage:
    @pytest.mark.parametrize("name", ["image.png", "image.tif", "image.bmp", "image.ppm"])
    def test_colors(self, name):
        assert torch.equal(read_image(saved(COLORS, name)), channels(COLORS))

    @pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
    def test_other_modes_of_eight_bits(self, mode):
        name = saved(COLORS, "image.tif", mode)
        with Image.open(name) as image:
            expected = np.asarray(image.convert("RGB"))
        assert torch.equal(read_image(name), channels(expected))

    @pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (8, 1), (3, 2), (6, 3)])
    @pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tif"])
    def test_upright(self, name, orientation, turns):
        """EXIF's 6 tells to turn the stored picture clockwise by 90 degrees."""
        exif = Image.Exif()
        exif[0x112] = orientation
        stored = np.zeros((16, 32, 3), np.uint8)
        stored[:8, :8] = 255
        upright = read_image(saved(stored, name, exif=exif))
        assert torch.equal(upright > 127, channels(np.rot90(stored, turns)) > 127)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_broken_exif_is_no_rotation(self):
        name = saved(COLORS, "image.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
        plain = saved(COLORS, "plain.jpg")
        assert torch.equal(read_image(name), read_image(plain))

    def test_transparent_pixels_are_black(self):
        opacity = np.where(SHAPE, 255, 0).astype(np.uint8)
        opacity[0] = 51
        expected = COLORS * SHAPE[..., None]
        expected[0] = (COLORS[0] / 5).round()
        read = read_image(saved(np.dstack([COLORS, opacity])))
        assert (read.int() - channels(expected).int()).abs().max() <= 1
        assert torch.equal(read[:, 1:], channels(expected)[:, 1:])

    @pytest.mark.parametrize("mode", ["RGB", "P", "L"])
    def test_a_transparent_color_is_black(self, mode):
        array = np.full((SIDE, SIDE, 3), 90, np.uint8)
        array[SHAPE] = 200
        image = Image.fromarray(array).convert(mode, palette=Image.Palette.ADAPTIVE)
        image.save("image.png", transparency=image.getpixel((5, 5)))
        assert torch.equal(read_image("image.png"), channels(np.where(SHAPE[..., None], 0, array)))

    def test_opaque(self):
        opaque = np.dstack([COLORS, np.full((SIDE, SIDE), 255, np.uint8)])
        assert torch.equal(read_image(saved(opaque)), channels(COLORS))

    @pytest.mark.parametrize("name", ["image.tif", "image.webp", "image.png", "image.gif"])
    def test_several_pages(self, name):
        saved(COLORS, name, save_all=True, append_images=[Image.fromarray(255 - COLORS)])
        with pytest.raises(ValueError, match=rf"{name} has 2 pages or frames.*Save each"):
            read_image(name)

    def test_jpeg_of_a_phone(self):
        saved(COLORS, "image.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(255 - COLORS)])
        assert torch.equal(read_image("image.jpg"), read_image(saved(COLORS, "plain.jpg")))

    @pytest.mark.parametrize("limit", [SIDE * SIDE - 1, SIDE * SIDE // 2 - 1])
    @pytest.mark.parametrize("action", ["ignore", "error"])
    def test_too_many_pixels_are_not_decoded(self, monkeypatch, limit, action):
        name = saved(COLORS)
        read_image(name)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)
            with pytest.raises(ValueError, match=rf"image.png has more than {limit} pixels.*`PIL.Image.MAX_IMAGE_"):
                read_image(name)

    @pytest.mark.parametrize("limit", [SIDE * SIDE, None])
    def test_pixels_up_to_the_limit(self, monkeypatch, limit):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert torch.equal(read_image(saved(COLORS)), channels(COLORS))


DEEP = [
    (RAMP.astype(np.uint16), "image.png"),
    (RAMP.astype(np.uint16), "image.tif"),
    (RAMP.astype(">u2"), "image.tif"),
    (RAMP.astype(np.int32) - 1000, "image.tif"),
    (RAMP.astype(np.float32) / 4095, "image.tif"),
]


class TestMoreThanEightBits:
    @pytest.mark.parametrize(("array", "name"), DEEP)
    def test_refused(self, array, name):
        with pytest.raises(ValueError, match=rf"{name} has more than 8 bits.*Convert it.*`window`"):
            read_image(saved(array, name))

    @pytest.mark.parametrize(("array", "name"), DEEP)
    def test_window(self, array, name):
        low, high = np.quantile(array, (0.25, 0.75))
        image = read_image(saved(array, name), (low, high))
        expected = np.round(np.clip((array.astype(float) - low) / (high - low), 0, 1) * 255)
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(expected).expand(3, -1, -1))

    def test_a_deep_pgm_is_refused(self):
        """Pillow brings its values to the range of 16 bits, so that the window would not mean them."""
        Path("image.pgm").write_bytes(b"P5 2 2 4095 " + np.array([0, 500, 1000, 4095], ">u2").tobytes())
        with pytest.raises(
            ValueError, match=r"image\.pgm is a PGM file of more than 8 bits.*Convert it to PNG or TIFF"
        ):
            read_image(Path("image.pgm"), (0, 4095))

    def test_window_leaves_images_of_eight_bits(self):
        assert torch.equal(read_image(saved(COLORS), (0, 1)), channels(COLORS))

    def test_upright(self):
        exif = Image.Exif()
        exif[0x112] = 3
        image = read_image(saved(RAMP.astype(np.uint16), "image.tif", exif=exif), (0, 4095))
        assert image[0, 0, 0] == 255

    def test_infinite(self):
        array = np.full((SIDE, SIDE), 0.5, np.float32)
        array[0, :2] = np.inf, -np.inf
        assert read_image(saved(array, "image.tif"), (0, 1))[0, 0, :3].tolist() == [255, 0, 128]

    def test_not_a_number(self):
        array = RAMP.astype(np.float32)
        array[3, 3] = np.nan
        with pytest.raises(ValueError, match=r"image.tif has pixels that are not a number"):
            read_image(saved(array, "image.tif"), (0, 4095))

    def test_colors_of_sixteen_bits_keep_the_upper_eight(self):
        """Pillow writes none of them; this is a PNG of one row of two pixels."""

        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        row = b"\0" + struct.pack(">6H", 0x0000, 0x7FFF, 0xFFFF, 0x1234, 0x8000, 0xABCD)
        header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
        with open("image.png", "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)))
            file.write(chunk(b"IEND", b""))
        assert read_image("image.png")[:, 0].T.tolist() == [[0x00, 0x7F, 0xFF], [0x12, 0x80, 0xAB]]


def mask(value, dtype=np.uint8):
    return np.where(SHAPE, value, 0).astype(dtype)


def colored(color):
    return (SHAPE[..., None] * np.array(color)).astype(np.uint8)


class TestMask:
    @pytest.mark.parametrize(
        "array",
        [
            mask(255),
            mask(1),
            mask(127),
            mask(True, bool),
            mask(1, np.uint16),
            mask(40000, np.uint16),
            mask(1, np.float32),
            mask(-5, np.int32),
            colored((255, 0, 0)),
            colored((0, 0, 1)),
            colored((255, 255, 255, 255)),
            np.dstack([colored((0, 200, 0)), np.full((SIDE, SIDE), 255, np.uint8)]),
        ],
        ids=lambda array: f"{array.dtype}-{array.reshape(SIDE, SIDE, -1)[4, 4]}",
    )
    def test_codings(self, array):
        read = read_mask(saved(array, "mask.tif"))
        assert (read.dtype, read.shape) == (torch.uint8, (1, SIDE, SIDE))
        assert torch.equal(read[0], torch.from_numpy(SHAPE).to(torch.uint8))

    @pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK"])
    def test_modes(self, mode):
        read = read_mask(saved(mask(255), "mask.tif" if mode == "CMYK" else "mask.png", mode))
        assert torch.equal(read[0], torch.from_numpy(SHAPE).to(torch.uint8))

    @pytest.mark.parametrize("array", [mask(0), mask(0, np.uint16), mask(0, np.float32), colored((0, 0, 0))])
    def test_empty(self, array):
        assert torch.equal(read_mask(saved(array, "mask.tif")), torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))

    def test_palette(self):
        image = Image.fromarray(mask(1)).convert("P")
        image.putpalette([0, 0, 0, 200, 30, 30])
        image.save("mask.png")
        assert torch.equal(read_mask("mask.png")[0], torch.from_numpy(SHAPE).to(torch.uint8))

    @pytest.mark.parametrize(
        ("array", "values"),
        [
            (np.where(SHAPE, 2, 1).astype(np.uint8), "1, 2"),
            (255 - mask(255) + mask(3), "3, 255"),
            (np.full((SIDE, SIDE), 255, np.uint8), "255"),
            (np.arange(SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8), "0, 1, 2, 3 and 252 more"),
            (np.maximum(mask(0.5, np.float32), np.eye(SIDE, dtype=np.float32)), "0.0, 0.5, 1.0"),
            (colored((255, 0, 0)) + colored((0, 255, 0))[::-1], r"\(0, 0, 0\), \(0, 255, 0\), \(255, 0, 0\)"),
        ],
        ids=["1-2", "no-black", "uniform", "soft", "floats", "two-colors"],
    )
    def test_refused(self, array, values):
        with pytest.raises(ValueError, match=rf"mask.tif is not a mask.*values are {values}\. .*not as JPEG"):
            read_mask(saved(array, "mask.tif"))

    def test_not_a_number(self):
        with pytest.raises(ValueError, match=r"mask.tif is not a mask.*nan"):
            read_mask(saved(mask(np.nan, np.float32), "mask.tif"))

    def test_jpeg_has_soft_edges(self):
        with pytest.raises(ValueError, match=r"mask.jpg is not a mask.*more"):
            read_mask(saved(mask(255), "mask.jpg", quality=50))

    def test_hidden_in_the_transparency(self):
        """Over black it is black everywhere, which would be no tumor."""
        hidden = np.dstack([np.zeros((SIDE, SIDE, 3), np.uint8), mask(255)])
        with pytest.raises(ValueError, match=r"mask.png is not a mask.*transparency"):
            read_mask(saved(hidden, "mask.png"))

    def test_hidden_in_the_palette(self):
        image = Image.fromarray(mask(1)).convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.save("mask.png")
        with pytest.raises(ValueError, match=r"mask.png is not a mask.*palette"):
            read_mask("mask.png")

    def test_several_pages(self):
        saved(mask(255), "mask.tif", save_all=True, append_images=[Image.fromarray(mask(1))])
        with pytest.raises(ValueError, match=r"mask.tif has 2 pages"):
            read_mask("mask.tif")


@pytest.mark.parametrize("read", [read_image, read_mask])
class TestDamage:
    @pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tif"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_truncated(self, read, name, share):
        content = io.BytesIO()
        Image.fromarray(COLORS).resize((64, 64)).save(content, format=Image.registered_extensions()[name[5:]])
        data = content.getvalue()
        with open(name, "wb") as file:
            file.write(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=rf"{name} is not a readable image .*Replace it"):
            read(name)

    @pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", bytes(500)])
    def test_other_content(self, read, content):
        with open("image.jpg", "wb") as file:
            file.write(content)
        with pytest.raises(ValueError, match=r"image.jpg is not a readable image .*Replace it"):
            read("image.jpg")

    def test_missing(self, read):
        with pytest.raises(ValueError, match=r"image.jpg is not a readable image .*No such file"):
            read("image.jpg")

    def test_flipped_bits_of_a_png_change_no_pixel_without_an_error(self, read):
        name = saved(mask(255))
        whole = read(name)
        with open(name, "rb") as file:
            data = file.read()
        refused = 0
        for position in range(8, len(data) - 12, 3):
            with open("flipped.png", "wb") as file:
                file.write(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            try:
                assert torch.equal(read("flipped.png"), whole)
            except ValueError as error:
                assert str(error).startswith("flipped.png ")  # noqa: PT017
                refused += 1
        assert refused > 10
