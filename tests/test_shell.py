import json
import os
import shutil
import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image
from test_editing import RESOLUTION, some_directions, tiny_model

from e4e_core.checkpoints import save_model
from editing import Editor
from editing.__main__ import main
from editing.animation import there_and_back
from editing.folder import FEW, Workers, cores
from errors import ModelError, PhotoError
from page.presets import Edits, edits_within, read_settings


@pytest.fixture
def tiny(monkeypatch):
    """The command, with a tiny model of something without faces instead of a real one."""
    model = tiny_model(template=None)
    monkeypatch.setattr("e4e_core.checkpoints.load_model", lambda name: model)
    monkeypatch.setattr("editing.editor.directions_for", lambda model: some_directions())
    return model


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    Image.linear_gradient("L").convert("RGB").resize((120, 90)).save(path, exif=exif)
    return path


def test_help_does_not_wait_for_torch():
    seen = "import sys, runpy; sys.argv = ['editing', '--help']\n"
    seen += "try: runpy.run_module('editing', run_name='__main__')\n"
    seen += "finally: print(sorted({'torch', 'dlib', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, check=True)
    assert "python -m editing" in done.stdout and done.stdout.rstrip().endswith("[]")


def test_one_photo(tiny, photo, tmp_path, capsys):
    out = tmp_path / "results"
    assert main([str(photo), "--edit", "smile=2", "--edit", "age=-1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "photo_edited.png")
    picture = Image.open(out / "photo_edited.png")
    assert picture.size == (RESOLUTION, RESOLUTION)
    settings = json.loads(picture.text["Settings"])
    assert settings["strengths"] == {"smile": 2, "age": -1} and settings["model"] == "tiny"
    assert b"SecretCamera" not in (out / "photo_edited.png").read_bytes()


def test_the_page_loads_what_the_shell_has_written(tiny, photo, tmp_path):
    command = [str(photo), "--edit", "smile=2", "--edit", "age=-1", "--fidelity", "0.5", "--out", str(tmp_path)]
    assert main([*command, "--paste", "--only", "mouth", "--feather", "0.3"]) == 0
    edits = edits_within(some_directions(), read_settings(tmp_path / "photo_edited.png"))
    assert edits == Edits({"smile": 2, "age": -1}, 0.5, region="mouth", feather=0.3)
    assert main(command) == 0
    edits = edits_within(some_directions(), read_settings(tmp_path / "photo_edited.png"))
    assert edits == Edits({"smile": 2, "age": -1}, 0.5)


def test_refining_comes_closer_and_says_how_close(tiny, photo, tmp_path, capsys, monkeypatch):
    for steps in ("CODE_STEPS", "TUNING_STEPS"):
        monkeypatch.setattr(f"editing.refine.{steps}", 5)
    assert main([str(photo), "--out", str(tmp_path / "as_it_is")]) == 0
    assert main([str(photo), "--refine", "generator", "--out", str(tmp_path / "closer")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "refined" in line]
    assert [line.split(": ")[1] for line in lines] == ["refined codes", "refined generator"]
    assert all(" dB → " in line and "(5 steps, " in line for line in lines)
    as_it_is, closer = (Image.open(tmp_path / name / "photo_edited.png") for name in ("as_it_is", "closer"))
    assert as_it_is.tobytes() != closer.tobytes()
    assert json.loads(closer.text["Settings"])["refined"] == "generator"


def test_a_model_folder_brings_its_directions(photo, tmp_path):
    model = tiny_model(template=None)
    save_model(model, tmp_path / "model")
    some_directions().save(tmp_path / "model")
    out = tmp_path / "out"
    assert main([str(photo), "--model", str(tmp_path / "model"), "--edit", "smile=2", "--out", str(out)]) == 0
    editor = Editor(model, some_directions())
    expected = editor.render(editor.open(photo), {"smile": 2})
    difference = np.abs(np.asarray(Image.open(out / "photo_edited.png"), int) - np.asarray(expected, int))
    assert difference.max() <= 4  # where there is a GPU, the command computes in half precision


def test_paste_keeps_the_photos_size(tiny, photo, tmp_path):
    assert main([str(photo), "--edit", "smile=2", "--paste", "--out", str(tmp_path)]) == 0
    assert Image.open(tmp_path / "photo_edited.png").size == (120, 90)


def test_a_folder_goes_on_after_a_bad_photo(tiny, photo, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not taken")
    assert main([str(tmp_path), str(tmp_path / "lost.jpg"), "--out", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "broken.png: " in lines[0] and "lost.jpg: " in lines[1]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["photo_edited.png"]


def test_an_empty_folder_is_a_failure(tiny, tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert "has no photos in it" in capsys.readouterr().err


def test_inputs_and_results_of_one_run_are_never_overwritten(tiny, photo, tmp_path):
    (tmp_path / "photo_edited.png").symlink_to(photo)  # an input under the name a result would have
    Image.new("RGB", (70, 70), "red").save(tmp_path / "photo.png")
    before = photo.read_bytes()
    assert main([str(photo), str(tmp_path / "photo.png"), "--out", str(tmp_path)]) == 0
    assert photo.read_bytes() == before and Image.open(tmp_path / "photo.png").size == (70, 70)
    assert {"photo_edited_2.png", "photo_edited_3.png"} < {path.name for path in tmp_path.iterdir()}
    first = {path.name for path in tmp_path.iterdir()}
    assert main([str(photo), str(tmp_path / "photo.png"), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == first  # older results give way


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_film_of_a_slider_says_that_it_is_edited_and_nothing_of_the_camera(tiny, photo, tmp_path, kind):
    out = tmp_path / "out"
    assert main([str(photo), "--animate", "smile", "--edit", "age=1", "--format", kind, "--out", str(out)]) == 0
    film = out / f"photo_smile.{kind}"
    data = film.read_bytes()
    assert b"edited with AI" in data and b"compositeWithTrainedAlgorithmicMedia" in data and b"SecretCamera" not in data
    if kind == "gif":
        picture = Image.open(film)
        assert picture.size == (256, 256) and picture.n_frames == 48 and picture.info["loop"] == 0
    else:
        frames = imageio_ffmpeg.read_frames(str(film))
        assert next(frames)["size"] == (256, 256) and sum(1 for _ in frames) == 48
    assert [path.name for path in out.iterdir()] == [film.name]


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_film_in_the_photo_has_the_photos_shape(tiny, photo, tmp_path, kind):
    command = [str(photo), "--animate", "smile", "--paste", "--format", kind, "--out", str(tmp_path)]
    assert main(command) == 0
    film = tmp_path / f"photo_smile.{kind}"
    if kind == "gif":
        assert Image.open(film).size == (342, 256) and Image.open(film).n_frames == 48
    else:
        frames = imageio_ffmpeg.read_frames(str(film))
        assert next(frames)["size"] == (342, 256) and sum(1 for _ in frames) == 48


def test_a_film_that_cannot_be_written_is_a_sentence(tiny, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    assert main([str(photo), "--animate", "smile", "--out", str(tmp_path / "out")]) == 1
    assert "could not be written as MP4 on this machine; choose GIF." in capsys.readouterr().err
    assert not [*(tmp_path / "out").iterdir()]


def test_a_path_goes_from_end_to_end_and_back():
    path = there_and_back(-1, 3, 8)
    assert path == pytest.approx([-1, 1 - 2 * 0.5**0.5, 1, 1 + 2 * 0.5**0.5, 3, 1 + 2 * 0.5**0.5, 1, 1 - 2 * 0.5**0.5])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--edit", "smile"], "'smile' has no strength; write for example smile=1.5"),
        (["--edit", "smile="], "'smile=' has no strength; write for example smile=1.5"),
        (["--edit", "smile=lots"], "'smile=lots' has no number but 'lots'; write for example smile=1.5"),
        (["--animate", "wink"], "This model has no direction 'wink'; choose one of smile, age."),
        (["--edit", "wink=1"], "This model has no direction 'wink'; choose one of smile, age."),
        (["--edit", "smile=nan"], "The strength of 'smile' cannot be nan; give a number from -3 to 3."),
        (["--edit", "smile=100"], "The strength of 'smile' cannot be 100.0; give a number from -3 to 3."),
        (["--only", "mouth"], "--only and --feather are about the whole photo; add --paste"),
        (["--paste", "--feather", "2"], "The feather cannot be 2.0; choose a number above 0 and at most 1."),
        (["--fidelity", "2"], "Fidelity cannot be 2.0; give a number from 0 (editable) to 1 (faithful)."),
    ],
)
def test_mistakes_are_sentences(tiny, photo, capsys, arguments, sentence):
    try:
        code = main([str(photo), *arguments])
    except SystemExit as stop:  # argparse ends the program itself
        code = stop.code
    assert code == 2 and sentence in capsys.readouterr().err


def test_no_photo_and_no_model_are_sentences(capsys, photo, monkeypatch):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "no photo given" in capsys.readouterr().err

    def no_model(name):
        raise ModelError("There is no model 'x'; use demo.")

    monkeypatch.setattr("e4e_core.checkpoints.load_model", no_model)
    assert main([str(photo), "--model", "x"]) == 2
    assert capsys.readouterr().err == "There is no model 'x'; use demo.\n"


def test_list_prints_every_direction_with_its_range(tiny, capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 2 and lines[0].split()[:4] == ["smile", "-3", "…", "3"]


def test_a_folder_is_shared_and_continued(tiny, photo, tmp_path, capsys, monkeypatch):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in range(FEW + 2):
        shutil.copy(photo, folder / f"{number}.jpg")
    (folder / "broken.png").write_bytes(b"no picture")
    command = [str(folder), "--edit", "smile=2", "--paste", "--out", str(out)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(command) == 0  # 0, 2 and 4
    first = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert set(first) == {"0_edited.png", "2_edited.png", "4_edited.png"}
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert main(command) == 1
    assert {path.name for path in out.iterdir()} == {f"{number}_edited.png" for number in range(FEW + 2)}
    assert all((out / name).stat().st_mtime_ns == time for name, time in first.items())
    said = capsys.readouterr()
    assert "3 photos have been edited like this before" in said.err and "broken.png: " in said.err
    assert main([*command[:2], "smile=1", *command[3:]]) == 1  # another edit is made anew
    assert (out / "0_edited.png").stat().st_mtime_ns > first["0_edited.png"]
    Image.open(folder / "0.jpg").rotate(5).save(folder / "0.jpg")  # another photo of that name, older than its result
    os.utime(folder / "0.jpg", (0, 0))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main([*command[:2], "smile=1", *command[3:]]) == 1
    assert [name for name, time in before.items() if (out / name).stat().st_mtime_ns != time] == ["0_edited.png"]


def test_results_do_not_go_among_the_photos_of_a_folder(tiny, photo, tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "link")]) == 2
    assert "need two folders; name another one with --out." in capsys.readouterr().err
    assert not [*tmp_path.glob("*_edited.png")]
    assert main([str(tmp_path), "--out", str(tmp_path / "results")]) == 0


def test_the_processes_of_a_launcher_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert cores() == 10
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores() == 1


def test_a_photo_that_ends_its_process_fails_alone():
    with Workers(FEW + 1) as workers:
        tasks = [workers.submit(*call) for call in ((abs, -1), (os._exit, 3), (abs, -2))]
        assert tasks[0].result() == 1 and tasks[2].result() == 2
        with pytest.raises(PhotoError, match="ended the process"):
            tasks[1].result()
        assert workers.submit(abs, -3).result() == 3
