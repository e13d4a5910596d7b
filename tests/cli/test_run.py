"""What ``pardalis run`` says at its end."""

from pardalis.cli import quickstart
from pardalis.cli.main import main


def test_a_run_that_trains_an_image_tokenizer_alone_says_where_it_is(tmp_path, monkeypatch, capsys):
    run = tmp_path / "my photos"
    (run / "image_tokenizer" / "final").mkdir(parents=True)
    monkeypatch.setattr(quickstart, "run_stages", lambda options: run)
    assert main(["run", "photos.toml"]) == 0
    assert capsys.readouterr().out == (
        f"\nOpen {run}/image_tokenizer/progress.html. The image tokenizer is "
        f"{run}/image_tokenizer/final; evaluate it:\n"
        f"pardalis tokenizer evaluate '{run}' IMAGES -o evaluation\n"
    )
