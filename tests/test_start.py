"""Starting the page: what can go wrong on the command line is one sentence, and one exit code."""

import socket
from dataclasses import replace

import pytest
from test_editing import some_directions, tiny_model

import app
from e4e_core.checkpoints import save_model


@pytest.fixture
def model_folder(tmp_path):
    save_model(tiny_model(template=None), tmp_path / "model")
    some_directions().save(tmp_path / "model")
    return tmp_path / "model"


def test_an_unknown_model_is_a_sentence(capsys):
    assert app.main(["--model", "nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("app.py: There is no model 'nonsense'; use one of demo, ffhq")
    assert len(error.splitlines()) == 1


def test_a_port_in_use_is_a_sentence(capsys, model_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert app.main(["--model", str(model_folder), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert "choose another --host or --port" in error
    assert len(error.splitlines()) == 1


def test_a_model_that_cannot_be_had_gives_the_demo_and_a_notice(monkeypatch):
    model = tiny_model(template=None)
    monkeypatch.setattr(app, "load_or_demo", lambda name: (model, "The demo model is used instead."))
    monkeypatch.setattr("editing.editor.directions_for", lambda model: some_directions())
    _, name, notice = app.first_editor("ffhq")
    assert (name, notice) == ("demo", "The demo model is used instead.")


@pytest.mark.parametrize("low, high, expected", [(-3, 3, 0.05), (-5, 5, 0.1), (0, 1, 0.01), (-20, 40, 0.5)])
def test_steps_are_round_and_about_a_hundredth_of_the_range(low, high, expected):
    direction = next(iter(some_directions().values()))
    assert app.step(replace(direction, low=low, high=high)) == expected
