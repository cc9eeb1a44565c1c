"""Alignment against the reference on real photos, and every kind of picture a person has."""

import io
import struct
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alignment import NoFaceError, PhotoError, align, centre_crop, find_faces, open_photo, paste_back
from alignment.folder import Alignment, align_all, photos_below
from errors import E4EError

PHOTOS = Path(__file__).parent / "photos"
DEMO = (0.42, 0.62)


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return open_photo(PHOTOS / "astronaut.png")


@pytest.fixture(scope="module")
def face(astronaut):
    return find_faces(astronaut)[0]


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def encoded(picture: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def eyes(face) -> np.ndarray:
    return np.stack([face.landmarks[36:42].mean(axis=0), face.landmarks[42:48].mean(axis=0)])


def agrees_with_reference(folder: Path, photo: str) -> None:
    name = photo.split(".")[0]
    faces = find_faces(open_photo(folder / photo))
    reference = np.loadtxt(folder / f"{name}_landmarks.csv", delimiter=",")
    assert np.abs(faces[0].landmarks - reference).max() <= 1
    assert [f.score for f in faces] == sorted((f.score for f in faces), reverse=True)
    picture, _ = align(open_photo(folder / photo), faces[0])
    assert psnr(picture, Image.open(folder / f"{name}_aligned256.png")) >= 35


def test_agrees_with_the_reference_on_the_astronaut():
    agrees_with_reference(PHOTOS, "astronaut.png")


def test_agrees_with_the_reference_on_the_portrait(shared):
    agrees_with_reference(shared / "photos", "portrait.jpg")


def test_a_faint_pattern_beside_a_face_is_none(astronaut):
    assert len(find_faces(astronaut)) == 1  # the mission patch is a face with a score of 0.12


# --- opening


def same_picture(opened: Image.Image, photo: Image.Image, least: float = 30) -> None:
    assert opened.mode == "RGB" and opened.size == photo.size
    assert psnr(opened, photo) > least


def test_exif_orientation_is_applied_once(astronaut):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90° clockwise
    file = encoded(astronaut.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    opened = open_photo(file)
    same_picture(opened, astronaut)
    assert open_photo(opened) is opened
    file.seek(0)
    assert find_faces(Image.open(file))[0].score > 1  # PIL pictures that were not opened here are turned, too


@pytest.mark.parametrize("mode", ["L", "1", "P", "PA", "LA", "CMYK", "YCbCr", "HSV"])
def test_other_modes_become_rgb(astronaut, mode):
    first = astronaut.convert({"PA": "P", "LA": "L"}.get(mode, mode))
    expected = astronaut.convert("L").convert("RGB") if mode in ("L", "LA", "1") else astronaut
    same_picture(open_photo(first.convert(mode)), expected, 4 if mode == "1" else 20)


def test_cmyk_file(astronaut):
    same_picture(open_photo(encoded(astronaut.convert("CMYK"), "JPEG", quality=95)), astronaut)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(astronaut, kind):
    grey = np.asarray(astronaut.convert("L"))
    file = encoded(Image.fromarray(grey.astype(np.uint16) * 257), kind)
    assert np.array_equal(np.asarray(open_photo(file))[..., 1], grey)
    floats = Image.fromarray(grey.astype(np.float32) / 255)
    assert np.array_equal(np.asarray(open_photo(floats))[..., 1], grey)


def test_transparency_is_laid_on_white(astronaut):
    alpha = Image.new("L", astronaut.size, 255)
    alpha.paste(0, (0, 0, 100, 100))
    cut_out = astronaut.copy()
    cut_out.putalpha(alpha)
    opened = np.asarray(open_photo(encoded(cut_out, "PNG")))
    assert (opened[:100, :100] == 255).all()
    assert np.array_equal(opened[100:], np.asarray(astronaut)[100:])
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert open_photo(palette).getpixel((0, 0)) == (255, 255, 255)


def test_first_picture_of_an_animation(astronaut):
    other = Image.new("RGB", astronaut.size, "red")
    file = encoded(astronaut, "WEBP", save_all=True, append_images=[other], quality=90)
    same_picture(open_photo(file), astronaut)
    animation = Image.open(encoded(astronaut, "GIF", save_all=True, append_images=[other]))
    same_picture(open_photo(animation), astronaut, 20)


def test_broken_colour_profile_is_ignored(astronaut):
    same_picture(open_photo(encoded(astronaut, "PNG", icc_profile=b"no profile")), astronaut, 90)


def bomb() -> bytes:
    """A PNG that claims 30,000 × 30,000 pixels."""
    small = encoded(Image.new("1", (1, 1)), "PNG").getvalue()
    header = b"IHDR" + struct.pack(">II", 30_000, 30_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


def test_files_that_are_no_pictures_are_one_sentence(tmp_path, astronaut):
    png = encoded(astronaut, "PNG").getvalue()
    jpeg = encoded(astronaut, "JPEG").getvalue()
    cases = {
        "empty.jpg": (b"", "not a picture"),
        "text.png": (b"hello, world", "not a picture"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo, which this program cannot read"),
        "cut.png": (png[: len(png) // 2], "damaged"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged"),
        "header.png": (png[:20], "damaged|not a picture"),
        "bomb.png": (bomb(), "million pixels"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PhotoError, match=words) as error:
            open_photo(tmp_path / name)
        message = str(error.value)
        assert message.startswith(name) and message.endswith(".") and "\n" not in message
    with pytest.raises(PhotoError, match=r"missing\.png cannot be read"):
        open_photo(tmp_path / "missing.png")
    with pytest.raises(PhotoError, match="cannot be read"):
        open_photo(tmp_path)
    assert issubclass(NoFaceError, E4EError)


# --- finding


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (200, 150)])
def test_no_face_is_an_empty_list(size):
    assert find_faces(Image.new("RGB", size, "teal")) == []


def test_several_faces_best_first(astronaut):
    row = Image.new("RGB", (900, 200), "grey")
    head = astronaut.crop((140, 10, 310, 200))
    for i in range(4):
        row.paste(head.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if i % 2 else head, (20 + 220 * i, 5))
    faces = find_faces(row)
    assert len(faces) == 4
    assert sorted(round((f.box[0] + f.box[2]) / 2) // 220 for f in faces) == [0, 1, 2, 3]
    assert [f.score for f in faces] == sorted((f.score for f in faces), reverse=True)


def test_tiny_faces(astronaut):
    head = astronaut.crop((160, 60, 285, 185))
    for side in (64, 32):
        faces = find_faces(head.resize((side, side), Image.Resampling.LANCZOS))
        assert len(faces) == 1
        picture, _ = align(head.resize((side, side)), faces[0])
        assert picture.size == (256, 256)


def test_large_photos_are_searched_reduced_and_cut_from_the_original(astronaut, face):
    large = astronaut.resize((7072, 7072), Image.Resampling.BICUBIC)  # 50 megapixels
    found = find_faces(large)[0]
    scale = large.width / astronaut.width
    assert np.abs((eyes(found) + 0.5) / scale - 0.5 - eyes(face)).max() < 2
    picture, crop = align(large, found, size=1024)
    assert crop.scale > 1.5  # finer than the crop: nothing was enlarged
    small, _ = align(astronaut, face, size=1024)
    assert psnr(picture.resize((64, 64), Image.Resampling.BOX), small.resize((64, 64), Image.Resampling.BOX)) > 22


@pytest.mark.parametrize("box", [(185, 0, 512, 300), (0, 85, 512, 400), (0, 0, 250, 185)])
def test_face_at_the_edge(astronaut, face, box):
    part = astronaut.crop(box)
    found = find_faces(part)[0]
    assert np.abs(eyes(found) + box[:2] - eyes(face)).max() < 6
    picture, crop = align(part, found)
    assert picture.size == (256, 256)
    assert paste_back(part, picture, crop).size == part.size


@pytest.mark.parametrize("angle", [30, -30, 75, 180])
def test_tilted_face_comes_out_upright(astronaut, face, angle):
    tilted = astronaut.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    found = find_faces(tilted)[0]
    upright, _ = align(astronaut, face, size=128)
    picture, crop = align(tilted, found, size=128)
    assert psnr(picture.resize((32, 32)), upright.resize((32, 32))) > 20
    assert crop.scale == pytest.approx(173.6 / 128, rel=0.08)


def test_many_threads_find_the_same(astronaut, face):
    results = []
    threads = [threading.Thread(target=lambda: results.append(find_faces(astronaut)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found.landmarks, face.landmarks) for found in results) and len(results) == 4


# --- the crop and the way back


@pytest.mark.parametrize("template", [(0.1, 1.0), DEMO])
def test_crop_maps_both_ways(astronaut, face, template):
    picture, crop = align(astronaut, face, size=200, template=template)
    assert picture.size == (200, 200) and picture.mode == "RGB"
    assert crop.crop_to_photo.shape == crop.photo_to_crop.shape == (3, 3)
    assert crop.crop_to_photo @ crop.photo_to_crop == pytest.approx(np.eye(3), abs=1e-9)
    there = np.c_[eyes(face), [1, 1]] @ crop.photo_to_crop.T
    again = eyes(find_faces(picture)[0])
    assert np.abs(there[:, :2] - again).max() < 3
    pixel = crop.crop_to_photo @ (100, 130, 1)
    seen = np.asarray(picture, dtype=float)[128:133, 98:103].mean(axis=(0, 1))
    x, y = np.rint(pixel[:2]).astype(int)
    assert seen == pytest.approx(
        np.asarray(astronaut, dtype=float)[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)), abs=8
    )
    middle = eyes(face).mean(axis=0)
    down = (face.landmarks[48] + face.landmarks[54]) / 2 - middle
    assert crop.quad.mean(axis=0) == pytest.approx(middle + template[0] * down, abs=1e-3)


def test_centre_crop_for_domains_without_faces():
    photo = Image.new("RGB", (300, 100), "navy")
    picture, crop = centre_crop(photo, size=64)
    assert picture.size == (64, 64) and crop.quad[0] == pytest.approx([99.5, -0.5])
    wide, crop = centre_crop(photo, size=256, aspect=(4, 3))
    assert wide.size == (256, 192)
    full = np.asarray(paste_back(photo, Image.new("RGB", (512, 384), "navy"), crop))
    assert np.array_equal(full, np.asarray(photo))


def outside(crop, size) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]]
    u, v, _ = np.tensordot(crop.photo_to_crop, np.stack([x, y, np.ones_like(x)]), axes=1)
    return (u < -0.5) | (v < -0.5) | (u > crop.size[0] - 0.5) | (v > crop.size[1] - 0.5)


@pytest.mark.parametrize("side", [64, 100, 256, 1024])
@pytest.mark.parametrize("corner", [(0, 0), (185, 40)])
def test_paste_changes_nothing_outside(astronaut, side, corner):
    photo = astronaut.crop((*corner, 512, 300))  # the second cuts the face: the crop reaches beyond the photo
    before = np.asarray(photo).copy()
    _, crop = align(photo, find_faces(photo)[0])
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    after = np.asarray(paste_back(photo, picture, crop))
    assert np.array_equal(np.asarray(photo), before)
    apart = outside(crop, photo.size)
    assert apart.any() and np.array_equal(after[apart], before[apart])
    assert (after[~apart] != before[~apart]).mean() > 0.1  # the face, not the hair and what is behind it


@pytest.mark.parametrize("template", [(0.1, 1.0), DEMO])
def test_pasting_the_crop_itself_gives_the_photo(astronaut, face, template):
    picture, crop = align(astronaut, face, size=512, template=template)
    assert psnr(paste_back(astronaut, picture, crop), astronaut) > 40


@pytest.mark.parametrize("template", [(0.1, 1.0), DEMO])
def test_a_colour_cast_leaves_no_seam_and_edits_stay(astronaut, face, template):
    picture, crop = align(astronaut, face, size=64, template=template)
    cast = np.clip(np.asarray(picture, dtype=np.float32) + np.array([25, -15, 20]), 0, 255)
    cast[28:36, 28:36] = (20, 200, 40)  # an edit in the middle
    after = np.asarray(paste_back(astronaut, Image.fromarray(cast.astype(np.uint8)), crop), dtype=np.float32)
    x, y = (crop.crop_to_photo @ (31.5, 31.5, 1))[:2].round().astype(int)
    assert after[y, x] == pytest.approx([20, 200, 40], abs=6)

    # Along rays from the border inwards, the cast sets in from nothing and without a step.
    plain = np.asarray(paste_back(astronaut, picture, crop), dtype=np.float32)
    angles, radii = np.meshgrid(np.linspace(0, 6, 24), np.linspace(31, 12, 60))
    rays = np.stack([31.5 + radii * np.cos(angles), 31.5 + radii * np.sin(angles), np.ones_like(radii)], axis=-1)
    columns, lines = np.rint(rays @ crop.crop_to_photo[:2].T).astype(int).transpose(2, 0, 1)
    shift = (after - plain)[lines, columns].mean(axis=1)  # [60, 3]
    assert np.abs(shift[0]).max() < 1
    assert np.abs(np.diff(shift, axis=0)).max() < 4


def rendering(picture: Image.Image, side: int = 64) -> Image.Image:
    """What a weak model might make of a crop: blurred, its colours a little off, its background and hair dark."""
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BOX), dtype=np.float32) * 0.9 + 10
    y, x = np.mgrid[:side, :side] / side - 0.5
    pixels[np.hypot(1.2 * x, y) > 0.5] = 20
    return Image.fromarray(pixels.astype(np.uint8))


def test_no_edit_gives_the_photo_back(astronaut, face):
    picture, crop = align(astronaut, face, size=64, template=DEMO)
    for region in ("everything", "mouth"):
        pasted = paste_back(astronaut, rendering(picture), crop, rendering(picture), region)
        assert pasted is not astronaut and np.array_equal(np.asarray(pasted), np.asarray(astronaut))


def test_only_the_edit_goes_in_and_only_into_the_face(astronaut, face):
    picture, crop = align(astronaut, face, size=64)
    before = np.asarray(rendering(picture), dtype=np.float32)
    edited = Image.fromarray(np.minimum(before + 40, 255).astype(np.uint8))  # lighter everywhere
    after = paste_back(astronaut, edited, crop, rendering(picture))
    change = np.asarray(after, dtype=np.float32).mean(axis=2) - np.asarray(astronaut, dtype=np.float32).mean(axis=2)
    cheek = face.landmarks[[2, 14, 30]].mean(axis=0).round().astype(int)
    assert change[cheek[1], cheek[0]] == pytest.approx(40, abs=8)
    chin, brow = face.landmarks[8], face.landmarks[17:27].mean(axis=0)
    above, below = brow + (brow - chin), chin - 0.4 * (brow - chin)
    for x, y in (above, below):  # hair and collar
        assert np.abs(change[int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4]).mean() < 3


def test_an_edit_that_moves_the_face_moves_the_photos_own_pixels(astronaut, face):
    picture, crop = align(astronaut, face, size=64, template=DEMO)
    before = np.asarray(rendering(picture))
    edited = Image.fromarray(np.roll(before, 3, axis=1))  # 8 pixels of the photo to the right
    after = np.asarray(paste_back(astronaut, edited, crop, Image.fromarray(before)), dtype=np.float32)
    x, y = face.landmarks[30].astype(int)
    nose = np.asarray(astronaut, dtype=np.float32)[y - 12 : y + 12, x - 12 : x + 12]
    errors = [np.abs(after[y - 12 : y + 12, x + d - 12 : x + d + 12] - nose).mean() for d in range(12)]
    assert 2 <= np.argmin(errors) <= 9 and min(errors) < 0.6 * errors[0]


def test_an_edit_of_one_region_stays_there(astronaut, face):
    picture, crop = align(astronaut, face, size=64, template=DEMO)
    rng = np.random.default_rng(0)
    edited = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    mouth, eye = face.landmarks[48:68].mean(axis=0).astype(int), eyes(face)[0].astype(int)
    for region, changed, kept in (("mouth", mouth, eye), ("eyes", eye, mouth)):
        after = np.asarray(paste_back(astronaut, edited, crop, rendering(picture), region))
        same = (after == np.asarray(astronaut)).all(axis=2)
        assert not same[changed[1] - 4 : changed[1] + 5, changed[0] - 4 : changed[0] + 5].all()
        assert same[kept[1] - 4 : kept[1] + 5, kept[0] - 4 : kept[0] + 5].all()


def test_impossible_regions_and_feathers_are_sentences(astronaut, face):
    picture, crop = align(astronaut, face, size=64)
    with pytest.raises(PhotoError, match=r"There is no region 'nose'; choose one of everything, mouth, eyes, skin"):
        paste_back(astronaut, picture, crop, region="nose")
    for feather in (0.0, -1.0, 2.0, float("nan")):
        with pytest.raises(PhotoError, match="choose a number above 0"):
            paste_back(astronaut, picture, crop, feather=feather)


def test_the_smaller_people_in_a_group(astronaut):
    head = astronaut.crop((140, 10, 310, 200))  # a face of about 100 px
    group = Image.new("RGB", (4000, 3000), "grey")
    places = [(200, 200, 4.5), (1500, 200, 4.5), (2900, 300, 1.7), (3300, 1500, 1.7), (400, 2000, 1.7)]
    for x, y, scale in places:
        group.paste(head.resize((round(170 * scale), round(190 * scale)), Image.Resampling.BICUBIC), (x, y))
    found = sorted(((f.box[0] + f.box[2]) / 2, (f.box[1] + f.box[3]) / 2) for f in find_faces(group))
    wanted = sorted((x + 85 * scale, y + 110 * scale) for x, y, scale in places)
    assert np.array(found) == pytest.approx(np.array(wanted), abs=100)


# --- a folder


def test_a_folder_is_aligned_reported_and_taken_up_again(tmp_path, astronaut):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "more").mkdir(parents=True)
    head = astronaut.crop((140, 10, 310, 200))
    head.save(photos / "a.png")
    head.save(photos / "a.jpg", quality=95)
    head.save(photos / "more" / "b.png")
    Image.new("RGB", (60, 60), "teal").save(photos / "wall.png")
    (photos / "broken.jpg").write_bytes((photos / "a.jpg").read_bytes()[:900])
    (photos / "notes.txt").write_text("no photo")
    options = Alignment(photos, out, size=64, workers=1)
    done, skipped = align_all(options, photos_below(options))
    assert done == 3 and [photo.name for photo, _ in skipped] == ["broken.jpg", "wall.png"]
    written = {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert set(written) == {"a.png.png", "a.jpg.png", "more/b.png"}
    assert psnr(Image.open(out / "more" / "b.png"), align(head, find_faces(head)[0], 64)[0]) > 40
    report = (out / "skipped.csv").read_text()
    assert report.startswith("photo,reason") and "wall.png,No face was found" in report.replace("\r", "")
    (out / "more" / "b.png").unlink()
    assert align_all(options, photos_below(options))[0] == 3
    assert (out / "more" / "b.png").is_file() and (out / "a.jpg.png").stat().st_mtime_ns == written["a.jpg.png"]
    (photos / "a.jpg").write_bytes((photos / "a.png").read_bytes())  # another photo of that name
    for again, anew in ((options, {"a.jpg.png"}), (replace(options, template=(0.42, 0.62)), set(written))):
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
        align_all(again, photos_below(again))
        assert {path.relative_to(out).as_posix() for path in before if path.stat().st_mtime_ns != before[path]} == anew
    with pytest.raises(PhotoError, match="two folders"):
        photos_below(Alignment(photos, photos))
    with pytest.raises(PhotoError, match="There is no folder"):
        photos_below(Alignment(tmp_path / "nowhere", out))


def test_a_missing_landmark_file_is_one_sentence(monkeypatch):
    from alignment import landmarks
    from errors import ModelError

    monkeypatch.setattr(landmarks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install face_recognition_models"):
        landmarks._predictor.__wrapped__()
